// SPDX-License-Identifier: Apache-2.0
/// GPTQ. Columns are kept in falling order of their turn (position n - 1 is rounded first): the factor of the inverse
/// Hessian in the order of the turns is then Y = L⁻ᵀ of the Hessian in the order of the positions, and every update has
/// the form x · wᵀ the engine computes. Errors are stored negated, so that updates add.

#include <algorithm>
#include <numeric>

#include "blockpack/quant/rounding.hpp"
#include "quant/hessian.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

/// Columns that are rounded one by one before the engine carries their errors on.
constexpr index_t kStep = 32;
/// Rows that are rounded side by side.
constexpr index_t kLanes = 8;

/// order[p] = column of turn p.
std::vector<index_t> column_order(const GramMatrix& h, bool by_diagonal) {
  std::vector<index_t> order(static_cast<std::size_t>(h.in_features()));
  std::iota(order.begin(), order.end(), index_t{0});
  if (by_diagonal)
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return h(a, a) > h(b, b); });
  return order;
}

/// The damped Hessian over its mean diagonal, positions as above, lower triangle; dead columns are given diagonal 1.
void fill_hessian(const GramMatrix& h, std::span<const index_t> order, double damping, MatrixView<float> a,
                  const Execution& how) {
  const index_t n = a.rows();
  const double mean = h.mean_diagonal();
  const double scale = mean > 0.0 ? 1.0 / mean : 1.0;
  const auto column = [&](index_t position) { return order[static_cast<std::size_t>(n - 1 - position)]; };
  parallel_for(how, ceil_div(n, index_t{64}), [&](index_t task) {
    for (index_t i = task * 64; i < std::min(n, (task + 1) * 64); ++i) {
      for (index_t j = 0; j < i; ++j) a(i, j) = static_cast<float>(scale * h(column(i), column(j)));
      const double diagonal = h(column(i), column(i));
      a(i, i) = static_cast<float>((diagonal > 0.0 ? scale * diagonal : 1.0) + damping);
    }
  });
}

/// Y, and the relative damping it took.
AlignedBuffer<float> factor(const GramMatrix& h, std::span<const index_t> order, const GptqOptions& options,
                            double& damping, const Execution& how) {
  const index_t n = h.in_features();
  auto a = AlignedBuffer<float>::uninitialized(checked_mul(n, n, "gptq"));
  damping = options.damping;
  for (int attempt = 0;; ++attempt) {
    fill_hessian(h, order, damping, MatrixView<float>(a.data(), n, n), how);
    AlignedBuffer<float> y = quant::inverse_transposed_factor(MatrixView<float>(a.data(), n, n), how);
    if (!y.empty() || n == 0) return y;
    if (attempt >= options.damping_retries)
      throw ValueError("gptq: the Hessian of layer '" + options.layer + "' is singular with damping " +
                       std::to_string(damping) + " of its mean diagonal; add calibration rows or raise the damping");
    damping = std::max(10.0 * damping, 1e-5);
  }
}

}  // namespace

GptqReport gptq(MatrixView<const float> w, const GramMatrix& h, WeightGrids& grids, MatrixView<float> q,
                const GptqOptions& options, const Execution& how) {
  quant::check_layer("gptq", w, q.shape(), h);
  if (grids.shape() != w.shape())
    throw ShapeError("gptq: grids are " + to_string(grids.shape()) + ", w is " + to_string(w.shape()));
  if (options.block < 1) throw ValueError("gptq: block = " + std::to_string(options.block) + ", at least 1 needed");
  if (!(options.damping >= 0.0)) throw ValueError("gptq: damping must not be negative");
  const Execution step = quant::step_execution(how);
  const index_t rows = w.rows(), n = w.cols(), size = grids.group_size();
  GptqReport report;
  report.order = column_order(h, options.act_order);
  const std::vector<index_t>& order = report.order;
  const AlignedBuffer<float> factored = factor(h, order, options, report.damping, step);
  const MatrixView<const float> y(factored.data(), n, n);
  how.report(0.3);

  std::vector<char> dead(static_cast<std::size_t>(n));
  for (index_t j = 0; j < n; ++j) dead[static_cast<std::size_t>(j)] = !(h(j, j) > 0.0);
  const auto weight = [&](index_t row, index_t col) {
    return dead[static_cast<std::size_t>(col)] ? 0.0f : w(row, col);
  };
  const bool fit_first = options.static_groups || grids.groups() <= 1;
  constexpr index_t kRowsPerTask = 8;
  const auto for_rows = [&](const auto& body) {
    parallel_for(step, ceil_div(rows, kRowsPerTask), [&](index_t task) {
      for (index_t r = task * kRowsPerTask; r < std::min(rows, (task + 1) * kRowsPerTask); ++r) body(r);
    });
  };
  if (fit_first)
    for_rows([&](index_t r) {
      std::vector<float> values;
      for (index_t g = 0; g < grids.groups(); ++g) {
        values.clear();
        for (index_t j = g * size; j < std::min(n, (g + 1) * size); ++j) values.push_back(weight(r, j));
        grids.fit(r, g, values, {});
      }
    });
  // Grids that no longer change are kept at hand; blocks matter to the fits alone, and may then be larger.
  const index_t block = fit_first ? std::max<index_t>(options.block, 512) : options.block;
  std::vector<Grid> fixed;
  if (fit_first) {
    fixed.assign(static_cast<std::size_t>(checked_mul(rows, grids.groups(), "gptq")), Grid(0, 0, 0.0f));
    for_rows([&](index_t r) {
      for (index_t g = 0; g < grids.groups(); ++g)
        fixed[static_cast<std::size_t>(r * grids.groups() + g)] = grids.grid(r, g);
    });
  }
  const bool natural_groups = fit_first || !options.act_order;  // groups are runs of columns, not of turns

  // By position: weights at first, the errors of those that had their turn later. q is kept by position until the end.
  auto error_memory = AlignedBuffer<float>::uninitialized(checked_mul(rows, n, "gptq"));
  const MatrixView<float> errors(error_memory.data(), rows, n);
  for_rows([&](index_t r) {
    for (index_t t = 0; t < n; ++t) errors(r, t) = weight(r, order[static_cast<std::size_t>(n - 1 - t)]);
  });
  // Weights that have seen the errors of earlier blocks: those of this block and the rest of the last group in it.
  auto panel_memory =
      AlignedBuffer<float>::uninitialized(checked_mul(rows, std::min(n, block + (fit_first ? 0 : size)), "gptq"));
  MatrixView<float> panel;
  std::vector<double> losses(static_cast<std::size_t>(rows), 0.0);

  const MatrixView<const float> read = errors;
  index_t low = 0;  // position of the panel's first column

  // Rounds the positions [bottom, top) of a few rows, side by side so that updates are vectors over the rows.
  const auto round_lanes = [&](index_t first_row, index_t bottom, index_t top, const float(&updates)[kStep][kStep]) {
    const index_t lanes = std::min(kLanes, rows - first_row), count = top - bottom;
    float values[kStep][kLanes] = {}, chosen[kStep][kLanes] = {}, error[kLanes] = {};
    double loss[kLanes] = {};
    for (index_t lane = 0; lane < lanes; ++lane)
      for (index_t s = 0; s < count; ++s) values[s][lane] = panel(first_row + lane, bottom - low + s);
    for (index_t s = count - 1; s >= 0; --s) {
      const index_t turn = n - 1 - (bottom + s);
      const index_t g = (natural_groups ? order[static_cast<std::size_t>(turn)] : turn) / size;
      const float pivot = updates[s][s];
      for (index_t lane = 0; lane < lanes; ++lane) {
        const index_t r = first_row + lane;
        const float value = values[s][lane];
        chosen[s][lane] = fixed.empty() ? grids.grid(r, g).nearest(value)
                                        : fixed[static_cast<std::size_t>(r * grids.groups() + g)].nearest(value);
        error[lane] = (chosen[s][lane] - value) / pivot;
        loss[lane] += static_cast<double>(error[lane]) * static_cast<double>(error[lane]);
        values[s][lane] = error[lane];
      }
      for (index_t t = 0; t < s; ++t)
        for (index_t lane = 0; lane < kLanes; ++lane) values[t][lane] += error[lane] * updates[s][t];
    }
    for (index_t lane = 0; lane < lanes; ++lane) {
      const index_t r = first_row + lane;
      for (index_t s = 0; s < count; ++s) {
        errors(r, bottom + s) = values[s][lane];
        q(r, bottom + s) = chosen[s][lane];
      }
      losses[static_cast<std::size_t>(r)] += loss[lane];
    }
  };
  // Halves, so that most errors are carried on by large products.
  const auto round = [&](const auto& self, index_t bottom, index_t top) -> void {
    if (top - bottom <= kStep) {
      float updates[kStep][kStep] = {};  // columns of Y, contiguous
      for (index_t s = 0; s < top - bottom; ++s)
        for (index_t t = 0; t <= s; ++t) updates[s][t] = y(bottom + t, bottom + s);
      parallel_for(step, ceil_div(rows, kLanes),
                   [&](index_t task) { round_lanes(task * kLanes, bottom, top, updates); });
      how.throw_if_stopped();
      how.report(0.3 + 0.7 * static_cast<double>(n - bottom) / static_cast<double>(n));
      return;
    }
    const index_t middle = top - round_up(ceil_div(top - bottom, 2), kStep);
    self(self, middle, top);
    const MatrixView<float> rest = panel.block(0, bottom - low, rows, middle - bottom);
    quant::multiply(read.block(0, middle, rows, top - middle), y.block(bottom, middle, middle - bottom, top - middle),
                    MatrixView<const float>(rest), rest, step);
    self(self, bottom, middle);
  };

  for (index_t begin = 0; begin < n; begin += block) {
    const index_t end = std::min(n, begin + block);
    const index_t seen = fit_first ? end : std::min(n, std::max(end, ceil_div(end, size) * size));
    const index_t width = seen - begin;  // positions [low, n - begin)
    low = n - seen;
    panel = MatrixView<float>(panel_memory.data(), rows, width);
    if (begin > 0)
      quant::multiply(read.block(0, n - begin, rows, begin), y.block(low, n - begin, width, begin),
                      read.block(0, low, rows, width), panel, step);
    else
      for_rows([&](index_t r) { std::copy_n(errors.row_data(r) + low, width, panel.row_data(r)); });
    if (!fit_first)
      for_rows([&](index_t r) {
        std::vector<float> group;
        std::vector<index_t> columns;
        for (index_t p = round_up(begin, size); p < end; p += size) {
          group.clear();
          columns.clear();
          for (index_t k = p; k < std::min(n, p + size); ++k) {
            group.push_back(panel(r, n - 1 - k - low));
            columns.push_back(order[static_cast<std::size_t>(k)]);
          }
          grids.fit(r, p / size, group, columns);
        }
      });
    round(round, n - end, n - begin);
  }
  for_rows([&](index_t r) {
    const std::vector<float> chosen(q.row(r).begin(), q.row(r).end());
    for (index_t t = 0; t < n; ++t)
      q(r, order[static_cast<std::size_t>(n - 1 - t)]) = chosen[static_cast<std::size_t>(t)];
  });
  const double mean = h.mean_diagonal();
  report.loss = std::accumulate(losses.begin(), losses.end(), 0.0) * (mean > 0.0 ? mean : 1.0);
  return report;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
