// SPDX-License-Identifier: Apache-2.0
/// Properties of the pruning algorithms on layers with correlated inputs.

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <Eigen/LU>
#include <cmath>
#include <limits>
#include <vector>

#include "blockpack/quant/rounding.hpp"
#include "blockpack/sparse.hpp"
#include "quant/synthetic_layer.hpp"
#include "sparse/golden_support.hpp"
#include "support/catch.hpp"

using namespace blockpack;
using test::kSerial;
using test::SyntheticLayer;

namespace {

/// Pruned weights of a layer.
struct Pruned {
  std::vector<float> values;
  MatrixShape shape;
  explicit Pruned(MatrixShape s) : values(static_cast<std::size_t>(s.rows * s.cols)), shape(s) {}
  Pruned(const SyntheticLayer& layer, const Mask& mask) : values(layer.weights), shape(layer.shape) {
    mask.apply(view());
  }
  MatrixView<float> view() { return {values.data(), shape.rows, shape.cols}; }
  double loss(const SyntheticLayer& layer) {
    return layer_loss(layer.w(), MatrixView<const float>(view()), layer.h, kSerial);
  }
};

std::vector<MaskPattern> patterns() {
  return {MaskPattern::nm(2, 4),
          MaskPattern::nm(1, 4),
          MaskPattern::nm(4, 8),
          MaskPattern::nm(8, 16),
          MaskPattern::layer(0.5),
          MaskPattern::rows(0.5),
          MaskPattern::columns(0.5),
          MaskPattern::blocks({4, 1}, 0.5),
          MaskPattern::blocks({1, 16}, 0.5),
          MaskPattern::blocks({16, 8}, 0.5),
          MaskPattern::blocks({4, 4}, 0.5, true)};
}

ColumnStats column_stats(const SyntheticLayer& layer) {
  ColumnStats stats(layer.shape.cols);
  stats.add(layer.x());
  return stats;
}

/// The least squares of one row in double.
std::vector<double> solved_row(const SyntheticLayer& layer, const Mask& mask, index_t row) {
  std::vector<index_t> kept;
  for (index_t j = 0; j < layer.shape.cols; ++j)
    if (mask(row, j)) kept.push_back(j);
  const auto k = static_cast<Eigen::Index>(kept.size());
  Eigen::MatrixXd a(k, k);
  Eigen::VectorXd b(k);
  for (Eigen::Index i = 0; i < k; ++i) {
    const index_t c = kept[static_cast<std::size_t>(i)];
    for (Eigen::Index j = 0; j < k; ++j) a(i, j) = layer.h(c, kept[static_cast<std::size_t>(j)]);
    b(i) = 0;
    for (index_t j = 0; j < layer.shape.cols; ++j) b(i) += layer.h(c, j) * static_cast<double>(layer.w()(row, j));
  }
  const Eigen::VectorXd x = a.llt().solve(b);
  std::vector<double> values(static_cast<std::size_t>(layer.shape.cols));
  for (Eigen::Index i = 0; i < k; ++i) values[static_cast<std::size_t>(kept[static_cast<std::size_t>(i)])] = x(i);
  return values;
}

}  // namespace

TEST_CASE("the output error falls from magnitude to Wanda to SparseGPT, and the refit lowers each", "[sparse]") {
  const SyntheticLayer layer({48, 160}, 512, 0.8f, 1);
  const ColumnStats stats = column_stats(layer);
  for (const MaskPattern& p : patterns()) {
    CAPTURE(static_cast<int>(p.scope), p.keep, p.of, p.block.rows, p.block.cols, p.per_block_row);
    double previous = std::numeric_limits<double>::infinity();
    for (const Criterion& criterion : {magnitude(), wanda(stats)}) {
      const Mask mask = prune_mask(layer.w(), criterion, p);
      CHECK(mask.density() == Approx(p.density).margin(0.01));
      Pruned pruned(layer, mask);
      const double loss = pruned.loss(layer);
      // In a column all weights have the same input.
      CHECK((p.scope == MaskScope::column ? loss <= previous : loss < previous));
      previous = loss;
      const RefitReport report = refit(layer.w(), layer.h, mask, pruned.view(), {}, kSerial);
      CHECK(report.loss_before == Approx(loss).epsilon(1e-4));
      CHECK(report.loss_after == Approx(pruned.loss(layer)).epsilon(1e-4));
      CHECK(report.loss_after < report.loss_before);
    }
    Pruned q(layer.shape);
    SparseGptReport report = sparsegpt(layer.w(), layer.h, p, q.view(), {}, nullptr, kSerial);
    CHECK(report.mask.density() == Approx(p.density).margin(0.01));
    CHECK((Mask::of_nonzeros(q.view()) & ~report.mask).count() == 0);
    if (p.scope == MaskScope::group) CHECK(report.mask.is_nm(p.keep, p.of));
    if (p.scope == MaskScope::block) CHECK(report.mask.is_blocks(p.block));
    CHECK(q.loss(layer) < previous);
    CHECK(q.loss(layer) <= 1.001 * report.loss);  // which is of the damped objective
    refit(layer.w(), layer.h, report.mask, q.view(), {}, kSerial);
    CHECK(q.loss(layer) < report.loss);
    // The other criteria serve every pattern as well.
    for (const Criterion& criterion : {nowag(layer.w(), stats), second_order(layer.h, {}, kSerial)})
      CHECK(prune_mask(layer.w(), criterion, p).density() == Approx(p.density).margin(0.01));
  }
}

TEST_CASE("the second-order score is w² over the squared diagonal of the factor", "[sparse]") {
  const SyntheticLayer layer({2, 24}, 128, 0.5f, 2);
  const Criterion criterion = second_order(layer.h);
  Eigen::MatrixXd h(24, 24);
  for (index_t i = 0; i < 24; ++i)
    for (index_t j = 0; j < 24; ++j) h(i, j) = layer.h(i, j) / layer.h.mean_diagonal() + (i == j ? 0.01 : 0.0);
  const Eigen::MatrixXd u = Eigen::MatrixXd(h.inverse()).llt().matrixU();
  for (index_t j = 0; j < 24; ++j)
    CHECK(criterion.column[static_cast<std::size_t>(j)] == Approx(1.0 / u(j, j)).epsilon(1e-4));
}

TEST_CASE("blocks of 4x1 can be decided column by column", "[sparse]") {
  const SyntheticLayer layer({32, 64}, 256, 0.8f, 3);
  Pruned q(layer.shape);
  SparseGptOptions options;
  options.block = 1;
  const SparseGptReport report =
      sparsegpt(layer.w(), layer.h, MaskPattern::blocks({4, 1}, 0.5), q.view(), options, nullptr, kSerial);
  CHECK(report.mask.is_blocks({4, 1}));
  for (const index_t count : report.mask.column_counts()) CHECK(count == 16);
}

TEST_CASE("SparseGPT in float and in double agree, whatever the group, block and number of rows", "[sparse]") {
  const SyntheticLayer layer({21, 150}, 400, 0.5f, 4);
  const std::vector<double> wide(layer.weights.begin(), layer.weights.end());
  for (const MaskPattern& p : {MaskPattern::nm(2, 4, Tail::short_group), MaskPattern::nm(3, 7, Tail::short_group),
                               MaskPattern::nm(20, 40, Tail::short_group), MaskPattern::layer(0.3),
                               MaskPattern::columns(0.6), MaskPattern::blocks({4, 3}, 0.5)})
    for (const index_t block : {index_t{50}, index_t{128}}) {
      CAPTURE(static_cast<int>(p.scope), p.of, block);
      SparseGptOptions options;
      options.block = block;
      Pruned q(layer.shape);
      std::vector<double> exact(wide.size());
      const SparseGptReport report = sparsegpt(layer.w(), layer.h, p, q.view(), options, nullptr, kSerial);
      const SparseGptReport expected = sparsegpt(MatrixView<const double>(wide.data(), 21, 150), layer.h, p,
                                                 MatrixView<double>(exact.data(), 21, 150), options, nullptr, kSerial);
      CHECK(report.mask == expected.mask);
      CHECK(report.loss == Approx(expected.loss).epsilon(1e-3));
      for (std::size_t i = 0; i < exact.size(); ++i) CHECK(std::fabs(double{q.values[i]} - exact[i]) < 1e-4);
    }
}

TEST_CASE("SparseGPT does not depend on the number of threads and may write over the weights", "[sparse]") {
  const SyntheticLayer layer({300, 96}, 200, 0.5f, 5);
  Execution one, two;
  one.threads = 1;
  two.threads = 2;
  for (const MaskPattern& p : {MaskPattern::nm(2, 4), MaskPattern::layer(0.5)}) {
    Pruned a(layer.shape), b(layer, Mask(layer.shape, true));
    const SparseGptReport first = sparsegpt(layer.w(), layer.h, p, a.view(), {}, nullptr, one);
    const SparseGptReport second = sparsegpt(MatrixView<const float>(b.view()), layer.h, p, b.view(), {}, nullptr, two);
    CHECK(a.values == b.values);
    CHECK(first.mask == second.mask);
    CHECK(first.loss == second.loss);
  }
}

TEST_CASE("joint quantization puts kept weights on the grids of any format", "[sparse]") {
  const SyntheticLayer layer({16, 64}, 256, 0.5f, 6);
  FormatGrids<GroupInt> integers({.bits = 4, .group_size = 32}, layer.shape);
  FormatGrids<Mx> floats({.element = MxElement::e2m1}, layer.shape);
  for (WeightGrids* grids : {static_cast<WeightGrids*>(&integers), static_cast<WeightGrids*>(&floats)})
    for (const MaskPattern& p : {MaskPattern::nm(2, 4), MaskPattern::layer(0.5)}) {
      Pruned joint(layer.shape), after(layer.shape);
      const SparseGptReport report = sparsegpt(layer.w(), layer.h, p, joint.view(), {}, grids, kSerial);
      for (index_t i = 0; i < 16; ++i)
        for (index_t j = 0; j < 64; ++j) {
          const float v = joint.view()(i, j);
          CHECK((report.mask(i, j) ? grids->grid(i, j / 32).nearest(v) == v : v == 0.0f));
        }
      // Pruned first and rounded to the nearest afterwards, on the same grids.
      sparsegpt(layer.w(), layer.h, p, after.view(), {}, nullptr, kSerial);
      for (index_t i = 0; i < 16; ++i)
        for (index_t j = 0; j < 64; ++j)
          after.view()(i, j) = after.view()(i, j) == 0.0f ? 0.0f : grids->grid(i, j / 32).nearest(after.view()(i, j));
      CHECK(joint.loss(layer) < after.loss(layer));
    }
}

TEST_CASE("dead inputs, all-zero weights and Hessians of zero are pruned without trouble", "[sparse]") {
  SyntheticLayer layer({8, 32}, 100, 0.5f, 7);
  for (index_t t = 0; t < layer.tokens; ++t) layer.inputs[static_cast<std::size_t>(t * 32 + 5)] = 0.0f;
  GramMatrix dead(32), zero(32);
  dead.add(layer.x());
  Pruned q(layer.shape);
  for (const GramMatrix* h : {&dead, &zero})
    for (const MaskPattern& p : {MaskPattern::nm(2, 4), MaskPattern::layer(0.5)}) {
      const SparseGptReport report = sparsegpt(layer.w(), *h, p, q.view());
      CHECK(report.mask.density() == 0.5);
      for (index_t i = 0; i < 8; ++i) CHECK(q.view()(i, 5) == 0.0f);
      Pruned start(layer, report.mask);
      const std::vector<float> before = start.values;
      const RefitReport refitted = refit(layer.w(), *h, report.mask, start.view());
      CHECK(refitted.loss_after <= refitted.loss_before);
      if (h == &zero) CHECK(start.values == before);
      for (index_t i = 0; i < 8; ++i) CHECK(start.view()(i, 5) == before[static_cast<std::size_t>(i * 32 + 5)]);
    }
  const std::vector<float> zeros(8 * 32);
  const MatrixView<const float> w(zeros.data(), 8, 32);
  const SparseGptReport report = sparsegpt(w, layer.h, MaskPattern::nm(2, 4), q.view());
  CHECK(q.values == zeros);
  CHECK(report.loss == 0.0);
  CHECK(refit(w, layer.h, report.mask, q.view()).loss_after == 0.0);
  CHECK(prune_mask(w, nowag(w, column_stats(layer)), MaskPattern::layer(0.5)).density() == 0.5);
  for (const MatrixShape shape : {MatrixShape{0, 32}, MatrixShape{8, 0}}) {
    const GramMatrix h(shape.cols);
    const MatrixView<float> none(nullptr, shape.rows, shape.cols);
    CHECK(sparsegpt(MatrixView<const float>(none), h, MaskPattern::layer(0.5), none).mask.shape() == shape);
    CHECK(refit(none, h, Mask(shape), none).loss_after == 0.0);
  }
}

TEST_CASE("a singular Hessian is damped more and then refused by the name of the layer", "[sparse]") {
  const SyntheticLayer few({4, 32}, 5, 0.5f, 8);  // 5 tokens: rank 5
  Pruned q(few.shape);
  SparseGptOptions options;
  options.damping = 0.0;
  options.layer = "blocks.3.up";
  const SparseGptReport report = sparsegpt(few.w(), few.h, MaskPattern::nm(2, 4), q.view(), options);
  CHECK(report.damping >= 1e-5);
  options.damping_retries = 0;
  CHECK_THROWS_WITH(sparsegpt(few.w(), few.h, MaskPattern::nm(2, 4), q.view(), options),
                    Catch::Contains("sparsegpt") && Catch::Contains("'blocks.3.up'") && Catch::Contains("singular"));
  CHECK_THROWS_WITH(second_order(few.h, options), Catch::Contains("'blocks.3.up'"));
  Pruned start(few, report.mask);
  const RefitReport refitted = refit(few.w(), few.h, report.mask, start.view());
  CHECK(refitted.damping >= 1e-5);
  CHECK(refitted.loss_after < refitted.loss_before);
  RefitOptions strict;
  strict.damping_retries = 0;
  strict.layer = "blocks.3.up";
  CHECK_THROWS_WITH(refit(few.w(), few.h, report.mask, start.view(), strict),
                    Catch::Contains("refit") && Catch::Contains("'blocks.3.up'"));
}

TEST_CASE("the refit is the least squares of the kept weights and shares factorizations", "[sparse]") {
  const SyntheticLayer layer({24, 96}, 400, 0.9f, 9);
  struct Case {
    MaskPattern pattern;
    index_t factorizations;
  };
  for (const Case& c : {Case{MaskPattern::nm(2, 4), 24}, Case{MaskPattern::blocks({8, 4}, 0.5), 3},
                        Case{MaskPattern::columns(1.0), 1}}) {
    const Mask mask = prune_mask(layer.w(), wanda(layer.h), c.pattern);
    Pruned q(layer, mask);
    q.values[0] += 1.0f;  // any start
    const RefitReport report = refit(layer.w(), layer.h, mask, q.view());
    CHECK(report.factorizations == c.factorizations);
    CHECK(report.rows_left == 0);
    CHECK((Mask::of_nonzeros(q.view()) & ~mask).count() == 0);
    Pruned exact(layer.shape);
    for (index_t i = 0; i < layer.shape.rows; ++i) {
      const std::vector<double> row = solved_row(layer, mask, i);
      for (index_t j = 0; j < layer.shape.cols; ++j) {
        exact.view()(i, j) = static_cast<float>(row[static_cast<std::size_t>(j)]);
        CHECK(q.view()(i, j) == Approx(row[static_cast<std::size_t>(j)]).margin(1e-4));
      }
    }
    CHECK(q.loss(layer) == Approx(exact.loss(layer)).epsilon(1e-4).margin(1e-8 * report.loss_before));
    // At the minimum nothing gets worse.
    const double loss = q.loss(layer);
    CHECK(refit(layer.w(), layer.h, mask, q.view()).loss_after <= 1.00001 * loss + 1e-12 * report.loss_before);
  }
}

TEST_CASE("pruning refuses shapes, weights and options that do not fit", "[sparse]") {
  const SyntheticLayer layer({8, 30}, 100, 0.5f, 10);
  Pruned q(layer.shape);
  const Mask mask(layer.shape, true);
  CHECK_THROWS_WITH(sparsegpt(layer.w(), layer.h, MaskPattern::nm(2, 4), q.view()),
                    Catch::Contains("sparsegpt: 30 columns are not a multiple of 4"));
  CHECK_THROWS_AS(sparsegpt(layer.w(), layer.h, MaskPattern::nm(40, 80, Tail::short_group), q.view()), ValueError);
  CHECK_THROWS_AS(sparsegpt(layer.w(), layer.h, MaskPattern::blocks({16, 1}, 0.5), q.view()), ShapeError);
  CHECK_THROWS_AS(sparsegpt(layer.w(), GramMatrix(29), MaskPattern::layer(0.5), q.view()), ShapeError);
  CHECK_THROWS_AS(sparsegpt(layer.w(), layer.h, MaskPattern::layer(0.5), q.view().rows_from(0, 7)), ShapeError);
  SparseGptOptions options;
  options.block = 0;
  CHECK_THROWS_AS(sparsegpt(layer.w(), layer.h, MaskPattern::layer(0.5), q.view(), options), ValueError);
  options = {};
  options.damping = -1.0;
  CHECK_THROWS_AS(sparsegpt(layer.w(), layer.h, MaskPattern::layer(0.5), q.view(), options), ValueError);
  FormatGrids<GroupInt> grids({.bits = 4}, {8, 31});
  CHECK_THROWS_AS(sparsegpt(layer.w(), layer.h, MaskPattern::layer(0.5), q.view(), {}, &grids), ShapeError);
  CHECK_THROWS_AS(refit(layer.w(), layer.h, Mask({8, 31}), q.view()), ShapeError);
  CHECK_THROWS_AS(refit(layer.w(), GramMatrix(31), mask, q.view()), ShapeError);
  std::vector<float> bad = layer.weights;
  bad[35] = std::numeric_limits<float>::infinity();
  const MatrixView<float> infinite(bad.data(), 8, 30);
  CHECK_THROWS_WITH(sparsegpt(infinite, layer.h, MaskPattern::layer(0.5), q.view()),
                    Catch::Contains("row 1, column 5"));
  CHECK_THROWS_AS(refit(infinite, layer.h, mask, q.view()), ValueError);
  CHECK_THROWS_AS(refit(layer.w(), layer.h, mask, infinite), ValueError);
  CHECK_THROWS_AS(nowag<float>(layer.w(), std::vector<double>(29)), ShapeError);
}

TEST_CASE("pruning can be cancelled and tells its progress", "[sparse]") {
  const SyntheticLayer layer({16, 64}, 100, 0.5f, 11);
  Pruned q(layer.shape);
  std::stop_source source;
  Execution how;
  double told = 0.0;
  how.progress = [&](double fraction) {
    CHECK(fraction >= told);
    told = fraction;
  };
  const SparseGptReport report = sparsegpt(layer.w(), layer.h, MaskPattern::layer(0.5), q.view(), {}, nullptr, how);
  CHECK(told == 1.0);
  told = 0.0;
  refit(layer.w(), layer.h, report.mask, q.view(), {}, how);
  CHECK(told == 1.0);
  how = {};
  how.stop = source.get_token();
  source.request_stop();
  CHECK_THROWS_AS(sparsegpt(layer.w(), layer.h, MaskPattern::layer(0.5), q.view(), {}, nullptr, how), CancelledError);
  CHECK_THROWS_AS(refit(layer.w(), layer.h, report.mask, q.view(), {}, how), CancelledError);
}
