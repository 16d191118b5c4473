// SPDX-License-Identifier: Apache-2.0
/// Tiles of XᵀX in double, with AVX-512 F.
/// Limit: four fifths of the multiply-adds a core can do, because every fourth goes with a sum; a tile is 40 KB.

#include <immintrin.h>

#include "kernels/quant/quant_kernels.hpp"

#define BLOCKPACK_LANES 8

namespace blockpack::kernels {
namespace {

typedef double vd __attribute__((vector_size(BLOCKPACK_LANES * 8)));
enum : std::size_t { kGramBlock = 4 };  // rows of a tile that stay in registers
static inline vd multiply_add(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }

#include "kernels/quant/gram_body.inc"

}  // namespace

void install_gram_avx512(QuantKernels& t) noexcept { t.gram_tile = {gram_tile, "avx512"}; }

}  // namespace blockpack::kernels
