// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Calibration statistics: what an encoder may know about the inputs x [tokens, in] of a layer and about the gradients
/// of its weights [out, in]. Filled batch by batch, merged across workers, then handed to rounding and pruning
/// algorithms.
///
///   type           holds                                                    memory              for
///   ColumnStats    per input feature: L2 norm, absmax, mean |x|, mean x²    24 bytes a feature  Wanda, scale search
///   GramMatrix     XᵀX, symmetric                                           4·in² bytes         GPTQ, SparseGPT
///   SecondMoments  per weight: mean g², the diagonal of the Fisher matrix   8 bytes a weight    Fisher pruning
///
/// Sums are in double, where the product of two floats is exact: contraction to fused operations changes nothing, so
/// the numbers, and the codes chosen from them, are the same on every CPU, with every compiler and for every number of
/// threads. They do depend, in the last bits, on how the rows were cut into batches.

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

namespace detail {

/// ShapeError, or ValueError with the first NaN or infinity: statistics are never half updated.
inline void check_batch(const char* function, MatrixView<const float> x, index_t cols) {
  if (x.cols() != cols)
    throw ShapeError(std::string(function) + ": x has " + std::to_string(x.cols()) + " columns, " +
                     std::to_string(cols) + " needed");
  const MatrixShape bad = find_non_finite(x);
  if (bad.rows >= 0)
    throw ValueError(std::string(function) + ": x is not finite at row " + std::to_string(bad.rows) + ", column " +
                     std::to_string(bad.cols));
}

inline void check_same_size(const char* function, index_t theirs, index_t ours) {
  if (theirs != ours)
    throw ShapeError(std::string(function) + ": other has " + std::to_string(theirs) + " features, " +
                     std::to_string(ours) + " needed");
}

}  // namespace detail

/// Norms of the columns of x.
class ColumnStats {
 public:
  ColumnStats() = default;
  explicit ColumnStats(index_t in_features)
      : square_(in_features), absolute_(in_features), absmax_(in_features), in_features_(in_features) {}

  index_t in_features() const noexcept { return in_features_; }
  index_t rows() const noexcept { return rows_; }  ///< tokens seen

  /// Adds the rows of x. ShapeError for another number of columns; ValueError on NaN or infinity, nothing added then.
  void add(MatrixView<const float> x, const Execution& how = {}) {
    detail::check_batch("ColumnStats::add", x, in_features_);
    parallel_for(how, ceil_div(in_features_, kColumns), [&](index_t task) {
      const index_t begin = task * kColumns, n = std::min(kColumns, in_features_ - begin);
      std::array<double, kColumns> square{}, absolute{}, largest{};
      for (index_t i = 0; i < x.rows(); ++i) {
        const float* row = x.row_data(i) + begin;
        for (index_t j = 0; j < n; ++j) {
          const double v = std::fabs(static_cast<double>(row[j]));
          const auto k = static_cast<std::size_t>(j);
          square[k] += v * v;
          absolute[k] += v;
          largest[k] = v > largest[k] ? v : largest[k];
        }
      }
      for (index_t j = 0; j < n; ++j) {
        const auto k = static_cast<std::size_t>(j);
        square_[begin + j] += square[k];
        absolute_[begin + j] += absolute[k];
        absmax_[begin + j] = std::max(absmax_[begin + j], largest[k]);
      }
    });
    rows_ += x.rows();
  }

  /// Adds the rows another object has seen. ShapeError for another number of features.
  void merge(const ColumnStats& other) {
    detail::check_same_size("ColumnStats::merge", other.in_features_, in_features_);
    for (index_t j = 0; j < in_features_; ++j) {
      square_[j] += other.square_[j];
      absolute_[j] += other.absolute_[j];
      absmax_[j] = std::max(absmax_[j], other.absmax_[j]);
    }
    rows_ += other.rows_;
  }

  double l2_norm(index_t j) const noexcept { return std::sqrt(square_[j]); }
  double absmax(index_t j) const noexcept { return absmax_[j]; }
  double mean_abs(index_t j) const noexcept { return mean(absolute_[j]); }
  double mean_square(index_t j) const noexcept { return mean(square_[j]); }

  /// mean x² of every column as floats: the importance of a column's rounding errors (EncodeOptions::importance).
  std::vector<float> importance() const {
    std::vector<float> values(static_cast<std::size_t>(in_features_));
    for (index_t j = 0; j < in_features_; ++j) values[static_cast<std::size_t>(j)] = static_cast<float>(mean_square(j));
    return values;
  }

 private:
  static constexpr index_t kColumns = 256;
  double mean(double sum) const noexcept { return rows_ == 0 ? 0.0 : sum / static_cast<double>(rows_); }

  AlignedBuffer<double> square_, absolute_, absmax_;
  index_t in_features_ = 0;
  index_t rows_ = 0;
};

namespace detail {

inline constexpr index_t kGramTile = 32;  ///< the operands of 64 rows and the sums are 40 KB: first-level cache

/// Adds the products of columns [left, left + kGramTile) with [right, right + kGramTile) of x, as far as they are
/// there, to a tile of sums: tokens in order, four by themselves first, the missing ones of the last four as zeros.
inline void add_gram_tile_reference(MatrixView<const float> x, index_t left, index_t right, double* sums) noexcept {
  const index_t rows = std::min(kGramTile, x.cols() - left), cols = std::min(kGramTile, x.cols() - right);
  const auto value = [&](index_t t, index_t c) { return t < x.rows() ? static_cast<double>(x.row_data(t)[c]) : 0.0; };
  for (index_t t = 0; t < x.rows(); t += 4)
    for (index_t i = 0; i < rows; ++i) {
      const double a = value(t, left + i), b = value(t + 1, left + i);
      const double c = value(t + 2, left + i), d = value(t + 3, left + i);
      for (index_t j = right; j < right + cols; ++j)
        sums[i * kGramTile + (j - right)] +=
            a * value(t, j) + b * value(t + 1, j) + c * value(t + 2, j) + d * value(t + 3, j);
    }
}

#if defined(BLOCKPACK_HEADERS_ONLY)
inline void add_gram_tile(MatrixView<const float> x, index_t left, index_t right, double* sums) noexcept {
  add_gram_tile_reference(x, left, right, sums);
}
#else
/// The same through the kernel of the active level.
BLOCKPACK_API void add_gram_tile(MatrixView<const float> x, index_t left, index_t right, double* sums);
#endif

}  // namespace detail

/// H = XᵀX. Holds the lower triangle in square tiles: 4·in² bytes and a little, whatever the number of tokens (in =
/// 4096: 68 MB; 11008: 488 MB). The cost of `add` is rows · in² / 2 multiply-adds.
class GramMatrix {
 public:
  GramMatrix() = default;
  explicit GramMatrix(index_t in_features)
      : tiles_(ceil_div(in_features, kTile)),
        sums_(checked_mul(checked_mul(tiles_, tiles_ + 1, "GramMatrix") / 2, kTile * kTile, "GramMatrix")),
        in_features_(in_features) {}

  /// H as it is given: made elsewhere from `rows` tokens, or read from a file. The lower triangle is taken.
  /// ShapeError if h is not square; ValueError for NaN or infinity there, or a negative number on the diagonal.
  static GramMatrix from_values(MatrixView<const double> h, index_t rows = 1) {
    if (h.rows() != h.cols())
      throw ShapeError("GramMatrix::from_values: h is " + to_string(h.shape()) + ", a square matrix needed");
    GramMatrix gram(h.rows());
    for (index_t i = 0; i < h.rows(); ++i)
      for (index_t j = 0; j <= i; ++j) {
        if (!std::isfinite(h(i, j)) || (i == j && h(i, j) < 0))
          throw ValueError("GramMatrix::from_values: h is not finite, or negative on the diagonal, at row " +
                           std::to_string(i) + ", column " + std::to_string(j));
        gram.sums_[gram.place(i, j)] = h(i, j);
      }
    gram.rows_ = rows;
    return gram;
  }

  index_t in_features() const noexcept { return in_features_; }
  index_t rows() const noexcept { return rows_; }  ///< tokens seen
  std::size_t memory_bytes() const noexcept { return sums_.size_bytes(); }

  /// Adds the rows of x. ShapeError for another number of columns; ValueError on NaN or infinity, nothing added then.
  void add(MatrixView<const float> x, const Execution& how = {}) {
    detail::check_batch("GramMatrix::add", x, in_features_);
    parallel_for(how, tiles_ * (tiles_ + 1) / 2, [&](index_t task) {
      index_t i = static_cast<index_t>((std::sqrt(8.0 * static_cast<double>(task) + 1.0) - 1.0) / 2.0);
      while (i * (i + 1) / 2 > task) --i;  // the root may be one off for large numbers
      while ((i + 1) * (i + 2) / 2 <= task) ++i;
      detail::add_gram_tile(x, i * kTile, (task - i * (i + 1) / 2) * kTile, sums_.data() + task * kTile * kTile);
    });
    rows_ += x.rows();
  }

  /// Adds what another object has seen. ShapeError for another number of features.
  void merge(const GramMatrix& other) {
    detail::check_same_size("GramMatrix::merge", other.in_features_, in_features_);
    for (index_t k = 0; k < sums_.size(); ++k) sums_[k] += other.sums_[k];
    rows_ += other.rows_;
  }

  /// Σ_t x[t, i] · x[t, j].
  double operator()(index_t i, index_t j) const noexcept {
    if (i < j) std::swap(i, j);
    return sums_[place(i, j)];
  }

  /// Σ_t x[t, j]² of every feature.
  std::vector<double> diagonal() const {
    std::vector<double> values;
    for (index_t i = 0; i < in_features_; ++i) values.push_back((*this)(i, i));
    return values;
  }
  double mean_diagonal() const noexcept {
    double sum = 0;
    for (index_t i = 0; i < in_features_; ++i) sum += (*this)(i, i);
    return in_features_ == 0 ? 0.0 : sum / static_cast<double>(in_features_);
  }

  /// dst = scale · (H + relative_damping · mean(diag H) · I), both triangles, in float or double. GPTQ and SparseGPT
  /// use scale = 2 / rows() and a damping of 0.01. ShapeError if dst is not [in, in].
  template <class T>
  void copy_to(MatrixView<T> dst, double scale = 1.0, double relative_damping = 0.0, const Execution& how = {}) const {
    if (dst.shape() != MatrixShape{in_features_, in_features_})
      throw ShapeError("GramMatrix::copy_to: dst is " + to_string(dst.shape()) + ", " +
                       to_string(MatrixShape{in_features_, in_features_}) + " needed");
    const double damping = relative_damping == 0.0 ? 0.0 : relative_damping * mean_diagonal();
    parallel_for(how, tiles_, [&](index_t tile_row) {
      const index_t first = tile_row * kTile, end = std::min(in_features_, first + kTile);
      for (index_t col = 0; col <= first; col += kTile)
        for (index_t i = first; i < end; ++i) {
          const double* sums = sums_.data() + place(i, col);
          for (index_t j = col; j < std::min(i + 1, col + kTile); ++j) {
            const double damped = sums[j - col] + (i == j ? damping : 0.0);
            dst(i, j) = dst(j, i) = static_cast<T>(scale * damped);
          }
        }
    });
  }

 private:
  static constexpr index_t kTile = detail::kGramTile;

  /// Of the sum for i >= j.
  static index_t place(index_t i, index_t j) noexcept {
    const index_t tile = (i / kTile) * (i / kTile + 1) / 2 + j / kTile;
    return (tile * kTile + i % kTile) * kTile + j % kTile;
  }

  index_t tiles_ = 0;
  AlignedBuffer<double> sums_;
  index_t in_features_ = 0;
  index_t rows_ = 0;
};

/// Σ g² of every weight over batches of gradients; the mean is the diagonal of the empirical Fisher matrix.
class SecondMoments {
 public:
  SecondMoments() = default;
  explicit SecondMoments(MatrixShape shape)
      : sums_(checked_mul(shape.rows, shape.cols, "SecondMoments")), shape_(shape) {}

  MatrixShape shape() const noexcept { return shape_; }
  index_t batches() const noexcept { return batches_; }
  std::size_t memory_bytes() const noexcept { return sums_.size_bytes(); }

  /// Adds one gradient. ShapeError for another shape; ValueError on NaN or infinity, nothing added then.
  void add(MatrixView<const float> gradient, const Execution& how = {}) {
    if (gradient.rows() != shape_.rows)
      throw ShapeError("SecondMoments::add: gradient is " + to_string(gradient.shape()) + ", " + to_string(shape_) +
                       " needed");
    detail::check_batch("SecondMoments::add", gradient, shape_.cols);
    constexpr index_t kRowsPerTask = 16;
    parallel_for(how, ceil_div(shape_.rows, kRowsPerTask), [&](index_t task) {
      const index_t end = std::min(shape_.rows, (task + 1) * kRowsPerTask);
      for (index_t i = task * kRowsPerTask; i < end; ++i)
        for (index_t j = 0; j < shape_.cols; ++j) {
          const double g = gradient.row_data(i)[j];
          sums_[i * shape_.cols + j] += g * g;
        }
    });
    ++batches_;
  }

  /// Adds the gradients another object has seen. ShapeError for another shape.
  void merge(const SecondMoments& other) {
    if (other.shape_ != shape_)
      throw ShapeError("SecondMoments::merge: other is " + to_string(other.shape_) + ", " + to_string(shape_) +
                       " needed");
    for (index_t k = 0; k < sums_.size(); ++k) sums_[k] += other.sums_[k];
    batches_ += other.batches_;
  }

  /// Mean of g² over the batches, 0 when there were none.
  double mean(index_t i, index_t j) const noexcept {
    return batches_ == 0 ? 0.0 : sums_[i * shape_.cols + j] / static_cast<double>(batches_);
  }

  /// The means as floats, the per-weight form of EncodeOptions::importance. ShapeError for another shape.
  void copy_to(MatrixView<float> dst) const {
    if (dst.shape() != shape_)
      throw ShapeError("SecondMoments::copy_to: dst is " + to_string(dst.shape()) + ", " + to_string(shape_) +
                       " needed");
    for (index_t i = 0; i < shape_.rows; ++i)
      for (index_t j = 0; j < shape_.cols; ++j) dst(i, j) = static_cast<float>(mean(i, j));
  }

 private:
  AlignedBuffer<double> sums_;
  MatrixShape shape_;
  index_t batches_ = 0;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
