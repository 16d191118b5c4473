// SPDX-License-Identifier: Apache-2.0
/// Sparse codes on Advanced SIMD, four rows in a register. int8 activations: tbl takes the four that a quad of codes
/// meets out of 16, and the levels of the codes; products are added in 16 bits where levels are within 32 of zero (127
/// * 32 * 4 = 16256), otherwise every two of them (127 * 128 * 2 = 32512), then pairwise in 32. f32 activations: the
/// bytes of four activations are a table from which tbl takes what a lane names, values are looked up the same way.
///
/// For 4 rows x 64 k a quad takes 7 instructions and 5 more a token in integers. Expected limit: these.

#include <arm_neon.h>

#include "kernels/two_four/two_four_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/codes/codes_plain.inc"

#include "kernels/codes/codes_neon.inc"

#include "kernels/two_four/two_four_codes_neon.inc"

/// A sum that adds Chain products in 16 bits, then pairs of them in 32.
template <int Chain>
struct WideningSum {
  static constexpr int kRegisters = 2;
  int32x4_t total;
  int16x8_t low, high;

  /// Quad number `i` of this sum.
  void add(int8x16_t w, int8x16_t x, int i, bool last) {
    if (i % Chain == 0) {
      low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
      high = vmull_high_s8(w, x);
    } else {
      low = vmlal_s8(low, vget_low_s8(w), vget_low_s8(x));
      high = vmlal_high_s8(high, w, x);
    }
    if (last || i % Chain == Chain - 1) total = vaddq_s32(total, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
  }
};

void few_int8(const CodeProduct& p) noexcept {
  levels_within(p, -32, 32) ? few_int8_of<WideningSum<4>>(p) : few_int8_of<WideningSum<2>>(p);
}

/// The multiply-adds of one step.
template <bool Zeros, bool Halves>
struct SelectedFloats : DotsWithGroups<SelectedFloats<Zeros, Halves>> {
  static constexpr std::ptrdiff_t kStepBytes = kSparseStep;
  static constexpr bool kHalves = Halves;

  explicit SelectedFloats(const CodeProduct& p) {
    float value[16];
    for (int c = 0; c < 16; ++c)
      value[c] = p.values != nullptr ? p.values[c] : static_cast<float>(p.levels[c] - (Zeros ? 0 : p.zero));
    values = vld1q_u8_x4(reinterpret_cast<const std::uint8_t*>(value));
  }
  uint8x16x4_t values;

  /// Zeros as floats.
  static std::int32_t zero(std::int32_t v, std::ptrdiff_t) {
    return static_cast<std::int32_t>(f32_bits(static_cast<float>(v)));
  }
  /// The bytes of the floats that bits [bit, bit + width) of every lane name.
  static uint8x16_t bytes_of(uint32x4_t lanes, int bit, std::uint32_t mask) {
    const uint32x4_t place = vandq_u32(vshlq_u32(lanes, vdupq_n_s32(-bit)), vdupq_n_u32(mask));
    return vreinterpretq_u8_u32(vmlaq_n_u32(vdupq_n_u32(0x03020100u), place, 0x04040404u));
  }

  template <int T, int Half>
  void rows(const unsigned char* w, const float* x, int part, const Groups& g, std::ptrdiff_t group,
            vf (&total)[kParts][T]) const {
    const int row = part * kLanes;
    vf sum[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sum[t] = splat_v(0.0f);
#pragma GCC unroll 4
    for (int q = 4 * Half; q < 4 * Half + 4; ++q) {
      const uint32x4_t codes = vreinterpretq_u32_u8(vld1q_u8(w + plane_byte(4, row, 4 * q)));
      const uint32x4_t places = vreinterpretq_u32_u8(vld1q_u8(w + code_step_bytes(4) + plane_byte(2, row, 4 * q)));
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        const int k = q / 2 % 2 * 16 + kCodeOrder[q % 2 * 4 + b] / 2 * 4;
        vf weight = vreinterpretq_f32_u8(vqtbl4q_u8(values, bytes_of(codes, 8 * b + plane_bit(4, 4 * q), 15)));
        if (Zeros) weight = vsubq_f32(weight, vreinterpretq_f32_s32(vld1q_s32(g.zero[group] + row)));
        const uint8x16_t index = bytes_of(places, 8 * b + plane_bit(2, 4 * q), 3);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const uint8x16_t four = vreinterpretq_u8_f32(vld1q_f32(x + t * kCodeStep + k));
          sum[t] = vfmaq_f32(sum[t], weight, vreinterpretq_f32_u8(vqtbl1q_u8(four, index)));
        }
      }
    }
    const vf scale = load_v(g.scale[group] + row);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) total[part][t] = vfmaq_f32(total[part][t], sum[t], scale);
  }

  template <int T>
  void step(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t s, const Groups& g, std::ptrdiff_t group,
            vf (&total)[kParts][T]) const {
    const float* x = p.x + 2 * s * T * kCodeStep;
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      rows<T, 0>(w, x, part, g, group, total);
      rows<T, 1>(w, x + T * kCodeStep, part, g, Halves ? group + 1 : group, total);
    }
  }
};

template <bool Zeros>
void few_f32_of(const CodeProduct& p) {
  p.group_steps == 0 ? few_codes<SelectedFloats<Zeros, true>>(p) : few_codes<SelectedFloats<Zeros, false>>(p);
}
void few_f32(const CodeProduct& p) noexcept { p.zeros ? few_f32_of<true>(p) : few_f32_of<false>(p); }

}  // namespace

void install_two_four_codes_neon(TwoFourKernels& k, Features) noexcept {
  k.few_int8_codes = {few_int8, "neon"};
  k.few_f32_codes = {few_f32, "neon"};
}

}  // namespace blockpack::kernels
