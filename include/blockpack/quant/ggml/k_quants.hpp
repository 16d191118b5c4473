// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The super-blocks of ggml with scales of their scales: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS, and Q8_K. One block of
/// 256 at a time: scales of the sub-blocks by search, those rounded to a few bits under one fp16 scale, then the codes
/// again with the rounded scales. A sub-block whose rounded scale is 0 keeps the codes of the search, as in ggml.
///
/// Source: the algorithms of ggml-org/ggml at d99724f (ggml-quants.c).

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>

#include "blockpack/core/config.hpp"
#include "blockpack/core/strict.hpp"
#include "blockpack/quant/ggml/blocks.hpp"
#include "blockpack/quant/ggml/search.hpp"
#include "blockpack/quant/ggml/simple_blocks.hpp"

namespace blockpack::inline BLOCKPACK_ABI::ggml {

/// What is left of the scales of a super-block's sub-blocks (8 of 32 or 16 of 16).
struct SubScales {
  std::array<float, 16> scale{};
  std::array<float, 16> min{};
  std::array<float, 16> weight{};  ///< Σ w of a sub-block, with importance
  std::array<std::uint8_t, 256> codes{};

  bool finite() const noexcept {
    for (std::size_t j = 0; j < 16; ++j)
      if (!std::isfinite(scale[j]) || !std::isfinite(min[j]) || !std::isfinite(weight[j])) return false;
    return true;
  }
};

/// The six-bit scales and minima of Q4_K and Q5_K in 12 bytes: the low four pairs take 6 bits of bytes j and j + 4, the
/// high four a nibble each of byte j + 4 and the two free bits.
inline void pack_six_bits(const std::uint8_t* scales, const std::uint8_t* mins, std::uint8_t* dst) noexcept {
  for (std::size_t j = 0; j < 4; ++j) {
    dst[j] = static_cast<std::uint8_t>(scales[j] | ((scales[j + 4] >> 4) << 6));
    dst[j + 4] = static_cast<std::uint8_t>(mins[j] | ((mins[j + 4] >> 4) << 6));
    dst[j + 8] = static_cast<std::uint8_t>((scales[j + 4] & 15) | ((mins[j + 4] & 15) << 4));
  }
}
inline void unpack_six_bits(const std::uint8_t* src, std::uint8_t* scales, std::uint8_t* mins) noexcept {
  for (std::size_t j = 0; j < 4; ++j) {
    scales[j] = src[j] & 63;
    mins[j] = src[j + 4] & 63;
    scales[j + 4] = static_cast<std::uint8_t>((src[j + 8] & 15) | ((src[j] >> 6) << 4));
    mins[j + 4] = static_cast<std::uint8_t>((src[j + 8] >> 4) | ((src[j + 4] >> 6) << 4));
  }
}

/// The six-bit scales of Q3_K in 12 bytes: a nibble each in bytes 0 to 7, the upper bits in bytes 8 to 11.
inline void pack_q3_scales(const std::uint8_t* scales, std::uint8_t* dst) noexcept {
  std::memset(dst, 0, 12);
  for (std::size_t j = 0; j < 16; ++j) {
    dst[j % 8] = static_cast<std::uint8_t>(dst[j % 8] | ((scales[j] & 15) << (j / 8 * 4)));
    dst[8 + j % 4] = static_cast<std::uint8_t>(dst[8 + j % 4] | ((scales[j] >> 4) << (j / 4 * 2)));
  }
}
inline int q3_scale(const std::uint8_t* scales, std::size_t j) noexcept {
  return (((scales[j % 8] >> (j / 8 * 4)) & 15) | (((scales[8 + j % 4] >> (j / 4 * 2)) & 3) << 4)) - 32;
}

/// 256 codes of 2 bits: byte 32 n + l holds elements 128 n + l + {0, 32, 64, 96}, the first in the lowest bits.
inline void pack_two_bits(const std::uint8_t* codes, std::uint8_t* qs) noexcept {
  for (std::size_t n = 0; n < 2; ++n)
    for (std::size_t l = 0; l < 32; ++l) {
      const std::uint8_t* c = codes + 128 * n + l;
      qs[32 * n + l] =
          static_cast<std::uint8_t>((c[0] & 3) | ((c[32] & 3) << 2) | ((c[64] & 3) << 4) | ((c[96] & 3) << 6));
    }
}
/// 256 codes of 4 bits in runs of 64: the second half of a run lies in the high nibbles.
inline void pack_nibble_runs(const std::uint8_t* codes, std::uint8_t* qs) noexcept {
  for (std::size_t c = 0; c < 4; ++c)
    for (std::size_t l = 0; l < 32; ++l)
      qs[32 * c + l] = static_cast<std::uint8_t>((codes[64 * c + l] & 15) | ((codes[64 * c + 32 + l] & 15) << 4));
}

namespace super {

/// 2 Σ x² / 256 or Σ x² / 256 of the super-block.
inline float mean_square(std::span<const float> x) noexcept { return sum_of_squares(x) / 256.0f; }
inline float twice_mean_square(std::span<const float> x) noexcept { return 2.0f * sum_of_squares(x) / 256.0f; }

inline float sequential_sum(const float* w, std::size_t n) noexcept {
  float sum = 0.0f;
  for (std::size_t i = 0; i < n; ++i) sum += w[i];
  return sum;
}

/// Scales, minima and codes of the sub-blocks of Q4_K and Q5_K (of 32) and Q2_K (of 16).
inline SubScales fit_with_min(const BlockInput& in, std::size_t size, int max_code, const float* importance) noexcept {
  SubScales fit;
  const bool small = max_code == 3;
  const float sigma2 = importance == nullptr ? 0.0f : small ? mean_square(in.x) : twice_mean_square(in.x);
  for (std::size_t j = 0; j < 256 / size; ++j) {
    const std::span<const float> x = in.x.subspan(size * j, size);
    float w[32] = {};
    Trials trials{-0.9f, 0.05f, 36, false};
    if (importance != nullptr) {
      importance_weights(x, importance + size * j, sigma2, w);
      fit.weight[j] = sequential_sum(w, size);
    } else if (small) {
      for (std::size_t i = 0; i < size; ++i) w[i] = std::fabs(x[i]);
      trials = {-0.5f, 0.1f, 15, true};
    } else {
      const float rms = std::sqrt(sum_of_squares(x) / 32.0f);
      for (std::size_t i = 0; i < size; ++i) w[i] = rms + std::fabs(x[i]);
      trials = max_code == 15 ? Trials{-1.0f, 0.1f, 20, false} : Trials{-0.5f, 0.1f, 15, false};
    }
    const ScaleMin sub = fit_scale_min(x, w, max_code, trials, fit.codes.data() + size * j);
    fit.scale[j] = sub.scale;
    fit.min[j] = sub.min;
  }
  return fit;
}

/// The scales (or minima) of the sub-blocks as integers 0 … top under one scale, which is returned. Without importance
/// the largest one becomes `top`.
inline float round_scales(const float* values, const SubScales& fit, std::size_t count, int top, bool weighted,
                          std::uint8_t* rounded) noexcept {
  if (weighted) return fit_positive({values, count}, fit.weight.data(), top, rounded);
  float largest = 0.0f;
  for (std::size_t j = 0; j < count; ++j) largest = values[j] > largest ? values[j] : largest;
  const auto levels = static_cast<float>(top);
  const float inverse = largest > 0.0f ? levels / largest : 0.0f;
  for (std::size_t j = 0; j < count; ++j)
    rounded[j] = static_cast<std::uint8_t>(nearest_clipped(strict_mul(inverse, values[j]), 0, top));
  return largest / levels;
}

/// The whole of Q2_K, Q4_K and Q5_K up to packing: fp16 scales, integer scales and minima, codes.
inline bool encode_with_min(const BlockInput& in, std::size_t size, int max_code, int top, Half& d, Half& dmin,
                            std::uint8_t* scales, std::uint8_t* mins, std::uint8_t* codes) noexcept {
  const std::size_t count = 256 / size;
  bool weighted = in.importance != nullptr;
  SubScales fit = fit_with_min(in, size, max_code, in.importance);
  float scale = round_scales(fit.scale.data(), fit, count, top, weighted, scales);
  float min = round_scales(fit.min.data(), fit, count, top, weighted, mins);
  if (weighted && !(fit.finite() && std::isfinite(scale) && std::isfinite(min))) {
    fit = fit_with_min(in, size, max_code, nullptr);
    scale = round_scales(fit.scale.data(), fit, count, top, false, scales);
    min = round_scales(fit.min.data(), fit, count, top, false, mins);
  }
  const bool fits = store_scales(scale, d, min, dmin);
  std::copy(fit.codes.begin(), fit.codes.end(), codes);
  if (is_zero(d)) std::fill_n(codes, 256, std::uint8_t{0});
  for (std::size_t j = 0; j < count; ++j) {
    const float step = d.value() * static_cast<float>(scales[j]);
    if (step == 0.0f) continue;
    const float low = strict_mul(dmin.value(), static_cast<float>(mins[j]));
    for (std::size_t i = size * j; i < size * (j + 1); ++i)
      codes[i] = static_cast<std::uint8_t>(nearest_clipped((in.x[i] + low) / step, 0, max_code));
  }
  return fits;
}

/// Codes of a sub-block of 16 around `half` with the rounded scale, unless that is 0.
inline void codes_around(std::span<const float> x, float step, int half, std::uint8_t* codes) noexcept {
  if (step == 0.0f) return;
  for (std::size_t i = 0; i < x.size(); ++i)
    codes[i] = static_cast<std::uint8_t>(half + nearest_clipped(x[i] / step, -half, half - 1));
}

/// The value of largest magnitude, the first of equals; 0 for none.
inline float signed_max_scale(const SubScales& fit, std::size_t count) noexcept {
  return signed_max({fit.scale.data(), count});
}

}  // namespace super

inline bool encode(const BlockInput& in, Q4K& b) noexcept {
  std::memset(&b, 0, sizeof b);
  if (largest_magnitude(in.x) < kZeroBlock) return true;
  std::uint8_t scales[8], mins[8], codes[256];
  const bool fits = super::encode_with_min(in, 32, 15, 63, b.d, b.dmin, scales, mins, codes);
  pack_six_bits(scales, mins, b.scales);
  pack_nibble_runs(codes, b.qs);
  return fits;
}
inline bool encode(const BlockInput& in, Q5K& b) noexcept {
  std::memset(&b, 0, sizeof b);
  if (largest_magnitude(in.x) < kZeroBlock) return true;
  std::uint8_t scales[8], mins[8], codes[256];
  const bool fits = super::encode_with_min(in, 32, 31, 63, b.d, b.dmin, scales, mins, codes);
  pack_six_bits(scales, mins, b.scales);
  pack_nibble_runs(codes, b.qs);
  for (std::size_t i = 0; i < 256; ++i)
    b.qh[i % 32] = static_cast<std::uint8_t>(b.qh[i % 32] | ((codes[i] >> 4) << (i / 32)));
  return fits;
}
inline bool encode(const BlockInput& in, Q2K& b) noexcept {
  std::memset(&b, 0, sizeof b);
  if (largest_magnitude(in.x) < kZeroBlock) return true;
  std::uint8_t scales[16], mins[16], codes[256];
  const bool fits = super::encode_with_min(in, 16, 3, 15, b.d, b.dmin, scales, mins, codes);
  for (std::size_t j = 0; j < 16; ++j) b.scales[j] = static_cast<std::uint8_t>(scales[j] | (mins[j] << 4));
  pack_two_bits(codes, b.qs);
  return fits;
}

inline bool encode(const BlockInput& in, Q3K& b) noexcept {
  std::memset(&b, 0, sizeof b);
  if (largest_magnitude(in.x) < kZeroBlock) return true;
  SubScales fit;
  std::uint8_t scales[16] = {};
  float d = 0.0f;
  bool weighted = in.importance != nullptr;
  if (weighted) {
    const float sigma2 = super::twice_mean_square(in.x);
    for (std::size_t j = 0; j < 16; ++j) {
      const std::span<const float> x = in.x.subspan(16 * j, 16);
      float w[16] = {};
      importance_weights(x, in.importance + 16 * j, sigma2, w);
      fit.weight[j] = super::sequential_sum(w, 16);
      fit.scale[j] = fit_symmetric(x, w, 4, fit.codes.data() + 16 * j);
    }
    d = fit_symmetric(fit.scale, fit.weight.data(), 32, scales);
    weighted = fit.finite() && std::isfinite(d);
  }
  if (!weighted) {
    for (std::size_t j = 0; j < 16; ++j)
      fit.scale[j] = fit_by_moves(in.x.subspan(16 * j, 16), fit.codes.data() + 16 * j);
    const float m = super::signed_max_scale(fit, 16);
    const float inverse = m != 0.0f ? -32.0f / m : 0.0f;
    for (std::size_t j = 0; j < 16; ++j)
      scales[j] =
          static_cast<std::uint8_t>(m != 0.0f ? nearest_clipped(strict_mul(inverse, fit.scale[j]), -32, 31) + 32 : 0);
    d = m != 0.0f ? 1.0f / inverse : 0.0f;
  }
  const bool fits = store_scale(d, b.d);
  if (is_zero(b.d)) {
    b.d.set_bits(0);
    return fits;
  }
  pack_q3_scales(scales, b.scales);
  for (std::size_t j = 0; j < 16; ++j)
    super::codes_around(in.x.subspan(16 * j, 16), b.d.value() * static_cast<float>(q3_scale(b.scales, j)), 4,
                        fit.codes.data() + 16 * j);
  for (std::size_t i = 0; i < 256; ++i)
    b.hmask[i % 32] = static_cast<std::uint8_t>(b.hmask[i % 32] | ((fit.codes[i] >> 2) << (i / 32)));
  pack_two_bits(fit.codes.data(), b.qs);
  return fits;
}

inline bool encode(const BlockInput& in, Q6K& b) noexcept {
  std::memset(&b, 0, sizeof b);
  SubScales fit;
  const auto search = [&](const float* importance) {
    for (std::size_t j = 0; j < 16; ++j) {
      const std::span<const float> x = in.x.subspan(16 * j, 16);
      float w[16] = {};
      for (std::size_t i = 0; i < 16; ++i)
        w[i] = importance != nullptr ? importance[16 * j + i] : strict_mul(x[i], x[i]);
      fit.scale[j] = fit_symmetric(x, w, 32, fit.codes.data() + 16 * j);
    }
  };
  search(in.importance);
  if (in.importance != nullptr && !fit.finite()) search(nullptr);
  const float m = super::signed_max_scale(fit, 16);
  if (std::fabs(m) < kZeroBlock) return true;
  const float inverse = -128.0f / m;
  float d = 1.0f / inverse;
  const bool fits = store_scale(d, b.d);
  if (is_zero(b.d)) {
    b.d.set_bits(0);
    return fits;
  }
  for (std::size_t j = 0; j < 16; ++j) {
    b.scales[j] = static_cast<std::int8_t>(nearest_clipped(strict_mul(inverse, fit.scale[j]), -128, 127));
    super::codes_around(in.x.subspan(16 * j, 16), b.d.value() * static_cast<float>(b.scales[j]), 32,
                        fit.codes.data() + 16 * j);
  }
  for (std::size_t n = 0; n < 2; ++n)
    for (std::size_t l = 0; l < 32; ++l) {
      const std::uint8_t* c = fit.codes.data() + 128 * n + l;
      b.ql[64 * n + l] = static_cast<std::uint8_t>((c[0] & 15) | (c[64] << 4));
      b.ql[64 * n + 32 + l] = static_cast<std::uint8_t>((c[32] & 15) | (c[96] << 4));
      b.qh[32 * n + l] =
          static_cast<std::uint8_t>((c[0] >> 4) | ((c[32] >> 4) << 2) | ((c[64] >> 4) << 4) | ((c[96] >> 4) << 6));
    }
  return fits;
}

inline bool encode(const BlockInput& in, Q8K& b) noexcept {
  std::memset(&b, 0, sizeof b);
  const float m = signed_max(in.x);
  if (std::fabs(m) < kZeroBlock) return true;
  const float inverse = -127.0f / m;
  const std::uint32_t d = std::bit_cast<std::uint32_t>(1.0f / inverse);
  for (std::size_t i = 0; i < 4; ++i) b.d[i] = static_cast<std::uint8_t>(d >> (8 * i));
  for (std::size_t j = 0; j < 16; ++j) {
    int sum = 0;
    for (std::size_t i = 16 * j; i < 16 * (j + 1); ++i) {
      const int q = nearest_clipped(strict_mul(inverse, in.x[i]), -128, 127);
      b.qs[i] = static_cast<std::int8_t>(q);
      sum += q;
    }
    b.bsums[2 * j] = static_cast<std::uint8_t>(sum);
    b.bsums[2 * j + 1] = static_cast<std::uint8_t>(sum >> 8);
  }
  return true;
}

inline bool encode(const BlockInput& in, Iq4Xs& b) noexcept {
  SubScales fit;
  const auto search = [&](const float* importance) {
    const float sigma2 = importance != nullptr ? strict_mul(sum_of_squares(in.x), 2.0f / 256.0f) : 0.0f;
    for (std::size_t j = 0; j < 8; ++j) {
      const std::span<const float> x = in.x.subspan(32 * j, 32);
      const float m = signed_max(x);
      if (std::fabs(m) < kZeroBlock) continue;
      float w[32] = {};
      if (importance != nullptr)
        importance_weights(x, importance + 32 * j, sigma2, w);
      else
        for (std::size_t i = 0; i < 32; ++i) w[i] = strict_mul(x[i], x[i]);
      fit.scale[j] = fit_iq4(x, w, m);
    }
  };
  search(in.importance);
  if (in.importance != nullptr && !fit.finite()) search(nullptr);
  float d = -super::signed_max_scale(fit, 8) / 32.0f;
  const bool fits = store_scale(d, b.d);
  if (is_zero(b.d)) d = 0.0f;
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  std::memset(b.scales_l, 0, sizeof b.scales_l);
  unsigned high_bits = 0;
  for (std::size_t j = 0; j < 8; ++j) {
    const int scale = nearest_clipped(strict_mul(inverse, fit.scale[j]), -32, 31);
    const float step = d * static_cast<float>(scale);
    const float step_inverse = step != 0.0f ? 1.0f / step : 0.0f;
    std::uint8_t codes[32];
    for (std::size_t i = 0; i < 32; ++i) codes[i] = nearest_iq4(strict_mul(step_inverse, in.x[32 * j + i]));
    pack_nibbles(codes, b.qs + 16 * j);
    const auto stored = static_cast<unsigned>(scale + 32);
    b.scales_l[j / 2] = static_cast<std::uint8_t>(b.scales_l[j / 2] | ((stored & 15) << (j % 2 * 4)));
    high_bits |= (stored >> 4) << (2 * j);
  }
  b.scales_h.set_bits(static_cast<std::uint16_t>(high_bits));
  return fits;
}

inline void decode(const Q2K& b, float* dst) noexcept {
  for (std::size_t i = 0; i < 256; ++i) {
    const int code = (b.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
    const std::uint8_t scales = b.scales[i / 16];
    const float step = b.d.value() * static_cast<float>(scales & 15);
    dst[i] = strict_mul(step, static_cast<float>(code)) - strict_mul(b.dmin.value(), static_cast<float>(scales >> 4));
  }
}
inline void decode(const Q3K& b, float* dst) noexcept {
  for (std::size_t i = 0; i < 256; ++i) {
    const int low = (b.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
    const int code = low - (((b.hmask[i % 32] >> (i / 32)) & 1) != 0 ? 0 : 4);
    dst[i] = b.d.value() * static_cast<float>(q3_scale(b.scales, i / 16)) * static_cast<float>(code);
  }
}
namespace super {
inline void decode_with_min(const Half& d, const Half& dmin, const std::uint8_t* packed, const std::uint8_t* qs,
                            const std::uint8_t* qh, float* dst) noexcept {
  std::uint8_t scales[8], mins[8];
  unpack_six_bits(packed, scales, mins);
  for (std::size_t j = 0; j < 8; ++j) {
    const float step = d.value() * static_cast<float>(scales[j]);
    const float low = strict_mul(dmin.value(), static_cast<float>(mins[j]));
    for (std::size_t l = 0; l < 32; ++l) {
      int code = (qs[j / 2 * 32 + l] >> (j % 2 * 4)) & 15;
      if (qh != nullptr) code |= ((qh[l] >> j) & 1) << 4;
      dst[32 * j + l] = strict_mul(step, static_cast<float>(code)) - low;
    }
  }
}
}  // namespace super
inline void decode(const Q4K& b, float* dst) noexcept {
  super::decode_with_min(b.d, b.dmin, b.scales, b.qs, nullptr, dst);
}
inline void decode(const Q5K& b, float* dst) noexcept {
  super::decode_with_min(b.d, b.dmin, b.scales, b.qs, b.qh, dst);
}
inline void decode(const Q6K& b, float* dst) noexcept {
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t n = i / 128, part = i % 128 / 32, l = i % 32;
    const int low = (b.ql[64 * n + part % 2 * 32 + l] >> (part / 2 * 4)) & 15;
    const int code = (low | (((b.qh[32 * n + l] >> (2 * part)) & 3) << 4)) - 32;
    dst[i] = b.d.value() * static_cast<float>(b.scales[i / 16]) * static_cast<float>(code);
  }
}
inline void decode(const Q8K& b, float* dst) noexcept {
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < 4; ++i) bits |= std::uint32_t{b.d[i]} << (8 * i);
  for (std::size_t i = 0; i < 256; ++i) dst[i] = std::bit_cast<float>(bits) * static_cast<float>(b.qs[i]);
}
inline void decode(const Iq4Xs& b, float* dst) noexcept {
  for (std::size_t j = 0; j < 8; ++j) {
    const int scale = (((b.scales_l[j / 2] >> (j % 2 * 4)) & 15) | (((b.scales_h.bits() >> (2 * j)) & 3) << 4)) - 32;
    const float step = b.d.value() * static_cast<float>(scale);
    std::uint8_t codes[32];
    unpack_nibbles(b.qs + 16 * j, codes);
    for (std::size_t i = 0; i < 32; ++i) dst[32 * j + i] = step * static_cast<float>(kIq4Levels[codes[i]]);
  }
}

}  // namespace blockpack::inline BLOCKPACK_ABI::ggml
