// SPDX-License-Identifier: Apache-2.0
/// Rows of NVFP4, with AVX-512 F, sixteen blocks at a time.
/// Limit: about 15 operations a weight on a register of floats, 25 for each of two scales with their errors.

#include <immintrin.h>

#include "kernels/quant/quant_kernels.hpp"

#define BLOCKPACK_LANES 16

namespace blockpack::kernels {
namespace {

#include "kernels/dense/dense_vectors.inc"
#include "kernels/quant/nvfp4_body.inc"

}  // namespace

void install_nvfp4_avx512(QuantKernels& t) noexcept { t.nvfp4_encode = {nvfp4_encode, "avx512"}; }

}  // namespace blockpack::kernels
