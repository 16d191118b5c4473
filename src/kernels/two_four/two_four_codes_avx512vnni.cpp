// SPDX-License-Identifier: Apache-2.0
/// Sparse codes by VNNI dots (vpdpbusd). Of 16 int8 activations, in all four quarters of a register, a byte shuffle
/// (vpshufb) takes the four that a quad of codes meets: places shifted to bits 1 and 2, joined with the first byte of
/// each group by one vpternlog. What zeros and the lift of the levels add depends on the activations that a row
/// selects, so a second dot with ones sums these.
///
/// Two panels of 16 rows are walked side by side, each fetched 4 KB ahead into L1. 16 rows x 64 k of codes with a
/// scale a step are 416 bytes; one token takes about 100 instructions, measured 6.5 to 7 ns from L1 on Zen 5, where
/// reading takes 14 at 30 GB/s. Expected limit: memory for 1 token (0.84 to 0.96 of the ratio of bytes to dense codes,
/// docs/benchmarks.md), then 3 instructions a quad and token (a shuffle, two dots), 4.2 ns a token and step.

#include <immintrin.h>

#include "kernels/two_four/two_four_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/codes/codes_plain.inc"

#include "kernels/codes/codes_avx512.inc"

#include "kernels/two_four/two_four_codes_avx512.inc"

/// The dots of one step. Table: codes are looked up. Halves: two groups of 16 codes in a step.
template <bool Table, bool Halves>
struct SelectedDots {
  static constexpr std::ptrdiff_t kStepBytes = code_step_bytes(kSparseBits);
  static constexpr int kPlanes = 2;

  explicit SelectedDots(const CodeProduct& p) {
    int lowest = 0;
    for (const std::int8_t level : p.levels) lowest = level < lowest ? level : lowest;
    lift = _mm512_set1_epi32(Table ? -lowest : 0);
    levels = _mm512_sub_epi8(levels_line(p), _mm512_set1_epi8(static_cast<char>(lowest)));
  }
  __m512i lift;    ///< added to the levels
  __m512i levels;  ///< unsigned

  using Block = Groups;
  void begin(const CodeProduct& p, Groups& dst) const {
    begin_groups(p, dst, [this](__m512i v, std::ptrdiff_t) { return _mm512_add_epi32(v, lift); });
  }
  template <int P>
  void read(const CodeProduct& p, const Panels<P>& at, std::ptrdiff_t groups, Groups (&dst)[P]) const {
    read_groups<P>(p, at, groups, dst, [this](__m512i v, std::ptrdiff_t) { return _mm512_add_epi32(v, lift); });
  }
  template <int T>
  static void end_block(const Groups&, __m512 (&)[T], __m512 (&)[T][2]) {}

  /// Dots of quads [Q, End) of a step, whose 16 activations of token t begin at x + t * 32, and sums of what they
  /// select.
  template <int T, int Q, int End>
  void dot(const unsigned char* w, const std::int8_t* x, __m512i (&sum)[T], __m512i (&sum_x)[T]) const {
    if constexpr (Q < End) {
      __m512i values = sparse_codes<Q>(w);
      if (Table) values = _mm512_shuffle_epi8(levels, values);
      const __m512i places = move_up<1 - 2 * (Q % 4)>(places_line<Q>(w));
      const __m512i first = _mm512_set1_epi32(Q % 2 == 0 ? 0x08000800 : 0x09010901);
      const __m512i index = _mm512_ternarylogic_epi32(places, _mm512_set1_epi8(6), first, 0xea);  // (a & b) | c
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const std::int8_t* at = x + t * kCodeStep + Q / 2 % 2 * 16;
        const __m512i sixteen = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
        const __m512i selected = _mm512_shuffle_epi8(sixteen, index);
        sum[t] = _mm512_dpbusd_epi32(sum[t], values, selected);
        sum_x[t] = _mm512_dpbusd_epi32(sum_x[t], _mm512_set1_epi8(1), selected);
      }
      dot<T, Q + 1, End>(w, x, sum, sum_x);
    }
  }

  template <int T, int Half>
  void half_step(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t s, const Groups& g, std::ptrdiff_t group,
                 __m512 (&total)[T]) const {
    const std::int8_t* x = p.x8.codes + (2 * s + Half) * T * kCodeStep;
    const float* scales = p.x8.scales + (2 * s + Half) * T;
    __m512i sum[T], sum_x[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sum[t] = sum_x[t] = _mm512_setzero_si512();
    dot<T, 4 * Half, 4 * Half + 4>(w, x, sum, sum_x);
    const __m512i zeros = _mm512_load_si512(g.zero[group]);
    const __m512 scale = _mm512_load_ps(g.scale[group]);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      // A sum of 16 activations fits the low 16 bits of a lane, and zeros have no high ones.
      const __m512i dots = _mm512_sub_epi32(sum[t], _mm512_madd_epi16(sum_x[t], zeros));
      total[t] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dots), _mm512_set1_ps(scales[t])), scale, total[t]);
    }
  }

  template <int T, int P>
  void step(const CodeProduct& p, const Panels<P>& w, std::ptrdiff_t s, const Groups (&g)[P], std::ptrdiff_t group,
            __m512 (&total)[P][T], __m512 (&)[P][T][2]) const {
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
      half_step<T, 0>(p, w[i], s, g[i], group, total[i]);
      half_step<T, 1>(p, w[i], s, g[i], Halves ? group + 1 : group, total[i]);
    }
  }
};

template <bool Table>
void few_of(const CodeProduct& p) {
  p.group_steps == 0 ? few_codes<SelectedDots<Table, true>>(p) : few_codes<SelectedDots<Table, false>>(p);
}
void few_int8(const CodeProduct& p) noexcept { levels_are_codes(p) ? few_of<false>(p) : few_of<true>(p); }

}  // namespace

void install_two_four_codes_avx512vnni(TwoFourKernels& k, Features) noexcept {
  k.few_int8_codes = {few_int8, "avx512vnni"};
}

}  // namespace blockpack::kernels
