// SPDX-License-Identifier: Apache-2.0
#include "blockpack/quant/rounding.hpp"

#include <cmath>
#include <string>
#include <vector>

#include "blockpack/quant.hpp"
#include "blockpack/quant/awq.hpp"
#include "blockpack/quant/ggml_grid.hpp"
#include "quant/golden_cases.hpp"
#include "quant/rounded.hpp"
#include "quant/synthetic_layer.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {

using namespace blockpack;
using test::decoded;
using test::FloatScales;
using test::loss_of;
using test::SyntheticLayer;

/// The layer objective in double.
double loss(MatrixView<const float> w, MatrixView<const float> q, const GramMatrix& h) {
  double total = 0.0;
  for (index_t r = 0; r < w.rows(); ++r)
    for (index_t i = 0; i < w.cols(); ++i)
      for (index_t j = 0; j < w.cols(); ++j)
        total += (static_cast<double>(w(r, i)) - static_cast<double>(q(r, i))) * h(i, j) *
                 (static_cast<double>(w(r, j)) - static_cast<double>(q(r, j)));
  return total;
}

}  // namespace

TEST_CASE("GPTQ gives the values, scales and zero points of the reference", "[quant][golden]") {
  std::size_t count = 0;
  for (const test::GoldenCase& c : test::cases_of("gptq")) {
    CAPTURE(c.id);
    const auto w = c.array<float>("w"), x = c.array<float>("x"), w_hat = c.array<float>("w_hat");
    const auto scales = c.array<float>("scale"), zeros = c.array<float>("zero");
    const int group = c.params.at("group");
    FloatScales grids({.bits = c.params.at("bits"),
                       .group_size = group == -1 ? 0 : group,
                       .grid = c.params.at("symmetric").get<bool>() ? GroupGrid::half_step : GroupGrid::asymmetric},
                      {w.rows, w.cols});
    GramMatrix h(w.cols);
    h.add(x.view());
    GptqOptions options;
    options.block = c.params.at("lazy_block");
    options.damping = c.params.at("percdamp");
    options.act_order = c.params.at("act_order");
    options.static_groups = false;
    std::vector<float> q(w.values.size());
    const MatrixView<float> chosen(q.data(), w.rows, w.cols);
    const GptqReport report = gptq(w.view(), h, grids, chosen, options);
    std::size_t different = 0;
    for (std::size_t i = 0; i < q.size(); ++i) different += std::abs(q[i] - w_hat.values[i]) > 1e-5f ? 1 : 0;
    CHECK(different == 0);
    for (std::size_t i = 0; i < scales.values.size(); ++i) {
      CHECK(grids.parameters[i].scale == Approx(scales.values[i]).epsilon(1e-5));
      CHECK(static_cast<float>(grids.parameters[i].zero_point) == zeros.values[i]);
    }
    const double expected = c.params.at("layer_error");
    CHECK(loss(w.view(), chosen, h) == Approx(expected).epsilon(0.01));
    CHECK(layer_loss(w.view(), chosen, h) == Approx(loss(w.view(), chosen, h)).epsilon(1e-5));
    CHECK(report.damping == options.damping);
    CHECK(report.loss >= expected);  // the damped objective
    ++count;
  }
  REQUIRE(test::golden_complete(count, 5));
}

TEMPLATE_TEST_CASE("the values of a grid are what the format's encoder takes, and its neighbours enclose a number",
                   "[quant]", GroupInt, Mx, Bfp, Nf4, Nvfp4, StatsQ) {
  std::vector<TestType> formats;
  if constexpr (std::is_same_v<TestType, GroupInt>) {
    for (const int bits : {2, 3, 4, 8})
      for (const GroupGrid grid :
           {GroupGrid::signed_max, GroupGrid::half_step, GroupGrid::max_abs, GroupGrid::asymmetric})
        formats.push_back({.bits = bits, .group_size = bits == 3 ? 0 : 32, .grid = grid});
  } else if constexpr (std::is_same_v<TestType, Mx>) {
    for (const MxElement e : Mx::kElements) formats.push_back({.element = e});
  } else if constexpr (std::is_same_v<TestType, Nf4>) {
    formats.push_back({.block = 32});
  } else if constexpr (std::is_same_v<TestType, Nvfp4>) {
    formats = {{.four_over_six = false}, {.four_over_six = true}};
  } else if constexpr (std::is_same_v<TestType, StatsQ>) {
    formats = {{.bits = 2}, {.bits = 3}, {.bits = 4, .multiplier_100 = 260}};
  } else {
    for (const int bits : {2, 4, 8, 24}) formats.push_back({.mantissa_bits = bits, .block = 16});
  }
  const MatrixShape shape{5, 75};
  const std::vector<float> weights = test::random_weights(shape.rows, shape.cols, 3);
  const MatrixView<const float> w(weights.data(), shape.rows, shape.cols);
  for (const TestType& format : formats) {
    CAPTURE(format.scheme());
    FormatGrids<TestType> grids(fitted(format, w, {}), shape);
    std::vector<float> chosen(weights.size());
    const MatrixView<float> q(chosen.data(), shape.rows, shape.cols);
    nearest(w, grids, q);
    const auto encoded = QuantizedMatrix<TestType>::encode(w, format);
    const auto stored = grids.store(MatrixView<const float>(q));
    REQUIRE(decoded(encoded) == chosen);
    REQUIRE(decoded(stored) == chosen);
    // A small negative number keeps its sign in a code with a sign bit, the grid has one zero.
    for (std::size_t s = 0;
         s < (std::is_same_v<TestType, Mx> || std::is_same_v<TestType, Nvfp4> ? 0 : stored.sections().size()); ++s)
      REQUIRE(std::equal(stored.sections()[s].data.bytes.begin(), stored.sections()[s].data.bytes.end(),
                         encoded.sections()[s].data.bytes.begin()));
    for (index_t r = 0; r < shape.rows; ++r)
      for (index_t j = 0; j < shape.cols; ++j) {
        const Grid grid = grids.grid(r, j / grids.group_size());
        const float down = grid.down(w(r, j)), up = grid.up(w(r, j)), near = grid.nearest(w(r, j));
        CAPTURE(r, j, w(r, j), down, near, up);
        REQUIRE((near == down || near == up));
        REQUIRE(down <= up);
        REQUIRE((down <= w(r, j) || down == up));
        REQUIRE((up >= w(r, j) || down == up));
        REQUIRE(grid.down(near) == near);
        REQUIRE(grid.up(near) == near);
      }
  }
}

TEMPLATE_TEST_CASE("what GPTQ chose is what the stored matrix decodes to, for any format and shape", "[quant]",
                   GroupInt, Mx, Bfp, Nf4, Nvfp4, Ternary, StatsQ) {
  for (const MatrixShape shape : {MatrixShape{3, 64}, {7, 75}, {1, 1}, {0, 32}, {4, 0}}) {
    const SyntheticLayer layer(shape, 90, 0.5f, 5);
    const TestType format;
    CAPTURE(shape.rows, shape.cols);
    FormatGrids<TestType> grids(fitted(format, layer.w(), {}), shape);
    std::vector<float> chosen(layer.weights.size());
    const MatrixView<float> q(chosen.data(), shape.rows, shape.cols);
    gptq(layer.w(), layer.h, grids, q);
    CHECK(decoded(grids.store(MatrixView<const float>(q))) == chosen);
    CHECK(decoded(round_gptq(format, layer.w(), layer.h)) == chosen);
    descend(layer.w(), layer.h, grids, q);
    CHECK(decoded(grids.store(MatrixView<const float>(q))) == chosen);
  }
}

namespace {

/// GPTQ, coordinate descent and AWQ on a format: what is stored is what was chosen, and the layer's error falls.
template <class F>
void check_rounding(const SyntheticLayer& layer, const F& format) {
  CAPTURE(format.scheme());
  const Execution one = test::one_thread().execution;
  test::Rounded<F> rounded(layer, format);
  const double plain = rounded.loss();
  descend(layer.w(), layer.h, rounded.grids, rounded.q(), {}, one);
  const double polished = rounded.loss();
  CHECK(rounded.stores_what_it_chose());
  gptq(layer.w(), layer.h, rounded.grids, rounded.q(), {}, one);
  const double by_gptq = rounded.loss();
  CHECK(rounded.stores_what_it_chose());
  CHECK(polished <= plain);
  CHECK(by_gptq < 0.9 * plain);
  // Groups fitted when their turn comes.
  GptqOptions refitted;
  refitted.act_order = refitted.static_groups = false;
  refitted.block = 40;
  gptq(layer.w(), layer.h, rounded.grids, rounded.q(), refitted, one);
  CHECK(rounded.stores_what_it_chose());
  CHECK(rounded.loss() < plain);
}

}  // namespace

TEST_CASE("rounding works on the grids of every block of ggml, whatever its scales and minimums", "[quant]") {
  const SyntheticLayer layer({test::budget<index_t>(7, 3), 300}, 400, 0.6f, 5);  // a super-block and a part of one
  for (const GgmlType type : Ggml::kTypes) {
    const Ggml format{type};
    check_rounding(layer, format);
    // With nothing but plain rounding: the values of the encoder, K-quants' codes of scale 0 aside.
    FormatGrids<Ggml> grids(format, layer.shape);
    std::vector<float> chosen(layer.weights.size());
    nearest(layer.w(), grids, {chosen.data(), layer.shape.rows, layer.shape.cols});
    const std::vector<float> encoded = decoded(QuantizedMatrix<Ggml>::encode(layer.w(), format));
    double different = 0;
    for (std::size_t i = 0; i < chosen.size(); ++i) different += chosen[i] != encoded[i] ? 1 : 0;
    CAPTURE(format.scheme(), different);
    CHECK(different <= 0.03 * static_cast<double>(chosen.size()));  // ggml takes codes before the scale is rounded
  }
}

TEST_CASE("rounding works on ternary grids and on those of StatsQ", "[quant]") {
  const SyntheticLayer layer({test::budget<index_t>(7, 3), 300}, 400, 0.6f, 6);
  for (const TernaryPacking packing : {TernaryPacking::two_bits, TernaryPacking::base3})
    for (const int group : {64, 256, Ternary::kRow, Ternary::kTensor})
      check_rounding(layer, Ternary{.group_size = group,
                                    .rule = group == Ternary::kTensor ? TernaryRule::mean : TernaryRule::threshold,
                                    .packing = packing});
  for (const int bits : {2, 3, 4}) check_rounding(layer, StatsQ{.bits = bits});
}

TEST_CASE("the near-threshold mask of any grid marks the weights around the middles of its values", "[quant]") {
  const auto marked = [](const auto& format, std::vector<float> weights, float band) {
    const MatrixView<const float> w(weights.data(), 1, static_cast<index_t>(weights.size()));
    FormatGrids grids(format, w.shape());
    std::vector<float> chosen(weights.size());
    nearest(w, grids, {chosen.data(), 1, w.cols()});
    std::vector<std::uint8_t> near(weights.size());
    near_threshold_mask(w, grids, band, {near.data(), 1, w.cols()});
    return near;
  };
  // int4 with step 1 (the signed maximum is -8), NF4 under scale 1 (levels 0 and 0.0796), beyond the last value: none.
  CHECK(marked(GroupInt{.bits = 4}, {-8.0f, 0.5f, 0.45f, 0.39f, 1.0f, 7.4f}, 0.1f) ==
        std::vector<std::uint8_t>{0, 1, 1, 0, 0, 0});
  CHECK(marked(Nf4{.block = 32}, {1.0f, 0.04f, 0.045f, 0.02f}, 0.1f) == std::vector<std::uint8_t>{0, 1, 1, 0});
  CHECK(marked(Mx{}, {6.0f, 5.0f, 4.1f, -1.24f}, 0.05f) == std::vector<std::uint8_t>{0, 1, 0, 1});
  const std::vector<float> weights(4);
  std::vector<std::uint8_t> near(4);
  FormatGrids grids(GroupInt{}, {1, 4});
  CHECK_THROWS_AS(near_threshold_mask({weights.data(), 1, 4}, grids, 0.6f, {near.data(), 1, 4}), ValueError);
  CHECK_THROWS_AS(near_threshold_mask({weights.data(), 1, 4}, grids, 0.1f, {near.data(), 2, 2}), ShapeError);
}

TEST_CASE("GPTQ and coordinate descent lower the loss of plain rounding by what is expected of them", "[quant]") {
  const EncodeOptions one = test::one_thread();
  for (const auto& [rho, bar] : {std::pair{0.3f, 0.8}, {0.9f, 0.25}})
    for (const auto& [bits, group] : {std::pair{4, 32}, {3, 64}}) {
      const SyntheticLayer layer({64, 256}, 1024, rho, 11);
      for (const GroupGrid grid : {GroupGrid::half_step, GroupGrid::signed_max, GroupGrid::asymmetric}) {
        if (grid != GroupGrid::half_step && bits == 3) continue;
        const GroupInt format{.bits = bits, .group_size = group, .grid = grid};
        CAPTURE(rho, format.scheme());
        const double plain = loss_of(layer, round_nearest(format, layer.w(), layer.h, {.sweeps = 0}, one));
        const double polished = loss_of(layer, round_nearest(format, layer.w(), layer.h, {}, one));
        const double by_gptq = loss_of(layer, round_gptq(format, layer.w(), layer.h, {}, {0}, one));
        const double both = loss_of(layer, round_gptq(format, layer.w(), layer.h, {}, {.sweeps = 4}, one));
        CHECK(polished < plain);
        CHECK(by_gptq <= bar * plain);
        CHECK(both <= by_gptq);
        GptqOptions refitted;
        refitted.act_order = refitted.static_groups = false;
        CHECK(loss_of(layer, round_gptq(format, layer.w(), layer.h, refitted, {0}, one)) <= (bar + 0.05) * plain);
      }
    }
}

TEST_CASE("rounding is the same for every number of threads and in place", "[quant]") {
  const SyntheticLayer layer({37, 150}, 300, 0.8f, 2);
  const GroupInt format{.bits = 3, .group_size = 32};
  EncodeOptions one;
  one.execution.threads = 1;
  const auto expected = decoded(round_gptq(format, layer.w(), layer.h, {}, {.sweeps = 3}, one));
  for (int threads = 2; threads <= 4; ++threads) {
    EncodeOptions several;
    several.execution.threads = threads;
    CHECK(decoded(round_gptq(format, layer.w(), layer.h, {}, {.sweeps = 3}, several)) == expected);
  }
  FormatGrids<GroupInt> grids(format, layer.shape);
  std::vector<float> values = layer.weights;
  const MatrixView<float> q(values.data(), layer.shape.rows, layer.shape.cols);
  gptq(MatrixView<const float>(q), layer.h, grids, q);
  CHECK(values == decoded(round_gptq(format, layer.w(), layer.h)));
}

TEST_CASE("GPTQ of a layer wider than the cache does not depend on threads and stays as good", "[quant]") {
  const SyntheticLayer layer(test::budget(MatrixShape{300, 600}, MatrixShape{20, 80}), test::budget(700, 100), 0.8f, 4);
  const GroupInt format{.bits = 3, .group_size = 32};
  EncodeOptions how;
  how.execution.threads = 1;
  const auto expected = round_gptq(format, layer.w(), layer.h, {}, {}, how);
  how.execution.threads = 3;
  CHECK(decoded(round_gptq(format, layer.w(), layer.h, {}, {}, how)) == decoded(expected));
  CHECK(loss_of(layer, expected) < 0.5 * loss_of(layer, QuantizedMatrix<GroupInt>::encode(layer.w(), format)));
}

TEST_CASE("GPTQ rounds dead columns to zero and survives a singular Hessian", "[quant]") {
  SyntheticLayer layer({6, 64}, 20, 0.5f, 4);  // fewer tokens than features
  GramMatrix h(64);
  std::vector<float> x = layer.inputs;
  for (std::size_t i = 5; i < x.size(); i += 64) x[i] = 0.0f;
  h.add({x.data(), 20, 64});
  GptqOptions options;
  options.damping = 0.0;
  options.layer = "blocks.3.q_proj";
  FormatGrids<GroupInt> grids({.bits = 4}, layer.shape);
  std::vector<float> q(layer.weights.size());
  const MatrixView<float> chosen(q.data(), 6, 64);
  const GptqReport report = gptq(layer.w(), h, grids, chosen, options);
  CHECK(report.damping > 0.0);
  for (index_t r = 0; r < 6; ++r) CHECK(chosen(r, 5) == 0.0f);
  options.damping_retries = 0;
  CHECK_THROWS_WITH(gptq(layer.w(), h, grids, chosen, options),
                    Catch::Contains("blocks.3.q_proj") && Catch::Contains("singular"));
  CHECK_THROWS_AS(gptq(layer.w(), h, grids, chosen, options), ValueError);
}

TEST_CASE("rounding refuses what does not fit and leaves no half answer", "[quant]") {
  SyntheticLayer layer({4, 32}, 40, 0.5f, 4);
  const GroupInt format;
  CHECK_THROWS_AS(round_gptq(format, layer.w(), GramMatrix(31)), ShapeError);
  CHECK_THROWS_AS(round_nearest(format, layer.w(), GramMatrix(31)), ShapeError);
  std::vector<float> importance(32, 1.0f);
  EncodeOptions encode;
  encode.importance = MatrixView<const float>(importance.data(), 1, 31);
  CHECK_THROWS_AS(round_gptq(format, layer.w(), layer.h, {}, {}, encode), ShapeError);
  CHECK_THROWS_WITH(QuantizedMatrix<GroupInt>::encode(layer.w(), format, encode),
                    "encode_rows: importance is 1x31, 1x32 or 4x32 needed");
  encode.importance = MatrixView<const float>(importance.data(), 2, 16);
  CHECK_THROWS_AS(QuantizedMatrix<GroupInt>::encode(layer.w(), format, encode), ShapeError);
  importance[7] = -1.0f;
  encode.importance = MatrixView<const float>(importance.data(), 1, 32);
  CHECK_THROWS_AS(round_gptq(format, layer.w(), layer.h, {}, {}, encode), ValueError);
  layer.weights[9] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(round_gptq(format, layer.w(), layer.h), "gptq: w is not finite at row 0, column 9");
  layer.weights[9] = 3e7f;  // a scale beyond fp16
  CHECK_THROWS_AS(round_gptq(format, layer.w(), layer.h), ValueError);
  encode = {};
  encode.non_finite = NonFinite::saturate;
  CHECK(decoded(round_gptq(format, layer.w(), layer.h, {}, {}, encode))[9] == 65504.0f * 8.0f);
}

TEST_CASE("every algorithm tells its progress, which never falls and ends at 1, and can be cancelled", "[quant]") {
  const auto check = [](const auto& round, int least_calls) {
    EncodeOptions encode = test::one_thread();
    double last = 0.0;
    int calls = 0;
    encode.execution.progress = [&](double fraction) {
      CHECK(fraction >= last);
      last = fraction;
      ++calls;
    };
    round(encode);
    CHECK(last == Approx(1.0).epsilon(1e-12));
    CHECK(calls >= least_calls);
    std::stop_source source;
    encode.execution.stop = source.get_token();
    encode.execution.progress = [&](double) { source.request_stop(); };
    CHECK_THROWS_AS(round(encode), CancelledError);
  };
  const GroupInt format;
  const SyntheticLayer wide({8, 300}, 320, 0.5f, 4);
  check([&](const EncodeOptions& e) { round_gptq(format, wide.w(), wide.h, {}, {0}, e); }, 3);
  // More rows than coordinate descent takes at once.
  const SyntheticLayer tall({1100, 32}, 40, 0.5f, 4);
  check([&](const EncodeOptions& e) { QuantizedMatrix<GroupInt>::encode(tall.w(), format, e); }, 2);
  check([&](const EncodeOptions& e) { round_gptq(format, tall.w(), tall.h, {}, {2}, e); }, 4);
  check([&](const EncodeOptions& e) { round_nearest(format, tall.w(), tall.h, {2}, e); }, 3);
  const SyntheticLayer small({6, 64}, 80, 0.5f, 4);
  FlexRoundOptions flex;
  flex.iterations = 8;
  check([&](const EncodeOptions& e) { round_flexround(format, small.w(), small.h, flex, {0}, e); }, 8);
  check([&](const EncodeOptions& e) { round_flexround(format, tall.w(), tall.h, flex, {2}, e); }, 20);
  DiscQuantOptions disc = layer_form_options();
  disc.steps = 8;
  disc.warmup = 2;
  check([&](const EncodeOptions& e) { round_discquant(format, small.w(), small.h, disc, {2}, e); }, 8);
  check([&](const EncodeOptions& e) { round_awq(format, small.w(), small.h, {.steps = 4}, {2}, e); }, 5);
}
