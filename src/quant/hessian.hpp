// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What the rounding algorithms do with H = XᵀX through the dense engine: products D · H, and the factor GPTQ needs.

#include <memory>
#include <span>
#include <string>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/calibration.hpp"
#include "blockpack/core/engine.hpp"

namespace blockpack::inline BLOCKPACK_ABI::quant {

/// A matrix on large pages where there are any: its columns are visited a row apart. Not initialized. T is float or
/// double.
template <class T = float>
class LargeMatrix {
 public:
  explicit LargeMatrix(MatrixShape shape);
  MatrixView<T> view() const noexcept { return view_; }

 private:
  std::shared_ptr<std::byte> memory_;
  MatrixView<T> view_;
};

/// y = residual + x · wᵀ in float32; w and residual are dense. y may be residual; y must not share elements with x or
/// w.
void multiply(MatrixView<const float> x, MatrixView<const float> w, MatrixView<const float> residual,
              MatrixView<float> y, const Execution& how);
/// The same in double, by plain loops: for what must be exact and is small.
void multiply(MatrixView<const double> x, MatrixView<const double> w, MatrixView<const double> residual,
              MatrixView<double> y, const Execution& how);

/// ValueError naming the first place where w is not finite. T is float or double.
template <class T>
void check_finite(const char* function, MatrixView<const T> w);

/// ShapeError unless w, q and h fit together; ValueError when w is not finite. T is float or double.
template <class T>
void check_layer(const char* function, MatrixView<const T> w, MatrixShape q, const GramMatrix& h);

/// H in float32, divided by `unit` = mean(diag H) (1 for H = 0) so that no entry overflows, packed once.
class HessianProduct {
 public:
  HessianProduct(const GramMatrix& h, const Execution& how);

  double unit() const noexcept { return unit_; }
  MatrixView<const float> matrix() const noexcept { return {h_.data(), size_, size_}; }

  /// g = d · H / unit. d, g [rows, in].
  void apply(MatrixView<const float> d, MatrixView<float> g, const Execution& how) const;

 private:
  AlignedBuffer<float> h_;
  index_t size_;
  double unit_;
  PackedWeights packed_;
};

/// y = L⁻ᵀ, upper triangular with zeros below, where L Lᵀ = a; a, y [n, n]. `a` has its lower triangle and diagonal
/// filled and finite numbers above, and is destroyed. False when a pivot is not above 2^-20 (double: 2^-44) of its
/// diagonal entry, that is when `a` is not positive definite in that precision. T is float or double.
///
/// By halves down to blocks of 128, which are factored and inverted in double: every product is one of the engine's, of
/// matrices as large as they can be. 2/3 n³ floating-point operations and n²·512 more at the triangles' edges.
template <class T>
bool inverse_transposed_factor(MatrixView<T> a, MatrixView<T> y, const Execution& how);

/// How the algorithms that solve with H damp it, and what their errors say.
struct Damping {
  const char* function;
  double relative;  ///< times mean(diag H), added to the diagonal
  int retries;      ///< how often it grows tenfold (from 1e-5 at least) when H is not positive definite
  const std::string& layer;
};

/// Y = L⁻ᵀ of the damped H over its mean diagonal; row and column p of Y belong to column order[n - 1 - p] of H.
/// Columns whose diagonal is 0 get the diagonal 1. `used` is the relative damping it took. ValueError that names the
/// layer when H stays singular. T is float or double.
template <class T>
LargeMatrix<T> inverse_factor(const GramMatrix& h, std::span<const index_t> order, const Damping& damping, double& used,
                              const Execution& how);

}  // namespace blockpack::inline BLOCKPACK_ABI::quant
