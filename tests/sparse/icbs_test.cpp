// SPDX-License-Identifier: Apache-2.0
/// iCBS: the golden steps in both variants, and what holds for every run.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include "blockpack/sparse/prune/icbs.hpp"
#include "blockpack/sparse/prune/refit.hpp"
#include "quant/synthetic_layer.hpp"
#include "sparse/golden_support.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"

using namespace blockpack;
using namespace blockpack::test;

namespace {

/// Mean cross entropy of the logits x wᵀ.
struct Classifier {
  std::vector<float> w;
  index_t classes;
  GoldenArray<float> x;
  std::vector<std::int64_t> labels;

  MatrixView<float> view() { return {w.data(), classes, x.cols}; }
  /// Gradient of one sample by the logits; its loss.
  double logit_gradient(index_t s, std::vector<double>& g) const {
    g.assign(static_cast<std::size_t>(classes), 0.0);
    for (index_t c = 0; c < classes; ++c)
      for (index_t j = 0; j < x.cols; ++j)
        g[static_cast<std::size_t>(c)] +=
            static_cast<double>(w[static_cast<std::size_t>(c * x.cols + j)]) * static_cast<double>(x.view()(s, j));
    double sum = 0.0;
    const double largest = *std::max_element(g.begin(), g.end());
    for (double& v : g) sum += v = std::exp(v - largest);
    for (double& v : g) v /= sum;
    double& own = g[static_cast<std::size_t>(labels[static_cast<std::size_t>(s)])];
    const double loss = -std::log(own);
    own -= 1.0;
    return loss;
  }
  double loss() const {
    double sum = 0.0;
    std::vector<double> g;
    for (index_t s = 0; s < x.rows; ++s) sum += logit_gradient(s, g) / static_cast<double>(x.rows);
    return sum;
  }
  IcbsModel model() {
    IcbsModel m;
    m.local = [this](std::size_t, Coordinates block, std::span<double> mean, MatrixView<double> h) {
      std::vector<float> samples;
      std::vector<double> g;
      for (index_t s = 0; s < x.rows; ++s) {
        logit_gradient(s, g);
        for (const index_t k : block)
          samples.push_back(static_cast<float>(g[static_cast<std::size_t>(k / x.cols)] *
                                               static_cast<double>(x.view()(s, k % x.cols))));
      }
      empirical_fisher(MatrixView<const float>(samples.data(), x.rows, static_cast<index_t>(block.size())), mean, h);
    };
    m.gradient = [this](std::size_t, MatrixView<float> mean) {
      std::vector<double> g, sum(w.size());
      for (index_t s = 0; s < x.rows; ++s) {
        logit_gradient(s, g);
        for (std::size_t k = 0; k < sum.size(); ++k)
          sum[k] += g[k / static_cast<std::size_t>(x.cols)] *
                    static_cast<double>(x.view()(s, static_cast<index_t>(k) % x.cols)) / static_cast<double>(x.rows);
      }
      for (std::size_t k = 0; k < sum.size(); ++k)
        mean(static_cast<index_t>(k) / x.cols, static_cast<index_t>(k) % x.cols) = static_cast<float>(sum[k]);
    };
    return m;
  }
};

IcbsScore score_of(const std::string& name) {
  return name == "wanda" ? IcbsScore::wanda : name == "gradient" ? IcbsScore::gradient : IcbsScore::magnitude;
}

std::vector<double> column_norms(MatrixView<const float> x) {
  std::vector<double> norms(static_cast<std::size_t>(x.cols()));
  for (index_t s = 0; s < x.rows(); ++s)
    for (index_t j = 0; j < x.cols(); ++j)
      norms[static_cast<std::size_t>(j)] += std::pow(static_cast<double>(x(s, j)), 2);
  for (double& v : norms) v = std::sqrt(v);
  return norms;
}

/// A layer and its iCBS by the output error.
struct LayerRun {
  SyntheticLayer layer;
  std::vector<float> w;
  IcbsModel model;

  LayerRun(MatrixShape shape, std::uint64_t seed) : layer(shape, 128, 0.8f, seed), w(layer.weights) {
    model = icbs_layer_model(view(), layer.h);
  }
  MatrixView<float> view() { return {w.data(), layer.shape.rows, layer.shape.cols}; }
  Icbs start(const IcbsOptions& options) { return Icbs({{view(), column_norms(layer.x())}}, model, options, kSerial); }
};

IcbsOptions small_options() {
  IcbsOptions options;
  options.block = 20;
  options.pruned = 10;
  options.gradient = 1.0;
  options.ridge = 0.0;
  options.tabu = options.fix_pruned = options.fix_kept = 0.2;
  options.passes = 2;
  options.steps = 6;
  options.min_steps = 1;
  options.annealing.restarts = 2;
  return options;
}

}  // namespace

TEST_CASE("iCBS takes the steps of the reference, with its cutoff and with the one that is meant", "[sparse][golden]") {
  std::size_t count = 0;
  for (const nlohmann::json& c : golden_cases("sparsity")) {
    const std::string name = c.at("name");
    if (name.rfind("icbs_", 0) != 0) continue;
    CAPTURE(name);
    ++count;
    const nlohmann::json& params = c.at("params");
    const auto w = array_of<float>(c, "inputs", "W");
    Classifier classifier{w.values, w.rows, array_of<float>(c, "inputs", "X"),
                          array_of<std::int64_t>(c, "inputs", "y").values};
    IcbsOptions options;
    options.pattern = MaskPattern::layer(params.at("density"));
    options.start = score_of(params.at("init"));
    options.choice = score_of(params.at("selection"));
    options.block = params.at("block_size");
    options.pruned = params.at("k");
    options.gradient = params.at("grad_multiplier");
    options.ridge = params.at("ridge_multiplier");
    options.tabu = params.at("tabu_frac");
    options.fix_pruned = params.at("fix_frac_prune");
    options.fix_kept = params.at("fix_frac_keep");
    options.compat = params.at("negative_Q_zeroed");
    Icbs icbs({{classifier.view(), column_norms(classifier.x.view())}}, classifier.model(), options, kSerial);
    CHECK(classifier.w == array_of<float>(c, "outputs", "W_init").values);

    const auto blocks = array_of<std::int64_t>(c, "outputs", "block_indices");
    const auto q = array_of<float>(c, "outputs", "Q_scaled"), after = array_of<float>(c, "outputs", "W_after");
    const auto hessian = array_of<float>(c, "outputs", "hess_block"),
               gradient = array_of<float>(c, "outputs", "grad_block");
    const std::vector<double> changes = array_of<double>(c, "outputs", "dL_model").values;
    const std::vector<double> reported = array_of<double>(c, "outputs", "dL_reported").values;
    const nlohmann::json& tolerance = c.at("tolerance");
    const double q_rel = tolerance.at("Q_rel"), hess_rel = tolerance.at("hess_rel");
    const double change_abs = tolerance.at("dL_model_abs");
    // Element by element; the manifest has no tolerance for the gradient, that of the Hessian holds for it.
    const auto compare = [](const std::vector<double>& ours, const std::vector<float>& all, index_t t, double rel) {
      for (std::size_t k = 0; k < ours.size(); ++k) {
        const auto e = static_cast<double>(all[static_cast<std::size_t>(t) * ours.size() + k]);
        CHECK(std::fabs(ours[k] - e) <= rel * std::fabs(e));
      }
    };
    for (index_t t = 0; t < params.at("n_steps"); ++t) {
      CAPTURE(t);
      const auto expected = blocks.view().row(t);
      const std::vector<index_t> block(expected.begin(), expected.end());
      std::vector<double> before, dw, g(block.size()), h(block.size() * block.size());
      for (const index_t k : block) {
        before.push_back(static_cast<double>(classifier.w[static_cast<std::size_t>(k)]));
        dw.push_back(before.back() - static_cast<double>(w.values[static_cast<std::size_t>(k)]));
      }
      classifier.model().local(0, block, g, MatrixView<double>(h.data(), blocks.cols, blocks.cols));
      compare(g, gradient.values, t, hess_rel);
      compare(h, hessian.values, t, hess_rel);

      const IcbsStep step = icbs.step(0, kSerial);
      CHECK(step.block == block);
      compare(step.quadratic.q, q.values, t, q_rel);
      const auto begin = after.values.begin() + t * static_cast<index_t>(w.values.size());
      CHECK(classifier.w == std::vector<float>(begin, begin + static_cast<index_t>(w.values.size())));
      CHECK(std::fabs(step.change - changes[static_cast<std::size_t>(t)]) <= change_abs);
      // What the reference prints has 1/2 Σ H_ij dw_j² for 1/2 dwᵀH dw in its constant, and no ridge.
      double printed = step.quadratic.constant;
      for (std::size_t i = 0; i < block.size(); ++i) {
        const auto now = static_cast<double>(classifier.w[static_cast<std::size_t>(block[i])]);
        printed -= options.ridge * std::pow(now - before[i], 2);
        for (std::size_t j = 0; j < block.size(); ++j) {
          const std::size_t ij = i * block.size() + j;
          printed += 0.5 * h[ij] * (dw[j] - dw[i]) * dw[j];
          if (step.pruned[i] != 0 && step.pruned[j] != 0) printed += step.quadratic.unit * step.quadratic.q[ij];
        }
      }
      CHECK(std::fabs(printed - reported[static_cast<std::size_t>(t)]) <= change_abs);
      if (!options.compat) CHECK(step.change <= 0.0);
    }
  }
  REQUIRE(golden_complete(count, 8));
}

TEST_CASE("the local model of iCBS is the change of the loss where that is quadratic", "[sparse][icbs]") {
  LayerRun run({6, 10}, 1);
  IcbsOptions options = small_options();
  options.ridge = 0.01;
  Icbs icbs = run.start(options);
  const std::vector<index_t> block = {3, 17, 11, 18, 40, 44};
  std::vector<double> original, current, g(6), h(36);
  for (const index_t k : block) {
    original.push_back(static_cast<double>(run.layer.weights[static_cast<std::size_t>(k)]));
    current.push_back(static_cast<double>(run.w[static_cast<std::size_t>(k)]));
  }
  run.model.local(0, block, g, MatrixView<double>(h.data(), 6, 6));
  const IcbsQuadratic quadratic =
      icbs_quadratic(original, current, g, MatrixView<const double>(h.data(), 6, 6), options);
  const double before = run.model.loss();
  const std::vector<float> w = run.w;
  for (unsigned bits = 0; bits < 64; ++bits) {
    double model = quadratic.constant, ridge = 0.0;
    for (unsigned i = 0; i < 6; ++i) {
      const bool prune = (bits >> i & 1) != 0;
      run.w[static_cast<std::size_t>(block[i])] = prune ? 0.0f : run.layer.weights[static_cast<std::size_t>(block[i])];
      ridge += options.ridge * std::pow(static_cast<double>(run.w[static_cast<std::size_t>(block[i])]) - current[i], 2);
      for (unsigned j = 0; j < 6; ++j)
        if (prune && (bits >> j & 1) != 0) model += quadratic.unit * quadratic.q[i * 6 + j];
    }
    CHECK(model == Approx(run.model.loss() - before + ridge).margin(1e-9 * before));
  }
  run.w = w;
  // Its gradient is that of the loss.
  std::vector<float> all(60);
  run.model.gradient(0, MatrixView<float>(all.data(), 6, 10));
  for (unsigned i = 0; i < 6; ++i)
    CHECK(static_cast<double>(all[static_cast<std::size_t>(block[i])]) == Approx(g[i]).epsilon(1e-5).margin(1e-6));
}

TEST_CASE("iCBS lowers the loss, keeps densities and gives weights back bit for bit", "[sparse][icbs]") {
  for (const IcbsScore choice : {IcbsScore::random, IcbsScore::magnitude, IcbsScore::gradient, IcbsScore::wanda})
    for (const MaskPattern& pattern : {MaskPattern::layer(0.5), MaskPattern::rows(0.25), MaskPattern::columns(0.5)}) {
      CAPTURE(static_cast<int>(choice), static_cast<int>(pattern.scope));
      LayerRun run({16, 24}, 2);
      run.w[5] = run.layer.weights[5] = -0.0f;
      IcbsOptions options = small_options();
      options.choice = choice;
      options.start = IcbsScore::wanda;
      options.pattern = pattern;
      Icbs icbs = run.start(options);
      const index_t kept = icbs.mask(0).count();
      double loss = run.model.loss();
      for (int t = 0; t < 5; ++t) {
        const IcbsStep step = icbs.step(0, kSerial);
        CHECK(std::set<index_t>(step.block.begin(), step.block.end()).size() == step.block.size());
        CHECK(step.change <= 1e-12 * loss);
        CHECK(run.model.loss() == Approx(loss + step.change).margin(1e-6 * loss));
        loss = run.model.loss();
      }
      const IcbsReport report = icbs.run(kSerial);
      CHECK(report.losses.front() == loss);
      CHECK(run.model.loss() <= loss);
      const Mask mask = icbs.mask(0);
      CHECK(mask.count() == kept);
      if (pattern.scope == MaskScope::group) CHECK(mask.is_nm(pattern.keep, pattern.of));
      for (index_t k = 0; k < 16 * 24; ++k) {
        const auto at = static_cast<std::size_t>(k);
        const float expected = mask(k / 24, k % 24) ? run.layer.weights[at] : 0.0f;
        CHECK(std::bit_cast<std::uint32_t>(run.w[at]) == std::bit_cast<std::uint32_t>(expected));
      }
    }
}

TEST_CASE("iCBS ends well below Wanda on correlated inputs", "[sparse][icbs]") {
  LayerRun run({32, 32}, 3);
  IcbsOptions options = small_options();
  options.start = IcbsScore::wanda;
  options.block = 128;
  options.pruned = 64;
  options.fix_pruned = options.fix_kept = 0.0;
  options.passes = budget(3, 2);
  options.steps = 12;
  Icbs icbs = run.start(options);
  const IcbsReport report = icbs.run(kSerial);
  CHECK(report.losses.back() < 0.8 * report.losses.front());
  CHECK(std::accumulate(report.changes.begin(), report.changes.end(), report.losses.front()) ==
        Approx(report.losses.back()).epsilon(1e-4));
}

TEST_CASE("weights at rest, fixed ones and layers smaller than a block", "[sparse][icbs]") {
  LayerRun run({8, 10}, 4);
  IcbsOptions options = small_options();
  options.tabu = 0.5;  // 32 of the 64 in the game
  options.block = 16;
  options.pruned = 8;
  Icbs icbs = run.start(options);
  const IcbsStep first = icbs.step(0, kSerial), second = icbs.step(0, kSerial);
  for (const index_t k : second.block) CHECK(std::find(first.block.begin(), first.block.end(), k) == first.block.end());
  options.block = 200;
  options.pruned = 100;
  LayerRun whole({8, 10}, 4);
  Icbs all = whole.start(options);
  for (int t = 0; t < 2; ++t) CHECK(all.step(0, kSerial).block.size() == 64);
}

TEST_CASE("weights without effect are pruned without being asked", "[sparse][icbs]") {
  std::vector<float> w = {1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 6.0f};
  IcbsModel model;
  model.local = [](std::size_t, Coordinates block, std::span<double> g, MatrixView<double> h) {
    for (std::size_t i = 0; i < block.size(); ++i) {
      g[i] = block[i] == 5 ? 0.0 : 0.1;
      for (std::size_t j = 0; j < block.size(); ++j)
        h(static_cast<index_t>(i), static_cast<index_t>(j)) = i == j && block[i] != 5 ? 1.0 : 0.0;
    }
  };
  IcbsOptions options = small_options();
  options.fix_kept = options.fix_pruned = 0.0;
  options.choice = IcbsScore::magnitude;
  options.remove_zero_rows = true;
  options.ridge = 1.0;
  Icbs icbs({{MatrixView<float>(w.data(), 2, 3), {}}}, model, options, kSerial);
  CHECK(w == std::vector<float>{0, 0, 0, 4, 5, 6});
  icbs.step(0, kSerial);
  CHECK(w == std::vector<float>{1, 0, 0, 4, 5, 0});  // of the others the one that costs least comes back
}

TEST_CASE("a pass that does not lower the held-out loss is taken back", "[sparse][icbs]") {
  LayerRun run({8, 16}, 5);
  IcbsOptions options = small_options();
  options.passes = 3;
  std::vector<double> told = {10.0, 9.0, 9.5, 8.0};
  std::vector<std::vector<float>> seen;
  int batches = 0;
  run.model.loss = [&] {
    seen.push_back(run.w);
    return told[seen.size() - 1];
  };
  run.model.next_batch = [&] { ++batches; };
  Icbs icbs = run.start(options);
  const IcbsReport report = icbs.run(kSerial);
  CHECK(report.losses == told);
  CHECK(report.accepted == std::vector<bool>{true, false, true});
  CHECK(batches == 1 + 3 * 6);
  CHECK(run.w == seen.back());
  told.assign(4, 10.0);
  seen.clear();
  const std::vector<float> before = run.w;
  CHECK(icbs.run(kSerial).accepted == std::vector<bool>(3, false));
  CHECK(run.w == before);
}

TEST_CASE("the schedule of iCBS gives each layer its steps", "[sparse][icbs]") {
  Random random(1);
  const std::vector<index_t> sizes = {10, 1000, 100000};
  const std::vector<std::size_t> order = icbs_schedule(sizes, 91, 3, random);
  CHECK(order.size() == 91);
  CHECK(std::count(order.begin(), order.end(), 0) == 10);  // of 10.1, 30.3 and 50.6
  CHECK(std::count(order.begin(), order.end(), 2) == 51);
  CHECK_FALSE(std::is_sorted(order.begin(), order.end()));
  const std::vector<std::size_t> least = icbs_schedule(sizes, 30, 10, random);
  for (std::size_t l = 0; l < 3; ++l) CHECK(std::count(least.begin(), least.end(), l) == 10);
  CHECK_THROWS_AS(icbs_schedule(sizes, 29, 10, random), ValueError);
  CHECK(icbs_schedule({}, 5, 1, random).empty());
}

TEST_CASE("iCBS refuses what does not fit", "[sparse][icbs]") {
  LayerRun run({8, 16}, 6);
  const auto refuse = [&](auto change) {
    IcbsOptions options = small_options();
    IcbsModel model = run.model;
    change(options, model);
    Icbs({{run.view(), {}}}, model, options, kSerial);
  };
  using O = IcbsOptions;
  using M = IcbsModel;
  CHECK_THROWS_AS(refuse([](O& o, M&) { o.block = 0; }), ValueError);
  CHECK_THROWS_AS(refuse([](O& o, M&) { o.pruned = 21; }), ValueError);
  CHECK_THROWS_AS(refuse([](O& o, M&) { o.pruned = -1; }), ValueError);
  CHECK_THROWS_AS(refuse([](O& o, M&) { o.tabu = 1.5; }), ValueError);
  CHECK_THROWS_AS(refuse([](O& o, M&) { o.fix_kept = -0.1; }), ValueError);
  CHECK_THROWS_AS(refuse([](O& o, M&) { o.ridge = -1.0; }), ValueError);
  CHECK_THROWS_AS(refuse([](O& o, M&) { o.pattern = MaskPattern::blocks({4, 1}, 0.5); }), ValueError);
  CHECK_THROWS_AS(refuse([](O& o, M&) {
                    o.pattern = MaskPattern::nm(2, 4);
                    o.remove_zero_rows = true;
                  }),
                  ValueError);
  CHECK_THROWS_AS(refuse([](O& o, M&) { o.pattern = MaskPattern::layer(1.5); }), ValueError);
  CHECK_THROWS_AS(refuse([](O& o, M&) { o.choice = IcbsScore::wanda; }), ShapeError);
  CHECK_THROWS_AS(refuse([](O&, M& m) { m.local = nullptr; }), ValueError);
  CHECK_THROWS_AS(refuse([](O&, M& m) { m.gradient = nullptr; }), ValueError);
  CHECK_THROWS_AS(icbs_layer_model(run.view(), GramMatrix(15)), ShapeError);
  std::vector<double> two(2), four(4);
  const MatrixView<double> h(four.data(), 2, 2);
  CHECK_THROWS_AS(empirical_fisher(MatrixView<const float>(run.w.data(), 2, 3), two, h), ShapeError);
  CHECK_THROWS_AS(empirical_fisher(MatrixView<const float>(run.w.data(), 0, 2), two, h), ShapeError);
  CHECK_THROWS_AS(icbs_quadratic(two, four, two, h, {}), ShapeError);

  Icbs icbs = run.start(small_options());
  CHECK_THROWS_AS(icbs.step(1, kSerial), ValueError);
  std::stop_source source;
  source.request_stop();
  Execution stopped = kSerial;
  stopped.stop = source.get_token();
  CHECK_THROWS_AS(icbs.run(stopped), CancelledError);
  double nan = std::numeric_limits<double>::quiet_NaN();
  IcbsModel bad = run.model;
  bad.local = [&](std::size_t, Coordinates, std::span<double> g, MatrixView<double>) { g[0] = nan; };
  Icbs broken({{run.view(), {}}}, bad, small_options(), kSerial);
  const std::vector<float> before = run.w;
  CHECK_THROWS_AS(broken.step(0, kSerial), ValueError);
  CHECK(run.w == before);
  run.w[3] = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH(run.start(small_options()), Catch::Contains("row 0, column 3"));
}

TEST_CASE("the figures of iCBS in docs/sparsity.md", "[.][icbs_table]") {
  if (std::getenv("BLOCKPACK_TABLE") == nullptr) return;  // a measurement, not a test
  for (const float rho : {0.3f, 0.9f})
    for (const MaskPattern& pattern : {MaskPattern::layer(0.5), MaskPattern::layer(0.2), MaskPattern::nm(2, 4)}) {
      const SyntheticLayer layer({64, 256}, 1024, rho, 1);
      std::vector<float> w = layer.weights;
      const MatrixView<float> view(w.data(), 64, 256);
      const IcbsModel model = icbs_layer_model(view, layer.h);
      IcbsOptions options = small_options();
      options.pattern = pattern;
      options.start = IcbsScore::wanda;
      options.tabu = 0.4;
      options.fix_pruned = options.fix_kept = 0.0;
      options.block = 1024;
      options.pruned = 512;
      options.passes = 10;
      options.steps = 20;
      Icbs icbs({{view, column_norms(layer.x())}}, model, options);
      std::vector<float> q = w;
      const double wanda_refit =
          refit(layer.w(), layer.h, icbs.mask(0), MatrixView<float>(q.data(), 64, 256)).loss_after / model.loss();
      std::printf("rho %.1f, %s %.1f, over Wanda after each pass of %td steps:", static_cast<double>(rho),
                  pattern.scope == MaskScope::group ? "2:4" : "layer", pattern.density, options.steps);
      const IcbsReport report = icbs.run();
      for (const double loss : report.losses) std::printf(" %.3f", loss / report.losses.front());
      std::printf(", refit %.3f (Wanda's %.3f)",
                  refit(layer.w(), layer.h, icbs.mask(0), view).loss_after / report.losses.front(), wanda_refit);
      std::printf("\n");
    }
}
