// SPDX-License-Identifier: Apache-2.0
/// Sparse codes by f32 multiply-adds: vpermps looks up the value of a code, whose 4 bits a shift brings to the bottom
/// of its lane, and vpermilps takes the activation it meets out of four that lie in all quarters of a register, by the
/// two bits of its place.
///
/// Two panels of 16 rows are walked side by side. 16 rows x 64 k take 60 shifts, 64 permutes
/// and 32 multiply-adds, 80 cycles of two ports for one token (a permute and a multiply-add a weight for each further
/// one), where reading their 416 bytes takes 56 at 30 GB/s. Expected limit: these instructions, memory below 20 GB/s.

#include <immintrin.h>

#include "kernels/two_four/two_four_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/codes/codes_plain.inc"

#include "kernels/codes/codes_avx512.inc"

#include "kernels/two_four/two_four_codes_avx512.inc"

/// The multiply-adds of one step. Zeros: every group has its own, which values lose.
template <bool Zeros, bool Halves>
struct SelectedFloats {
  static constexpr std::ptrdiff_t kStepBytes = code_step_bytes(kSparseBits);
  static constexpr int kPlanes = 2;

  explicit SelectedFloats(const CodeProduct& p) {
    float value[16];
    for (int c = 0; c < 16; ++c)
      value[c] = p.values != nullptr ? p.values[c] : static_cast<float>(p.levels[c] - (Zeros ? 0 : p.zero));
    values = _mm512_loadu_ps(value);
  }
  __m512 values;

  static __m512i zero(__m512i v) { return _mm512_castps_si512(_mm512_cvtepi32_ps(v)); }

  using Block = Groups;
  static void begin(const CodeProduct&, Groups&) {}
  template <int P>
  static void read(const CodeProduct& p, const Panels<P>& at, std::ptrdiff_t groups, Groups (&dst)[P]) {
    read_groups<P>(p, at, groups, dst, [](__m512i v, std::ptrdiff_t) { return zero(v); });
  }
  template <int T>
  static void end_block(const Groups&, __m512 (&)[T], __m512 (&)[T][2]) {}

  /// Quads [Q, End) of a step.
  template <int T, int Q, int End>
  void multiply(const unsigned char* w, const float* x, __m512 zero, __m512 (&sum)[T][2]) const {
    if constexpr (Q < End) {
      const __m512i codes = load_line(w + plane_byte(4, 0, 4 * Q)), places = places_line<Q>(w);
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        const auto code_bit = static_cast<unsigned>(8 * b + plane_bit(4, 4 * Q));
        const auto place_bit = static_cast<unsigned>(8 * b + plane_bit(2, 4 * Q));
        __m512 weight = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, code_bit), values);
        if (Zeros) weight = _mm512_sub_ps(weight, zero);
        const __m512i index = _mm512_srli_epi32(places, place_bit);
        const int group = Q / 2 * 4 + kCodeOrder[Q % 2 * 4 + b] / 2;
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(x + group_at<T>(t, group)));
          sum[t][b % 2] = _mm512_fmadd_ps(weight, _mm512_permutevar_ps(four, index), sum[t][b % 2]);
        }
      }
      multiply<T, Q + 1, End>(w, x, zero, sum);
    }
  }

  template <int T, int Half>
  void half_step(const unsigned char* w, const float* x, const Groups& g, std::ptrdiff_t group,
                 __m512 (&total)[T]) const {
    const __m512 scale = _mm512_load_ps(g.scale[group]);
    const __m512 zero = Zeros ? _mm512_load_ps(reinterpret_cast<const float*>(g.zero[group])) : _mm512_setzero_ps();
    __m512 sum[T][2];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sum[t][0] = sum[t][1] = _mm512_setzero_ps();
    multiply<T, 4 * Half, 4 * Half + 4>(w, x, zero, sum);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) total[t] = _mm512_fmadd_ps(_mm512_add_ps(sum[t][0], sum[t][1]), scale, total[t]);
  }

  template <int T, int P>
  void step(const CodeProduct& p, const Panels<P>& w, std::ptrdiff_t s, const Groups (&g)[P], std::ptrdiff_t group,
            __m512 (&total)[P][T], __m512 (&)[P][T][2]) const {
    const float* x = p.x + 2 * s * T * kCodeStep;
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
      half_step<T, 0>(w[i], x, g[i], group, total[i]);
      half_step<T, 1>(w[i], x, g[i], Halves ? group + 1 : group, total[i]);
    }
  }
};

template <bool Zeros>
void few_of(const CodeProduct& p) {
  p.group_steps == 0 ? few_codes<SelectedFloats<Zeros, true>>(p) : few_codes<SelectedFloats<Zeros, false>>(p);
}
void few_f32(const CodeProduct& p) noexcept { p.zeros ? few_of<true>(p) : few_of<false>(p); }

}  // namespace

void install_two_four_codes_avx512(TwoFourKernels& k, Features) noexcept { k.few_f32_codes = {few_f32, "avx512"}; }

}  // namespace blockpack::kernels
