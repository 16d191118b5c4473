// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Dense weights: `Dense<float>`, `Dense<bf16>`, `Dense<fp16>`, the row format whose bytes are the values themselves.

#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>

#include "blockpack/core/config.hpp"
#include "blockpack/core/convert.hpp"
#include "blockpack/core/row_matrix.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Values of T, little endian, row after row, in one section `values`. Schemes `f32`, `bf16`, `fp16`.
template <class T>
struct DenseFormat {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, bf16> || std::is_same_v<T, fp16>);
  using value_type = T;

  std::string scheme() const { return std::is_same_v<T, float> ? "f32" : std::is_same_v<T, bf16> ? "bf16" : "fp16"; }
  std::vector<SectionSpec> sections(index_t cols) const {
    return {{"values", checked_mul(cols, static_cast<index_t>(sizeof(T)), "DenseFormat")}};
  }
  bool can_store_nan() const noexcept { return true; }
  bool exact_in_bf16() const noexcept { return std::is_same_v<T, bf16>; }

  /// ValueError for a weight that rounds to infinity.
  void check_row(const EncodeRow& row) const {
    for (std::size_t j = 0; j < row.weights.size(); ++j)
      if (std::isinf(static_cast<float>(T(row.weights[j]))))
        throw ValueError("encode_rows: w at row " + std::to_string(row.row) + ", column " + std::to_string(j) +
                         " is beyond the range of " + scheme());
  }
  /// Half to even. What rounds to infinity is the largest finite value under `saturate`.
  void encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const {
    if (row.weights.empty()) return;
    if constexpr (std::is_same_v<T, float>) {
      std::memcpy(dst[0], row.weights.data(), row.weights.size_bytes());
    } else {
      detail::convert_from_f32<T>(kKind, row.weights.data(), dst[0], row.weights.size(), active_isa());
    }
    if (row.non_finite != NonFinite::saturate || !detail::has_large(row.weights)) return;
    for (std::size_t j = 0; j < row.weights.size(); ++j) {
      if (!std::isinf(static_cast<float>(T(row.weights[j])))) continue;
      const T value = largest(row.weights[j] < 0);
      std::memcpy(dst[0] + j * sizeof(T), &value, sizeof(T));
    }
  }
  void decode_row(std::span<const std::byte* const> src, index_t /*cols*/, index_t col, std::span<float> dst) const {
    if (dst.empty()) return;
    const std::byte* p = src[0] + col * static_cast<index_t>(sizeof(T));
    if constexpr (std::is_same_v<T, float>) {
      std::memcpy(dst.data(), p, dst.size_bytes());
    } else {
      detail::convert_to_f32<T>(kKind, p, dst.data(), dst.size(), active_isa());
    }
  }
  void decode_row_bf16(std::span<const std::byte* const> src, index_t /*cols*/, index_t col, std::span<bf16> dst) const
      requires(std::is_same_v<T, bf16>) {
    if (!dst.empty()) std::memcpy(dst.data(), src[0] + col * 2, dst.size_bytes());
  }

  friend bool operator==(const DenseFormat&, const DenseFormat&) = default;

 private:
  static constexpr detail::ScalarKind kKind =
      std::is_same_v<T, bf16> ? detail::ScalarKind::bf16 : detail::ScalarKind::fp16;
  static T largest(bool negative) noexcept {
    if constexpr (std::is_same_v<T, float>) {
      return negative ? -std::numeric_limits<float>::max() : std::numeric_limits<float>::max();
    } else {
      const std::uint16_t magnitude = std::is_same_v<T, bf16> ? 0x7f7f : 0x7bff;
      return T::from_bits(static_cast<std::uint16_t>(magnitude | (negative ? 0x8000 : 0)));
    }
  }
};

template <class T>
using Dense = RowMatrix<DenseFormat<T>>;

/// A dense operator over the caller's own contiguous memory [out, in], without a copy. ShapeError when the rows are not
/// contiguous (encode copies them instead). The memory must outlive the operator and its copies.
template <class T>
Dense<std::remove_const_t<T>> dense_view(MatrixView<T> w, PackPolicy policy = {}) {
  using Value = std::remove_const_t<T>;
  if (w.rows() > 1 && w.row_stride() != w.cols())
    throw ShapeError("dense_view: w has row_stride " + std::to_string(w.row_stride()) + ", contiguous rows of " +
                     std::to_string(w.cols()) + " needed");
  const std::span<const Value> values(w.data(), static_cast<std::size_t>(w.rows() * w.cols()));
  const Section section{"values", SharedBytes(std::as_bytes(values), nullptr)};
  return Dense<Value>::from_sections(w.shape(), {}, std::span(&section, 1), policy);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
