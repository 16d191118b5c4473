// SPDX-License-Identifier: Apache-2.0
/// Bitmasks on AVX-512: sixteen widened weights are expanded (vpexpandd) to eight rows of two k, which meet a pair of
/// activations. For every 16 weights a load, a mask, an expansion, a shift and a count, and a broadcast and a
/// multiply-add a token. Four half-panels are walked side by side: the place of the next weights waits for the count of
/// those before. Expected limit: these instructions, about 8 cycles a line of 36 bytes (half of the weights), where
/// reading takes 5 at 30 GB/s.

#include <immintrin.h>

#include "kernels/block_sparse/block_sparse_kernels.hpp"

namespace blockpack::kernels {
namespace {

constexpr std::ptrdiff_t kAhead = 1024;  // bytes

template <int T, int P>
static void part(const BitmaskProduct& p, std::ptrdiff_t h) {
  const unsigned char* w[P];
  const std::int32_t* steps[P];
  __m512 sum[P][T][2];
#pragma GCC unroll 4
  for (int i = 0; i < P; ++i) {
    w[i] = p.w + p.weights_first[h + i];
    steps[i] = p.steps + p.first[h + i];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sum[i][t][0] = sum[i][t][1] = _mm512_setzero_ps();
  }
  const std::ptrdiff_t units = p.first[h + 1] - p.first[h];
  for (std::ptrdiff_t u = 0; u < units; ++u) {
    const unsigned char* masks[P];
    const float* x[P];
#pragma GCC unroll 4
    for (int i = 0; i < P; ++i) {
      masks[i] = w[i];
      w[i] += 64;
      x[i] = static_cast<const float*>(p.x) + steps[i][u] * T * kSparseStep;
    }
    for (int line = 0; line < 16; ++line) {
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) {
        std::uint32_t mask;
        __builtin_memcpy(&mask, masks[i] + 4 * line, sizeof mask);
        _mm_prefetch(reinterpret_cast<const char*>(w[i]) + kAhead, _MM_HINT_T0);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const auto bits = static_cast<std::uint16_t>(mask >> (16 * half));
          const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w[i])));
          w[i] += 2 * __builtin_popcount(bits);
          const __m512 weights = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_maskz_expand_epi32(bits, words), 16));
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) {
            double pair;
            __builtin_memcpy(&pair, x[i] + t * kSparseStep + 2 * line, sizeof pair);
            sum[i][t][half] = _mm512_fmadd_ps(weights, _mm512_castpd_ps(_mm512_set1_pd(pair)), sum[i][t][half]);
          }
        }
      }
    }
  }
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int i = 0; i < P; ++i)
    for (int t = 0; t < T; ++t) {
      const __m512 a = _mm512_permutex2var_ps(sum[i][t][0], even, sum[i][t][1]);
      const __m512 b = _mm512_permutex2var_ps(sum[i][t][0], odd, sum[i][t][1]);
      _mm512_storeu_ps(p.sums + t * p.sums_stride + (h + i) * kSparseColumns, _mm512_add_ps(a, b));
    }
}

#include "kernels/block_sparse/bitmask_walk.inc"

void multiply(const BitmaskProduct& p) noexcept { walk_tokens<4>(p); }

}  // namespace

void install_bitmask_avx512(BlockSparseKernels& k, Features) noexcept { k.bitmask_f32 = {multiply, "avx512"}; }

}  // namespace blockpack::kernels
