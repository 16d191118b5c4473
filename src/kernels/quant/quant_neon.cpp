// SPDX-License-Identifier: Apache-2.0
/// Quantization formats on Advanced SIMD: the algorithms of the AVX-512 file, sixteen weights a step in four registers.
/// Packing works on pairs of bytes and pairs of pairs, sixteen-entry tables are byte look-ups (tbl) of the upper half
/// of the value.
///
/// Shift counts are bytes to the instruction, so they are cut at 31; nothing is lost, mantissas have 24 bits.
/// Expected limit: two vector pipes; about 20 instructions per 4 weights to encode and 8 per 4 values to decode.

#include <arm_neon.h>

#include "kernels/quant/quant_kernels.hpp"

namespace blockpack::kernels {
namespace {

constexpr std::size_t kMaxBlock = 128;

// ---- codes, one a byte, to their packed form and back: sixteen codes, 2 * Bits bytes --------------------------------

inline uint8x16_t table16(std::uint64_t low, std::uint64_t high) noexcept {
  return vcombine_u8(vcreate_u8(low), vcreate_u8(high));
}

template <int Bits>
inline void pack16(uint8x16_t c, std::uint8_t* dst) noexcept {
  if constexpr (Bits == 8) {
    vst1q_u8(dst, c);
  } else if constexpr (Bits == 4) {
    vst1_u8(dst, vget_low_u8(vorrq_u8(vuzp1q_u8(c, c), vshlq_n_u8(vuzp2q_u8(c, c), 4))));
  } else if constexpr (Bits == 6) {
    const uint16x8_t pairs = vreinterpretq_u16_u8(c);  // c0 + 256 c1
    const uint32x4_t words = vreinterpretq_u32_u16(
        vorrq_u16(vandq_u16(pairs, vdupq_n_u16(0x3f)), vshrq_n_u16(vandq_u16(pairs, vdupq_n_u16(0x3f00)), 2)));
    const uint32x4_t triples =
        vorrq_u32(vandq_u32(words, vdupq_n_u32(0xfff)), vshrq_n_u32(vandq_u32(words, vdupq_n_u32(0x0fff0000)), 4));
    const uint8x16_t bytes =
        vqtbl1q_u8(vreinterpretq_u8_u32(triples), table16(0x0908060504020100u, 0xffffffff0e0d0c0au));
    vst1_u8(dst, vget_low_u8(bytes));
    const std::uint32_t last = vgetq_lane_u32(vreinterpretq_u32_u8(bytes), 2);
    __builtin_memcpy(dst + 8, &last, 4);
  } else {
    static_assert(Bits == 2);
    const uint16x8_t pairs = vreinterpretq_u16_u8(c);
    const uint32x4_t nibbles = vreinterpretq_u32_u16(
        vorrq_u16(vandq_u16(pairs, vdupq_n_u16(3)), vshrq_n_u16(vandq_u16(pairs, vdupq_n_u16(0x300)), 6)));
    const uint32x4_t bytes =
        vorrq_u32(vandq_u32(nibbles, vdupq_n_u32(15)), vshrq_n_u32(vandq_u32(nibbles, vdupq_n_u32(0xf0000)), 12));
    const uint16x4_t words = vmovn_u32(bytes);
    const std::uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
    __builtin_memcpy(dst, &four, 4);
  }
}

template <int Bits>
inline uint8x16_t unpack16(const std::uint8_t* src) noexcept {
  if constexpr (Bits == 8) {
    return vld1q_u8(src);
  } else if constexpr (Bits == 4) {
    const uint8x8_t pairs = vld1_u8(src);
    const uint8x8_t low = vand_u8(pairs, vdup_n_u8(15));
    const uint8x8_t high = vshr_n_u8(pairs, 4);
    return vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high));
  } else if constexpr (Bits == 6) {
    std::uint64_t first;
    std::uint32_t last;
    __builtin_memcpy(&first, src, 8);
    __builtin_memcpy(&last, src + 8, 4);
    const uint32x4_t t =
        vreinterpretq_u32_u8(vqtbl1q_u8(table16(first, last), table16(0xff050403ff020100u, 0xff0b0a09ff080706u)));
    const uint32x4_t low =
        vorrq_u32(vandq_u32(t, vdupq_n_u32(0x3f)), vandq_u32(vshlq_n_u32(t, 2), vdupq_n_u32(0x3f00)));
    const uint32x4_t high = vorrq_u32(vandq_u32(vshlq_n_u32(t, 4), vdupq_n_u32(0x3f0000)),
                                      vandq_u32(vshlq_n_u32(t, 6), vdupq_n_u32(0x3f000000)));
    return vreinterpretq_u8_u32(vorrq_u32(low, high));
  } else {
    static_assert(Bits == 2);
    std::uint32_t four;
    __builtin_memcpy(&four, src, 4);
    const uint8x8_t bytes = vcreate_u8(four);
    const uint8x8_t nibbles = vzip1_u8(vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8(bytes, 4));
    const uint8x8_t low = vand_u8(nibbles, vdup_n_u8(3));
    const uint8x8_t high = vshr_n_u8(nibbles, 2);
    return vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high));
  }
}

/// Sixteen numbers in [0, 255] to bytes in order.
struct Lanes {
  uint32x4_t v[4];
};
inline uint8x16_t to_bytes(const Lanes& l) noexcept {
  const uint16x8_t first = vcombine_u16(vmovn_u32(l.v[0]), vmovn_u32(l.v[1]));
  const uint16x8_t second = vcombine_u16(vmovn_u32(l.v[2]), vmovn_u32(l.v[3]));
  return vcombine_u8(vmovn_u16(first), vmovn_u16(second));
}
inline Lanes from_bytes(uint8x16_t c) noexcept {
  const uint16x8_t first = vmovl_u8(vget_low_u8(c));
  const uint16x8_t second = vmovl_u8(vget_high_u8(c));
  return {{vmovl_u16(vget_low_u16(first)), vmovl_u16(vget_high_u16(first)), vmovl_u16(vget_low_u16(second)),
           vmovl_u16(vget_high_u16(second))}};
}

// ---- encoding of shared-exponent blocks -----------------------------------------------------------------------------

inline uint32x4_t load_bits(const float* w) noexcept { return vreinterpretq_u32_f32(vld1q_f32(w)); }
inline uint32x4_t magnitude_of(uint32x4_t bits) noexcept { return vandq_u32(bits, vdupq_n_u32(0x7fffffffu)); }
inline int32x4_t exponent_of(uint32x4_t magnitude) noexcept {
  return vreinterpretq_s32_u32(vshrq_n_u32(magnitude, 23));
}
inline uint32x4_t mantissa_of(uint32x4_t magnitude) noexcept {
  return vorrq_u32(vandq_u32(magnitude, vdupq_n_u32(0x007fffffu)), vdupq_n_u32(0x00800000u));
}

inline std::uint32_t max_magnitude(const float* w, std::uint32_t n) noexcept {
  uint32x4_t top = magnitude_of(load_bits(w));
  for (std::uint32_t i = 4; i < n; i += 4) top = vmaxq_u32(top, magnitude_of(load_bits(w + i)));
  return vmaxvq_u32(top);
}

/// mantissa / 2^shift, half to even; 0 from shift 26 on. 1 <= shift <= 31.
inline uint32x4_t shift_half_even(uint32x4_t mantissa, int32x4_t shift) noexcept {
  const uint32x4_t one = vdupq_n_u32(1);
  const int32x4_t right = vnegq_s32(shift);
  const uint32x4_t odd = vandq_u32(vshlq_u32(mantissa, right), one);
  const uint32x4_t half_less_one = vsubq_u32(vshlq_u32(one, vsubq_s32(shift, vdupq_n_s32(1))), one);
  return vshlq_u32(vaddq_u32(vaddq_u32(mantissa, half_less_one), odd), right);
}

/// Codes of small floats in a block with scale byte `scale`.
struct SmallEncoder {
  int32x4_t mantissa_shift, tiny_shift, rebias, code_shift, sign_shift;
  uint32x4_t max_code, sign_bit;

  SmallEncoder(const BlockCode& f, std::uint32_t scale) noexcept {
    const int m = static_cast<int>(f.mantissa_bits);
    const int s = static_cast<int>(scale);
    const int bias = static_cast<int>(f.bias);
    mantissa_shift = vdupq_n_s32(23 - m);
    tiny_shift = vdupq_n_s32(24 - m - bias + s);
    rebias = vdupq_n_s32(bias - 1 - s);
    max_code = vdupq_n_u32(f.max_code);
    sign_bit = vdupq_n_u32(1u << (f.bits - 1));
    code_shift = vdupq_n_s32(m);
    sign_shift = vdupq_n_s32(static_cast<int>(f.bits) - 32);
  }
  uint32x4_t operator()(const float* w) const noexcept {
    const uint32x4_t bits = load_bits(w);
    const uint32x4_t magnitude = magnitude_of(bits);
    const int32x4_t exponent = exponent_of(magnitude);
    const int32x4_t shift = vminq_s32(vmaxq_s32(mantissa_shift, vsubq_s32(tiny_shift, exponent)), vdupq_n_s32(31));
    const int32x4_t base = vmaxq_s32(vaddq_s32(exponent, rebias), vdupq_n_s32(0));
    const uint32x4_t rounded = shift_half_even(mantissa_of(magnitude), shift);
    const uint32x4_t code = vaddq_u32(rounded, vshlq_u32(vreinterpretq_u32_s32(base), code_shift));
    return vorrq_u32(vminq_u32(code, max_code), vandq_u32(vshlq_u32(bits, sign_shift), sign_bit));
  }
};

/// Two's complement codes in a block with scale byte `scale`.
struct FixedEncoder {
  int32x4_t base_shift;
  uint32x4_t limit, mask, below_lowest;
  bool asymmetric;

  FixedEncoder(const BlockCode& f, std::uint32_t scale) noexcept {
    base_shift = vdupq_n_s32(static_cast<int>(scale - f.mantissa_bits) + 23);
    limit = vdupq_n_u32(f.max_code);
    mask = vdupq_n_u32((1u << f.bits) - 1);
    below_lowest = vdupq_n_u32(2 * f.max_code);
    asymmetric = f.asymmetric && scale < 254;  // at 254 it would be -2^128
  }
  uint32x4_t operator()(const float* w) const noexcept {
    const uint32x4_t bits = load_bits(w);
    const uint32x4_t magnitude = magnitude_of(bits);
    const int32x4_t shift = vminq_s32(vsubq_s32(base_shift, exponent_of(magnitude)), vdupq_n_s32(31));
    const uint32x4_t mantissa = mantissa_of(magnitude);
    const uint32x4_t negative = vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(bits), 31));
    uint32x4_t steps = vminq_u32(shift_half_even(mantissa, shift), limit);
    if (asymmetric) {  // one more where |v| is at least limit + 1/2 steps
      const uint32x4_t half_steps = vshlq_u32(mantissa, vsubq_s32(vdupq_n_s32(1), shift));
      steps = vsubq_u32(steps, vandq_u32(negative, vcgtq_u32(half_steps, below_lowest)));
    }
    return vandq_u32(vsubq_u32(veorq_u32(steps, negative), negative), mask);
  }
};

template <class Encoder, int Bits>
void encode_row(const float* w, std::size_t cols, const BlockCode& f, std::uint8_t* scales,
                std::uint8_t* codes) noexcept {
  float padded[kMaxBlock];
  for (std::size_t col = 0; col < cols; col += f.block, codes += f.block * Bits / 8) {
    const float* values = w + col;
    if (cols - col < f.block) {
      for (std::uint32_t i = 0; i < f.block; ++i) padded[i] = 0.0f;
      __builtin_memcpy(padded, values, (cols - col) * sizeof(float));
      values = padded;
    }
    const std::uint32_t top = max_magnitude(values, f.block);
    const std::uint32_t field = top >> 23;
    if (field < kFastExponentField || field == 255) {
      if (top == 0) {
        *scales++ = 0;
        for (std::uint32_t i = 0; i < f.block; i += 16) pack16<Bits>(vdupq_n_u8(0), codes + i * Bits / 8);
      } else {
        f.encode_block(f.self, values, scales++, codes);
      }
      continue;
    }
    std::uint32_t scale = field - f.max_exponent + ((top & 0x007fffffu) > f.max_fraction ? 1 : 0);
    scale = scale > 254 - f.max_exponent ? 254 - f.max_exponent : scale;
    *scales++ = static_cast<std::uint8_t>(scale);
    const Encoder encoder(f, scale);
    for (std::uint32_t i = 0; i < f.block; i += 16)
      pack16<Bits>(
          to_bytes({{encoder(values + i), encoder(values + i + 4), encoder(values + i + 8), encoder(values + i + 12)}}),
          codes + i * Bits / 8);
  }
}

void encode_small(const float* w, std::size_t cols, const BlockCode& f, std::uint8_t* scales,
                  std::uint8_t* codes) noexcept {
  if (f.bits == 4) return encode_row<SmallEncoder, 4>(w, cols, f, scales, codes);
  if (f.bits == 6) return encode_row<SmallEncoder, 6>(w, cols, f, scales, codes);
  encode_row<SmallEncoder, 8>(w, cols, f, scales, codes);
}
void encode_fixed(const float* w, std::size_t cols, const BlockCode& f, std::uint8_t* scales,
                  std::uint8_t* codes) noexcept {
  if (f.bits == 4) return encode_row<FixedEncoder, 4>(w, cols, f, scales, codes);
  if (f.bits == 6) return encode_row<FixedEncoder, 6>(w, cols, f, scales, codes);
  encode_row<FixedEncoder, 8>(w, cols, f, scales, codes);
}

// ---- decoding of shared-exponent blocks -----------------------------------------------------------------------------

struct Sixteen {
  float32x4_t v[4];
};
inline Sixteen times(const Lanes& bits, float factor) noexcept {
  Sixteen s;
  for (int i = 0; i < 4; ++i) s.v[i] = vmulq_n_f32(vreinterpretq_f32_u32(bits.v[i]), factor);
  return s;
}

/// Magnitude of a small float without special codes, as float32 bits; the lower 16 are zero.
inline std::uint32_t small_bits(const BlockCode& f, std::uint32_t code) noexcept {
  const std::uint32_t exponent = code >> f.mantissa_bits;
  const std::uint32_t mantissa = code & ((1u << f.mantissa_bits) - 1);
  if (exponent != 0) return ((exponent + 127 - f.bias) << 23) | (mantissa << (23 - f.mantissa_bits));
  const std::uint32_t unit_bits = (128 - f.bias - f.mantissa_bits) << 23;  // 2^(1 - bias - mantissa_bits)
  float unit;
  __builtin_memcpy(&unit, &unit_bits, 4);
  const float value = static_cast<float>(mantissa) * unit;
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

/// The values of sixteen codes as the upper halves of float32, one byte at a time.
struct UpperHalves {
  uint8x16_t high, low;
  UpperHalves(const BlockCode& f, std::uint32_t magnitude_mask, std::uint32_t sign_bit) noexcept {
    std::uint8_t h[16];
    std::uint8_t l[16];
    for (std::uint32_t i = 0; i < 16; ++i) {
      const std::uint32_t bits = small_bits(f, i & magnitude_mask) | ((i & sign_bit) != 0 ? 0x80000000u : 0u);
      h[i] = static_cast<std::uint8_t>(bits >> 24);
      l[i] = static_cast<std::uint8_t>(bits >> 16);
    }
    high = vld1q_u8(h);
    low = vld1q_u8(l);
  }
  Lanes operator()(uint8x16_t codes) const noexcept {
    const uint8x16_t h = vqtbl1q_u8(high, codes);
    const uint8x16_t l = vqtbl1q_u8(low, codes);
    const uint16x8_t first = vreinterpretq_u16_u8(vzip1q_u8(l, h));
    const uint16x8_t second = vreinterpretq_u16_u8(vzip2q_u8(l, h));
    return {{vshll_n_u16(vget_low_u16(first), 16), vshll_n_u16(vget_high_u16(first), 16),
             vshll_n_u16(vget_low_u16(second), 16), vshll_n_u16(vget_high_u16(second), 16)}};
  }
};

/// 4-bit small floats.
struct SmallNibbles {
  static constexpr int kBits = 4;
  UpperHalves values16;
  float factor = 1.0f;
  explicit SmallNibbles(const BlockCode& f) noexcept : values16(f, 7, 8) {}
  Sixteen values(const std::uint8_t* codes) const noexcept { return times(values16(unpack16<4>(codes)), factor); }
};

/// 6- and 8-bit small floats: exponent and mantissa moved into place, subnormals from a table.
template <int Bits>
struct SmallBits {
  static constexpr int kBits = Bits;
  UpperHalves subnormals;
  uint32x4_t rebias, subnormal_end, max_code, infinity_code;
  int32x4_t shift;
  float factor = 1.0f;
  explicit SmallBits(const BlockCode& f) noexcept : subnormals(f, (1u << f.mantissa_bits) - 1, 0) {
    shift = vdupq_n_s32(static_cast<int>(23 - f.mantissa_bits));
    rebias = vdupq_n_u32((127 - f.bias) << 23);
    subnormal_end = vdupq_n_u32(1u << f.mantissa_bits);
    max_code = vdupq_n_u32(f.max_code);
    infinity_code = vdupq_n_u32(f.infinity_code);
  }
  Sixteen values(const std::uint8_t* codes) const noexcept {
    const uint8x16_t c = unpack16<Bits>(codes);
    const uint8x16_t magnitudes = vandq_u8(c, vdupq_n_u8((1u << (Bits - 1)) - 1));
    const Lanes small = subnormals(magnitudes);
    const Lanes magnitude = from_bytes(magnitudes);
    const Lanes sign = from_bytes(vandq_u8(c, vdupq_n_u8(1u << (Bits - 1))));
    Lanes v;
    for (int i = 0; i < 4; ++i) {
      const uint32x4_t m = magnitude.v[i];
      uint32x4_t bits = vaddq_u32(vshlq_u32(m, shift), rebias);
      bits = vbslq_u32(vcgtq_u32(subnormal_end, m), small.v[i], bits);
      if constexpr (Bits == 8) {
        bits = vbslq_u32(vcgtq_u32(m, max_code), vdupq_n_u32(0x7fc00000u), bits);
        bits = vbslq_u32(vceqq_u32(m, infinity_code), vdupq_n_u32(0x7f800000u), bits);
      }
      v.v[i] = vorrq_u32(bits, vshlq_n_u32(sign.v[i], 32 - Bits));
    }
    return times(v, factor);
  }
};

/// Two's complement codes.
template <int Bits>
struct FixedBits {
  static constexpr int kBits = Bits;
  float factor = 1.0f;
  explicit FixedBits(const BlockCode&) noexcept {}
  Sixteen values(const std::uint8_t* codes) const noexcept {
    const int8x16_t c = vreinterpretq_s8_u8(vshlq_n_u8(unpack16<Bits>(codes), 8 - Bits));
    const int16x8_t first = vmovl_s8(vget_low_s8(c));
    const int16x8_t second = vmovl_s8(vget_high_s8(c));
    const int32x4_t wide[4] = {vmovl_s16(vget_low_s16(first)), vmovl_s16(vget_high_s16(first)),
                               vmovl_s16(vget_low_s16(second)), vmovl_s16(vget_high_s16(second))};
    Sixteen s;
    for (int i = 0; i < 4; ++i) s.v[i] = vmulq_n_f32(vcvtq_f32_s32(shift_down(wide[i])), factor);
    return s;
  }
  static int32x4_t shift_down(int32x4_t v) noexcept {
    if constexpr (Bits == 8) {
      return v;
    } else {
      return vshrq_n_s32(v, 8 - Bits);
    }
  }
};

inline void store(float* dst, const Sixteen& s, bool) noexcept {
  for (int i = 0; i < 4; ++i) vst1q_f32(dst + 4 * i, s.v[i]);
}
inline uint16x4_t upper_half(float32x4_t v, bool exact) noexcept {
  uint32x4_t bits = vreinterpretq_u32_f32(v);
  if (!exact) {  // half to even; NaN stays one
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    bits = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fffu)));
  }
  return vshrn_n_u32(bits, 16);
}
inline void store(std::uint16_t* dst, const Sixteen& s, bool exact) noexcept {
  vst1q_u16(dst, vcombine_u16(upper_half(s.v[0], exact), upper_half(s.v[1], exact)));
  vst1q_u16(dst + 8, vcombine_u16(upper_half(s.v[2], exact), upper_half(s.v[3], exact)));
}

template <class Decoder, class T>
void decode_row(const std::uint8_t* scales, const std::uint8_t* codes, std::size_t count, const BlockCode& f,
                T* dst) noexcept {
  constexpr std::size_t kBytes = 2 * Decoder::kBits;
  const float32x4_t nan = vreinterpretq_f32_u32(vdupq_n_u32(0x7fc00000u));
  Decoder decoder(f);
  for (std::size_t col = 0; col < count; col += f.block) {
    const std::uint8_t scale = *scales++;
    const std::size_t n = count - col < f.block ? count - col : f.block;
    const bool exact = scale >= kExactBf16Scale;
    decoder.factor = f.factors[scale];
    for (std::size_t i = 0; i < n; i += 16) {
      const Sixteen v = scale == 255 ? Sixteen{{nan, nan, nan, nan}} : decoder.values(codes + i / 16 * kBytes);
      if (n - i >= 16) {
        store(dst + col + i, v, exact);
      } else {
        T rest[16];
        store(rest, v, exact);
        __builtin_memcpy(dst + col + i, rest, (n - i) * sizeof(T));
      }
    }
    codes += f.block / 16 * kBytes;
  }
}

template <class T>
void decode_small(const std::uint8_t* scales, const std::uint8_t* codes, std::size_t count, const BlockCode& f,
                  T* dst) noexcept {
  if (f.bits == 4) return decode_row<SmallNibbles>(scales, codes, count, f, dst);
  if (f.bits == 6) return decode_row<SmallBits<6>>(scales, codes, count, f, dst);
  decode_row<SmallBits<8>>(scales, codes, count, f, dst);
}
template <class T>
void decode_fixed(const std::uint8_t* scales, const std::uint8_t* codes, std::size_t count, const BlockCode& f,
                  T* dst) noexcept {
  if (f.bits == 4) return decode_row<FixedBits<4>>(scales, codes, count, f, dst);
  if (f.bits == 6) return decode_row<FixedBits<6>>(scales, codes, count, f, dst);
  decode_row<FixedBits<8>>(scales, codes, count, f, dst);
}

// ---- groups of integers ---------------------------------------------------------------------------------------------

// a where a < b, else b, and the other way round: what comparisons say about NaN and zeros of either sign.
inline float32x4_t smaller(float32x4_t a, float32x4_t b) noexcept { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline float32x4_t larger(float32x4_t a, float32x4_t b) noexcept { return vbslq_f32(vcgtq_f32(a, b), a, b); }

void group_range(const float* w, std::size_t n, float* low, float* high) noexcept {
  float32x4_t least = vdupq_n_f32(0.0f);
  float32x4_t most = vdupq_n_f32(0.0f);
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const float32x4_t v = vld1q_f32(w + i);
    least = smaller(v, least);
    most = larger(v, most);
  }
  float a[4];
  float b[4];
  vst1q_f32(a, least);
  vst1q_f32(b, most);
  for (int j = 1; j < 4; ++j) {
    a[0] = a[j] < a[0] ? a[j] : a[0];
    b[0] = b[j] > b[0] ? b[j] : b[0];
  }
  for (; i < n; ++i) {
    a[0] = w[i] < a[0] ? w[i] : a[0];
    b[0] = w[i] > b[0] ? w[i] : b[0];
  }
  *low = a[0];
  *high = b[0];
}

struct GroupEncoder {
  float32x4_t scale, zero, low, high;
  explicit GroupEncoder(const GroupCode& g) noexcept
      : scale(vdupq_n_f32(g.scale)), zero(vdupq_n_f32(g.zero)), low(vdupq_n_f32(g.low)), high(vdupq_n_f32(g.high)) {}
  uint32x4_t four(const float* w) const noexcept {
    const float32x4_t q = vaddq_f32(vrndnq_f32(vdivq_f32(vld1q_f32(w), scale)), zero);
    return vcvtq_u32_f32(smaller(larger(q, low), high));
  }
  uint8x16_t sixteen(const float* w) const noexcept {
    return to_bytes({{four(w), four(w + 4), four(w + 8), four(w + 12)}});
  }
};

inline uint8x16_t bit_of_lane() noexcept { return table16(0x8040201008040201u, 0x8040201008040201u); }

/// Bit `plane` of sixteen codes, the first in the lowest bit.
inline std::uint16_t plane_of(uint8x16_t codes, int plane) noexcept {
  const uint8x16_t set = vandq_u8(vtstq_u8(codes, vdupq_n_u8(static_cast<std::uint8_t>(1 << plane))), bit_of_lane());
  return static_cast<std::uint16_t>(vaddv_u8(vget_low_u8(set)) | vaddv_u8(vget_high_u8(set)) << 8);
}

/// Stores 32 codes: 4 * Bits bytes.
template <int Bits>
inline void store_codes32(uint8x16_t first, uint8x16_t second, std::uint8_t* dst) noexcept {
  if constexpr (Bits == 3) {
    for (int plane = 0; plane < 3; ++plane) {
      const std::uint16_t halves[2] = {plane_of(first, plane), plane_of(second, plane)};
      __builtin_memcpy(dst + 4 * plane, halves, 4);
    }
  } else {
    pack16<Bits>(first, dst);
    pack16<Bits>(second, dst + 2 * Bits);
  }
}

template <int Bits>
void encode_codes(const float* w, std::size_t n, const GroupCode& g, std::uint8_t* codes) noexcept {
  const GroupEncoder encoder(g);
  std::size_t i = 0;
  for (; i + 32 <= n; i += 32, codes += 4 * Bits)
    store_codes32<Bits>(encoder.sixteen(w + i), encoder.sixteen(w + i + 16), codes);
  if (i == n) return;
  float rest[32] = {};
  std::uint8_t packed[4 * Bits];
  __builtin_memcpy(rest, w + i, (n - i) * sizeof(float));
  store_codes32<Bits>(encoder.sixteen(rest), encoder.sixteen(rest + 16), packed);
  __builtin_memcpy(codes, packed, Bits == 3 ? 12 : ((n - i) * Bits + 7) / 8);
}

void group_encode(const float* w, std::size_t n, const GroupCode& g, std::uint8_t* codes) noexcept {
  if (g.bits == 2) return encode_codes<2>(w, n, g, codes);
  if (g.bits == 3) return encode_codes<3>(w, n, g, codes);
  if (g.bits == 4) return encode_codes<4>(w, n, g, codes);
  encode_codes<8>(w, n, g, codes);
}

/// Sixteen codes, one a byte: half H (0 or 1) of the 32 at `codes`.
template <int Bits, int H>
inline uint8x16_t unpack_half(const std::uint8_t* codes) noexcept {
  if constexpr (Bits == 3) {
    uint8x16_t c = vdupq_n_u8(0);
    for (int plane = 0; plane < 3; ++plane) {
      const std::uint8_t* p = codes + 4 * plane + 2 * H;
      const uint8x16_t set = vtstq_u8(vcombine_u8(vdup_n_u8(p[0]), vdup_n_u8(p[1])), bit_of_lane());
      c = vorrq_u8(c, vandq_u8(set, vdupq_n_u8(static_cast<std::uint8_t>(1 << plane))));
    }
    return c;
  } else {
    return unpack16<Bits>(codes + 2 * Bits * H);
  }
}

struct GroupDecoder {
  float scale;
  int32x4_t zero;
  explicit GroupDecoder(const GroupCode& g) noexcept
      : scale(g.scale), zero(vdupq_n_s32(static_cast<std::int32_t>(g.zero))) {}
  Sixteen operator()(uint8x16_t codes) const noexcept {
    const Lanes c = from_bytes(codes);
    Sixteen s;
    for (int i = 0; i < 4; ++i)
      s.v[i] = vmulq_n_f32(vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(c.v[i]), zero)), scale);
    return s;
  }
};

template <int Bits>
void decode_codes(const std::uint8_t* codes, std::size_t n, const GroupCode& g, float* dst) noexcept {
  const GroupDecoder decoder(g);
  std::size_t i = 0;
  for (; i + 32 <= n; i += 32, codes += 4 * Bits) {
    store(dst + i, decoder(unpack_half<Bits, 0>(codes)), true);
    store(dst + i + 16, decoder(unpack_half<Bits, 1>(codes)), true);
  }
  if (i == n) return;
  std::uint8_t rest[4 * Bits] = {};
  float values[32];
  __builtin_memcpy(rest, codes, Bits == 3 ? 12 : ((n - i) * Bits + 7) / 8);
  store(values, decoder(unpack_half<Bits, 0>(rest)), true);
  store(values + 16, decoder(unpack_half<Bits, 1>(rest)), true);
  __builtin_memcpy(dst + i, values, (n - i) * sizeof(float));
}

void group_decode(const std::uint8_t* codes, std::size_t n, const GroupCode& g, float* dst) noexcept {
  if (g.bits == 2) return decode_codes<2>(codes, n, g, dst);
  if (g.bits == 3) return decode_codes<3>(codes, n, g, dst);
  if (g.bits == 4) return decode_codes<4>(codes, n, g, dst);
  decode_codes<8>(codes, n, g, dst);
}

}  // namespace

void install_quant_neon(QuantKernels& t, Features) noexcept {
  t.encode_small = {encode_small, "neon"};
  t.encode_fixed = {encode_fixed, "neon"};
  t.decode_f32_small = {decode_small<float>, "neon"};
  t.decode_f32_fixed = {decode_fixed<float>, "neon"};
  t.decode_bf16_small = {decode_small<std::uint16_t>, "neon"};
  t.decode_bf16_fixed = {decode_fixed<std::uint16_t>, "neon"};
  t.group_range = {group_range, "neon"};
  t.group_encode = {group_encode, "neon"};
  t.group_decode = {group_decode, "neon"};
  install_table_neon(t);
  install_gram_neon(t);
}

}  // namespace blockpack::kernels
