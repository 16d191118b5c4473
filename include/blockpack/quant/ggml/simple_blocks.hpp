// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The blocks of ggml without a second level of scales: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4, NVFP4 and the
/// ternary TQ1_0 and TQ2_0. One whole block at a time; the codes follow from the float32 scale, a decoder uses the
/// stored one.
///
/// Source: the algorithms of ggml-org/ggml at d99724f (ggml-quants.c).

#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>

#include "blockpack/core/config.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/core/strict.hpp"
#include "blockpack/quant/ggml/blocks.hpp"
#include "blockpack/quant/ggml/search.hpp"

namespace blockpack::inline BLOCKPACK_ABI::ggml {

/// One block to encode. `encode` functions return whether every scale fitted into fp16; one that did not is stored as
/// ±65504 and the codes follow from that.
struct BlockInput {
  std::span<const float> x;           ///< the whole block, within low and high of its type
  const float* importance = nullptr;  ///< as many, or null
  float row_mean_square = 0.0f;       ///< Σ x² / n of the whole row; Q4_0 to Q5_1 with importance read it
};

/// Stores a scale; what does not fit becomes ±65504. Returns whether it fitted.
inline bool store_scale(float& scale, Half& dst) noexcept {
  fp16 half(scale);
  const bool fits = (half.bits & 0x7fffu) < 0x7c00u;
  if (!fits) {
    scale = scale < 0.0f ? -detail::kFp16Max : detail::kFp16Max;
    half = fp16(scale);
  }
  dst.set_bits(half.bits);
  return fits;
}
/// Two of them.
inline bool store_scales(float& scale, Half& d, float& min, Half& dmin) noexcept {
  const bool fits = store_scale(scale, d);
  return store_scale(min, dmin) && fits;
}
inline bool is_zero(const Half& h) noexcept { return (h.bits() & 0x7fffu) == 0; }
/// 1 / scale, or 0 when the stored scale is 0: the codes are then those of 0.
inline float inverse_of(float scale, const Half& stored) noexcept { return is_zero(stored) ? 0.0f : 1.0f / scale; }

inline float largest_magnitude(std::span<const float> x) noexcept {
  float top = 0.0f;
  for (const float v : x) top = std::fabs(v) > top ? std::fabs(v) : top;
  return top;
}

/// 32 codes of 4 bits: elements j and j + 16 share byte j.
inline void pack_nibbles(const std::uint8_t* codes, std::uint8_t* qs) noexcept {
  for (std::size_t j = 0; j < 16; ++j) qs[j] = static_cast<std::uint8_t>((codes[j] & 15) | ((codes[j + 16] & 15) << 4));
}
inline void unpack_nibbles(const std::uint8_t* qs, std::uint8_t* codes) noexcept {
  for (std::size_t j = 0; j < 16; ++j) {
    codes[j] = qs[j] & 15;
    codes[j + 16] = static_cast<std::uint8_t>(qs[j] >> 4);
  }
}
/// Bit 4 of 32 codes.
inline void pack_fifth_bits(const std::uint8_t* codes, std::uint8_t* qh) noexcept {
  for (std::size_t b = 0; b < 4; ++b) {
    int byte = 0;
    for (std::size_t j = 0; j < 8; ++j) byte |= ((codes[8 * b + j] >> 4) & 1) << j;
    qh[b] = static_cast<std::uint8_t>(byte);
  }
}
inline void unpack_fifth_bits(const std::uint8_t* qh, std::uint8_t* codes) noexcept {
  for (std::size_t j = 0; j < 32; ++j)
    codes[j] = static_cast<std::uint8_t>(codes[j] | (((qh[j / 8] >> (j % 8)) & 1) << 4));
}

namespace simple {

/// Codes around half = 8 or 16 with the scale m / -half: Q4_0 and Q5_0.
inline bool symmetric_codes(const BlockInput& in, int half, Half& d, std::uint8_t* codes) noexcept {
  const auto levels = static_cast<float>(half);
  if (in.importance != nullptr) {
    float w[32] = {};
    importance_weights(in.x, in.importance, in.row_mean_square, w);
    float scale = fit_symmetric(in.x, w, half, codes);
    if (std::isfinite(scale)) {
      const bool fits = store_scale(scale, d);
      if (!fits || is_zero(d))
        for (std::size_t i = 0; i < 32; ++i)
          codes[i] = static_cast<std::uint8_t>(
              half + nearest_clipped(strict_mul(in.x[i], inverse_of(scale, d)), -half, half - 1));
      return fits;
    }
  }
  float scale = signed_max(in.x) / -levels;
  const bool fits = store_scale(scale, d);
  const float inverse = inverse_of(scale, d);
  for (std::size_t i = 0; i < 32; ++i) {
    const int q = static_cast<int>(strict_mul(in.x[i], inverse) + (levels + 0.5f));  // >= 0: truncation rounds
    codes[i] = static_cast<std::uint8_t>(q < 2 * half - 1 ? q : 2 * half - 1);
  }
  return fits;
}

/// Codes 0 … max_code above a stored minimum: Q4_1 and Q5_1.
inline bool codes_above_min(const BlockInput& in, int max_code, Half& d, Half& min, std::uint8_t* codes) noexcept {
  if (in.importance != nullptr) {
    float w[32] = {};
    importance_weights(in.x, in.importance, in.row_mean_square, w);
    const ScaleMin fit = fit_scale_min(in.x, w, max_code, {-0.9f, 0.05f, 36, false}, codes);
    float scale = fit.scale;
    float low = -fit.min;
    if (std::isfinite(scale) && std::isfinite(low)) {
      const bool fits = store_scales(scale, d, low, min);
      if (!fits || is_zero(d))
        for (std::size_t i = 0; i < 32; ++i)
          codes[i] =
              static_cast<std::uint8_t>(nearest_clipped(strict_mul(in.x[i] - low, inverse_of(scale, d)), 0, max_code));
      return fits;
    }
  }
  float low = in.x[0];
  float high = in.x[0];
  for (const float v : in.x) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  float scale = (high - low) / static_cast<float>(max_code);
  const bool fits = store_scales(scale, d, low, min);
  const float inverse = inverse_of(scale, d);
  for (std::size_t i = 0; i < 32; ++i) {
    const int q = static_cast<int>(strict_mul(in.x[i] - low, inverse) + 0.5f);
    codes[i] = static_cast<std::uint8_t>(q < max_code ? q : max_code);
  }
  return fits;
}

/// E2M1 code of x under the scale: the nearest one, the smaller magnitude on a tie; what rounds to 0 has no sign.
inline std::uint8_t e2m1_code(float x, float scale) noexcept {
  constexpr float kMiddles[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  const float magnitude = std::fabs(x);
  std::uint8_t code = 0;
  if (scale != 0.0f)
    for (const float middle : kMiddles) code = static_cast<std::uint8_t>(code + (magnitude > middle * scale));  // exact
  return static_cast<std::uint8_t>(code != 0 && x < 0.0f ? code + 8 : code);
}
/// The value of an E2M1 code under half the scale.
inline float e2m1_value(int code, float half_scale) noexcept {
  return static_cast<float>(kE2m1Doubled[code]) * half_scale;
}

/// Unsigned E4M3, half up; 448 at most, 0 for what rounds below 2^-9.
inline std::uint8_t ue4m3_code(float v) noexcept {
  if (!(v > 0.0f)) return 0;
  if (v >= 448.0f) return 0x7e;
  if (v < 0x1p-6f) {
    const int code = static_cast<int>(v * 512.0f + 0.5f);  // the product is exact
    return static_cast<std::uint8_t>(code < 7 ? code : 7);
  }
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(v);
  const std::uint32_t code = (bits >> 20) + ((bits >> 19) & 1) - (120u << 3);  // exponent bias 127 to 7
  return static_cast<std::uint8_t>(code < 0x7e ? code : 0x7e);
}
/// Its value; 0 for the code of NaN, 0x7f. The eighth bit is ignored.
inline float ue4m3_value(std::uint8_t code) noexcept {
  if (code == 0x7f) return 0.0f;
  const int exponent = (code >> 3) & 15;
  const auto fraction = static_cast<float>(code & 7);
  return exponent == 0 ? fraction * 0x1p-9f : (8.0f + fraction) * exp2i(exponent - 10);
}

/// round_half_away(x * inverse) + 1 with |x * inverse| <= 1 up to rounding.
inline int ternary_digit(float x, float inverse) noexcept {
  const float v = strict_mul(x, inverse);
  return 1 + (v >= 0.5f) - (v <= -0.5f);
}
/// The element of digit `digit` (0 the most significant) of byte `byte` of a TQ1_0 block, qs before qh.
constexpr std::size_t tq1_element(std::size_t byte, std::size_t digit) noexcept {
  if (byte < 32) return 32 * digit + byte;
  if (byte < 48) return 160 + 16 * digit + (byte - 32);
  return 240 + 4 * digit + (byte - 48);
}

}  // namespace simple

inline bool encode(const BlockInput& in, Q4_0& b) noexcept {
  std::uint8_t codes[32];
  const bool fits = simple::symmetric_codes(in, 8, b.d, codes);
  pack_nibbles(codes, b.qs);
  return fits;
}
inline bool encode(const BlockInput& in, Q5_0& b) noexcept {
  std::uint8_t codes[32];
  const bool fits = simple::symmetric_codes(in, 16, b.d, codes);
  pack_nibbles(codes, b.qs);
  pack_fifth_bits(codes, b.qh);
  return fits;
}
inline bool encode(const BlockInput& in, Q4_1& b) noexcept {
  std::uint8_t codes[32];
  const bool fits = simple::codes_above_min(in, 15, b.d, b.min, codes);
  pack_nibbles(codes, b.qs);
  return fits;
}
inline bool encode(const BlockInput& in, Q5_1& b) noexcept {
  std::uint8_t codes[32];
  const bool fits = simple::codes_above_min(in, 31, b.d, b.min, codes);
  pack_nibbles(codes, b.qs);
  pack_fifth_bits(codes, b.qh);
  return fits;
}
inline bool encode(const BlockInput& in, Q8_0& b) noexcept {
  float scale = largest_magnitude(in.x) / 127.0f;
  const bool fits = store_scale(scale, b.d);
  const float inverse = inverse_of(scale, b.d);
  for (std::size_t i = 0; i < 32; ++i)
    b.qs[i] = static_cast<std::int8_t>(round_half_away(strict_mul(in.x[i], inverse)));
  return fits;
}
/// With importance 16 scales are tried and the codes follow from the best one. Without, the codes are those of the
/// scale m / -127, and the scale is then fitted to them: the codes are not taken again.
inline bool encode(const BlockInput& in, Iq4Nl& b) noexcept {
  const float m = signed_max(in.x);
  float scale = 0.0f;
  float inverse = 0.0f;
  bool searched = false;
  if (std::fabs(m) >= kZeroBlock) {
    float w[32] = {};
    if (in.importance != nullptr) {
      importance_weights(in.x, in.importance, strict_mul(sum_of_squares(in.x), 2.0f / 32.0f), w);
      scale = fit_iq4(in.x, w, m);
      searched = std::isfinite(scale);
    }
    if (!searched) {
      for (std::size_t i = 0; i < 32; ++i) w[i] = strict_mul(in.x[i], in.x[i]);
      inverse = 1.0f / (m / static_cast<float>(kIq4Levels[0]));
      scale = iq4_sums(in.x, w, inverse).scale();
    }
  }
  const bool fits = store_scale(scale, b.d);
  if (searched || !fits || is_zero(b.d)) inverse = inverse_of(scale, b.d);
  std::uint8_t codes[32];
  for (std::size_t i = 0; i < 32; ++i) codes[i] = nearest_iq4(strict_mul(inverse, in.x[i]));
  pack_nibbles(codes, b.qs);
  return fits;
}
inline bool encode(const BlockInput& in, Mxfp4& b) noexcept {
  const float top = largest_magnitude(in.x);
  const int e = top == 0.0f ? 0 : floor_log2(top) - 2 + 127;
  b.e = static_cast<std::uint8_t>(e > 0 ? e : 0);
  const float scale = exp2i(int{b.e} - 127);
  std::uint8_t codes[32];
  for (std::size_t i = 0; i < 32; ++i) codes[i] = simple::e2m1_code(in.x[i], scale);
  pack_nibbles(codes, b.qs);
  return true;
}
inline bool encode(const BlockInput& in, Nvfp4& b) noexcept {
  for (std::size_t s = 0; s < 4; ++s) {
    const std::span<const float> x = in.x.subspan(16 * s, 16);
    b.d[s] = simple::ue4m3_code(largest_magnitude(x) / 6.0f);
    const float scale = simple::ue4m3_value(b.d[s]);
    for (std::size_t j = 0; j < 8; ++j)
      b.qs[8 * s + j] =
          static_cast<std::uint8_t>(simple::e2m1_code(x[j], scale) | (simple::e2m1_code(x[8 + j], scale) << 4));
  }
  return true;
}
inline bool encode(const BlockInput& in, Tq2_0& b) noexcept {
  float scale = largest_magnitude(in.x);
  const bool fits = store_scale(scale, b.d);
  const float inverse = inverse_of(scale, b.d);
  for (std::size_t i = 0; i < 64; ++i) {
    int byte = 0;
    for (std::size_t n = 0; n < 4; ++n)
      byte |= simple::ternary_digit(in.x[i / 32 * 128 + 32 * n + i % 32], inverse) << (2 * n);
    b.qs[i] = static_cast<std::uint8_t>(byte);
  }
  return fits;
}
inline bool encode(const BlockInput& in, Tq1_0& b) noexcept {
  float scale = largest_magnitude(in.x);
  const bool fits = store_scale(scale, b.d);
  const float inverse = inverse_of(scale, b.d);
  for (std::size_t i = 0; i < 52; ++i) {
    int v = 0;
    for (std::size_t n = 0; n < 5; ++n)
      v = 3 * v + (i < 48 || n < 4 ? simple::ternary_digit(in.x[simple::tq1_element(i, n)], inverse) : 0);
    (i < 48 ? b.qs[i] : b.qh[i - 48]) = static_cast<std::uint8_t>((256 * v + 242) / 243);
  }
  return fits;
}

inline void decode(const Q4_0& b, float* dst) noexcept {
  std::uint8_t codes[32];
  unpack_nibbles(b.qs, codes);
  for (std::size_t i = 0; i < 32; ++i) dst[i] = b.d.value() * static_cast<float>(codes[i] - 8);
}
inline void decode(const Q5_0& b, float* dst) noexcept {
  std::uint8_t codes[32];
  unpack_nibbles(b.qs, codes);
  unpack_fifth_bits(b.qh, codes);
  for (std::size_t i = 0; i < 32; ++i) dst[i] = b.d.value() * static_cast<float>(codes[i] - 16);
}
inline void decode(const Q4_1& b, float* dst) noexcept {
  std::uint8_t codes[32];
  unpack_nibbles(b.qs, codes);
  for (std::size_t i = 0; i < 32; ++i) dst[i] = strict_mul(b.d.value(), static_cast<float>(codes[i])) + b.min.value();
}
inline void decode(const Q5_1& b, float* dst) noexcept {
  std::uint8_t codes[32];
  unpack_nibbles(b.qs, codes);
  unpack_fifth_bits(b.qh, codes);
  for (std::size_t i = 0; i < 32; ++i) dst[i] = strict_mul(b.d.value(), static_cast<float>(codes[i])) + b.min.value();
}
inline void decode(const Q8_0& b, float* dst) noexcept {
  for (std::size_t i = 0; i < 32; ++i) dst[i] = b.d.value() * static_cast<float>(b.qs[i]);
}
inline void decode(const Iq4Nl& b, float* dst) noexcept {
  std::uint8_t codes[32];
  unpack_nibbles(b.qs, codes);
  for (std::size_t i = 0; i < 32; ++i) dst[i] = b.d.value() * static_cast<float>(kIq4Levels[codes[i]]);
}
/// Byte 255 is 2^128, of which half is a float: no NaN.
inline void decode(const Mxfp4& b, float* dst) noexcept {
  const float half_scale = exp2i(int{b.e} - 128);
  std::uint8_t codes[32];
  unpack_nibbles(b.qs, codes);
  for (std::size_t i = 0; i < 32; ++i) dst[i] = simple::e2m1_value(codes[i], half_scale);
}
inline void decode(const Nvfp4& b, float* dst) noexcept {
  for (std::size_t s = 0; s < 4; ++s) {
    const float half_scale = 0.5f * simple::ue4m3_value(b.d[s]);
    for (std::size_t j = 0; j < 8; ++j) {
      dst[16 * s + j] = simple::e2m1_value(b.qs[8 * s + j] & 15, half_scale);
      dst[16 * s + 8 + j] = simple::e2m1_value(b.qs[8 * s + j] >> 4, half_scale);
    }
  }
}
inline void decode(const Tq2_0& b, float* dst) noexcept {
  for (std::size_t i = 0; i < 256; ++i) {
    const int digit = (b.qs[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32))) & 3;
    dst[i] = static_cast<float>(digit - 1) * b.d.value();
  }
}
inline void decode(const Tq1_0& b, float* dst) noexcept {
  for (std::size_t i = 0; i < 52; ++i) {
    unsigned byte = i < 48 ? b.qs[i] : b.qh[i - 48];
    for (std::size_t n = 0; n < (i < 48 ? 5u : 4u); ++n) {
      const int digit = static_cast<int>((3 * byte) >> 8);
      dst[simple::tq1_element(i, n)] = static_cast<float>(digit - 1) * b.d.value();
      byte = (3 * byte) & 255;
    }
  }
}

}  // namespace blockpack::inline BLOCKPACK_ABI::ggml
