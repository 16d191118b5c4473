// SPDX-License-Identifier: Apache-2.0
/// Products with packed codes by f32 multiply-adds: codes of up to 4 bits become floats by a permute of sixteen values
/// (vpermps reads 4 bits of every lane, a shift brings the next ones down), wider ones by OR with the bits of a power
/// of two and one subtraction that also takes the zero away.
///
/// Why not integers: the bound of f32 activations is relative to Σ|x w|, and x written as three int8 planes has an
/// error relative to the largest x of its group, which a weight of 0 may remove from that sum.
///
/// Four panels of 16 rows are walked side by side, two of codes of two planes. 16 rows x 32 k of 4-bit codes take
/// 28 shifts, 32 permutes and 32 multiply-adds, 46 cycles of two ports; of 2-bit codes 47, of 3-bit codes 60, of 8-bit
/// codes 52, of 5- and 6-bit codes 66. Codes that are floats of 6 or 8 bits are looked up as bf16, which all their
/// values are: 64 words in two registers (vpermi2w), of 8 bits two look-ups and the sign; each half of a lane is then a
/// float after a shift or a mask. 16 rows x 32 k take 92 instructions of 6 bits and 128 of 8 bits. Expected limit:
/// these instructions on the last-level cache (17 to 70 cycles to read), and on DRAM (35 to 140) below 4 bits.

#include <immintrin.h>

#include <type_traits>

#include "kernels/codes/codes_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/codes/codes_plain.inc"

#include "kernels/codes/codes_avx512.inc"

/// In place of the values of floats where codes are integers.
struct NoTable {
  explicit NoTable(const CodeProduct&) {}
};

/// The multiply-adds of one step. Affine: weights get their scale, zero and minimum before they are multiplied, as they
/// would be decoded; otherwise sums get the scale (and values lose their zero before).
/// Small: codes are floats of 6 or 8 bits, looked up as bf16.
template <int Bits, bool Affine, bool Small = false>
struct FloatDots {
  static constexpr std::ptrdiff_t kStepBytes = code_step_bytes(Bits);
  static constexpr int kPlanes = high_plane(Bits) > 0 ? 2 : 1;
  static constexpr bool kTable = Bits <= 4;

  explicit FloatDots(const CodeProduct& p) : group_zeros(p.zeros), table(p) {
    // Sixteen values whatever the width: bits above a code do not change what it means.
    float value[16];
    for (int c = 0; c < 16; ++c)
      value[c] = static_cast<float>((Bits == 4 ? p.levels[c] : c % (1 << Bits)) - (p.zeros ? 0 : p.zero));
    values = _mm512_loadu_ps(Bits == 4 && p.values != nullptr ? p.values : value);
  }
  __m512 values;     ///< of codes of up to 4 bits, less the zero of all groups
  bool group_zeros;  ///< zeros are per group
  std::conditional_t<Small, Bf16Table<Bits>, NoTable> table;

  /// What is to be taken from values, as a float.
  __m512i zero(__m512i v, std::ptrdiff_t) const {
    return _mm512_castps_si512(kTable && !group_zeros ? _mm512_setzero_ps() : _mm512_cvtepi32_ps(v));
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

  /// Two chains of sums for a panel and token, so that a multiply-add waits for none; as many for any number of tokens,
  /// whose bits do not depend on each other.
  template <int T, int P>
  using Sums = __m512[P][T][2];

  template <int T, int P>
  static void add(__m512 value, int i, const __m512 (&x)[T], int k, Sums<T, P>& sum) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      __m512& chain = sum[i][t][k % 2];
      chain = _mm512_fmadd_ps(value, x[t], chain);
    }
  }
  /// x at k, in every lane.
  template <int T>
  static void broadcast(const float* x, int k, __m512 (&dst)[T]) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) dst[t] = _mm512_set1_ps(x[t * kCodeStep + k]);
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
  template <int T, int P, int Q, int End>
  void dot(const Panels<P>& w, const float* x, const Parameters (&g)[P], Sums<T, P>& sum) const {
    if constexpr (Q < End) {
      if constexpr (Small) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const int k = Q / 2 * 8 + kCodeOrder[Q % 2 * 4 + half];
          __m512 even[T], odd[T];
          broadcast<T>(x, k, even);
          broadcast<T>(x, k + 1, odd);
#pragma GCC unroll 8
          for (int i = 0; i < P; ++i) {
            const __m512i codes = quad<Bits, Q>(w[i]);
            const __m512i pair = table.values(half == 0 ? codes : _mm512_srli_epi16(codes, 8));
            add<T, P>(even_of(pair), i, even, k, sum);
            add<T, P>(odd_of(pair), i, odd, k + 1, sum);
          }
        }
      } else {
#pragma GCC unroll 4
        for (int place = 0; place < 4; ++place) {
          const int k = Q / 2 * 8 + kCodeOrder[Q % 2 * 4 + place];
          __m512 activations[T];
          broadcast<T>(x, k, activations);
#pragma GCC unroll 8
          for (int i = 0; i < P; ++i) {
            __m512 weight = value<Q>(w[i], place, g[i].zero);
            if (Affine) weight = _mm512_fmadd_ps(weight, g[i].scale, g[i].offset);
            add<T, P>(weight, i, activations, k, sum);
          }
        }
      }
      dot<T, P, Q + 1, End>(w, x, g, sum);
    }
  }

  template <int T, int P>
  void step(const CodeProduct& p, const Panels<P>& w, std::ptrdiff_t s, const Groups (&g)[P], std::ptrdiff_t group,
            __m512 (&total)[P][T], __m512 (&)[P][T][2]) const {
    const float* x = p.x + s * T * kCodeStep;
    const bool halves = p.group_steps == 0;
    Sums<T, P> sum;
    Parameters parameters[P];
    begin<T, P>(p, g, group, parameters, sum);
    dot<T, P, 0, 4>(w, x, parameters, sum);
    if (halves) {
      end<T, P>(parameters, sum, total);
      begin<T, P>(p, g, group + 1, parameters, sum);
    }
    dot<T, P, 4, 8>(w, x, parameters, sum);
    end<T, P>(parameters, sum, total);
  }

 private:
  template <int T, int P>
  static void begin(const CodeProduct& p, const Groups (&g)[P], std::ptrdiff_t group, Parameters (&dst)[P],
                    Sums<T, P>& sum) {
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
      dst[i] = {_mm512_load_ps(reinterpret_cast<const float*>(g[i].zero[group])), _mm512_load_ps(g[i].scale[group]),
                _mm512_setzero_ps()};
      if (Affine) {
        if (p.minimums) dst[i].offset = _mm512_load_ps(g[i].minimum[group]);
        if (kTable) dst[i].offset = _mm512_fnmadd_ps(dst[i].zero, dst[i].scale, dst[i].offset);
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sum[i][t][0] = sum[i][t][1] = _mm512_setzero_ps();
    }
  }
  template <int T, int P>
  static void end(const Parameters (&g)[P], const Sums<T, P>& sum, __m512 (&total)[P][T]) {
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512 all = _mm512_add_ps(sum[i][t][0], sum[i][t][1]);
        total[i][t] = Affine ? _mm512_add_ps(total[i][t], all) : _mm512_fmadd_ps(all, g[i].scale, total[i][t]);
      }
    }
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
      return p.values != nullptr ? few_codes<FloatDots<6, false, true>>(p) : few_of<6>(p);
    default:
      return p.values != nullptr ? few_codes<FloatDots<8, false, true>>(p) : few_of<8>(p);
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
