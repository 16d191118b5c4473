// SPDX-License-Identifier: Apache-2.0
/// Products with packed codes by VNNI dots (vpdpbusd: 4 unsigned x 4 signed bytes to each of 16 lanes). Codes become
/// bytes by a shift and a mask a plane, those of 4 bits whose levels are no integers in a row by a look-up on top
/// (vpshufb; the levels are lifted so that none is negative), 8-bit codes are used from memory. The sum of a step
/// starts at minus what lift and zero add to it, and is exact.
///
/// Four panels of 16 rows are walked side by side, two of codes of two planes, fetched 8 KB ahead in all into L1. For
/// 16 rows x 32 k one token takes 8 dots and about 6 float operations, to get the bytes 14 operations on codes of 2
/// bits, 29 on 3, 12 on 4 (20 with a look-up), 27 on 5, 26 on 6, and 2 to 6 for the scale of a group: 14 to 22 cycles
/// of two ports, where reading takes 17 (2 bits) to 70 (8) at the bandwidth of the last-level cache of Sapphire Rapids,
/// 9 to 36 of Zen
/// 5. Expected limit: memory for 1 and 2 tokens (on Zen 5 these instructions below 8 bits), then the dots (8 a token
/// and step).

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

/// Adds the dots of quads [Q, End) of a step to the sums. Table: codes are looked up in `levels`, which are unsigned.
template <int Bits, bool Table, int T, int P, int Q, int End>
static inline void add_dots(const Panels<P>& w, const std::int8_t* x, __m512i levels, __m512i (&sum)[P][T]) {
  if constexpr (Q < End) {
    __m512i activations[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) activations[t] = four_codes(x + t * kCodeStep + 4 * Q);
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
      __m512i values = quad<Bits, Q>(w[i]);
      if (Table) values = _mm512_shuffle_epi8(levels, values);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sum[i][t] = _mm512_dpbusd_epi32(sum[i][t], values, activations[t]);
    }
    add_dots<Bits, Table, T, P, Q + 1, End>(w, x, levels, sum);
  }
}

/// The dots of one step. Table: codes of 4 bits are looked up. Halves: two groups of 16 in a step.
template <int Bits, bool Table, bool Halves>
struct IntegerDots {
  static constexpr std::ptrdiff_t kStepBytes = code_step_bytes(Bits);
  static constexpr int kPlanes = high_plane(Bits) > 0 ? 2 : 1;

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
  template <int P>
  void read(const CodeProduct& p, const Panels<P>& at, std::ptrdiff_t groups, Groups (&dst)[P]) const {
    read_groups<P>(p, at, groups, dst, [this](__m512i v, std::ptrdiff_t g) { return zero(v, g); });
  }
  template <int T>
  static void end_block(const Groups&, __m512 (&)[T], __m512 (&)[T][2]) {}

  template <int T, int P>
  void step(const CodeProduct& p, const Panels<P>& w, std::ptrdiff_t s, const Groups (&g)[P], std::ptrdiff_t group,
            __m512 (&total)[P][T], __m512 (&)[P][T][2]) const {
    constexpr int kParts = Halves ? 2 : 1;
    const std::int8_t* x = p.x8.codes + s * T * kCodeStep;
    const std::int16_t* negated = p.x8.sums + s * T * 2;
    const float* scales = p.x8.scales + s * T;
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      __m512i sum[P][T];
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) {
        const __m512i zeros = _mm512_load_si512(g[i].zero[group + part]);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sum[i][t] = _mm512_madd_epi16(zeros, four_codes(negated + 2 * t));
      }
      if constexpr (!Halves) {
        add_dots<Bits, Table, T, P, 0, 8>(w, x, levels, sum);
      } else if (part == 0) {
        add_dots<Bits, Table, T, P, 0, 4>(w, x, levels, sum);
      } else {
        add_dots<Bits, Table, T, P, 4, 8>(w, x, levels, sum);
      }
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) {
        const __m512 scale = _mm512_load_ps(g[i].scale[group + part]);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[i][t]), _mm512_set1_ps(scales[t]));
          total[i][t] = _mm512_fmadd_ps(scaled, scale, total[i][t]);
        }
      }
      if (p.minimums) {
        const __m512i ones = _mm512_set1_epi32(!Halves ? 0x00010001 : part == 0 ? 1 : 0x00010000);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m512 minus_x = _mm512_cvtepi32_ps(_mm512_madd_epi16(ones, four_codes(negated + 2 * t)));
          const __m512 scaled = _mm512_mul_ps(minus_x, _mm512_set1_ps(scales[t]));
#pragma GCC unroll 8
          for (int i = 0; i < P; ++i)
            total[i][t] = _mm512_fnmadd_ps(scaled, _mm512_load_ps(g[i].minimum[group + part]), total[i][t]);
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
  static constexpr int kPlanes = high_plane(Bits) > 0 ? 2 : 1;

  explicit PairDots(const CodeProduct& p) : zero(_mm512_set1_epi32(p.zero)), multiplier(_mm512_set1_ps(p.multiplier)) {}
  __m512i zero;
  __m512 multiplier;

  struct Block {
    const unsigned char *scale, *minimum, *shared_scale, *shared_minimum;
  };
  static void begin(const CodeProduct&, Block&) {}
  template <int P>
  static void read(const CodeProduct& p, const Panels<P>& at, std::ptrdiff_t groups, Block (&dst)[P]) {
    const std::ptrdiff_t bytes = scales_bytes(p, groups), shared = bytes - 2 * kCodeRows;
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) dst[i] = {at[i], at[i] + bytes, at[i] + shared, at[i] + bytes + shared};
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

  template <int T, int P>
  void step(const CodeProduct& p, const Panels<P>& w, std::ptrdiff_t s, const Block (&g)[P], std::ptrdiff_t group,
            __m512 (&)[P][T], __m512 (&part)[P][T][2]) const {
    const std::int8_t* x = p.x8.codes + s * T * kCodeStep;
    const std::int16_t* negated = p.x8.sums + s * T * 2;
    const float* scales = p.x8.scales + s * T;
    const __m512i none = _mm512_setzero_si512();
    __m512i low[P][T], high[P][T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m512i both = four_codes(negated + 2 * t);
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) {
        low[i][t] = Nibbles ? none : _mm512_madd_epi16(zero, both);
        high[i][t] = Nibbles ? none : _mm512_madd_epi16(_mm512_slli_epi32(zero, 16), both);
      }
    }
    add_dots<Bits, false, T, P, 0, 4>(w, x, none, low);
    add_dots<Bits, false, T, P, 4, 8>(w, x, none, high);
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
      const __m512i scale = pair(g[i].scale, group);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512 dots = _mm512_cvtepi32_ps(_mm512_madd_epi16(join(low[i][t], high[i][t]), scale));
        part[i][t][0] = _mm512_fmadd_ps(dots, _mm512_set1_ps(scales[t]), part[i][t][0]);
      }
      if constexpr (Nibbles) {
        const __m512i minimum = pair(g[i].minimum, group);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m512 minus = _mm512_cvtepi32_ps(_mm512_madd_epi16(minimum, four_codes(negated + 2 * t)));
          part[i][t][1] = _mm512_fmadd_ps(minus, _mm512_set1_ps(scales[t]), part[i][t][1]);
        }
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
