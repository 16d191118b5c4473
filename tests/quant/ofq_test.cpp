// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <limits>
#include <vector>

#include "blockpack/quant.hpp"
#include "quant/golden_cases.hpp"
#include "quant/rows.hpp"
#include "quant/weights.hpp"

namespace {

using namespace blockpack;
using test::cases_of;
using test::round_trip;

test::Stored stored(const StatsQ& format, const std::vector<float>& w, NonFinite policy = NonFinite::reject) {
  EncodeOptions options;
  options.non_finite = policy;
  return test::encode_matrix(format, MatrixView<const float>(w.data(), 1, static_cast<index_t>(w.size())), options);
}

}  // namespace

TEST_CASE("StatsQ and the near-threshold mask agree with nbasyl/OFQ", "[quant][golden]") {
  std::size_t count = 0;
  for (const test::GoldenCase& c : cases_of("statsq")) {
    CAPTURE(c.id);
    const StatsQ format{c.params.at("bits").get<int>()};
    const float band = c.params.at("boundary_range");
    const auto w = c.array<float>("w");
    const auto w_hat = c.array<float>("w_hat");
    const auto scales = c.array<float>("scale");
    const auto frozen = c.array<std::uint8_t>("freeze_mask");
    std::vector<std::uint8_t> near(w.values.size());
    near_threshold_mask(w.view(), format, band, MatrixView<std::uint8_t>(near.data(), w.rows, w.cols));
    std::size_t unfrozen = 0;
    for (index_t r = 0; r < w.rows; ++r) {
      const float scale = format.fit(w.view().row(r));
      REQUIRE(std::abs(scale - scales.values[static_cast<std::size_t>(r)]) <= 1e-6f * scale);
      std::vector<std::int32_t> codes(static_cast<std::size_t>(w.cols));
      std::vector<float> decoded(codes.size());
      format.encode(w.view().row(r), scale, codes);
      format.decode(codes, scale, decoded);
      for (index_t i = 0; i < w.cols; ++i) {
        const float t = format.position(w.view()(r, i), scale);
        const float theirs = w_hat.view()(r, i), ours = decoded[static_cast<std::size_t>(i)];
        const float from_tie = std::abs(t - std::floor(t) - 0.5f);
        CAPTURE(r, i, t, ours, theirs);
        if (from_tie > 1e-6f) REQUIRE(std::abs(ours - theirs) <= 1e-6f * std::abs(theirs));
        const bool at_edge = std::abs(from_tie - band) < 1e-6f;
        if (!at_edge) REQUIRE((near[static_cast<std::size_t>(r * w.cols + i)] == 0) == (frozen.view()(r, i) != 0));
        unfrozen += near[static_cast<std::size_t>(r * w.cols + i)];
      }
    }
    CAPTURE(unfrozen);
    ++count;
  }
  REQUIRE(test::golden_complete(count, 3));
}

TEST_CASE("the query-key product agrees with nbasyl/OFQ", "[quant][golden]") {
  std::size_t count = 0;
  for (const test::GoldenCase& c : cases_of("qkr")) {
    CAPTURE(c.id);
    const auto wq = c.array<float>("wq");
    const auto wk = c.array<float>("wk");
    const auto w_qk = c.array<float>("w_qk");
    const auto w_qk_hat = c.array<float>("w_qk_hat");
    std::vector<float> product(w_qk.values.size());
    form_query_key(wq.view(), wk.view(), c.params.at("head_dim").get<index_t>(),
                   MatrixView<float>(product.data(), w_qk.rows, w_qk.cols));
    float largest = 0;
    for (const float v : w_qk.values) largest = std::max(largest, std::abs(v));
    const StatsQ format{c.params.at("bits").get<int>()};
    for (index_t r = 0; r < w_qk.rows; ++r) {
      const MatrixView<const float> view(product.data(), w_qk.rows, w_qk.cols);
      std::vector<std::int32_t> codes(static_cast<std::size_t>(w_qk.cols));
      std::vector<float> decoded(codes.size());
      const float scale = format.fit(view.row(r));
      format.encode(view.row(r), scale, codes);
      format.decode(codes, scale, decoded);
      for (index_t i = 0; i < w_qk.cols; ++i) {
        CAPTURE(r, i);
        REQUIRE(std::abs(view(r, i) - w_qk.view()(r, i)) <= 1e-5f * largest);
        REQUIRE(std::abs(decoded[static_cast<std::size_t>(i)] - w_qk_hat.view()(r, i)) <=
                1e-5f * std::abs(w_qk_hat.view()(r, i)));
      }
    }
    ++count;
  }
  REQUIRE(test::golden_complete(count, 1));
}

TEST_CASE("the quantized query-key product gives the logits of its heads, grouped ones too", "[quant]") {
  constexpr index_t kChannels = 24, kDim = 4;
  const std::vector<float> q = test::make_weights(test::Weights::heavy_tailed, 4 * kDim * kChannels, 1);
  const std::vector<float> k = test::make_weights(test::Weights::heavy_tailed, 2 * kDim * kChannels, 2);
  const std::vector<float> x = test::make_weights(test::Weights::heavy_tailed, 2 * kChannels, 3);
  const MatrixView<const float> wq(q.data(), 4 * kDim, kChannels), wk(k.data(), 2 * kDim, kChannels);
  std::vector<float> product(4 * kChannels * kChannels);
  const MatrixView<float> m(product.data(), 4 * kChannels, kChannels);
  form_query_key(wq, wk, kDim, m);
  for (index_t head = 0; head < 4; ++head) {
    double direct = 0, through = 0, size = 0;
    for (index_t i = 0; i < kDim; ++i) {
      double query = 0, key = 0;
      for (index_t c = 0; c < kChannels; ++c) {
        query += double{wq(head * kDim + i, c)} * double{x[static_cast<std::size_t>(c)]};
        key += double{wk(head / 2 * kDim + i, c)} * double{x[static_cast<std::size_t>(kChannels + c)]};
      }
      direct += query * key;
    }
    for (index_t a = 0; a < kChannels; ++a)
      for (index_t b = 0; b < kChannels; ++b) {
        const double term = double{x[static_cast<std::size_t>(a)]} * double{m(head * kChannels + a, b)} *
                            double{x[static_cast<std::size_t>(kChannels + b)]};
        through += term;
        size += std::abs(term);
      }
    REQUIRE(std::abs(direct - through) <= 1e-6 * size);
  }
  const auto op = quantize_query_key(wq, wk, kDim, GroupInt{8, 0});
  REQUIRE(op.shape() == MatrixShape{4 * kChannels, kChannels});
  std::vector<float> row(kChannels);
  const index_t which = 30;
  op.decode_rows(std::span(&which, 1), MatrixView<float>(row.data(), 1, kChannels));
  float largest = 0;
  for (const float v : m.row(which)) largest = std::max(largest, std::abs(v));
  for (index_t c = 0; c < kChannels; ++c)
    REQUIRE(std::abs(row[static_cast<std::size_t>(c)] - m(which, c)) <= 0.51f * largest / 127.0f);
  REQUIRE_THROWS_AS(form_query_key(wq, wk, 3, m), ShapeError);
  REQUIRE_THROWS_AS(form_query_key(wk, wq, kDim, m), ShapeError);
  REQUIRE_THROWS_AS(form_query_key(wq, wk, kDim, MatrixView<float>(product.data(), kChannels, kChannels)), ShapeError);
}

TEST_CASE("a StatsQ row stores its rounded scale and levels around zero", "[quant][format]") {
  const std::vector<float> w = {1.0f, -1.0f, 0.25f, -0.25f, 3.0f, -3.0f, 0.0f, 0.0f};  // mean 1.0625
  const test::Stored s = stored(StatsQ{}, w);
  REQUIRE(detail::load_fp16(s[0].data()) == 2.125f);
  const float low = 2.125f * 0.25f, high = 2.125f * 0.75f;
  // 0 lies on the tie between the levels of codes -1 and 0: t = -1/2 goes to the even one, 0.
  REQUIRE(round_trip(StatsQ{}, w) == std::vector<float>{low, -low, low, -low, high, -high, low, low});
  REQUIRE(test::numbers(s[1]) == std::vector<int>{2 | 1 << 2 | 2 << 4 | 1 << 6, 3 | 0 << 2 | 2 << 4 | 2 << 6});
  REQUIRE(StatsQ{3, 260}.scheme() == "statsq3-x260");
  REQUIRE(bits_per_weight(StatsQ{}, 4096) == Approx(2.004).margin(0.0005));

  for (const int bits : {2, 3, 4}) {
    for (const test::Weights kind : test::kAllWeights) {
      for (const std::size_t n : {std::size_t{1}, std::size_t{45}, std::size_t{700}}) {
        CAPTURE(bits, test::to_string(kind), n);
        for (const float v : round_trip(StatsQ{bits}, test::make_weights(kind, n, 3), NonFinite::saturate))
          REQUIRE(std::isfinite(v));
      }
    }
  }
  for (const float v : round_trip(StatsQ{}, std::vector<float>(33, 0.0f))) REQUIRE(v == 0.0f);
  REQUIRE_THROWS_AS(stored(StatsQ{}, std::vector<float>(8, 60000.0f)), ValueError);
  REQUIRE(round_trip(StatsQ{}, std::vector<float>(8, 60000.0f), NonFinite::saturate)[0] == 65504.0f * 0.75f);
  REQUIRE_THROWS_AS(StatsQ{5}.sections(8), ValueError);
  REQUIRE_THROWS_AS((StatsQ{2, 0}.sections(8)), ValueError);
}

TEST_CASE("an oscillating code is told from one that only moves", "[quant]") {
  OscillationTracker tracker(1, 3, 0.5f);
  const std::vector<std::vector<std::int32_t>> steps = {{0, 0, 0}, {1, 1, 0}, {0, 2, 0},
                                                        {1, 3, 0}, {1, 4, 0}, {0, 5, 0}};
  for (const auto& codes : steps) tracker.update(MatrixView<const std::int32_t>(codes.data(), 1, 3));
  // Column 0 turns at steps 3, 4 and 6: 0, 1/2, 3/4, 3/8, 11/16.
  REQUIRE(tracker.frequency(0, 0) == 0.6875f);
  REQUIRE(tracker.frequency(0, 1) == 0.0f);
  REQUIRE(tracker.frequency(0, 2) == 0.0f);
  REQUIRE(tracker.steps() == 6);
  REQUIRE(tracker.oscillating(0.5f) == Approx(1.0 / 3));
  REQUIRE_THROWS_AS(tracker.update(MatrixView<const std::int32_t>(steps[0].data(), 1, 2)), ShapeError);
  REQUIRE_THROWS_AS(OscillationTracker(1, 1, 0.0f), ValueError);
}
