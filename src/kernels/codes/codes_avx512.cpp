// SPDX-License-Identifier: Apache-2.0
/// Products with packed codes by f32 multiply-adds: 4-bit codes become floats by a permute of the sixteen levels
/// (vpermps reads 4 bits of every lane, a shift brings the next ones down), 8-bit codes by OR with the bits of a power
/// of two and one subtraction that also takes the zero away.
///
/// Why not integers: the bound of f32 activations is relative to Σ|x w|, and x written as three int8 planes has an
/// error relative to the largest x of its group, which a weight of 0 may remove from that sum.
///
/// Four panels of 16 rows are walked side by side, each fetched 2 KB ahead. 16 rows x 32 k of 4-bit codes take
/// 28 shifts, 32 permutes and 32 multiply-adds, 46 cycles of two ports; of 8-bit codes 52. Expected limit: these
/// instructions on the last-level cache (35 and 70 cycles to read), memory on DRAM.

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
/// would be decoded; otherwise sums get the scale (and 8-bit codes lose their zero before). Halves: two groups of
/// 16 in a step.
template <bool Bytes, bool Affine, bool Halves>
struct FloatDots {
  static constexpr std::ptrdiff_t kStepBytes = code_step_bytes(Bytes ? 8 : 4);
  static constexpr bool kHalves = Halves;

  explicit FloatDots(const CodeProduct& p)
      : levels(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p.levels))))) {}
  __m512 levels;

  /// Zeros as floats.
  __m512i zero(__m512i v, std::ptrdiff_t) const { return _mm512_castps_si512(_mm512_cvtepi32_ps(v)); }

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
  template <int T>
  void line(const unsigned char* w, const float* x, int line, const Parameters& g, __m512 (&sum)[T][2]) const {
    const auto weight = [&g](__m512 value) { return Affine ? _mm512_fmadd_ps(value, g.scale, g.offset) : value; };
    const __m512i codes = load_line(w + 64 * line);
    if constexpr (Bytes) {
      const __m512i upper = _mm512_srli_epi32(codes, 16);
      const int first = line / 2 * 8, half = line % 2 * 4;
      add<T>(weight(byte_value(codes, 0, g.zero)), x, first + kCodeOrder[half], sum);
      add<T>(weight(byte_value(codes, 1, g.zero)), x, first + kCodeOrder[half + 1], sum);
      add<T>(weight(byte_value(upper, 0, g.zero)), x, first + kCodeOrder[half + 2], sum);
      add<T>(weight(byte_value(upper, 1, g.zero)), x, first + kCodeOrder[half + 3], sum);
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        // Nibble i of a lane: byte i / 2, its low or its high half.
        const __m512i index = _mm512_srli_epi32(codes, 4 * static_cast<unsigned>(i));
        add<T>(weight(_mm512_permutexvar_ps(index, levels)), x, line * 8 + kCodeOrder[i / 2 + i % 2 * 4], sum);
      }
    }
  }

  template <int T>
  void step(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t ahead, std::ptrdiff_t s, const Groups& g,
            std::ptrdiff_t group, __m512 (&total)[T]) const {
    constexpr int kLines = static_cast<int>(kStepBytes / 64);
    constexpr int kParts = Halves ? 2 : 1;
#pragma GCC unroll 8
    for (int i = 0; i < kLines; ++i) _mm_prefetch(w + ahead + 64 * i, _MM_HINT_T0);
    const float* x = p.x + s * T * kCodeStep;
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      const __m512 zero = _mm512_load_ps(reinterpret_cast<const float*>(g.zero[group + part]));
      const __m512 scale = _mm512_load_ps(g.scale[group + part]);
      Parameters parameters{zero, scale, _mm512_setzero_ps()};
      if (Affine) {
        if (p.minimums) parameters.offset = _mm512_load_ps(g.minimum[group + part]);
        if (!Bytes) parameters.offset = _mm512_fnmadd_ps(zero, scale, parameters.offset);
      }
      __m512 sum[T][2];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sum[t][0] = sum[t][1] = _mm512_setzero_ps();
#pragma GCC unroll 8
      for (int i = 0; i < kLines / kParts; ++i) line<T>(w, x, part * (kLines / kParts) + i, parameters, sum);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512 both = _mm512_add_ps(sum[t][0], sum[t][1]);
        total[t] = Affine ? _mm512_add_ps(total[t], both) : _mm512_fmadd_ps(both, scale, total[t]);
      }
    }
  }
};

template <bool Bytes, bool Affine>
void few_of(const CodeProduct& p) {
  p.group_steps == 0 ? few_codes<FloatDots<Bytes, Affine, true>>(p) : few_codes<FloatDots<Bytes, Affine, false>>(p);
}
void few_f32(const CodeProduct& p) noexcept {
  if (p.bits == 8) return p.minimums ? few_of<true, true>(p) : few_of<true, false>(p);
  p.minimums || p.zeros || p.zero != 0 ? few_of<false, true>(p) : few_of<false, false>(p);
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
