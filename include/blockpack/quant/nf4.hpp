// SPDX-License-Identifier: Apache-2.0
#pragma once

/// NF4: 4-bit codes over the quantiles of a normal distribution, with the largest magnitude of a block as its scale.
/// Bytes: docs/formats/nf4.md.
///
/// Source: "QLoRA", arXiv:2305.14314; levels and decision rule are those of bitsandbytes, the scale is fp16 here.

#include <algorithm>
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
#include "blockpack/quant/block_rows.hpp"
#include "blockpack/quant/scheme_fields.hpp"
#include "blockpack/quant/table_code.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// NF4 with blocks of `block` along `in`: 4 + 16 / block bits per weight.
///
///     a = fp16(max |w|);  x = w * (1 / a);  code = the level nearest to x, the lower one on a tie;  decoded = level *
///     a
///
/// All in float32; midpoints between levels are rounded to float32, half to even. a is rounded first and the rounded
/// one is used. A block of zeros, or one whose a rounds to 0, stores a = 0 and the code of 0 (7). a beyond fp16 is a
/// ValueError under `reject`; under `saturate` it is 65504 and the codes follow. With importance a is searched for, see
/// fit().
struct Nf4 {
  int block = 64;  ///< 32, 64 or 128

  friend bool operator==(const Nf4&, const Nf4&) = default;

  /// "nf4-b64".
  std::string scheme() const { return "nf4-b" + std::to_string(block); }

  /// The format of a scheme split at its dashes, or nothing when the name is not `nf4`. ValueError for a field it does
  /// not know, one given twice or a block that is not offered.
  static std::optional<Nf4> from_fields(std::string_view name, std::span<const std::string_view> fields) {
    if (name != "nf4") return std::nullopt;
    Nf4 format;
    detail::FieldReader reader(name, fields);
    for (const std::string_view field : fields) {
      const auto block = detail::number_after("b", field);
      if (!block) reader.unknown(field);
      reader.set("block", format.block, *block);
    }
    format.validate();
    return format;
  }

  /// ValueError that names the parameter.
  void validate() const {
    if (block != 32 && block != 64 && block != 128)
      throw ValueError("Nf4: block = " + std::to_string(block) + ", 32, 64 or 128 needed");
  }

  bool can_store_nan() const noexcept { return false; }
  bool exact_in_bf16() const noexcept { return false; }

  /// `scales`: fp16 a block; `codes`: two to a byte, the even weight in the low nibble.
  std::vector<SectionSpec> sections(index_t cols) const {
    validate();
    const index_t blocks = ceil_div(cols, index_t{block});
    return {{"scales", checked_mul(blocks, 2, "Nf4::sections")},
            {"codes", checked_mul(blocks, index_t{block} / 2, "Nf4::sections")}};
  }

  /// max |v| before it is rounded to fp16. With `importance` (one weight per value, or none for the last ones), of this
  /// times 1, 31/32, … 20/32 the one of least weighted squared error as it is stored, the first of equals.
  float fit(std::span<const float> values, std::span<const float> importance = {}) const noexcept {
    const float absmax = std::bit_cast<float>(detail::max_magnitude_bits(values));
    float best = absmax;
    double least = std::numeric_limits<double>::infinity();
    for (int part = 32; part >= 20 && !importance.empty(); --part) {
      const float candidate = absmax * (static_cast<float>(part) / 32.0f), scale = stored(candidate);
      if (!std::isfinite(scale)) continue;
      const double error = detail::weighted_error(values, importance, [&](std::size_t i) {
        std::int32_t code;
        encode(values.subspan(i, 1), scale, std::span(&code, 1));
        return kLevels[code] * scale;
      });
      if (error < least) {
        least = error;
        best = candidate;
      }
    }
    return best;
  }
  /// The scale as it is stored; `overflow` where it is beyond fp16.
  static float stored(float absmax, float overflow = std::numeric_limits<float>::infinity()) noexcept {
    const float scale = static_cast<float>(fp16(absmax));
    return std::isfinite(scale) ? scale : overflow;
  }

  /// Codes for a stored scale.
  void encode(std::span<const float> values, float scale, std::span<std::int32_t> codes) const noexcept {
    const detail::TableCode table = code_table(scale);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float pair[2] = {values[i], 0.0f};
      std::uint8_t code;
      detail::encode_table_reference(pair, table, &code);
      codes[i] = code & 15;
    }
  }
  /// level(code) * scale.
  void decode(std::span<const std::int32_t> codes, float scale, std::span<float> dst) const noexcept {
    for (std::size_t i = 0; i < dst.size(); ++i) dst[i] = kLevels[codes[i] & 15] * scale;
  }

  /// ValueError with row and column of the first block whose scale is beyond fp16.
  void check_row(const EncodeRow& row) const {
    for (index_t col = 0; col < static_cast<index_t>(row.weights.size()); col += block)
      checked_scale(detail::max_magnitude_bits(detail::part_of(row.weights, col, block)), row, col);
  }
  void encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const {
    encode_row(row, dst, detail::table_ops());
  }
  void decode_row(std::span<const std::byte* const> src, index_t /*cols*/, index_t col, std::span<float> dst) const {
    decode_row(src, col, dst, detail::table_ops());
  }

  std::optional<CodeSpec> code_spec(index_t /*cols*/, std::span<const std::byte* const> /*src*/) const {
    CodeSpec spec;
    spec.element = CodeElement::table;
    std::copy(std::begin(kLevels), std::end(kLevels), spec.values.begin());
    spec.group = block;
    spec.scale = CodeScale::fp16;
    return spec;
  }
  void read_codes(std::span<const std::byte* const> src, index_t cols, const CodeRow& dst) const {
    for (index_t k = 0; k < cols; ++k)
      dst.codes[static_cast<std::size_t>(k)] =
          static_cast<std::uint8_t>(detail::bytes(src[1])[k / 2] >> (k % 2 * 4) & 15);
    for (std::size_t g = 0; g < dst.scales.size(); ++g) dst.scales[g] = fp16(detail::load_fp16(src[0] + 2 * g)).bits;
  }

  /// A row through given loops.
  void encode_row(const EncodeRow& row, std::span<std::byte* const> dst, const detail::TableOps& ops) const;
  void decode_row(std::span<const std::byte* const> src, index_t col, std::span<float> dst,
                  const detail::TableOps& ops) const;

  /// The levels of QLoRA.
  static constexpr float kLevels[16] = {-1.0f,
                                        -0.6961928009986877f,
                                        -0.5250730514526367f,
                                        -0.39491748809814453f,
                                        -0.28444138169288635f,
                                        -0.18477343022823334f,
                                        -0.09105003625154495f,
                                        0.0f,
                                        0.07958029955625534f,
                                        0.16093020141124725f,
                                        0.24611230194568634f,
                                        0.33791524171829224f,
                                        0.44070982933044434f,
                                        0.5626170039176941f,
                                        0.7229568362236023f,
                                        1.0f};

 private:
  float checked_scale(std::uint32_t magnitude, const EncodeRow& row, index_t col) const {
    const bool saturate = row.non_finite == NonFinite::saturate;
    const float scale =
        stored(std::bit_cast<float>(magnitude), saturate ? 65504.0f : std::numeric_limits<float>::infinity());
    if (!std::isfinite(scale))
      throw ValueError("encode " + scheme() + ": the scale of the block at row " + std::to_string(row.row) +
                       ", column " + std::to_string(col) +
                       " is beyond fp16 (65504); pass NonFinite::saturate to clamp it");
    return scale;
  }

  static detail::TableCode code_table(float scale) noexcept {
    static constexpr detail::TableCode kMidpoints = [] {
      detail::TableCode t{};
      for (int i = 0; i < 15; ++i)
        t.thresholds[i] = static_cast<float>((double{kLevels[i]} + double{kLevels[i + 1]}) / 2);
      return t;
    }();
    detail::TableCode t = kMidpoints;
    t.multiplier = scale == 0.0f ? 0.0f : 1.0f / scale;
    return t;
  }
};

inline void Nf4::encode_row(const EncodeRow& row, std::span<std::byte* const> dst, const detail::TableOps& ops) const {
  const auto cols = static_cast<index_t>(row.weights.size());
  std::byte* scales = dst[0];
  std::uint8_t* codes = detail::bytes(dst[1]);
  for (index_t col = 0; col < cols; col += block, scales += 2, codes += block / 2) {
    std::span<const float> values = detail::part_of(row.weights, col, block);
    float padded[detail::kMaxBlock];
    if (static_cast<index_t>(values.size()) < block) {
      std::fill(std::copy(values.begin(), values.end(), padded), padded + block, 0.0f);
      values = std::span<const float>(padded, static_cast<std::size_t>(block));
    }
    const std::span<const float> importance = detail::part_of(row.importance, col, block);
    const std::uint32_t magnitude = importance.empty() ? ops.max_magnitude(ops.kernels, values)
                                                       : std::bit_cast<std::uint32_t>(fit(values, importance));
    const float scale = checked_scale(magnitude, row, col);
    detail::store_fp16(scale, scales);
    ops.encode(ops.kernels, values, code_table(scale), codes);
  }
}

inline void Nf4::decode_row(std::span<const std::byte* const> src, index_t col, std::span<float> dst,
                            const detail::TableOps& ops) const {
  const std::byte* scales = src[0] + 2 * (col / block);
  const std::uint8_t* codes = detail::bytes(src[1]) + col / 2;
  const auto size = static_cast<std::size_t>(block);
  for (std::size_t at = 0; at < dst.size(); at += size, scales += 2, codes += size / 2)
    ops.decode(ops.kernels, codes, kLevels, detail::load_fp16(scales), 1.0f,
               dst.subspan(at, std::min(size, dst.size() - at)));
}

}  // namespace blockpack::inline BLOCKPACK_ABI
