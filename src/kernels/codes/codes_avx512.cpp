// SPDX-License-Identifier: Apache-2.0
/// Products with packed codes by f32 multiply-adds: codes of up to 4 bits become floats by a permute of sixteen values
/// (vpermps reads 4 bits of every lane, a shift brings the next ones down), wider ones by OR with the bits of a power
/// of two and one subtraction that also takes the zero away.
///
/// Why not integers: the bound of f32 activations is relative to Σ|x w|, and x written as three int8 planes has an
/// error relative to the largest x of its group, which a weight of 0 may remove from that sum.
///
/// Four panels of 16 rows are walked side by side, each fetched 2 KB ahead. 16 rows x 32 k of 4-bit codes take
/// 28 shifts, 32 permutes and 32 multiply-adds, 46 cycles of two ports; of 2-bit codes 47, of 3-bit codes 60, of 8-bit
/// codes 52, of 5- and 6-bit codes 66. Codes that are floats of 6 or 8 bits are looked up as bf16, which all their
/// values are: 64 words in two registers (vpermi2w), of 8 bits two look-ups and the sign; each half of a lane is then a
/// float after a shift or a mask. 16 rows x 32 k take 92 instructions of 6 bits and 128 of 8 bits. Expected limit:
/// these instructions on the last-level cache (17 to 70 cycles to read), and on DRAM (35 to 140) below 4 bits.

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

/// The multiply-adds of one step. Affine: weights get their scale, zero and minimum before they are multiplied, as they
/// would be decoded; otherwise sums get the scale (and values lose their zero before).
template <int Bits, bool Affine>
struct FloatDots {
  static constexpr std::ptrdiff_t kStepBytes = code_step_bytes(Bits);
  static constexpr bool kTable = Bits <= 4;

  explicit FloatDots(const CodeProduct& p) : group_zeros(p.zeros) {
    // Sixteen values whatever the width: bits above a code do not change what it means.
    float value[16];
    for (int c = 0; c < 16; ++c)
      value[c] = static_cast<float>((Bits == 4 ? p.levels[c] : c % (1 << Bits)) - (p.zeros ? 0 : p.zero));
    values = _mm512_loadu_ps(Bits == 4 && p.values != nullptr ? p.values : value);
  }
  __m512 values;     ///< of codes of up to 4 bits, less the zero of all groups
  bool group_zeros;  ///< zeros are per group

  /// What is to be taken from values, as a float.
  __m512i zero(__m512i v, std::ptrdiff_t) const {
    return _mm512_castps_si512(kTable && !group_zeros ? _mm512_setzero_ps() : _mm512_cvtepi32_ps(v));
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

  template <int T>
  static void add(__m512 value, const float* x, int k, __m512 (&sum)[T][2]) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      __m512& chain = sum[t][k % 2];
      chain = _mm512_fmadd_ps(value, _mm512_set1_ps(x[t * kCodeStep + k]), chain);
    }
  }
  /// The byte at bits 0 or 8 as a float: 2^23 or 2^15 has the unit of its last bit, or of bit 8, at 1.
  static __m512 byte_value(__m512i codes, int place, __m512 zero) {
    const __m512i power = _mm512_set1_epi32(place == 0 ? 0x4b000000 : 0x47000000);
    const __m512i mask = _mm512_set1_epi32(place == 0 ? 0xff : 0xff00);
    const __m512 value = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(codes, mask, power, 0xea));
    return _mm512_sub_ps(value, _mm512_add_ps(_mm512_castsi512_ps(power), zero));
  }

  /// What weights of the two kinds take from and add to the value of a code.
  struct Parameters {
    __m512 zero, scale, offset;
  };
  /// Element `place` of quad Q.
  template <int Q>
  __m512 value(const unsigned char* w, int place, __m512 zero) const {
    if constexpr (Bits == 2 || Bits == 4) {
      const __m512i line = load_line(w + plane_byte(Bits, 0, 4 * Q));
      const auto bit = static_cast<unsigned>(8 * place + plane_bit(Bits, 4 * Q));
      return _mm512_permutexvar_ps(_mm512_srli_epi32(line, bit), values);
    } else if constexpr (Bits == 3) {
      return _mm512_permutexvar_ps(_mm512_srli_epi32((quad<Bits, Q>(w)), static_cast<unsigned>(8 * place)), values);
    } else {
      return byte_value(_mm512_srli_epi32((quad<Bits, Q>(w)), static_cast<unsigned>(place / 2 * 16)), place % 2, zero);
    }
  }
  /// Multiplies quads [Q, End) of a step.
  template <int T, int Q, int End>
  void dot(const unsigned char* w, const float* x, const Parameters& g, __m512 (&sum)[T][2]) const {
    if constexpr (Q < End) {
#pragma GCC unroll 4
      for (int place = 0; place < 4; ++place) {
        __m512 weight = value<Q>(w, place, g.zero);
        if (Affine) weight = _mm512_fmadd_ps(weight, g.scale, g.offset);
        add<T>(weight, x, Q / 2 * 8 + kCodeOrder[Q % 2 * 4 + place], sum);
      }
      dot<T, Q + 1, End>(w, x, g, sum);
    }
  }

  template <int T>
  void step(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t ahead, std::ptrdiff_t s, const Groups& g,
            std::ptrdiff_t group, __m512 (&total)[T], __m512 (&)[T][2]) const {
    constexpr int kLines = static_cast<int>(kStepBytes / 64);
#pragma GCC unroll 8
    for (int i = 0; i < kLines; ++i) _mm_prefetch(w + ahead + 64 * i, _MM_HINT_T0);
    const float* x = p.x + s * T * kCodeStep;
    const bool halves = p.group_steps == 0;
    __m512 sum[T][2];
    Parameters parameters;
    begin(p, g, group, parameters, sum);
    dot<T, 0, 4>(w, x, parameters, sum);
    if (halves) {
      end(parameters, sum, total);
      begin(p, g, group + 1, parameters, sum);
    }
    dot<T, 4, 8>(w, x, parameters, sum);
    end(parameters, sum, total);
  }

 private:
  template <int T>
  static void begin(const CodeProduct& p, const Groups& g, std::ptrdiff_t group, Parameters& dst, __m512 (&sum)[T][2]) {
    dst = {_mm512_load_ps(reinterpret_cast<const float*>(g.zero[group])), _mm512_load_ps(g.scale[group]),
           _mm512_setzero_ps()};
    if (Affine) {
      if (p.minimums) dst.offset = _mm512_load_ps(g.minimum[group]);
      if (kTable) dst.offset = _mm512_fnmadd_ps(dst.zero, dst.scale, dst.offset);
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sum[t][0] = sum[t][1] = _mm512_setzero_ps();
  }
  template <int T>
  static void end(const Parameters& g, const __m512 (&sum)[T][2], __m512 (&total)[T]) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m512 both = _mm512_add_ps(sum[t][0], sum[t][1]);
      total[t] = Affine ? _mm512_add_ps(total[t], both) : _mm512_fmadd_ps(both, g.scale, total[t]);
    }
  }
};

/// The multiply-adds of one step of codes that are floats, whose sums get the scale.
template <int Bits>
struct SmallFloatDots : FloatDots<Bits, false> {
  explicit SmallFloatDots(const CodeProduct& p) : FloatDots<Bits, false>(p), table(p) {}
  Bf16Table<Bits> table;

  template <int T, int Q, int End>
  void dot(const unsigned char* w, const float* x, __m512 (&sum)[T][2]) const {
    if constexpr (Q < End) {
      const __m512i codes = quad<Bits, Q>(w);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m512i pair = table.values(half == 0 ? codes : _mm512_srli_epi16(codes, 8));
        const int k = Q / 2 * 8 + kCodeOrder[Q % 2 * 4 + half];
        FloatDots<Bits, false>::template add<T>(even_of(pair), x, k, sum);
        FloatDots<Bits, false>::template add<T>(odd_of(pair), x, k + 1, sum);
      }
      dot<T, Q + 1, End>(w, x, sum);
    }
  }
  template <int T>
  void step(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t ahead, std::ptrdiff_t s, const Groups& g,
            std::ptrdiff_t group, __m512 (&total)[T], __m512 (&)[T][2]) const {
    constexpr int kLines = static_cast<int>(code_step_bytes(Bits) / 64);
#pragma GCC unroll 8
    for (int i = 0; i < kLines; ++i) _mm_prefetch(w + ahead + 64 * i, _MM_HINT_T0);
    const float* x = p.x + s * T * kCodeStep;
    const bool halves = p.group_steps == 0;
    __m512 sum[T][2];
    const auto begin = [&sum] {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sum[t][0] = sum[t][1] = _mm512_setzero_ps();
    };
    const auto end = [&](std::ptrdiff_t of) {
      const __m512 scale = _mm512_load_ps(g.scale[of]);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) total[t] = _mm512_fmadd_ps(_mm512_add_ps(sum[t][0], sum[t][1]), scale, total[t]);
    };
    begin();
    dot<T, 0, 4>(w, x, sum);
    if (halves) {
      end(group);
      begin();
    }
    dot<T, 4, 8>(w, x, sum);
    end(halves ? group + 1 : group);
  }
};

template <int Bits>
void few_of(const CodeProduct& p) {
  p.minimums || (Bits <= 4 && p.zeros) ? few_codes<FloatDots<Bits, true>>(p) : few_codes<FloatDots<Bits, false>>(p);
}
void few_f32(const CodeProduct& p) noexcept {
  switch (p.bits) {
    case 2:
      return few_of<2>(p);
    case 3:
      return few_of<3>(p);
    case 4:
      return few_of<4>(p);
    case 5:
      return few_of<5>(p);
    case 6:
      return p.values != nullptr ? few_codes<SmallFloatDots<6>>(p) : few_of<6>(p);
    default:
      return p.values != nullptr ? few_codes<SmallFloatDots<8>>(p) : few_of<8>(p);
  }
}

/// A whole step of x; its end goes through the plain one.
void quantize_steps(const float* x, std::ptrdiff_t n, int tokens, std::int8_t* codes, float* scales,
                    std::int16_t* sums) noexcept {
  const __m512i magnitude_bits = _mm512_set1_epi32(0x7fffffff);
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
  const __m512 magic = _mm512_set1_ps(12582912.0f);
  for (; n >= kCodeStep; n -= kCodeStep) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const __m512i top = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(a), magnitude_bits),
                                         _mm512_and_si512(_mm512_castps_si512(b), magnitude_bits));
    const std::uint32_t largest = _mm512_reduce_max_epu32(top);
    if (largest >= 0x7f800000u) {
      quantize(x, kCodeStep, tokens, codes, scales, sums);
    } else {
      const float scale = step_scale(as_f32(largest));
      *scales = scale;
      const __m512 divisor = _mm512_set1_ps(scale);
      const __m512i qa = _mm512_cvtps_epi32(_mm512_sub_ps(_mm512_add_ps(_mm512_div_ps(a, divisor), magic), magic));
      const __m512i qb = _mm512_cvtps_epi32(_mm512_sub_ps(_mm512_add_ps(_mm512_div_ps(b, divisor), magic), magic));
      const __m256i bytes = _mm256_set_m128i(_mm512_cvtepi32_epi8(qb), _mm512_cvtepi32_epi8(qa));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm256_shuffle_epi8(bytes, order));
      sums[0] = static_cast<std::int16_t>(-_mm512_reduce_add_epi32(qa));
      sums[1] = static_cast<std::int16_t>(-_mm512_reduce_add_epi32(qb));
    }
    x += kCodeStep;
    codes += tokens * kCodeStep;
    scales += tokens;
    sums += 2 * tokens;
  }
  quantize(x, n, tokens, codes, scales, sums);
}

}  // namespace

void install_codes_avx512(CodeKernels& k, Features) noexcept {
  k.few_f32 = {few_f32, "avx512"};
  k.quantize = {quantize_steps, "avx512"};
}

}  // namespace blockpack::kernels
