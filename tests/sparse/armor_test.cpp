// SPDX-License-Identifier: Apache-2.0
/// ARMOR: the golden runs, and what holds for every fit.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <stop_token>
#include <string>
#include <vector>

#include "blockpack/core/compose.hpp"
#include "blockpack/sparse/n_m.hpp"
#include "blockpack/sparse/prune/armor.hpp"
#include "blockpack/sparse/prune/nowag.hpp"
#include "blockpack/structured/block_diagonal.hpp"
#include "sparse/golden_support.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;
using namespace blockpack::test;

namespace {

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0.0;
  for (std::size_t k = 0; k < a.size(); ++k) worst = std::max(worst, std::fabs(a[k] - b[k]));
  return worst;
}

/// A S B.
template <class T>
std::vector<double> dense(const ArmorFactors<T>& f) {
  const auto [out, in] = f.shape;
  std::vector<double> right(static_cast<std::size_t>(out * in)), w(right.size());
  for (index_t i = 0; i < out; ++i)
    for (index_t j = 0; j < in; ++j)
      for (index_t k = j / f.block.cols * f.block.cols, c = 0; c < f.block.cols; ++c)
        right[static_cast<std::size_t>(i * in + k + c)] +=
            static_cast<double>(f.core_view()(i, j)) * static_cast<double>(f.right_view()(j, c));
  for (index_t i = 0; i < out; ++i)
    for (index_t c = 0; c < f.block.rows; ++c)
      for (index_t j = 0; j < in; ++j)
        w[static_cast<std::size_t>(i * in + j)] +=
            static_cast<double>(f.left_view()(i, c)) *
            right[static_cast<std::size_t>((i / f.block.rows * f.block.rows + c) * in + j)];
  return w;
}

/// Weights and the importance of their inputs.
struct Layer {
  MatrixShape shape;
  std::vector<float> weights;
  std::vector<double> h;

  Layer(MatrixShape s, std::uint64_t seed) : shape(s), weights(random_weights(s.rows, s.cols, seed)) {
    Random random(seed, 7);
    for (index_t j = 0; j < s.cols; ++j) h.push_back(std::exp(static_cast<double>(random.normal())));
  }
  MatrixView<const float> w() const { return {weights.data(), shape.rows, shape.cols}; }
  std::vector<double> wide() const { return {weights.begin(), weights.end()}; }
};

ArmorOptions small_options(index_t d, index_t iterations) {
  ArmorOptions options;
  options.block = {d, d};
  options.iterations = iterations;
  options.adam.learning_rate = 1e-3;
  return options;
}

}  // namespace

TEST_CASE("ARMOR gives the starts, core steps and runs of the reference", "[sparse][golden]") {
  std::size_t count = 0;
  for (const nlohmann::json& c : golden_cases("sparsity")) {
    const std::string name = c.at("name");
    if (name.rfind("armor_", 0) != 0) continue;
    CAPTURE(name);
    ++count;
    const nlohmann::json& params = c.at("params");
    ArmorOptions options;
    options.block = {params.value("d_block_out", 8), params.value("d_block_in", 8)};
    options.keep = params.at("pattern_keep");
    options.of = params.at("pattern_of");
    options.choice = ArmorChoice::greedy;
    const auto h = array_of<double>(c, "inputs", "h");
    options.damping =
        1e-9 * static_cast<double>(h.values.size()) / std::accumulate(h.values.begin(), h.values.end(), 0.0);

    if (name.rfind("armor_core_step_", 0) == 0) {
      options.norm = params.at("select") == "gradient_L2_greedy" ? ArmorNorm::l2 : ArmorNorm::l1;
      const std::string init = "armor_init_" + name.substr(name.find('_', std::string("armor_core_step_").size()) + 1);
      const auto w = read_npy<double>(golden_folder("sparsity") + init + "__in_W.npy");
      ArmorFit<double> fit(w.view(), h.values, options, kSerial);
      const auto kept = array_of<std::uint8_t>(c, "inputs", "mask");
      ArmorFactors<double> point{{w.rows, w.cols},
                                 options.block,
                                 array_of<double>(c, "inputs", "A_blocks").values,
                                 array_of<double>(c, "inputs", "X").values,
                                 array_of<double>(c, "inputs", "B_blocks").values,
                                 Mask::of_nonzeros(kept.view())};
      fit.set_normalized(point, kSerial);
      CHECK(fit.loss() == Approx(array_of<double>(c, "outputs", "loss_before").values[0]).epsilon(1e-10));
      fit.core_step(fit.choose_groups(kSerial), kSerial);
      CHECK(fit.loss() == Approx(array_of<double>(c, "outputs", "loss_after").values[0]).epsilon(1e-8));
      const auto mask = array_of<std::uint8_t>(c, "outputs", "mask");
      point = fit.normalized();
      CHECK(point.mask == Mask::of_nonzeros(mask.view()));
      std::vector<double> x = array_of<double>(c, "outputs", "X").values;
      point.mask.apply(MatrixView<double>(x.data(), w.rows, w.cols));
      CHECK(largest_difference(point.core, x) <= 1e-8);
      continue;
    }

    const auto w = array_of<double>(c, "inputs", "W");
    if (name.rfind("armor_init_", 0) == 0) {
      const ArmorFit<double> fit(w.view(), h.values, options, kSerial);
      const NowagNorms norms = nowag_norms(w.view());
      CHECK(largest_difference(norms.column, array_of<double>(c, "outputs", "col_norm").values) <= 1e-10);
      CHECK(largest_difference(norms.row, array_of<double>(c, "outputs", "row_norm").values) <= 1e-10);
      const ArmorFactors<double> start = fit.normalized();
      const auto mask = array_of<std::uint8_t>(c, "outputs", "mask");
      CHECK(start.mask == Mask::of_nonzeros(mask.view()));
      const std::vector<double> wn = array_of<double>(c, "outputs", "W_normalized").values;
      std::vector<double> kept = wn;
      start.mask.apply(MatrixView<double>(kept.data(), w.rows, w.cols));
      CHECK(largest_difference(start.core, kept) <= 1e-10);
      CHECK(largest_difference(start.core, array_of<double>(c, "outputs", "core").values) <= 1e-10);
      CHECK(std::fabs(fit.loss() - array_of<double>(c, "outputs", "relative_loss").values[0]) <= 1e-10);
      continue;
    }

    options.adam = {params.at("lr"), params.at("adam").at("beta1"), params.at("adam").at("beta2"),
                    params.at("adam").at("eps")};
    options.iterations = params.at("n_iters");
    options.patience = 0;
    const std::vector<double> losses = array_of<double>(c, "outputs", "loss").values;
    const bool replay = params.at("select") == "gradient_all_random";
    GoldenArray<std::int64_t> groups;
    if (replay) groups = array_of<std::int64_t>(c, "inputs", "selected_group_per_block");
    ArmorFit<double> fit(w.view(), h.values, options, kSerial);
    CHECK(fit.loss() == Approx(losses[0]).epsilon(1e-10));
    for (index_t k = 0; k < options.iterations; ++k) {
      fit.continuous_step(kSerial);
      if (replay) {
        const std::vector<index_t> recorded(groups.view().row(k).begin(), groups.view().row(k).end());
        fit.core_step(recorded, kSerial);
      } else {
        fit.core_step(fit.choose_groups(kSerial), kSerial);
      }
      CHECK(fit.loss() == Approx(losses[static_cast<std::size_t>(k + 1)]).epsilon(1e-5));
    }
    const ArmorFactors<double> end = fit.normalized();
    CHECK(largest_difference(end.left, array_of<double>(c, "outputs", "A_blocks").values) <= 1e-5);
    CHECK(largest_difference(end.right, array_of<double>(c, "outputs", "B_blocks").values) <= 1e-5);
    std::vector<double> core = array_of<double>(c, "outputs", "core").values;
    const auto mask = array_of<std::uint8_t>(c, "outputs", "mask");
    CHECK(end.mask == Mask::of_nonzeros(mask.view()));
    end.mask.apply(MatrixView<double>(core.data(), w.rows, w.cols));
    CHECK(largest_difference(end.core, core) <= 1e-5);
    CHECK(largest_difference(dense(fit.factors()), array_of<double>(c, "outputs", "W_hat").values) <= 1e-5);
    if (!replay) {
      const ArmorResult<double> whole = armor(w.view(), h.values, options, kSerial);
      CHECK(whole.report.last() == fit.loss());
    }
  }
  REQUIRE(golden_complete(count, 15));
}

TEST_CASE("every step of ARMOR does what it promises", "[sparse][armor]") {
  const Layer layer({24, 64}, 3);
  for (const ArmorUpdate update : {ArmorUpdate::adam, ArmorUpdate::sequential})
    for (const MatrixShape pattern : {MatrixShape{2, 4}, {1, 4}, {4, 8}, {3, 16}, {1, 1}, {0, 2}}) {
      CAPTURE(static_cast<int>(update), pattern.rows, pattern.cols);
      ArmorOptions options = small_options(8, 0);
      options.block.cols = 16;
      options.keep = pattern.rows;
      options.of = pattern.cols;
      options.update = update;
      options.norm = ArmorNorm::max;
      const std::vector<double> wide = layer.wide();
      ArmorFit<double> fit(MatrixView<const double>(wide.data(), 24, 64), layer.h, options, kSerial);
      for (int k = 0; k < 12; ++k) {
        double before = fit.loss();
        fit.continuous_step(kSerial);
        if (update == ArmorUpdate::sequential) CHECK(fit.loss() <= before * (1.0 + 1e-14));
        before = fit.loss();
        fit.core_step(fit.choose_groups(kSerial), kSerial);
        CHECK(fit.loss() <= before);
      }
      // What is carried along by matrices of rank one is what the point says.
      const ArmorFactors<double> point = fit.normalized();
      CHECK(point.mask.is_nm(options.keep, options.of));
      CHECK(point.mask.count() == 24 * 64 / pattern.cols * pattern.rows);
      CHECK((Mask::of_nonzeros(point.core_view()) & ~point.mask).count() == 0);
      const double carried = fit.loss();
      fit.set_normalized(point, kSerial);
      CHECK(fit.loss() == Approx(carried).epsilon(1e-12).margin(1e-15));
    }
}

TEST_CASE("the best iterate of ARMOR is no worse than NoWag-P, and larger blocks are better", "[sparse][armor]") {
  const Layer layer({64, 64}, 5);
  const NowagNorms norms = nowag_norms(layer.w());
  const auto loss_of = [&](const std::vector<double>& w) {
    double error = 0.0, size = 0.0;
    for (index_t i = 0; i < 64; ++i)
      for (index_t j = 0; j < 64; ++j) {
        const double scale = norms.row[static_cast<std::size_t>(i)] * norms.column[static_cast<std::size_t>(j)];
        const double v = static_cast<double>(layer.w()(i, j)), h = layer.h[static_cast<std::size_t>(j)];
        error += h * std::pow((v - w[static_cast<std::size_t>(i * 64 + j)]) / scale, 2);
        size += h * std::pow(v / scale, 2);
      }
    return error / size;
  };
  double previous = 1.0;
  for (const index_t d : {4, 8, 16, 32}) {  // the engine from 8 on
    CAPTURE(d);
    const ArmorResult<float> result = armor(layer.w(), layer.h, small_options(d, budget(150, 60)), kSerial);
    CHECK(result.report.best() == *std::min_element(result.report.losses.begin(), result.report.losses.end()));
    CHECK(result.report.best() < result.report.start());
    CHECK(loss_of(dense(result.factors)) == Approx(result.report.best()).epsilon(1e-4));
    CHECK(result.report.best() < previous);
    previous = result.report.best();
  }
  // A rate with which Adam loses its way.
  ArmorOptions wild = small_options(8, 20);
  wild.adam.learning_rate = 1.0;
  const ArmorResult<float> lost = armor(layer.w(), layer.h, wild, kSerial);
  CHECK(lost.report.last() > lost.report.start());
  CHECK(lost.report.best() <= lost.report.start());
  CHECK(loss_of(dense(lost.factors)) == Approx(lost.report.best()).epsilon(1e-4));
}

TEST_CASE("ARMOR in float follows double, and depends on neither threads nor the scale of w and h", "[sparse][armor]") {
  const Layer layer({64, 96}, 6);
  const std::vector<double> wide = layer.wide();
  for (const ArmorUpdate update : {ArmorUpdate::adam, ArmorUpdate::sequential})
    for (const index_t d : {4, 16}) {
      CAPTURE(static_cast<int>(update), d);
      ArmorOptions options = small_options(d, 8);
      options.update = update;
      const ArmorResult<float> narrow = armor(layer.w(), layer.h, options, kSerial);
      const ArmorResult<double> exact = armor(MatrixView<const double>(wide.data(), 64, 96), layer.h, options, kSerial);
      CHECK(narrow.report.losses.size() == 9);
      // Draws near the border between two groups may differ.
      CHECK(narrow.report.best() == Approx(exact.report.best()).epsilon(0.01));
      CHECK(narrow.report.start() == Approx(exact.report.start()).epsilon(1e-5));
      Execution threads;
      threads.threads = 3;
      CHECK(armor(layer.w(), layer.h, options, threads).factors.core == narrow.factors.core);
      std::vector<double> h = layer.h, larger = wide;
      for (double& v : h) v *= 1e-9;
      for (double& v : larger) v *= 1024.0;
      const ArmorResult<double> scaled = armor(MatrixView<const double>(larger.data(), 64, 96), h, options, kSerial);
      CHECK(scaled.factors.mask == exact.factors.mask);
      CHECK(scaled.report.best() == Approx(exact.report.best()).epsilon(1e-4));
    }
}

TEST_CASE("the factors of ARMOR are what the operators take", "[sparse][armor]") {
  const Layer layer({24, 64}, 4);
  ArmorOptions options = small_options(8, 10);
  options.block.cols = 16;
  const ArmorFactors<float> f = armor(layer.w(), layer.h, options, kSerial).factors;
  using Core = NmMatrix<DenseFormat<float>>;
  const Compose op(
      BlockDiagonal::encode({24, 24}, f.left_view(), {.blocks = 3, .factors = FactorFormat::f32()}),
      Compose(Core::encode(f.core_view(), NmFormat<DenseFormat<float>>{}),
              BlockDiagonal::encode({64, 64}, f.right_view(), {.blocks = 4, .factors = FactorFormat::f32()})));
  const std::vector<double> expected = dense(f);
  std::vector<float> row(64);
  for (index_t i = 0; i < 24; ++i) {
    op.decode_rows(std::span(&i, 1), MatrixView<float>(row.data(), 1, 64));
    for (index_t j = 0; j < 64; ++j)
      CHECK(static_cast<double>(row[static_cast<std::size_t>(j)]) ==
            Approx(expected[static_cast<std::size_t>(i * 64 + j)]).epsilon(1e-4).margin(1e-6));
  }
}

TEST_CASE("ARMOR ends early, tells its progress and can be cancelled", "[sparse][armor]") {
  const Layer layer({16, 32}, 8);
  ArmorOptions options = small_options(8, 100000);
  options.adam.learning_rate = 1e-12;  // gets nowhere
  options.choice = ArmorChoice::greedy;
  options.patience = 5;
  const ArmorResult<float> result = armor(layer.w(), layer.h, options, kSerial);
  CHECK(result.report.losses.size() < 2000);
  options.iterations = 3;
  Execution how = kSerial;
  double told = 0.0;
  how.progress = [&](double fraction) { told = fraction; };
  armor(layer.w(), layer.h, options, how);
  CHECK(told == 1.0);
  std::stop_source source;
  how.stop = source.get_token();
  source.request_stop();
  CHECK_THROWS_AS(armor(layer.w(), layer.h, options, how), CancelledError);
}

TEST_CASE("ARMOR takes weights and importance without information", "[sparse][armor]") {
  Layer layer({16, 32}, 9);
  const ArmorOptions options = small_options(8, 4);
  std::fill(layer.h.begin(), layer.h.begin() + 8, 0.0);
  layer.h[9] = std::numeric_limits<double>::quiet_NaN();
  for (index_t i = 0; i < 8; ++i)
    for (index_t j = 0; j < 8; ++j) layer.weights[static_cast<std::size_t>(i * 32 + j)] = 0.0f;  // a block
  const ArmorResult<float> result = armor(layer.w(), layer.h, options, kSerial);
  CHECK(result.report.best() < result.report.start());
  for (float& v : layer.weights) v *= 1e-35f;
  CHECK(armor(layer.w(), layer.h, options, kSerial).report.last() <= 1.0);
  std::fill(layer.weights.begin(), layer.weights.end(), 0.0f);
  for (const ArmorUpdate update : {ArmorUpdate::adam, ArmorUpdate::sequential}) {
    ArmorOptions all = options;
    all.update = update;
    ArmorFit<float> fit(layer.w(), layer.h, all, kSerial);
    fit.continuous_step(kSerial);
    CHECK(fit.choose_groups(kSerial) == std::vector<index_t>(8, -1));
    const ArmorResult<float> zero = fit.run(kSerial);
    CHECK(zero.report.best() == 0.0);
    CHECK(std::all_of(zero.factors.core.begin(), zero.factors.core.end(), [](float v) { return v == 0.0f; }));
  }
  CHECK(armor(MatrixView<const float>(), {}, options, kSerial).report.best() == 0.0);
}

TEST_CASE("ARMOR refuses what does not fit", "[sparse][armor]") {
  Layer layer({16, 32}, 10);
  const auto refuse = [&](auto change) {
    ArmorOptions options = small_options(8, 4);
    change(options);
    return armor(layer.w(), layer.h, options, kSerial);
  };
  CHECK_THROWS_AS(refuse([](ArmorOptions& o) { o.block = {5, 8}; }), ShapeError);
  CHECK_THROWS_AS(refuse([](ArmorOptions& o) { o.block = {8, 24}; }), ShapeError);
  CHECK_THROWS_AS(refuse([](ArmorOptions& o) { o.block = {8, 0}; }), ShapeError);
  CHECK_THROWS_AS(refuse([](ArmorOptions& o) { o.of = 16; }), ShapeError);
  CHECK_THROWS_AS(refuse([](ArmorOptions& o) { o.of = 32; }), ValueError);
  CHECK_THROWS_AS(refuse([](ArmorOptions& o) { o.keep = 5; }), ValueError);
  CHECK_THROWS_AS(refuse([](ArmorOptions& o) { o.iterations = -1; }), ValueError);
  CHECK_THROWS_AS(refuse([](ArmorOptions& o) { o.adam.learning_rate = 0.0; }), ValueError);
  CHECK_THROWS_AS(armor(layer.w(), std::vector<double>(31), small_options(8, 4), kSerial), ShapeError);
  ArmorFit<float> fit(layer.w(), layer.h, small_options(8, 4), kSerial);
  std::vector<index_t> groups(8, 0);
  groups[3] = 16;
  CHECK_THROWS_AS(fit.core_step(groups, kSerial), ValueError);
  groups.pop_back();
  CHECK_THROWS_AS(fit.core_step(groups, kSerial), ShapeError);
  ArmorFactors<float> point = fit.normalized();
  point.mask = Mask(layer.shape, true);
  CHECK_THROWS_AS(fit.set_normalized(point, kSerial), ValueError);
  point = fit.normalized();
  point.right[5] = std::numeric_limits<float>::infinity();
  CHECK_THROWS_AS(fit.set_normalized(point, kSerial), ValueError);
  point.right.pop_back();
  CHECK_THROWS_AS(fit.set_normalized(point, kSerial), ShapeError);
  layer.weights[40] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(armor(layer.w(), layer.h, small_options(8, 4), kSerial), Catch::Contains("row 1, column 8"));
}

TEST_CASE("the table of ARMOR in docs/sparsity.md", "[.][armor_table]") {
  if (std::getenv("BLOCKPACK_TABLE") == nullptr) return;  // a measurement, not a test
  const Layer layer({128, 256}, 1);
  const auto row = [&](const char* name, index_t d, auto change) {
    ArmorOptions options = small_options(d, 2500);
    options.patience = 0;
    change(options);
    const std::vector<double> losses = armor(layer.w(), layer.h, options, kSerial).report.losses;
    std::printf("| %s, blocks of %td | %.4f | %.4f | %.4f | %.4f |\n", name, d, losses[0], losses[100], losses[500],
                losses[2500]);
  };
  for (const index_t d : {4, 8, 16, 32}) row("adam, sampled", d, [](ArmorOptions&) {});
  row("adam, greedy", 16, [](ArmorOptions& o) { o.choice = ArmorChoice::greedy; });
  row("adam at 1e-4, sampled", 16, [](ArmorOptions& o) { o.adam.learning_rate = 1e-4; });
  row("sequential, sampled", 16, [](ArmorOptions& o) { o.update = ArmorUpdate::sequential; });
  row("sequential, greedy", 16, [](ArmorOptions& o) {
    o.update = ArmorUpdate::sequential;
    o.choice = ArmorChoice::greedy;
  });
}
