// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The grids of all groups of a matrix: what a rounding algorithm works on, whatever the format. `WeightGrids` is the
/// view of the algorithms, `FormatGrids<F>` keeps the parameters of a format and turns chosen values into its bytes.

#include <algorithm>
#include <cmath>
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
  WeightGrids(MatrixShape shape, index_t group_size, index_t groups_per_fit = 1)
      : shape_(shape), group_size_(group_size), groups_per_fit_(groups_per_fit) {}
  virtual ~WeightGrids() = default;

  MatrixShape shape() const noexcept { return shape_; }
  index_t group_size() const noexcept { return group_size_; }
  index_t groups() const noexcept { return ceil_div(shape_.cols, group_size_); }
  /// Groups are fitted together from every groups_per_fit-th on.
  index_t groups_per_fit() const noexcept { return groups_per_fit_; }

  /// Fits the parameters of the groups fitted together from `group` on to these values (one for each of their columns)
  /// and keeps them. `columns` says which columns of the matrix the values belong to, for the importance; empty: those
  /// of the groups. ValueError when the format cannot store the parameters.
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
  index_t group_size_, groups_per_fit_;
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

/// The weights within `band` of the middle between two neighbouring values of their fitted grids, as a share of their
/// distance: those that a small step would move to another value (near_threshold_mask of quant/ofq.hpp for any format).
///
/// Shapes:  w and near [rows, cols], the grids' shape; near is 1 or 0.
/// Errors:  ShapeError for another shape; ValueError for a band outside [0, 1/2].
inline void near_threshold_mask(MatrixView<const float> w, const WeightGrids& grids, float band,
                                MatrixView<std::uint8_t> near) {
  if (near.shape() != w.shape() || grids.shape() != w.shape())
    throw ShapeError("near_threshold_mask: near is " + to_string(near.shape()) + " and grids " +
                     to_string(grids.shape()) + ", " + to_string(w.shape()) + " needed");
  if (!(band >= 0.0f && band <= 0.5f))
    throw ValueError("near_threshold_mask: band = " + std::to_string(band) + ", 0 to 0.5 needed");
  for (index_t r = 0; r < w.rows(); ++r)
    for (index_t g = 0; g < grids.groups(); ++g) {
      const Grid grid = grids.grid(r, g);
      for (index_t c = g * grids.group_size(); c < std::min(w.cols(), (g + 1) * grids.group_size()); ++c) {
        const float down = grid.down(w(r, c)), up = grid.up(w(r, c));
        near(r, c) = down < up && std::fabs((w(r, c) - down) / (up - down) - 0.5f) <= band ? 1 : 0;
      }
    }
}

/// The grids of one format; a format with parameters of the whole matrix must be fitted to it. `options.importance` and
/// `options.non_finite` (for scales beyond the format) go to every fit; its memory must outlive this object.
template <GridFormat F>
class FormatGrids final : public WeightGrids {
 public:
  using Parameters = typename GridTraits<F>::Parameters;

  FormatGrids(const F& format, MatrixShape shape, const EncodeOptions& options = {})
      : WeightGrids(shape, GridTraits<F>::group_size(format, shape.cols), fitted_together(format)),
        format_(format),
        options_(options) {
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
    GridTraits<F>::fit(format_, part,
                       std::span(parameters_)
                           .subspan(at(row, group), static_cast<std::size_t>(
                                                        ceil_div(static_cast<index_t>(values.size()), group_size()))));
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
  static index_t fitted_together(const F& format) {
    if constexpr (requires { GridTraits<F>::groups_per_fit(format); }) return GridTraits<F>::groups_per_fit(format);
    static_cast<void>(format);
    return 1;
  }
  std::size_t at(index_t row, index_t group) const noexcept { return static_cast<std::size_t>(row * groups() + group); }
  std::span<const Parameters> row_parameters(index_t row) const noexcept {
    return std::span(parameters_).subspan(at(row, 0), static_cast<std::size_t>(groups()));
  }

  F format_;
  EncodeOptions options_;
  std::vector<Parameters> parameters_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
