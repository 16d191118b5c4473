// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Transforms of the input side of a layer that are folded into its weights: a block Hadamard rotation, which spreads
/// outliers over a block, and a scale per input feature. Each is a linear operator of its own, so that
///
///     Compose(QuantizedMatrix<F>(W·R), BlockHadamard(in, 32))       y = Q(W R) (R x),          R R = I
///     Compose(QuantizedMatrix<F>(W·diag(s)), ChannelScale(1 / s))   y = Q(W diag(s)) (x / s)
///
/// stand for W as any other form does.

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/compose.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/reference.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

namespace detail {

/// y = epilogue(f(x)) row by row, for operators that are a function of one row: f(in_place) changes a row of floats.
template <class RowFunction>
void apply_rows(ActivationView x, ResultView y, const ApplyOptions& how, const RowFunction& f) {
  parallel_for(how.execution, ceil_div(x.rows(), kRowsPerTask), [&](index_t task) {
    std::vector<float> row(static_cast<std::size_t>(x.cols()));
    for (index_t m = task * kRowsPerTask; m < std::min(x.rows(), (task + 1) * kRowsPerTask); ++m) {
      reference::load_row(x, m, row);
      f(std::span<float>(row));
      for (std::size_t n = 0; n < row.size(); ++n) {
        const auto col = static_cast<index_t>(n);
        reference::store(y, m, col, reference::apply_epilogue(how.epilogue, m, col, row[n]));
      }
    }
  });
}

inline constexpr std::size_t kMaxHadamard = 4096;

/// Unscaled Walsh-Hadamard transform in the natural order; the length is a power of two up to kMaxHadamard. Every turn
/// adds and subtracts neighbours and moves the bit of the place that told them apart to the top: all come back, and
/// loops are long.
template <class T>
void walsh_hadamard(std::span<T> v) noexcept {
  T other[kMaxHadamard];
  T* from = v.data();
  T* to = other;
  const std::size_t half = v.size() / 2;
  for (std::size_t turns = v.size(); turns > 1; turns /= 2, std::swap(from, to))
    for (std::size_t i = 0; i < half; ++i) {
      const T a = from[2 * i], b = from[2 * i + 1];
      to[i] = a + b;
      to[i + half] = a - b;
    }
  if (from != v.data()) std::copy_n(from, v.size(), v.data());
}

}  // namespace detail

/// The block-diagonal rotation R of normalized Hadamard matrices: symmetric, orthogonal, R R = I. Stores nothing.
///
/// Element (i, j) of a block of b is ±1/√b with the sign of the parity of i AND j. What is left of a row behind the
/// last whole block is cut into smaller powers of two, largest first: 75 columns in blocks of 32 are 32 + 32 + 8 + 2
/// + 1. `apply` takes log2(b) additions and one product an element, in float32 whatever the activation mode.
class BlockHadamard {
 public:
  /// Blocks of `block` features, a power of two from 2 to 4096 (ValueError).
  explicit BlockHadamard(index_t features = 0, index_t block = 32) : features_(features), block_(block) {
    if (block < 2 || block > index_t{detail::kMaxHadamard} || (block & (block - 1)) != 0)
      throw ValueError("BlockHadamard: block = " + std::to_string(block) + ", a power of two from 2 to " +
                       std::to_string(detail::kMaxHadamard) + " needed");
    if (features < 0) throw ShapeError("BlockHadamard: the number of features is negative");
  }

  struct Parameters {
    index_t block = 32;
  };
  Parameters parameters() const noexcept { return {block_}; }
  std::string scheme() const { return "hadamard-b" + std::to_string(block_); }

  /// FormatError for any section, or a shape that is not square.
  static BlockHadamard from_sections(MatrixShape shape, const Parameters& parameters,
                                     std::span<const Section> sections) {
    if (!sections.empty()) throw FormatError("from_sections: section " + sections[0].name + ", none needed");
    if (shape.rows != shape.cols)
      throw FormatError("from_sections: a Hadamard rotation is square, " + to_string(shape) + " came");
    return BlockHadamard(shape.cols, parameters.block);
  }

  index_t out_features() const noexcept { return features_; }
  index_t in_features() const noexcept { return features_; }
  std::vector<Section> sections() const { return {}; }
  std::size_t storage_bytes() const noexcept { return 0; }

  /// row = R row, in place: the same as row · R. The length must be that of the operator. T is float or double.
  template <class T>
  void rotate(std::span<T> row) const noexcept {
    std::size_t size = static_cast<std::size_t>(block_);
    for (std::size_t at = 0; at < row.size(); at += size) {
      while (size > row.size() - at) size /= 2;
      const std::span<T> part = row.subspan(at, size);
      detail::walsh_hadamard(part);
      const T norm = T{1} / std::sqrt(static_cast<T>(size));
      for (T& v : part) v *= norm;
    }
  }

  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    detail::check_apply_shapes("apply", features_, features_, x.shape(), y.shape(), how.epilogue);
    detail::apply_rows(x, y, how, [&](std::span<float> row) { rotate(row); });
  }
  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    if (!how.epilogue.empty()) throw ValueError("apply_transpose: an epilogue is not supported");
    detail::check_apply_shapes("apply_transpose", features_, features_, y.shape(), x.shape(), {});
    detail::apply_rows(y, x, how, [&](std::span<float> row) { rotate(row); });
  }
  void decode_rows(std::span<const index_t> rows, MatrixView<float> y) const {
    detail::check_decode_rows("decode_rows", {features_, features_}, rows, y.shape());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::span<float> row = y.row(static_cast<index_t>(i));
      std::fill(row.begin(), row.end(), 0.0f);
      row[static_cast<std::size_t>(rows[i])] = 1.0f;
      rotate(row);
    }
  }

  /// W · R in place. Cost: one pass.
  void rotate_rows(MatrixView<float> w, const Execution& how = {}) const {
    if (w.cols() != features_)
      throw ShapeError("rotate_rows: w has " + std::to_string(w.cols()) + " columns, " + std::to_string(features_) +
                       " needed");
    parallel_for(how, w.rows(), [&](index_t r) { rotate(w.row(r)); });
  }

 private:
  index_t features_;
  index_t block_;
};

/// x ∘ scale: a diagonal matrix of float32.
class ChannelScale {
 public:
  ChannelScale() : ChannelScale(std::vector<float>()) {}
  /// ValueError for a scale that is NaN or infinite.
  explicit ChannelScale(const std::vector<float>& scales) {
    AlignedBuffer<float> buffer(static_cast<index_t>(scales.size()));
    std::copy(scales.begin(), scales.end(), buffer.begin());
    stored_ = Stored::encode(MatrixView<const float>(buffer.data(), 1, buffer.size()));
    load();
  }

  struct Parameters {};
  Parameters parameters() const noexcept { return {}; }
  std::string scheme() const { return "channel-scale"; }

  /// One section, `scales`: float32, little endian. FormatError for others, or a shape that is not square.
  static ChannelScale from_sections(MatrixShape shape, const Parameters&, std::span<const Section> sections) {
    if (shape.rows != shape.cols || sections.size() != 1 || sections[0].name != "scales")
      throw FormatError("from_sections: a square shape and the section scales needed, " + to_string(shape) + " and " +
                        std::to_string(sections.size()) + " sections came");
    const Section values{DenseFormat<float>{}.sections(shape.cols)[0].name, sections[0].data};
    ChannelScale op;
    op.stored_ = Stored::from_sections({1, shape.cols}, {}, std::span(&values, 1));
    op.load();
    return op;
  }

  index_t out_features() const noexcept { return static_cast<index_t>(scales_.size()); }
  index_t in_features() const noexcept { return out_features(); }
  std::vector<Section> sections() const { return {{"scales", stored_.sections()[0].data}}; }
  std::size_t storage_bytes() const noexcept { return stored_.storage_bytes(); }
  std::span<const float> scales() const noexcept { return scales_; }

  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    detail::check_apply_shapes("apply", out_features(), in_features(), x.shape(), y.shape(), how.epilogue);
    detail::apply_rows(x, y, how, [&](std::span<float> row) { scale(row); });
  }
  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    if (!how.epilogue.empty()) throw ValueError("apply_transpose: an epilogue is not supported");
    detail::check_apply_shapes("apply_transpose", in_features(), out_features(), y.shape(), x.shape(), {});
    detail::apply_rows(y, x, how, [&](std::span<float> row) { scale(row); });
  }
  void decode_rows(std::span<const index_t> rows, MatrixView<float> y) const {
    detail::check_decode_rows("decode_rows", {out_features(), in_features()}, rows, y.shape());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::span<float> row = y.row(static_cast<index_t>(i));
      std::fill(row.begin(), row.end(), 0.0f);
      row[static_cast<std::size_t>(rows[i])] = scales_[static_cast<std::size_t>(rows[i])];
    }
  }

 private:
  using Stored = RowMatrix<DenseFormat<float>>;
  void scale(std::span<float> row) const noexcept {
    for (std::size_t j = 0; j < row.size(); ++j) row[j] *= scales_[j];
  }
  void load() {
    scales_.resize(static_cast<std::size_t>(stored_.in_features()));
    const index_t first = 0;
    stored_.decode_rows(std::span(&first, 1), MatrixView<float>(scales_.data(), 1, stored_.in_features()));
  }

  Stored stored_;
  std::vector<float> scales_;
};

/// Q(W R) R with blocks of `block`.
template <RowFormat F>
Compose<RowMatrix<F>, BlockHadamard> encode_rotated(MatrixView<const float> w, const F& format, index_t block = 32,
                                                    const EncodeOptions& options = {}) {
  const BlockHadamard rotation(w.cols(), block);
  auto rotated = AlignedBuffer<float>::uninitialized(checked_mul(w.rows(), w.cols(), "encode_rotated"));
  const MatrixView<float> view(rotated.data(), w.rows(), w.cols());
  for (index_t r = 0; r < w.rows(); ++r) std::copy_n(w.row_data(r), w.cols(), view.row_data(r));
  const MatrixShape bad = find_non_finite(w);
  if (bad.rows >= 0)
    throw ValueError("encode_rotated: w is not finite at row " + std::to_string(bad.rows) + ", column " +
                     std::to_string(bad.cols));
  rotation.rotate_rows(view, options.execution);
  return {RowMatrix<F>::encode(MatrixView<const float>(view), format, options), rotation};
}

}  // namespace blockpack::inline BLOCKPACK_ABI
