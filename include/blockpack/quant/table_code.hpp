// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What formats with 4-bit codes over a table of levels share (NF4, NVFP4): the nearest level by thresholds, the levels
/// by look-up, and the three loops a kernel may take over.

#include <cstdint>
#include <span>

#include "blockpack/core/config.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/quant/block_code.hpp"

namespace blockpack::inline BLOCKPACK_ABI::detail {

/// Codes of x = w * multiplier: the number of thresholds below x (strictly); with `signed_magnitude` below |x|, the
/// sign of x in bit 3. x is infinite where the product overflows, and then lies beyond the last level.
struct TableCode {
  float thresholds[15];   ///< ascending; unused ones are infinite
  bool signed_magnitude;  ///< 7 thresholds on |x|; otherwise 15 on x
  float multiplier;
};

/// Codes two to a byte, the first one in the low nibble; the last nibble of an odd number is the code of 0.
inline void encode_table_reference(std::span<const float> values, const TableCode& t, std::uint8_t* codes) noexcept {
  const auto code_of = [&](float w) -> std::uint32_t {
    const float x = w * t.multiplier;
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
    const float at = t.signed_magnitude ? std::bit_cast<float>(bits & 0x7fffffffu) : x;
    std::uint32_t code = 0;
    for (int i = 0; i < (t.signed_magnitude ? 7 : 15); ++i) code += at > t.thresholds[i] ? 1 : 0;
    return t.signed_magnitude ? code | (bits >> 31 << 3) : code;
  };
  for (std::size_t i = 0; i < values.size(); i += 2) {
    const float next = i + 1 < values.size() ? values[i + 1] : 0.0f;
    codes[i / 2] = static_cast<std::uint8_t>(code_of(values[i]) | (code_of(next) << 4));
  }
}

/// levels[code] * first * second, in this order; the first count of two codes a byte.
inline void decode_table_reference(const std::uint8_t* codes, const float* levels, float first, float second,
                                   std::span<float> dst) noexcept {
  for (std::size_t i = 0; i < dst.size(); ++i) dst[i] = levels[(codes[i / 2] >> (i % 2 * 4)) & 15] * first * second;
}

/// The loops over the weights of a block; the walk over the blocks of a row is the same on every level.
struct TableOps {
  const void* kernels;  ///< whatever the functions need
  /// max |v|, infinite or NaN bits where there are such values.
  std::uint32_t (*max_magnitude)(const void* kernels, std::span<const float> values);
  /// Of an even number of values.
  void (*encode)(const void* kernels, std::span<const float> values, const TableCode& t, std::uint8_t* codes);
  void (*decode)(const void* kernels, const std::uint8_t* codes, const float* levels, float first, float second,
                 std::span<float> dst);
  /// Whole blocks of NVFP4 that hold no NaN, infinity as the largest float, `unit` being Nvfp4::encode_scale(). Null:
  /// block by block through the functions above.
  void (*encode_nvfp4)(const void* kernels, std::span<const float> values, float unit, bool four_over_six,
                       std::uint8_t* scales, std::uint8_t* codes);
};

inline constexpr TableOps kTableReference = {
    nullptr, [](const void*, std::span<const float> values) { return max_magnitude_bits(values); },
    [](const void*, std::span<const float> values, const TableCode& t, std::uint8_t* codes) {
      encode_table_reference(values, t, codes);
    },
    [](const void*, const std::uint8_t* codes, const float* levels, float first, float second, std::span<float> dst) {
      decode_table_reference(codes, levels, first, second, dst);
    },
    nullptr};

#if defined(BLOCKPACK_HEADERS_ONLY)
inline TableOps table_ops() noexcept { return kTableReference; }
#else
/// The compiled kernels of the active level.
BLOCKPACK_API TableOps table_ops();
#endif

inline float load_f32(const std::byte* p) noexcept {
  std::uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) bits |= std::to_integer<std::uint32_t>(p[i]) << (8 * i);
  return std::bit_cast<float>(bits);
}
inline void store_f32(float v, std::byte* p) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(v);
  for (int i = 0; i < 4; ++i) p[i] = static_cast<std::byte>(bits >> (8 * i));
}
inline float load_fp16(const std::byte* p) noexcept {
  return static_cast<float>(fp16::from_bits(
      static_cast<std::uint16_t>(std::to_integer<unsigned>(p[0]) | (std::to_integer<unsigned>(p[1]) << 8))));
}
inline void store_fp16(float v, std::byte* p) noexcept {
  const std::uint16_t bits = fp16(v).bits;
  p[0] = static_cast<std::byte>(bits);
  p[1] = static_cast<std::byte>(bits >> 8);
}

}  // namespace blockpack::inline BLOCKPACK_ABI::detail
