// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The product, written to be read: y = function(diag(token_scales) · x · Wᵀ + bias) ∘ gate + residual for every
/// activation mode, and its transpose. This is what `blockpack::headers` runs, the meaning of the engine's `matmul`,
/// and the oracle of its tests (with Sum = double).

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/row_source.hpp"
#include "blockpack/core/strict.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace reference {

/// The step of int8_token: absmax / 127, or the next float where that is a subnormal of so few bits (or 0) that 127
/// of them do not reach absmax.
inline float token_scale(float absmax) noexcept {
  const float a = absmax / 127.0f;
  return a == 0.0f || absmax >= 127.5f * a ? std::nextafter(a, INFINITY) : a;
}
/// What x and a are multiplied by, so that the inverse of a small a is finite.
inline float token_lift(float a) noexcept { return a < 0x1p-64f ? 0x1p64f : 1.0f; }

/// Rounds one row of x, in place, as the mode says. bf16: half to even. int8: per group of 32 to the nearest multiple
/// of a = absmax / 127, ties to even; a group whose a is zero or not finite is left alone. int8_token: the same with
/// the whole row as the group, x / a taken as x times the inverse of a. `automatic` counts as f32.
inline void round_activations(std::span<float> x, Activations mode) {
  if (mode == Activations::bf16) {
    for (float& v : x) v = static_cast<float>(bf16(v));
  } else if (mode == Activations::int8) {
    for (std::size_t begin = 0; begin < x.size(); begin += 32) {
      const std::span<float> group = x.subspan(begin, std::min<std::size_t>(32, x.size() - begin));
      float absmax = 0;
      for (const float v : group) absmax = std::max(absmax, std::fabs(v));
      const float a = absmax / 127.0f;
      if (!(a > 0.0f) || !std::isfinite(a)) continue;
      for (float& v : group) v = round_half_even(v / a) * a;
    }
  } else if (mode == Activations::int8_token) {
    float absmax = 0;
    for (const float v : x) absmax = std::max(absmax, std::isnan(v) ? INFINITY : std::fabs(v));
    const float a = token_scale(absmax);
    if (absmax == 0.0f || !std::isfinite(absmax)) return;
    const float lift = token_lift(a), inverse = 1.0f / (a * lift);
    for (float& v : x) v = std::clamp(round_half_even(v * lift * inverse), -127.0f, 127.0f) * a;
  }
}

/// The element-wise function of the epilogue.
template <class T>
T apply_function(EpilogueFunction function, T v) {
  switch (function) {
    case EpilogueFunction::relu:
      return v < T(0) ? T(0) : v;
    case EpilogueFunction::gelu:
      return v / T(2) * (T(1) + std::erf(v / std::sqrt(T(2))));
    case EpilogueFunction::silu:
      return v / (T(1) + std::exp(-v));
    case EpilogueFunction::none:
      break;
  }
  return v;
}

/// function(token_scales[m] * sum + bias[n]) * gate[m, n] + residual[m, n].
template <class T>
T apply_epilogue(const Epilogue& epilogue, index_t m, index_t n, T sum) {
  if (!epilogue.token_scales.empty()) sum *= T(epilogue.token_scales[static_cast<std::size_t>(m)]);
  if (!epilogue.bias.empty()) sum += T(epilogue.bias[static_cast<std::size_t>(n)]);
  sum = apply_function(epilogue.function, sum);
  if (epilogue.gate.data() != nullptr) sum *= T(epilogue.gate(m, n));
  if (epilogue.residual.data() != nullptr) sum += T(epilogue.residual(m, n));
  return sum;
}

/// Row m of x as float32.
inline void load_row(ActivationView x, index_t m, std::span<float> dst) {
  for (std::size_t k = 0; k < dst.size(); ++k) {
    const auto column = static_cast<index_t>(k);
    dst[k] = x.is_bf16() ? static_cast<float>(x.as_bf16()(m, column)) : x.f32()(m, column);
  }
}

inline void store(ResultView y, index_t m, index_t n, float v) {
  if (y.is_bf16()) {
    y.as_bf16()(m, n) = bf16(v);
  } else {
    y.f32()(m, n) = v;
  }
}

/// Calls put(m, n, value) with every element of the product, sums and epilogue in `Sum`.
template <class Sum, class Put>
void matmul_into(ActivationView x, const RowSource& w, Activations mode, const ApplyOptions& how, const Put& put) {
  const index_t tokens = x.rows();
  const index_t depth = w.cols;
  std::vector<float> rounded(static_cast<std::size_t>(tokens * depth));
  for (index_t m = 0; m < tokens; ++m) {
    const std::span<float> row(rounded.data() + m * depth, static_cast<std::size_t>(depth));
    load_row(x, m, row);
    round_activations(row, mode);
  }
  parallel_for(how.execution, w.rows, [&](index_t n) {
    std::vector<float> weights(static_cast<std::size_t>(depth));
    if (depth > 0) w.decode_f32(w.self, n, 0, depth, weights.data());
    for (index_t m = 0; m < tokens; ++m) {
      const float* row = rounded.data() + m * depth;
      Sum sum = 0;
      for (std::size_t k = 0; k < weights.size(); ++k) sum += Sum(row[k]) * Sum(weights[k]);
      put(m, n, apply_epilogue(how.epilogue, m, n, sum));
    }
  });
}

/// y = epilogue(x · Wᵀ), float32 sums in the order of k. Shapes are the caller's to check; y may not overlap x.
inline void matmul(ActivationView x, const RowSource& w, ResultView y, Activations mode, const ApplyOptions& how) {
  matmul_into<float>(x, w, mode, how, [&](index_t m, index_t n, float v) { store(y, m, n, v); });
}

/// x [tokens, in] = y [tokens, out] · W, float32 sums in the order of the rows of W. x may not overlap y.
inline void matmul_transpose(MatrixView<const float> y, const RowSource& w, MatrixView<float> x,
                             const ApplyOptions& how) {
  constexpr index_t kStep = RowSource::kColumnStep;
  parallel_for(how.execution, ceil_div(w.cols, kStep), [&](index_t part) {
    const index_t first = part * kStep;
    const index_t count = std::min(kStep, w.cols - first);
    std::vector<float> weights(static_cast<std::size_t>(count));
    for (index_t m = 0; m < x.rows(); ++m) std::fill_n(x.row_data(m) + first, count, 0.0f);
    for (index_t n = 0; n < w.rows; ++n) {
      w.decode_f32(w.self, n, first, count, weights.data());
      for (index_t m = 0; m < x.rows(); ++m) {
        const float scale = y(m, n);
        float* row = x.row_data(m) + first;
        for (index_t k = 0; k < count; ++k) row[k] += scale * weights[static_cast<std::size_t>(k)];
      }
    }
  });
}

}  // namespace reference
}  // namespace blockpack::inline BLOCKPACK_ABI
