// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The block formats of OCP Microscaling (MX) v1.0: a block of weights shares a power-of-two scale of one byte (E8M0),
/// each weight is a small float or a fixed-point integer. Bytes: docs/formats/mx.md.
///
/// Source: OCP Microscaling Formats (MX) v1.0; "Microscaling Data Formats for Deep Learning", arXiv:2310.10537; results
/// equal those of microsoft/microxcaling.

#include <array>
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

/// What one weight of an MX block is. int8 has the implied scale 2^-6, int4 2^-2 (not in the OCP text).
enum class MxElement : std::uint8_t { e4m3, e5m2, e3m2, e2m3, e2m1, int8, int4 };

/// How the shared exponent Es follows from amax = max |v|.
enum class MxScaleRule : std::uint8_t {
  ocp_floor,  ///< floor(log2(amax)) - emax of the element: values above the largest element saturate
  ceil_fit,   ///< the smallest with amax <= largest element * 2^Es: nothing saturates
  mse         ///< of the first one, the one above and the one below: the least squared error, weighted by importance
};

/// The numbers behind an element type.
struct MxElementSpec {
  const char* scheme;          ///< "mxfp8-e4m3"
  int bits;                    ///< stored bits of a code
  int exponent_bits;           ///< 0 for integers
  int mantissa_bits;           ///< of floats; for integers the fraction bits (6 and 2)
  int bias;                    ///< of floats
  int max_exponent;            ///< floor(log2(largest))
  std::uint32_t max_code;      ///< magnitude code of the largest finite value
  bool has_infinity;           ///< e5m2: magnitude code max_code + 1 is infinity
  std::uint32_t max_fraction;  ///< largest value = (1 + max_fraction / 2^23) * 2^max_exponent
};

namespace detail {
constexpr std::uint32_t fraction_bits(float v) noexcept { return std::bit_cast<std::uint32_t>(v) & 0x007fffffu; }
inline constexpr MxElementSpec kMxElementSpecs[] = {
    {"mxfp8-e4m3", 8, 4, 3, 7, 8, 0x7e, false, fraction_bits(448.0f)},
    {"mxfp8-e5m2", 8, 5, 2, 15, 15, 0x7b, true, fraction_bits(57344.0f)},
    {"mxfp6-e3m2", 6, 3, 2, 3, 4, 0x1f, false, fraction_bits(28.0f)},
    {"mxfp6-e2m3", 6, 2, 3, 1, 2, 0x1f, false, fraction_bits(7.5f)},
    {"mxfp4", 4, 2, 1, 1, 2, 0x07, false, fraction_bits(6.0f)},
    {"mxint8", 8, 0, 6, 0, 0, 127, false, fraction_bits(127.0f / 64.0f)},
    {"mxint4", 4, 0, 2, 0, 0, 7, false, fraction_bits(7.0f / 4.0f)},
};
}  // namespace detail

constexpr const MxElementSpec& spec_of(MxElement element) noexcept {
  return detail::kMxElementSpecs[static_cast<std::size_t>(element)];
}

/// An MX format with blocks of `block` along `in` and scales stored apart from the codes.
///
///     code of v = element nearest to v * 2^-Es, saturated to the largest one;  decoded = element * 2^Es
///
/// The scale byte is Es + 127 with -127 <= Es <= 127 - emax, so that what is encoded decodes to a finite float; 255 is
/// NaN. A block of zeros stores scale 0 and codes 0. A negative value
/// that rounds to zero keeps its sign in the float elements. Everything is exact arithmetic on bits. Under `saturate`
/// infinity is the largest float; under `propagate` a NaN or infinity makes the scale 255 and the block NaN, codes 0.
struct Mx {
  MxElement element = MxElement::e2m1;
  int block = 32;  ///< 16, 32 (OCP), 64 or 128
  MxScaleRule scale_rule = MxScaleRule::ocp_floor;
  Rounding rounding = Rounding::half_even;  ///< half_even (OCP), half_away or toward_zero

  friend bool operator==(const Mx&, const Mx&) = default;

  const MxElementSpec& spec() const noexcept { return spec_of(element); }

  /// "mxfp4", "mxfp8-e4m3", …; then "-b16" for another block, "-ceil" or "-mse", "-away" or "-trunc".
  std::string scheme() const {
    constexpr const char* kRules[] = {"", "-ceil", "-mse"};
    return spec().scheme + (block == 32 ? std::string() : "-b" + std::to_string(block)) +
           kRules[static_cast<std::size_t>(scale_rule)] + detail::rounding_field(rounding);
  }

  /// The format of a scheme split at its dashes, or nothing when the name is none of mxfp8, mxfp6, mxfp4, mxint8 and
  /// mxint4. ValueError for a field it does not know, one given twice, or an element that is missing (mxfp8, mxfp6).
  static std::optional<Mx> from_fields(std::string_view name, std::span<const std::string_view> fields) {
    Mx format;
    bool known = false;
    std::size_t used = 0;
    for (std::size_t i = 0; i < kElements.size(); ++i) {
      const std::string_view scheme = spec_of(kElements[i]).scheme;
      const std::size_t dash = scheme.find('-');
      if (scheme.substr(0, dash) != name) continue;
      known = true;
      if (dash != std::string_view::npos && (fields.empty() || fields.front() != scheme.substr(dash + 1))) continue;
      format.element = kElements[i];
      used = dash == std::string_view::npos ? 0 : 1;
      break;
    }
    if (!known) return std::nullopt;
    detail::FieldReader reader(name, fields);
    if (used == 0 && (name == "mxfp8" || name == "mxfp6"))
      throw ValueError("scheme " + std::string(name) + ": the element is missing, " +
                       (name == "mxfp8" ? "e4m3 or e5m2" : "e2m3 or e3m2") + " must follow the name");
    for (const std::string_view field : fields.subspan(used)) {
      if (const auto block = detail::number_after("b", field)) {
        reader.set("block", format.block, *block);
      } else if (field == "ceil") {
        reader.set("scale rule", format.scale_rule, MxScaleRule::ceil_fit);
      } else if (field == "mse") {
        reader.set("scale rule", format.scale_rule, MxScaleRule::mse);
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
    detail::check_block("Mx", block);
    if (rounding == Rounding::down || rounding == Rounding::stochastic)
      throw ValueError("Mx: rounding must be half_even, half_away or toward_zero");
  }

  bool can_store_nan() const noexcept { return true; }
  /// True of all values from 2^-126 up; smaller ones may need more bits than a subnormal bf16 has.
  bool exact_in_bf16() const noexcept { return true; }

  /// `scales`: one E8M0 byte a block; `codes`: in element order, 4-bit codes with the even element in the low nibble,
  /// 6-bit codes four to three bytes, both little-endian bit streams.
  std::vector<SectionSpec> sections(index_t cols) const {
    validate();
    const index_t blocks = ceil_div(cols, index_t{block});
    return {{"scales", blocks}, {"codes", checked_mul(blocks, code_bytes(), "Mx::sections")}};
  }

  /// Bytes of the codes of one block.
  index_t code_bytes() const noexcept { return index_t{block} * spec().bits / 8; }

  /// The scale byte of a block. `importance` (empty, or one weight per value) counts under `mse` only.
  std::uint8_t fit(std::span<const float> values, std::span<const float> importance = {},
                   NonFinite non_finite = NonFinite::reject) const noexcept {
    std::uint32_t top = detail::max_magnitude_bits(values);
    if (top >= detail::kInfinityBits) {
      if (non_finite == NonFinite::propagate) return 255;
      top = detail::kInfinityBits - 1;
    }
    if (top == 0) return 0;
    const detail::Normalized amax = detail::normalize(top);
    const int floor_scale = clamp_scale(amax.exponent - spec().max_exponent);
    if (scale_rule == MxScaleRule::ceil_fit)
      return to_byte(clamp_scale(amax.exponent - spec().max_exponent +
                                 ((amax.mantissa & 0x007fffffu) > spec().max_fraction ? 1 : 0)));
    if (scale_rule == MxScaleRule::ocp_floor) return to_byte(floor_scale);
    int best = floor_scale;
    float best_error = squared_error(values, importance, floor_scale, floor_scale);
    for (const int candidate : {floor_scale + 1, floor_scale - 1}) {
      if (clamp_scale(candidate) != candidate) continue;
      const float error = squared_error(values, importance, candidate, floor_scale);
      if (error < best_error) {
        best_error = error;
        best = candidate;
      }
    }
    return to_byte(best);
  }

  /// Codes for a given scale byte: sign and magnitude of floats, two's complement integers; zeros for scale 255.
  void encode(std::span<const float> values, std::uint8_t scale, std::span<std::int32_t> codes) const noexcept {
    const bool empty = scale == 255 || detail::max_magnitude_bits(values) == 0;
    for (std::size_t i = 0; i < values.size(); ++i) codes[i] = empty ? 0 : encode_one(values[i], int{scale} - 127);
  }

  /// element(code) * 2^(scale - 127), exact or, beyond the largest float, infinity; NaN for scale 255.
  void decode(std::span<const std::int32_t> codes, std::uint8_t scale, std::span<float> dst) const noexcept {
    const float factor = static_cast<float>(e8m0::from_bits(scale));
    for (std::size_t i = 0; i < dst.size(); ++i)
      dst[i] = scale == 255 ? std::numeric_limits<float>::quiet_NaN() : element_value(codes[i]) * factor;
  }

  /// The element of a code, without the scale.
  float element_value(std::int32_t code) const noexcept {
    const auto byte = static_cast<std::uint8_t>(code);
    switch (element) {
      case MxElement::e4m3:
        return static_cast<float>(fp8_e4m3::from_bits(byte));
      case MxElement::e5m2:
        return static_cast<float>(fp8_e5m2::from_bits(byte));
      case MxElement::e3m2:
        return static_cast<float>(fp6_e3m2::from_bits(byte));
      case MxElement::e2m3:
        return static_cast<float>(fp6_e2m3::from_bits(byte));
      case MxElement::e2m1:
        return static_cast<float>(fp4_e2m1::from_bits(byte));
      case MxElement::int8:
      case MxElement::int4:
        break;
    }
    return static_cast<float>(sign_extend(code, spec().bits)) * exp2i(-spec().mantissa_bits);
  }

  void pack(std::span<const std::int32_t> codes, std::uint8_t* dst) const noexcept {
    pack_codes(codes, spec().bits, dst);
  }
  void unpack(const std::uint8_t* src, std::span<std::int32_t> codes) const noexcept {
    unpack_codes(src, spec().bits, codes);
  }

  void encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const;
  void decode_row(std::span<const std::byte* const> src, index_t cols, index_t col, std::span<float> dst) const;
  /// The same as bf16, exact from 2^-126 up, half to even below.
  void decode_row_bf16(std::span<const std::byte* const> src, index_t cols, index_t col, std::span<bf16> dst) const;

  /// mxfp4, mxint4 and mxint8: levels in units of the element's last bit. Others span too many of them: small floats.
  std::optional<CodeSpec> code_spec(index_t /*cols*/, std::span<const std::byte* const> /*src*/) const {
    CodeSpec spec;
    spec.group = block;
    if (element == MxElement::e2m1) {
      for (std::size_t c = 0; c < 16; ++c)
        spec.levels[c] = static_cast<std::int8_t>(2.0f * element_value(static_cast<std::int32_t>(c)));
      spec.multiplier = 0.5f;
    } else if (element == MxElement::int8 || element == MxElement::int4) {
      spec.bits = this->spec().bits;
      spec.zero = 1 << (spec.bits - 1);
      spec.multiplier = exp2i(-this->spec().mantissa_bits);
    } else {
      constexpr CodeElement kFloats[] = {CodeElement::e4m3, CodeElement::e5m2, CodeElement::e3m2, CodeElement::e2m3};
      spec.bits = this->spec().bits;
      spec.element = kFloats[static_cast<std::size_t>(element)];
    }
    return spec;
  }
  void read_codes(std::span<const std::byte* const> src, index_t cols, const CodeRow& dst) const {
    detail::read_block_codes(*this, src, cols, dst, [this](std::int32_t code, std::uint8_t scale) {
      const int middle = spec().exponent_bits > 0 ? 0 : 1 << (spec().bits - 1);
      return static_cast<std::uint8_t>((scale == 255 ? 0 : code) ^ middle);
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

  /// In the order of the documentation.
  static constexpr std::array<MxElement, 7> kElements = {MxElement::e4m3, MxElement::e5m2, MxElement::e2m3,
                                                         MxElement::e3m2, MxElement::e2m1, MxElement::int8,
                                                         MxElement::int4};

 private:
  /// Es within E8M0, and so low that the largest element decodes to a finite float.
  int clamp_scale(int exponent) const noexcept {
    const int highest = 127 - spec().max_exponent;
    return exponent < -127 ? -127 : (exponent > highest ? highest : exponent);
  }
  static constexpr std::uint8_t to_byte(int exponent) noexcept { return static_cast<std::uint8_t>(exponent + 127); }

  std::int32_t encode_one(float v, int scale_exponent) const noexcept {
    const MxElementSpec& s = spec();
    const std::uint32_t magnitude = detail::magnitude_bits(v);
    if (magnitude > detail::kInfinityBits) return 0;
    if (s.exponent_bits == 0) {
      const auto limit = static_cast<std::int32_t>(s.max_code);
      const std::int32_t m = detail::round_to_steps(v, scale_exponent - s.mantissa_bits, rounding);
      return m > limit ? limit : (m < -limit ? -limit : m);
    }
    const std::uint32_t sign = (std::bit_cast<std::uint32_t>(v) >> 31) << (s.bits - 1);
    return static_cast<std::int32_t>(sign | encode_magnitude(magnitude, scale_exponent));
  }

  /// The magnitude code of |v| * 2^-Es.
  std::uint32_t encode_magnitude(std::uint32_t magnitude, int scale_exponent) const noexcept {
    const MxElementSpec& s = spec();
    if (magnitude == 0) return 0;
    if (magnitude == detail::kInfinityBits) return s.max_code;
    const detail::Normalized v = detail::normalize(magnitude);
    const int exponent = v.exponent - scale_exponent;
    if (exponent > s.max_exponent) return s.max_code;
    // The unit of the last place is 2^(max(exponent, 1 - bias) - mantissa_bits); `shift` fraction bits lie below it.
    const int below = exponent < 1 - s.bias ? 1 - s.bias - exponent : 0;
    const int shift = 23 - s.mantissa_bits + (below < 8 ? below : 8);  // 26 and more fraction bits round alike
    const std::uint32_t half = 1u << (shift - 1);
    const std::uint32_t fraction = v.mantissa & ((half << 1) - 1);
    std::uint32_t code = v.mantissa >> shift;
    if (below == 0) code += static_cast<std::uint32_t>(exponent + s.bias - 1) << s.mantissa_bits;
    if (rounding == Rounding::half_even) {
      if (fraction > half || (fraction == half && (code & 1u) != 0)) ++code;
    } else if (rounding == Rounding::half_away) {
      if (fraction >= half) ++code;
    }
    return code > s.max_code ? s.max_code : code;
  }

  /// Sum of importance * error², errors in units of 2^unit, summed in element order.
  float squared_error(std::span<const float> values, std::span<const float> importance, int scale_exponent,
                      int unit) const noexcept {
    float sum = 0.0f;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float decoded = scale_exp2(element_value(encode_one(values[i], scale_exponent)), scale_exponent - unit);
      const float error = scale_exp2(values[i], -unit) - decoded;
      const float square = strict_mul(error, error);
      sum += importance.empty() ? square : strict_mul(square, importance[i]);
    }
    return sum;
  }
};

inline void Mx::encode_block(std::span<const float> values, const EncodeRow& row, index_t col, std::uint8_t* scale,
                             std::uint8_t* codes) const noexcept {
  std::int32_t elements[detail::kMaxBlock];
  float weights[detail::kMaxBlock];
  std::span<const float> importance;
  if (!row.importance.empty() && scale_rule == MxScaleRule::mse) {
    const std::span<const float> rest = row.importance.subspan(static_cast<std::size_t>(col));
    for (std::size_t i = 0; i < values.size(); ++i) weights[i] = i < rest.size() ? rest[i] : 0.0f;
    importance = std::span<const float>(weights, values.size());
  }
  const std::span<std::int32_t> block_codes(elements, values.size());
  *scale = fit(values, importance, row.non_finite);
  encode(values, *scale, block_codes);
  pack(block_codes, codes);
}

inline void Mx::decode_block(std::uint8_t scale, const std::uint8_t* codes, std::span<float> dst) const noexcept {
  std::int32_t elements[detail::kMaxBlock];
  const std::span<std::int32_t> block_codes(elements, static_cast<std::size_t>(block));
  unpack(codes, block_codes);
  decode(block_codes, scale, dst);
}

inline void Mx::encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const {
  detail::encode_block_row(*this, row, dst);
}
inline void Mx::decode_row(std::span<const std::byte* const> src, index_t cols, index_t col,
                           std::span<float> dst) const {
  detail::decode_block_row(*this, src, cols, col, dst);
}
inline void Mx::decode_row_bf16(std::span<const std::byte* const> src, index_t cols, index_t col,
                                std::span<bf16> dst) const {
  detail::decode_block_row(*this, src, cols, col, dst);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
