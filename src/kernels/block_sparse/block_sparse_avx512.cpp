// SPDX-License-Identifier: Apache-2.0
/// Block-sparse kernels on AVX-512. Tile 28 rows x 16 columns: 28 sums, 2 weight vectors and broadcasts that the
/// multiply-adds read from memory; per k 29 loads for 28 multiply-adds, so loads and multiply-adds are the limit alike.

#include <immintrin.h>

#include "kernels/block_sparse/block_sparse_kernels.hpp"

#define BLOCKPACK_LANES 16
#define BLOCKPACK_TILE_ROWS 28

namespace blockpack::kernels {
namespace {

#include "kernels/dense/dense_vectors.inc"

static inline vf fma_v(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline void stream_v(float* p, vf v) { _mm512_stream_ps(p, v); }
static inline void fence_v() { _mm_sfence(); }
// Assembly: a function that only prefetches counts as free of effects, and GCC 12 drops calls of it.
static inline void prefetch_v(const void* p) { __asm__ volatile("prefetcht0 (%0)" : : "r"(p)); }

#include "kernels/block_sparse/block_sparse_body.inc"

}  // namespace

void install_block_sparse_avx512(BlockSparseKernels& k, Features) noexcept { install(k, "avx512"); }

}  // namespace blockpack::kernels
