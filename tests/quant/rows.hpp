// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A matrix through the row functions of a format.

#include <span>
#include <vector>

#include "blockpack/core/row_format.hpp"

namespace blockpack::test {

/// The stored bytes of a matrix, one vector a section.
using Stored = std::vector<std::vector<std::byte>>;

template <class Format>
Stored encode_matrix(const Format& format, MatrixView<const float> w, const EncodeOptions& options = {}) {
  Stored stored;
  std::vector<std::byte*> dst;
  for (const SectionSpec& s : format.sections(w.cols()))
    stored.emplace_back(static_cast<std::size_t>(section_bytes(s, w.rows(), "encode_matrix")), std::byte{0xa5});
  for (auto& s : stored) dst.push_back(s.data());
  encode_rows(fitted(format, w, options), w, 0, dst, options);
  return stored;
}

/// Columns [col, col + count) of a row; col is a multiple of 512.
template <class Format>
std::vector<float> decode_part(const Format& format, const Stored& stored, index_t row, index_t cols, index_t col,
                               index_t count) {
  const auto specs = format.sections(cols);
  std::vector<const std::byte*> src;
  for (std::size_t s = 0; s < specs.size(); ++s) src.push_back(stored[s].data() + row * specs[s].bytes_per_row);
  std::vector<float> values(static_cast<std::size_t>(count));
  format.decode_row(src, cols, col, values);
  return values;
}

template <class Format>
std::vector<float> decode_matrix(const Format& format, const Stored& stored, MatrixShape shape) {
  std::vector<float> decoded;
  for (index_t r = 0; r < shape.rows; ++r) {
    const std::vector<float> row = decode_part(format, stored, r, shape.cols, 0, shape.cols);
    decoded.insert(decoded.end(), row.begin(), row.end());
  }
  return decoded;
}

/// One row there and back.
template <class Format>
std::vector<float> round_trip(const Format& format, const std::vector<float>& row,
                              NonFinite policy = NonFinite::reject) {
  const MatrixView<const float> w(row.data(), 1, static_cast<index_t>(row.size()));
  EncodeOptions options;
  options.non_finite = policy;
  return decode_matrix(format, encode_matrix(format, w, options), w.shape());
}

/// The bytes of a section as numbers.
inline std::vector<int> numbers(const std::vector<std::byte>& bytes) {
  std::vector<int> result;
  for (const std::byte b : bytes) result.push_back(std::to_integer<int>(b));
  return result;
}

/// Sum of weight * (a - b)², weight 1 where there is none.
inline double squared_error(const std::vector<float>& a, const std::vector<float>& b,
                            const std::vector<float>& weight = {}) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double e = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += (weight.empty() ? 1.0 : static_cast<double>(weight[i])) * e * e;
  }
  return sum;
}

}  // namespace blockpack::test
