// SPDX-License-Identifier: Apache-2.0
/// Bitmasks on AVX2: a byte of bits names the shuffle that puts eight weights in their places; widened, they are four
/// rows of two k, which meet a pair of activations. For every 8 weights 2 loads, a shuffle, a widening, a shift and a
/// count, and a broadcast and a multiply-add a token: 64 for a line of 36 bytes at half of the weights. Expected limit:
/// these instructions, about 16 cycles a line where reading takes 5 at 30 GB/s.

#include <immintrin.h>

#include "kernels/block_sparse/block_sparse_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/block_sparse/bitmask_table.inc"

/// The next eight words, of which `mask` says the places.
static inline __m128i next_words(const unsigned char*& w, unsigned mask) {
  const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
  w += 2 * __builtin_popcount(mask);
  return _mm_shuffle_epi8(words, _mm_load_si128(reinterpret_cast<const __m128i*>(kWordTable.bytes[mask])));
}

template <int T, int P>
static void part(const BitmaskProduct& p, std::ptrdiff_t h) {
  const unsigned char* w = p.w + p.weights_first[h];
  __m256 sum[T][4];
  for (int t = 0; t < T; ++t)
    for (int b = 0; b < 4; ++b) sum[t][b] = _mm256_setzero_ps();
  for (std::ptrdiff_t i = p.first[h]; i < p.first[h + 1]; ++i) {
    const float* x = static_cast<const float*>(p.x) + p.steps[i] * T * kSparseStep;
    const unsigned char* masks = w;
    w += 64;
    for (int line = 0; line < 16; ++line) {
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        const __m128i words = next_words(w, masks[4 * line + b]);
        const __m256 weights = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          double pair;
          __builtin_memcpy(&pair, x + t * kSparseStep + 2 * line, sizeof pair);
          sum[t][b] = _mm256_fmadd_ps(weights, _mm256_castpd_ps(_mm256_set1_pd(pair)), sum[t][b]);
        }
      }
    }
  }
  for (int t = 0; t < T; ++t)
    for (int b = 0; b < 4; b += 2) {
      const __m256 rows = _mm256_hadd_ps(sum[t][b], sum[t][b + 1]);
      const __m256d ordered = _mm256_permute4x64_pd(_mm256_castps_pd(rows), 0xd8);
      _mm256_storeu_ps(p.sums + t * p.sums_stride + h * kSparseColumns + 4 * b, _mm256_castpd_ps(ordered));
    }
}

#include "kernels/block_sparse/bitmask_walk.inc"

void multiply(const BitmaskProduct& p) noexcept { walk_tokens<1>(p); }

void expand(const unsigned char* w, std::ptrdiff_t units, std::uint16_t* dst) noexcept {
  for (std::ptrdiff_t i = 0; i < units; ++i) {
    const unsigned char* masks = w;
    w += 64;
    for (int b = 0; b < 64; ++b, dst += 8) _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), next_words(w, masks[b]));
  }
}

}  // namespace

void install_bitmask_avx2(BlockSparseKernels& k, Features) noexcept {
  k.bitmask_f32 = {multiply, "avx2"};
  k.expand_bitmask = {expand, "avx2"};
}

}  // namespace blockpack::kernels
