// SPDX-License-Identifier: Apache-2.0
/// Block-sparse kernels for every CPU. Tile 2 rows x 16 columns: 8 sums, 4 weight vectors and a broadcast in the 16
/// registers of SSE2.

#include "kernels/block_sparse/block_sparse_kernels.hpp"

#define BLOCKPACK_LANES 4
#define BLOCKPACK_TILE_ROWS 2

namespace blockpack::kernels {
namespace {

#include "kernels/dense/dense_vectors.inc"

static inline vf fma_v(vf a, vf b, vf c) { return a * b + c; }
static inline void stream_v(float* p, vf v) { store_v(p, v); }
static inline void fence_v() {}
static inline void prefetch_v(const void*) {}

#include "kernels/block_sparse/block_sparse_body.inc"

}  // namespace

void install_block_sparse_scalar(BlockSparseKernels& k, Features) noexcept { install(k, "scalar"); }

}  // namespace blockpack::kernels
