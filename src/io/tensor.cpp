// SPDX-License-Identifier: Apache-2.0
#include "blockpack/io/tensor.hpp"

#include <fmt/format.h>

#include "blockpack/io/checked.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

struct RowRange {
  MatrixShape matrix;
  std::uint64_t bytes_per_row;
  std::span<const std::byte> bytes;
};

RowRange row_range(const char* function, const Tensor& tensor, index_t first_row, index_t rows) {
  const MatrixShape matrix = matrix_shape(tensor.shape);
  if (first_row < 0 || rows < 0 || first_row > matrix.rows || rows > matrix.rows - first_row)  // arithmetic: >= 0
    throw ShapeError(fmt::format("{}: tensor '{}' is {}, rows [{}, +{}) do not lie inside", function, tensor.name,
                                 to_string(matrix), first_row, rows));
  const auto bytes_per_row = dtype_bytes(tensor.dtype, static_cast<std::uint64_t>(matrix.cols));
  if (!bytes_per_row)
    throw ShapeError(fmt::format("{}: a row of tensor '{}' ({} of {}) is not a whole number of bytes", function,
                                 tensor.name, matrix.cols, to_string(tensor.dtype)));
  const std::uint64_t begin = size_mul(static_cast<std::uint64_t>(first_row), *bytes_per_row, function);
  const std::uint64_t count = size_mul(static_cast<std::uint64_t>(rows), *bytes_per_row, function);
  return {matrix, *bytes_per_row, slice(tensor.data.bytes, begin, count, function)};
}

}  // namespace

index_t element_count(const std::vector<index_t>& shape) {
  index_t count = 1;
  for (const index_t dimension : shape) count = checked_mul(count, dimension, "element_count");
  return count;
}

std::uint64_t tensor_bytes(const TensorSpec& spec) {
  const auto elements = static_cast<std::uint64_t>(element_count(spec.shape));
  const auto bytes = dtype_bytes(spec.dtype, elements);
  if (!bytes)
    throw ShapeError(fmt::format("tensor_bytes: tensor '{}' with {} elements of {} is not a whole number of bytes",
                                 spec.name, elements, to_string(spec.dtype)));
  return *bytes;
}

MatrixShape matrix_shape(const std::vector<index_t>& shape) {
  if (shape.empty()) return {1, 1};
  if (shape.size() == 1) return {1, element_count(shape)};
  index_t cols = 1;
  for (const index_t dimension : std::span(shape).subspan(1)) cols = checked_mul(cols, dimension, "matrix_shape");
  static_cast<void>(checked_mul(shape.front(), cols, "matrix_shape"));
  return {shape.front(), cols};
}

void read_rows_f32(const Tensor& tensor, index_t first_row, MatrixView<float> dst, Pages pages) {
  constexpr const char* kFunction = "read_rows_f32";
  if (!computable(tensor.dtype))
    throw UnsupportedError(fmt::format("{}: cannot compute with tensor '{}' of dtype {}; keep it as it is", kFunction,
                                       tensor.name, to_string(tensor.dtype)));
  const RowRange range = row_range(kFunction, tensor, first_row, dst.rows());
  if (dst.cols() != range.matrix.cols)
    throw ShapeError(fmt::format("{}: dst has {} columns, tensor '{}' has {}", kFunction, dst.cols(), tensor.name,
                                 range.matrix.cols));
  for (index_t i = 0; i < dst.rows(); ++i) {
    const std::uint64_t begin = size_mul(static_cast<std::uint64_t>(i), range.bytes_per_row, kFunction);
    convert_to_f32(tensor.dtype, slice(range.bytes, begin, range.bytes_per_row, kFunction), dst.row(i), tensor.name);
  }
  if (pages == Pages::release && tensor.mapping) tensor.mapping->release(range.bytes);
}

std::span<const std::byte> row_bytes(const Tensor& tensor, index_t first_row, index_t rows) {
  return row_range("row_bytes", tensor, first_row, rows).bytes;
}

void release_rows(const Tensor& tensor, index_t first_row, index_t rows) {
  const RowRange range = row_range("release_rows", tensor, first_row, rows);
  if (tensor.mapping) tensor.mapping->release(range.bytes);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
