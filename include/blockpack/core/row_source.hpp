// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Rows of a weight matrix, produced on demand: how a compressed form feeds the engine and the reference.

#include <algorithm>

#include "blockpack/core/config.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// The element type of dense and of packed weights.
enum class WeightType : std::uint8_t { f32, bf16 };

/// Plain pointers, so that it crosses into the compiled backend. Functions are called from several threads at once.
struct RowSource {
  /// Columns passed to `decode_…` start at a multiple of this, so a format whose blocks divide it decodes whole blocks.
  static constexpr index_t kColumnStep = 512;

  index_t rows = 0;  ///< out_features
  index_t cols = 0;  ///< in_features
  const void* self = nullptr;
  /// Writes W[row, col … col + count) to dst.
  void (*decode_f32)(const void* self, index_t row, index_t col, index_t count, float* dst) = nullptr;
  /// The same in bf16, for forms whose values are exact in bf16; null for others (the engine then rounds decode_f32).
  void (*decode_bf16)(const void* self, index_t row, index_t col, index_t count, bf16* dst) = nullptr;
  /// For dense storage: row-major memory of the named type, which kernels may read in place; null otherwise.
  const void* dense = nullptr;
  WeightType dense_type = WeightType::f32;
  index_t dense_row_stride = 0;  ///< in elements
};

/// The rows of a float matrix in memory; the view, which must outlive the source, may have any row_stride.
inline RowSource rows_of(const MatrixView<const float>& w) {
  RowSource source;
  source.rows = w.rows();
  source.cols = w.cols();
  source.dense = w.data();
  source.dense_type = WeightType::f32;
  source.dense_row_stride = w.row_stride();
  source.self = &w;
  source.decode_f32 = [](const void* self, index_t row, index_t col, index_t count, float* dst) {
    std::copy_n(static_cast<const MatrixView<const float>*>(self)->row_data(row) + col, count, dst);
  };
  return source;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
