// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What oscillation-free quantization brings to a library of primitives: the statistical weight quantizer StatsQ as a
/// row format, the mask of weights near a rounding threshold, a tracker of oscillating codes, and the query-key product
/// as one quantized matrix. Bytes: docs/formats/statsq.md.
///
/// Source: "Oscillation-free Quantization for Low-bit Vision Transformers", arXiv:2302.02210; results equal those of
/// nbasyl/OFQ.

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/code_spec.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/row_matrix.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/core/strict.hpp"
#include "blockpack/quant/block_rows.hpp"
#include "blockpack/quant/group_int.hpp"
#include "blockpack/quant/scheme_fields.hpp"
#include "blockpack/quant/table_code.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// StatsQ: b bits, one scale a row from its mean magnitude, levels at odd multiples of half a step (no zero).
///
///     s = multiplier * mean |w|;  v = clip(w / s, -1, 1 - 1e-6);  n = 2^(b-1)
///     k = round_half_even(v * n - 1/2), -n to n - 1;  decoded = s * (k + 1/2) / n
///
/// The mean is a double sum in eight interleaved parts, s is float32, then fp16, half to even; the rounded s divides.
/// The multiplier of the source is 2, which clips at 1.6 standard deviations: good at 2 bits, poor at 4. A row of
/// zeros, or one whose s rounds to 0, stores s = 0 and decodes to zeros. s beyond fp16 is a ValueError under `reject`
/// and 65504 under `saturate`. With importance s is searched for, see fit().
struct StatsQ {
  int bits = 2;              ///< 2, 3 or 4
  int multiplier_100 = 200;  ///< hundredths: 200 is the source's 2

  friend bool operator==(const StatsQ&, const StatsQ&) = default;

  /// "statsq2"; "statsq4-x260" for a multiplier of 2.6.
  std::string scheme() const {
    return "statsq" + std::to_string(bits) + (multiplier_100 == 200 ? "" : "-x" + std::to_string(multiplier_100));
  }

  /// The format of a scheme split at its dashes, or nothing when the name is not `statsq<b>`. ValueError for a field it
  /// does not know, one given twice or numbers that are not offered.
  static std::optional<StatsQ> from_fields(std::string_view name, std::span<const std::string_view> fields) {
    const std::optional<int> width = detail::number_after("statsq", name);
    if (!width) return std::nullopt;
    StatsQ format;
    format.bits = *width;
    detail::FieldReader reader(name, fields);
    for (const std::string_view field : fields) {
      const auto number = detail::number_after("x", field);
      if (!number) reader.unknown(field);
      reader.set("multiplier", format.multiplier_100, *number);
    }
    format.validate();
    return format;
  }

  /// ValueError that names the parameter.
  void validate() const {
    if (bits < 2 || bits > 4) throw ValueError("StatsQ: bits = " + std::to_string(bits) + ", 2, 3 or 4 needed");
    if (multiplier_100 < 1 || multiplier_100 > 10000)
      throw ValueError("StatsQ: multiplier_100 = " + std::to_string(multiplier_100) + ", 1 to 10000 needed");
  }

  bool can_store_nan() const noexcept { return false; }
  bool exact_in_bf16() const noexcept { return false; }
  std::int32_t half_levels() const noexcept { return std::int32_t{1} << (bits - 1); }

  /// `scales`: fp16 a row; `codes`: k + n, as group integers of one group a row are stored.
  std::vector<SectionSpec> sections(index_t cols) const {
    validate();
    return {{"scales", cols > 0 ? 2 : 0}, {"codes", packing().code_bytes(cols)}};
  }

  /// s in float32. Infinity counts as the largest float. With `importance` (one weight per value), of this times 10/16,
  /// 11/16, … 26/16 the one of least weighted squared error as it is stored; of equals the one nearest to 16/16, the
  /// smaller first.
  float fit(std::span<const float> row, std::span<const float> importance = {}) const noexcept {
    constexpr double kLargest = std::numeric_limits<float>::max();
    const double sum = detail::interleaved_sum(
        row.size(), [&](std::size_t i) { return std::min(std::fabs(static_cast<double>(row[i])), kLargest); });
    const double mean = row.empty() ? 0.0 : sum / static_cast<double>(row.size());
    const auto plain = static_cast<float>(std::min(mean * multiplier_100 / 100.0, kLargest));
    float best = plain;
    double least = std::numeric_limits<double>::infinity();
    for (int trial = 0; trial <= 20 && !importance.empty(); ++trial) {  // 16, 15, 17, 14, …
      const int parts = 16 + (trial % 2 == 0 ? trial / 2 : -(trial + 1) / 2);
      if (parts < 10) continue;
      const float candidate = plain * (static_cast<float>(parts) / 16.0f), s = static_cast<float>(fp16(candidate));
      if (!std::isfinite(s)) continue;
      const double error = detail::weighted_error(row, importance, [&](std::size_t i) {
        std::int32_t k;
        float value;
        encode(row.subspan(i, 1), s, std::span(&k, 1));
        decode(std::span<const std::int32_t>(&k, 1), s, std::span(&value, 1));
        return value;
      });
      if (error < least) {
        least = error;
        best = candidate;
      }
    }
    return best;
  }

  /// Where a weight lies on the code axis: t = v * n - 1/2, so that codes k are the integers nearest to t.
  float position(float w, float scale) const noexcept {
    const float v = scale == 0.0f ? 0.0f : w / scale;
    return (v < -1.0f ? -1.0f : std::min(v, 1.0f - 1e-6f)) * static_cast<float>(half_levels()) - 0.5f;  // exact product
  }
  /// Codes k, -n to n - 1.
  void encode(std::span<const float> row, float scale, std::span<std::int32_t> codes) const noexcept {
    for (std::size_t i = 0; i < row.size(); ++i)
      codes[i] = static_cast<std::int32_t>(round_half_even(position(row[i], scale)));
  }
  /// s * (k + 1/2) / n: one product and an exact division.
  void decode(std::span<const std::int32_t> codes, float scale, std::span<float> dst) const noexcept {
    const float unit = 1.0f / static_cast<float>(half_levels());
    for (std::size_t i = 0; i < dst.size(); ++i) dst[i] = scale * ((static_cast<float>(codes[i]) + 0.5f) * unit);
  }

  /// ValueError with the row whose scale is beyond fp16.
  void check_row(const EncodeRow& row) const { checked_scale(row); }

  void encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const {
    if (row.weights.empty()) return;
    const float scale = checked_scale(row);
    detail::store_fp16(scale, dst[0]);
    std::uint8_t* codes = detail::bytes(dst[1]);
    // Nearest integers to positions: what group integers of step 1 are.
    const detail::GroupOps ops = detail::group_ops();
    const GroupParameters integers{1.0f, half_levels()};
    float positions[detail::kGroupChunk];
    for (std::size_t first = 0; first < row.weights.size(); first += detail::kGroupChunk) {
      const std::size_t count = std::min(detail::kGroupChunk, row.weights.size() - first);
      for (std::size_t i = 0; i < count; ++i) positions[i] = position(row.weights[first + i], scale);
      ops.encode(ops.kernels, packing(), std::span<const float>(positions, count), integers, codes);
      codes += packing().code_bytes(static_cast<index_t>(count));
    }
  }
  void decode_row(std::span<const std::byte* const> src, index_t /*cols*/, index_t col, std::span<float> dst) const {
    if (dst.empty()) return;
    const float scale = detail::load_fp16(src[0]);
    const std::uint8_t* codes = detail::bytes(src[1]) + packing().code_bytes(col);
    std::int32_t q[detail::kGroupChunk];
    for (std::size_t first = 0; first < dst.size(); first += detail::kGroupChunk) {
      const std::span<std::int32_t> part(q, std::min(detail::kGroupChunk, dst.size() - first));
      packing().unpack(codes, part);
      for (std::int32_t& k : part) k -= half_levels();
      decode(part, scale, dst.subspan(first, part.size()));
      codes += packing().code_bytes(static_cast<index_t>(part.size()));
    }
  }

  /// s / n · (code - n) + s / (2 n): both are kept as floats, a line of a panel each.
  std::optional<CodeSpec> code_spec(index_t cols, std::span<const std::byte* const> /*src*/) const {
    CodeSpec spec;
    spec.bits = bits;
    spec.zero = half_levels();
    spec.scale = CodeScale::f32;
    spec.minimums = true;
    spec.group = round_up(std::max<index_t>(cols, 1), 32);
    return spec;
  }
  void read_codes(std::span<const std::byte* const> src, index_t /*cols*/, const CodeRow& dst) const {
    std::int32_t q[detail::kGroupChunk];
    const std::uint8_t* codes = detail::bytes(src[1]);
    for (std::size_t first = 0; first < dst.codes.size(); first += detail::kGroupChunk) {
      const std::span<std::int32_t> part(q, std::min(detail::kGroupChunk, dst.codes.size() - first));
      packing().unpack(codes, part);
      for (std::size_t i = 0; i < part.size(); ++i) dst.codes[first + i] = static_cast<std::uint8_t>(part[i]);
      codes += packing().code_bytes(static_cast<index_t>(part.size()));
    }
    const float unit = detail::load_fp16(src[0]) / static_cast<float>(half_levels());
    dst.scales[0] = std::bit_cast<std::uint32_t>(unit);
    dst.minimums[0] = std::bit_cast<std::uint32_t>(unit / 2);
  }

  /// How codes are stored.
  GroupInt packing() const noexcept { return {bits, 0, GroupGrid::half_step}; }

  /// The scale of a row as it is stored, with the policy for one beyond fp16.
  float checked_scale(const EncodeRow& row) const {
    const float scale = static_cast<float>(fp16(fit(row.weights, row.importance)));
    if (std::isfinite(scale)) return scale;
    if (row.non_finite != NonFinite::saturate)
      throw ValueError("encode " + scheme() + ": the scale of row " + std::to_string(row.row) +
                       " is beyond fp16 (65504); pass NonFinite::saturate to clamp it");
    return 65504.0f;
  }
};

/// The weights within `band` of a threshold between two codes: those that a small step would move to another code.
/// Confidence-guided annealing keeps updating them alone (it freezes the others); their number measures how much a
/// layer oscillates, and they are the ones worth trying the other way in coordinate descent.
///
///     near = |t - floor(t) - 1/2| <= band, for thresholds between the smallest and the largest code in use
///
/// Shapes:  w and near [rows, cols]; near is 1 or 0. The scale of each row is that of `format.fit`, unrounded.
/// Errors:  ShapeError for another shape; ValueError for a band outside [0, 1/2]. The source advises 0.005.
inline void near_threshold_mask(MatrixView<const float> w, const StatsQ& format, float band,
                                MatrixView<std::uint8_t> near) {
  format.validate();
  if (near.shape() != w.shape())
    throw ShapeError("near_threshold_mask: near is " + to_string(near.shape()) + ", " + to_string(w.shape()) +
                     " needed");
  if (!(band >= 0.0f && band <= 0.5f))
    throw ValueError("near_threshold_mask: band = " + std::to_string(band) + ", 0 to 0.5 needed");
  std::int32_t lowest = std::numeric_limits<std::int32_t>::max(), highest = std::numeric_limits<std::int32_t>::min();
  std::vector<std::int32_t> codes(static_cast<std::size_t>(w.cols()));
  for (index_t r = 0; r < w.rows(); ++r) {
    format.encode(w.row(r), format.fit(w.row(r)), codes);
    for (const std::int32_t k : codes) {
      lowest = std::min(lowest, k);
      highest = std::max(highest, k);
    }
  }
  for (index_t r = 0; r < w.rows(); ++r) {
    const float scale = format.fit(w.row(r));
    for (index_t c = 0; c < w.cols(); ++c) {
      const float t = format.position(w(r, c), scale);
      const float below = round_down(t);  // the threshold is below + 1/2
      const bool inside = below >= static_cast<float>(lowest) && below < static_cast<float>(highest);
      near(r, c) = inside && std::fabs((t - below) - 0.5f) <= band ? 1 : 0;
    }
  }
}

/// Follows the codes of a matrix through training steps and counts changes of direction: a weight whose code goes up
/// and then down again oscillates. The frequency is an exponential moving average.
class OscillationTracker {
 public:
  /// ValueError for a momentum outside (0, 1].
  OscillationTracker(index_t rows, index_t cols, float momentum = 0.01f)
      : cells_(checked_mul(rows, cols, "OscillationTracker")), rows_(rows), cols_(cols), momentum_(momentum) {
    if (!(momentum > 0.0f && momentum <= 1.0f))
      throw ValueError("OscillationTracker: momentum = " + std::to_string(momentum) + ", above 0 and up to 1 needed");
  }

  /// The codes after a step; the first call sets the start. ShapeError for another shape.
  void update(MatrixView<const std::int32_t> codes) {
    if (codes.shape() != MatrixShape{rows_, cols_})
      throw ShapeError("OscillationTracker::update: codes is " + to_string(codes.shape()) + ", " +
                       to_string(MatrixShape{rows_, cols_}) + " needed");
    for (index_t r = 0; r < rows_; ++r) {
      for (index_t c = 0; c < cols_; ++c) {
        Cell& cell = cells_[r * cols_ + c];
        if (steps_ > 0) {
          const int direction = codes(r, c) > cell.code ? 1 : (codes(r, c) < cell.code ? -1 : 0);
          const bool turned = direction != 0 && direction == -cell.direction;
          cell.frequency += momentum_ * ((turned ? 1.0f : 0.0f) - cell.frequency);
          if (direction != 0) cell.direction = direction;
        }
        cell.code = codes(r, c);
      }
    }
    ++steps_;
  }

  index_t steps() const noexcept { return steps_; }  ///< calls of update
  /// How often the code of a weight turns, 0 to 1.
  float frequency(index_t row, index_t col) const noexcept { return cells_[row * cols_ + col].frequency; }
  /// The share of weights that turn more often than `threshold`.
  double oscillating(float threshold) const noexcept {
    if (cells_.size() == 0) return 0.0;
    index_t count = 0;
    for (const Cell& cell : cells_.span()) count += cell.frequency > threshold ? 1 : 0;
    return static_cast<double>(count) / static_cast<double>(cells_.size());
  }

 private:
  struct Cell {
    std::int32_t code = 0;
    std::int32_t direction = 0;  ///< of the last change
    float frequency = 0.0f;
  };
  AlignedBuffer<Cell> cells_;
  index_t rows_ = 0;
  index_t cols_ = 0;
  index_t steps_ = 0;
  float momentum_ = 0.01f;
};

/// The query-key product of every query head as one matrix: M_h = Wq_hᵀ Wk_h, the logits of tokens x and y being
/// xᵀ M_h y (before their scale). Quantizing M_h in place of Wq_h and Wk_h removes the oscillation that the two cause
/// in each other.
///
/// Shapes:  wq [query_heads * head_dim, channels], wk [key_heads * head_dim, channels], where key_heads divides
///          query_heads (grouped queries: head h uses key head h / (query_heads / key_heads)).
///          dst [query_heads * channels, channels], head after head.
/// Errors:  ShapeError. Biases of queries and keys add terms that a product of weights cannot hold.
/// Cost:    query_heads * head_dim * channels² multiply-adds in double, and channels² values a head where two
/// projections
///          have 2 * head_dim * channels: worth it for few channels only.
inline void form_query_key(MatrixView<const float> wq, MatrixView<const float> wk, index_t head_dim,
                           MatrixView<float> dst, const Execution& how = {}) {
  const index_t channels = wq.cols();
  const auto fail = [](const std::string& what) { throw ShapeError("form_query_key: " + what); };
  if (head_dim <= 0 || wq.rows() % head_dim != 0 || wk.rows() % head_dim != 0 || wk.rows() == 0 ||
      wq.rows() % wk.rows() != 0)
    fail("wq has " + std::to_string(wq.rows()) + " rows, wk " + std::to_string(wk.rows()) +
         ", multiples of head_dim = " + std::to_string(head_dim) + " needed, those of wq one of those of wk");
  if (wk.cols() != channels)
    fail("wk has " + std::to_string(wk.cols()) + " columns, " + std::to_string(channels) + " needed");
  const index_t heads = wq.rows() / head_dim, queries_per_key = wq.rows() / wk.rows();
  if (dst.shape() != MatrixShape{heads * channels, channels})
    fail("dst is " + to_string(dst.shape()) + ", " + to_string(MatrixShape{heads * channels, channels}) + " needed");
  parallel_for(how, heads * channels, [&](index_t row) {
    const index_t head = row / channels, channel = row % channels;
    const index_t q = head * head_dim, k = head / queries_per_key * head_dim;
    std::vector<double> sums(static_cast<std::size_t>(channels), 0.0);
    for (index_t i = 0; i < head_dim; ++i) {
      const double left = wq(q + i, channel);
      const float* right = wk.row_data(k + i);
      for (index_t c = 0; c < channels; ++c)
        sums[static_cast<std::size_t>(c)] += strict_mul(left, static_cast<double>(right[c]));
    }
    for (index_t c = 0; c < channels; ++c) dst(row, c) = static_cast<float>(sums[static_cast<std::size_t>(c)]);
  });
}

/// form_query_key, then the format's encoder: the operator [query_heads * channels, channels] that gives M_h y for
/// every head at once. Errors of both.
template <RowFormat F>
RowMatrix<F> quantize_query_key(MatrixView<const float> wq, MatrixView<const float> wk, index_t head_dim,
                                const F& format, const EncodeOptions& options = {}) {
  const index_t heads = head_dim > 0 ? wq.rows() / head_dim : 0;
  AlignedBuffer<float> product(
      checked_mul(checked_mul(heads, wq.cols(), "quantize_query_key"), wq.cols(), "quantize_query_key"));
  const MatrixView<float> m(product.data(), heads * wq.cols(), wq.cols());
  form_query_key(wq, wk, head_dim, m, options.execution);
  return RowMatrix<F>::encode(m, format, options);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
