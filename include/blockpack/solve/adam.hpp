// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Adam, a parameter at a time. The caller keeps the moments m and v beside the parameter, zeros at first.
///
/// Source: D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, algorithm 1.

#include <cmath>
#include <cstdint>

#include "blockpack/core/config.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

struct AdamOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
};

/// The step of one iteration, which counts from 1. T is float or double.
template <class T>
class Adam {
 public:
  Adam(const AdamOptions& o, std::int64_t iteration) noexcept
      : rate_(static_cast<T>(o.learning_rate)),
        beta1_(static_cast<T>(o.beta1)),
        beta2_(static_cast<T>(o.beta2)),
        rest1_(static_cast<T>(1.0 - o.beta1)),
        rest2_(static_cast<T>(1.0 - o.beta2)),
        correction1_(static_cast<T>(1.0 - std::pow(o.beta1, static_cast<double>(iteration)))),
        correction2_(static_cast<T>(1.0 - std::pow(o.beta2, static_cast<double>(iteration)))),
        epsilon_(static_cast<T>(o.epsilon)) {}

  void update(T gradient, T& parameter, T& m, T& v) const noexcept {
    m = beta1_ * m + rest1_ * gradient;
    v = beta2_ * v + rest2_ * gradient * gradient;
    parameter -= rate_ * (m / correction1_) / (std::sqrt(v / correction2_) + epsilon_);
  }

 private:
  T rate_, beta1_, beta2_, rest1_, rest2_, correction1_, correction2_, epsilon_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
