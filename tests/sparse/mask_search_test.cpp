// SPDX-License-Identifier: Apache-2.0
/// Mask search against all masks of small rows, and what must hold on larger layers.

#include <cmath>
#include <limits>
#include <vector>

#include "blockpack/quant/rounding.hpp"
#include "blockpack/sparse.hpp"
#include "quant/synthetic_layer.hpp"
#include "support/catch.hpp"

using namespace blockpack;
using Catch::Matchers::Contains;
using test::SyntheticLayer;

namespace {

struct Searched {
  std::vector<float> values;
  MaskSearchReport report;
  MatrixView<const float> view(MatrixShape shape) const { return {values.data(), shape.rows, shape.cols}; }
};

Searched search(const SyntheticLayer& layer, const Mask& start, index_t of, const MaskSearchOptions& options = {},
                int threads = 1) {
  Execution how;
  how.threads = threads;
  Searched s{layer.weights, {}};
  s.report = mask_search(layer.w(), layer.h, start, of,
                         MatrixView<float>(s.values.data(), layer.shape.rows, layer.shape.cols), options, how);
  return s;
}

double loss(const SyntheticLayer& layer, const std::vector<float>& q) {
  Execution how;
  how.threads = 1;
  return layer_loss(layer.w(), MatrixView<const float>(q.data(), layer.shape.rows, layer.shape.cols), layer.h, how);
}

/// The loss of row 0 under the mask, its weights refitted.
double refitted_loss(const SyntheticLayer& layer, const Mask& mask) {
  std::vector<float> q = layer.weights;
  refit(layer.w(), layer.h, mask, MatrixView<float>(q.data(), layer.shape.rows, layer.shape.cols), {1e-7, 4, {}});
  return loss(layer, q);
}

}  // namespace

TEST_CASE("no single exchange improves what the search returns", "[sparse]") {
  for (const float rho : {0.3f, 0.9f}) {
    const SyntheticLayer layer({1, 12}, 64, rho, 3);
    for (const index_t of : {index_t{4}, index_t{0}}) {
      CAPTURE(rho, of);
      const MaskPattern pattern = of == 4 ? MaskPattern::nm(2, 4) : MaskPattern::rows(0.5);
      const Mask start = prune_mask(layer.w(), magnitude(), pattern);
      MaskSearchOptions exact;
      exact.damping = 1e-7;
      const Searched found = search(layer, start, of, exact);
      const Mask& mask = found.report.mask;
      CHECK(mask.count() == start.count());
      if (of == 4) CHECK(mask.is_nm(2, 4));
      const double reached = refitted_loss(layer, mask);
      CHECK(loss(layer, found.values) == Approx(reached).epsilon(1e-4));
      CHECK(found.report.loss_after == Approx(reached).epsilon(1e-4));
      CHECK(reached <= refitted_loss(layer, start));
      for (index_t p = 0; p < 12; ++p)
        for (index_t r = 0; r < 12; ++r) {
          if (!mask(0, p) || mask(0, r) || (of == 4 && p / 4 != r / 4)) continue;
          Mask other = mask;
          other.set(0, p, false);
          other.set(0, r);
          CHECK(refitted_loss(layer, other) >= reached * (1 - 1e-4));
        }
    }
  }
}

TEST_CASE("the search beats SparseGPT with a refit and never ends above its start", "[sparse]") {
  for (const float rho : {0.3f, 0.9f}) {
    const SyntheticLayer layer({16, 96}, 256, rho, 4);
    CAPTURE(rho);
    std::vector<float> q(layer.weights.size());
    const MatrixView<float> view(q.data(), 16, 96);
    const Mask mask = sparsegpt(layer.w(), layer.h, MaskPattern::nm(2, 4), view).mask;
    refit(layer.w(), layer.h, mask, view);
    const double before = loss(layer, q);
    for (const index_t window : {index_t{512}, index_t{40}, index_t{4}}) {
      CAPTURE(window);
      MaskSearchOptions options;
      options.window = window;
      Searched found{q, {}};
      found.report = mask_search(layer.w(), layer.h, mask, 4, MatrixView<float>(found.values.data(), 16, 96), options);
      CHECK(found.report.mask.is_nm(2, 4));
      CHECK(found.report.loss_after <= found.report.loss_before * (1 + 1e-9));
      CHECK(loss(layer, found.values) <= before * (1 + 1e-3));
      if (window > 4) CHECK(found.report.swaps > 0);
      if (window == 512) CHECK(loss(layer, found.values) < 0.95 * before);
      for (index_t i = 0; i < 16; ++i)
        for (index_t j = 0; j < 96; ++j)
          if (!found.report.mask(i, j)) CHECK(found.values[static_cast<std::size_t>(i * 96 + j)] == 0.0f);
    }
  }
}

TEST_CASE("the search does not depend on threads, takes dead columns and names what is wrong", "[sparse]") {
  SyntheticLayer layer({9, 42}, 80, 0.9f, 5);
  const Mask start = prune_mask(layer.w(), wanda(layer.h), MaskPattern::nm(2, 4, Tail::short_group));
  const Searched one = search(layer, start, 4), four = search(layer, start, 4, {}, 4);
  CHECK(one.values == four.values);
  CHECK(one.report.mask == four.report.mask);

  AlignedBuffer<double> values(42 * 42);
  const MatrixView<double> h(values.data(), 42, 42);
  layer.h.copy_to(h);
  for (index_t j = 0; j < 42; ++j) h(3, j) = h(j, 3) = 0.0;
  layer.h = GramMatrix::from_values(MatrixView<const double>(h));
  const Searched dead = search(layer, start, 4);
  for (index_t i = 0; i < 9; ++i) CHECK(dead.values[static_cast<std::size_t>(i * 42 + 3)] == 0.0f);
  for (const float v : dead.values) CHECK(std::isfinite(v));

  MaskSearchOptions undamped;
  undamped.damping = 0;
  undamped.layer = "layers.7";
  for (index_t j = 0; j < 42; ++j) h(1, j) = h(0, j);
  for (index_t j = 0; j < 42; ++j) h(j, 1) = h(j, 0);
  layer.h = GramMatrix::from_values(MatrixView<const double>(h));
  CHECK_THROWS_WITH(search(layer, Mask({9, 42}, true), 4, undamped), Contains("singular") && Contains("'layers.7'"));
  CHECK_THROWS_AS(search(layer, Mask({9, 41}), 4), ShapeError);
  CHECK_THROWS_AS(search(layer, start, -1), ValueError);
  layer.weights[5] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(search(layer, start, 4), ValueError);
}
