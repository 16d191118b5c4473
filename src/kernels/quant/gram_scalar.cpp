// SPDX-License-Identifier: Apache-2.0
/// Tiles of XᵀX in double, on two lanes of the compilers' vector extension, as SSE2 has them: a product and a sum for
/// each pair. Limit: four fifths of the multiply-adds a core can do, because every fourth goes with a sum; a tile is 40
/// KB.

#include "kernels/quant/quant_kernels.hpp"

#define BLOCKPACK_LANES 2

namespace blockpack::kernels {
namespace {

typedef double vd __attribute__((vector_size(BLOCKPACK_LANES * 8)));
enum : std::size_t { kGramBlock = 2 };  // rows of a tile that stay in registers
static inline vd multiply_add(vd a, vd b, vd c) { return a * b + c; }

#include "kernels/quant/gram_body.inc"

}  // namespace

void install_gram_scalar(QuantKernels& t) noexcept { t.gram_tile = {gram_tile, "scalar"}; }

}  // namespace blockpack::kernels
