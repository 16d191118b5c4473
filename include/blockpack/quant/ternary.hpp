// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Ternary weights: -1, 0 or 1 times the scale of a group, of a row, or of the whole matrix (BitNet b1.58), in two bits
/// or five to a byte. Bytes: docs/formats/ternary.md.
///
/// Source: "The Era of 1-bit LLMs" (BitNet b1.58), arXiv:2402.17764, for the mean rule; "Ternary Weight Networks",
/// arXiv:1605.04711, for the threshold rule.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/code_spec.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/core/strict.hpp"
#include "blockpack/quant/block_rows.hpp"
#include "blockpack/quant/scheme_fields.hpp"
#include "blockpack/quant/table_code.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// How a group of weights becomes -1, 0, 1 and a scale; mean = mean |w| of the group.
enum class TernaryRule : std::uint8_t {
  threshold,  ///< nonzero above 0.7 * mean; scale = mean of the nonzero |w|, weighted by importance: the best on
              ///< Gaussian weights
  mean        ///< round(w / (mean + 1e-5)), clipped; scale = mean: BitNet b1.58
};

/// How codes are stored.
enum class TernaryPacking : std::uint8_t {
  two_bits,  ///< 2 bits a weight
  base3      ///< 5 weights a byte, 64 in 13 bytes: 1.625 bits a weight
};

/// What one group is encoded with: digit = clip(round_half_even(w / divisor), -1, 1), decoded = digit * scale.
struct TernaryParameters {
  float divisor = 0.0f;  ///< 0: every digit is 0
  float scale = 0.0f;    ///< before it is rounded to fp16
};

/// Ternary codes with groups of `group_size` along `in`.
///
/// The threshold rule divides by 1.4 * mean, so that magnitudes above 0.7 * mean round to 1 (a tie rounds to 0). Sums
/// are double, in eight interleaved parts; mean and scale are then float32. Scales of groups and rows are stored in
/// fp16: one beyond it is a ValueError under `reject` and 65504 under `saturate`, one that rounds to 0 decodes to
/// zeros. The scale of a whole matrix is stored in float32. A group of zeros has scale 0 and digits 0. Infinity counts
/// as the largest float under `saturate`. Importance weights the scale of the threshold rule and nothing else.
struct Ternary {
  static constexpr int kRow = 0;      ///< group_size: one group a row
  static constexpr int kTensor = -1;  ///< group_size: one group for the matrix; rule mean

  int group_size = 256;  ///< 64, 128, 256, kRow or kTensor
  TernaryRule rule = TernaryRule::threshold;
  TernaryPacking packing = TernaryPacking::two_bits;
  float tensor_mean = -1.0f;  ///< of |W|, set by fitted_to; negative: not fitted

  friend bool operator==(const Ternary&, const Ternary&) = default;

  /// "ternary-g256", "ternary-row", "ternary-tensor" (BitNet b1.58); then "-mean" (implied by tensor) and "-base3".
  std::string scheme() const {
    const std::string group =
        group_size == kTensor ? "-tensor" : (group_size == kRow ? "-row" : "-g" + std::to_string(group_size));
    return "ternary" + group + (rule == TernaryRule::mean && group_size != kTensor ? "-mean" : "") +
           (packing == TernaryPacking::base3 ? "-base3" : "");
  }

  /// The format of a scheme split at its dashes, or nothing when the name is not `ternary`. ValueError for a field it
  /// does not know, one given twice or a group that is not offered.
  static std::optional<Ternary> from_fields(std::string_view name, std::span<const std::string_view> fields) {
    if (name != "ternary") return std::nullopt;
    Ternary format;
    detail::FieldReader reader(name, fields);
    for (const std::string_view field : fields) {
      if (const auto group = detail::number_after("g", field)) {
        reader.set("group", format.group_size, *group);
      } else if (field == "row" || field == "tensor") {
        reader.set("group", format.group_size, field == "row" ? kRow : kTensor);
      } else if (field == "mean") {
        reader.set("rule", format.rule, TernaryRule::mean);
      } else if (field == "base3") {
        reader.set("packing", format.packing, TernaryPacking::base3);
      } else {
        reader.unknown(field);
      }
    }
    if (format.group_size == kTensor) format.rule = TernaryRule::mean;
    format.validate();
    return format;
  }

  /// ValueError that names the parameter.
  void validate() const {
    if (group_size != 64 && group_size != 128 && group_size != 256 && group_size != kRow && group_size != kTensor)
      throw ValueError("Ternary: group_size = " + std::to_string(group_size) +
                       ", 64, 128, 256, 0 (a row) or -1 (the matrix) needed");
    if (group_size == kTensor && rule != TernaryRule::mean)
      throw ValueError("Ternary: one scale for the matrix needs the rule mean");
  }

  bool can_store_nan() const noexcept { return false; }
  bool exact_in_bf16() const noexcept { return false; }

  index_t groups(index_t cols) const noexcept {
    return group_size > 0 ? ceil_div(cols, index_t{group_size}) : (cols > 0 ? 1 : 0);
  }

  /// `scales`: fp16 per group, or `tensor_scale`: float32; `codes`: digit + 1, see pack(). A short last group is stored
  /// whole; groups of a row or a matrix end at a full byte (base3: at 64 weights).
  std::vector<SectionSpec> sections(index_t cols) const {
    validate();
    const index_t stored = group_size > 0 ? checked_mul(groups(cols), group_size, "Ternary::sections") : cols;
    SectionSpec scales{"scales", checked_mul(groups(cols), 2, "Ternary::sections")};
    if (group_size == kTensor) scales = {"tensor_scale", 0, 4};
    return {scales, {"codes", code_bytes(stored)}};
  }

  /// Bytes of `count` codes.
  index_t code_bytes(index_t count) const noexcept {
    return packing == TernaryPacking::base3 ? ceil_div(count, kRun) * kRunBytes : detail::packed_code_bytes(count, 2);
  }

  bool fits_tensor() const noexcept { return group_size == kTensor; }
  /// The format for a matrix with these statistics.
  Ternary fitted_to(const TensorStatistics& statistics) const noexcept {
    Ternary format = *this;
    format.tensor_mean = static_cast<float>(statistics.mean_abs());
    return format;
  }

  /// Divisor and scale of a group. `importance`: empty, or one weight per value, for the threshold rule.
  TernaryParameters fit(std::span<const float> values, std::span<const float> importance = {}) const noexcept;

  /// Digits -1, 0, 1 for given parameters.
  static std::int32_t digit_of(float value, float divisor) noexcept {
    if (divisor == 0.0f) return 0;
    const float t = value / divisor;
    return t > 0.5f ? 1 : (t < -0.5f ? -1 : 0);
  }

  /// Codes 0, 1, 2 to bytes. two_bits: a little-endian bit stream. base3: 64 codes in 13 bytes, code 5 j + k of a run
  /// is digit k (of value 3^k) of byte j. Missing codes are 1, the digit 0.
  void pack(std::span<const std::int32_t> codes, std::uint8_t* dst) const noexcept;
  void unpack(const std::uint8_t* src, std::span<std::int32_t> codes) const noexcept;

  /// The mean into the section of the matrix. UnsupportedError for a format of the matrix that was not fitted.
  void encode_tensor(std::span<std::byte* const> dst) const {
    if (group_size != kTensor) return;
    if (tensor_mean < 0.0f)
      throw UnsupportedError("encode " + scheme() + ": the mean of the matrix is not known; call fitted_to first");
    detail::store_f32(tensor_mean, dst[0]);
  }
  /// ValueError with row and column of the first group whose scale is beyond fp16.
  void check_row(const EncodeRow& row) const {
    if (group_size == kTensor) return;
    const auto cols = static_cast<index_t>(row.weights.size());
    const index_t size = group_size == kRow ? cols : group_size;
    for (index_t col = 0; col < cols; col += size)
      checked_scale(fit(detail::part_of(row.weights, col, size), detail::part_of(row.importance, col, size)), row, col);
  }
  void encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const;
  void decode_row(std::span<const std::byte* const> src, index_t cols, index_t col, std::span<float> dst) const;

  /// Codes of 2 bits in both packings. The scale of a row or matrix is kept as a float, one line of a panel.
  std::optional<CodeSpec> code_spec(index_t cols, std::span<const std::byte* const> /*src*/) const {
    CodeSpec spec;
    spec.bits = 2;
    spec.zero = 1;
    spec.scale = group_size > 0 ? CodeScale::fp16 : CodeScale::f32;
    spec.group = group_size > 0 ? group_size : round_up(std::max<index_t>(cols, 1), 32);
    return spec;
  }
  void read_codes(std::span<const std::byte* const> src, index_t cols, const CodeRow& dst) const;

  static constexpr index_t kRun = 64;       ///< codes of base3 that share …
  static constexpr index_t kRunBytes = 13;  ///< … whole bytes
  static constexpr index_t kChunk = 256;    ///< codes in flight; a multiple of kRun

  /// The scale of a group as it is stored, with the policy for one beyond fp16; `col` is the group's first column.
  float checked_scale(const TernaryParameters& p, const EncodeRow& row, index_t col) const {
    const float scale = static_cast<float>(fp16(p.scale));
    if (std::isfinite(scale)) return scale;
    if (row.non_finite != NonFinite::saturate)
      throw ValueError("encode " + scheme() + ": the scale of the group at row " + std::to_string(row.row) +
                       ", column " + std::to_string(col) +
                       " is beyond fp16 (65504); pass NonFinite::saturate to clamp it");
    return 65504.0f;
  }

 private:
  static constexpr float kLargest = std::numeric_limits<float>::max();

  /// fit() for magnitudes that are finite.
  template <class Magnitude>
  TernaryParameters fit(std::size_t size, const Magnitude& magnitude, std::span<const float> importance) const noexcept;
  template <class Code>
  static void pack_base3(std::span<const Code> codes, std::uint8_t* dst) noexcept;
};

namespace detail {

#if defined(BLOCKPACK_HEADERS_ONLY)
/// Codes digit + 1 of two bits, the last byte filled up with the digit 0, or of 8 bits.
inline void encode_ternary(std::span<const float> values, float divisor, int bits, std::uint8_t* codes) noexcept;
/// scale * digit of the first dst.size() codes of two bits.
inline void decode_ternary(const std::uint8_t* codes, float scale, std::span<float> dst) noexcept;
#else
/// The same through the kernels of group integers, whose levels with zero point 1 these are.
BLOCKPACK_API void encode_ternary(std::span<const float> values, float divisor, int bits, std::uint8_t* codes);
BLOCKPACK_API void decode_ternary(const std::uint8_t* codes, float scale, std::span<float> dst);
#endif

}  // namespace detail

inline TernaryParameters Ternary::fit(std::span<const float> values, std::span<const float> importance) const noexcept {
  const auto magnitude = [&](std::size_t i) { return std::fabs(values[i]); };
  if (!detail::has_large(values)) return fit(values.size(), magnitude, importance);
  return fit(
      values.size(), [&](std::size_t i) { return std::min(magnitude(i), kLargest); }, importance);
}

template <class Magnitude>
TernaryParameters Ternary::fit(std::size_t size, const Magnitude& magnitude,
                               std::span<const float> importance) const noexcept {
  const double sum = detail::interleaved_sum(size, [&](std::size_t i) { return static_cast<double>(magnitude(i)); });
  const double mean = size == 0 ? 0.0 : sum / static_cast<double>(size);
  if (rule == TernaryRule::mean) return {static_cast<float>(mean) + 1e-5f, static_cast<float>(mean)};
  TernaryParameters p;
  p.divisor = static_cast<float>(std::min(1.4 * mean, double{kLargest}));
  // m / divisor > 1/2 in float32 is m > divisor / 2, but for scales far below fp16. No branch: half of them are taken.
  const float limit = 0.5f * p.divisor;
  double weight, total;
  if (importance.empty()) {
    index_t count = 0;
    for (std::size_t i = 0; i < size; ++i) count += magnitude(i) > limit ? 1 : 0;
    weight = static_cast<double>(count);
    // Magnitudes are ordered as their bits are; a choice between floats would keep g++ from vectorizing.
    const auto bits_of = [](float v) { return std::bit_cast<std::int32_t>(v); };
    total = detail::interleaved_sum(size, [&](std::size_t i) {
      const std::int32_t bits = bits_of(magnitude(i));
      return static_cast<double>(std::bit_cast<float>(bits & -std::int32_t{bits > bits_of(limit)}));
    });
  } else {
    const auto kept_weight = [&](std::size_t i) {
      return static_cast<double>(magnitude(i) > limit ? importance[i] : 0.0f);
    };
    weight = detail::interleaved_sum(size, kept_weight);
    total =
        detail::interleaved_sum(size, [&](std::size_t i) { return strict_mul(kept_weight(i), double{magnitude(i)}); });
  }
  p.scale = weight > 0 ? static_cast<float>(total / weight) : 0.0f;
  return p;
}

inline void Ternary::pack(std::span<const std::int32_t> codes, std::uint8_t* dst) const noexcept {
  const auto code = [&](std::size_t i) { return i < codes.size() ? static_cast<unsigned>(codes[i]) : 1u; };
  if (packing == TernaryPacking::two_bits) {
    for (std::size_t i = 0; i < codes.size(); i += 4)
      *dst++ = static_cast<std::uint8_t>(code(i) | code(i + 1) << 2 | code(i + 2) << 4 | code(i + 3) << 6);
    return;
  }
  pack_base3(codes, dst);
}

template <class Code>
void Ternary::pack_base3(std::span<const Code> codes, std::uint8_t* dst) noexcept {
  std::array<std::uint8_t, kRun + 1> run;  // and the digit 0 for the last byte, which has four codes
  for (std::size_t first = 0; first < codes.size(); first += kRun) {
    const std::size_t count = std::min(codes.size() - first, static_cast<std::size_t>(kRun));
    for (std::size_t i = 0; i < count; ++i) run[i] = static_cast<std::uint8_t>(codes[first + i]);
    std::fill(run.begin() + static_cast<std::ptrdiff_t>(count), run.end(), std::uint8_t{1});
    for (const std::uint8_t* c = run.data(); c < run.data() + kRun; c += 5)
      *dst++ = static_cast<std::uint8_t>(c[0] + 3 * (c[1] + 3 * (c[2] + 3 * (c[3] + 3 * c[4]))));
  }
}

inline void Ternary::unpack(const std::uint8_t* src, std::span<std::int32_t> codes) const noexcept {
  if (packing == TernaryPacking::two_bits) return unpack_codes(src, 2, codes);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    constexpr unsigned kPowers[5] = {1, 3, 9, 27, 81};
    const std::size_t in_run = i % static_cast<std::size_t>(kRun);
    const std::size_t byte = i / static_cast<std::size_t>(kRun) * static_cast<std::size_t>(kRunBytes) + in_run / 5;
    codes[i] = static_cast<std::int32_t>(src[byte] / kPowers[in_run % 5] % 3);
  }
}

inline void Ternary::encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const {
  const auto cols = static_cast<index_t>(row.weights.size());
  const index_t size = group_size > 0 ? group_size : cols;
  std::uint8_t* codes = detail::bytes(dst[1]);
  for (index_t g = 0; g < groups(cols); ++g) {
    const index_t first = g * size;
    const std::span<const float> values = detail::part_of(row.weights, first, size);
    TernaryParameters p{tensor_mean + 1e-5f, tensor_mean};
    if (group_size != kTensor) {
      p = fit(values, detail::part_of(row.importance, first, size));
      detail::store_fp16(checked_scale(p, row, first), dst[0] + 2 * g);
    }
    for (index_t at = 0; at < size; at += kChunk) {
      const index_t count = std::min(kChunk, size - at);
      std::span<const float> part = detail::part_of(values, std::min(at, static_cast<index_t>(values.size())), count);
      float padded[kChunk];
      if (static_cast<index_t>(part.size()) < count) {  // zeros have the digit 0
        std::fill(std::copy(part.begin(), part.end(), padded), padded + count, 0.0f);
        part = std::span<const float>(padded, static_cast<std::size_t>(count));
      }
      if (packing == TernaryPacking::two_bits) {
        detail::encode_ternary(part, p.divisor, 2, codes);
      } else {
        std::uint8_t of_chunk[kChunk];
        detail::encode_ternary(part, p.divisor, 8, of_chunk);
        pack_base3(std::span<const std::uint8_t>(of_chunk, part.size()), codes);
      }
      codes += code_bytes(count);
    }
  }
}

inline void Ternary::decode_row(std::span<const std::byte* const> src, index_t cols, index_t col,
                                std::span<float> dst) const {
  const index_t size = group_size > 0 ? group_size : cols;
  const std::uint8_t* codes = detail::bytes(src[1]) + code_bytes(col);
  for (index_t done = 0; done < static_cast<index_t>(dst.size());) {
    const index_t g = (col + done) / size;
    const index_t count = std::min({(g + 1) * size - (col + done), static_cast<index_t>(dst.size()) - done, kChunk});
    const float scale = group_size == kTensor ? detail::load_f32(src[0]) : detail::load_fp16(src[0] + 2 * g);
    const std::span<float> values = dst.subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count));
    if (packing == TernaryPacking::two_bits) {
      detail::decode_ternary(codes, scale, values);
    } else {
      std::int32_t digits[kChunk];
      unpack(codes, std::span<std::int32_t>(digits, values.size()));
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = scale * static_cast<float>(digits[i] - 1);
    }
    codes += code_bytes(count);
    done += count;
  }
}

inline void Ternary::read_codes(std::span<const std::byte* const> src, index_t cols, const CodeRow& dst) const {
  for (index_t col = 0; col < cols; col += kChunk) {
    std::int32_t codes[kChunk];
    const auto count = static_cast<std::size_t>(std::min(kChunk, cols - col));
    unpack(detail::bytes(src[1]) + code_bytes(col), std::span<std::int32_t>(codes, count));
    for (std::size_t i = 0; i < count; ++i)
      dst.codes[static_cast<std::size_t>(col) + i] = static_cast<std::uint8_t>(codes[i]);
  }
  for (std::size_t g = 0; g < dst.scales.size(); ++g) {
    const float scale = group_size == kTensor ? detail::load_f32(src[0]) : detail::load_fp16(src[0] + 2 * g);
    dst.scales[g] = group_size > 0 ? fp16(scale).bits : std::bit_cast<std::uint32_t>(scale);
  }
}

#if defined(BLOCKPACK_HEADERS_ONLY)
namespace detail {
inline void encode_ternary(std::span<const float> values, float divisor, int bits, std::uint8_t* codes) noexcept {
  if (bits == 8) {
    for (const float v : values) *codes++ = static_cast<std::uint8_t>(1 + Ternary::digit_of(v, divisor));
    return;
  }
  for (std::size_t i = 0; i < values.size(); i += 4) {
    unsigned byte = 0;
    for (std::size_t k = 0; k < 4; ++k) {
      const int digit = i + k < values.size() ? Ternary::digit_of(values[i + k], divisor) : 0;
      byte |= static_cast<unsigned>(1 + digit) << (2 * k);
    }
    codes[i / 4] = static_cast<std::uint8_t>(byte);
  }
}
inline void decode_ternary(const std::uint8_t* codes, float scale, std::span<float> dst) noexcept {
  for (std::size_t i = 0; i < dst.size(); ++i)
    dst[i] = scale * static_cast<float>(((codes[i / 4] >> (i % 4 * 2)) & 3) - 1);
}
}  // namespace detail
#endif

/// The activation quantizer of BitNet b1.58: one int8 scale per token.
///
///     s = 127 / max(max |x|, 1e-5);  q = clip(round_half_even(x * s), -128, 127);  x ≈ q / s
///
/// Shapes:  x and q [tokens, in]; scales [tokens], the s of each token.
/// Errors:  ShapeError for other shapes; ValueError with row and column on NaN or infinity, before anything is written.
inline void quantize_bitnet_activations(MatrixView<const float> x, MatrixView<std::int8_t> q, std::span<float> scales) {
  if (q.shape() != x.shape() || static_cast<index_t>(scales.size()) != x.rows())
    throw ShapeError("quantize_bitnet_activations: q is " + to_string(q.shape()) + " with " +
                     std::to_string(scales.size()) + " scales, " + to_string(x.shape()) + " with " +
                     std::to_string(x.rows()) + " needed");
  if (const MatrixShape bad = find_non_finite(x); bad.rows >= 0)
    throw ValueError("quantize_bitnet_activations: x is not finite at row " + std::to_string(bad.rows) + ", column " +
                     std::to_string(bad.cols));
  for (index_t t = 0; t < x.rows(); ++t) {
    const float absmax = std::bit_cast<float>(detail::max_magnitude_bits(x.row(t)));
    const float scale = 127.0f / (absmax > 1e-5f ? absmax : 1e-5f);
    scales[static_cast<std::size_t>(t)] = scale;
    for (index_t i = 0; i < x.cols(); ++i) {
      const float v = round_half_even(x(t, i) * scale);
      q(t, i) = static_cast<std::int8_t>(v < -128.0f ? -128.0f : (v > 127.0f ? 127.0f : v));
    }
  }
}

}  // namespace blockpack::inline BLOCKPACK_ABI
