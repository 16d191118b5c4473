// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Matrix shapes and the checked arithmetic that turns hostile or absurd sizes into errors.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "blockpack/core/config.hpp"
#include "blockpack/core/error.hpp"
#include "blockpack/core/fwd.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Rows and columns of a matrix; for a weight matrix rows = out_features, cols = in_features.
struct MatrixShape {
  index_t rows = 0;
  index_t cols = 0;
  friend constexpr bool operator==(const MatrixShape&, const MatrixShape&) = default;
};

/// `4096x1024`, for messages.
inline std::string to_string(MatrixShape s) { return std::to_string(s.rows) + "x" + std::to_string(s.cols); }

/// ceil(a / b) for a >= 0, b > 0, without overflow.
constexpr index_t ceil_div(index_t a, index_t b) noexcept { return a / b + (a % b != 0 ? 1 : 0); }

/// Smallest multiple of `unit` that is >= a, for a >= 0, unit > 0.
constexpr index_t round_up(index_t a, index_t unit) noexcept { return ceil_div(a, unit) * unit; }

/// a * b for sizes; ShapeError naming `what` when a factor is negative or the product leaves `index_t`.
constexpr index_t checked_mul(index_t a, index_t b, const char* what) {
  if (a < 0 || b < 0) throw ShapeError(std::string(what) + ": a size is negative");
  if (b != 0 && a > std::numeric_limits<index_t>::max() / b)
    throw ShapeError(std::string(what) + ": " + std::to_string(a) + " * " + std::to_string(b) + " overflows");
  return a * b;
}

/// a + b for sizes; ShapeError naming `what` when a term is negative or the sum leaves `index_t`.
constexpr index_t checked_add(index_t a, index_t b, const char* what) {
  if (a < 0 || b < 0) throw ShapeError(std::string(what) + ": a size is negative");
  if (a > std::numeric_limits<index_t>::max() - b)
    throw ShapeError(std::string(what) + ": " + std::to_string(a) + " + " + std::to_string(b) + " overflows");
  return a + b;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
