// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include "support/catch.hpp"
#include "support/guard_page.hpp"
#include "support/random.hpp"

using namespace blockpack;

TEST_CASE("the generator gives the same numbers everywhere", "[core]") {
  Random random(1);
  const std::uint64_t first = random();
  const std::uint64_t second = random();
  CHECK(first == 0xee127fe613436e33u);
  CHECK(second == 0xd6dad8d34a1874eau);
  CHECK(Random(1, 1)() != first);
  CHECK(random.normal() == -0x1.2699fp-1f);
}

TEST_CASE("normal values have mean 0, variance 1 and the kurtosis of twelve uniforms", "[core]") {
  Random random(7);
  constexpr int kCount = 200000;
  double m1 = 0, m2 = 0, m4 = 0;
  for (int i = 0; i < kCount; ++i) {
    const double v = static_cast<double>(random.normal());
    REQUIRE(std::abs(v) <= 6.0);
    m1 += v;
    m2 += v * v;
    m4 += v * v * v * v;
  }
  CHECK(std::abs(m1 / kCount) < 4.0 / std::sqrt(static_cast<double>(kCount)));
  CHECK(std::abs(m2 / kCount - 1.0) < 4.0 * std::sqrt(1.9 / kCount));
  CHECK(m4 / kCount == Approx(2.9).margin(0.1));  // 3 - 6 / (5 * 12)
}

TEST_CASE("below covers its range and stays in it", "[core]") {
  Random random(3);
  std::vector<int> seen(7);
  for (int i = 0; i < 7000; ++i) ++seen[random.below(7)];
  for (const int n : seen) CHECK(std::abs(n - 1000) < 5 * 30);
}

TEST_CASE("panels of a weight matrix equal the whole", "[core]") {
  const std::vector<float> whole = test::random_weights(13, 300, 42);
  std::vector<float> panel(5 * 300);
  fill_weights(MatrixView<float>(panel.data(), 5, 300), 42, 8);
  CHECK(std::equal(panel.begin(), panel.end(), whole.begin() + 8 * 300));
}

TEST_CASE("a guarded array ends or starts at its page", "[core]") {
  test::GuardedArray<float> after(5);
  test::GuardedArray<float> before(5, test::Guard::before);
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  CHECK(reinterpret_cast<std::uintptr_t>(after.end()) % page == 0);
  CHECK(reinterpret_cast<std::uintptr_t>(before.data()) % page == 0);
  for (float& v : after) v = 1;
  for (float& v : before) v = 1;
}
