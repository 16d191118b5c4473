// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Scalar types below 32 bits: bf16, fp16, and the small floats of OCP Microscaling (fp8 e4m3 and e5m2, fp6 e2m3 and
/// e3m2, fp4 e2m1, the scale type e8m0). Each is its code; conversions work on bits, are exact toward float, round half
/// to even from float, and never read the floating-point environment. Tested over every code, and bf16 and fp16 over
/// every float that lies at, just below and just above a rounding boundary.
///
/// | type     | S.E.M | bias | largest   | smallest normal, subnormal | Inf, NaN                        |
/// | bf16     | 1.8.7 | 127  | 3.39e38   | 2^-126, 2^-133             | IEEE                            |
/// | fp16     | 1.5.10| 15   | 65504     | 2^-14, 2^-24               | IEEE                            |
/// | fp8_e4m3 | 1.4.3 | 7    | 448       | 2^-6, 2^-9                 | no Inf, NaN = S.1111.111        |
/// | fp8_e5m2 | 1.5.2 | 15   | 57344     | 2^-14, 2^-16               | IEEE                            |
/// | fp6_e2m3 | 1.2.3 | 1    | 7.5       | 1, 0.125                   | none                            |
/// | fp6_e3m2 | 1.3.2 | 3    | 28        | 0.25, 0.0625               | none                            |
/// | fp4_e2m1 | 1.2.1 | 1    | 6         | 1, 0.5                     | none                            |
/// | e8m0     | 0.8.0 | 127  | 2^127     | 2^-127                     | code 255 = NaN; no zero, no sign|
///
/// Source: IEEE 754-2019; OCP Microscaling Formats (MX) v1.0, tables 1 to 4.

#include <bit>
#include <cstdint>
#include <limits>

#include "blockpack/core/config.hpp"
#include "blockpack/core/strict.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// The upper half of a float.
struct bf16 {
  std::uint16_t bits = 0;

  bf16() = default;
  /// Half to even; overflow gives infinity, a NaN stays a (quiet) NaN with its upper payload, subnormals are kept.
  constexpr explicit bf16(float v) noexcept {
    const std::uint32_t u = std::bit_cast<std::uint32_t>(v);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<std::uint16_t>((u >> 16) | 0x0040u);
    } else {
      bits = static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
  }
  static constexpr bf16 from_bits(std::uint16_t b) noexcept {
    bf16 v;
    v.bits = b;
    return v;
  }
  constexpr explicit operator float() const noexcept {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
};
static_assert(sizeof(bf16) == 2);

/// IEEE binary16.
struct fp16 {
  std::uint16_t bits = 0;

  fp16() = default;
  /// Half to even; overflow gives infinity, a NaN stays a (quiet) NaN, subnormals are kept.
  constexpr explicit fp16(float v) noexcept {
    const std::uint32_t u = std::bit_cast<std::uint32_t>(v);
    const std::uint32_t sign = (u >> 16) & 0x8000u;
    const std::uint32_t magnitude = u & 0x7fffffffu;
    std::uint32_t code;
    if (magnitude > 0x7f800000u) {
      code = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    } else if (magnitude >= 0x47800000u) {  // 2^16 and infinity
      code = 0x7c00u;
    } else if (magnitude >= 0x38800000u) {  // normal: rebias, round away 13 bits; a carry may reach infinity
      const std::uint32_t rebased = magnitude - ((127u - 15u) << 23);
      code = (rebased + 0x0fffu + ((rebased >> 13) & 1u)) >> 13;
    } else if (magnitude >= 0x33000000u) {                        // 2^-25 and above: subnormal or the smallest normal
      const int shift = 126 - static_cast<int>(magnitude >> 23);  // 14..24 fraction bits below 2^-24
      const std::uint32_t mantissa = (magnitude & 0x007fffffu) | 0x00800000u;
      const std::uint32_t half = 1u << (shift - 1);
      const std::uint32_t fraction = mantissa & ((half << 1) - 1);
      code = mantissa >> shift;
      if (fraction > half || (fraction == half && (code & 1u))) ++code;
    } else {
      code = 0;
    }
    bits = static_cast<std::uint16_t>(sign | code);
  }
  static constexpr fp16 from_bits(std::uint16_t b) noexcept {
    fp16 v;
    v.bits = b;
    return v;
  }
  constexpr explicit operator float() const noexcept {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    const std::uint32_t exponent = (bits >> 10) & 0x1fu;
    const std::uint32_t mantissa = bits & 0x3ffu;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    const float magnitude = static_cast<float>(mantissa) * exp2i(-24);
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
  }
};
static_assert(sizeof(fp16) == 2);

/// What the top exponent of a small float means.
enum class Specials : std::uint8_t { none, nan_only, ieee };

/// A float of 1 + E + M <= 8 bits in the low bits of a byte.
template <int E, int M, int Bias, Specials S>
struct SmallFloat {
  static constexpr int kExponentBits = E;
  static constexpr int kMantissaBits = M;
  static constexpr int kBits = 1 + E + M;
  static constexpr int kBias = Bias;
  static constexpr Specials kSpecials = S;
  /// Exponent of the largest finite value.
  static constexpr int kMaxExponent = (1 << E) - 1 - Bias - (S == Specials::ieee ? 1 : 0);
  /// Code of the largest finite magnitude.
  static constexpr std::uint8_t kMaxCode = static_cast<std::uint8_t>(
      ((1 << (E + M)) - 1) - (S == Specials::nan_only ? 1 : 0) - (S == Specials::ieee ? 1 << M : 0));
  static constexpr std::uint8_t kSignBit = static_cast<std::uint8_t>(1 << (E + M));

  std::uint8_t bits = 0;

  SmallFloat() = default;
  /// Half to even. Finite values beyond the largest saturate to it; infinity stays infinity (e5m2), becomes NaN (e4m3)
  /// or the largest value (fp6, fp4); NaN stays NaN where the type has one and becomes 0 elsewhere.
  constexpr explicit SmallFloat(float v) noexcept : SmallFloat(v, Rounding::half_even) {}

  /// The same with another deterministic rounding (`down` and `stochastic` are taken as `toward_zero`).
  constexpr SmallFloat(float v, Rounding mode) noexcept {
    const std::uint32_t u = std::bit_cast<std::uint32_t>(v);
    const std::uint8_t sign = (u >> 31) != 0 ? kSignBit : std::uint8_t{0};
    const std::uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
      bits = S == Specials::none ? std::uint8_t{0} : static_cast<std::uint8_t>(sign | (kSignBit - 1));
    } else if (magnitude == 0x7f800000u) {
      bits = static_cast<std::uint8_t>(sign | (S == Specials::none       ? kMaxCode
                                               : S == Specials::nan_only ? kSignBit - 1
                                                                         : kMaxCode + 1));
    } else {
      bits = static_cast<std::uint8_t>(sign | encode_magnitude(magnitude, mode));
    }
  }
  static constexpr SmallFloat from_bits(std::uint8_t b) noexcept {
    SmallFloat v;
    v.bits = b;
    return v;
  }
  static constexpr SmallFloat max() noexcept { return from_bits(kMaxCode); }

  constexpr explicit operator float() const noexcept {
    const std::uint32_t code = bits & (kSignBit - 1u);
    const std::uint32_t sign = (bits & kSignBit) != 0 ? 0x80000000u : 0u;
    const std::uint32_t exponent = code >> M;
    const std::uint32_t mantissa = code & ((1u << M) - 1);
    std::uint32_t magnitude;
    if (code > kMaxCode) {
      const bool infinite = S == Specials::ieee && mantissa == 0;
      magnitude = infinite ? 0x7f800000u : 0x7fc00000u;
    } else if (exponent != 0) {
      magnitude = ((exponent + 127 - Bias) << 23) | (mantissa << (23 - M));
    } else {
      magnitude = std::bit_cast<std::uint32_t>(static_cast<float>(mantissa) * exp2i(1 - Bias - M));
    }
    return std::bit_cast<float>(sign | magnitude);
  }

 private:
  static constexpr std::uint8_t encode_magnitude(std::uint32_t magnitude, Rounding mode) noexcept {
    const int exponent = static_cast<int>(magnitude >> 23) - 127;  // float subnormals are far below every type here
    if (exponent > kMaxExponent) return kMaxCode;
    // The unit of the last place is 2^(max(exponent, 1 - Bias) - M); `shift` fraction bits lie below it.
    const int shift = 23 - M + (exponent < 1 - Bias ? 1 - Bias - exponent : 0);
    if (shift > 25) return 0;
    const std::uint32_t mantissa = (magnitude & 0x007fffffu) | 0x00800000u;
    const std::uint32_t half = 1u << (shift - 1);
    const std::uint32_t fraction = mantissa & ((half << 1) - 1);
    std::uint32_t code = mantissa >> shift;
    if (exponent >= 1 - Bias) code += static_cast<std::uint32_t>(exponent + Bias - 1) << M;
    if (mode == Rounding::half_even) {
      if (fraction > half || (fraction == half && (code & 1u))) ++code;
    } else if (mode == Rounding::half_away) {
      if (fraction >= half) ++code;
    }
    return code > kMaxCode ? kMaxCode : static_cast<std::uint8_t>(code);
  }
};

using fp8_e4m3 = SmallFloat<4, 3, 7, Specials::nan_only>;
using fp8_e5m2 = SmallFloat<5, 2, 15, Specials::ieee>;
using fp6_e2m3 = SmallFloat<2, 3, 1, Specials::none>;
using fp6_e3m2 = SmallFloat<3, 2, 3, Specials::none>;
using fp4_e2m1 = SmallFloat<2, 1, 1, Specials::none>;
static_assert(static_cast<float>(fp8_e4m3::max()) == 448.0f && static_cast<float>(fp8_e5m2::max()) == 57344.0f);
static_assert(static_cast<float>(fp6_e2m3::max()) == 7.5f && static_cast<float>(fp6_e3m2::max()) == 28.0f);
static_assert(static_cast<float>(fp4_e2m1::max()) == 6.0f);

/// A power of two, 2^(bits - 127); code 255 is NaN.
struct e8m0 {
  std::uint8_t bits = 127;

  e8m0() = default;
  /// The largest power of two that is not above |v|, clamped to 2^-127 (zero too); infinity and NaN give NaN.
  constexpr explicit e8m0(float v) noexcept {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(v) & 0x7fffffffu;
    if (magnitude >= 0x7f800000u) {
      bits = 255;
    } else {
      const int e = magnitude == 0 ? -127 : floor_log2(v);
      bits = static_cast<std::uint8_t>((e < -127 ? -127 : e) + 127);
    }
  }
  static constexpr e8m0 from_bits(std::uint8_t b) noexcept {
    e8m0 v;
    v.bits = b;
    return v;
  }
  /// Exact; code 0 is the float subnormal 2^-127.
  constexpr explicit operator float() const noexcept {
    if (bits == 255) return std::numeric_limits<float>::quiet_NaN();
    return exp2i(static_cast<int>(bits) - 127);
  }
};
static_assert(sizeof(e8m0) == 1);

}  // namespace blockpack::inline BLOCKPACK_ABI
