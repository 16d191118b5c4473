// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Arithmetic that decides a code, the same on every compiler and under every flag the user has.
///
/// A compiler may contract `a * b + c` into one fused operation with one rounding (g++ does so by default on Arm and
/// under
/// `-mfma`), which changes codes near a rounding boundary. Products that feed an addition go through `strict_mul`,
/// which the compiler cannot see through. Rounding here never reads the floating-point environment.

#include <bit>
#include <cstdint>

#include "blockpack/core/config.hpp"

#if defined(__FAST_MATH__)
#error "blockpack encodes bit for bit: compile without -ffast-math"
#endif

namespace blockpack::inline BLOCKPACK_ABI {

/// How a real number becomes an integer multiple of a step.
enum class Rounding : std::uint8_t {
  half_even,    ///< nearest, ties to the even multiple (the default everywhere)
  half_away,    ///< nearest, ties away from zero
  toward_zero,  ///< truncates the magnitude
  down,         ///< floor, toward minus infinity
  stochastic    ///< floor(v + u), u uniform in [0, 1) from the caller's counter-based generator
};

/// a * b, rounded to float, never fused with what follows. An empty asm statement hides the product; a pragma would not
/// do on clang, whose -ffp-contract=fast fuses what the pragma forbids.
inline float strict_mul(float a, float b) noexcept {
#if defined(__GNUC__)
  float product = a * b;
#if defined(__x86_64__) || defined(__i386__)
  asm("" : "+x"(product));
#elif defined(__aarch64__)
  asm("" : "+w"(product));
#else
  asm("" : "+m"(product));
#endif
  return product;
#else
  volatile float product = a * b;
  return product;
#endif
}

/// The same in double.
inline double strict_mul(double a, double b) noexcept {
#if defined(__GNUC__)
  double product = a * b;
#if defined(__x86_64__) || defined(__i386__)
  asm("" : "+x"(product));
#elif defined(__aarch64__)
  asm("" : "+w"(product));
#else
  asm("" : "+m"(product));
#endif
  return product;
#else
  volatile double product = a * b;
  return product;
#endif
}

/// floor(log2(|v|)) taken from the bits, exact for subnormals too. v must be finite and not zero.
constexpr int floor_log2(float v) noexcept {
  const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(v) & 0x7fffffffu;
  const int exponent = static_cast<int>(magnitude >> 23);
  return exponent != 0 ? exponent - 127 : 31 - std::countl_zero(magnitude) - 149;
}

/// 2^e as a float, exact for -149 <= e <= 127.
constexpr float exp2i(int e) noexcept {
  if (e < -126) return std::bit_cast<float>(1u << (e + 149));
  return std::bit_cast<float>(static_cast<std::uint32_t>(e + 127) << 23);
}

/// v * 2^e: exact where the result is representable, rounded to half even once where it is subnormal. |e| <= 276.
constexpr float scale_exp2(float v, int e) noexcept {
  // Factors are powers of two that are normal floats. What lies beyond two of them is taken off first: exact wherever
  // the result is neither zero nor infinite anyway.
  if (e > 254) return scale_exp2(v * exp2i(e - 254), 254);
  if (e < -252) return scale_exp2(v * exp2i(e + 252), -252);
  if (e > 127) return (v * exp2i(127)) * exp2i(e - 127);
  if (e < -126) return (v * exp2i(e + 126)) * exp2i(-126);
  return v * exp2i(e);
}

/// The integer nearest to v, ties to even, as a float; |v| of 2^23 and more comes back unchanged. Exact, no
/// environment.
constexpr float round_half_even(float v) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(v);
  const std::uint32_t sign = bits & 0x80000000u;
  const int exponent = static_cast<int>((bits >> 23) & 0xff) - 127;
  if (exponent >= 23) return v;
  if (exponent < -1) return std::bit_cast<float>(sign);  // |v| < 0.5
  const std::uint32_t mantissa = (bits & 0x007fffffu) | 0x00800000u;
  const int shift = 23 - exponent;  // 1..24 fraction bits
  const std::uint32_t half = 1u << (shift - 1);
  const std::uint32_t fraction = mantissa & ((half << 1) - 1);
  std::uint32_t integer = shift == 24 ? 0 : mantissa >> shift;
  if (fraction > half || (fraction == half && (integer & 1))) ++integer;
  const float magnitude = static_cast<float>(integer);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
}

/// sign(v) * floor(|v| + 0.5) without the double rounding of that expression.
constexpr float round_half_away(float v) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(v);
  const std::uint32_t sign = bits & 0x80000000u;
  const int exponent = static_cast<int>((bits >> 23) & 0xff) - 127;
  if (exponent >= 23) return v;
  if (exponent < -1) return std::bit_cast<float>(sign);
  const std::uint32_t mantissa = (bits & 0x007fffffu) | 0x00800000u;
  const int shift = 23 - exponent;
  const std::uint32_t half = 1u << (shift - 1);
  const float magnitude = static_cast<float>((mantissa + half) >> shift);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
}

/// The integer part, toward zero, as a float.
constexpr float round_toward_zero(float v) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(v);
  const int exponent = static_cast<int>((bits >> 23) & 0xff) - 127;
  if (exponent >= 23) return v;
  if (exponent < 0) return std::bit_cast<float>(bits & 0x80000000u);
  return std::bit_cast<float>(bits & ~((1u << (23 - exponent)) - 1));
}

/// The largest integer not above v, as a float.
constexpr float round_down(float v) noexcept {
  const float integer = round_toward_zero(v);
  return integer > v ? integer - 1.0f : integer;
}

/// v to an integer by any deterministic mode; `stochastic` is the caller's business (it needs the random number).
constexpr float round_to_integer(float v, Rounding mode) noexcept {
  switch (mode) {
    case Rounding::half_away:
      return round_half_away(v);
    case Rounding::toward_zero:
      return round_toward_zero(v);
    case Rounding::down:
    case Rounding::stochastic:
      return round_down(v);
    case Rounding::half_even:
      break;
  }
  return round_half_even(v);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
