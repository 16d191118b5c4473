// SPDX-License-Identifier: Apache-2.0
#include "blockpack/entropy/estimators.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "blockpack/entropy/histogram.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

MatrixView<const float> column(const std::vector<float>& v) { return {v.data(), static_cast<index_t>(v.size()), 1}; }

Execution with_threads(int threads) {
  Execution how;
  how.threads = threads;
  return how;
}

}  // namespace

TEST_CASE("plug-in and Miller-Madow entropy of counts by hand", "[entropy][smoke]") {
  const std::vector<std::uint64_t> counts{2, 0, 1, 1};
  const DiscreteEntropy h = discrete_entropy(counts);
  CHECK(h.count == 4);
  CHECK(h.distinct == 3);
  CHECK(h.bits() == Approx(1.5).epsilon(1e-15));
  CHECK(h.miller_madow == Approx(1.5 * std::log(2.0) + 2.0 / 8.0).epsilon(1e-15));
  CHECK(h.efficiency() == Approx(0.75).epsilon(1e-15));
  CHECK(h.recommended() == h.miller_madow);  // 3 symbols among 4 values
  const std::vector<std::uint64_t> many{5000, 5000};
  CHECK(discrete_entropy(many).recommended() == discrete_entropy(many).plug_in);
}

TEST_CASE("the entropy of nothing, of one value and of one symbol is exactly zero", "[entropy]") {
  for (const std::vector<std::uint64_t>& counts :
       {std::vector<std::uint64_t>{}, {0, 0}, {1}, {0, 123457, 0}, {std::uint64_t{1} << 60}}) {
    const DiscreteEntropy h = discrete_entropy(counts);
    CHECK(h.plug_in == 0.0);
    CHECK(h.miller_madow == 0.0);
    CHECK(h.efficiency() == 0.0);
  }
}

TEST_CASE("equal counts give log K, and counts above 2^32 are exact", "[entropy]") {
  const std::vector<std::uint64_t> counts(65536, std::uint64_t{1} << 40);
  CHECK(discrete_entropy(counts).bits() == Approx(16.0).epsilon(1e-14));
  EntropyOfCounts together, apart;
  together.add(7, 3);
  together.add(2, 0);
  for (int i = 0; i < 3; ++i) apart.add(7);
  CHECK(together.result().distinct == 3);
  CHECK(together.result().plug_in == Approx(apart.result().plug_in).epsilon(1e-15));
  EntropyOfCounts merged;
  merged.merge(apart);
  CHECK(merged.result().plug_in == apart.result().plug_in);
}

TEST_CASE("the bias of the plug-in estimate is the one Miller and Madow correct", "[entropy]") {
  // 4,096 equally likely symbols, 8 draws each: K/(2n) = 1/16 nat is missing on average.
  Random random(5);
  std::vector<std::uint64_t> counts(4096);
  for (int i = 0; i < 8 * 4096; ++i) ++counts[random.below(4096)];
  const DiscreteEntropy h = discrete_entropy(counts);
  CHECK(std::log(4096.0) - h.plug_in == Approx(1.0 / 16).margin(0.01));
  CHECK(h.miller_madow == Approx(std::log(4096.0)).margin(0.01));
}

TEST_CASE("differential estimators find the entropy of normal and uniform samples", "[entropy]") {
  const std::vector<float> x = test::random_normal(8000, 11, 0.5f);
  const double normal = 0.5 * std::log(2 * 3.14159265358979 * 2.718281828459045 * 0.25);
  CHECK(gaussian_entropy(0.5) == Approx(normal).epsilon(1e-14));
  CHECK(gaussian_entropy(x) == Approx(normal).margin(0.02));
  for (const SpacingEstimator e :
       {SpacingEstimator::vasicek, SpacingEstimator::van_es, SpacingEstimator::ebrahimi, SpacingEstimator::correa})
    CHECK(spacing_entropy(x, e) == Approx(normal).margin(0.04));
  CHECK(kozachenko_leonenko_entropy(column(x)) == Approx(normal).margin(0.04));
  HistogramOptions options;
  options.rule = BinRule::scott;
  CHECK(histogram(std::span<const float>(x), options).differential_entropy() == Approx(normal).margin(0.03));
  // Two independent columns add up.
  const MatrixView<const float> pairs(x.data(), 4000, 2);
  CHECK(kozachenko_leonenko_entropy(pairs, 3) == Approx(2 * normal).margin(0.08));
}

TEST_CASE("scaling by s adds log s to a differential entropy", "[entropy]") {
  const std::vector<float> x = test::random_normal(500, 12);
  std::vector<float> y = x;
  for (float& v : y) v *= 8.0f;
  const double shift = std::log(8.0);
  for (const SpacingEstimator e :
       {SpacingEstimator::vasicek, SpacingEstimator::van_es, SpacingEstimator::ebrahimi, SpacingEstimator::correa})
    CHECK(spacing_entropy(y, e, 7) == Approx(spacing_entropy(x, e, 7) + shift).epsilon(1e-12));
  CHECK(kozachenko_leonenko_entropy(column(y), 4) ==
        Approx(kozachenko_leonenko_entropy(column(x), 4) + shift).epsilon(1e-12));
  CHECK(gaussian_entropy(y) == Approx(gaussian_entropy(x) + shift).epsilon(1e-12));
}

TEST_CASE("ties make a differential entropy minus infinity", "[entropy]") {
  const std::vector<float> constant(20, 3.0f);
  for (const SpacingEstimator e :
       {SpacingEstimator::vasicek, SpacingEstimator::van_es, SpacingEstimator::ebrahimi, SpacingEstimator::correa})
    CHECK(spacing_entropy(constant, e) == -kInf);
  CHECK(kozachenko_leonenko_entropy(column(constant), 2) == -kInf);
  CHECK(gaussian_entropy(constant) == -kInf);
  CHECK(std::isfinite(knn_entropy(column(constant), 2)));  // raised by 1e-10
}

TEST_CASE("digamma at known points", "[entropy]") {
  CHECK(detail::digamma(1.0) == Approx(-0.57721566490153286).epsilon(1e-14));
  CHECK(detail::digamma(0.5) == Approx(-1.96351002602142347).epsilon(1e-14));
  CHECK(detail::digamma(10.0) == Approx(2.25175258906672111).epsilon(1e-14));
  CHECK(detail::digamma(1000.0) == Approx(6.90725519564881267).epsilon(1e-14));
}

TEST_CASE("nearest neighbours by hand", "[entropy]") {
  const std::vector<float> x{0, 1, 3, 7};  // distances to the nearest other point: 1 1 2 4
  const double mean = (std::log(2.0) + std::log(4.0)) / 4;
  const double ball = std::log(2.0);  // the unit ball of the line has length 2
  CHECK(kozachenko_leonenko_entropy(column(x), 1) ==
        Approx(detail::digamma(4) - detail::digamma(1) + ball + mean).epsilon(1e-14));
  CHECK(knn_entropy(column(x), 1) == Approx(std::log(4.0) + ball + mean).epsilon(1e-9));
}

TEST_CASE("the Renyi estimate of a few points by hand", "[entropy]") {
  // Standardised: -1/sqrt 2 and 1/sqrt 2, distance sqrt 2; the lower median of {0, 0, d, d} is 0, so sigma = 0.
  const std::vector<float> two{1, 3};
  CHECK(renyi_entropy(column(two), 2.0) == Approx(-std::log(0.5 * (1 + 1e-10))).epsilon(1e-12));
  const std::vector<float> same(5, 2.0f);
  CHECK(renyi_entropy(column(same)) == 0.0);
  // -1, 0, 1: distances 0 (3), 1 (4), 2 (2); the lower median is 1; kernels 1, e^-1/2, e^-2.
  const std::vector<float> three{-1, 0, 1};
  const double mean = (3 + 4 * std::exp(-1.5) + 2 * std::exp(-6.0)) / 9;
  CHECK(renyi_entropy(column(three), 4.0) == Approx(-std::log(mean) / 3).epsilon(1e-9));
}

TEST_CASE("binned entropies of columns by hand", "[entropy]") {
  const std::vector<float> x{0, 5, 1, 5, 2, 5, 4, 5};  // columns 0 1 2 4 and a constant
  const MarginalEntropy h = marginal_bin_entropy(MatrixView<const float>(x.data(), 4, 2), 4);
  CHECK(h.per_column[0] == Approx(std::log(4.0)).epsilon(1e-6));  // the maximum counts in the last bin
  CHECK(h.per_column[1] == Approx(0.0).margin(1e-7));
  CHECK(h.total == h.per_column[0] + h.per_column[1]);
}

TEST_CASE("estimates over points do not depend on the threads", "[entropy]") {
  const std::vector<float> x = test::random_normal(150 * 7, 4);
  const MatrixView<const float> points(x.data(), 150, 7);
  const double kl = kozachenko_leonenko_entropy(points, 5, with_threads(1)),
               renyi = renyi_entropy(points, 4, with_threads(1)),
               bins = marginal_bin_entropy(points, 20, with_threads(1)).total;
  for (int threads = 2; threads <= 4; ++threads) {
    CHECK(kozachenko_leonenko_entropy(points, 5, with_threads(threads)) == kl);
    CHECK(renyi_entropy(points, 4, with_threads(threads)) == renyi);
    CHECK(marginal_bin_entropy(points, 20, with_threads(threads)).total == bins);
  }
}

TEST_CASE("estimators refuse what they cannot estimate", "[entropy]") {
  std::vector<float> x{0, 1, 2, 4};
  CHECK_THROWS_WITH(spacing_entropy(x, SpacingEstimator::vasicek),
                    "spacing_entropy: window 2 and 4 samples, 2 <= 2 * window < samples needed");
  CHECK_THROWS_AS(spacing_entropy({}, SpacingEstimator::correa), ValueError);
  CHECK_THROWS_AS(spacing_entropy(x, SpacingEstimator::correa, -1), ValueError);
  CHECK_NOTHROW(spacing_entropy(x, SpacingEstimator::correa, 1));
  CHECK_THROWS_AS(gaussian_entropy(std::span<const float>()), ValueError);
  CHECK_THROWS_WITH(knn_entropy(column(x), 4), "knn_entropy: k = 4, 1 <= k < 4 points needed");
  CHECK_THROWS_AS(kozachenko_leonenko_entropy(column(x), 0), ValueError);
  CHECK_THROWS_WITH(renyi_entropy(column(x), 1.0),
                    "renyi_entropy: alpha = 1.000000, alpha > 0 and other than 1 needed");
  CHECK_THROWS_AS(renyi_entropy(column(x), -2.0), ValueError);
  CHECK_THROWS_AS(renyi_entropy(MatrixView<const float>(x.data(), 1, 4)), ValueError);
  CHECK_THROWS_AS(marginal_bin_entropy(column(x), 0), ValueError);
  CHECK_THROWS_AS(marginal_bin_entropy(MatrixView<const float>(x.data(), 0, 4)), ValueError);
  x[2] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(spacing_entropy(x, SpacingEstimator::vasicek, 1),
                    "spacing_entropy: the sample is not finite at index 2");
  CHECK_THROWS_WITH(knn_entropy(column(x), 1), "knn_entropy: points are not finite at row 2, column 0");
  CHECK_THROWS_AS(marginal_bin_entropy(column(x)), ValueError);
}
