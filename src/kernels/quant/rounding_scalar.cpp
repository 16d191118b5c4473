// SPDX-License-Identifier: Apache-2.0
/// Rounding of columns with errors carried on, on four lanes of the compilers' vector extension: what SSE2 and NEON
/// have, which every CPU of their kind runs. Limit: one load, product, sum and store for each later column.

#include "kernels/quant/quant_kernels.hpp"

#define BLOCKPACK_LANES 4

namespace blockpack::kernels {
namespace {

#include "kernels/dense/dense_vectors.inc"
#include "kernels/quant/rounding_body.inc"

}  // namespace

void install_rounding_scalar(QuantKernels& t) noexcept { t.round_columns = {round_columns, "scalar"}; }

}  // namespace blockpack::kernels
