// SPDX-License-Identifier: Apache-2.0
/// Block-sparse kernels on Advanced SIMD. Tile 6 rows x 16 columns, as the dense one: 24 sums, 4 weight vectors and a
/// broadcast in 32 registers.

#include <arm_neon.h>

#include "kernels/block_sparse/block_sparse_kernels.hpp"

#define BLOCKPACK_LANES 4
#define BLOCKPACK_TILE_ROWS 6

namespace blockpack::kernels {
namespace {

#include "kernels/dense/dense_vectors.inc"

static inline vf fma_v(vf a, vf b, vf c) {
  return reinterpret_cast<vf>(
      vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
}
static inline void stream_v(float* p, vf v) { store_v(p, v); }
static inline void fence_v() {}
static inline void prefetch_v(const void* p) { __asm__ volatile("prfm pldl1keep, [%0]" : : "r"(p)); }

#include "kernels/block_sparse/block_sparse_body.inc"

}  // namespace

void install_block_sparse_neon(BlockSparseKernels& k, Features) noexcept { install(k, "neon"); }

}  // namespace blockpack::kernels
