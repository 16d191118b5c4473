// SPDX-License-Identifier: Apache-2.0
/// Products with packed codes by VNNI dots (vpdpbusd: 4 unsigned x 4 signed bytes to each of 16 lanes). Codes become
/// bytes by a shift and a mask a plane, those of 4 bits whose levels are no integers in a row by a look-up on top
/// (vpshufb; the levels are lifted so that none is negative), 8-bit codes are used from memory. The sum of a step
/// starts at minus what lift and zero add to it, and is exact.
///
/// Four panels of 16 rows are walked side by side, each fetched 2 KB ahead into L1. For 16 rows x 32 k one token takes
/// 8 dots and about 6 float operations, and to get the bytes 14 operations on codes of 2 bits, 29 on 3, 12 on 4 (20
/// with a look-up), 27 on 5, 26 on 6: 14 to 22 cycles of two ports, where reading takes 17 (2 bits) to 70 (8) at the
/// bandwidth of the last-level cache. Expected limit: memory for 1 and 2 tokens, then the dots (8 a token and step).

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

/// Four codes of x, or its two sums, in every lane.
template <class Int>
static inline __m512i four_codes(const Int* x) {
  int bytes;
  __builtin_memcpy(&bytes, x, sizeof bytes);
  return _mm512_set1_epi32(bytes);
}

/// The dots of one step. Table: codes of 4 bits are looked up. Halves: two groups of 16 in a step.
template <int Bits, bool Table, bool Halves>
struct IntegerDots {
  static constexpr std::ptrdiff_t kStepBytes = code_step_bytes(Bits);

  explicit IntegerDots(const CodeProduct& p) {
    int lowest = 0;
    for (const std::int8_t level : p.levels) lowest = level < lowest ? level : lowest;
    lift = _mm512_set1_epi32(Table ? -lowest : 0);
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

  using Block = Groups;
  void begin(const CodeProduct& p, Groups& dst) const {
    begin_groups(p, dst, [this](__m512i v, std::ptrdiff_t g) { return zero(v, g); });
  }
  void read(const CodeProduct& p, const unsigned char* at, std::ptrdiff_t groups, Groups& dst) const {
    read_groups(p, at, groups, dst, [this](__m512i v, std::ptrdiff_t g) { return zero(v, g); });
  }
  template <int T>
  static void end_block(const Groups&, __m512 (&)[T], __m512 (&)[T][2]) {}

  /// Dots of quads [Q, End) of a step, on top of minus zero times the sum of x.
  template <int T, int Q, int End>
  void dot(const unsigned char* w, const std::int8_t* x, __m512i (&sum)[T]) const {
    if constexpr (Q < End) {
      __m512i values = quad<Bits, Q>(w);
      if (Table) values = _mm512_shuffle_epi8(levels, values);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sum[t] = _mm512_dpbusd_epi32(sum[t], values, four_codes(x + t * kCodeStep + 4 * Q));
      dot<T, Q + 1, End>(w, x, sum);
    }
  }

  template <int T>
  void step(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t ahead, std::ptrdiff_t s, const Groups& g,
            std::ptrdiff_t group, __m512 (&total)[T], __m512 (&)[T][2]) const {
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
        dot<T, 0, 8>(w, x, sum);
      } else if (part == 0) {
        dot<T, 0, 4>(w, x, sum);
      } else {
        dot<T, 4, 8>(w, x, sum);
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

/// The dots of steps of two groups whose scales are small integers times what a block shares: codes of few bits, whose
/// sums of 16 fit 16 bits (127 * 16 * 7), so that one vpmaddwd multiplies both by their scales, and the sums of a block
/// get what it shares once. Nibbles: scales and minimums of 4 bits, no zero; otherwise int8, a zero of all groups and
/// no minimums.
template <int Bits, bool Nibbles>
struct PairDots {
  static constexpr std::ptrdiff_t kStepBytes = code_step_bytes(Bits);

  explicit PairDots(const CodeProduct& p) : zero(_mm512_set1_epi32(p.zero)), multiplier(_mm512_set1_ps(p.multiplier)) {}
  __m512i zero;
  __m512 multiplier;

  struct Block {
    const unsigned char *scale, *minimum, *shared_scale, *shared_minimum;
  };
  static void begin(const CodeProduct&, Block&) {}
  static void read(const CodeProduct& p, const unsigned char* at, std::ptrdiff_t groups, Block& dst) {
    const std::ptrdiff_t bytes = scales_bytes(p, groups), shared = bytes - 2 * kCodeRows;
    dst = {at, at + bytes, at + shared, at + bytes + shared};
  }
  static __m512i line(const unsigned char* at) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  /// Numbers of an even group and of the next one, in the low and the high half of every lane.
  static __m512i pair(const unsigned char* at, std::ptrdiff_t group) {
    if constexpr (Nibbles) {
      const __m512i both =
          _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at + group / 2 * kCodeRows)));
      const __m512i high = _mm512_slli_epi32(both, 12);
      return _mm512_ternarylogic_epi32(both, high, _mm512_set1_epi32(0x000f000f), 0xa8);  // (first | second) & third
    } else {
      return join(line(at + group * kCodeRows), line(at + (group + 1) * kCodeRows));
    }
  }
  static __m512i join(__m512i low, __m512i high) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
  }

  template <int T, int Q, int End>
  static void dot(const unsigned char* w, const std::int8_t* x, __m512i (&sum)[T]) {
    if constexpr (Q < End) {
      const __m512i values = quad<Bits, Q>(w);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sum[t] = _mm512_dpbusd_epi32(sum[t], values, four_codes(x + t * kCodeStep + 4 * Q));
      dot<T, Q + 1, End>(w, x, sum);
    }
  }

  template <int T>
  void step(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t ahead, std::ptrdiff_t s, const Block& g,
            std::ptrdiff_t group, __m512 (&)[T], __m512 (&part)[T][2]) const {
#pragma GCC unroll 8
    for (int i = 0; i < static_cast<int>(kStepBytes / 64); ++i) _mm_prefetch(w + ahead + 64 * i, _MM_HINT_T0);
    const std::int8_t* x = p.x8.codes + s * T * kCodeStep;
    const std::int16_t* negated = p.x8.sums + s * T * 2;
    const float* scales = p.x8.scales + s * T;
    __m512i low[T], high[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      low[t] = high[t] = _mm512_setzero_si512();
      if (!Nibbles) {
        low[t] = _mm512_madd_epi16(zero, four_codes(negated + 2 * t));
        high[t] = _mm512_madd_epi16(_mm512_slli_epi32(zero, 16), four_codes(negated + 2 * t));
      }
    }
    dot<T, 0, 4>(w, x, low);
    dot<T, 4, 8>(w, x, high);
    const __m512i scale = pair(g.scale, group);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m512 dots = _mm512_cvtepi32_ps(_mm512_madd_epi16(join(low[t], high[t]), scale));
      part[t][0] = _mm512_fmadd_ps(dots, _mm512_set1_ps(scales[t]), part[t][0]);
    }
    if constexpr (Nibbles) {
      const __m512i minimum = pair(g.minimum, group);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512 minus = _mm512_cvtepi32_ps(_mm512_madd_epi16(minimum, four_codes(negated + 2 * t)));
        part[t][1] = _mm512_fmadd_ps(minus, _mm512_set1_ps(scales[t]), part[t][1]);
      }
    }
  }
  template <int T>
  void end_block(const Block& g, __m512 (&total)[T], __m512 (&part)[T][2]) const {
    const auto halves = [](const unsigned char* at) {
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    };
    const __m512 scale = _mm512_mul_ps(halves(g.shared_scale), multiplier);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      total[t] = _mm512_fmadd_ps(part[t][0], scale, total[t]);
      if (Nibbles) total[t] = _mm512_fnmadd_ps(part[t][1], halves(g.shared_minimum), total[t]);
      part[t][0] = part[t][1] = _mm512_setzero_ps();
    }
  }
};

template <int Bits, bool Table = false>
void few_of(const CodeProduct& p) {
  p.group_steps == 0 ? few_codes<IntegerDots<Bits, Table, true>>(p) : few_codes<IntegerDots<Bits, Table, false>>(p);
}
void few_int8(const CodeProduct& p) noexcept {
  const bool pairs = p.group_steps == 0 && !p.zeros;
  switch (p.bits) {
    case 2:
      if (pairs && p.scale == 5 && p.minimums && p.zero == 0) return few_codes<PairDots<2, true>>(p);
      return few_of<2>(p);
    case 3:
      if (pairs && p.scale == 4 && !p.minimums && p.zero >= 0 && p.zero < 8) return few_codes<PairDots<3, false>>(p);
      return few_of<3>(p);
    case 4:
      return levels_are_codes(p) ? few_of<4>(p) : few_of<4, true>(p);
    case 5:
      return few_of<5>(p);
    case 6:
      return few_of<6>(p);
    default:
      return few_of<8>(p);
  }
}

}  // namespace

void install_codes_avx512vnni(CodeKernels& k, Features) noexcept { k.few_int8 = {few_int8, "avx512vnni"}; }

}  // namespace blockpack::kernels
