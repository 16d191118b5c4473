// SPDX-License-Identifier: Apache-2.0
/// Rows of NVFP4, on four lanes of the compilers' vector extension: what SSE2 and NEON
/// have, which every CPU of their kind runs.
/// Limit: about 15 operations a weight on a register of floats, 25 for each of two scales with their errors.

#include "kernels/quant/quant_kernels.hpp"

#define BLOCKPACK_LANES 4

namespace blockpack::kernels {
namespace {

#include "kernels/dense/dense_vectors.inc"
#include "kernels/quant/nvfp4_body.inc"

}  // namespace

void install_nvfp4_scalar(QuantKernels& t) noexcept { t.nvfp4_encode = {nvfp4_encode, "scalar"}; }

}  // namespace blockpack::kernels
