// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/convert.hpp"

#include <bit>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/guard_page.hpp"
#include "support/levels.hpp"

using namespace blockpack;
using blockpack::test::budget;
using blockpack::test::Guard;
using blockpack::test::GuardedArray;
using blockpack::test::levels_here;

namespace {

/// For each value of the upper half, lower halves at and around every place a rounding boundary can lie.
std::vector<std::uint16_t> lower_halves() {
  std::vector<std::uint16_t> lows;
  const std::uint32_t step = budget(0x1000u, 0x8000u);
  for (std::uint32_t k = 0; k < 0x10000u; k += step)
    for (const int d : {-1, 0, 1}) lows.push_back(static_cast<std::uint16_t>(k + static_cast<std::uint32_t>(d)));
  return lows;
}

std::vector<float> rounding_neighbourhoods() {
  std::vector<float> values;
  const std::vector<std::uint16_t> lows = lower_halves();
  values.reserve(lows.size() << 16);
  for (std::uint32_t high = 0; high < 0x10000u; ++high)
    for (const std::uint16_t low : lows) values.push_back(std::bit_cast<float>(high << 16 | low));
  return values;
}

template <class T>
std::size_t first_difference(const std::vector<T>& a, const std::vector<T>& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0) return i;
  return a.size();
}

template <class T>
using Code = decltype(T{}.bits);

}  // namespace

TEMPLATE_TEST_CASE("every level rounds floats to the bits of the scalar type", "[core][kernels][smoke]", bf16, fp16,
                   fp8_e4m3, fp8_e5m2, fp6_e2m3, fp6_e3m2, fp4_e2m1, e8m0) {
  const std::vector<float> values = rounding_neighbourhoods();
  std::vector<TestType> expected(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) expected[i] = TestType(values[i]);
  for (const Isa isa : levels_here()) {
    std::vector<TestType> got(values.size());
    convert(values, got, isa);
    const std::size_t i = first_difference(got, expected);
    const std::size_t shown = i == values.size() ? 0 : i;
    CAPTURE(to_string(isa), i, std::bit_cast<std::uint32_t>(values[shown]), int{got[shown].bits},
            int{expected[shown].bits});
    REQUIRE(i == values.size());
  }
}

TEMPLATE_TEST_CASE("every level gives the float of every code, unused upper bits ignored", "[core][kernels][smoke]",
                   bf16, fp16, fp8_e4m3, fp8_e5m2, fp6_e2m3, fp6_e3m2, fp4_e2m1, e8m0) {
  const std::size_t codes = std::size_t{1} << (8 * sizeof(TestType));
  std::vector<TestType> src(codes);
  std::vector<float> expected(codes);
  for (std::size_t i = 0; i < codes; ++i) {
    src[i] = TestType::from_bits(static_cast<Code<TestType>>(i));
    expected[i] = static_cast<float>(src[i]);
  }
  for (const Isa isa : levels_here()) {
    std::vector<float> got(codes);
    convert(src, got, isa);
    CAPTURE(to_string(isa));
    REQUIRE(first_difference(got, expected) == codes);
  }
}

TEMPLATE_TEST_CASE("conversions take any length and stay inside what they were given", "[core][kernels]", bf16, fp16,
                   fp8_e4m3, fp6_e3m2, e8m0) {
  for (const Isa isa : levels_here())
    for (std::size_t n = 0; n < 70; ++n)
      for (const Guard guard : {Guard::after, Guard::before})
        for (const std::size_t shift : {0u, 1u, 3u}) {
          GuardedArray<float> values(n, guard, shift * sizeof(float));
          GuardedArray<TestType> codes(n, guard, shift * sizeof(TestType));
          GuardedArray<float> back(n, guard, shift * sizeof(float));
          for (std::size_t i = 0; i < n; ++i) values[i] = static_cast<float>(i) * 0.37f - 7.0f;
          convert(values.span(), codes.span(), isa);
          convert(std::span<const TestType>(codes.span()), back.span(), isa);
          for (std::size_t i = 0; i < n; ++i) {
            REQUIRE(codes[i].bits == TestType(values[i]).bits);
            REQUIRE(back[i] == static_cast<float>(TestType(values[i])));
          }
        }
}

TEST_CASE("a destination of another size is refused and untouched", "[core]") {
  const std::vector<float> src(4, 1.0f);
  std::vector<bf16> dst(3, bf16::from_bits(7));
  CHECK_THROWS_WITH(convert(src, dst), "convert: dst has 3 elements, src has 4");
  for (const bf16 v : dst) CHECK(v.bits == 7);
  std::vector<float> back(2);
  CHECK_THROWS_AS(convert(std::span<const bf16>(dst), back), ShapeError);
}

#if defined(__x86_64__)
TEST_CASE("conversions do not read the floating-point environment", "[core][kernels]") {
  struct Environment {
    unsigned saved = _mm_getcsr();
    ~Environment() { _mm_setcsr(saved); }
  };
  std::vector<float> values;
  for (std::uint32_t high = 0; high < 0x10000u; high += 7)
    for (const std::uint32_t low : {0x0000u, 0x0fffu, 0x1000u, 0x8000u, 0x8001u})
      values.push_back(std::bit_cast<float>(high << 16 | low));
  const auto check = [&values](auto example) {
    using T = decltype(example);
    std::vector<T> expected(values.size());
    std::vector<float> expected_back(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      expected[i] = T(values[i]);
      expected_back[i] = static_cast<float>(expected[i]);
    }
    for (const Isa isa : levels_here()) {
      std::vector<T> got(values.size());
      std::vector<float> back(values.size());
      {
        const Environment restore;
        _mm_setcsr(restore.saved | 0x8040 | 0x2000);  // flush to zero, denormals are zero, round down
        convert(values, got, isa);
        convert(std::span<const T>(got), back, isa);
      }
      CAPTURE(to_string(isa));
      CHECK(first_difference(got, expected) == values.size());
      CHECK(first_difference(back, expected_back) == values.size());
    }
  };
  check(bf16{});
  check(fp16{});
  check(fp8_e4m3{});
  check(fp8_e5m2{});
  check(fp6_e2m3{});
  check(fp6_e3m2{});
  check(fp4_e2m1{});
  check(e8m0{});
}
#endif

TEMPLATE_TEST_CASE("every float there is, on every level", "[core][kernels][slow]", fp16, fp8_e4m3) {
  constexpr std::uint32_t kChunk = 1u << 20;
  std::vector<float> values(kChunk);
  std::vector<TestType> expected(kChunk);
  std::vector<TestType> got(kChunk);
  for (std::uint32_t chunk = 0; chunk < 4096; ++chunk) {
    for (std::uint32_t i = 0; i < kChunk; ++i) {
      values[i] = std::bit_cast<float>(chunk * kChunk + i);
      expected[i] = TestType(values[i]);
    }
    for (const Isa isa : levels_here()) {
      if (isa != Isa::avx2 && isa != Isa::avx512 && isa != Isa::neon) continue;  // those with kernels of their own
      convert(values, got, isa);
      REQUIRE(std::memcmp(got.data(), expected.data(), kChunk * sizeof(TestType)) == 0);
    }
  }
}
