// SPDX-License-Identifier: Apache-2.0
#include "blockpack/entropy/histogram.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;

namespace {

Histogram with_bins(std::span<const float> x, index_t bins, std::optional<ValueRange> range = {}) {
  HistogramOptions options;
  options.bins = bins;
  options.range = range;
  return histogram(x, options);
}

}  // namespace

TEST_CASE("bins are closed on the left, the last one on both sides", "[entropy][smoke]") {
  const std::vector<float> x{0, 0.5f, 1, 1.5f, 2, 3, 4};
  const Histogram h = with_bins(x, 4);
  CHECK(h.counts == std::vector<std::uint64_t>{2, 2, 1, 2});
  CHECK(h.width() == 1.0);
  CHECK(h.range.low == 0.0);
  CHECK(h.range.high == 4.0);
}

TEST_CASE("values at an edge and next to it are counted by comparing with the edge", "[entropy]") {
  // Multiples of a decimal step are not exact: an index by multiplication alone goes wrong for some of them.
  for (const index_t bins : {1, 3, 10, 49, 97, 1000, 4099}) {
    const float low = 0.1f, high = 0.7f;
    const double step = (static_cast<double>(high) - static_cast<double>(low)) / static_cast<double>(bins);
    std::vector<float> edges, x;
    for (index_t b = 0; b < bins; ++b) edges.push_back(static_cast<float>(low + static_cast<double>(b) * step));
    edges.push_back(high);
    std::vector<std::uint64_t> expected(static_cast<std::size_t>(bins));
    for (const float edge : edges)
      for (const float v : {edge, std::nextafter(edge, low), std::nextafter(edge, high)}) {
        x.push_back(v);
        const auto above = std::upper_bound(edges.begin(), edges.end(), v) - edges.begin();
        ++expected[static_cast<std::size_t>(std::min<std::ptrdiff_t>(above - 1, bins - 1))];
      }
    CAPTURE(bins);
    CHECK(with_bins(x, bins).counts == expected);
  }
}

TEST_CASE("values outside a given range are left out and counted", "[entropy]") {
  const std::vector<float> x{-5, 0, 0.25f, 1, 7};
  const Histogram h = with_bins(x, 2, ValueRange{0, 1});
  CHECK(h.counts == std::vector<std::uint64_t>{2, 1});
  CHECK(h.outside == 2);
}

TEST_CASE("constant, empty and single data have entropy zero", "[entropy]") {
  const std::vector<float> constant(9, -2.5f);
  const Histogram h = with_bins(constant, 4);
  CHECK(h.range.low == -3.0);
  CHECK(h.range.high == -2.0);
  CHECK(h.counts == std::vector<std::uint64_t>{0, 0, 9, 0});
  CHECK(h.entropy().plug_in == 0.0);
  for (const BinRule rule : {BinRule::automatic, BinRule::sturges, BinRule::rice, BinRule::square_root, BinRule::scott,
                             BinRule::freedman_diaconis, BinRule::doane}) {
    HistogramOptions options;
    options.rule = rule;
    CHECK(histogram(std::span<const float>(constant), options).bins() == 1);
    CHECK(histogram(std::span<const float>(), options).counts == std::vector<std::uint64_t>{0});
    CHECK(histogram(std::span<const float>(constant).first(1), options).bins() == 1);
  }
}

TEST_CASE("heavy tails meet the cap of the number of bins", "[entropy]") {
  std::vector<float> x = test::random_normal(4000, 3, 1e-6f);
  x[17] = 1e6f;
  HistogramOptions options;
  options.rule = BinRule::freedman_diaconis;
  const Histogram h = histogram(std::span<const float>(x), options);
  CHECK(h.capped);
  CHECK(h.bins() == 65536);
  options.max_bins = 100;
  CHECK(histogram(std::span<const float>(x), options).bins() == 100);
  options.rule = BinRule::rice;
  CHECK_FALSE(histogram(std::span<const float>(x), options).capped);
}

TEST_CASE("any stored type, stride and number of threads gives the same histogram", "[entropy]") {
  const index_t rows = 61, cols = 53;
  const std::vector<float> weights = test::random_weights(rows, cols + 4, 8);
  std::vector<bf16> narrow(weights.size());
  std::vector<float> dense;
  for (std::size_t i = 0; i < weights.size(); ++i) narrow[i] = bf16(weights[i]);
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < cols; ++j)
      dense.push_back(static_cast<float>(narrow[static_cast<std::size_t>(i * (cols + 4) + j)]));
  const Histogram expected = histogram(std::span<const float>(dense));
  for (int threads = 1; threads <= 4; ++threads) {
    Execution how;
    how.threads = threads;
    const Histogram h = histogram(MatrixView<const bf16>(narrow.data(), rows, cols, cols + 4), {}, how);
    CHECK(h.counts == expected.counts);
    CHECK(h.range.low == expected.range.low);
  }
}

TEST_CASE("histograms refuse bad data and options", "[entropy]") {
  std::vector<float> x{1, 2, 3, 4};
  const MatrixView<const float> view(x.data(), 2, 2);
  HistogramOptions options;
  options.bins = -1;
  CHECK_THROWS_AS(histogram(view, options), ValueError);
  options = {};
  options.max_bins = 0;
  CHECK_THROWS_AS(histogram(view, options), ValueError);
  options = {};
  options.range = ValueRange{2, 1};
  CHECK_THROWS_WITH(histogram(view, options),
                    "histogram: range is 2.000000 to 1.000000, finite numbers low <= high needed");
  options.range = ValueRange{0, std::numeric_limits<double>::quiet_NaN()};
  CHECK_THROWS_AS(histogram(view, options), ValueError);
  x[3] = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH(histogram(view), "histogram: matrix 0 is not finite at row 1, column 1");
}
