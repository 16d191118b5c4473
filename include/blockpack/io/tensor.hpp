// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A named tensor of a file, and how its rows become floats.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"
#include "blockpack/io/dtype.hpp"
#include "blockpack/io/mapped_file.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// What a reader of hostile bytes accepts at most, and whether it insists on the letter of the format.
struct ReadLimits {
  std::uint64_t max_header_bytes = 100'000'000;  ///< JSON header or index; npy has its own, smaller limit
  std::uint64_t max_tensors = 1'000'000;
  std::uint64_t max_metadata_entries = 1'000'000;
  std::uint64_t max_name_bytes = 65'536;
  std::uint64_t max_rank = 64;
  bool strict = false;  ///< also refuse what the reference implementation lets pass
};

/// What a writer needs to know of a tensor before its bytes arrive.
struct TensorSpec {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<index_t> shape;
};

/// A tensor in a file: row-major, little-endian, no strides. Copies share the bytes.
struct Tensor {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<index_t> shape;
  SharedBytes data;                           ///< at any alignment: copy values out, never cast the pointer
  std::shared_ptr<const MappedFile> mapping;  ///< where `data` lies, or empty for bytes in memory

  TensorSpec spec() const { return {name, dtype, shape}; }
};

/// Product of the dimensions, 1 for rank 0. ShapeError when it overflows.
BLOCKPACK_API index_t element_count(const std::vector<index_t>& shape);

/// Bytes of a tensor. ShapeError when a dimension is negative, when the product overflows or when the bits are not a
/// whole number of bytes.
BLOCKPACK_API std::uint64_t tensor_bytes(const TensorSpec& spec);

/// The tensor as a matrix: the first dimension by the product of the others; rank 1 is one row, rank 0 is 1x1.
BLOCKPACK_API MatrixShape matrix_shape(const std::vector<index_t>& shape);

/// What happens to mapped pages after they have been read.
enum class Pages : std::uint8_t {
  keep,
  release  ///< given back to the system, so that streaming through a large file does not grow the process
};

/// Rows [first_row, first_row + dst.rows()) of matrix_shape(tensor.shape) as floats.
///
/// Shapes:  dst [rows, cols] with the columns of the matrix, any row_stride.
/// Errors:  UnsupportedError that names tensor and dtype when it is not `computable`; ShapeError when the rows do not
///          lie inside or the columns differ. dst is then untouched.
/// Cost:    one pass over the rows; no allocation.
BLOCKPACK_API void read_rows_f32(const Tensor& tensor, index_t first_row, MatrixView<float> dst,
                                 Pages pages = Pages::keep);

/// The stored bytes of rows [first_row, first_row + rows), without a copy. ShapeError as above, and when a row is not a
/// whole number of bytes.
BLOCKPACK_API std::span<const std::byte> row_bytes(const Tensor& tensor, index_t first_row, index_t rows);

/// Gives the mapped pages of these rows back; nothing for a tensor in memory.
BLOCKPACK_API void release_rows(const Tensor& tensor, index_t first_row, index_t rows);

}  // namespace blockpack::inline BLOCKPACK_ABI
