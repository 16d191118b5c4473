// SPDX-License-Identifier: Apache-2.0
/// 2:4 weights and bf16 dots (vdpbf16ps): the four activations of a group in all quarters of a register, from which
/// vpermw takes the two that a pair of weights needs. Per group and 16 rows a shift of places, and for every token a
/// selection and a dot. Memory is the limit for one token: 576 bytes a unit of 8 groups; selections for 8. Four panels
/// are walked side by side, each fetched 2.3 KB ahead into L1: 1.65 to 1.89 of dense bf16 on Zen 5, where bytes
/// say 1.78.
///
/// Expansion: two tables of 16 words, by both places of a group, hold which bytes of its pair of values make its two
/// lines of pairs; a byte shuffle moves them there. Per group 4 permutes or shuffles, 6 shifts or logical operations
/// and 2 stores.

#include <immintrin.h>

#include "kernels/two_four/two_four_kernels.hpp"

namespace blockpack::kernels {
namespace {

constexpr std::ptrdiff_t kUnit = two_four_unit_bytes(2);
constexpr std::ptrdiff_t kAhead = 2304;  // bytes

static inline __m512 dot(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// T tokens against P panels walked side by side.
template <int T, int P>
static inline void few_part(const TwoFourProduct& p, std::ptrdiff_t panel) {
  const std::ptrdiff_t panel_bytes = 2 * kUnit * p.steps;
  const unsigned char* w = p.w + panel * panel_bytes;
  const std::uint16_t* x = static_cast<const std::uint16_t*>(p.x);
  __m512 sum[T][2 * P];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
    for (int u = 0; u < 2 * P; ++u) sum[t][u] = _mm512_setzero_ps();
  }
  for (std::ptrdiff_t s = 0; s < p.steps; ++s, w += 2 * kUnit, x += T * kTwoFourStep) {
    const auto unit = [&](int u) { return w + u / 2 * panel_bytes + u % 2 * kUnit; };
    __m512i places[2 * P];
#pragma GCC unroll 8
    for (int u = 0; u < 2 * P; ++u) {
      _mm_prefetch(unit(u) + kAhead, _MM_HINT_T0);
      places[u] = _mm512_loadu_si512(unit(u));
    }
#pragma GCC unroll 8
    for (int g = 0; g < kTwoFourGroups; ++g) {
      __m512i four[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        long long bits;
        __builtin_memcpy(&bits, x + t * kTwoFourStep + 4 * g, sizeof(bits));
        four[t] = _mm512_set1_epi64(bits);
      }
#pragma GCC unroll 8
      for (int u = 0; u < 2 * P; ++u) {
        const unsigned char* line = unit(u) + 64 + 64 * g;
        _mm_prefetch(line + kAhead, _MM_HINT_T0);
        const __m512i index = _mm512_srli_epi16(places[u], static_cast<unsigned>(2 * g));
        const __m512i pairs = _mm512_loadu_si512(line);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sum[t][u] = dot(sum[t][u], _mm512_permutexvar_epi16(index, four[t]), pairs);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
    for (int u = 0; u < 2 * P; ++u) _mm512_storeu_ps(p.sums + t * p.sums_stride + panel * 32 + u * 16, sum[t][u]);
  }
}

template <int T, int P>
static void few_tokens(const TwoFourProduct& p) {
  std::ptrdiff_t panel = 0;
  for (; panel + P <= p.panels; panel += P) few_part<T, P>(p, panel);
  if constexpr (P > 1) {
    for (; panel < p.panels; ++panel) few_part<T, 1>(p, panel);
  }
}

void few_f32_bf16_bf16(const TwoFourProduct& p) noexcept {
  switch (p.tokens) {
    case 1:
      return few_tokens<1, 4>(p);
    case 2:
      return few_tokens<2, 2>(p);
    case 4:
      return few_tokens<4, 1>(p);
    default:
      return few_tokens<8, 1>(p);
  }
}

#include "kernels/two_four/two_four_lines.inc"

void expand_bf16_bf16(const unsigned char* w, std::ptrdiff_t units, std::ptrdiff_t ahead, std::uint16_t* dst) noexcept {
  for (std::ptrdiff_t u = 0; u < units; ++u, w += kUnit, dst += 512) {
    const __m512i places = _mm512_loadu_si512(w);
    _mm_prefetch(w + ahead, _MM_HINT_T0);
#pragma GCC unroll 8
    for (int g = 0; g < kTwoFourGroups; ++g) {
      _mm_prefetch(w + ahead + 64 + 64 * g, _MM_HINT_T0);
      store_lines(_mm512_loadu_si512(w + 64 + 64 * g), places, 2 * g, dst + 64 * g);
    }
  }
}

}  // namespace

void install_two_four_avx512bf16(TwoFourKernels& k, Features) noexcept {
  k.few_f32_bf16_bf16 = {few_f32_bf16_bf16, "avx512vnni+avx512bf16"};
  k.expand_bf16_bf16 = {expand_bf16_bf16, "avx512vnni+avx512bf16"};
}

}  // namespace blockpack::kernels
