// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Non-owning, row-major, strided matrix views: pointer, rows, cols, row stride. Passed by value, never kept beyond the
/// call. `MatrixView<const float>` is read, `MatrixView<float>` is written.

#include <cassert>
#include <span>
#include <type_traits>

#include "blockpack/core/config.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

template <class T>
class MatrixView {
 public:
  using value_type = std::remove_cv_t<T>;

  constexpr MatrixView() noexcept = default;

  /// Rows start `row_stride` elements apart. ShapeError if a size is negative, if row_stride < cols with more than one
  /// row, or if the extent overflows.
  constexpr MatrixView(T* data, index_t rows, index_t cols, index_t row_stride)
      : data_(data), rows_(rows), cols_(cols), row_stride_(row_stride) {
    if (rows < 0 || cols < 0) throw ShapeError("MatrixView: rows and cols must not be negative");
    if (rows > 1 && row_stride < cols) throw ShapeError("MatrixView: row_stride must be at least cols");
    if (rows > 1) checked_add(checked_mul(rows - 1, row_stride, "MatrixView"), cols, "MatrixView");
  }

  /// Dense rows: row_stride = cols.
  constexpr MatrixView(T* data, index_t rows, index_t cols) : MatrixView(data, rows, cols, cols) {}

  /// A writable view is readable.
  template <class U>
  requires(std::is_same_v<const U, T> && !std::is_const_v<U>) constexpr MatrixView(
      MatrixView<U> other) noexcept  // NOLINT(google-explicit-constructor)
      : data_(other.data()), rows_(other.rows()), cols_(other.cols()), row_stride_(other.row_stride()) {}

  constexpr T* data() const noexcept { return data_; }
  constexpr index_t rows() const noexcept { return rows_; }
  constexpr index_t cols() const noexcept { return cols_; }
  constexpr index_t row_stride() const noexcept { return row_stride_; }
  constexpr MatrixShape shape() const noexcept { return {rows_, cols_}; }
  constexpr bool empty() const noexcept { return rows_ == 0 || cols_ == 0; }

  constexpr T* row_data(index_t i) const noexcept {
    assert(i >= 0 && i < rows_);
    return data_ + i * row_stride_;
  }
  constexpr std::span<T> row(index_t i) const noexcept { return {row_data(i), static_cast<std::size_t>(cols_)}; }

  constexpr T& operator()(index_t i, index_t j) const noexcept {
    assert(j >= 0 && j < cols_);
    return row_data(i)[j];
  }

  /// Rows [row, row + rows) and columns [col, col + cols). ShapeError if they do not lie inside.
  constexpr MatrixView block(index_t row, index_t col, index_t rows, index_t cols) const {
    if (row < 0 || col < 0 || rows < 0 || cols < 0 || row > rows_ - rows || col > cols_ - cols)
      throw ShapeError("MatrixView::block: the block does not lie inside the view");
    MatrixView part = *this;
    part.data_ = data_ == nullptr ? nullptr : data_ + row * row_stride_ + col;
    part.rows_ = rows;
    part.cols_ = cols;
    return part;
  }
  constexpr MatrixView rows_from(index_t row, index_t rows) const { return block(row, 0, rows, cols_); }

 private:
  T* data_ = nullptr;
  index_t rows_ = 0;
  index_t cols_ = 0;
  index_t row_stride_ = 0;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
