// SPDX-License-Identifier: Apache-2.0
/// Bitmasks by expansion of words (vpexpandw) and bf16 dots: a line of 16 pairs is a load, a mask, an expansion, a
/// count, and a broadcast of a pair of activations and a dot a token. Four half-panels are walked side by side, each
/// fetched 1 KB ahead: the place of the next weights waits for the count of those before. Expected limit: memory for 1
/// token, 36 bytes a line at half of the weights, 5 cycles at 30 GB/s, where a line takes about 8 instructions.

#include <immintrin.h>

#include "kernels/block_sparse/block_sparse_kernels.hpp"

namespace blockpack::kernels {
namespace {

constexpr std::ptrdiff_t kAhead = 1024;  // bytes

/// The next line, of which `mask` says the places.
static inline __m512i next_line(const unsigned char*& w, std::uint32_t mask) {
  __m512i words = _mm512_loadu_si512(w);
  __asm__("" : "+v"(words));  // expansion of memory takes twice as long on Zen 5, and compilers join the two
  w += 2 * __builtin_popcount(mask);
  return _mm512_maskz_expand_epi16(mask, words);
}
static inline std::uint32_t line_mask(const unsigned char* masks, int line) {
  std::uint32_t mask;
  __builtin_memcpy(&mask, masks + 4 * line, sizeof mask);
  return mask;
}

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
    const std::uint16_t* x[P];
#pragma GCC unroll 4
    for (int i = 0; i < P; ++i) {
      masks[i] = w[i];
      w[i] += 64;
      x[i] = static_cast<const std::uint16_t*>(p.x) + steps[i][u] * T * kSparseStep;
    }
    for (int line = 0; line < 16; line += 2) {
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
#pragma GCC unroll 4
        for (int i = 0; i < P; ++i) {
          _mm_prefetch(reinterpret_cast<const char*>(w[i]) + kAhead, _MM_HINT_T0);
          const __m512i weights = next_line(w[i], line_mask(masks[i], line + j));
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) {
            int pair;
            __builtin_memcpy(&pair, x[i] + t * kSparseStep + 2 * (line + j), sizeof pair);
            sum[i][t][j] = _mm512_dpbf16_ps(sum[i][t][j], reinterpret_cast<__m512bh>(weights),
                                            reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)));
          }
        }
      }
    }
  }
  for (int i = 0; i < P; ++i)
    for (int t = 0; t < T; ++t)
      _mm512_storeu_ps(p.sums + t * p.sums_stride + (h + i) * kSparseColumns,
                       _mm512_add_ps(sum[i][t][0], sum[i][t][1]));
}

#include "kernels/block_sparse/bitmask_walk.inc"

void multiply(const BitmaskProduct& p) noexcept { walk_tokens<4>(p); }

void expand(const unsigned char* w, std::ptrdiff_t units, std::uint16_t* dst) noexcept {
  for (std::ptrdiff_t i = 0; i < units; ++i) {
    const unsigned char* masks = w;
    w += 64;
    for (int line = 0; line < 16; ++line, dst += 32) _mm512_storeu_si512(dst, next_line(w, line_mask(masks, line)));
  }
}

}  // namespace

void install_bitmask_avx512vbmi2(BlockSparseKernels& k, Features) noexcept {
  k.bitmask_bf16 = {multiply, "avx512vnni+avx512bf16"};
  k.expand_bitmask = {expand, "avx512vnni+vbmi2"};
}

}  // namespace blockpack::kernels
