// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numbers>

#include "blockpack/quant/rounding.hpp"
#include "blockpack/solve/adam.hpp"
#include "quant/hessian.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

/// Rows that are learned at once: they are independent.
constexpr index_t kRows = 512;

/// Whether rounding u is rounding to a neighbour and not clipping.
bool covers(const Grid& grid, float u) {
  const float low = grid.lowest_unit(), high = grid.highest_unit();
  return u >= low - 0.5f * (grid.neighbour_unit(low, 1) - low) &&
         u <= high + 0.5f * (high - grid.neighbour_unit(high, -1));
}

/// Adam's step of an iteration, counted from 0; the learning rate falls along a cosine.
Adam<float> adam_step(double learning_rate, int iteration, int iterations) {
  const double falling =
      0.5 * learning_rate * (1.0 + std::cos(std::numbers::pi * iteration / static_cast<double>(iterations)));
  return {{.learning_rate = falling, .epsilon = 1e-12}, iteration + 1};
}

/// A parameter with its moments.
struct Learned {
  float value = 0.0f, m = 0.0f, v = 0.0f;
};

}  // namespace

void FlexRoundGroup::forward(std::span<float> w_hat) const {
  for (std::size_t i = 0; i < w.size(); ++i) w_hat[i] = grid.nearest(w[i] * std::exp(-(log_s2[i] + log_s3)));
}

void FlexRoundGroup::backward(std::span<const float> g, std::span<float> g_log_s2, double& g_log_s1,
                              double& g_log_s3) const {
  const bool empty = grid.scale() == 0.0f;
  for (std::size_t i = 0; i < w.size(); ++i) {
    g_log_s2[i] = 0.0f;
    if (empty) continue;
    const float u = grid.in_units(w[i] * std::exp(-(log_s2[i] + log_s3)));
    const bool moves = covers(grid, u);
    g_log_s2[i] = moves ? -g[i] * grid.value(u) : 0.0f;
    g_log_s3 += static_cast<double>(g_log_s2[i]);
    g_log_s1 +=
        static_cast<double>(g[i] * (grid.value(grid.nearest_unit(u)) - (moves ? grid.value(u) : grid.offset())));
  }
}

GroupParameters flexround_range(std::span<const float> values, int bits, bool search) {
  const GroupInt format{.bits = bits, .group_size = 0, .grid = GroupGrid::asymmetric};
  format.validate();
  if (!search) return format.fit(values);
  GroupParameters best = format.fit(values);
  if (values.empty()) return best;
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const double range = static_cast<double>(*high) - static_cast<double>(*low);
  if (!(range > 0.0)) return best;
  const double levels = format.max_code();
  double least = std::numeric_limits<double>::infinity();
  for (int percent = 1; percent <= 100; ++percent) {
    const auto scale = static_cast<float>(range * percent / 100.0 / levels);
    if (scale == 0.0f) continue;
    for (std::int32_t zero = 0; zero <= format.max_code(); ++zero) {
      const Grid grid(-zero, format.max_code() - zero, scale);
      double error = 0.0;
      for (const float v : values) error += std::pow(std::fabs(static_cast<double>(v - grid.nearest(v))), 2.4);
      if (error < least) {
        least = error;
        best = {scale, zero, -scale * static_cast<float>(zero)};
      }
    }
  }
  return best;
}

void flexround(MatrixView<const float> w, const GramMatrix& h, WeightGrids& grids, MatrixView<float> q,
               const FlexRoundOptions& options, const Execution& how) {
  quant::check_layer("flexround", w, q.shape(), h);
  if (options.iterations < 1 || !(options.learning_rate > 0.0))
    throw ValueError("flexround: iterations and learning_rate must be positive");
  const Execution step = how.quiet();
  nearest(w, grids, q, step);
  if (w.empty()) return;
  const quant::HessianProduct product(h, step);
  const index_t n = w.cols(), size = grids.group_size(), groups = grids.groups();
  const index_t capacity = std::min(kRows, w.rows());
  AlignedBuffer<float> difference(capacity * n), gradient(capacity * n);

  for (index_t first = 0; first < w.rows(); first += kRows) {
    const index_t count = std::min(kRows, w.rows() - first);
    const MatrixView<float> d(difference.data(), count, n), g(gradient.data(), count, n);
    AlignedBuffer<float> log_s2(count * n), m(count * n), v(count * n);
    std::vector<Learned> log_s1(static_cast<std::size_t>(count * groups)), log_s3(static_cast<std::size_t>(count));
    std::vector<float> start(log_s1.size()), best_scale(log_s1.size());
    std::vector<double> least(static_cast<std::size_t>(count), std::numeric_limits<double>::infinity());
    for (index_t r = 0; r < count; ++r)
      for (index_t k = 0; k < groups; ++k) {
        start[static_cast<std::size_t>(r * groups + k)] = grids.grid(first + r, k).scale();
        best_scale[static_cast<std::size_t>(r * groups + k)] = start[static_cast<std::size_t>(r * groups + k)];
      }
    const auto group_of = [&](index_t r, index_t k) {
      const auto at = static_cast<std::size_t>(k * size);
      const std::size_t width = std::min(static_cast<std::size_t>(size), static_cast<std::size_t>(n) - at);
      return FlexRoundGroup{
          grids.grid(first + r, k), w.row(first + r).subspan(at, width),
          std::span<const float>(log_s2.data() + r * n, static_cast<std::size_t>(n)).subspan(at, width),
          log_s3[static_cast<std::size_t>(r)].value};
    };
    for (int iteration = 0; iteration <= options.iterations; ++iteration) {
      parallel_for(step, count, [&](index_t r) {
        for (index_t k = 0; k < groups; ++k) {
          const FlexRoundGroup group = group_of(r, k);
          group.forward(d.row(r).subspan(static_cast<std::size_t>(k * size), group.w.size()));
        }
        for (index_t j = 0; j < n; ++j) d(r, j) -= w(first + r, j);
      });
      product.apply(d, g, step);
      const Adam<float> adam = adam_step(options.learning_rate, iteration, options.iterations);
      parallel_for(step, count, [&](index_t r) {
        const auto row = static_cast<std::size_t>(r);
        double loss = 0.0;
        for (index_t j = 0; j < n; ++j) loss += static_cast<double>(d(r, j)) * static_cast<double>(g(r, j));
        if (loss < least[row]) {
          least[row] = loss;
          for (index_t k = 0; k < groups; ++k) {
            const FlexRoundGroup group = group_of(r, k);
            best_scale[static_cast<std::size_t>(r * groups + k)] = group.grid.scale();
            group.forward(q.row(first + r).subspan(static_cast<std::size_t>(k * size), group.w.size()));
          }
        }
        if (iteration == options.iterations) return;
        double g_s3 = 0.0;
        std::vector<double> g_s1(static_cast<std::size_t>(groups), 0.0);
        for (index_t k = 0; k < groups; ++k) {  // the gradients take the place of the differences
          const FlexRoundGroup group = group_of(r, k);
          const auto at = static_cast<std::size_t>(k * size);
          group.backward(g.row(r).subspan(at, group.w.size()), d.row(r).subspan(at, group.w.size()),
                         g_s1[static_cast<std::size_t>(k)], g_s3);
        }
        for (index_t j = 0; j < n; ++j) adam.update(d(r, j), log_s2[r * n + j], m[r * n + j], v[r * n + j]);
        adam.update(static_cast<float>(g_s3), log_s3[row].value, log_s3[row].m, log_s3[row].v);
        if (!options.learn_scales) return;
        for (index_t k = 0; k < groups; ++k) {
          const auto at = static_cast<std::size_t>(r * groups + k);
          adam.update(static_cast<float>(g_s1[static_cast<std::size_t>(k)]), log_s1[at].value, log_s1[at].m,
                      log_s1[at].v);
          grids.set_scale(first + r, k, start[at] * std::exp(log_s1[at].value));
        }
      });
      how.throw_if_stopped();
      how.report((static_cast<double>(first) + static_cast<double>(count) * iteration / options.iterations) /
                 static_cast<double>(w.rows()));
    }
    if (options.learn_scales)
      for (index_t r = 0; r < count; ++r)
        for (index_t k = 0; k < groups; ++k)
          grids.set_scale(first + r, k, best_scale[static_cast<std::size_t>(r * groups + k)]);
  }
}

}  // namespace blockpack::inline BLOCKPACK_ABI
