// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "blockpack/quant.hpp"
#include "quant/rows.hpp"
#include "quant/weights.hpp"
#include "support/catch.hpp"

namespace {

using namespace blockpack;
using test::round_trip;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr std::uint8_t kScaleOne = 127;

std::int32_t code_of(const Mx& format, float v) {
  std::int32_t code = 0;
  format.encode(std::span<const float>(&v, 1), kScaleOne, std::span<std::int32_t>(&code, 1));
  return code;
}
float value_of(const Mx& format, std::int32_t code, std::uint8_t scale = kScaleOne) {
  float v = 0;
  format.decode(std::span<const std::int32_t>(&code, 1), scale, std::span<float>(&v, 1));
  return v;
}

template <class T>
void check_against_scalar_type(MxElement element) {
  for (const Rounding rounding : {Rounding::half_even, Rounding::half_away, Rounding::toward_zero}) {
    const Mx format{element, 32, MxScaleRule::ocp_floor, rounding};
    std::size_t wrong = 0;
    for (std::uint64_t bits = 0; bits < 0x7f800000u; bits += 0x1000) {
      // Exponents and the upper 11 mantissa bits, with sticky bits of three kinds: every rounding boundary lies there.
      for (const std::uint32_t low : {0u, 1u, 0xfffu}) {
        const float v = std::bit_cast<float>(static_cast<std::uint32_t>(bits) | low);
        if (v == 0.0f) continue;
        wrong += code_of(format, v) != T(v, rounding).bits;
        wrong += code_of(format, -v) != T(-v, rounding).bits;
      }
    }
    CAPTURE(format.scheme());
    REQUIRE(wrong == 0);
  }
  for (int code = 0; code < (1 << T::kBits); ++code) {
    const float expected = static_cast<float>(T::from_bits(static_cast<std::uint8_t>(code)));
    const float got = value_of(Mx{element}, code);
    CAPTURE(code, expected, got);
    REQUIRE(std::bit_cast<std::uint32_t>(got) == std::bit_cast<std::uint32_t>(expected));
  }
}

}  // namespace

TEST_CASE("MX elements at scale 1 are the scalar types of core", "[quant][format]") {
  check_against_scalar_type<fp8_e4m3>(MxElement::e4m3);
  check_against_scalar_type<fp8_e5m2>(MxElement::e5m2);
  check_against_scalar_type<fp6_e2m3>(MxElement::e2m3);
  check_against_scalar_type<fp6_e3m2>(MxElement::e3m2);
  check_against_scalar_type<fp4_e2m1>(MxElement::e2m1);
}

TEST_CASE("E2M1 thresholds", "[quant][format]") {
  const float upper[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};  // of codes 0 to 6
  for (std::int32_t code = 0; code < 7; ++code) {
    const float at = upper[code];
    REQUIRE(code_of(Mx{}, std::nextafter(at, 0.0f)) == code);
    REQUIRE(code_of(Mx{}, at) == (code % 2 == 0 ? code : code + 1));  // ties to even
    REQUIRE(code_of(Mx{}, std::nextafter(at, 9.0f)) == code + 1);
  }
  REQUIRE(code_of(Mx{}, 7.9f) == 7);
  REQUIRE(code_of(Mx{}, -0.1f) == 8);  // keeps its sign
}

TEST_CASE("fixed-point MX elements clip at the largest positive code's magnitude", "[quant][format]") {
  const Mx int8{MxElement::int8};
  REQUIRE(code_of(int8, 1.0f) == 64);
  REQUIRE(code_of(int8, -1.999f) == -127);
  REQUIRE(code_of(int8, 0.5f / 64) == 0);    // a tie
  REQUIRE(code_of(int8, -1.5f / 64) == -2);  // a tie
  REQUIRE(value_of(int8, 0x80) == -2.0f);    // foreign bytes may hold -128
  REQUIRE(value_of(Mx{MxElement::int4}, 0xf) == -0.25f);
  REQUIRE(code_of(Mx{MxElement::int4}, 1.9f) == 7);
}

TEST_CASE("MX bytes: scales, nibbles and six-bit codes", "[quant][format]") {
  std::vector<float> w(32, 0.0f);
  w[0] = 12.0f;  // Es = 3 - 2 = 1: code 6 / 1 -> 12 / 2 = 6 = code 7
  w[1] = -1.0f;  // -0.5 = code 9
  w[2] = 3.0f;   // 1.5 = code 3
  w[31] = 8.0f;  // 4 = code 6
  const MatrixView<const float> view(w.data(), 1, 32);
  const auto fp4 = test::encode_matrix(Mx{}, view);
  REQUIRE(test::numbers(fp4[0]) == std::vector<int>{128});
  REQUIRE(std::to_integer<int>(fp4[1][0]) == 0x97);
  REQUIRE(std::to_integer<int>(fp4[1][1]) == 0x03);
  REQUIRE(std::to_integer<int>(fp4[1][15]) == 0x60);
  // E2M3, Es = 1: 6 = 0b11100 (1.5 * 4), -0.5 = subnormal 4 with sign, 1.5 = 0b01100, 4 = 0b11000
  const auto fp6 = test::encode_matrix(Mx{MxElement::e2m3}, view);
  REQUIRE(fp6[1].size() == 24);
  const int stream = 0b011100 | (0b100100 << 6) | (0b001100 << 12);
  REQUIRE(std::to_integer<int>(fp6[1][0]) == (stream & 255));
  REQUIRE(std::to_integer<int>(fp6[1][1]) == ((stream >> 8) & 255));
  REQUIRE(std::to_integer<int>(fp6[1][2]) == (stream >> 16));
  REQUIRE(std::to_integer<int>(fp6[1][23]) == 0b011000 << 2);
}

TEST_CASE("an MX block of zeros stores scale 0 and codes 0; elsewhere -0 keeps its sign", "[quant][format]") {
  for (const MxElement element : Mx::kElements) {
    const Mx format{element};
    std::vector<float> w(32, -0.0f);
    const auto stored = test::encode_matrix(format, MatrixView<const float>(w.data(), 1, 32));
    REQUIRE(test::numbers(stored[0]) == std::vector<int>{0});
    for (const int byte : test::numbers(stored[1])) REQUIRE(byte == 0);
    for (const float v : round_trip(format, w)) REQUIRE(std::bit_cast<std::uint32_t>(v) == 0);
    w[3] = 2.0f;
    const bool floating = format.spec().exponent_bits != 0;
    REQUIRE(std::signbit(round_trip(format, w)[0]) == floating);
  }
}

TEST_CASE("MX blocks at both ends of the exponent range", "[quant][format]") {
  const float smallest = std::numeric_limits<float>::denorm_min();
  const float largest = std::numeric_limits<float>::max();
  for (const MxElement element : Mx::kElements) {
    const Mx format{element};
    CAPTURE(format.scheme());
    std::vector<float> w(32, 0.0f);
    w[0] = smallest;
    REQUIRE(int{format.fit(w)} == 0);  // Es = -127
    REQUIRE(round_trip(format, w)[0] == 0.0f);
    w[0] = 0x1p-127f;  // subnormal, a multiple of every element's unit
    REQUIRE(int{format.fit(w)} == 0);
    REQUIRE(round_trip(format, w)[0] == 0x1p-127f);
    w[0] = -largest;
    REQUIRE(int{format.fit(w)} == 254 - format.spec().max_exponent);
    const float top = round_trip(format, w)[0];
    REQUIRE(top == -std::ldexp(1.0f + static_cast<float>(format.spec().max_fraction) * 0x1p-23f, 127));
  }
  // Values a bf16 cannot hold are rounded half to even by decode_row_bf16.
  const Mx format{MxElement::e5m2};
  const std::vector<std::int32_t> codes(32, 3);  // 3 * 2^-16
  std::vector<std::byte> packed(32, std::byte{3}), scale(1, std::byte{1});
  const std::byte* src[] = {scale.data(), packed.data()};
  std::vector<bf16> half(32);
  format.decode_row_bf16(src, 32, 0, half);
  REQUIRE(value_of(format, 3, 1) == 3 * 0x1p-142f);
  REQUIRE(half[0].bits == bf16(3 * 0x1p-142f).bits);
}

TEST_CASE("foreign MX bytes beyond float32 decode to infinity, scale 255 to NaN", "[quant][format]") {
  REQUIRE(value_of(Mx{MxElement::e5m2}, 0x7b, 254) == kInfinity);
  REQUIRE(value_of(Mx{MxElement::e5m2}, 0xfb, 254) == -kInfinity);
  REQUIRE(value_of(Mx{MxElement::e5m2}, 0x7c, 1) == kInfinity);
  REQUIRE(std::isnan(value_of(Mx{MxElement::e4m3}, 0x7f)));
  for (const MxElement element : Mx::kElements) REQUIRE(std::isnan(value_of(Mx{element}, 0, 255)));
}

TEST_CASE("ceil_fit is the smallest scale at which nothing saturates", "[quant][format]") {
  for (const MxElement element : Mx::kElements) {
    const Mx format{element, 32, MxScaleRule::ceil_fit};
    const double largest = std::ldexp(1.0 + format.spec().max_fraction * 0x1p-23, format.spec().max_exponent);
    std::vector<float> tops = test::make_weights(test::Weights::all_exponents, 2000, 5);
    for (int e = -20; e <= 20; e += 5) {
      const auto exact = static_cast<float>(std::ldexp(largest, e));
      tops.insert(tops.end(), {exact, std::nextafter(exact, 0.0f), std::nextafter(exact, kInfinity)});
    }
    for (const float top : tops) {
      if (top == 0.0f) continue;
      const std::vector<float> w = {top, top / 3, 0.0f};
      const int scale = int{format.fit(w)} - 127;
      const double amax = std::abs(static_cast<double>(top));
      CAPTURE(format.scheme(), top, scale);
      if (scale < 127 - format.spec().max_exponent) REQUIRE(amax <= std::ldexp(largest, scale));
      if (scale > -127) REQUIRE(amax > std::ldexp(largest, scale - 1));
    }
  }
  // Near the largest float the scale stays where every element is finite, and the value saturates.
  REQUIRE(round_trip(Mx{MxElement::e4m3, 32, MxScaleRule::ceil_fit}, std::vector<float>{3.4e38f})[0] == 0x1.cp127f);
  REQUIRE(int{Mx{MxElement::int8, 32, MxScaleRule::ceil_fit}.fit(std::vector<float>{3.4e38f})} == 254);
}

TEST_CASE("the mse scale is never worse than floor, one up or one down, and listens to importance", "[quant][format]") {
  for (const MxElement element : Mx::kElements) {
    const Mx floor{element};
    const Mx mse{element, 32, MxScaleRule::mse};
    for (std::uint64_t seed = 0; seed < 50; ++seed) {
      const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 32, seed);
      const int base = floor.fit(w);
      const int chosen = mse.fit(w);
      CAPTURE(floor.scheme(), seed, base, chosen);
      REQUIRE(std::abs(base - chosen) <= 1);
      const double error = test::squared_error(w, round_trip(mse, w));
      for (const int other : {base - 1, base, base + 1}) {
        std::vector<std::int32_t> codes(32);
        std::vector<float> decoded(32);
        floor.encode(w, static_cast<std::uint8_t>(other), codes);
        floor.decode(codes, static_cast<std::uint8_t>(other), decoded);
        REQUIRE(error <= test::squared_error(w, decoded) * (1 + 1e-5));
      }
    }
  }
  // 7.9 saturates to 6 under floor. One scale up it becomes 8, but 0.3 is lost; one scale down 0.3 fits better.
  std::vector<float> w(32, 0.3f);
  w[0] = 7.9f;
  const Mx mse{MxElement::e2m1, 32, MxScaleRule::mse};
  std::vector<float> importance(32, 1.0f);
  importance[0] = 100.0f;
  REQUIRE(int{mse.fit(w, importance)} == 128);
  importance[0] = 0.0f;
  REQUIRE(int{mse.fit(w, importance)} == 126);
  // The same through a matrix, one row of importance for all rows.
  EncodeOptions options;
  options.importance = MatrixView<const float>(importance.data(), 1, 32);
  REQUIRE(test::numbers(test::encode_matrix(mse, MatrixView<const float>(w.data(), 1, 32), options)[0]) ==
          std::vector<int>{126});
}

TEST_CASE("MX takes infinity and NaN as the policy says", "[quant][format]") {
  for (const MxElement element : Mx::kElements) {
    for (const MxScaleRule rule : {MxScaleRule::ocp_floor, MxScaleRule::ceil_fit, MxScaleRule::mse}) {
      const Mx format{element, 32, rule};
      CAPTURE(format.scheme());
      std::vector<float> w(96, 1.0f);
      w[40] = kInfinity;
      w[41] = -kInfinity;
      w[70] = kNan;
      const MatrixView<const float> view(w.data(), 1, 96);
      REQUIRE_THROWS_AS(test::encode_matrix(format, view), ValueError);

      const std::vector<float> saturated = round_trip(format, w, NonFinite::saturate);
      const float largest = saturated[40];
      REQUIRE(std::isfinite(largest));
      REQUIRE(largest >= 0x1.8p127f);
      REQUIRE(saturated[41] == -largest);
      REQUIRE(saturated[70] == 0.0f);
      REQUIRE(saturated[0] == 1.0f);
      REQUIRE(saturated[71] == 1.0f);

      const std::vector<float> kept = round_trip(format, w, NonFinite::propagate);
      for (std::size_t i = 0; i < 96; ++i) REQUIRE(std::isnan(kept[i]) == (i >= 32));
    }
  }
}

TEST_CASE("a short last MX block is stored whole, its missing codes are 0", "[quant][format]") {
  const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 37, 9);
  std::vector<float> whole = w;
  whole.resize(64, 0.0f);
  for (const MxElement element : Mx::kElements) {
    for (const MxScaleRule rule : {MxScaleRule::ocp_floor, MxScaleRule::mse}) {
      const Mx format{element, 32, rule};
      const auto stored = test::encode_matrix(format, MatrixView<const float>(w.data(), 1, 37));
      REQUIRE(stored == test::encode_matrix(format, MatrixView<const float>(whole.data(), 1, 64)));
      REQUIRE(round_trip(format, w).size() == 37);
    }
  }
}

TEST_CASE("MX schemes, sizes and refused parameters", "[quant][format]") {
  const char* names[] = {"mxfp8-e4m3", "mxfp8-e5m2", "mxfp6-e2m3", "mxfp6-e3m2", "mxfp4", "mxint8", "mxint4"};
  const double bits[] = {8.25, 8.25, 6.25, 6.25, 4.25, 8.25, 4.25};
  for (std::size_t i = 0; i < Mx::kElements.size(); ++i) {
    REQUIRE(Mx{Mx::kElements[i]}.scheme() == names[i]);
    REQUIRE(bits_per_weight(Mx{Mx::kElements[i]}, 4096) == bits[i]);
  }
  REQUIRE(Mx{MxElement::e2m1, 16, MxScaleRule::mse, Rounding::half_away}.scheme() == "mxfp4-b16-mse-away");
  REQUIRE(Mx{MxElement::e5m2, 32, MxScaleRule::ceil_fit, Rounding::toward_zero}.scheme() == "mxfp8-e5m2-ceil-trunc");
  REQUIRE_THROWS_AS((Mx{MxElement::e2m1, 24}.sections(24)), ValueError);
  REQUIRE_THROWS_AS((Mx{MxElement::e2m1, 32, MxScaleRule::mse, Rounding::down}.sections(32)), ValueError);
  REQUIRE_THROWS_AS((Mx{MxElement::e2m1, 32, MxScaleRule::mse, Rounding::stochastic}.sections(32)), ValueError);
}
