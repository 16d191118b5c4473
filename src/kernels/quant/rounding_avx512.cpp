// SPDX-License-Identifier: Apache-2.0
/// Rounding of columns with errors carried on, with AVX-512 F, sixteen rows a register.
/// Limit: one load, product, sum and store for each later column.

#include <immintrin.h>

#include "kernels/quant/quant_kernels.hpp"

#define BLOCKPACK_LANES 16

namespace blockpack::kernels {
namespace {

#include "kernels/dense/dense_vectors.inc"
#include "kernels/quant/rounding_body.inc"

}  // namespace

void install_rounding_avx512(QuantKernels& t) noexcept { t.round_columns = {round_columns, "avx512"}; }

}  // namespace blockpack::kernels
