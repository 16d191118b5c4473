// SPDX-License-Identifier: Apache-2.0
/// GPTQ: the walk over the columns is that of quant/column_sweep.hpp.

#include <algorithm>
#include <numeric>

#include "blockpack/quant/rounding.hpp"
#include "quant/column_sweep.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

using kernels::kRoundColumns;
using quant::kLanes;
using quant::kStep;

/// order[p] = column of turn p.
std::vector<index_t> column_order(const GramMatrix& h, bool by_diagonal) {
  std::vector<index_t> order(static_cast<std::size_t>(h.in_features()));
  std::iota(order.begin(), order.end(), index_t{0});
  if (by_diagonal)
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return h(a, a) > h(b, b); });
  return order;
}

}  // namespace

GptqReport gptq(MatrixView<const float> w, const GramMatrix& h, WeightGrids& grids, MatrixView<float> q,
                const GptqOptions& options, const Execution& how) {
  quant::check_layer("gptq", w, q.shape(), h);
  if (grids.shape() != w.shape())
    throw ShapeError("gptq: grids are " + to_string(grids.shape()) + ", w is " + to_string(w.shape()));
  if (options.block < 1) throw ValueError("gptq: block = " + std::to_string(options.block) + ", at least 1 needed");
  if (!(options.damping >= 0.0)) throw ValueError("gptq: damping must not be negative");
  const Execution step = how.quiet();
  const index_t rows = w.rows(), n = w.cols(), size = grids.group_size(), together = grids.groups_per_fit();
  GptqReport report;
  report.order = column_order(h, options.act_order);
  const std::vector<index_t>& order = report.order;
  const quant::LargeMatrix<> factored = quant::inverse_factor<float>(
      h, order, {"gptq", options.damping, options.damping_retries, options.layer}, report.damping, step);
  const MatrixView<const float> y = factored.view();
  how.report(0.3);

  std::vector<char> dead(static_cast<std::size_t>(n));
  for (index_t j = 0; j < n; ++j) dead[static_cast<std::size_t>(j)] = !(h(j, j) > 0.0);
  const auto weight = [&](index_t row, index_t col) {
    return dead[static_cast<std::size_t>(col)] ? 0.0f : w(row, col);
  };
  const bool fit_first = options.static_groups || grids.groups() <= together;
  constexpr index_t kRowsPerTask = 8;
  const auto for_rows = [&](const auto& body) {
    parallel_for(step, ceil_div(rows, kRowsPerTask), [&](index_t task) {
      for (index_t r = task * kRowsPerTask; r < std::min(rows, (task + 1) * kRowsPerTask); ++r) body(r);
    });
  };
  if (fit_first)
    for_rows([&](index_t r) {
      std::vector<float> values;
      for (index_t g = 0; g < grids.groups(); g += together) {
        values.clear();
        for (index_t j = g * size; j < std::min(n, (g + together) * size); ++j) values.push_back(weight(r, j));
        grids.fit(r, g, values, {});
      }
    });
  quant::RowGridTable fitted(grids);
  const auto keep_groups = [&](index_t begin, index_t end) {
    parallel_for(step, ceil_div(rows, kLanes), [&](index_t task) {
      for (index_t g = begin; g < end; ++g) fitted.keep(grids, task, g);
    });
  };
  if (fit_first) keep_groups(0, grids.groups());
  const bool natural_groups = fit_first || !options.act_order;  // groups are runs of columns, not of turns

  // By position: weights at first, the errors of those that had their turn later. q is kept by position until the end.
  const quant::LargeMatrix<> error_memory(w.shape());
  const MatrixView<float> errors = error_memory.view();
  const MatrixView<const float> read = errors;
  for_rows([&](index_t r) {
    for (index_t t = 0; t < n; ++t) errors(r, t) = weight(r, order[static_cast<std::size_t>(n - 1 - t)]);
  });

  const auto round_columns = kernels::table_for(how.level()).quant.round_columns.fn;
  // Rounds the positions [bottom, top), at most kStep, of rows from `first` on. Their weights lie in `panel` and leave
  // it as errors.
  const auto round_step = [&](MatrixView<float> panel, index_t first, index_t bottom, index_t top, const Execution&) {
    const index_t count = top - bottom;
    alignas(64) float updates[kRoundColumns * kRoundColumns];  // columns of Y, contiguous
    for (index_t s = 0; s < count; ++s)
      for (index_t t = 0; t <= s; ++t) updates[s * kStep + t] = y(bottom + t, bottom + s);
    index_t groups[kRoundColumns];
    for (index_t s = 0; s < count; ++s) {
      const index_t turn = n - 1 - (bottom + s);
      groups[s] = (natural_groups ? order[static_cast<std::size_t>(turn)] : turn) / size;
    }
    for (index_t r = 0; r < panel.rows(); r += kLanes) {
      const kernels::RowGrids* row_grids[kRoundColumns];
      for (index_t s = 0; s < count; ++s) row_grids[s] = &fitted.at((first + r) / kLanes, groups[s]);
      kernels::RoundColumns columns{};
      columns.values = panel.row_data(r);
      columns.values_stride = static_cast<std::size_t>(panel.row_stride());
      columns.chosen = q.row_data(first + r) + bottom;
      columns.chosen_stride = static_cast<std::size_t>(q.row_stride());
      columns.rows = static_cast<std::size_t>(std::min(kLanes, panel.rows() - r));
      columns.columns = static_cast<std::size_t>(count);
      columns.updates = updates;
      columns.grids = row_grids;
      fitted.set_table(columns);
      round_columns(columns);
    }
  };
  const quant::ColumnSweep<float> sweep{y, kStep, quant::kCacheColumns, how, step, 0.7, round_step};
  if (fit_first) {
    sweep.run(errors, 0, 0, n, step);
  } else {
    // Groups are fitted when their first column is reached, to weights that have seen the errors of earlier blocks: a
    // panel holds those of this block and the rest of the last group in it.
    const index_t width = std::min(options.block, n);
    auto memory = AlignedBuffer<float>::uninitialized(checked_mul(rows, std::min(n, width + together * size), "gptq"));
    for (index_t begin = 0; begin < n; begin += width) {
      const index_t end = std::min(n, begin + width);
      const index_t seen = std::min(n, std::max(end, round_up(end, together * size)));
      const index_t low = n - seen;  // position of the panel's first column
      const MatrixView<float> panel(memory.data(), rows, seen - begin);
      if (begin > 0)
        quant::multiply(read.block(0, n - begin, rows, begin), y.block(low, n - begin, seen - begin, begin),
                        read.block(0, low, rows, seen - begin), panel, step);
      else
        for_rows([&](index_t r) { std::copy_n(errors.row_data(r) + low, seen, panel.row_data(r)); });
      for_rows([&](index_t r) {
        std::vector<float> group;
        std::vector<index_t> columns;
        for (index_t p = round_up(begin, together * size); p < end; p += together * size) {
          group.clear();
          columns.clear();
          for (index_t k = p; k < std::min(n, p + together * size); ++k) {
            group.push_back(panel(r, n - 1 - k - low));
            columns.push_back(order[static_cast<std::size_t>(k)]);
          }
          grids.fit(r, p / size, group, columns);
        }
      });
      keep_groups(round_up(ceil_div(begin, size), together),
                  std::min(grids.groups(), round_up(ceil_div(end, size), together)));
      const MatrixView<float> block = panel.block(0, seen - end, rows, end - begin);
      sweep.run(block, 0, n - end, n - begin, step);
      for_rows([&](index_t r) { std::copy_n(block.row_data(r), end - begin, errors.row_data(r) + n - end); });
    }
  }
  std::vector<double> losses(static_cast<std::size_t>(rows));
  for_rows([&](index_t r) {
    const float* e = errors.row_data(r);
    losses[static_cast<std::size_t>(r)] = detail::interleaved_sum(
        static_cast<std::size_t>(n), [&](std::size_t i) { return double{e[i]} * double{e[i]}; });
    // q to the order of the columns; the errors have been counted.
    std::copy_n(q.row_data(r), n, errors.row_data(r));
    for (index_t t = 0; t < n; ++t) q(r, order[static_cast<std::size_t>(n - 1 - t)]) = e[t];
  });
  const double mean = h.mean_diagonal();
  report.loss = std::accumulate(losses.begin(), losses.end(), 0.0) * (mean > 0.0 ? mean : 1.0);
  return report;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
