// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The arithmetic that block formats share, on bits, so that it is exact and reads no floating-point environment:
/// magnitudes and their maximum, a float as an integer number of steps 2^s under any rounding, the counter-based random
/// numbers of stochastic rounding, and codes of 2 to 24 bits as a little-endian bit stream.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "blockpack/core/config.hpp"
#include "blockpack/core/strict.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

namespace detail {

inline constexpr std::uint32_t kInfinityBits = 0x7f800000u;

constexpr std::uint32_t magnitude_bits(float v) noexcept { return std::bit_cast<std::uint32_t>(v) & 0x7fffffffu; }

/// max |v_i| as bits, which order like the values; above kInfinityBits when a NaN is there, 0 for an empty block.
constexpr std::uint32_t max_magnitude_bits(std::span<const float> block) noexcept {
  std::uint32_t top = 0;
  for (const float v : block) {
    const std::uint32_t bits = magnitude_bits(v);
    top = bits > top ? bits : top;
  }
  return top;
}

/// A finite magnitude as `mantissa` * 2^(exponent - 23) with bit 23 of the mantissa set, subnormals included; not zero.
struct Normalized {
  std::uint32_t mantissa;
  int exponent;
};
constexpr Normalized normalize(std::uint32_t magnitude) noexcept {
  const std::uint32_t field = magnitude >> 23;
  if (field != 0) return {(magnitude & 0x007fffffu) | 0x00800000u, static_cast<int>(field) - 127};
  const int shift = std::countl_zero(magnitude) - 8;
  return {magnitude << shift, -126 - shift};
}

/// The largest step count `round_to_steps` returns; every caller clips far below.
inline constexpr std::int32_t kManySteps = std::int32_t{1} << 30;

/// v / 2^step_exponent rounded to an integer, exactly. `random` is a 24-bit number k: `stochastic` gives
/// floor(v / step + k / 2^24); other modes do not read it. Results beyond 2^30, infinity too, come back as ±2^30.
/// NaN gives 0.
constexpr std::int32_t round_to_steps(float v, int step_exponent, Rounding mode, std::uint32_t random = 0) noexcept {
  const std::uint32_t magnitude = magnitude_bits(v);
  const bool negative = (std::bit_cast<std::uint32_t>(v) >> 31) != 0;
  if (magnitude == 0 || magnitude > kInfinityBits) return 0;
  const int field = static_cast<int>(magnitude >> 23);
  const std::uint32_t mantissa = (magnitude & 0x007fffffu) | (field != 0 ? 0x00800000u : 0u);
  const int exponent = field != 0 ? field - 127 : -126;  // |v| = mantissa * 2^(exponent - 23)
  const int shift = step_exponent + 23 - exponent;       // |v| / step = mantissa / 2^shift
  std::uint32_t steps;
  if (shift <= 0) {
    steps = shift < -6 ? static_cast<std::uint32_t>(kManySteps) : mantissa << -shift;
  } else {
    const int bits = shift < 32 ? shift : 31;  // a mantissa has 24 bits: 31 and more fraction bits round alike
    const std::uint32_t half = 1u << (bits - 1);
    const std::uint32_t fraction = mantissa & ((half << 1) - 1);
    steps = mantissa >> bits;
    switch (mode) {
      case Rounding::half_even:
        if (fraction > half || (fraction == half && (steps & 1u) != 0)) ++steps;
        break;
      case Rounding::half_away:
        if (fraction >= half) ++steps;
        break;
      case Rounding::toward_zero:
        break;
      case Rounding::down:
        random = 0;
        [[fallthrough]];
      case Rounding::stochastic: {
        // With f = fraction / 2^shift and u = random / 2^24: up when f + u >= 1, for negative v when u < f.
        const std::uint64_t scaled = static_cast<std::uint64_t>(fraction) << 24;
        const std::uint64_t floor_f = shift < 64 ? scaled >> shift : 0;
        const bool exact = shift < 64 ? (floor_f << shift) == scaled : fraction == 0;
        if (negative ? random < floor_f + (exact ? 0 : 1) : floor_f >= (1u << 24) - random) ++steps;
        break;
      }
    }
  }
  const std::uint32_t limit = static_cast<std::uint32_t>(kManySteps);
  const auto result = static_cast<std::int32_t>(steps < limit ? steps : limit);
  return negative ? -result : result;
}

/// 24 random bits that depend on the seed and the place of the weight alone, so that no order of work changes them.
constexpr std::uint32_t random_bits24(std::uint64_t seed, index_t row, index_t col) noexcept {
  const auto mix = [](std::uint64_t z) {  // the finalizer of splitmix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  };
  const std::uint64_t key = mix(seed + 0x9e3779b97f4a7c15u * (static_cast<std::uint64_t>(row) + 1));
  return static_cast<std::uint32_t>(mix(key + 0x9e3779b97f4a7c15u * (static_cast<std::uint64_t>(col) + 1)) >> 40);
}

/// Bytes of `count` codes of `bits` bits.
constexpr index_t packed_code_bytes(index_t count, int bits) noexcept { return ceil_div(count * bits, 8); }

}  // namespace detail

/// Writes the low `bits` bits (1 to 24) of every code as a little-endian bit stream: code 0 in the lowest bits of byte
/// 0. The last byte is filled up with zeros. dst has ceil(codes.size() * bits / 8) bytes.
constexpr void pack_codes(std::span<const std::int32_t> codes, int bits, std::uint8_t* dst) noexcept {
  const std::uint32_t mask = (1u << bits) - 1;
  std::uint64_t pending = 0;
  int held = 0;
  for (const std::int32_t code : codes) {
    pending |= static_cast<std::uint64_t>(static_cast<std::uint32_t>(code) & mask) << held;
    for (held += bits; held >= 8; held -= 8, pending >>= 8) *dst++ = static_cast<std::uint8_t>(pending);
  }
  if (held > 0) *dst = static_cast<std::uint8_t>(pending);
}

/// The inverse: codes.size() unsigned codes. Reads ceil(codes.size() * bits / 8) bytes.
constexpr void unpack_codes(const std::uint8_t* src, int bits, std::span<std::int32_t> codes) noexcept {
  const std::uint32_t mask = (1u << bits) - 1;
  std::uint64_t pending = 0;
  int held = 0;
  for (std::int32_t& code : codes) {
    for (; held < bits; held += 8) pending |= static_cast<std::uint64_t>(*src++) << held;
    code = static_cast<std::int32_t>(static_cast<std::uint32_t>(pending) & mask);
    pending >>= bits;
    held -= bits;
  }
}

/// A two's complement code of `bits` bits as a number.
constexpr std::int32_t sign_extend(std::int32_t code, int bits) noexcept {
  const std::uint32_t sign = 1u << (bits - 1);
  const std::uint32_t low = static_cast<std::uint32_t>(code) & ((sign << 1) - 1);
  return static_cast<std::int32_t>((low ^ sign) - sign);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
