// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Formats that store a matrix row by row: dense types, block floating point, MX, group integers. A row format is a
/// small value (its parameters) that says which byte sections a row of `cols` weights takes and turns one row into them
/// and back. Everything else is shared: parallel encoding, streaming by panels, the operator (core/row_matrix.hpp),
/// files.

#include <algorithm>
#include <bit>
#include <concepts>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/fwd.hpp"
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
  /// XᵀX of the layer's inputs, for codecs whose rounding looks at it; a format by itself never does.
  const GramMatrix* gram = nullptr;
  /// Inputs of the layer [tokens, in], for codecs that fit to its outputs token by token.
  MatrixView<const float> inputs;
  Execution execution;
};

/// One byte section of a stored matrix: row r occupies bytes [r * bytes_per_row, (r + 1) * bytes_per_row). A section of
/// the whole matrix has bytes_per_row 0 and `bytes_per_tensor` bytes, which every row reads.
struct SectionSpec {
  std::string name;
  index_t bytes_per_row = 0;
  index_t bytes_per_tensor = 0;
};

/// Bytes of a section of a matrix with `rows` rows. ShapeError when they overflow.
inline index_t section_bytes(const SectionSpec& section, index_t rows, const char* function) {
  return checked_add(checked_mul(rows, section.bytes_per_row, function), section.bytes_per_tensor, function);
}

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

/// What formats with a parameter of the whole matrix know of it: one pass over the weights, row panel by row panel.
/// The numbers depend neither on the panels nor on the threads.
struct TensorStatistics {
  float absmax = 0.0f;   ///< largest |w|
  double sum_abs = 0.0;  ///< of |w|: in double, eight interleaved sums a row, rows in order
  index_t count = 0;     ///< weights
  index_t rows = 0;

  double mean_abs() const noexcept { return count == 0 ? 0.0 : sum_abs / static_cast<double>(count); }

  /// The next rows of the matrix. NaN counts as 0, and so does infinity under `propagate`, otherwise as the largest
  /// float (under `reject` the encoder refuses it later).
  void add(MatrixView<const float> w, NonFinite non_finite, const Execution& how);
};

/// A row format with parameters of the whole matrix beside those of its rows: the scale of NVFP4, the mean of BitNet.
/// `fitted_to` gives the format that encodes the matrix of these statistics; a format that was not fitted refuses to
/// encode (UnsupportedError) and decodes. `encode_tensor` writes the sections with bytes_per_tensor,
/// which no row needs.
template <class F>
concept TensorFormat = RowFormat<F> &&
    requires(const F& f, const TensorStatistics& statistics, std::span<std::byte* const> dst) {
  { f.fits_tensor() } -> std::same_as<bool>;  // false for parameters of the format that need no fit
  { f.fitted_to(statistics) } -> std::same_as<F>;
  f.encode_tensor(dst);
};

/// A row format that may refuse finite weights under `reject`, because a scale would leave fp16. `check_row` throws the
/// ValueError and writes nothing; it is asked about rows with a weight of 2^15 or more, and no scale is larger than the
/// largest weight.
template <class F>
concept CheckedFormat = RowFormat<F> && requires(const F& f, const EncodeRow& row) {
  f.check_row(row);
};

/// A row format that stores only some of the weights. `check_pattern` throws the ValueError for a row that has others;
/// it is asked about every row before anything is written.
template <class F>
concept PatternFormat = RowFormat<F> && requires(const F& f, const EncodeRow& row) {
  f.check_pattern(row);
};

/// Stored bits per weight of rows of `cols` weights, scales and padding included, sections of the whole matrix not.
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

namespace detail {
/// Whether a row holds a magnitude of 2^15 or more, infinity or NaN. No early exit: the loop vectorizes.
inline bool has_large(std::span<const float> row) noexcept {
  std::uint32_t top = 0;
  for (const float v : row) top |= (std::bit_cast<std::uint32_t>(v) & 0x7f800000u) + (0x80000000u - 0x47000000u);
  return (top & 0x80000000u) != 0;
}
inline constexpr index_t kRowsPerTask = 16;

/// Importance of weights of a shape: none, a row for all rows, or the same shape; ShapeError for another one,
/// ValueError for what is negative or not finite.
inline void check_importance(const std::string& function, MatrixView<const float> importance, MatrixShape w) {
  if (importance.data() == nullptr) return;
  if (importance.cols() != w.cols || (importance.rows() != 1 && importance.rows() != w.rows))
    throw ShapeError(function + ": importance is " + to_string(importance.shape()) + ", 1x" + std::to_string(w.cols) +
                     " or " + to_string(w) + " needed");
  for (index_t i = 0; i < importance.rows(); ++i)
    for (index_t j = 0; j < importance.cols(); ++j)
      if (!(importance(i, j) >= 0.0f && importance(i, j) <= std::numeric_limits<float>::max()))
        throw ValueError(function + ": importance is negative or not finite at row " + std::to_string(i) + ", column " +
                         std::to_string(j));
}
}  // namespace detail

/// Encodes a panel of rows as encode_rows does, but for the sections of the whole matrix: panels may be encoded at
/// once.
template <RowFormat F>
void encode_panel(const F& format, MatrixView<const float> w, index_t first_row, std::span<std::byte* const> dst,
                  const EncodeOptions& options) {
  const std::vector<SectionSpec> sections = format.sections(w.cols());
  if (dst.size() != sections.size())
    throw ShapeError("encode_rows: dst has " + std::to_string(dst.size()) + " sections, " +
                     std::to_string(sections.size()) + " needed");
  const MatrixView<const float>& importance = options.importance;
  detail::check_importance("encode_rows", importance, w.shape());
  if (options.non_finite == NonFinite::propagate && !format.can_store_nan())
    throw UnsupportedError("encode_rows: " + std::string(format.scheme()) +
                           " cannot store NaN, `propagate` is refused");
  const auto row_at = [&](index_t i) {
    EncodeRow row{w.row(i), {}, first_row + i, options.non_finite};
    if (importance.data() != nullptr) row.importance = importance.row(importance.rows() == 1 ? 0 : i);
    return row;
  };
  bool clean = true;
  for (index_t i = 0; i < w.rows(); ++i) {
    if constexpr (PatternFormat<F>) format.check_pattern(row_at(i));
    if (!detail::has_large(w.row(i))) continue;
    const MatrixShape bad = find_non_finite(w.rows_from(i, 1));
    if (bad.rows >= 0 && options.non_finite == NonFinite::reject)
      throw ValueError("encode_rows: w is not finite at row " + std::to_string(first_row + i) + ", column " +
                       std::to_string(bad.cols) + "; pass NonFinite::saturate to clamp");
    if (bad.rows >= 0 && options.non_finite == NonFinite::saturate) clean = false;
    if constexpr (CheckedFormat<F>) {
      if (options.non_finite == NonFinite::reject) format.check_row(row_at(i));
    }
  }

  parallel_for_reported(options.execution, ceil_div(w.rows(), detail::kRowsPerTask), [&](index_t task) {
    std::vector<float> without_nan(clean ? 0 : static_cast<std::size_t>(w.cols()));
    std::vector<std::byte*> row_dst(dst.size());
    const index_t end = std::min(w.rows(), (task + 1) * detail::kRowsPerTask);
    for (index_t i = task * detail::kRowsPerTask; i < end; ++i) {
      EncodeRow row = row_at(i);
      if (!clean) {
        for (std::size_t j = 0; j < without_nan.size(); ++j)
          without_nan[j] = row.weights[j] != row.weights[j] ? 0.0f : row.weights[j];
        row.weights = without_nan;
      }
      for (std::size_t s = 0; s < dst.size(); ++s) row_dst[s] = dst[s] + i * sections[s].bytes_per_row;
      format.encode_row(row, row_dst);
    }
  });
}

/// Encodes a panel of rows.
///
/// Shapes:  w [rows, cols]; dst has one pointer per section, to the bytes of the panel's first row, or to the start of
/// a
///          section of the whole matrix; options.importance is empty, [1, cols] or [rows, cols] for the panel's rows.
///          `first_row` is the panel's place in the matrix.
/// Errors:  before anything is written: ValueError on NaN, infinity or a scale that fp16 cannot hold under `reject`,
///          and on weights that a format with a pattern cannot store; UnsupportedError for `propagate` where the format
///          cannot store NaN; ShapeError for another shape of importance, ValueError for one that is negative or not
///          finite.
/// Cost:    reads w twice (once for the check); rows in parallel; the bytes do not depend on the threads. Progress is
///          that of this panel.
template <RowFormat F>
void encode_rows(const F& format, MatrixView<const float> w, index_t first_row, std::span<std::byte* const> dst,
                 const EncodeOptions& options) {
  encode_panel(format, w, first_row, dst, options);
  if constexpr (TensorFormat<F>) format.encode_tensor(dst);
}

inline void TensorStatistics::add(MatrixView<const float> w, NonFinite non_finite, const Execution& how) {
  std::vector<TensorStatistics> parts(static_cast<std::size_t>(w.rows()));
  const float infinite = non_finite == NonFinite::propagate ? 0.0f : std::numeric_limits<float>::max();
  parallel_for(how, ceil_div(w.rows(), detail::kRowsPerTask), [&](index_t task) {
    const index_t end = std::min(w.rows(), (task + 1) * detail::kRowsPerTask);
    for (index_t i = task * detail::kRowsPerTask; i < end; ++i) {
      const std::span<const float> row = w.row(i);
      const bool finite = !detail::has_large(row) || find_non_finite(w.rows_from(i, 1)).rows < 0;
      const auto magnitude = [&](std::size_t j) {
        const std::uint32_t bits = std::bit_cast<std::uint32_t>(row[j]) & 0x7fffffffu;
        if (finite || bits < 0x7f800000u) return std::bit_cast<float>(bits);
        return bits == 0x7f800000u ? infinite : 0.0f;
      };
      float largest[8] = {};
      double sums[8] = {};
      std::size_t j = 0;
      for (; j + 8 <= row.size(); j += 8) {
        for (std::size_t lane = 0; lane < 8; ++lane) {
          const float v = magnitude(j + lane);
          largest[lane] = v > largest[lane] ? v : largest[lane];
          sums[lane] += static_cast<double>(v);
        }
      }
      for (std::size_t lane = 0; j < row.size(); ++j, ++lane) {
        const float v = magnitude(j);
        largest[lane] = v > largest[lane] ? v : largest[lane];
        sums[lane] += static_cast<double>(v);
      }
      TensorStatistics& result = parts[static_cast<std::size_t>(i)];
      for (std::size_t lane = 0; lane < 8; ++lane) {
        result.absmax = std::max(result.absmax, largest[lane]);
        result.sum_abs += sums[lane];
      }
    }
  });
  for (const TensorStatistics& part : parts) {
    absmax = std::max(absmax, part.absmax);
    sum_abs += part.sum_abs;
  }
  count += w.rows() * w.cols();
  rows += w.rows();
}

/// The format that encodes w: itself, or fitted to the whole matrix where it has parameters of it.
template <RowFormat F>
F fitted(const F& format, MatrixView<const float> w, const EncodeOptions& options) {
  if constexpr (TensorFormat<F>) {
    if (format.fits_tensor()) {
      TensorStatistics statistics;
      statistics.add(w, options.non_finite, options.execution);
      return format.fitted_to(statistics);
    }
  }
  return format;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
