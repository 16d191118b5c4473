// SPDX-License-Identifier: Apache-2.0
/// Products with packed codes by VNNI dots (vpdpbusd: 4 unsigned x 4 signed bytes to each of 16 lanes). 4-bit codes
/// become unsigned bytes by a look-up (vpshufb; the levels are lifted so that none is negative), 8-bit codes are used
/// from memory. The sum of a step starts at minus what lift and zero add to it, and is exact.
///
/// Four panels of 16 rows are walked side by side, each fetched 2 KB ahead into L1. For 16 rows x 32 k of 4-bit
/// codes one token takes 8 look-ups, 12 masks and shifts, 8 dots and about 6 float operations: 17 cycles of two ports,
/// where reading the 272 bytes of MXFP4 takes 35 at the bandwidth of the last-level cache. Expected limit: memory for 1
/// and 2 tokens, then the dots (8 a token and step). Reached on 4096x4096, one thread: 0.94 to 0.98 of the read
/// bandwidth of the last-level cache for 4-bit codes in groups of 32, 0.97 to 1.00 of that of DRAM.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // in GCC 12's own intrinsics (its bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "kernels/codes/codes_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/codes/codes_plain.inc"

#include "kernels/codes/codes_avx512.inc"

static inline __m512i four_codes(const std::int8_t* x) {
  int bytes;
  __builtin_memcpy(&bytes, x, sizeof bytes);
  return _mm512_set1_epi32(bytes);
}

/// The dots of one step. Halves: two groups of 16 in it.
template <bool Bytes, bool Halves>
struct IntegerDots {
  static constexpr std::ptrdiff_t kStepBytes = code_step_bytes(Bytes ? 8 : 4);
  static constexpr bool kHalves = Halves;

  explicit IntegerDots(const CodeProduct& p) {
    int lowest = 0;
    for (const std::int8_t level : p.levels) lowest = level < lowest ? level : lowest;
    lift = _mm512_set1_epi32(Bytes ? 0 : -lowest);
    levels = _mm512_sub_epi8(levels_line(p), _mm512_set1_epi8(static_cast<char>(lowest)));
  }
  __m512i lift;    ///< added to the levels
  __m512i levels;  ///< unsigned

  /// What has to be taken from every value, beside the sum or sums of x it belongs to: both halves of a step, or one.
  __m512i zero(__m512i v, std::ptrdiff_t group) const {
    const __m512i low = _mm512_add_epi32(v, lift), high = _mm512_slli_epi32(low, 16);
    if (!Halves) return _mm512_or_si512(low, high);
    return group % 2 == 0 ? low : high;
  }

  /// Dots of lines [First, First + Count) of a step, on top of minus zero times the sum of x.
  template <int T, int First, int Count>
  void dot(const unsigned char* w, const std::int8_t* x, __m512i (&sum)[T]) const {
    const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 8
    for (int line = First; line < First + Count; ++line) {
      const __m512i codes = load_line(w + 64 * line);
      if constexpr (Bytes) {
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t)
          sum[t] = _mm512_dpbusd_epi32(sum[t], codes, four_codes(x + t * kCodeStep + 4 * line));
      } else {
        const __m512i a = _mm512_shuffle_epi8(levels, _mm512_and_si512(codes, low));
        const __m512i b = _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16(codes, 4), low));
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          sum[t] = _mm512_dpbusd_epi32(sum[t], a, four_codes(x + t * kCodeStep + 8 * line));
          sum[t] = _mm512_dpbusd_epi32(sum[t], b, four_codes(x + t * kCodeStep + 8 * line + 4));
        }
      }
    }
  }

  template <int T>
  void step(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t ahead, std::ptrdiff_t s, const Groups& g,
            std::ptrdiff_t group, __m512 (&total)[T]) const {
    constexpr int kLines = static_cast<int>(kStepBytes / 64);
    constexpr int kParts = Halves ? 2 : 1;
#pragma GCC unroll 8
    for (int line = 0; line < kLines; ++line) _mm_prefetch(w + ahead + 64 * line, _MM_HINT_T0);
    const std::int8_t* x = p.x8.codes + s * T * kCodeStep;
    const std::int16_t* negated = p.x8.sums + s * T * 2;
    const float* scales = p.x8.scales + s * T;
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      const __m512i zeros = _mm512_load_si512(g.zero[group + part]);
      const __m512 scale = _mm512_load_ps(g.scale[group + part]);
      __m512i sum[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        int both;
        __builtin_memcpy(&both, negated + 2 * t, sizeof both);
        sum[t] = _mm512_madd_epi16(zeros, _mm512_set1_epi32(both));
      }
      if constexpr (!Halves) {
        dot<T, 0, kLines>(w, x, sum);
      } else if (part == 0) {
        dot<T, 0, kLines / 2>(w, x, sum);
      } else {
        dot<T, kLines / 2, kLines / 2>(w, x, sum);
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[t]), _mm512_set1_ps(scales[t]));
        total[t] = _mm512_fmadd_ps(scaled, scale, total[t]);
      }
      if (p.minimums) {
        const __m512 minimum = _mm512_load_ps(g.minimum[group + part]);
        const __m512i ones = _mm512_set1_epi32(!Halves ? 0x00010001 : part == 0 ? 1 : 0x00010000);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          int both;
          __builtin_memcpy(&both, negated + 2 * t, sizeof both);
          const __m512 minus_x = _mm512_cvtepi32_ps(_mm512_madd_epi16(ones, _mm512_set1_epi32(both)));
          total[t] = _mm512_fnmadd_ps(_mm512_mul_ps(minus_x, _mm512_set1_ps(scales[t])), minimum, total[t]);
        }
      }
    }
  }
};

void few_int8(const CodeProduct& p) noexcept {
  const bool halves = p.group_steps == 0;
  if (p.bits == 8) {
    halves ? few_codes<IntegerDots<true, true>>(p) : few_codes<IntegerDots<true, false>>(p);
  } else {
    halves ? few_codes<IntegerDots<false, true>>(p) : few_codes<IntegerDots<false, false>>(p);
  }
}

}  // namespace

void install_codes_avx512vnni(CodeKernels& k, Features) noexcept { k.few_int8 = {few_int8, "avx512vnni"}; }

}  // namespace blockpack::kernels
