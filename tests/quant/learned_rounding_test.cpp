// SPDX-License-Identifier: Apache-2.0
/// FlexRound and DiscQuant: the pieces against the references' automatic differentiation, the whole against plain
/// rounding.

#include <cmath>
#include <string>
#include <vector>

#include "blockpack/quant/ggml_grid.hpp"
#include "blockpack/quant/rounding.hpp"
#include "quant/golden_cases.hpp"
#include "quant/rounded.hpp"
#include "quant/synthetic_layer.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"

namespace {

using namespace blockpack;
using test::decoded;
using test::FloatScales;
using test::loss_of;
using test::SyntheticLayer;

/// Every element within `tolerance` times the largest magnitude of the expected ones.
void check_close(const std::vector<float>& got, const std::vector<float>& expected, double tolerance) {
  REQUIRE(got.size() == expected.size());
  double largest = 0.0, worst = 0.0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    worst = std::max(worst, std::abs(static_cast<double>(got[i]) - static_cast<double>(expected[i])));
  }
  CAPTURE(worst, largest);
  CHECK(worst <= tolerance * largest);
}

}  // namespace

TEST_CASE("FlexRound gives the start, the values, the loss and the gradients of the reference", "[quant][golden]") {
  std::size_t count = 0;
  for (const test::GoldenCase& c : test::cases_of("flexround")) {
    CAPTURE(c.id);
    REQUIRE(!c.params.at("symmetric").get<bool>());
    const int bits = c.params.at("bits");
    const bool per_row = c.params.at("per_row"), search = c.params.at("mse_clip_search");
    const auto w = c.array<float>("w"), x = c.array<float>("x");
    const auto log_s2 = c.array<float>("log_s2"), log_s3 = c.array<float>("log_s3");
    const auto scales = c.array<float>("s1_init"), zeros = c.array<float>("zero_point");
    const auto start = c.array<float>("w_hat_init"), learned = c.array<float>("w_hat");
    const std::vector<float> nothing(static_cast<std::size_t>(w.cols), 0.0f);
    const auto group_of = [&](index_t r, bool at_start) {
      const auto values = per_row ? w.view().row(r) : std::span<const float>(w.values);
      const GroupParameters p = flexround_range(values, bits, search);
      const std::size_t at = per_row ? static_cast<std::size_t>(r) : 0;
      CHECK(p.scale == Approx(scales.values[at]).epsilon(1e-6));
      CHECK(static_cast<float>(p.zero_point) == zeros.values[at]);
      const Grid grid(-p.zero_point, (1 << bits) - 1 - p.zero_point, p.scale);
      return FlexRoundGroup{grid, w.view().row(r), at_start ? std::span<const float>(nothing) : log_s2.view().row(r),
                            at_start ? 0.0f : log_s3.values[static_cast<std::size_t>(r)]};
    };
    GramMatrix h(w.cols);
    h.add(x.view());
    std::vector<float> w_hat(w.values.size()), g_log_s2(w.values.size()), g_log_s1, g_log_s3;
    const MatrixView<float> view(w_hat.data(), w.rows, w.cols), gradient(g_log_s2.data(), w.rows, w.cols);
    for (index_t r = 0; r < w.rows; ++r) group_of(r, true).forward(view.row(r));
    check_close(w_hat, start.values, 1e-6);
    for (index_t r = 0; r < w.rows; ++r) group_of(r, false).forward(view.row(r));
    check_close(w_hat, learned.values, 1e-6);
    const auto tokens = static_cast<double>(x.rows);
    CHECK(layer_loss(w.view(), view, h) / tokens == Approx(c.array<float>("loss").values[0]).epsilon(1e-5));
    double tensor_s1 = 0.0;
    for (index_t r = 0; r < w.rows; ++r) {
      std::vector<float> g(static_cast<std::size_t>(w.cols));
      for (index_t j = 0; j < w.cols; ++j) {
        double sum = 0.0;
        for (index_t i = 0; i < w.cols; ++i)
          sum += (static_cast<double>(view(r, i)) - static_cast<double>(w.view()(r, i))) * h(i, j);
        g[static_cast<std::size_t>(j)] = static_cast<float>(2.0 * sum / tokens);
      }
      double s1 = 0.0, s3 = 0.0;
      group_of(r, false).backward(g, gradient.row(r), s1, s3);
      tensor_s1 += s1;
      g_log_s1.push_back(static_cast<float>(s1));
      g_log_s3.push_back(static_cast<float>(s3));
    }
    if (!per_row) g_log_s1 = {static_cast<float>(tensor_s1)};
    check_close(g_log_s2, c.array<float>("g_log_s2").values, 1e-4);
    check_close(g_log_s1, c.array<float>("g_log_s1").values, 1e-4);
    check_close(g_log_s3, c.array<float>("g_log_s3").values, 1e-4);
    ++count;
  }
  REQUIRE(test::golden_complete(count, 3));
}

TEST_CASE("DiscQuant gives the neighbours, gradients and first step of the reference", "[quant][golden]") {
  std::size_t count = 0;
  for (const test::GoldenCase& c : test::cases_of("discquant_pieces")) {
    CAPTURE(c.id);
    const auto w = c.array<float>("w"), x = c.array<float>("x_samples"), x0 = c.array<float>("x0");
    const int group = c.params.at("group");
    FloatScales grids({.bits = c.params.at("bits"),
                       .group_size = group == -1 ? 0 : group,
                       .grid = c.params.at("symmetric").get<bool>() ? GroupGrid::half_step : GroupGrid::asymmetric},
                      {w.rows, w.cols});
    GramMatrix h(w.cols);
    h.add(x.view());
    DiscQuantOptions options;
    options.warmup = 0;
    options.learning_rate = c.params.at("lr");
    options.rho = c.params.at("rho");
    options.clamp = c.params.at("clamp");
    const DiscQuant::Layer layer{w.view(), &grids};
    DiscQuant run(std::span(&layer, 1), options);
    const auto values = [&](MatrixView<const float> m) {
      return std::vector<float>(m.data(), m.data() + w.values.size());
    };
    check_close(values(run.down(0)), c.array<float>("grid_down").values, 2e-4);
    check_close(values(run.up(0)), c.array<float>("grid_up").values, 2e-4);
    std::vector<float> y, linear;
    for (index_t r = 0; r < w.rows; ++r)
      for (index_t j = 0; j < w.cols; ++j) {
        y.push_back(run.interpolation(0, r, j));
        linear.push_back(2.0f * y.back() - 1.0f);
      }
    check_close(y, c.array<float>("y").values, 2e-4);
    check_close(linear, c.array<float>("c").values, 2e-4);
    CHECK(run.delta2() == Approx(c.array<float>("delta2").values[0]).epsilon(2e-4));
    std::copy(x0.values.begin(), x0.values.end(), run.x(0).data());
    std::vector<float> by_x(w.values.size());
    const LayerGradients gradients = layer_gradients(w.view(), h);
    const double loss =
        run.step([&](std::span<const MatrixView<const float>> weights, std::span<const MatrixView<float>> out) {
          const double value = gradients(weights, out);
          for (std::size_t i = 0; i < by_x.size(); ++i)
            by_x[i] = out[0].data()[i] * (run.up(0).data()[i] - run.down(0).data()[i]);
          return value;
        });
    CHECK(loss == Approx(c.array<float>("loss").values[0]).epsilon(2e-4));
    for (float& g : by_x) g = static_cast<float>(static_cast<double>(g) / run.delta2());
    check_close(by_x, c.array<float>("grad_loss").values, 2e-4);
    check_close(values(run.gradient(0)), c.array<float>("grad_total").values, 2e-4);
    check_close(values(run.x(0)), c.array<float>("x1").values, 2e-4);
    ++count;
  }
  REQUIRE(test::golden_complete(count, 2));
}

TEST_CASE("FlexRound and DiscQuant beat plain rounding on a synthetic layer", "[quant]") {
  for (const float rho : {0.3f, 0.9f}) {
    if (test::small_budget() && rho < 0.5f) continue;
    const SyntheticLayer layer({8, 128}, 512, rho, 21);
    const GroupInt format{.bits = 3, .group_size = 64, .grid = GroupGrid::half_step};
    const double plain = loss_of(layer, round_nearest(format, layer.w(), layer.h, {.sweeps = 0}));
    FlexRoundOptions flex;
    flex.iterations = 300;
    EncodeOptions encode;
    encode.execution.threads = 1;  // many small steps
    const double learned = loss_of(layer, round_flexround(format, layer.w(), layer.h, flex, {0}, encode));
    const DiscQuantOptions layer_form = layer_form_options();
    const double disc = loss_of(layer, round_discquant(format, layer.w(), layer.h, layer_form, {0}, encode));
    const double polished = loss_of(layer, round_discquant(format, layer.w(), layer.h, layer_form, {4}, encode));
    CAPTURE(rho, plain, learned, disc, polished);
    CHECK(learned < (rho < 0.5f ? 0.85 : 0.5) * plain);
    CHECK(disc < plain);
    CHECK(polished <= disc);
  }
}

namespace {

/// Few steps of both on a format: what is stored is what was chosen, and FlexRound is no worse than its start.
template <class F>
void check_learned(const SyntheticLayer& layer, const F& format) {
  CAPTURE(format.scheme());
  const Execution one = test::one_thread().execution;
  test::Rounded<F> rounded(layer, format);
  const double plain = rounded.loss();
  FlexRoundOptions flex;
  flex.iterations = test::budget(40, 10);
  flexround(layer.w(), layer.h, rounded.grids, rounded.q(), flex, one);
  CHECK(rounded.stores_what_it_chose());
  CHECK(rounded.loss() <= 1.00001 * plain);
  DiscQuantOptions disc = layer_form_options();
  disc.steps = test::budget(40, 20);
  discquant(layer.w(), layer.h, rounded.grids, rounded.q(), disc, one);
  CHECK(rounded.stores_what_it_chose());
}

}  // namespace

TEST_CASE("learned rounding stores what it chose on every kind of grid, whether or not its scales can change",
          "[quant]") {
  const SyntheticLayer layer({5, 75}, 200, 0.7f, 8);
  check_learned(layer, GroupInt{});
  check_learned(layer, Mx{});
  check_learned(layer, Nf4{.block = 32});
  check_learned(layer, Nvfp4{});
  check_learned(layer, Ternary{.group_size = 64});
  check_learned(layer, StatsQ{.bits = 3});
  for (const GgmlType type : {GgmlType::iq4_nl, GgmlType::q4_1, GgmlType::q4_k, GgmlType::q2_k, GgmlType::mxfp4})
    check_learned(layer, Ggml{type});
}

TEST_CASE("FlexRound and DiscQuant do what is expected of them on a layer of 64 x 256", "[quant][slow]") {
  struct Expected {
    float rho;
    int bits, group;
    double flexround, discquant, polished;
  };
  for (const Expected& e : {Expected{0.3f, 4, 32, 1.0, 1.0, 0.75},
                            {0.3f, 3, 64, 0.8, 1.0, 0.75},
                            {0.9f, 4, 32, 0.45, 0.75, 0.3},
                            {0.9f, 3, 64, 0.35, 0.75, 0.3}}) {
    const SyntheticLayer layer({64, 256}, 1024, e.rho, 11);
    const GroupInt format{.bits = e.bits, .group_size = e.group, .grid = GroupGrid::half_step};
    const EncodeOptions one = test::one_thread();
    const double plain = loss_of(layer, round_nearest(format, layer.w(), layer.h, {.sweeps = 0}, one));
    const double flex = loss_of(layer, round_flexround(format, layer.w(), layer.h, {}, {0}, one));
    const double disc = loss_of(layer, round_discquant(format, layer.w(), layer.h, layer_form_options(), {0}, one));
    const double both = loss_of(layer, round_discquant(format, layer.w(), layer.h, layer_form_options(), {4}, one));
    CAPTURE(e.rho, format.scheme(), flex / plain, disc / plain, both / plain);
    CHECK(flex < e.flexround * plain);
    CHECK(disc < e.discquant * plain);
    CHECK(both < e.polished * plain);
  }
}

TEST_CASE("DiscQuant takes the gradients of a model of several layers", "[quant]") {
  const SyntheticLayer first({4, 64}, 100, 0.5f, 1), second({6, 32}, 100, 0.5f, 2);
  FormatGrids<GroupInt> a({.bits = 3}, first.shape), b({.bits = 3}, second.shape);
  DiscQuantOptions options;
  options.steps = 3;
  const std::vector<DiscQuant::Layer> layers = {{first.w(), &a}, {second.w(), &b}};
  DiscQuant run(layers, options);
  while (!run.done())
    CHECK(run.step([&](std::span<const MatrixView<const float>> weights, std::span<const MatrixView<float>> gradients) {
      REQUIRE(weights.size() == 2);
      REQUIRE(gradients[1].shape() == second.shape);
      for (std::size_t layer = 0; layer < 2; ++layer)
        for (index_t r = 0; r < weights[layer].rows(); ++r)
          for (index_t j = 0; j < weights[layer].cols(); ++j) gradients[layer](r, j) = 0.0f;
      return 7.0;
    }) == 7.0);
  std::vector<float> q(second.weights.size());
  run.round(1, {q.data(), 6, 32});
  for (index_t r = 0; r < 6; ++r)
    for (index_t j = 0; j < 32; ++j) {
      const float value = q[static_cast<std::size_t>(r * 32 + j)];
      CHECK((value == run.down(1)(r, j) || value == run.up(1)(r, j)));
    }
  CHECK_THROWS_AS(run.round(0, {q.data(), 6, 32}), ShapeError);
  options.steps = 0;
  CHECK_THROWS_AS(DiscQuant(layers, options), ValueError);
}
