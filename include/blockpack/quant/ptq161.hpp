// SPDX-License-Identifier: Apache-2.0
#pragma once

/// PTQ1.61: one in five input channels in 4 bits, the rest in one bit with a scale and an offset a row and a factor a
/// column; 1.617 bits per weight at 4096 x 4096, everything counted. Bytes: docs/formats/ptq161.md.
///
/// Source: "PTQ1.61", arXiv:2502.13179; the construction of the weights, the loss of a layer and its gradients equal
/// those of zjq0455/PTQ1.61. Its preprocessing (a fine-tuning of the whole model) is not here.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/engine.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/quant/block_rows.hpp"
#include "blockpack/quant/group_int.hpp"
#include "blockpack/quant/table_code.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// How many of `cols` input channels are salient: floor(cols / 5) + 1, at most all.
constexpr index_t ptq161_salient_count(index_t cols) noexcept { return std::min(cols, cols / 5 + 1); }

/// The channels of largest statistic (ptq161_statistic), as a mask of 1 and 0. Values below 1e-5 count as 1e-5; of
/// equal ones the first count, so that the number is always ptq161_salient_count (the source takes all that equal the
/// last one). ValueError for NaN.
inline std::vector<std::uint8_t> ptq161_salient_channels(std::span<const float> statistic) {
  for (std::size_t c = 0; c < statistic.size(); ++c)
    if (statistic[c] != statistic[c])
      throw ValueError("ptq161_salient_channels: the statistic of channel " + std::to_string(c) + " is NaN");
  std::vector<std::size_t> order(statistic.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto value = [&](std::size_t c) { return std::max(statistic[c], 1e-5f); };
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return value(a) > value(b); });
  std::vector<std::uint8_t> mask(statistic.size(), 0);
  const auto count = static_cast<std::size_t>(ptq161_salient_count(static_cast<index_t>(statistic.size())));
  for (std::size_t i = 0; i < count; ++i) mask[order[i]] = 1;
  return mask;
}

/// A layer in float32, before anything is rounded for storage:
///
///     salient channels:  grid[r] of 4 bits, fitted to the whole row or to them alone
///     others:            row[r] * column[c] * (scale[r] * B + mean[r]),  B = +1 where w >= mean0[r], -1 elsewhere
struct Ptq161Layer {
  std::vector<std::uint8_t> salient;  ///< [in], 1 or 0
  std::vector<GroupParameters> grid;  ///< [out]
  std::vector<std::uint8_t> sign;     ///< [out * in], 1 for B = +1; fixed from the start
  std::vector<float> mean, scale;     ///< [out]; at the start the mean of the binary weights that are not 0, and of |w|
  std::vector<float> row, column;     ///< [out], [in]; 1 at the start

  index_t out_features() const noexcept { return static_cast<index_t>(mean.size()); }
  index_t in_features() const noexcept { return static_cast<index_t>(salient.size()); }
};

struct Ptq161StartOptions {
  enum class Statistic : std::uint8_t { absmax, mean_abs };
  Statistic statistic = Statistic::absmax;  ///< of the inputs: max |x| as the source's code, or mean |x| as its paper
  /// The 4-bit grid of a row has the range of its salient weights, which is finer; the source takes that of the row.
  bool salient_range = false;
};

/// What the channels of the inputs are ranked by.
inline std::vector<float> ptq161_statistic(const ColumnStats& inputs, Ptq161StartOptions::Statistic statistic) {
  std::vector<float> values;
  for (index_t c = 0; c < inputs.in_features(); ++c)
    values.push_back(
        static_cast<float>(statistic == Ptq161StartOptions::Statistic::absmax ? inputs.absmax(c) : inputs.mean_abs(c)));
  return values;
}

/// The start: mask, grids, signs, means and scales of w [out, in]. `statistic`: of every channel, however it was found.
/// ShapeError when it does not have `in` values.
inline Ptq161Layer ptq161_start(MatrixView<const float> w, std::span<const float> statistic,
                                const Ptq161StartOptions& options = {}) {
  if (static_cast<index_t>(statistic.size()) != w.cols())
    throw ShapeError("ptq161_start: the statistic has " + std::to_string(statistic.size()) + " channels, " +
                     std::to_string(w.cols()) + " needed");
  Ptq161Layer layer;
  const auto rows = static_cast<std::size_t>(w.rows());
  layer.salient = ptq161_salient_channels(statistic);
  layer.mean.resize(rows);
  layer.scale.resize(rows);
  layer.grid.resize(rows);
  layer.row.assign(rows, 1.0f);
  layer.column.assign(layer.salient.size(), 1.0f);
  layer.sign.resize(static_cast<std::size_t>(checked_mul(w.rows(), w.cols(), "ptq161_start")));
  const detail::GroupOps ops = detail::group_ops();
  // Sums go from column to column; those of several rows run beside each other, so that none waits for the last.
  constexpr std::size_t kBeside = 4;
  for (std::size_t first = 0; first < rows; first += kBeside) {
    const float* row[kBeside];
    for (std::size_t k = 0; k < kBeside; ++k) row[k] = w.row_data(static_cast<index_t>(std::min(first + k, rows - 1)));
    double sum[kBeside] = {}, absolute[kBeside] = {}, count[kBeside] = {};
    for (std::size_t c = 0; c < layer.salient.size(); ++c) {
      if (layer.salient[c] != 0) continue;
      for (std::size_t k = 0; k < kBeside; ++k) {  // adding 0 changes nothing
        const auto v = static_cast<double>(row[k][c]);
        sum[k] += v;
        absolute[k] += std::fabs(v);
        count[k] += v != 0.0 ? 1.0 : 0.0;
      }
    }
    for (std::size_t k = 0; k < std::min(kBeside, rows - first); ++k) {
      layer.mean[first + k] = count[k] > 0 ? static_cast<float>(sum[k] / count[k]) : 0.0f;
      layer.scale[first + k] = count[k] > 0 ? static_cast<float>(absolute[k] / count[k]) : 0.0f;
    }
  }
  std::vector<float> salient;
  for (std::size_t r = 0; r < rows; ++r) {
    const std::span<const float> row = w.row(static_cast<index_t>(r));
    std::span<const float> fitted = row;
    if (options.salient_range) {
      salient.clear();
      for (std::size_t c = 0; c < row.size(); ++c)
        if (layer.salient[c] != 0) salient.push_back(row[c]);
      fitted = salient;
    }
    float low, high;
    ops.range(ops.kernels, fitted, low, high);
    layer.grid[r] = GroupInt{4, 0, GroupGrid::asymmetric}.fit_range(fitted, low, high);
    std::uint8_t* signs = layer.sign.data() + r * row.size();
    const float mean = layer.mean[r];  // a byte might alias the vector's
    for (std::size_t c = 0; c < row.size(); ++c) signs[c] = row[c] >= mean ? 1 : 0;
  }
  return layer;
}

/// The same from the inputs themselves, of `in` features.
inline Ptq161Layer ptq161_start(MatrixView<const float> w, const ColumnStats& inputs,
                                const Ptq161StartOptions& options = {}) {
  return ptq161_start(w, ptq161_statistic(inputs, options.statistic), options);
}

/// The values the layer stands for. Shapes: w and dst [out, in]; w gives the codes of the salient channels.
inline void ptq161_values(MatrixView<const float> w, const Ptq161Layer& layer, MatrixView<float> dst) {
  if (w.shape() != MatrixShape{layer.out_features(), layer.in_features()} || dst.shape() != w.shape())
    throw ShapeError("ptq161_values: w is " + to_string(w.shape()) + " and dst " + to_string(dst.shape()) + ", " +
                     to_string(MatrixShape{layer.out_features(), layer.in_features()}) + " needed");
  const GroupInt four{4, 0, GroupGrid::asymmetric};
  for (index_t r = 0; r < w.rows(); ++r) {
    const auto i = static_cast<std::size_t>(r);
    const GroupParameters& p = layer.grid[i];
    for (index_t c = 0; c < w.cols(); ++c) {
      const auto j = static_cast<std::size_t>(c);
      const std::uint8_t sign = layer.sign[i * layer.salient.size() + j];
      dst(r, c) = layer.salient[j] != 0 ? p.scale * static_cast<float>(four.code_of(w(r, c), p) - p.zero_point)
                                        : layer.row[i] * layer.column[j] *
                                              (layer.mean[i] + (sign != 0 ? layer.scale[i] : -layer.scale[i]));
    }
  }
}

#if !defined(BLOCKPACK_HEADERS_ONLY)  // fits run on the engine

/// Loss of a layer on inputs x and its gradients, in closed form.
///
///     Y = x Wᵀ, Q = x Ŵᵀ;  loss = mean (Q - Y)² - log |mean over tokens of cos(Q_t, Y_t)|
struct Ptq161Gradient {
  double loss = 0;
  std::vector<double> scale, row;  ///< [out]
  std::vector<double> column;      ///< [in], 0 for salient channels
};

/// Shapes:  w [out, in], x [tokens, in].
/// Errors:  ShapeError; ValueError when x is not finite, or when every cosine is undefined (a product of zeros).
/// Cost:    3 tokens * out * in multiply-adds through the engine; memory: two matrices [out, in] and 4 [tokens, out].
BLOCKPACK_API Ptq161Gradient ptq161_gradient(MatrixView<const float> w, MatrixView<const float> x,
                                             const Ptq161Layer& layer, const Execution& how = {});

struct Ptq161Options {
  /// Rounds of the start that alternates exact least squares: scale and mean of every row given the columns, then the
  /// columns given the rows, for the squared error alone.
  int alternations = 2;
  /// Steps of AdamW on the loss above with the source's rates, falling to 0 by a cosine; the best layer seen is kept.
  int steps = 0;
  double scale_rate = 5e-4;   ///< of scale
  double factor_rate = 1e-3;  ///< of row and column
};

struct Ptq161Report {
  double start_loss = 0;
  double loss = 0;  ///< of the layer that was kept; never above start_loss
};

/// Fits scales, offsets and factors to the outputs on x; signs, mask and 4-bit codes stay. The layer is left as it was
/// where nothing is better. Errors of ptq161_gradient. Cost: options.alternations * (3 tokens + out + tokens * in /
/// out)
/// * out * in multiply-adds and (steps + alternations) gradients. Memory: gradients and, for alternations, two [in,
/// in].
BLOCKPACK_API Ptq161Report ptq161_optimise(MatrixView<const float> w, MatrixView<const float> x, Ptq161Layer& layer,
                                           const Ptq161Options& options = {}, const Execution& how = {});

#endif

/// The operator of PTQ1.61: y [tokens, out] = epilogue(x [tokens, in] · Wᵀ).
///
///     salient channels:  s_r * (q - z_r)          4 bits, s fp16 (rounded before the codes are taken), z 4 bits
///     others:            f_c * (m_r ± a_r)        1 bit; f, m = row * mean and a = row * scale are fp16
///
/// in float32, the sum first. Sections: mask (a bit a channel), column_factors, row_levels (m, a), salient_scales,
/// salient_zeros, salient_codes, signs.
class Ptq161Matrix {
 public:
  struct Parameters {};

  Ptq161Matrix() : Ptq161Matrix({}, {}) {}

  /// Name and size of the sections of a matrix, in file order. ShapeError when a size overflows.
  static std::vector<std::pair<std::string, index_t>> section_sizes(MatrixShape shape) {
    const index_t salient = ptq161_salient_count(shape.cols), binary = shape.cols - salient;
    const auto times = [](index_t a, index_t b) { return checked_mul(a, b, "Ptq161Matrix"); };
    return {{"mask", ceil_div(shape.cols, 8)},
            {"column_factors", times(binary, 2)},
            {"row_levels", times(shape.rows, 4)},
            {"salient_scales", times(shape.rows, 2)},
            {"salient_zeros", ceil_div(shape.rows, 2)},
            {"salient_codes", times(shape.rows, ceil_div(salient, 2))},
            {"signs", ceil_div(times(shape.rows, binary), 8)}};
  }

  /// Stores a layer. w gives the codes of the salient channels.
  /// Errors: ValueError on NaN or infinity under `reject`, and where a number is beyond fp16, with its row or column;
  /// UnsupportedError for `propagate`; ShapeError. Under `saturate` such numbers become ±65504 and NaN 0.
  static Ptq161Matrix encode(MatrixView<const float> w, const Ptq161Layer& layer, const EncodeOptions& options = {});

  /// The start alone, without a fit: from the statistic of the inputs.
  static Ptq161Matrix encode(MatrixView<const float> w, std::span<const float> statistic,
                             const EncodeOptions& options = {}) {
    const std::vector<float> finite = checked_weights(w, options);
    const MatrixView<const float> values =
        finite.empty() ? w : MatrixView<const float>(finite.data(), w.rows(), w.cols());
    return encode(values, ptq161_start(values, statistic), options);
  }

  /// The operator whose `sections()` are these; nothing is copied. FormatError names the section that does not fit, or
  /// a mask with another number of channels.
  static Ptq161Matrix from_sections(MatrixShape shape, const Parameters&, std::span<const Section> sections) {
    const auto sizes = section_sizes(shape);
    if (sections.size() != sizes.size())
      throw FormatError("from_sections: " + std::to_string(sections.size()) + " sections, " +
                        std::to_string(sizes.size()) + " needed for ptq1.61");
    std::vector<SharedBytes> stored;
    for (std::size_t s = 0; s < sizes.size(); ++s) {
      if (sections[s].name != sizes[s].first || static_cast<index_t>(sections[s].data.bytes.size()) != sizes[s].second)
        throw FormatError("from_sections: section " + sections[s].name + " has " +
                          std::to_string(sections[s].data.bytes.size()) + " bytes, " + sizes[s].first + " with " +
                          std::to_string(sizes[s].second) + " needed");
      stored.push_back(sections[s].data);
    }
    return Ptq161Matrix(shape, std::move(stored));
  }

  index_t out_features() const noexcept { return shape_.rows; }
  index_t in_features() const noexcept { return shape_.cols; }
  MatrixShape shape() const noexcept { return shape_; }
  Parameters parameters() const noexcept { return {}; }
  std::string scheme() const { return "ptq1.61"; }

  std::vector<Section> sections() const {
    std::vector<Section> result;
    const auto sizes = section_sizes(shape_);
    for (std::size_t s = 0; s < sizes.size(); ++s) result.push_back({sizes[s].first, stored_[s]});
    return result;
  }
  std::size_t storage_bytes() const noexcept {
    std::size_t sum = 0;
    for (const SharedBytes& s : stored_) sum += s.bytes.size();
    return sum;
  }

  /// y = epilogue(x · Wᵀ). ShapeError names the argument that does not fit.
  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    detail::check_apply_shapes("apply", shape_.rows, shape_.cols, x.shape(), y.shape(), how.epilogue);
    matmul(x, source(), y, resolve(how.activations, 1.61, how.execution.level()), how);
  }
  /// x [tokens, in] = y [tokens, out] · W, float32. The epilogue must be empty (ValueError).
  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    if (!how.epilogue.empty()) throw ValueError("apply_transpose: an epilogue is not supported");
    detail::check_apply_shapes("apply_transpose", shape_.cols, shape_.rows, y.shape(), x.shape(), {});
    matmul_transpose(y, source(), x, how);
  }
  /// y[i, :] = W[rows[i], :], decoded. ShapeError for a row out of range or another shape of y.
  void decode_rows(std::span<const index_t> rows, MatrixView<float> y) const {
    detail::check_decode_rows("decode_rows", shape_, rows, y.shape());
    for (std::size_t i = 0; i < rows.size(); ++i) decode(rows[i], 0, shape_.cols, y.row_data(static_cast<index_t>(i)));
  }

 private:
  enum : std::size_t { kMask, kColumnFactors, kRowLevels, kSalientScales, kSalientZeros, kSalientCodes, kSigns };

  /// What a column is: its place among the salient or the binary channels, and its factor.
  struct Column {
    std::int32_t place = 0;
    bool salient = false;
    float factor = 0.0f;
  };

  Ptq161Matrix(MatrixShape shape, std::vector<SharedBytes> stored);

  /// Empty when w is finite; a copy with NaN as 0 and infinity as the largest float under `saturate`.
  static std::vector<float> checked_weights(MatrixView<const float> w, const EncodeOptions& options);

  const std::byte* section(std::size_t s, index_t at = 0) const noexcept { return stored_[s].bytes.data() + at; }
  void decode(index_t row, index_t col, index_t count, float* dst) const noexcept;
  RowSource source() const {
    RowSource w;
    w.rows = shape_.rows;
    w.cols = shape_.cols;
    w.self = this;
    w.decode_f32 = [](const void* self, index_t row, index_t col, index_t count, float* dst) {
      static_cast<const Ptq161Matrix*>(self)->decode(row, col, count, dst);
    };
    return w;
  }

  MatrixShape shape_;
  std::vector<SharedBytes> stored_;
  std::vector<Column> columns_;  // decoded once from the mask and the factors
};

inline Ptq161Matrix::Ptq161Matrix(MatrixShape shape, std::vector<SharedBytes> stored)
    : shape_(shape), stored_(std::move(stored)), columns_(static_cast<std::size_t>(shape.cols)) {
  stored_.resize(section_sizes(shape).size());
  std::int32_t salient = 0, binary = 0;
  for (index_t c = 0; c < shape.cols; ++c) {
    Column& column = columns_[static_cast<std::size_t>(c)];
    column.salient = ((std::to_integer<unsigned>(*section(kMask, c / 8)) >> (c % 8)) & 1u) != 0;
    column.place = column.salient ? salient++ : binary++;
    if (salient > ptq161_salient_count(shape.cols)) break;
    if (!column.salient && binary <= shape.cols - ptq161_salient_count(shape.cols))
      column.factor = detail::load_fp16(section(kColumnFactors, 2 * column.place));
  }
  if (salient != ptq161_salient_count(shape.cols))
    throw FormatError("ptq1.61: the mask does not have " + std::to_string(ptq161_salient_count(shape.cols)) +
                      " salient channels");
}

inline void Ptq161Matrix::decode(index_t row, index_t col, index_t count, float* dst) const noexcept {
  const index_t salient = ptq161_salient_count(shape_.cols), binary = shape_.cols - salient;
  const std::byte* codes = section(kSalientCodes, row * ceil_div(salient, 2));
  const auto sign_of = [&](index_t place) {
    const index_t bit = row * binary + place;
    return (std::to_integer<unsigned>(*section(kSigns, bit / 8)) >> (bit % 8)) & 1u;
  };
  const float mean = detail::load_fp16(section(kRowLevels, 4 * row));
  const float scale = detail::load_fp16(section(kRowLevels, 4 * row + 2));
  const float levels[2] = {mean - scale, mean + scale};
  const float step = detail::load_fp16(section(kSalientScales, 2 * row));
  const int zero = (std::to_integer<int>(*section(kSalientZeros, row / 2)) >> (row % 2 * 4)) & 15;
  for (index_t i = 0; i < count; ++i) {
    const Column& column = columns_[static_cast<std::size_t>(col + i)];
    if (column.salient) {
      const int code = (std::to_integer<int>(codes[column.place / 2]) >> (column.place % 2 * 4)) & 15;
      dst[i] = step * static_cast<float>(code - zero);
    } else {
      dst[i] = column.factor * levels[sign_of(column.place)];
    }
  }
}

inline std::vector<float> Ptq161Matrix::checked_weights(MatrixView<const float> w, const EncodeOptions& options) {
  if (options.non_finite == NonFinite::propagate)
    throw UnsupportedError("encode ptq1.61: it cannot store NaN, `propagate` is refused");
  const MatrixShape bad = find_non_finite(w);
  if (bad.rows < 0) return {};
  if (options.non_finite == NonFinite::reject)
    throw ValueError("encode ptq1.61: w is not finite at row " + std::to_string(bad.rows) + ", column " +
                     std::to_string(bad.cols) + "; pass NonFinite::saturate to clamp");
  std::vector<float> finite;
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (index_t r = 0; r < w.rows(); ++r)
    for (const float v : w.row(r)) finite.push_back(v != v ? 0.0f : std::min(std::max(v, -kLargest), kLargest));
  return finite;
}

inline Ptq161Matrix Ptq161Matrix::encode(MatrixView<const float> given, const Ptq161Layer& layer,
                                         const EncodeOptions& options) {
  const MatrixShape shape = given.shape();
  if (shape != MatrixShape{layer.out_features(), layer.in_features()})
    throw ShapeError("encode ptq1.61: w is " + to_string(shape) + ", the layer " +
                     to_string(MatrixShape{layer.out_features(), layer.in_features()}));
  if (std::count(layer.salient.begin(), layer.salient.end(), std::uint8_t{1}) != ptq161_salient_count(shape.cols))
    throw ValueError("encode ptq1.61: the layer does not have " + std::to_string(ptq161_salient_count(shape.cols)) +
                     " salient channels");
  const std::vector<float> finite = checked_weights(given, options);
  const MatrixView<const float> w =
      finite.empty() ? given : MatrixView<const float>(finite.data(), shape.rows, shape.cols);
  const auto rounded = [&](float v, const char* what, index_t at) {
    const float stored = static_cast<float>(fp16(v));
    if (std::isfinite(stored)) return stored;
    if (options.non_finite != NonFinite::saturate)
      throw ValueError(std::string("encode ptq1.61: ") + what + " " + std::to_string(at) +
                       " is beyond fp16 (65504); pass NonFinite::saturate to clamp it");
    return v != v ? 0.0f : (v < 0.0f ? -65504.0f : 65504.0f);
  };
  const index_t salient = ptq161_salient_count(shape.cols), binary = shape.cols - salient;
  std::vector<AlignedBuffer<std::byte>> bytes;
  for (const auto& [name, size] : section_sizes(shape)) bytes.emplace_back(size);
  const auto at = [&](std::size_t s, index_t offset) { return bytes[s].data() + offset; };
  const auto put = [&](std::size_t s, index_t offset, unsigned value) {
    *at(s, offset) |= static_cast<std::byte>(value);
  };

  index_t place = 0;
  for (index_t c = 0; c < shape.cols; ++c) {
    if (layer.salient[static_cast<std::size_t>(c)] != 0)
      put(kMask, c / 8, 1u << (c % 8));
    else if (place < binary)
      detail::store_fp16(rounded(layer.column[static_cast<std::size_t>(c)], "the factor of column", c),
                         at(kColumnFactors, 2 * place++));
  }
  std::vector<std::size_t> salient_columns, binary_columns;
  for (std::size_t c = 0; c < layer.salient.size(); ++c)
    (layer.salient[c] != 0 ? salient_columns : binary_columns).push_back(c);
  const GroupInt four{4, 0, GroupGrid::asymmetric};
  const detail::GroupOps ops = detail::group_ops();
  std::vector<float> salient_weights(salient_columns.size());
  unsigned bits = 0;  // signs that do not fill a byte yet, the oldest lowest
  int waiting = 0;
  std::byte* signs = at(kSigns, 0);
  for (index_t r = 0; r < shape.rows; ++r) {
    const auto i = static_cast<std::size_t>(r);
    detail::store_fp16(rounded(layer.row[i] * layer.mean[i], "the mean of row", r), at(kRowLevels, 4 * r));
    detail::store_fp16(rounded(layer.row[i] * layer.scale[i], "the scale of row", r), at(kRowLevels, 4 * r + 2));
    GroupParameters p = layer.grid[i];
    static_cast<void>(rounded(p.scale, "the 4-bit scale of row", r));
    p = four.stored(p, 65504.0f);
    detail::store_fp16(p.scale, at(kSalientScales, 2 * r));
    put(kSalientZeros, r / 2, static_cast<unsigned>(p.zero_point) << (r % 2 * 4));
    for (std::size_t s = 0; s < salient_columns.size(); ++s) salient_weights[s] = w.row(r)[salient_columns[s]];
    std::uint8_t* codes = detail::bytes(at(kSalientCodes, r * ceil_div(salient, 2)));
    ops.encode(ops.kernels, four, salient_weights, p, codes);
    if (salient % 2 != 0) codes[salient / 2] &= 15;  // the missing code is 0
    const std::uint8_t* signs_of_row = layer.sign.data() + i * layer.salient.size();
    for (const std::size_t c : binary_columns) {
      bits |= unsigned{signs_of_row[c]} << waiting;
      if (++waiting < 8) continue;
      *signs++ = static_cast<std::byte>(bits);
      bits = 0;
      waiting = 0;
    }
  }
  if (waiting > 0) *signs = static_cast<std::byte>(bits);
  std::vector<SharedBytes> stored;
  for (auto& b : bytes) stored.emplace_back(std::move(b));
  return Ptq161Matrix(shape, std::move(stored));
}

}  // namespace blockpack::inline BLOCKPACK_ABI
