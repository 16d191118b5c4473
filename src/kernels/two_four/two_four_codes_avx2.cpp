// SPDX-License-Identifier: Apache-2.0
/// Sparse codes on AVX2, eight rows in a register. int8 activations: a byte shuffle takes the four that a quad of codes
/// meets out of 16; magnitudes of levels (vpshufb) times activations with their signs (vpsignb) are added in pairs to
/// 16 bits (vpmaddubsw), which holds 2 * 127 * 128; where levels are within 32 of zero those of a half step are added
/// there (2 * 127 * 32 * 4 = 32512), otherwise each goes to 32 bits (vpmaddwd) at once. So nothing saturates. Zeros of
/// groups meet sums of the selected activations; a zero of all groups is taken from the levels. f32 activations:
/// vpermps and a blend look up values, vpermilps takes activations.
///
/// For 8 rows x 64 k of codes one token takes 8 x (8 + 3) integer operations, 29 cycles of three ports, where reading
/// takes 28 at 30 GB/s: level with memory for 1 token, 4 operations a quad for each further one. In f32 one token takes
/// 32 x 8. Expected limit: these instructions.

#include <immintrin.h>

#include "kernels/two_four/two_four_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/codes/codes_plain.inc"

#include "kernels/codes/codes_avx2.inc"

constexpr std::ptrdiff_t kSparseStep = code_step_bytes(6);

/// Bytes of 16 activations that quad q selects, for the eight rows of register `part`.
static inline __m256i selection(const unsigned char* w, int q, int part) {
  const __m256i places = plane_quad<2>(w + code_step_bytes(4), q, part, 1);
  return _mm256_or_si256(places, _mm256_set1_epi32(q % 2 == 0 ? 0x08000800 : 0x09010901));
}

/// The dots of one step. Narrow: levels are within 32 of zero. Zeros: groups have zeros that sums of x meet.
template <bool Narrow, bool Zeros, bool Halves>
struct SelectedDots : DotsWithGroups<SelectedDots<Narrow, Zeros, Halves>> {
  static constexpr std::ptrdiff_t kStepBytes = kSparseStep;
  static constexpr bool kHalves = Halves;

  explicit SelectedDots(const CodeProduct& p) {
    alignas(16) std::int8_t level[16];
    for (int c = 0; c < 16; ++c) level[c] = static_cast<std::int8_t>(p.levels[c] - (Zeros ? 0 : p.zero));
    signs = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(level)));
    magnitudes = _mm256_abs_epi8(signs);
  }
  __m256i signs, magnitudes;

  static std::int32_t zero(std::int32_t v, std::ptrdiff_t) { return v * 65537; }

  template <int T, int R, int Half>
  void rows(const CodeProduct& p, const unsigned char* w, int part, std::ptrdiff_t s, const Groups& g,
            std::ptrdiff_t group, vf (&total)[kParts][T]) const {
    const std::ptrdiff_t cell = (2 * s + Half) * p.tokens;
    const std::int8_t* x = p.x8.codes + cell * kCodeStep;
    const float* scales = p.x8.scales + cell;
    __m256i sum[R][T], pairs[R][T], pairs_x[R][T];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      __m256i sign[R], magnitude[R], index[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        const __m256i codes = plane_quad<4>(w, 4 * Half + q, part + r, 0);
        sign[r] = _mm256_shuffle_epi8(signs, codes);
        magnitude[r] = _mm256_shuffle_epi8(magnitudes, codes);
        index[r] = selection(w, 4 * Half + q, part + r);
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const auto* at = reinterpret_cast<const __m128i*>(x + t * kCodeStep + q / 2 * 16);
        const __m256i sixteen = _mm256_broadcastsi128_si256(_mm_loadu_si128(at));
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) {
          const __m256i selected = _mm256_shuffle_epi8(sixteen, index[r]);
          const __m256i product = _mm256_maddubs_epi16(magnitude[r], _mm256_sign_epi8(selected, sign[r]));
          pairs[r][t] = q == 0 || !Narrow ? product : _mm256_add_epi16(pairs[r][t], product);
          if (!Narrow || q == 3) {
            const __m256i dots = _mm256_madd_epi16(pairs[r][t], _mm256_set1_epi16(1));
            sum[r][t] = q == 0 || Narrow ? dots : _mm256_add_epi32(sum[r][t], dots);
          }
          if (!Zeros) continue;
          const __m256i both = _mm256_maddubs_epi16(_mm256_set1_epi8(1), selected);
          pairs_x[r][t] = q == 0 ? both : _mm256_add_epi16(pairs_x[r][t], both);
        }
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      const int row = (part + r) * kLanes;
      const vf scale = load_v(g.scale[group] + row);
      const __m256i zeros = _mm256_load_si256(reinterpret_cast<const __m256i*>(g.zero[group] + row));
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        if (Zeros) sum[r][t] = _mm256_sub_epi32(sum[r][t], _mm256_madd_epi16(pairs_x[r][t], zeros));
        const vf scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[r][t]), _mm256_set1_ps(scales[t]));
        total[part + r][t] = _mm256_fmadd_ps(scaled, scale, total[part + r][t]);
      }
    }
  }

  template <int T>
  void step(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t s, const Groups& g, std::ptrdiff_t group,
            vf (&total)[kParts][T]) const {
    constexpr int kTogether = T >= 4 ? 1 : kParts;
#pragma GCC unroll 2
    for (int part = 0; part < kParts; part += kTogether) {
      rows<T, kTogether, 0>(p, w, part, s, g, group, total);
      rows<T, kTogether, 1>(p, w, part, s, g, Halves ? group + 1 : group, total);
    }
  }
};

/// The multiply-adds of one step.
template <bool Zeros, bool Halves>
struct SelectedFloats : DotsWithGroups<SelectedFloats<Zeros, Halves>> {
  static constexpr std::ptrdiff_t kStepBytes = kSparseStep;
  static constexpr bool kHalves = Halves;

  explicit SelectedFloats(const CodeProduct& p) {
    float value[16];
    for (int c = 0; c < 16; ++c)
      value[c] = p.values != nullptr ? p.values[c] : static_cast<float>(p.levels[c] - (Zeros ? 0 : p.zero));
    low = _mm256_loadu_ps(value);
    high = _mm256_loadu_ps(value + 8);
  }
  vf low, high;

  /// Zeros as floats.
  static std::int32_t zero(std::int32_t v, std::ptrdiff_t) {
    return static_cast<std::int32_t>(f32_bits(static_cast<float>(v)));
  }
  /// The look-up reads three bits of a lane, the choice between two of them its sign. `bit`: of the code.
  vf value(__m256i codes, int bit) const {
    const __m256i at = _mm256_srli_epi32(codes, bit);
    const vf upper = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28 - bit));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, at), _mm256_permutevar8x32_ps(high, at), upper);
  }

  template <int T, int R, int Half>
  void rows(const unsigned char* w, const float* x, int part, const Groups& g, std::ptrdiff_t group,
            vf (&total)[kParts][T]) const {
    vf sum[R][T];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sum[r][t] = splat_v(0.0f);
    }
#pragma GCC unroll 4
    for (int q = 4 * Half; q < 4 * Half + 4; ++q) {
      __m256i codes[R], places[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        const std::ptrdiff_t row = (part + r) * kLanes;
        const auto load = [](const unsigned char* at) {
          return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
        };
        codes[r] = load(w + plane_byte(4, row, 4 * q));
        places[r] = load(w + code_step_bytes(4) + plane_byte(2, row, 4 * q));
      }
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        const int k = q / 2 % 2 * 16 + kCodeOrder[q % 2 * 4 + b] / 2 * 4;
        vf weight[R];
        __m256i index[R];
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) {
          weight[r] = value(codes[r], 8 * b + plane_bit(4, 4 * q));
          if (Zeros)
            weight[r] =
                _mm256_sub_ps(weight[r], load_v(reinterpret_cast<const float*>(g.zero[group]) + (part + r) * kLanes));
          index[r] = _mm256_srli_epi32(places[r], 8 * b + plane_bit(2, 4 * q));
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const vf four = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(x + t * kCodeStep + k));
#pragma GCC unroll 2
          for (int r = 0; r < R; ++r)
            sum[r][t] = _mm256_fmadd_ps(weight[r], _mm256_permutevar_ps(four, index[r]), sum[r][t]);
        }
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      const vf scale = load_v(g.scale[group] + (part + r) * kLanes);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) total[part + r][t] = _mm256_fmadd_ps(sum[r][t], scale, total[part + r][t]);
    }
  }

  template <int T>
  void step(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t s, const Groups& g, std::ptrdiff_t group,
            vf (&total)[kParts][T]) const {
    constexpr int kTogether = T >= 4 ? 1 : kParts;
    const std::ptrdiff_t half = p.tokens * kCodeStep;
    const float* x = p.x + 2 * s * half;
#pragma GCC unroll 2
    for (int part = 0; part < kParts; part += kTogether) {
      rows<T, kTogether, 0>(w, x, part, g, group, total);
      rows<T, kTogether, 1>(w, x + half, part, g, Halves ? group + 1 : group, total);
    }
  }
};

template <bool Narrow, bool Zeros>
void few_int8_of(const CodeProduct& p) {
  p.group_steps == 0 ? few_codes<SelectedDots<Narrow, Zeros, true>>(p)
                     : few_codes<SelectedDots<Narrow, Zeros, false>>(p);
}
void few_int8(const CodeProduct& p) noexcept {
  const LevelRange range = level_range(p);
  const int zero = p.zeros ? 0 : p.zero;
  const auto within = [&](int lowest, int highest) {
    return range.lowest - zero >= lowest && range.highest - zero <= highest;
  };
  if (within(-32, 32)) return p.zeros ? few_int8_of<true, true>(p) : few_int8_of<true, false>(p);
  // Levels that lose their zero in int8 no more keep it.
  p.zeros || !within(-128, 127) ? few_int8_of<false, true>(p) : few_int8_of<false, false>(p);
}

template <bool Zeros>
void few_f32_of(const CodeProduct& p) {
  p.group_steps == 0 ? few_codes<SelectedFloats<Zeros, true>>(p) : few_codes<SelectedFloats<Zeros, false>>(p);
}
void few_f32(const CodeProduct& p) noexcept { p.zeros ? few_f32_of<true>(p) : few_f32_of<false>(p); }

}  // namespace

void install_two_four_codes_avx2(TwoFourKernels& k, Features) noexcept {
  k.few_int8_codes = {few_int8, "avx2"};
  k.few_f32_codes = {few_f32, "avx2"};
}

}  // namespace blockpack::kernels
