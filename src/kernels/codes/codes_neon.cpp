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
/// codes_avx512.cpp). Codes that are floats of 6 or 8 bits are shifted to the places of a float's parts and multiplied
/// by the power of two between the biases; a table of 16 floats is looked up byte by byte.
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

/// The values of codes that are floats: those of 4 rows in byte `place` of all lanes. Nothing for other widths.
template <int Bits>
struct SmallFloat {
  explicit SmallFloat(const CodeProduct&) {}
  static vf value(int32x4_t, int) { return splat_v(0.0f); }
};
template <int Bits>
requires(Bits == 6 || Bits == 8) struct SmallFloat<Bits> {
  explicit SmallFloat(const CodeProduct& p)
      : right(vdupq_n_s32(-(9 - Bits + p.mantissa_bits))),
        parts(vdupq_n_u32(0x80000000u | ((1u << (Bits - 1)) - 1) << (23 - p.mantissa_bits))),
        bias(vreinterpretq_f32_u32(vdupq_n_u32((254u - (1u << (Bits - 2 - p.mantissa_bits)) + 1u) << 23))),
        beyond(vdupq_n_u32(Bits == 6              ? 0x7fffffffu
                           : p.mantissa_bits == 2 ? (31u << 23) - 1
                                                  : (15u << 23 | 6u << 20))) {}
  int32x4_t right;    ///< from the top of a lane to the place of a float's exponent
  uint32x4_t parts;   ///< mask of sign and magnitude there
  vf bias;            ///< 2 to the difference of the biases
  uint32x4_t beyond;  ///< larger magnitudes are infinity or NaN

  vf value(int32x4_t codes, int place) const {
    const int32x4_t top = vshlq_s32(codes, vdupq_n_s32(32 - Bits - 8 * place));
    const uint32x4_t bits = vandq_u32(vreinterpretq_u32_s32(vshlq_s32(top, right)), parts);
    const vf v = vmulq_f32(vreinterpretq_f32_u32(bits), bias);
    if (Bits == 6) return v;
    const uint32x4_t is_beyond = vcgtq_u32(vandq_u32(bits, vdupq_n_u32(0x7fffffffu)), beyond);
    return vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(v), vandq_u32(is_beyond, vdupq_n_u32(0x7f800000u))));
  }
};
template <>
struct SmallFloat<4> {
  explicit SmallFloat(const CodeProduct& p) : values(vld1q_u8_x4(reinterpret_cast<const std::uint8_t*>(p.values))) {}
  uint8x16x4_t values;

  vf value(int32x4_t codes, int place) const {
    const uint32x4_t moved = vshlq_u32(vreinterpretq_u32_s32(codes), vdupq_n_s32(-8 * place));
    const uint32x4_t code = vandq_u32(moved, vdupq_n_u32(15));
    const uint32x4_t bytes = vmlaq_n_u32(vdupq_n_u32(0x03020100u), code, 0x04040404u);
    return vreinterpretq_f32_u8(vqtbl4q_u8(values, vreinterpretq_u8_u32(bytes)));
  }
};

/// The multiply-adds of one step. Affine: weights get their scale and minimum before they are multiplied, as they would
/// be decoded; otherwise sums get the scale. Halves: two groups of 16 in a step. Small: codes are floats.
template <int Bits, bool Affine, bool Halves, bool Small>
struct FloatDots : DotsWithGroups<FloatDots<Bits, Affine, Halves, Small>> {
  static constexpr std::ptrdiff_t kStepBytes = code_step_bytes(Bits);
  static constexpr bool kHalves = Halves;

  explicit FloatDots(const CodeProduct& p) : levels(vld1q_s8(p.levels)), element(p) {}
  int8x16_t levels;
  SmallFloat<Small ? Bits : 0> element;

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
      for (int r = 0; r < R; ++r)
        bytes[r] = Small ? vreinterpretq_s32_u8(quad_codes<Bits>(w, q, part + r))
                         : vreinterpretq_s32_s8(quad_values<Bits>(w, q, part + r, levels));
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        const int k = q / 2 * 8 + kCodeOrder[q % 2 * 4 + b];
        vf weight[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          if (Small) {
            weight[r] = element.value(bytes[r], b);
            continue;
          }
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
