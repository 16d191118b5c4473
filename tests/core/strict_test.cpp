// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/strict.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"

using namespace blockpack;

namespace {

/// Both signs of floats that lie at, just below and just above integers and halves, and of every exponent.
std::vector<float> interesting() {
  std::vector<float> values = {0.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::max()};
  const auto add = [&values](float v) {
    values.push_back(v);
    values.push_back(std::nextafter(v, 0.0f));
    values.push_back(std::nextafter(v, std::numeric_limits<float>::infinity()));
  };
  for (int i = 0; i < 300; ++i) add(static_cast<float>(i) * 0.5f);
  for (int e = -149; e < 128; ++e) {
    const float power = std::ldexp(1.0f, e);
    add(power);
    add(power * 1.5f);
    if (e < 24) add(power + 0.5f);
    if (e < 23 && e > 0) add(2 * power - 0.5f);
  }
  const std::size_t n = values.size();
  for (std::size_t i = 0; i < n; ++i) values.push_back(-values[i]);
  return values;
}

bool same(float a, float b) { return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b); }

}  // namespace

TEST_CASE("rounding to integers agrees with the standard library, sign of zero included", "[core]") {
  for (const float v : interesting()) {
    CAPTURE(v);
    CHECK(same(round_half_even(v), std::nearbyint(v)));  // the tests run in the default environment
    CHECK(same(round_half_away(v), std::round(v)));
    CHECK(same(round_toward_zero(v), std::trunc(v)));
    CHECK(round_down(v) == std::floor(v));
    CHECK(same(round_to_integer(v, Rounding::half_even), round_half_even(v)));
    CHECK(same(round_to_integer(v, Rounding::half_away), round_half_away(v)));
    CHECK(same(round_to_integer(v, Rounding::toward_zero), round_toward_zero(v)));
    CHECK(same(round_to_integer(v, Rounding::down), round_down(v)));
    CHECK(same(round_to_integer(v, Rounding::stochastic), round_down(v)));
  }
}

TEST_CASE("rounding passes NaN through", "[core]") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Rounding mode : {Rounding::half_even, Rounding::half_away, Rounding::toward_zero, Rounding::down})
    CHECK(std::isnan(round_to_integer(nan, mode)));
}

TEST_CASE("exponents and powers of two are exact down to the smallest subnormal", "[core]") {
  for (int e = -149; e < 128; ++e) {
    CHECK(static_cast<double>(exp2i(e)) == std::ldexp(1.0, e));
    CHECK(floor_log2(exp2i(e)) == e);
    CHECK(floor_log2(-exp2i(e)) == e);
  }
  for (const float v : interesting())
    if (v != 0 && std::isfinite(v)) CHECK(floor_log2(v) == std::ilogb(v));
}

TEST_CASE("scaling by a power of two rounds once", "[core]") {
  for (const float v : {0.0f, -0.0f, 1.0f, -1.0f, 1.9999999f, 1.1754944e-38f, 1e-45f, -3e-42f, 3.4028235e38f, 0.1f})
    for (int e = -276; e <= 276; ++e) {
      CAPTURE(v, e);
      CHECK(same(scale_exp2(v, e), std::ldexp(v, e)));
    }
}

TEST_CASE("a strict product is not fused with the sum that takes it", "[core]") {
  // (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24 loses its last term when it is rounded to float; a fused sum would keep it.
  const float a = 1.0f + 0x1p-12f;
  const float product = strict_mul(a, a);
  CHECK(strict_mul(a, a) - product == 0.0f);
  CHECK(strict_mul(a, a) - (1.0f + 0x1p-11f) == 0.0f);
  const double d = 1.0 + 0x1p-27;
  CHECK(strict_mul(d, d) - (1.0 + 0x1p-26) == 0.0);
}
