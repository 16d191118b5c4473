// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The scale searches the encoders of ggml's blocks share. Every sum is a sequential float32 sum in element order and
/// no product is fused with an addition: with another order up to 30 % of the codes of Q6_K change (near-ties of the
/// search), with this one all bytes are ggml's.
///
/// Source: the algorithms of ggml-org/ggml at d99724f (ggml-quants.c).

#include <cmath>
#include <cstdint>
#include <span>

#include "blockpack/core/config.hpp"
#include "blockpack/core/strict.hpp"
#include "blockpack/quant/ggml/blocks.hpp"

namespace blockpack::inline BLOCKPACK_ABI::ggml {

/// A block whose largest magnitude is below this counts as zero.
inline constexpr float kZeroBlock = 1e-15f;
/// Elements of one search.
inline constexpr std::size_t kMaxSearch = 32;

/// v to the nearest integer in [low, high], ties to even. NaN gives an arbitrary integer in the range.
inline int nearest_clipped(float v, int low, int high) noexcept {
  const auto bottom = static_cast<float>(low);
  const auto top = static_cast<float>(high);
  v = v > bottom ? (v < top ? v : top) : bottom;
  return static_cast<int>(std::bit_cast<std::uint32_t>(v + 12582912.0f) & 0x007fffffu) - 0x00400000;
}

/// The element of largest magnitude with its sign, the first one of equals.
inline float signed_max(std::span<const float> x) noexcept {
  float top = 0.0f;
  float value = 0.0f;
  for (const float v : x) {
    const float magnitude = std::fabs(v);
    if (magnitude > top) {
      top = magnitude;
      value = v;
    }
  }
  return value;
}

/// Σ x², in element order.
inline float sum_of_squares(std::span<const float> x) noexcept {
  float sum = 0.0f;
  for (const float v : x) sum += strict_mul(v, v);
  return sum;
}

/// w = importance * sqrt(sigma2 + x²), the error weights of the importance-weighted encoders.
inline void importance_weights(std::span<const float> x, const float* importance, float sigma2, float* w) noexcept {
  for (std::size_t i = 0; i < x.size(); ++i) w[i] = importance[i] * std::sqrt(sigma2 + strict_mul(x[i], x[i]));
}

/// The trials of `fit_scale_min`: inverse scales (start + step * t + max_code) / range for t = 0 … last.
struct Trials {
  float start, step;
  int last;
  bool absolute_error;  ///< of the errors compared; squared otherwise
};

struct ScaleMin {
  float scale = 0.0f;
  float min = 0.0f;  ///< subtracted: value = scale * code - min, min >= 0
};

/// x ≈ scale * code - min with codes 0 … max_code, errors weighted by w ("search A").
///
/// Each trial rounds with its own inverse scale and the minimum of the best trial so far, then fits scale and minimum
/// by weighted least squares.
inline ScaleMin fit_scale_min(std::span<const float> x, const float* w, int max_code, const Trials& trials,
                              std::uint8_t* codes) noexcept {
  const std::size_t n = x.size();
  float low = x[0];
  float high = x[0];
  float sum_w = w[0];
  float sum_x = strict_mul(w[0], x[0]);
  for (std::size_t i = 1; i < n; ++i) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
    sum_w += w[i];
    sum_x += strict_mul(w[i], x[i]);
  }
  if (low > 0.0f) low = 0.0f;
  if (high == low) {
    for (std::size_t i = 0; i < n; ++i) codes[i] = 0;
    return {0.0f, -low};
  }
  const auto levels = static_cast<float>(max_code);
  const auto error_of = [&](float scale, float min, const std::uint8_t* l) {
    float error = 0.0f;
    for (std::size_t i = 0; i < n; ++i) {
      const float diff = strict_mul(scale, static_cast<float>(l[i])) + min - x[i];
      error += strict_mul(w[i], trials.absolute_error ? std::fabs(diff) : strict_mul(diff, diff));
    }
    return error;
  };
  float inverse = levels / (high - low);
  float scale = 1.0f / inverse;
  float min = low;
  for (std::size_t i = 0; i < n; ++i)
    codes[i] = static_cast<std::uint8_t>(nearest_clipped(strict_mul(inverse, x[i] - min), 0, max_code));
  float best = error_of(scale, min, codes);
  std::uint8_t trial[kMaxSearch];
  for (int t = 0; t <= trials.last; ++t) {
    inverse = (trials.start + strict_mul(trials.step, static_cast<float>(t)) + levels) / (high - min);
    float sum_l = 0.0f, sum_l2 = 0.0f, sum_xl = 0.0f;
    for (std::size_t i = 0; i < n; ++i) {
      const int code = nearest_clipped(strict_mul(inverse, x[i] - min), 0, max_code);
      trial[i] = static_cast<std::uint8_t>(code);
      const auto l = static_cast<float>(code);
      const float wl = strict_mul(w[i], l);
      sum_l += wl;
      sum_l2 += strict_mul(wl, l);
      sum_xl += strict_mul(wl, x[i]);
    }
    const float determinant = strict_mul(sum_w, sum_l2) - strict_mul(sum_l, sum_l);
    if (!(determinant > 0.0f)) continue;
    float trial_scale = (strict_mul(sum_w, sum_xl) - strict_mul(sum_x, sum_l)) / determinant;
    float trial_min = (strict_mul(sum_l2, sum_x) - strict_mul(sum_l, sum_xl)) / determinant;
    if (trial_min > 0.0f) {
      trial_min = 0.0f;
      trial_scale = sum_xl / sum_l2;
    }
    const float error = error_of(trial_scale, trial_min, trial);
    if (error < best) {
      for (std::size_t i = 0; i < n; ++i) codes[i] = trial[i];
      best = error;
      scale = trial_scale;
      min = trial_min;
    }
  }
  return {scale, -min};
}

/// x ≈ scale * (code - half) with codes 0 … 2 half - 1, squared errors weighted by w ("search B"). Returns the scale, 0
/// for a block that counts as zero.
inline float fit_symmetric(std::span<const float> x, const float* w, int half, std::uint8_t* codes) noexcept {
  const float m = signed_max(x);
  if (std::fabs(m) < kZeroBlock) {
    for (std::size_t i = 0; i < x.size(); ++i) codes[i] = 0;
    return 0.0f;
  }
  const auto levels = static_cast<float>(half);
  float scale = 0.0f;
  float best = 0.0f;
  float best_inverse = 0.0f;
  const auto attempt = [&](float inverse, bool first) {
    float sum_lx = 0.0f, sum_l2 = 0.0f;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const auto l = static_cast<float>(nearest_clipped(strict_mul(inverse, x[i]), -half, half - 1));
      sum_lx += strict_mul(strict_mul(w[i], x[i]), l);
      sum_l2 += strict_mul(strict_mul(w[i], l), l);
    }
    if (first || (sum_l2 > 0.0f && strict_mul(sum_lx, sum_lx) > strict_mul(best, sum_l2))) {
      scale = sum_l2 != 0.0f ? sum_lx / sum_l2 : 0.0f;
      best = strict_mul(scale, sum_lx);
      best_inverse = inverse;
    }
  };
  attempt(-levels / m, true);
  for (int t = -9; t <= 9; ++t)
    if (t != 0) attempt(-(levels + strict_mul(0.1f, static_cast<float>(t))) / m, false);
  for (std::size_t i = 0; i < x.size(); ++i)
    codes[i] = static_cast<std::uint8_t>(half + nearest_clipped(strict_mul(best_inverse, x[i]), -half, half - 1));
  return scale;
}

namespace search_detail {
/// Up to five passes that move one code at a time where that raises (Σ w x l)² / Σ w l². `lower` is the smallest code;
/// `needs_rest` also refuses a move when the other elements are all zero.
template <class Code>
void move_codes(std::span<const float> x, const float* w, int lower, int upper, bool needs_rest, Code* codes,
                float& sum_lx, float& sum_l2) noexcept {
  for (int pass = 0; pass < 5; ++pass) {
    bool changed = false;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const float wx = strict_mul(w[i], x[i]);
      const auto l = static_cast<float>(codes[i]);
      float lx = sum_lx - strict_mul(wx, l);
      float l2 = sum_l2 - strict_mul(strict_mul(w[i], l), l);
      if (!(lx > 0.0f) || (needs_rest && !(l2 > 0.0f))) continue;
      const int code = nearest_clipped(strict_mul(x[i], l2) / lx, lower, upper);
      if (code == codes[i]) continue;
      const auto moved = static_cast<float>(code);
      lx += strict_mul(wx, moved);
      l2 += strict_mul(strict_mul(w[i], moved), moved);
      if (l2 > 0.0f && strict_mul(strict_mul(lx, lx), sum_l2) > strict_mul(strict_mul(sum_lx, sum_lx), l2)) {
        codes[i] = static_cast<Code>(code);
        sum_lx = lx;
        sum_l2 = l2;
        changed = true;
      }
    }
    if (!changed) break;
  }
}
}  // namespace search_detail

/// x ≈ scale * (code - 4) with codes 0 … 7 and weights x²: coordinate passes in place of trials (Q3_K).
inline float fit_by_moves(std::span<const float> x, std::uint8_t* codes) noexcept {
  constexpr int kHalf = 4;
  const float m = signed_max(x);
  if (std::fabs(m) < kZeroBlock) {
    for (std::size_t i = 0; i < x.size(); ++i) codes[i] = 0;
    return 0.0f;
  }
  const float inverse = -static_cast<float>(kHalf) / m;
  float w[kMaxSearch] = {};
  std::int8_t signed_codes[kMaxSearch];
  float sum_lx = 0.0f, sum_l2 = 0.0f;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const int code = nearest_clipped(strict_mul(inverse, x[i]), -kHalf, kHalf - 1);
    signed_codes[i] = static_cast<std::int8_t>(code);
    const auto l = static_cast<float>(code);
    w[i] = strict_mul(x[i], x[i]);
    sum_lx += strict_mul(strict_mul(w[i], x[i]), l);
    sum_l2 += strict_mul(strict_mul(w[i], l), l);
  }
  search_detail::move_codes(x, w, -kHalf, kHalf - 1, false, signed_codes, sum_lx, sum_l2);
  for (std::size_t i = 0; i < x.size(); ++i) codes[i] = static_cast<std::uint8_t>(signed_codes[i] + kHalf);
  return sum_l2 > 0.0f ? sum_lx / sum_l2 : 0.0f;
}

/// v ≈ scale * code with v >= 0 and codes 0 … max_code ("search P"): the scales and the minima of a super-block.
inline float fit_positive(std::span<const float> v, const float* w, int max_code, std::uint8_t* codes) noexcept {
  float top = 0.0f;
  for (const float value : v)
    if (value > top) top = value;
  if (top < kZeroBlock) {
    for (std::size_t i = 0; i < v.size(); ++i) codes[i] = 0;
    return 0.0f;
  }
  const auto levels = static_cast<float>(max_code);
  const auto error_of = [&](float inverse) {
    const float scale = 1.0f / inverse;
    float error = 0.0f;
    for (std::size_t i = 0; i < v.size(); ++i) {
      const auto l = static_cast<float>(nearest_clipped(strict_mul(inverse, v[i]), 0, max_code));
      const float diff = v[i] - strict_mul(scale, l);
      error += strict_mul(strict_mul(w[i], diff), diff);
    }
    return error;
  };
  float inverse = levels / top;
  float best = error_of(inverse);
  for (int t = -4; t <= 4; ++t) {
    if (t == 0) continue;
    const float trial = (strict_mul(0.1f, static_cast<float>(t)) + levels) / top;
    const float error = error_of(trial);
    if (error < best) {
      best = error;
      inverse = trial;
    }
  }
  float sum_lx = 0.0f, sum_l2 = 0.0f;
  for (std::size_t i = 0; i < v.size(); ++i) {
    codes[i] = static_cast<std::uint8_t>(nearest_clipped(strict_mul(inverse, v[i]), 0, max_code));
    const auto l = static_cast<float>(codes[i]);
    sum_lx += strict_mul(strict_mul(w[i], v[i]), l);
    sum_l2 += strict_mul(strict_mul(w[i], l), l);
  }
  search_detail::move_codes(v, w, 0, max_code, true, codes, sum_lx, sum_l2);
  return sum_l2 > 0.0f ? sum_lx / sum_l2 : 0.0f;
}

/// Index of the level of IQ4 nearest to v, the larger one on a tie; the ends for what lies beyond them.
inline std::uint8_t nearest_iq4(float v) noexcept {
  std::uint8_t index = 0;
  for (int step = 8; step > 0; step /= 2) {
    const int i = index + step;
    const float middle = 0.5f * static_cast<float>(kIq4Levels[i - 1] + kIq4Levels[i]);  // exact
    if (v >= middle) index = static_cast<std::uint8_t>(i);
  }
  return index;
}

/// Weighted sums over x with its levels under an inverse scale: Σ w q x and Σ w q².
struct LevelSums {
  float qx = 0.0f, q2 = 0.0f;

  /// The scale of least squared error.
  float scale() const noexcept { return q2 > 0.0f ? qx / q2 : 0.0f; }
};
inline LevelSums iq4_sums(std::span<const float> x, const float* w, float inverse) noexcept {
  LevelSums sums;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const float q = kIq4Levels[nearest_iq4(strict_mul(inverse, x[i]))];
    const float wq = strict_mul(w[i], q);
    sums.qx += strict_mul(wq, x[i]);
    sums.q2 += strict_mul(wq, q);
  }
  return sums;
}

/// x ≈ scale * level: 16 scales are tried, the one of least squared error weighted by w is fitted. m: the signed
/// maximum of x, not zero.
inline float fit_iq4(std::span<const float> x, const float* w, float m) noexcept {
  float scale = 0.0f;
  float best = 0.0f;
  const auto attempt = [&](float inverse, bool first) {
    const LevelSums sums = iq4_sums(x, w, inverse);
    if (first || (sums.q2 > 0.0f && strict_mul(sums.qx, sums.qx) > strict_mul(best, sums.q2))) {
      scale = sums.scale();
      best = strict_mul(scale, sums.qx);
    }
  };
  attempt(1.0f / (-m / static_cast<float>(kIq4Levels[0])), true);
  for (int t = -7; t <= 7; ++t) attempt(static_cast<float>(t + kIq4Levels[0]) / m, false);
  return scale;
}

}  // namespace blockpack::inline BLOCKPACK_ABI::ggml
