// SPDX-License-Identifier: Apache-2.0
/// Products with packed codes on Advanced SIMD, four rows in a register. int8 activations: codes become signed bytes (a
/// shift and a mask a plane, a look-up by tbl for those of 4 bits), which are multiplied and added in 16 bits (smull,
/// smlal) and then pairwise in 32 (saddlp, addp). What fits in 16 bits:
///
///     values up to  32   127 * 32 * 8 = 32512: eight products (2 to 5 bits, most tables of 16 levels)
///     values up to  63   127 * 63 * 4 = 32004: four (6 bits)
///     values up to 128   127 * 128 * 2 = 32512: two (8 bits less 128, other tables)
///
/// So nothing overflows, and the sum of a step, on top of minus what the zero adds to it, is exact. f32 activations:
/// bytes moved to the top of a lane become floats by a fixed-point conversion, then multiply-adds (why not integers:
/// codes_avx512.cpp).
///
/// For 16 rows x 32 k of 4-bit codes 80 instructions decode, and a token takes 64 multiplies and 12 sums in integers
/// and 12 operations in float. Expected limit: these instructions, 84 cycles of two pipes for one token.

#include <arm_neon.h>

#include "kernels/codes/codes_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/codes/codes_plain.inc"

#include "kernels/codes/codes_neon.inc"

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

bool levels_are_narrow(const CodeProduct& p) {
  for (const std::int8_t level : p.levels)
    if (level < -32 || level > 32) return false;
  return true;
}
void few_int8(const CodeProduct& p) noexcept {
  switch (p.bits) {
    case 2:
      return few_int8_of<WideningSum<8>, 2>(p);
    case 3:
      return few_int8_of<WideningSum<8>, 3>(p);
    case 4:
      return levels_are_narrow(p) ? few_int8_of<WideningSum<8>, 4>(p) : few_int8_of<WideningSum<2>, 4>(p);
    case 5:
      return few_int8_of<WideningSum<8>, 5>(p);
    case 6:
      return few_int8_of<WideningSum<4>, 6>(p);
    default:
      return few_int8_of<WideningSum<2>, 8>(p);
  }
}

/// The multiply-adds of one step. Affine: weights get their scale and minimum before they are multiplied, as they would
/// be decoded; otherwise sums get the scale. Halves: two groups of 16 in a step.
template <int Bits, bool Affine, bool Halves>
struct FloatDots {
  static constexpr std::ptrdiff_t kStepBytes = code_step_bytes(Bits);
  static constexpr bool kHalves = Halves;

  explicit FloatDots(const CodeProduct& p) : levels(vld1q_s8(p.levels)) {}
  int8x16_t levels;

  /// Zeros as floats.
  static std::int32_t zero(std::int32_t v, std::ptrdiff_t) {
    return static_cast<std::int32_t>(f32_bits(static_cast<float>(Bits == 8 ? v - 128 : v)));
  }

  template <int T, int R, int Half>
  void rows(const CodeProduct& p, const unsigned char* w, int part, std::ptrdiff_t s, const Groups& g,
            std::ptrdiff_t group, vf (&total)[kParts][T]) const {
    constexpr int kCount = Halves ? 4 : 8;
    const float* x = p.x + s * T * kCodeStep;
    vf zero[R], scale[R], minimum[R], sum[R][T];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const int row = (part + r) * kLanes;
      zero[r] = vreinterpretq_f32_s32(vld1q_s32(g.zero[group + Half] + row));
      scale[r] = load_v(g.scale[group + Half] + row);
      minimum[r] = Affine ? load_v(g.minimum[group + Half] + row) : splat_v(0.0f);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sum[r][t] = splat_v(0.0f);
    }
#pragma GCC unroll 8
    for (int q = Half * kCount; q < (Half + 1) * kCount; ++q) {
      int32x4_t bytes[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) bytes[r] = vreinterpretq_s32_s8(quad_values<Bits>(w, q, part + r, levels));
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        const int k = q / 2 * 8 + kCodeOrder[q % 2 * 4 + b];
        vf weight[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const int32x4_t top = vshlq_s32(bytes[r], vdupq_n_s32(24 - 8 * b));
          const int32x4_t alone = vandq_s32(top, vdupq_n_s32(-0x1000000));
          weight[r] = vsubq_f32(vcvtq_n_f32_s32(alone, 24), zero[r]);
          if (Affine) weight[r] = vfmaq_f32(minimum[r], weight[r], scale[r]);
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) sum[r][t] = vfmaq_n_f32(sum[r][t], weight[r], x[t * kCodeStep + k]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        vf& y = total[part + r][t];
        y = Affine ? vaddq_f32(y, sum[r][t]) : vfmaq_f32(y, sum[r][t], scale[r]);
      }
    }
  }

  template <int T>
  void step(const CodeProduct& p, const unsigned char* w, std::ptrdiff_t s, const Groups& g, std::ptrdiff_t group,
            vf (&total)[kParts][T]) const {
    constexpr int kTogether = T == 8 ? 1 : T == 4 ? 2 : 4;
#pragma GCC unroll 4
    for (int part = 0; part < kParts; part += kTogether) {
      rows<T, kTogether, 0>(p, w, part, s, g, group, total);
      if constexpr (Halves) rows<T, kTogether, 1>(p, w, part, s, g, group, total);
    }
  }
};

template <int Bits, bool Affine>
void few_f32_of(const CodeProduct& p) {
  p.group_steps == 0 ? few_codes<FloatDots<Bits, Affine, true>>(p) : few_codes<FloatDots<Bits, Affine, false>>(p);
}
template <int Bits>
void few_f32_of(const CodeProduct& p) {
  p.minimums ? few_f32_of<Bits, true>(p) : few_f32_of<Bits, false>(p);
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

/// A whole step of x; its end goes through the plain one.
void quantize_steps(const float* x, std::ptrdiff_t n, int tokens, std::int8_t* codes, float* scales,
                    std::int16_t* sums) noexcept {
  const float32x4_t magic = vdupq_n_f32(12582912.0f);
  alignas(16) static constexpr std::uint8_t kOrder[16] = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};
  for (; n >= kCodeStep; n -= kCodeStep) {
    uint32x4_t top = vdupq_n_u32(0);
    for (int i = 0; i < 8; ++i)
      top = vmaxq_u32(top, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + 4 * i)), vdupq_n_u32(0x7fffffff)));
    const std::uint32_t largest = vmaxvq_u32(top);
    if (largest >= 0x7f800000u) {
      quantize(x, kCodeStep, tokens, codes, scales, sums);
    } else {
      const float scale = step_scale(as_f32(largest));
      *scales = scale;
      for (int half = 0; half < 2; ++half) {
        int32x4_t q[4];
        for (int i = 0; i < 4; ++i) {
          const float32x4_t quotient = vdivq_f32(vld1q_f32(x + 16 * half + 4 * i), vdupq_n_f32(scale));
          q[i] = vcvtq_s32_f32(vsubq_f32(vaddq_f32(quotient, magic), magic));
        }
        const int16x8_t a = vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]));
        const int16x8_t b = vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]));
        vst1q_s8(codes + 16 * half, vqtbl1q_s8(vcombine_s8(vmovn_s16(a), vmovn_s16(b)), vld1q_u8(kOrder)));
        sums[half] = static_cast<std::int16_t>(-vaddvq_s16(vaddq_s16(a, b)));
      }
    }
    x += kCodeStep;
    codes += tokens * kCodeStep;
    scales += tokens;
    sums += 2 * tokens;
  }
  quantize(x, n, tokens, codes, scales, sums);
}

}  // namespace

void install_codes_neon(CodeKernels& k, Features) noexcept {
  k.few_int8 = {few_int8, "neon"};
  k.few_f32 = {few_f32, "neon"};
  k.quantize = {quantize_steps, "neon"};
}

}  // namespace blockpack::kernels
