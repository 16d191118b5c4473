// SPDX-License-Identifier: Apache-2.0
/// K-sort is judged by attention logits: they must not change, and keys in block floating point must spoil them less.
/// The error of K itself can even grow, because its energy sits in the blocks of outliers.

#include <cmath>
#include <limits>
#include <vector>

#include "blockpack/core/random.hpp"
#include "blockpack/quant.hpp"
#include "quant/rows.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"

namespace {

using namespace blockpack;

struct Array {
  index_t rows, cols;
  std::vector<float> values = std::vector<float>(static_cast<std::size_t>(rows * cols));
  MatrixView<float> view() { return {values.data(), rows, cols}; }
  MatrixView<const float> view() const { return {values.data(), rows, cols}; }
};

double gauss(Random& random) {
  const double u = (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53;
  const double v = (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53;
  return std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v);
}

Array normal(index_t rows, index_t cols, Random& random) {
  Array a{rows, cols};
  for (float& v : a.values) v = static_cast<float>(gauss(random));
  return a;
}

Array project(const Array& x, const Array& w) {
  Array y{x.rows, w.rows};
  for (index_t t = 0; t < x.rows; ++t)
    for (index_t r = 0; r < w.rows; ++r) {
      float sum = 0;
      for (index_t c = 0; c < x.cols; ++c) sum += x.view()(t, c) * w.view()(r, c);
      y.view()(t, r) = sum;
    }
  return y;
}

/// Logits of query head g against its key head, all tokens: [heads * tokens, tokens].
std::vector<double> logits(const Array& q, const Array& k, index_t head_dim) {
  const index_t heads = q.cols / head_dim, group = heads / (k.cols / head_dim);
  std::vector<double> result;
  for (index_t g = 0; g < heads; ++g)
    for (index_t a = 0; a < q.rows; ++a)
      for (index_t b = 0; b < k.rows; ++b) {
        double sum = 0;
        for (index_t i = 0; i < head_dim; ++i)
          sum += static_cast<double>(q.view()(a, g * head_dim + i)) *
                 static_cast<double>(k.view()(b, g / group * head_dim + i));
        result.push_back(sum);
      }
  return result;
}

double sqnr_db(const std::vector<double>& exact, const std::vector<double>& noisy) {
  double signal = 0, noise = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    signal += exact[i] * exact[i];
    noise += (exact[i] - noisy[i]) * (exact[i] - noisy[i]);
  }
  return 10 * std::log10(signal / noise);
}

Array quantized(const Array& keys, int block) {
  const Bfp format{4, block};
  Array result{keys.rows, keys.cols};
  result.values = test::decode_matrix(format, test::encode_matrix(format, keys.view()), keys.view().shape());
  return result;
}

Array gathered(const KSortOrder& order, const Array& x) {
  Array y{x.rows, x.cols};
  ksort_gather(order, x.view(), y.view());
  return y;
}

/// Rotary embedding of tokens 0, 1, …; frequencies [heads or 1, head_dim / 2].
Array rotated(const Array& x, index_t head_dim, const Array& frequencies, RopeLayout layout, index_t queries_per_key) {
  Array y{x.rows, x.cols};
  const index_t half = head_dim / 2;
  for (index_t t = 0; t < x.rows; ++t)
    for (index_t c = 0; c < x.cols; c += head_dim)
      for (index_t p = 0; p < half; ++p) {
        const index_t head = std::min(frequencies.rows - 1, c / head_dim / queries_per_key);
        const double angle = static_cast<double>(t) * static_cast<double>(frequencies.view()(head, p));
        const index_t a = c + (layout == RopeLayout::half_split ? p : 2 * p);
        const index_t b = c + (layout == RopeLayout::half_split ? p + half : 2 * p + 1);
        const double u = x.view()(t, a), v = x.view()(t, b);
        y.view()(t, a) = static_cast<float>(u * std::cos(angle) - v * std::sin(angle));
        y.view()(t, b) = static_cast<float>(u * std::sin(angle) + v * std::cos(angle));
      }
  return y;
}

/// Projections of 4 query heads and 2 key heads of 64 channels with lognormal sizes, inverse in the queries; where a
/// rotary embedding mixes them, the two channels of a pair have the same size.
struct Layer {
  static constexpr index_t kDim = 64, kIn = 40;
  Array wq{4 * kDim, kIn}, wk{2 * kDim, kIn};
  explicit Layer(std::uint64_t seed, const RopeLayout* pairs = nullptr) {
    Random random(seed);
    std::vector<double> sizes(static_cast<std::size_t>(wk.rows));
    for (double& size : sizes) size = std::exp(gauss(random));
    for (index_t r = 0; r < wk.rows; ++r) {
      index_t sized = r;  // the first channel of the pair of r
      if (pairs != nullptr) sized = *pairs == RopeLayout::interleaved ? r & ~1 : r - (r % kDim) + r % (kDim / 2);
      const double size = sizes[static_cast<std::size_t>(sized)];
      for (index_t c = 0; c < kIn; ++c) wk.view()(r, c) = static_cast<float>(size * gauss(random));
      for (const index_t g : {2 * (r / kDim), 2 * (r / kDim) + 1})
        for (index_t c = 0; c < kIn; ++c) wq.view()(g * kDim + r % kDim, c) = static_cast<float>(gauss(random) / size);
    }
  }
};

void require_same(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  REQUIRE(sqnr_db(a, b) > 110);  // float32 rounding
}

}  // namespace

TEST_CASE("sorting keys gains the logits what the specification measured", "[quant]") {
  constexpr index_t kDim = 128;
  const int blocks[] = {128, 64, 32, 16};
  const double plain_range[] = {2.3, 3.3, 4.2, 5.6}, sorted_range[] = {2.3, 7.2, 13.0, 16.7};
  double plain[4] = {}, sorted[4] = {};
  const int heads = test::budget(24, 8);
  for (int head = 0; head < heads; ++head) {
    Random random(static_cast<std::uint64_t>(head + 1));
    Array keys = normal(test::budget<index_t>(256, 64), kDim, random), queries = normal(16, kDim, random);
    for (index_t c = 0; c < kDim; ++c) {
      const auto size = static_cast<float>(std::exp(gauss(random)));
      for (index_t t = 0; t < keys.rows; ++t) keys.view()(t, c) *= size;
      for (index_t t = 0; t < queries.rows; ++t) queries.view()(t, c) /= size;
    }
    const std::vector<double> exact = logits(queries, keys, kDim);
    const KSortOrder order = ksort_order(ksort_statistic_of_keys(keys.view()), kDim, KSortMode::post_rope);
    const Array q = gathered(order, queries), k = gathered(order, keys);
    require_same(exact, logits(q, k, kDim));
    for (int i = 0; i < 4; ++i) {
      plain[i] += sqnr_db(exact, logits(queries, quantized(keys, blocks[i]), kDim)) / heads;
      sorted[i] += sqnr_db(exact, logits(q, quantized(k, blocks[i]), kDim)) / heads;
    }
  }
  for (int i = 0; i < 4; ++i) {
    CAPTURE(blocks[i], plain[i], sorted[i]);
    CHECK(std::abs(plain[i] - plain_range[i]) < 1.0);  // one draw of 128 sizes there, the mean of 24 here
    CHECK(std::abs(sorted[i] - sorted_range[i]) < 1.0);
  }
  CHECK(std::abs(plain[0] - sorted[0]) < 1e-9);  // a block of the whole head: nothing to gain
}

TEST_CASE("sorted projections give the same logits without a rotary embedding", "[quant]") {
  const Layer layer(3);
  Random random(9);
  const Array x = normal(12, Layer::kIn, random);
  const KSortOrder order = ksort_order(ksort_statistic(layer.wk.view()), Layer::kDim, KSortMode::none);
  REQUIRE(order.heads() == 2);
  Array wq{layer.wq.rows, Layer::kIn}, wk{layer.wk.rows, Layer::kIn};
  ksort_rows(order, layer.wq.view(), wq.view());
  ksort_rows(order, layer.wk.view(), wk.view());
  const Array q = project(x, layer.wq), k = project(x, layer.wk), q2 = project(x, wq), k2 = project(x, wk);
  const std::vector<double> exact = logits(q, k, Layer::kDim);
  require_same(exact, logits(q2, k2, Layer::kDim));
  require_same(exact, logits(gathered(order, q), gathered(order, k), Layer::kDim));
  const std::vector<double> sizes = ksort_statistic(wk.view());
  for (std::size_t i = 1; i < sizes.size(); ++i)
    if (i % Layer::kDim != 0) REQUIRE(sizes[i] <= sizes[i - 1]);
  CHECK(sqnr_db(exact, logits(q2, quantized(k2, 16), Layer::kDim)) >
        sqnr_db(exact, logits(q, quantized(k, 16), Layer::kDim)) + 3);
}

TEST_CASE("sorted pairs give the same logits through a rotary embedding", "[quant]") {
  for (const RopeLayout layout : {RopeLayout::half_split, RopeLayout::interleaved}) {
    const Layer layer(4, &layout);
    Random random(9);
    const Array x = normal(12, Layer::kIn, random);
    Array frequencies{1, Layer::kDim / 2};
    for (index_t p = 0; p < Layer::kDim / 2; ++p)
      frequencies.view()(0, p) = static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(p) / Layer::kDim));
    const Array q = rotated(project(x, layer.wq), Layer::kDim, frequencies, layout, 2);
    const Array k = rotated(project(x, layer.wk), Layer::kDim, frequencies, layout, 1);
    const std::vector<double> exact = logits(q, k, Layer::kDim);

    const KSortOrder order = ksort_order(ksort_statistic(layer.wk.view()), Layer::kDim, KSortMode::pairs, layout);
    Array wq{layer.wq.rows, Layer::kIn}, wk{layer.wk.rows, Layer::kIn}, own{2, Layer::kDim / 2};
    ksort_rows(order, layer.wq.view(), wq.view());
    ksort_rows(order, layer.wk.view(), wk.view());
    ksort_frequencies(order, frequencies.values, own.view());
    const Array q2 = rotated(project(x, wq), Layer::kDim, own, layout, 2);
    const Array k2 = rotated(project(x, wk), Layer::kDim, own, layout, 1);
    require_same(exact, logits(q2, k2, Layer::kDim));
    CHECK(sqnr_db(exact, logits(q2, quantized(k2, 16), Layer::kDim)) >
          sqnr_db(exact, logits(q, quantized(k, 16), Layer::kDim)) + 1);

    // After the embedding any order will do; its statistic is that of the rotated keys.
    const KSortOrder after = ksort_order(ksort_statistic_of_keys(k.view()), Layer::kDim, KSortMode::post_rope);
    require_same(exact, logits(gathered(after, q), gathered(after, k), Layer::kDim));
    CHECK(sqnr_db(exact, logits(gathered(after, q), quantized(gathered(after, k), 16), Layer::kDim)) >
          sqnr_db(exact, logits(q, quantized(k, 16), Layer::kDim)) + 1);
    REQUIRE_THROWS_AS(ksort_rows(after, layer.wk.view(), wk.view()), ValueError);
  }
}

TEST_CASE("the order of channels by hand, with bias, gain and ties", "[quant]") {
  const std::vector<float> rows = {3, 4, 0, 1, 6, 8, 0, 1};  // norms 5, 1, 10, 1
  const MatrixView<const float> wk(rows.data(), 4, 2);
  REQUIRE(ksort_statistic(wk) == std::vector<double>{5, 1, 10, 1});
  const KSortOrder whole = ksort_order(ksort_statistic(wk), 4, KSortMode::none);
  REQUIRE(whole.perm == std::vector<index_t>{2, 0, 1, 3});
  const std::vector<float> bias = {12, 0, 0, 0}, gain = {1, 1, -2, 30};
  REQUIRE(ksort_statistic(wk, bias, gain) == std::vector<double>{13, 1, 20, 30});
  const KSortOrder halves = ksort_order(ksort_statistic(wk), 2, KSortMode::none);
  REQUIRE(halves.perm == std::vector<index_t>{0, 1, 0, 1});
  const std::vector<double> sizes = {1, 2, 5, 0};
  const KSortOrder split = ksort_order(sizes, 4, KSortMode::pairs);
  REQUIRE(split.pair_perm == std::vector<index_t>{0, 1});  // hypot(1, 5) and hypot(2, 0)
  const KSortOrder alternating = ksort_order(sizes, 4, KSortMode::pairs, RopeLayout::interleaved);
  REQUIRE(alternating.perm == std::vector<index_t>{2, 3, 0, 1});
  REQUIRE_THROWS_AS(ksort_order(sizes, 3, KSortMode::none), ShapeError);
  REQUIRE_THROWS_AS(ksort_order(std::vector<double>{1, 2, 3}, 3, KSortMode::pairs), ShapeError);
  REQUIRE_THROWS_AS(ksort_order(std::vector<double>{1, std::nan("")}, 2, KSortMode::none), ValueError);
  REQUIRE_THROWS_AS(ksort_statistic(wk, std::span<const float>(bias).first(3)), ShapeError);
  std::vector<float> dst(8);
  REQUIRE_THROWS_AS(ksort_rows(whole, MatrixView<const float>(rows.data(), 2, 4), MatrixView<float>(dst.data(), 2, 4)),
                    ShapeError);
  REQUIRE_THROWS_AS(ksort_frequencies(whole, std::vector<float>{1, 2}, MatrixView<float>(dst.data(), 1, 2)),
                    ValueError);
}
