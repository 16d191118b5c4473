// SPDX-License-Identifier: Apache-2.0
// Any bytes as a safetensors file: refused with a FormatError, or every tensor lies inside and can be read.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "blockpack/io/safetensors.hpp"

using namespace blockpack;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  ReadLimits limits;
  limits.max_tensors = 1000;
  try {
    const SafetensorsFile file = SafetensorsFile::parse(bytes, limits);
    std::uint64_t next = file.data_offset();
    for (const Tensor& tensor : file.tensors()) {
      // No hole, no overlap, and the size its shape says.
      if (tensor.data.bytes.data() != bytes.data() + next) std::abort();
      if (tensor.data.bytes.size() != tensor_bytes(tensor.spec())) std::abort();
      if (file.find(tensor.name) != &tensor) std::abort();
      next += tensor.data.bytes.size();
      if (!computable(tensor.dtype)) continue;
      try {
        const MatrixShape shape = matrix_shape(tensor.shape);
        std::vector<float> row(static_cast<std::size_t>(shape.rows == 0 ? 0 : shape.cols));
        for (index_t i = 0; i < shape.rows && !row.empty(); ++i)
          read_rows_f32(tensor, i, MatrixView<float>(row.data(), 1, shape.cols));
      } catch (const ShapeError&) {  // no elements, but dimensions whose product overflows
      }
    }
    if (next != size) std::abort();
  } catch (const FormatError& error) {
    if (error.code().empty()) std::abort();
  }
  return 0;
}
