// SPDX-License-Identifier: Apache-2.0
#pragma once

/// NVFP4: 4-bit floats (E2M1) in blocks of 16 with an FP8 scale (E4M3) each and one float32 scale for the whole tensor.
/// Bytes: docs/formats/nvfp4.md. ggml's NVFP4 blocks, which have no tensor scale, are another format.
///
/// Source: the documentation of NVIDIA's Transformer Engine; `four_over_six` is the variant that also tries the level 4
/// for a block's maximum.

#include <algorithm>
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

/// NVFP4 with blocks of 16 along `in`.
///
///     A = max |W|;  enc = 448 * 6 / A;  the tensor stores dec = 1 / enc
///     s = e4m3(min(amax / 6 * enc, 448)) of a block;  code = e2m1(w * (enc / s)), saturated to ±6
///     decoded = e2m1 * s * dec
///
/// All in float32, half to even, in this order; enc / s is at most the largest float. `four_over_six` takes 256 for 448
/// and, for each block, also tries s = e4m3(amax / 4 * enc): the one with the smaller squared error, weighted by
/// importance, is kept, amax / 6 when they are equal. Otherwise importance has no effect: nothing is searched.
///
/// Blocks with an amax below about A * 2^-18.8 are stored as zeros, because s rounds to 0. A below 2^-110 counts as 0:
/// dec = 1 and zeros. A negative weight that rounds to 0 keeps its sign where s is not 0. Under `saturate` infinity is
/// the largest float; under `propagate` a NaN or infinity makes the scale of its block NaN (0x7f), codes 0, and does
/// not count for A.
struct Nvfp4 {
  bool four_over_six = false;
  float tensor_absmax = -1.0f;  ///< A, set by fitted_to; negative: not fitted

  static constexpr index_t kBlock = 16;
  static constexpr std::uint8_t kNanScale = 0x7f;

  friend bool operator==(const Nvfp4&, const Nvfp4&) = default;

  /// "nvfp4" or "nvfp4-4over6".
  std::string scheme() const { return four_over_six ? "nvfp4-4over6" : "nvfp4"; }

  /// The format of a scheme split at its dashes, or nothing when the name is not `nvfp4`. ValueError for a field it
  /// does not know or one given twice.
  static std::optional<Nvfp4> from_fields(std::string_view name, std::span<const std::string_view> fields) {
    if (name != "nvfp4") return std::nullopt;
    Nvfp4 format;
    detail::FieldReader reader(name, fields);
    for (const std::string_view field : fields) {
      if (field != "4over6") reader.unknown(field);
      reader.set("variant", format.four_over_six, true);
    }
    return format;
  }

  bool can_store_nan() const noexcept { return true; }
  bool exact_in_bf16() const noexcept { return false; }

  /// `scales`: an E4M3 byte a block; `codes`: two to a byte, the even weight in the low nibble; `tensor_scale`: dec.
  std::vector<SectionSpec> sections(index_t cols) const {
    const index_t blocks = ceil_div(cols, kBlock);
    return {{"scales", blocks}, {"codes", checked_mul(blocks, kBlock / 2, "Nvfp4::sections")}, {"tensor_scale", 0, 4}};
  }

  bool fits_tensor() const noexcept { return true; }
  /// The format for a matrix with these statistics.
  Nvfp4 fitted_to(const TensorStatistics& statistics) const noexcept {
    Nvfp4 format = *this;
    format.tensor_absmax = statistics.absmax < 0x1p-110f ? 0.0f : statistics.absmax;
    return format;
  }

  /// enc, 1 for a tensor of zeros.
  float encode_scale() const noexcept {
    return tensor_absmax == 0.0f ? 1.0f : (four_over_six ? 1536.0f : 2688.0f) / tensor_absmax;
  }

  /// The E4M3 byte of a block. `importance`: empty, or weights for the first values, 0 for the rest.
  std::uint8_t fit(std::span<const float> values, std::span<const float> importance = {},
                   NonFinite non_finite = NonFinite::reject) const {
    return fit(values, detail::max_magnitude_bits(values), importance, non_finite, detail::kTableReference);
  }
  /// The same for a known maximum, through given loops.
  std::uint8_t fit(std::span<const float> values, std::uint32_t magnitude, std::span<const float> importance,
                   NonFinite non_finite, const detail::TableOps& ops) const {
    if (magnitude >= detail::kInfinityBits) {
      if (non_finite == NonFinite::propagate) return kNanScale;
      magnitude = detail::kInfinityBits - 1;
    }
    if (tensor_absmax == 0.0f) return 0;
    const float amax = std::bit_cast<float>(magnitude);
    const std::uint8_t six = scale_of(amax / 6.0f);
    if (!four_over_six) return six;
    const std::uint8_t four = scale_of(amax / 4.0f);
    if (four == six) return six;
    return squared_error(values, four, importance, ops) < squared_error(values, six, importance, ops) ? four : six;
  }

  /// Codes for a given scale byte, sign and magnitude; zeros for scale 0 and for NaN.
  void encode(std::span<const float> values, std::uint8_t scale, std::span<std::int32_t> codes) const noexcept {
    const detail::TableCode table = code_table(scale);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float pair[2] = {values[i], 0.0f};
      std::uint8_t code = 0;
      if (stores_values(scale)) detail::encode_table_reference(pair, table, &code);
      codes[i] = code & 15;
    }
  }

  /// e2m1(code) * s * dec, in this order.
  void decode(std::span<const std::int32_t> codes, std::uint8_t scale, float tensor_scale,
              std::span<float> dst) const noexcept {
    const float s = static_cast<float>(fp8_e4m3::from_bits(scale));
    for (std::size_t i = 0; i < dst.size(); ++i) dst[i] = kLevels[codes[i] & 15] * s * tensor_scale;
  }

  /// dec into the tensor's section. UnsupportedError for a format that was not fitted.
  void encode_tensor(std::span<std::byte* const> dst) const {
    if (tensor_absmax < 0.0f)
      throw UnsupportedError("encode " + scheme() + ": the scale of the tensor is not known; call fitted_to first");
    detail::store_f32(1.0f / encode_scale(), dst[2]);
  }
  void encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const {
    encode_row(row, dst, detail::table_ops());
  }
  void decode_row(std::span<const std::byte* const> src, index_t /*cols*/, index_t col, std::span<float> dst) const {
    decode_row(src, col, dst, detail::table_ops());
  }

  /// A row through given loops.
  void encode_row(const EncodeRow& row, std::span<std::byte* const> dst, const detail::TableOps& ops) const;
  void decode_row(std::span<const std::byte* const> src, index_t col, std::span<float> dst,
                  const detail::TableOps& ops) const;

  /// Doubled levels; the scale of the tensor is part of the multiplier.
  std::optional<CodeSpec> code_spec(index_t /*cols*/, std::span<const std::byte* const> src) const {
    CodeSpec spec;
    for (std::size_t c = 0; c < 16; ++c) spec.levels[c] = static_cast<std::int8_t>(2.0f * kLevels[c]);
    spec.group = kBlock;
    spec.scale = CodeScale::e4m3;
    spec.multiplier = 0.5f * detail::load_f32(src[2]);
    return spec;
  }
  void read_codes(std::span<const std::byte* const> src, index_t cols, const CodeRow& dst) const {
    for (std::size_t g = 0; g < dst.scales.size(); ++g) dst.scales[g] = std::to_integer<std::uint32_t>(src[0][g]);
    for (index_t i = 0; i < cols; ++i)
      dst.codes[static_cast<std::size_t>(i)] =
          static_cast<std::uint8_t>(detail::bytes(src[1])[i / 2] >> (i % 2 * 4) & 15);
  }

  /// Values of the codes.
  static constexpr float kLevels[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                        -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

 private:
  static bool stores_values(std::uint8_t scale) noexcept { return scale != 0 && scale != kNanScale; }

  std::uint8_t scale_of(float unit) const noexcept { return fp8_e4m3(std::min(unit * encode_scale(), 448.0f)).bits; }

  /// Half to even on E2M1: a tie goes up where its lower neighbour has an odd code, so "not below the tie" is written
  /// as "above the float before it".
  detail::TableCode code_table(std::uint8_t scale) const noexcept {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    detail::TableCode t{{0.25f, 0x1.7ffffep-1f, 1.25f, 0x1.bffffep0f, 2.5f, 0x1.bffffep1f, 5.0f, kInfinity, kInfinity,
                         kInfinity, kInfinity, kInfinity, kInfinity, kInfinity, kInfinity},
                        true,
                        0.0f};
    if (stores_values(scale))
      t.multiplier =
          std::min(encode_scale() / static_cast<float>(fp8_e4m3::from_bits(scale)), std::numeric_limits<float>::max());
    return t;
  }

  /// Sum of importance * error², in units of the scaled weights, in float32 in element order.
  float squared_error(std::span<const float> values, std::uint8_t scale, std::span<const float> importance,
                      const detail::TableOps& ops) const {
    const float s = static_cast<float>(fp8_e4m3::from_bits(scale)), unit = encode_scale();
    std::uint8_t codes[kBlock / 2] = {};
    float decoded[kBlock];
    if (stores_values(scale)) ops.encode(ops.kernels, values, code_table(scale), codes);
    ops.decode(ops.kernels, codes, kLevels, s, 1.0f, std::span<float>(decoded, values.size()));  // exact
    float sum = 0.0f;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float error = strict_mul(values[i], unit) - decoded[i];
      const float square = strict_mul(error, error);
      if (importance.empty())
        sum += square;
      else if (i < importance.size())
        sum += strict_mul(square, importance[i]);
    }
    return sum;
  }
};

inline void Nvfp4::encode_row(const EncodeRow& row, std::span<std::byte* const> dst,
                              const detail::TableOps& ops) const {
  const auto cols = static_cast<index_t>(row.weights.size());
  std::uint8_t* codes = detail::bytes(dst[1]);
  index_t whole = 0;  // weights in blocks that need nothing but the scale of the tensor
  if (ops.encode_nvfp4 != nullptr && row.non_finite != NonFinite::propagate && tensor_absmax > 0.0f &&
      (row.importance.empty() || !four_over_six)) {
    whole = cols / kBlock * kBlock;
    ops.encode_nvfp4(ops.kernels, detail::part_of(row.weights, 0, whole), encode_scale(), four_over_six,
                     detail::bytes(dst[0]), codes);
    codes += whole / 2;
  }
  for (index_t col = whole; col < cols; col += kBlock, codes += kBlock / 2) {
    std::span<const float> values = detail::part_of(row.weights, col, kBlock);
    float padded[kBlock] = {};
    if (static_cast<index_t>(values.size()) < kBlock) {
      std::copy(values.begin(), values.end(), padded);
      values = padded;
    }
    const std::uint32_t magnitude = ops.max_magnitude(ops.kernels, values);
    const std::uint8_t scale =
        fit(values, magnitude, detail::part_of(row.importance, col, kBlock), row.non_finite, ops);
    dst[0][col / kBlock] = static_cast<std::byte>(scale);
    if (stores_values(scale))
      ops.encode(ops.kernels, values, code_table(scale), codes);
    else
      std::fill_n(codes, kBlock / 2, std::uint8_t{0});
  }
}

inline void Nvfp4::decode_row(std::span<const std::byte* const> src, index_t col, std::span<float> dst,
                              const detail::TableOps& ops) const {
  const float tensor_scale = detail::load_f32(src[2]);
  const std::byte* scales = src[0] + col / kBlock;
  const std::uint8_t* codes = detail::bytes(src[1]) + col / 2;
  for (std::size_t at = 0; at < dst.size(); at += kBlock, codes += kBlock / 2) {
    const float scale = static_cast<float>(fp8_e4m3::from_bits(std::to_integer<std::uint8_t>(*scales++)));
    const std::size_t count = std::min<std::size_t>(kBlock, dst.size() - at);
    ops.decode(ops.kernels, codes, kLevels, scale, tensor_scale, dst.subspan(at, count));
  }
}

}  // namespace blockpack::inline BLOCKPACK_ABI
