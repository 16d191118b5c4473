// SPDX-License-Identifier: Apache-2.0
#pragma once

/// From the formats of the public headers to the plain numbers the kernels take.

#include <array>
#include <limits>

#include "blockpack/quant.hpp"
#include "kernels/table.hpp"

namespace blockpack::kernels {

/// Whether the kernels encode this format; the reference does the rest.
inline bool decodes(const Bfp& f) noexcept {
  return f.mantissa_bits == 4 || f.mantissa_bits == 6 || f.mantissa_bits == 8;
}
inline bool encodes(const Bfp& f) noexcept { return decodes(f) && f.rounding == Rounding::half_even; }
inline bool encodes(const Mx& f) noexcept {
  return f.rounding == Rounding::half_even && f.scale_rule != MxScaleRule::mse;
}

/// Values of the 256 scale bytes times 2^-fraction_bits; `zero` is that of byte 0.
class ScaleFactors {
 public:
  ScaleFactors(int fraction_bits, bool zero_is_zero) noexcept {
    for (int byte = 0; byte < 255; ++byte) values_[static_cast<std::size_t>(byte)] = exp2i(byte - 127 - fraction_bits);
    if (zero_is_zero) values_[0] = 0.0f;
    values_[255] = std::numeric_limits<float>::quiet_NaN();
  }
  const float* data() const noexcept { return values_.data(); }

 private:
  std::array<float, 256> values_{};
};

inline const float* scale_factors(const Bfp& f) {
  static const ScaleFactors tables[] = {{2, true}, {4, true}, {6, true}};  // widths 4, 6 and 8
  return tables[(f.mantissa_bits - 4) / 2].data();
}
inline const float* scale_factors(const Mx& f) {
  static const ScaleFactors small(0, false), int8(6, false), int4(2, false);
  return f.element == MxElement::int8 ? int8.data() : (f.element == MxElement::int4 ? int4.data() : small.data());
}

inline BlockCode plain_numbers(const Bfp& f) {
  BlockCode c{};
  c.bits = static_cast<std::uint32_t>(f.mantissa_bits);
  c.mantissa_bits = c.bits - 2;
  c.max_code = (1u << (c.bits - 1)) - 1;
  c.max_fraction = 0x007fffffu;
  c.asymmetric = f.asymmetric;
  return c;
}
inline BlockCode plain_numbers(const Mx& f) {
  const MxElementSpec& s = f.spec();
  BlockCode c{};
  c.bits = static_cast<std::uint32_t>(s.bits);
  c.mantissa_bits = static_cast<std::uint32_t>(s.mantissa_bits);
  c.bias = static_cast<std::uint32_t>(s.bias);
  c.max_code = s.max_code;
  c.infinity_code = s.has_infinity ? s.max_code + 1 : 0x100u;
  c.max_exponent = static_cast<std::uint32_t>(s.max_exponent);
  c.max_fraction = f.scale_rule == MxScaleRule::ceil_fit ? s.max_fraction : 0x007fffffu;
  return c;
}

/// A BlockCode and what its callbacks refer to. Not copied: the code points at the object.
template <class Format>
struct BlockCoder {
  BlockCode code;
  const Format& format;
  NonFinite non_finite;

  explicit BlockCoder(const Format& f, NonFinite policy = NonFinite::reject)
      : code(plain_numbers(f)), format(f), non_finite(policy) {
    code.block = static_cast<std::uint32_t>(f.block);
    code.factors = scale_factors(f);
    code.self = this;
    code.encode_block = [](const void* self, const float* w, std::uint8_t* scale, std::uint8_t* codes) noexcept {
      const auto& me = *static_cast<const BlockCoder*>(self);
      const EncodeRow row{{}, {}, 0, me.non_finite};
      me.format.encode_block({w, static_cast<std::size_t>(me.format.block)}, row, 0, scale, codes);
    };
    code.decode_block = [](const void* self, std::uint8_t scale, const std::uint8_t* codes, float* dst) noexcept {
      const auto& me = *static_cast<const BlockCoder*>(self);
      me.format.decode_block(scale, codes, {dst, static_cast<std::size_t>(me.format.block)});
    };
  }
  BlockCoder(const BlockCoder&) = delete;
  BlockCoder& operator=(const BlockCoder&) = delete;
};

inline detail::TableOps table_ops(const QuantKernels& kernels) noexcept {
  return {&kernels,
          [](const void* k, std::span<const float> values) {
            return static_cast<const QuantKernels*>(k)->table_absmax.fn(values.data(), values.size());
          },
          [](const void* k, std::span<const float> values, const detail::TableCode& t, std::uint8_t* codes) {
            const TableThresholds thresholds{t.thresholds, t.multiplier, t.signed_magnitude};
            static_cast<const QuantKernels*>(k)->table_encode.fn(values.data(), values.size(), thresholds, codes);
          },
          [](const void* k, const std::uint8_t* codes, const float* levels, float first, float second,
             std::span<float> dst) {
            static_cast<const QuantKernels*>(k)->table_decode.fn(codes, dst.size(), levels, first, second, dst.data());
          },
          [](const void* k, std::span<const float> values, float unit, bool four_over_six, std::uint8_t* scales,
             std::uint8_t* codes) {
            static_cast<const QuantKernels*>(k)->nvfp4_encode.fn(values.data(), values.size() / Nvfp4::kBlock, unit,
                                                                 four_over_six, scales, codes);
          }};
}

/// The grid of row `lane` of a block of rows. Integers under a scale of 0 are the only level 0 under 1.
inline void set_row_grid(RowGrids& grids, std::size_t lane, const Grid& grid) noexcept {
  const bool integers = grid.table() == nullptr, zero = grid.first_scale() == 0.0f;
  grids.scale[lane] = integers && zero ? 1.0f : grid.first_scale();
  grids.a[lane] = integers ? (zero ? 0.0f : grid.lowest_unit()) : grid.multiplier();
  grids.b[lane] = integers ? (zero ? 0.0f : grid.highest_unit()) : grid.second_scale();
  grids.offset[lane] = grid.offset();
}

inline GroupCode plain_numbers(const GroupInt& f, const GroupParameters& p) noexcept {
  return {p.scale, static_cast<float>(p.zero_point), f.grid == GroupGrid::max_abs ? 1.0f : 0.0f,
          static_cast<float>(f.max_code()), static_cast<std::uint32_t>(f.bits)};
}

inline detail::GroupOps group_ops(const QuantKernels& kernels) noexcept {
  return {
      &kernels,
      [](const void* k, std::span<const float> values, float& low, float& high) {
        static_cast<const QuantKernels*>(k)->group_range.fn(values.data(), values.size(), &low, &high);
      },
      [](const void* k, const GroupInt& f, std::span<const float> values, const GroupParameters& p,
         std::uint8_t* codes) {
        GroupCode g = plain_numbers(f, p);
        if (g.scale == 0.0f) g.scale = std::numeric_limits<float>::infinity();
        static_cast<const QuantKernels*>(k)->group_encode.fn(values.data(), values.size(), g, codes);
      },
      [](const void* k, const GroupInt& f, const std::uint8_t* codes, const GroupParameters& p, std::span<float> dst) {
        static_cast<const QuantKernels*>(k)->group_decode.fn(codes, dst.size(), plain_numbers(f, p), dst.data());
      }};
}

}  // namespace blockpack::kernels
