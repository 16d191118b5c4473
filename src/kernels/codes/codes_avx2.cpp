// SPDX-License-Identifier: Apache-2.0
/// Products with packed codes on AVX2, eight rows in a register. int8 activations: codes become unsigned bytes (a
/// look-up by vpshufb in levels lifted so that none is negative), pairs of products with signed activations are added
/// to 16 bits (vpmaddubsw), a few of these again in 16 bits, and the rest in 32 (vpmaddwd). What fits:
///
///     values up to  15   2 * 127 * 15 * 8 = 30480: eight products in 16 bits (2 to 4 bits)
///     values up to  32   2 * 127 * 32 * 4 = 32512: four (5 bits, most tables of 16 levels)
///     values up to  63   2 * 127 * 63 * 2 = 32004: two (6 bits)
///     values up to 255   as 16 * high + low, 2 * 127 * 15 * 8 = 30480: eight of each digit (8 bits, other tables)
///
/// So nothing saturates, and the sum of a step, on top of minus what lift and zero add to it, is exact. Codes of 2 bits
/// whose groups of 16 have scales of 4 bits meet their scale in the last of these additions (vpmaddwd), 1.9 times as
/// fast as with scales as floats.
///
/// f32 activations: bytes become floats by OR with the bits of a power of two and one subtraction that also takes the
/// zero away, then multiply-adds (why not integers: codes_avx512.cpp). Codes that are floats of 6 or 8 bits get sign,
/// exponent and fraction by shifts, and what has no exponent is set right by a multiply-add: 11 instructions for 8
/// weights; a table of 16 floats is two look-ups (vpermps).
///
/// Up to 4 tokens take the two registers of a line side by side, 8 tokens in two turns with each panel. Codes of 4 bits
/// that are integers one after the other need no look-up. For 16 rows x 32 k of them one token takes 40 instructions to
/// decode, and every token 8 broadcasts of x for all rows, 16 products, 14 sums and 14 more: some 250 for 4 tokens.
/// Limit: these instructions; for 1 token memory, but on Zen 3 for 2 bits alone.

#include <immintrin.h>

#include "kernels/codes/codes_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/codes/codes_plain.inc"

#include "kernels/codes/codes_avx2.inc"

/// The dots of one step. Table: codes of 4 bits are looked up. Wide: values go up to 255. Halves: two groups of 16 in
/// it.
template <int Bits, bool Table, bool Wide, bool Halves>
struct IntegerDots : DotsWithGroups<IntegerDots<Bits, Table, Wide, Halves>> {
  static constexpr std::ptrdiff_t kStepBytes = code_step_bytes(Bits);
  static constexpr bool kHalves = Halves;
  static constexpr int kDigits = Wide ? 2 : 1;
  /// Products added in 16 bits.
  static constexpr int kChain = Wide ? 8 : Bits == 6 ? 2 : Table || Bits == 5 ? 4 : 8;

  explicit IntegerDots(const CodeProduct& p) : lift(Bits == 4 ? -level_range(p).lowest : 0) {
    if (!Table) return;
    alignas(16) std::uint8_t digits[2][16];
    for (int c = 0; c < 16; ++c) {
      const int value = p.levels[c] + lift;
      digits[0][c] = static_cast<std::uint8_t>(Wide ? value & 15 : value);
      digits[1][c] = static_cast<std::uint8_t>(value >> 4);
    }
    for (int d = 0; d < kDigits; ++d)
      levels[d] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(digits[d])));
  }
  int lift;                 ///< added to the values of 4-bit codes
  __m256i levels[kDigits];  ///< unsigned, in digits to the base 16 where they are wide

  /// What has to be taken from every value, beside the sum or sums of x it belongs to: both halves of a step, or one.
  std::int32_t zero(std::int32_t v, std::ptrdiff_t group) const {
    const std::int32_t low = v + lift, high = low * 65536;
    if (!Halves) return low + high;
    return group % 2 == 0 ? low : high;
  }

  /// Digit d of four values of each row.
  __m256i values(const unsigned char* w, int q, int part, int d) const {
    const __m256i codes = quad<Bits>(w, q, part);
    if (Table) return _mm256_shuffle_epi8(levels[d], codes);
    if (!Wide) return codes;
    return _mm256_and_si256(d == 0 ? codes : _mm256_srli_epi16(codes, 4), _mm256_set1_epi8(15));
  }

  /// The dots of quads [First, First + Count), from digits [Digit, Digit + D) of the values; digit 0 begins the sums.
  /// With 4 tokens the chains alone fill half of the registers.
  template <int T, int First, int Count, int Digit, int D>
  void dot(const unsigned char* w, const std::int8_t* x, __m256i (&sum)[kParts][T]) const {
    __m256i chain[D][kParts][T];
#pragma GCC unroll 8
    for (int q = First; q < First + Count; ++q) {
      __m256i weights[D][kParts];
#pragma GCC unroll 2
      for (int r = 0; r < kParts; ++r) {
#pragma GCC unroll 2
        for (int d = 0; d < D; ++d) weights[d][r] = values(w, q, r, Digit + d);
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m256i four = four_codes(x + t * kCodeStep + 4 * q);
#pragma GCC unroll 2
        for (int r = 0; r < kParts; ++r) {
#pragma GCC unroll 2
          for (int d = 0; d < D; ++d) {
            const __m256i product = _mm256_maddubs_epi16(weights[d][r], four);
            const int place = (q - First) % kChain;
            chain[d][r][t] = place == 0 ? product : _mm256_add_epi16(chain[d][r][t], product);
            keep_order(chain[d][r][t]);
            if (place < kChain - 1 && q < First + Count - 1) continue;
            const __m256i dots = _mm256_madd_epi16(chain[d][r][t], _mm256_set1_epi16(Digit + d == 0 ? 1 : 16));
            sum[r][t] = Digit + d == 0 && q - First < kChain ? dots : _mm256_add_epi32(sum[r][t], dots);
          }
        }
      }
    }
  }

  template <int T, int Half>
  void rows(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t s, const Groups& g, std::ptrdiff_t group,
            vf (&total)[kParts][T]) const {
    const std::ptrdiff_t cell = s * p.tokens;
    const float* scales = p.x8.scales + cell;
    __m256i sum[kParts][T];
    constexpr int kCount = Halves ? 4 : 8;
    // One digit after the other where the sums of two do not fit the registers.
    constexpr int kAtOnce = T <= 2 ? kDigits : 1;
    const std::int8_t* x = p.x8.codes + cell * kCodeStep;
    dot<T, Half * kCount, kCount, 0, kAtOnce>(w, x, sum);
    if constexpr (kAtOnce < kDigits) dot<T, Half * kCount, kCount, 1, 1>(w, x, sum);
#pragma GCC unroll 2
    for (int r = 0; r < kParts; ++r) {
      const vf scale = load_v(g.scale[group + Half] + r * kLanes);
      const __m256i zeros = _mm256_load_si256(reinterpret_cast<const __m256i*>(g.zero[group + Half] + r * kLanes));
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m256i minus = _mm256_madd_epi16(zeros, two_sums(p.x8.sums + (cell + t) * 2));
        const __m256i exact = _mm256_add_epi32(sum[r][t], minus);
        const vf scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(exact), _mm256_set1_ps(scales[t]));
        total[r][t] = _mm256_fmadd_ps(scaled, scale, total[r][t]);
      }
    }
    if (p.minimums) {
      float minus[T];
      minus_x<!Halves>(p, cell, Half, minus);
#pragma GCC unroll 2
      for (int r = 0; r < kParts; ++r) {
        const vf minimum = load_v(g.minimum[group + Half] + r * kLanes);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) total[r][t] = _mm256_fnmadd_ps(_mm256_set1_ps(minus[t]), minimum, total[r][t]);
      }
    }
  }

  template <int T>
  void step(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t s, const Groups& g, std::ptrdiff_t group,
            vf (&total)[kParts][T]) const {
    rows<T, 0>(p, w, s, g, group, total);
    if constexpr (Halves) rows<T, 1>(p, w, s, g, group, total);
  }
};

/// The dots of codes of 2 bits whose groups of 16 have scales and minimums of 4 bits times what a block shares:
/// products stay in 16 bits (2 * 127 * 3 * 4) until one vpmaddwd multiplies them by their scale, and the sums of a
/// block get what it shares once.
struct NibbleDots {
  static constexpr std::ptrdiff_t kStepBytes = code_step_bytes(2);
  static constexpr bool kHalves = true;

  explicit NibbleDots(const CodeProduct& p) : multiplier(p.multiplier) {}
  float multiplier;

  struct Block {
    const unsigned char *scale, *minimum, *shared_scale, *shared_minimum;
    vf sums[kParts][kMostTokens], minus[kParts][kMostTokens];  ///< per token, before what the block shares
  };
  static void begin(const CodeProduct&, Block& dst) {
    for (int part = 0; part < kParts; ++part)
      for (int t = 0; t < kMostTokens; ++t) dst.sums[part][t] = dst.minus[part][t] = splat_v(0.0f);
  }
  static void read(const CodeProduct& p, const unsigned char* at, std::ptrdiff_t groups, Block& dst) {
    const std::ptrdiff_t bytes = scales_bytes(p, groups), shared = bytes - 2 * kCodeRows;
    dst.scale = at;
    dst.minimum = at + bytes;
    dst.shared_scale = at + shared;
    dst.shared_minimum = at + bytes + shared;
  }

  template <int T>
  static void step(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t s, Block& g, std::ptrdiff_t group,
                   vf (&)[kParts][T]) {
    const std::ptrdiff_t cell = s * p.tokens;
    const std::int8_t* x = p.x8.codes + cell * kCodeStep;
    const __m256i low_bits = _mm256_set1_epi16(15);
    const __m256i twice = _mm256_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1,  //
                                           4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1);
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      const std::ptrdiff_t at = group / 2 * kCodeRows + part * kLanes;
      // Both groups' numbers of a row: twice in its lane, and side by side.
      const __m256i bytes = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(eight_bytes(g.scale + at)), twice);
      const __m256i scale[2] = {_mm256_and_si256(bytes, low_bits),
                                _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low_bits)};
      const __m256i wide = _mm256_cvtepu8_epi32(eight_bytes(g.minimum + at));
      const __m256i minimums = _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi32(wide, 12)), low_bits);
      __m256i sum[T];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m256i chain[T];
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          const __m256i values = quad<2>(w, 4 * half + q, part);
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) {
            const __m256i four = four_codes(x + t * kCodeStep + 16 * half + 4 * q);
            const __m256i product = _mm256_maddubs_epi16(values, four);
            chain[t] = q == 0 ? product : _mm256_add_epi16(chain[t], product);
            keep_order(chain[t]);
          }
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m256i scaled = _mm256_madd_epi16(chain[t], scale[half]);
          sum[t] = half == 0 ? scaled : _mm256_add_epi32(sum[t], scaled);
        }
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const vf unit = splat_v(p.x8.scales[cell + t]);
        const __m256i minus = _mm256_madd_epi16(minimums, two_sums(p.x8.sums + (cell + t) * 2));
        g.sums[part][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t]), unit, g.sums[part][t]);
        g.minus[part][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(minus), unit, g.minus[part][t]);
      }
    }
  }
  template <int T>
  void end_block(Block& g, vf (&total)[kParts][T]) const {
    for (int part = 0; part < kParts; ++part) {
      const vf scale = mul_v(fp16_v(g.shared_scale + 2 * kLanes * part), splat_v(multiplier));
      const vf minimum = fp16_v(g.shared_minimum + 2 * kLanes * part);
      for (int t = 0; t < T; ++t) {
        total[part][t] = _mm256_fmadd_ps(g.sums[part][t], scale, total[part][t]);
        total[part][t] = _mm256_fnmadd_ps(g.minus[part][t], minimum, total[part][t]);
        g.sums[part][t] = g.minus[part][t] = splat_v(0.0f);
      }
    }
  }
};

/// The values of codes that are floats: those of 8 rows in byte `place` of all lanes. Nothing for other widths.
template <int Bits>
struct SmallFloat {
  explicit SmallFloat(const CodeProduct&) {}
  static vf value(__m256i, int) { return splat_v(0.0f); }
};
template <int Bits>
requires(Bits == 6 || Bits == 8) struct SmallFloat<Bits> {
  explicit SmallFloat(const CodeProduct& p)
      : right(_mm_cvtsi32_si128(9 - Bits + p.mantissa_bits)),
        magnitude(_mm256_set1_epi32(((1 << (Bits - 1)) - 1) << (23 - p.mantissa_bits))),
        bias(_mm256_set1_epi32((128 - (1 << (Bits - 2 - p.mantissa_bits))) << 23)),
        least(_mm256_castsi256_ps(_mm256_add_epi32(bias, _mm256_set1_epi32(1 << 23)))),
        beyond(
            _mm256_set1_epi32(Bits == 8 ? p.mantissa_bits == 2 ? (31 << 23) - 1 : (15 << 23 | 6 << 20) : 0x7fffffff)) {}
  __m128i right;      ///< from the top of a lane to the place of a float's exponent
  __m256i magnitude;  ///< mask of it there
  __m256i bias;
  __m256 least;    ///< the smallest value with an exponent
  __m256i beyond;  ///< larger magnitudes are infinity or NaN

  vf value(__m256i codes, int place) const {
    const __m256i top = _mm256_slli_epi32(codes, 32 - Bits - 8 * place);
    const __m256i bits = _mm256_and_si256(_mm256_sra_epi32(top, right), magnitude);
    const vf normal = _mm256_castsi256_ps(_mm256_add_epi32(bits, bias));
    // With exponent 0 the fraction has no leading 1 and twice the weight.
    const vf fraction = _mm256_fmsub_ps(normal, _mm256_set1_ps(2.0f), least);
    const __m256i none = _mm256_cmpgt_epi32(_mm256_set1_epi32(1 << 23), bits);
    vf v = _mm256_blendv_ps(normal, fraction, _mm256_castsi256_ps(none));
    const __m256i sign = _mm256_and_si256(top, _mm256_set1_epi32(static_cast<int>(0x80000000)));
    __m256i extra = sign;
    if (Bits == 8)
      extra = _mm256_or_si256(sign, _mm256_and_si256(_mm256_cmpgt_epi32(bits, beyond), _mm256_set1_epi32(0x7f800000)));
    return _mm256_or_ps(v, _mm256_castsi256_ps(extra));
  }
};
template <>
struct SmallFloat<4> {
  explicit SmallFloat(const CodeProduct& p) : low(_mm256_loadu_ps(p.values)), high(_mm256_loadu_ps(p.values + 8)) {}
  vf low, high;

  /// The look-up reads three bits of a lane, the choice between two of them its sign.
  vf value(__m256i codes, int place) const {
    const __m256i at = _mm256_srli_epi32(codes, 8 * place);
    const vf upper = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28 - 8 * place));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, at), _mm256_permutevar8x32_ps(high, at), upper);
  }
};

/// The multiply-adds of one step. Affine: weights get their scale and minimum before they are multiplied, as they would
/// be decoded; otherwise sums get the scale. Halves: two groups of 16 in a step. Small: codes are floats.
template <int Bits, bool Affine, bool Halves, bool Small>
struct FloatDots : DotsWithGroups<FloatDots<Bits, Affine, Halves, Small>> {
  static constexpr std::ptrdiff_t kStepBytes = code_step_bytes(Bits);
  static constexpr bool kHalves = Halves;

  explicit FloatDots(const CodeProduct& p)
      : levels(
            _mm256_xor_si256(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p.levels))),
                             _mm256_set1_epi8(-128))),
        element(p) {}
  __m256i levels;  ///< plus 128
  SmallFloat<Small ? Bits : 0> element;

  /// Zeros as floats, the lift of the levels included.
  std::int32_t zero(std::int32_t v, std::ptrdiff_t) const {
    return static_cast<std::int32_t>(f32_bits(static_cast<float>(Bits == 4 ? v + 128 : v)));
  }

  /// The byte at bits 0 or 8 as a float: 2^23 or 2^15 has the unit of its last bit, or of bit 8, at 1.
  static vf byte_value(__m256i bytes, int place, vf zero) {
    const __m256i power = _mm256_set1_epi32(place == 0 ? 0x4b000000 : 0x47000000);
    const __m256i mask = _mm256_set1_epi32(place == 0 ? 0xff : 0xff00);
    const vf value = _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(bytes, mask), power));
    return _mm256_sub_ps(value, _mm256_add_ps(_mm256_castsi256_ps(power), zero));
  }

  template <int T, int Half>
  void rows(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t s, const Groups& g, std::ptrdiff_t group,
            vf (&total)[kParts][T]) const {
    constexpr int kCount = Halves ? 4 : 8;
    const float* x = p.x + s * p.tokens * kCodeStep;
    vf zero[kParts], scale[kParts], minimum[kParts], sum[kParts][T];
#pragma GCC unroll 2
    for (int r = 0; r < kParts; ++r) {
      const int row = r * kLanes;
      zero[r] = load_v(reinterpret_cast<const float*>(g.zero[group + Half]) + row);
      scale[r] = load_v(g.scale[group + Half] + row);
      minimum[r] = Affine ? load_v(g.minimum[group + Half] + row) : splat_v(0.0f);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sum[r][t] = splat_v(0.0f);
    }
#pragma GCC unroll 8
    for (int q = Half * kCount; q < (Half + 1) * kCount; ++q) {
      __m256i bytes[kParts];
#pragma GCC unroll 2
      for (int r = 0; r < kParts; ++r) {
        bytes[r] = quad<Bits>(w, q, r);
        if (Bits == 4 && !Small) bytes[r] = _mm256_shuffle_epi8(levels, bytes[r]);
      }
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        const int k = q / 2 * 8 + kCodeOrder[q % 2 * 4 + b];
        vf weight[kParts];
#pragma GCC unroll 2
        for (int r = 0; r < kParts; ++r) {
          weight[r] = Small ? element.value(bytes[r], b)
                            : byte_value(b < 2 ? bytes[r] : _mm256_srli_epi32(bytes[r], 16), b % 2, zero[r]);
          if (Affine) weight[r] = _mm256_fmadd_ps(weight[r], scale[r], minimum[r]);
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
          for (int r = 0; r < kParts; ++r)
            sum[r][t] = _mm256_fmadd_ps(weight[r], _mm256_set1_ps(x[t * kCodeStep + k]), sum[r][t]);
        }
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < kParts; ++r) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        vf& y = total[r][t];
        y = Affine ? _mm256_add_ps(y, sum[r][t]) : _mm256_fmadd_ps(sum[r][t], scale[r], y);
      }
    }
  }

  template <int T>
  void step(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t s, const Groups& g, std::ptrdiff_t group,
            vf (&total)[kParts][T]) const {
    rows<T, 0>(p, w, s, g, group, total);
    if constexpr (Halves) rows<T, 1>(p, w, s, g, group, total);
  }
};

template <int Bits, bool Table = false, bool Wide = false>
void few_int8_of(const CodeProduct& p) {
  p.group_steps == 0 ? few_codes<IntegerDots<Bits, Table, Wide, true>>(p)
                     : few_codes<IntegerDots<Bits, Table, Wide, false>>(p);
}
void few_int8(const CodeProduct& p) noexcept {
  switch (p.bits) {
    case 2:
      if (p.group_steps == 0 && !p.zeros && p.scale == 5 && p.minimums && p.zero == 0) return few_codes<NibbleDots>(p);
      return few_int8_of<2>(p);
    case 3:
      return few_int8_of<3>(p);
    case 4: {
      if (counts_up(p)) return few_int8_of<4>(p);
      const LevelRange range = level_range(p);
      return range.highest - range.lowest > 32 ? few_int8_of<4, true, true>(p) : few_int8_of<4, true>(p);
    }
    case 5:
      return few_int8_of<5>(p);
    case 6:
      return few_int8_of<6>(p);
    default:
      return few_int8_of<8, false, true>(p);
  }
}

template <int Bits, bool Affine, bool Small>
void few_f32_of(const CodeProduct& p) {
  p.group_steps == 0 ? few_codes<FloatDots<Bits, Affine, true, Small>>(p)
                     : few_codes<FloatDots<Bits, Affine, false, Small>>(p);
}
template <int Bits>
void few_f32_of(const CodeProduct& p) {
  if constexpr (Bits == 4 || Bits == 6 || Bits == 8)
    if (p.values != nullptr) return few_f32_of<Bits, false, true>(p);
  p.minimums ? few_f32_of<Bits, true, false>(p) : few_f32_of<Bits, false, false>(p);
}
void few_f32(const CodeProduct& p) noexcept {
  switch (p.bits) {
    case 2:
      return few_f32_of<2>(p);
    case 3:
      return few_f32_of<3>(p);
    case 4:
      return few_f32_of<4>(p);
    case 5:
      return few_f32_of<5>(p);
    case 6:
      return few_f32_of<6>(p);
    default:
      return few_f32_of<8>(p);
  }
}

/// Sum of the lanes of two registers.
int sum_of(__m256i a, __m256i b) {
  const __m256i both = _mm256_add_epi32(a, b);
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}
std::uint32_t largest_of(__m256i v) {
  __m128i top = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  top = _mm_max_epu32(top, _mm_shuffle_epi32(top, 0x4e));
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(top, _mm_shuffle_epi32(top, 0xb1))));
}

/// A whole step of x; its end goes through the plain one.
void quantize_steps(const float* x, std::ptrdiff_t n, int tokens, std::int8_t* codes, float* scales,
                    std::int16_t* sums) noexcept {
  const __m256i magnitude_bits = _mm256_set1_epi32(0x7fffffff);
  const __m256 magic = _mm256_set1_ps(12582912.0f);
  // Packing leaves k 0-3 8-11 16-19 24-27 in the low half and 4-7 12-15 20-23 28-31 in the high one.
  const __m256i eights = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
  for (; n >= kCodeStep; n -= kCodeStep) {
    __m256 values[4];
    __m256i top = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
      values[i] = _mm256_loadu_ps(x + 8 * i);
      top = _mm256_max_epu32(top, _mm256_and_si256(_mm256_castps_si256(values[i]), magnitude_bits));
    }
    const std::uint32_t largest = largest_of(top);
    if (largest >= 0x7f800000u) {
      quantize(x, kCodeStep, tokens, codes, scales, sums);
    } else {
      const float scale = step_scale(as_f32(largest));
      *scales = scale;
      const __m256 divisor = _mm256_set1_ps(scale);
      __m256i q[4];
      for (int i = 0; i < 4; ++i)
        q[i] = _mm256_cvtps_epi32(_mm256_sub_ps(_mm256_add_ps(_mm256_div_ps(values[i], divisor), magic), magic));
      const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
      const __m256i in_order = _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(bytes, eights), order);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), in_order);
      sums[0] = static_cast<std::int16_t>(-sum_of(q[0], q[1]));
      sums[1] = static_cast<std::int16_t>(-sum_of(q[2], q[3]));
    }
    x += kCodeStep;
    codes += tokens * kCodeStep;
    scales += tokens;
    sums += 2 * tokens;
  }
  quantize(x, n, tokens, codes, scales, sums);
}

}  // namespace

void install_codes_avx2(CodeKernels& k, Features) noexcept {
  k.few_int8 = {few_int8, "avx2"};
  k.few_f32 = {few_f32, "avx2"};
  k.quantize = {quantize_steps, "avx2"};
}

}  // namespace blockpack::kernels
