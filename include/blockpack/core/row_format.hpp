// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Formats that store a matrix row by row: dense types, block floating point, MX, group integers. A row format is a
/// small value (its parameters) that says which byte sections a row of `cols` weights takes and turns one row into them
/// and back. Everything else is shared: parallel encoding, streaming by panels, the operator (core/row_matrix.hpp),
/// files.

#include <algorithm>
#include <bit>
#include <concepts>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// What an encoder does with NaN and infinity, the same in debug and release builds.
enum class NonFinite : std::uint8_t {
  reject,    ///< ValueError with row and column of the first one, the destination untouched
  saturate,  ///< infinity to the largest finite value of the format, NaN to 0
  propagate  ///< kept, for formats that can store NaN; UnsupportedError for others
};

struct EncodeOptions {
  NonFinite non_finite = NonFinite::reject;
  /// Importance of errors, >= 0: empty, [1, in] (per column, for every row) or [out, in] (per weight).
  MatrixView<const float> importance;
  Execution execution;
};

/// One byte section of a stored matrix: row r occupies bytes [r * bytes_per_row, (r + 1) * bytes_per_row).
struct SectionSpec {
  std::string name;
  index_t bytes_per_row = 0;
};

/// One row to encode. `weights` are finite unless the policy is `propagate`; infinities are ±inf under `saturate` and
/// the format clamps them, NaN has become 0. `importance` is empty or as long as `weights`. `row` is its index in the
/// matrix, for formats with a counter-based random rounding.
struct EncodeRow {
  std::span<const float> weights;
  std::span<const float> importance;
  index_t row = 0;
  NonFinite non_finite = NonFinite::reject;
};

/// `sections(cols)` gives one spec per section, in file order; `dst` and `src` have one pointer per section to the
/// start of the row's bytes. `decode_row` writes W[col … col + dst.size()) where col is a multiple of
/// RowSource::kColumnStep.
template <class F>
concept RowFormat = std::copyable<F> &&
    requires(const F& f, index_t cols, const EncodeRow& row, std::span<std::byte* const> dst,
             std::span<const std::byte* const> src, std::span<float> out) {
  { f.scheme() } -> std::convertible_to<std::string>;  // canonical scheme string: "mxfp4", "bfp12-b32"
  { f.sections(cols) } -> std::same_as<std::vector<SectionSpec>>;
  { f.can_store_nan() } -> std::same_as<bool>;
  { f.exact_in_bf16() } -> std::same_as<bool>;  // every decoded value is a bf16
  f.encode_row(row, dst);
  f.decode_row(src, cols, cols, out);  // (sections of the row, cols of W, first col, dst)
};

/// Stored bits per weight of rows of `cols` weights, scales and padding included.
template <RowFormat F>
double bits_per_weight(const F& format, index_t cols) {
  double bytes = 0;
  for (const SectionSpec& s : format.sections(cols)) bytes += static_cast<double>(s.bytes_per_row);
  return cols == 0 ? 0.0 : 8.0 * bytes / static_cast<double>(cols);
}

/// Row and column of the first NaN or infinity, or {-1, -1}.
inline MatrixShape find_non_finite(MatrixView<const float> w) noexcept {
  for (index_t i = 0; i < w.rows(); ++i) {
    const std::span<const float> row = w.row(i);
    std::uint32_t top = 0;  // no early exit: the loop vectorizes
    for (const float v : row) top |= ((std::bit_cast<std::uint32_t>(v) & 0x7f800000u) + 0x00800000u);
    if ((top & 0x80000000u) == 0) continue;
    for (index_t j = 0; j < w.cols(); ++j)
      if ((std::bit_cast<std::uint32_t>(row[static_cast<std::size_t>(j)]) & 0x7f800000u) == 0x7f800000u) return {i, j};
  }
  return {-1, -1};
}

/// Encodes a panel of rows.
///
/// Shapes:  w [rows, cols]; dst has one pointer per section, to the bytes of the panel's first row; options.importance
///          is empty, [1, cols] or [rows, cols] for the panel's rows. `first_row` is the panel's place in the matrix.
/// Errors:  ValueError on NaN or infinity under `reject`, before anything is written; UnsupportedError for `propagate`
///          where the format cannot store NaN; ShapeError for another shape of importance or a negative importance.
/// Cost:    reads w twice (once for the check); rows in parallel; the bytes do not depend on the threads.
template <RowFormat F>
void encode_rows(const F& format, MatrixView<const float> w, index_t first_row, std::span<std::byte* const> dst,
                 const EncodeOptions& options) {
  const std::vector<SectionSpec> sections = format.sections(w.cols());
  if (dst.size() != sections.size())
    throw ShapeError("encode_rows: dst has " + std::to_string(dst.size()) + " sections, " +
                     std::to_string(sections.size()) + " needed");
  const MatrixView<const float>& importance = options.importance;
  if (importance.data() != nullptr &&
      (importance.cols() != w.cols() || (importance.rows() != 1 && importance.rows() != w.rows())))
    throw ShapeError("encode_rows: importance is " + to_string(importance.shape()) + ", 1x" + std::to_string(w.cols()) +
                     " or " + to_string(w.shape()) + " needed");
  if (options.non_finite == NonFinite::propagate && !format.can_store_nan())
    throw UnsupportedError("encode_rows: " + std::string(format.scheme()) +
                           " cannot store NaN, `propagate` is refused");
  const MatrixShape bad = find_non_finite(w);
  if (bad.rows >= 0 && options.non_finite == NonFinite::reject)
    throw ValueError("encode_rows: w is not finite at row " + std::to_string(first_row + bad.rows) + ", column " +
                     std::to_string(bad.cols) + "; pass NonFinite::saturate to clamp");
  const bool clean = bad.rows < 0 || options.non_finite == NonFinite::propagate;

  constexpr index_t kRowsPerTask = 16;
  parallel_for(options.execution, ceil_div(w.rows(), kRowsPerTask), [&](index_t task) {
    std::vector<float> without_nan(clean ? 0 : static_cast<std::size_t>(w.cols()));
    std::vector<std::byte*> row_dst(dst.size());
    const index_t end = std::min(w.rows(), (task + 1) * kRowsPerTask);
    for (index_t i = task * kRowsPerTask; i < end; ++i) {
      EncodeRow row{w.row(i), {}, first_row + i, options.non_finite};
      if (!clean) {
        for (std::size_t j = 0; j < without_nan.size(); ++j)
          without_nan[j] = row.weights[j] != row.weights[j] ? 0.0f : row.weights[j];
        row.weights = without_nan;
      }
      if (importance.data() != nullptr) row.importance = importance.row(importance.rows() == 1 ? 0 : i);
      for (std::size_t s = 0; s < dst.size(); ++s) row_dst[s] = dst[s] + i * sections[s].bytes_per_row;
      format.encode_row(row, row_dst);
    }
  });
}

}  // namespace blockpack::inline BLOCKPACK_ABI
