// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/scalar.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"

using namespace blockpack;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

std::uint32_t bits_of(float v) { return std::bit_cast<std::uint32_t>(v); }

/// What a type is, written down a second time: sign, exponent and mantissa bits, bias, the code of the largest finite
/// value.
struct Layout {
  int exponent_bits;
  int mantissa_bits;
  int bias;
  std::uint32_t max_code;
  int code_bits() const { return exponent_bits + mantissa_bits; }
};
template <class T>
Layout layout_of();
template <>
Layout layout_of<bf16>() {
  return {8, 7, 127, 0x7f7f};
}
template <>
Layout layout_of<fp16>() {
  return {5, 10, 15, 0x7bff};
}
template <>
Layout layout_of<fp8_e4m3>() {
  return {4, 3, 7, 0x7e};
}
template <>
Layout layout_of<fp8_e5m2>() {
  return {5, 2, 15, 0x7b};
}
template <>
Layout layout_of<fp6_e2m3>() {
  return {2, 3, 1, 0x1f};
}
template <>
Layout layout_of<fp6_e3m2>() {
  return {3, 2, 3, 0x1f};
}
template <>
Layout layout_of<fp4_e2m1>() {
  return {2, 1, 1, 0x7};
}

/// The value of a finite magnitude code by the definition of the type, in double.
double value_of(const Layout& t, std::uint32_t code) {
  const int exponent = static_cast<int>(code >> t.mantissa_bits);
  const double mantissa = static_cast<double>(code & ((1u << t.mantissa_bits) - 1)) / (1 << t.mantissa_bits);
  return exponent == 0 ? std::ldexp(mantissa, 1 - t.bias) : std::ldexp(1.0 + mantissa, exponent - t.bias);
}

template <class T>
T from_code(std::uint32_t code) {
  return T::from_bits(static_cast<decltype(T{}.bits)>(code));
}

}  // namespace

TEMPLATE_TEST_CASE("every finite code has the value of its definition and comes back from it", "[core]", bf16, fp16,
                   fp8_e4m3, fp8_e5m2, fp6_e2m3, fp6_e3m2, fp4_e2m1) {
  const Layout t = layout_of<TestType>();
  const std::uint32_t sign = 1u << t.code_bits();
  for (std::uint32_t code = 0; code <= t.max_code; ++code) {
    CAPTURE(code);
    const float v = static_cast<float>(from_code<TestType>(code));
    REQUIRE(static_cast<double>(v) == value_of(t, code));
    REQUIRE(bits_of(static_cast<float>(from_code<TestType>(code | sign))) == (bits_of(v) | 0x80000000u));
    REQUIRE(TestType(v).bits == code);
    REQUIRE(TestType(-v).bits == (code | sign));
  }
}

TEMPLATE_TEST_CASE("floats at, below and above every rounding boundary go to the nearer code, ties to even", "[core]",
                   bf16, fp16, fp8_e4m3, fp8_e5m2, fp6_e2m3, fp6_e3m2, fp4_e2m1) {
  const Layout t = layout_of<TestType>();
  const std::uint32_t sign = 1u << t.code_bits();
  for (std::uint32_t code = 0; code < t.max_code; ++code) {
    CAPTURE(code);
    const double low = value_of(t, code);
    const double high = value_of(t, code + 1);
    const auto middle = static_cast<float>((low + high) / 2);
    REQUIRE(static_cast<double>(middle) == (low + high) / 2);  // every boundary is a float
    const std::uint32_t even = (code & 1) == 0 ? code : code + 1;
    const float below = std::nextafter(middle, 0.0f);
    const float above = std::nextafter(middle, kInf);
    REQUIRE(TestType(middle).bits == even);
    REQUIRE(TestType(-middle).bits == (even | sign));
    REQUIRE(TestType(below).bits == code);
    REQUIRE(TestType(-below).bits == (code | sign));
    REQUIRE(TestType(above).bits == code + 1);
    REQUIRE(TestType(-above).bits == (code + 1 | sign));
    const auto start = static_cast<float>(low);
    REQUIRE(TestType(std::nextafter(start, kInf)).bits == (std::nextafter(start, kInf) > middle ? code + 1 : code));
  }
}

TEMPLATE_TEST_CASE("half away and toward zero differ from half even where they should", "[core]", fp8_e4m3, fp8_e5m2,
                   fp6_e2m3, fp6_e3m2, fp4_e2m1) {
  const Layout t = layout_of<TestType>();
  const std::uint32_t sign = 1u << t.code_bits();
  const auto encode = [](float v, Rounding mode) { return std::uint32_t{TestType(v, mode).bits}; };
  for (std::uint32_t code = 0; code < t.max_code; ++code) {
    CAPTURE(code);
    const auto low = static_cast<float>(value_of(t, code));
    const auto high = static_cast<float>(value_of(t, code + 1));
    const float middle = (low + high) / 2;
    REQUIRE(encode(middle, Rounding::half_away) == code + 1);
    REQUIRE(encode(-middle, Rounding::half_away) == (code + 1 | sign));
    REQUIRE(encode(std::nextafter(middle, 0.0f), Rounding::half_away) == code);
    for (const Rounding mode : {Rounding::toward_zero, Rounding::down, Rounding::stochastic}) {
      REQUIRE(encode(middle, mode) == code);
      REQUIRE(encode(std::nextafter(high, 0.0f), mode) == code);
      REQUIRE(encode(-std::nextafter(high, 0.0f), mode) == (code | sign));
      REQUIRE(encode(high, mode) == code + 1);
    }
    REQUIRE(encode(middle, Rounding::half_even) == std::uint32_t{TestType(middle).bits});
  }
}

TEMPLATE_TEST_CASE("small floats saturate what is beyond their largest value", "[core]", fp8_e4m3, fp8_e5m2, fp6_e2m3,
                   fp6_e3m2, fp4_e2m1) {
  const Layout t = layout_of<TestType>();
  const std::uint32_t sign = 1u << t.code_bits();
  const float max = static_cast<float>(TestType::max());
  CHECK(static_cast<double>(max) == value_of(t, t.max_code));
  for (const float v : {std::nextafter(max, kInf), max * 1.06f, max * 2, 1e30f, std::numeric_limits<float>::max()})
    for (const Rounding mode : {Rounding::half_even, Rounding::half_away, Rounding::toward_zero}) {
      CHECK(TestType(v, mode).bits == t.max_code);
      CHECK(TestType(-v, mode).bits == (t.max_code | sign));
    }
}

TEST_CASE("the constants of the OCP tables", "[core]") {
  CHECK(static_cast<float>(fp8_e4m3::from_bits(0x08)) == 0.015625f);
  CHECK(static_cast<float>(fp8_e4m3::from_bits(0x01)) == 0.001953125f);
  CHECK(static_cast<float>(fp8_e5m2::from_bits(0x04)) == std::ldexp(1.0f, -14));
  CHECK(static_cast<float>(fp8_e5m2::from_bits(0x01)) == std::ldexp(1.0f, -16));
  const std::vector<float> fp4 = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  for (std::size_t i = 0; i < 8; ++i)
    CHECK(static_cast<float>(fp4_e2m1::from_bits(static_cast<std::uint8_t>(i))) == fp4[i]);
}

TEST_CASE("infinity and NaN keep their meaning where the type has one", "[core]") {
  CHECK(fp8_e5m2(kInf).bits == 0x7c);
  CHECK(fp8_e5m2(-kInf).bits == 0xfc);
  CHECK(fp8_e4m3(kInf).bits == 0x7f);
  CHECK(fp8_e4m3(-kInf).bits == 0xff);
  CHECK(fp6_e2m3(kInf).bits == 0x1f);
  CHECK(fp6_e3m2(-kInf).bits == 0x3f);
  CHECK(fp4_e2m1(-kInf).bits == 0xf);
  for (const float nan : {kNan, -kNan, std::bit_cast<float>(0x7f800001u), std::bit_cast<float>(0xffbfffffu)}) {
    CHECK(std::isnan(static_cast<float>(bf16(nan))));
    CHECK(std::isnan(static_cast<float>(fp16(nan))));
    CHECK(std::isnan(static_cast<float>(fp8_e4m3(nan))));
    CHECK(std::isnan(static_cast<float>(fp8_e5m2(nan))));
    CHECK((bits_of(nan) >> 31) == std::uint32_t{bf16(nan).bits} >> 15);
    CHECK(fp6_e2m3(nan).bits == 0);
    CHECK(fp6_e3m2(nan).bits == 0);
    CHECK(fp4_e2m1(nan).bits == 0);
  }
  CHECK(static_cast<float>(fp8_e5m2::from_bits(0x7c)) == kInf);
  for (const std::uint8_t code : std::initializer_list<std::uint8_t>{0x7d, 0x7e, 0x7f, 0xfd, 0xff})
    CHECK(std::isnan(static_cast<float>(fp8_e5m2::from_bits(code))));
  CHECK(std::isnan(static_cast<float>(fp8_e4m3::from_bits(0x7f))));
  CHECK(std::isnan(static_cast<float>(fp8_e4m3::from_bits(0xff))));
}

TEST_CASE("bf16 and fp16 overflow to infinity from half a step above the largest value", "[core]") {
  const float bf16_edge = std::bit_cast<float>(0x7f7f8000u);  // 2^127 * (2 - 2^-8)
  CHECK(bf16(bf16_edge).bits == 0x7f80);
  CHECK(bf16(-bf16_edge).bits == 0xff80);
  CHECK(bf16(std::nextafter(bf16_edge, 0.0f)).bits == 0x7f7f);
  CHECK(fp16(65520.0f).bits == 0x7c00);
  CHECK(fp16(std::nextafter(65520.0f, 0.0f)).bits == 0x7bff);
  CHECK(fp16(-1e9f).bits == 0xfc00);
}

TEMPLATE_TEST_CASE("specials of the 16-bit types round trip bit for bit", "[core]", bf16, fp16) {
  const std::uint32_t inf = std::is_same_v<TestType, bf16> ? 0x7f80 : 0x7c00;
  const std::uint32_t quiet = std::is_same_v<TestType, bf16> ? 0x40 : 0x200;
  for (std::uint32_t code = inf; code < 0x8000u; ++code)
    for (const std::uint32_t sign : {0u, 0x8000u}) {
      const float v = static_cast<float>(from_code<TestType>(code | sign));
      REQUIRE(std::isnan(v) == (code != inf));
      // A signalling NaN comes back quiet, with its payload.
      REQUIRE(TestType(v).bits == (code == inf ? code | sign : code | sign | quiet));
    }
}

TEST_CASE("float subnormals survive in bf16 and vanish below half a step elsewhere", "[core]") {
  CHECK(bf16(std::bit_cast<float>(0x00010000u)).bits == 1);
  CHECK(bf16(std::bit_cast<float>(0x00008000u)).bits == 0);
  CHECK(bf16(std::bit_cast<float>(0x00008001u)).bits == 1);
  CHECK(bf16(std::bit_cast<float>(0x80018000u)).bits == 0x8002);
  CHECK(fp16(std::bit_cast<float>(0x00008001u)).bits == 0);
  CHECK(fp8_e5m2(std::bit_cast<float>(0x807fffffu)).bits == 0x80);
}

TEST_CASE("e8m0 is a power of two for every code and rounds floats down to one", "[core]") {
  for (int code = 0; code < 255; ++code) {
    const auto scale = e8m0::from_bits(static_cast<std::uint8_t>(code));
    const float v = static_cast<float>(scale);
    REQUIRE(static_cast<double>(v) == std::ldexp(1.0, code - 127));
    REQUIRE(e8m0(v).bits == code);
    REQUIRE(e8m0(-v).bits == code);
    const float above = std::nextafter(v, kInf);
    REQUIRE(e8m0(above).bits == code);
    const float below = std::nextafter(v, 0.0f);
    REQUIRE(e8m0(below).bits == (code == 0 ? 0 : code - 1));
  }
  CHECK(std::isnan(static_cast<float>(e8m0::from_bits(255))));
  CHECK(e8m0(0.0f).bits == 0);
  CHECK(e8m0(1e-45f).bits == 0);
  CHECK(e8m0(std::numeric_limits<float>::max()).bits == 254);
  CHECK(e8m0(kInf).bits == 255);
  CHECK(e8m0(-kInf).bits == 255);
  CHECK(e8m0(kNan).bits == 255);
}

TEST_CASE("conversions are constant expressions", "[core]") {
  static_assert(bf16(1.0f).bits == 0x3f80);
  static_assert(fp16(1.0f).bits == 0x3c00);
  static_assert(fp8_e4m3(1.0f).bits == 0x38);
  static_assert(static_cast<float>(fp4_e2m1(2.5f)) == 2.0f);
  static_assert(e8m0(3.0f).bits == 128);
  SUCCEED();
}
