// SPDX-License-Identifier: Apache-2.0
/// Block-sparse products of int8 by VNNI dots (vpdpbusd: 4 unsigned x by 4 signed weights to each of 16 lanes).

#include <immintrin.h>

#include "kernels/block_sparse/block_sparse_kernels.hpp"

namespace blockpack::kernels {
namespace {

constexpr int kLines = 8;  // of 4 k
using Sums = __m512i;
static inline Sums add(Sums a, Sums b) { return _mm512_add_epi32(a, b); }
static inline Sums dot(Sums sum, __m512i w, __m512i x) { return _mm512_dpbusd_epi32(sum, x, w); }

#include "kernels/block_sparse/block_sparse_dots.inc"

static inline __m512 finished(const Tile& t, int r, Sums low, Sums high) {
  const __m512 a = _mm512_castsi512_ps(low), b = _mm512_castsi512_ps(high);
  const __m512i even = _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88));
  const __m512i odd = _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd));
  const __m512i sum = add(add(even, odd), _mm512_loadu_si512(t.starts));
  return _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(t.scales)),
                       _mm512_set1_ps(t.token_scales[r]));
}

}  // namespace

void install_block_sparse_avx512vnni(BlockSparseKernels& k, Features) noexcept {
  k.int8_int8 = {{multiply, "avx512vnni"}, kTileRows};
}

}  // namespace blockpack::kernels
