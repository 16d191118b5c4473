// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The grids of all groups of a matrix: what a rounding algorithm works on, whatever the format. `WeightGrids` is the
/// view of the algorithms, `FormatGrids<F>` keeps the parameters of a format and turns chosen values into its bytes.

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/quant/grid.hpp"
#include "blockpack/quant/quantized_matrix.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Group g of a row is its columns [g * group_size, …). Members may be called at once for different rows.
class WeightGrids {
 public:
  WeightGrids(MatrixShape shape, index_t group_size) : shape_(shape), group_size_(group_size) {}
  virtual ~WeightGrids() = default;

  MatrixShape shape() const noexcept { return shape_; }
  index_t group_size() const noexcept { return group_size_; }
  index_t groups() const noexcept { return ceil_div(shape_.cols, group_size_); }

  /// Fits the parameters of a group to these values (one for each column of the group) and keeps them. `columns` says
  /// which columns of the matrix the values belong to, for the importance; empty: those of the group. ValueError when
  /// the format cannot store the parameters.
  virtual void fit(index_t row, index_t group, std::span<const float> values, std::span<const index_t> columns) = 0;

  /// The grid of a group that was fitted. All grids of a matrix are of integers, or all have the same table.
  virtual Grid grid(index_t row, index_t group) const = 0;

  /// Changes the scale of a group to the nearest one that can be stored; false where the format's scales are fixed.
  virtual bool set_scale(index_t row, index_t group, float scale) = 0;

 protected:
  WeightGrids(const WeightGrids&) = default;
  WeightGrids& operator=(const WeightGrids&) = default;

 private:
  MatrixShape shape_;
  index_t group_size_;
};

namespace detail {

/// ShapeError for an importance of another shape than [1, cols] or w's; ValueError for a negative or NaN one.
inline void check_importance(const char* function, MatrixView<const float> importance, MatrixShape w) {
  if (importance.data() == nullptr) return;
  if (importance.cols() != w.cols || (importance.rows() != 1 && importance.rows() != w.rows))
    throw ShapeError(std::string(function) + ": importance is " + to_string(importance.shape()) + ", 1x" +
                     std::to_string(w.cols) + " or " + to_string(w) + " needed");
  for (index_t i = 0; i < importance.rows(); ++i)
    for (index_t j = 0; j < importance.cols(); ++j)
      if (!(importance(i, j) >= 0.0f && importance(i, j) <= std::numeric_limits<float>::max()))
        throw ValueError(std::string(function) + ": importance is negative or not finite at row " + std::to_string(i) +
                         ", column " + std::to_string(j));
}

}  // namespace detail

/// The grids of one format; a format with parameters of the whole matrix must be fitted to it. `options.importance` and
/// `options.non_finite` (for scales beyond the format) go to every fit; its memory must outlive this object.
template <GridFormat F>
class FormatGrids final : public WeightGrids {
 public:
  using Parameters = typename GridTraits<F>::Parameters;

  FormatGrids(const F& format, MatrixShape shape, const EncodeOptions& options = {})
      : WeightGrids(shape, GridTraits<F>::group_size(format, shape.cols)), format_(format), options_(options) {
    detail::check_importance("FormatGrids", options.importance, shape);
    parameters_.resize(static_cast<std::size_t>(checked_mul(shape.rows, groups(), "FormatGrids")));
  }

  const F& format() const noexcept { return format_; }
  const Parameters& parameters(index_t row, index_t group) const noexcept { return parameters_[at(row, group)]; }

  void fit(index_t row, index_t group, std::span<const float> values, std::span<const index_t> columns) override {
    std::vector<float> importance;
    if (options_.importance.data() != nullptr) {
      const std::span<const float> all = options_.importance.row(options_.importance.rows() == 1 ? 0 : row);
      for (std::size_t i = 0; i < values.size(); ++i) {
        const index_t col = columns.empty() ? group * group_size() + static_cast<index_t>(i) : columns[i];
        importance.push_back(all[static_cast<std::size_t>(col)]);
      }
    }
    const EncodeRow part{values, importance, row, options_.non_finite};
    parameters_[at(row, group)] = GridTraits<F>::fit(format_, part, 0, static_cast<index_t>(values.size()));
  }

  Grid grid(index_t row, index_t group) const override {
    return GridTraits<F>::grid(format_, parameters_[at(row, group)]);
  }

  bool set_scale(index_t row, index_t group, float scale) override {
    return GridTraits<F>::set_scale(format_, parameters_[at(row, group)], scale);
  }

  /// The stored matrix of values that lie on the grids: its decoded values are these, bit for bit. ShapeError for
  /// another shape. Cost: one pass over the values.
  QuantizedMatrix<F> store(MatrixView<const float> values, const Execution& how = {}, PackPolicy policy = {}) const {
    if (values.shape() != shape())
      throw ShapeError("FormatGrids::store: values is " + to_string(values.shape()) + ", " + to_string(shape()) +
                       " needed");
    const std::vector<SectionSpec> specs = format_.sections(shape().cols);
    std::vector<AlignedBuffer<std::byte>> stored;
    for (const SectionSpec& spec : specs) stored.emplace_back(section_bytes(spec, shape().rows, "FormatGrids::store"));
    std::vector<std::byte*> first;
    for (AlignedBuffer<std::byte>& bytes : stored) first.push_back(bytes.data());
    if constexpr (TensorFormat<F>) format_.encode_tensor(first);
    parallel_for(how, shape().rows, [&](index_t row) {
      std::vector<std::byte*> dst = first;
      for (std::size_t s = 0; s < dst.size(); ++s) dst[s] += row * specs[s].bytes_per_row;
      GridTraits<F>::store_row(format_, row_parameters(row), values.row(row), dst);
    });
    std::vector<Section> sections;
    for (std::size_t s = 0; s < stored.size(); ++s)
      sections.push_back({specs[s].name, SharedBytes(std::move(stored[s]))});
    return QuantizedMatrix<F>::from_sections(shape(), format_, sections, policy);
  }

 private:
  std::size_t at(index_t row, index_t group) const noexcept { return static_cast<std::size_t>(row * groups() + group); }
  std::span<const Parameters> row_parameters(index_t row) const noexcept {
    return std::span(parameters_).subspan(at(row, 0), static_cast<std::size_t>(groups()));
  }

  F format_;
  EncodeOptions options_;
  std::vector<Parameters> parameters_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
