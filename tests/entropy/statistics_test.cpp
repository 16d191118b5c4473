// SPDX-License-Identifier: Apache-2.0
#include "blockpack/entropy/statistics.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;

namespace {

template <class T>
WeightBlock block_of(const std::vector<T>& w) {
  return WeightBlock(std::span<const T>(w));
}

void check_close(const WeightStatistics& a, const WeightStatistics& b, double relative) {
  const auto near = [&](double x) { return Approx(x).epsilon(relative).margin(1e-18); };
  CHECK(a.count == b.count);
  CHECK(a.non_finite == b.non_finite);
  CHECK(a.l1 == near(b.l1));
  CHECK(a.l2 == near(b.l2));
  CHECK(a.abs_mean == near(b.abs_mean));
  CHECK(a.abs_max == b.abs_max);
  CHECK(a.abs_variance == near(b.abs_variance));
  CHECK(a.variance == near(b.variance));
  CHECK(a.kurtosis_excess == near(b.kurtosis_excess));
  CHECK(a.value_entropy == near(b.value_entropy));
}

}  // namespace

TEST_CASE("weight statistics by hand", "[entropy][smoke]") {
  const WeightStatistics s = weight_statistics(block_of(std::vector<float>{3, -1, 0, 2}));
  CHECK(s.count == 4);
  CHECK(s.l1 == 6.0);
  CHECK(s.l2 == Approx(std::sqrt(14.0)).epsilon(1e-15));
  CHECK(s.abs_mean == 1.5);
  CHECK(s.abs_max == 3.0);
  CHECK(s.abs_variance == 1.25);
  CHECK(s.abs_std() == Approx(std::sqrt(1.25)).epsilon(1e-15));
  CHECK(s.mean == 1.0);
  CHECK(s.variance == 2.5);  // deviations 2 -2 -1 1
  CHECK(s.kurtosis_excess == Approx(34.0 / 4 / 6.25 - 3).epsilon(1e-14));
  CHECK(s.value_entropy ==
        Approx(-(0.5 * std::log(0.5) + std::log(1.0 / 6) / 6 + std::log(1.0 / 3) / 3)).epsilon(1e-14));
}

TEST_CASE("counted 16-bit weights and summed floats give the same statistics", "[entropy]") {
  const std::vector<float> w = test::random_weights(97, 131, 2);
  std::vector<bf16> b;
  std::vector<fp16> h;
  std::vector<float> as_bf16, as_fp16;
  for (const float v : w) {
    b.emplace_back(v);
    h.emplace_back(v);
    as_bf16.push_back(static_cast<float>(b.back()));
    as_fp16.push_back(static_cast<float>(h.back()));
  }
  check_close(weight_statistics(block_of(b)), weight_statistics(block_of(as_bf16)), 1e-12);
  check_close(weight_statistics(block_of(h)), weight_statistics(block_of(as_fp16)), 1e-12);
  const WeightBlock mixed("", {std::span<const bf16>(b), std::span<const float>(as_fp16)});
  std::vector<float> both = as_bf16;
  both.insert(both.end(), as_fp16.begin(), as_fp16.end());
  check_close(weight_statistics(mixed), weight_statistics(block_of(both)), 1e-12);
}

TEST_CASE("moments survive a mean far from zero", "[entropy]") {
  std::vector<float> w = test::random_normal(10000, 6);
  long double mean = 0, m2 = 0, m4 = 0;
  for (float& v : w) v += 4096.0f;
  for (const float v : w) mean += v;
  mean /= static_cast<long double>(w.size());
  for (const float v : w) {
    const long double d = v - mean;
    m2 += d * d;
    m4 += d * d * d * d;
  }
  m2 /= static_cast<long double>(w.size());
  m4 /= static_cast<long double>(w.size());
  const WeightStatistics s = weight_statistics(block_of(w));
  CHECK(s.variance == Approx(static_cast<double>(m2)).epsilon(1e-10));
  CHECK(s.kurtosis_excess == Approx(static_cast<double>(m4 / (m2 * m2) - 3)).margin(1e-9));
}

TEST_CASE("weight statistics do not depend on the threads", "[entropy]") {
  const std::vector<float> w = test::random_weights(test::budget(900, 190), 700, 14);
  Execution how;
  how.threads = 1;
  const WeightStatistics one = weight_statistics(block_of(w), how);
  for (how.threads = 2; how.threads <= 4; ++how.threads) {
    const WeightStatistics s = weight_statistics(block_of(w), how);
    CHECK(s.l1 == one.l1);
    CHECK(s.variance == one.variance);
    CHECK(s.kurtosis_excess == one.kurtosis_excess);
    CHECK(s.value_entropy == one.value_entropy);
  }
}

TEST_CASE("non-finite weights are counted and left out; empty and constant blocks are defined", "[entropy]") {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> w{3, nan, -1, inf, 0, -inf, 2};
  std::vector<bf16> b;
  for (const float v : w) b.emplace_back(v);
  const WeightStatistics clean = weight_statistics(block_of(std::vector<float>{3, -1, 0, 2}));
  for (WeightStatistics s : {weight_statistics(block_of(w)), weight_statistics(block_of(b))}) {
    CHECK(s.non_finite == 3);
    s.non_finite = 0;
    check_close(s, clean, 1e-15);
  }
  CHECK(weight_statistics(WeightBlock()).l2 == 0.0);
  const WeightStatistics zeros = weight_statistics(block_of(std::vector<float>(5)));
  CHECK(zeros.count == 5);
  CHECK(zeros.value_entropy == 0.0);
  CHECK(zeros.kurtosis_excess == 0.0);
  const WeightStatistics constant = weight_statistics(block_of(std::vector<bf16>(8, bf16(0.25f))));
  CHECK(constant.variance == 0.0);
  CHECK(constant.value_entropy == Approx(std::log(8.0)).epsilon(1e-15));
}
