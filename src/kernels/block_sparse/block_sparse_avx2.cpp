// SPDX-License-Identifier: Apache-2.0
/// Block-sparse kernels on AVX2 and FMA. Tile 6 rows x 16 columns, as the dense one: 12 sums, 2 weight vectors and a
/// broadcast; per k 8 loads feed 12 multiply-adds, which are the limit.

#include <immintrin.h>

#include "kernels/block_sparse/block_sparse_kernels.hpp"

#define BLOCKPACK_LANES 8
#define BLOCKPACK_TILE_ROWS 6

namespace blockpack::kernels {
namespace {

#include "kernels/dense/dense_vectors.inc"

static inline vf fma_v(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline void stream_v(float* p, vf v) { _mm256_stream_ps(p, v); }
static inline void fence_v() { _mm_sfence(); }
// Assembly: a function that only prefetches counts as free of effects, and GCC 12 drops calls of it.
static inline void prefetch_v(const void* p) { __asm__ volatile("prefetcht0 (%0)" : : "r"(p)); }

#include "kernels/block_sparse/block_sparse_body.inc"

}  // namespace

void install_block_sparse_avx2(BlockSparseKernels& k, Features) noexcept { install(k, "avx2"); }

}  // namespace blockpack::kernels
