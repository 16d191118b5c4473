// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What the scorers look at: views of stored weights (float, bf16 or fp16) and blocks, lists of matrices that are
/// scored as one.

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// The scalar type weights are stored in.
enum class StoredType : std::uint8_t { f32, bf16, fp16 };
constexpr const char* to_string(StoredType type) noexcept {
  return type == StoredType::f32 ? "f32" : (type == StoredType::bf16 ? "bf16" : "fp16");
}

template <class T>
concept StoredScalar = std::is_same_v < std::remove_const_t<T>,
float > || std::is_same_v<std::remove_const_t<T>, bf16> || std::is_same_v<std::remove_const_t<T>, fp16>;

/// A read-only matrix of one of the stored types. Non-owning, like MatrixView.
class WeightView {
 public:
  WeightView() = default;
  template <StoredScalar T>
  WeightView(MatrixView<T> w) noexcept  // NOLINT(google-explicit-constructor)
      : data_(w.data()), rows_(w.rows()), cols_(w.cols()), row_stride_(w.row_stride()), type_(type_of<T>()) {}
  /// One row.
  template <StoredScalar T>
  WeightView(std::span<T> w)  // NOLINT(google-explicit-constructor)
      : WeightView(MatrixView<T>(w.data(), 1, static_cast<index_t>(w.size()))) {}

  StoredType type() const noexcept { return type_; }
  index_t rows() const noexcept { return rows_; }
  index_t cols() const noexcept { return cols_; }
  MatrixShape shape() const noexcept { return {rows_, cols_}; }
  index_t size() const noexcept { return rows_ * cols_; }
  index_t bytes() const noexcept { return size() * (type_ == StoredType::f32 ? 4 : 2); }

  /// The view in its own type: call f with a MatrixView<const float>, <const bf16> or <const fp16>.
  template <class F>
  decltype(auto) visit(F&& f) const {
    switch (type_) {
      case StoredType::bf16:
        return f(as<bf16>());
      case StoredType::fp16:
        return f(as<fp16>());
      case StoredType::f32:
        break;
    }
    return f(as<float>());
  }

  /// Rows [row, row + rows) and columns [col, col + cols). ShapeError if they do not lie inside.
  WeightView block(index_t row, index_t col, index_t rows, index_t cols) const {
    return visit([&](auto w) { return WeightView(w.block(row, col, rows, cols)); });
  }

 private:
  template <class T>
  static constexpr StoredType type_of() noexcept {
    using U = std::remove_const_t<T>;
    return std::is_same_v<U, float> ? StoredType::f32 : (std::is_same_v<U, bf16> ? StoredType::bf16 : StoredType::fp16);
  }
  template <class T>
  MatrixView<const T> as() const {
    return {static_cast<const T*>(data_), rows_, cols_, row_stride_};
  }

  const void* data_ = nullptr;
  index_t rows_ = 0;
  index_t cols_ = 0;
  index_t row_stride_ = 0;
  StoredType type_ = StoredType::f32;
};

/// Matrices that are scored together, concatenated and without scaling. The rule for transformers: all rank-2 weights
/// of the block; biases and normalisation gains stay out.
struct WeightBlock {
  std::string name;
  std::vector<WeightView> matrices;

  WeightBlock() = default;
  WeightBlock(std::string block_name, std::vector<WeightView> parts)
      : name(std::move(block_name)), matrices(std::move(parts)) {}
  /// One matrix, or one run of weights.
  WeightBlock(WeightView w) : matrices{w} {}  // NOLINT(google-explicit-constructor)
  template <StoredScalar T>
  WeightBlock(MatrixView<T> w) : matrices{WeightView(w)} {}  // NOLINT(google-explicit-constructor)
  template <StoredScalar T>
  WeightBlock(std::span<T> w) : matrices{WeightView(w)} {}  // NOLINT(google-explicit-constructor)

  index_t size() const noexcept {
    index_t n = 0;
    for (const WeightView& w : matrices) n += w.size();
    return n;
  }
  index_t bytes() const noexcept {
    index_t n = 0;
    for (const WeightView& w : matrices) n += w.bytes();
    return n;
  }
  bool has(StoredType type) const noexcept {
    return std::any_of(matrices.begin(), matrices.end(),
                       [&](const WeightView& w) { return w.type() == type && w.size() > 0; });
  }
};

namespace detail {

/// Calls f(std::span<const T>) for the weights [begin, end) of the concatenated block, run by run: a whole matrix where
/// its rows touch, else a row.
template <class F>
void for_each_run(const WeightBlock& block, index_t begin, index_t end, F&& f) {
  index_t first = 0;  // of this matrix
  for (const WeightView& view : block.matrices) {
    const index_t last = first + view.size();
    if (begin < last && first < end && view.size() > 0) {
      view.visit([&](auto w) {
        index_t at = std::max(begin, first) - first;
        const index_t stop = std::min(end, last) - first;
        const index_t run = w.rows() == 1 || w.row_stride() == w.cols() ? w.rows() * w.cols() : w.cols();
        while (at < stop) {
          const index_t n = std::min(stop, (at / run + 1) * run) - at;
          const auto* data = run == w.rows() * w.cols() ? w.data() + at : w.row_data(at / run) + at % run;
          f(std::span(data, static_cast<std::size_t>(n)));
          at += n;
        }
      });
    }
    first = last;
  }
}

}  // namespace detail

}  // namespace blockpack::inline BLOCKPACK_ABI
