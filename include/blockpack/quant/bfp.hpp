// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Block floating point: a block of weights shares one 8-bit exponent, each weight keeps a signed mantissa of w bits
/// without a hidden bit. BFP12 with block 32 (w = 4) takes 4.25 bits per weight. Bytes: docs/formats/bfp.md.
///
/// Source: "Accurate Block Quantization in LLMs with Outliers", arXiv:2403.20137; the arithmetic is that of
/// d-matrix-ai/dmx-compressor, without the float32 offset it adds before rounding.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/code_spec.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/quant/block_code.hpp"
#include "blockpack/quant/block_rows.hpp"
#include "blockpack/quant/scheme_fields.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// BFP(w + 8) with blocks of `block` along `in`.
///
///     E = floor(log2(max |x|)), at least -126;  step = 2^(E - w + 2)
///     m = clip(round(x / step), ±(2^(w-1) - 1));  decoded = m * step
///
/// The top value can round up to 2^(w-1) and is then clipped: w = 4, max 1.9375 gives m = 8, stored 7, decoded 1.75.
/// Everything is exact integer arithmetic on the bits of x, subnormals included. A block of zeros stores exponent 0 and
/// codes 0. Under `saturate` infinity counts as just above the largest float and is stored as ±(2^(w-1) - 1).
/// With importance the shared exponent is searched (see fit).
struct Bfp {
  int mantissa_bits = 4;                    ///< w, sign included: 2 to 24
  int block = 32;                           ///< weights per exponent: 16, 32, 64 or 128
  bool asymmetric = false;                  ///< also use the code -2^(w-1) where it does not grow the error
  Rounding rounding = Rounding::half_even;  ///< all five
  std::uint64_t seed = 0;                   ///< of `stochastic`: the same seed and place give the same random number

  friend bool operator==(const Bfp&, const Bfp&) = default;

  /// "bfp12-b32"; then "-asym" and "-away", "-trunc", "-down", "-stochastic" where they are not the default. The seed
  /// is not part of it: it does not matter to a decoder.
  std::string scheme() const {
    return "bfp" + std::to_string(mantissa_bits + 8) + "-b" + std::to_string(block) + (asymmetric ? "-asym" : "") +
           detail::rounding_field(rounding);
  }

  /// The format of a scheme split at its dashes, or nothing when the name is not `bfp<N>`. ValueError for a field it
  /// does not know, for one given twice and for a width or a block that is not offered.
  static std::optional<Bfp> from_fields(std::string_view name, std::span<const std::string_view> fields) {
    const std::optional<int> width = detail::number_after("bfp", name);
    if (!width) return std::nullopt;
    Bfp format;
    format.mantissa_bits = *width - 8;
    detail::FieldReader reader(name, fields);
    for (const std::string_view field : fields) {
      if (const auto block = detail::number_after("b", field)) {
        reader.set("block", format.block, *block);
      } else if (field == "asym") {
        reader.set("grid", format.asymmetric, true);
      } else if (const auto rounding = detail::parse_rounding(field)) {
        reader.set("rounding", format.rounding, *rounding);
      } else {
        reader.unknown(field);
      }
    }
    format.validate();
    return format;
  }

  /// ValueError that names the parameter.
  void validate() const {
    if (mantissa_bits < 2 || mantissa_bits > 24)
      throw ValueError("Bfp: mantissa_bits = " + std::to_string(mantissa_bits) +
                       ", 2 to 24 needed (bfp10 to bfp32: the number counts 8 exponent bits)");
    detail::check_block("Bfp", block);
  }

  bool can_store_nan() const noexcept { return false; }
  /// Mantissas of up to 9 bits with sign are bf16 values; those below 2^-126 only after rounding.
  bool exact_in_bf16() const noexcept { return mantissa_bits <= 9; }

  /// Wider mantissas than codes have are multiplied as bf16 or float32.
  bool packs_values() const noexcept { return mantissa_bits > 8; }

  /// `exponents`: one byte a block; `codes`: two's complement, w bits, a little-endian bit stream.
  std::vector<SectionSpec> sections(index_t cols) const {
    validate();
    const index_t blocks = ceil_div(cols, index_t{block});
    return {{"exponents", blocks}, {"codes", checked_mul(blocks, code_bytes(), "Bfp::sections")}};
  }

  /// Bytes of the codes of one block.
  index_t code_bytes() const noexcept { return index_t{block} * mantissa_bits / 8; }

  /// The shared exponent of a block, biased by 127: 0 for a block of zeros, 1 to 254 otherwise. With `importance` (one
  /// weight per value, or 0 for the last ones) the exponent of the largest magnitude or the one below it, which
  /// saturates: whichever has the smaller weighted squared error.
  std::uint8_t fit(std::span<const float> values, std::span<const float> importance = {}) const noexcept {
    const std::uint8_t exponent = exponent_of(values);
    if (importance.empty() || exponent <= 1) return exponent;
    const auto error = [&](std::uint8_t candidate) {
      Bfp nearest = *this;
      if (rounding == Rounding::stochastic) nearest.rounding = Rounding::half_even;
      const float step = step_value(candidate);
      return detail::weighted_error(values, importance, [&](std::size_t i) {
        std::int32_t code;
        nearest.encode(values.subspan(i, 1), candidate, std::span(&code, 1));
        return static_cast<float>(code) * step;
      });
    };
    const auto below = static_cast<std::uint8_t>(exponent - 1);
    return error(below) < error(exponent) ? below : exponent;
  }
  /// That of the largest magnitude.
  static std::uint8_t exponent_of(std::span<const float> values) noexcept {
    const std::uint32_t top = detail::max_magnitude_bits(values);
    if (top == 0) return 0;
    const std::uint32_t field = top >> 23;
    return static_cast<std::uint8_t>(field == 0 ? 1 : (field > 254 ? 254 : field));
  }

  /// Mantissas for a given exponent. `row` and `col` are the place of the first value, for `stochastic`.
  void encode(std::span<const float> values, std::uint8_t exponent, std::span<std::int32_t> codes, index_t row = 0,
              index_t col = 0) const noexcept {
    const std::int32_t limit = (std::int32_t{1} << (mantissa_bits - 1)) - 1;
    const int step = step_exponent(exponent);
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (exponent == 0) {
        codes[i] = 0;
        continue;
      }
      const std::uint32_t random =
          rounding == Rounding::stochastic ? detail::random_bits24(seed, row, col + static_cast<index_t>(i)) : 0;
      const std::int32_t m = detail::round_to_steps(values[i], step, rounding, random);
      codes[i] = m > limit ? limit : (m < -limit ? -limit : m);
      // Exponent 254 has no lower code: it would be -2^128.
      // One lower when |x/step + limit + 1| <= |x/step + limit|, that is x/step <= -(limit + 1/2): in half steps.
      if (asymmetric && exponent < 254 && codes[i] == -limit &&
          detail::round_to_steps(values[i], step - 1, Rounding::toward_zero) <= -(2 * limit + 1))
        codes[i] = -limit - 1;
    }
  }

  /// codes * 2^(exponent - 125 - w), exact; zeros for exponent 0; NaN for 255, which no encoder writes.
  void decode(std::span<const std::int32_t> codes, std::uint8_t exponent, std::span<float> dst) const noexcept {
    const float step = step_value(exponent);
    for (std::size_t i = 0; i < dst.size(); ++i)
      dst[i] = exponent == 255 ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(codes[i]) * step;
  }

  void pack(std::span<const std::int32_t> codes, std::uint8_t* dst) const noexcept {
    pack_codes(codes, mantissa_bits, dst);
  }
  void unpack(const std::uint8_t* src, std::span<std::int32_t> codes) const noexcept {
    unpack_codes(src, mantissa_bits, codes);
    for (std::int32_t& code : codes) code = sign_extend(code, mantissa_bits);
  }

  /// log2 of the value of one mantissa unit.
  int step_exponent(std::uint8_t exponent) const noexcept { return int{exponent} - 125 - mantissa_bits; }
  /// Its value: 0 for exponent 0.
  float step_value(std::uint8_t exponent) const noexcept {
    return exponent == 0 ? 0.0f : exponent == 255 ? 1.0f : exp2i(step_exponent(exponent));
  }

  void encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const;
  void decode_row(std::span<const std::byte* const> src, index_t cols, index_t col, std::span<float> dst) const;
  /// The same as bf16, exact where exact_in_bf16(), half to even otherwise.
  void decode_row_bf16(std::span<const std::byte* const> src, index_t cols, index_t col, std::span<bf16> dst) const;

  /// Mantissas of up to 8 bits, biased by half their range.
  std::optional<CodeSpec> code_spec(index_t /*cols*/, std::span<const std::byte* const> /*src*/) const {
    if (packs_values()) return std::nullopt;
    CodeSpec spec;
    spec.bits = CodeSpec::packed_width(mantissa_bits);
    spec.zero = 1 << (spec.bits - 1);
    spec.group = block;
    spec.multiplier = exp2i(2 - mantissa_bits);  // scale byte E: 2^(E - 127)
    return spec;
  }
  void read_codes(std::span<const std::byte* const> src, index_t cols, const CodeRow& dst) const {
    const int middle = 1 << (CodeSpec::packed_width(mantissa_bits) - 1);
    detail::read_block_codes(*this, src, cols, dst, [middle](std::int32_t code, std::uint8_t exponent) {
      return static_cast<std::uint8_t>(exponent == 0 ? middle : code + middle);
    });
  }

  /// One whole block through fit, encode and pack: what the kernels of every level must equal. `col` is its first
  /// column, `row` gives policy, importance and place.
  void encode_block(std::span<const float> values, const EncodeRow& row, index_t col, std::uint8_t* scale,
                    std::uint8_t* codes) const noexcept;
  /// One whole block back.
  void decode_block(std::uint8_t scale, const std::uint8_t* codes, std::span<float> dst) const noexcept;

#if !defined(BLOCKPACK_HEADERS_ONLY)
  /// A row through the kernels of the active level.
  BLOCKPACK_API void encode_compiled(const EncodeRow& row, std::uint8_t* scales, std::uint8_t* codes) const;
  BLOCKPACK_API void decode_compiled(const std::uint8_t* scales, const std::uint8_t* codes, std::span<float> dst) const;
  BLOCKPACK_API void decode_compiled(const std::uint8_t* scales, const std::uint8_t* codes, std::span<bf16> dst) const;
#endif
};

inline void Bfp::encode_block(std::span<const float> values, const EncodeRow& row, index_t col, std::uint8_t* scale,
                              std::uint8_t* codes) const noexcept {
  std::int32_t m[detail::kMaxBlock];
  const std::span<std::int32_t> block_codes(m, values.size());
  *scale = fit(values, detail::part_of(row.importance, col, index_t{block}));
  encode(values, *scale, block_codes, row.row, col);
  pack(block_codes, codes);
}

inline void Bfp::decode_block(std::uint8_t scale, const std::uint8_t* codes, std::span<float> dst) const noexcept {
  std::int32_t m[detail::kMaxBlock];
  const std::span<std::int32_t> block_codes(m, static_cast<std::size_t>(block));
  unpack(codes, block_codes);
  decode(block_codes, scale, dst);
}

inline void Bfp::encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const {
  detail::encode_block_row(*this, row, dst);
}
inline void Bfp::decode_row(std::span<const std::byte* const> src, index_t cols, index_t col,
                            std::span<float> dst) const {
  detail::decode_block_row(*this, src, cols, col, dst);
}
inline void Bfp::decode_row_bf16(std::span<const std::byte* const> src, index_t cols, index_t col,
                                 std::span<bf16> dst) const {
  detail::decode_block_row(*this, src, cols, col, dst);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
