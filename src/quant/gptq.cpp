// SPDX-License-Identifier: Apache-2.0
/// GPTQ. Columns are kept in falling order of their turn (position n - 1 is rounded first): the factor of the inverse
/// Hessian in the order of the turns is then Y = L⁻ᵀ of the Hessian in the order of the positions, and every update has
/// the form x · wᵀ the engine computes. Errors are stored negated, so that updates add.

#include <algorithm>
#include <numeric>

#include "blockpack/quant/rounding.hpp"
#include "quant/block_code.hpp"
#include "quant/hessian.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

using kernels::kRoundColumns;
using kernels::kRoundRows;
using kernels::RowGrids;

/// Columns that are rounded one by one before the engine carries their errors on.
constexpr auto kStep = static_cast<index_t>(kRoundColumns);
/// Rows that are rounded side by side.
constexpr auto kLanes = static_cast<index_t>(kRoundRows);
/// Columns and rows of what stays in the second-level cache until all its columns are rounded.
constexpr index_t kCacheColumns = 512;
constexpr index_t kCacheRows = 256;

/// order[p] = column of turn p.
std::vector<index_t> column_order(const GramMatrix& h, bool by_diagonal) {
  std::vector<index_t> order(static_cast<std::size_t>(h.in_features()));
  std::iota(order.begin(), order.end(), index_t{0});
  if (by_diagonal)
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return h(a, a) > h(b, b); });
  return order;
}

/// The damped Hessian over its mean diagonal, positions as above, zeros above the diagonal; dead columns are given
/// diagonal 1.
/// `natural` [n, n] is scratch: rows of H in the order of the columns, which the cache can follow.
void fill_hessian(const GramMatrix& h, std::span<const index_t> order, double damping, MatrixView<float> natural,
                  MatrixView<float> a, const Execution& how) {
  const index_t n = a.rows();
  const double mean = h.mean_diagonal();
  const double scale = mean > 0.0 ? 1.0 / mean : 1.0;
  h.copy_to(natural, scale, 0.0, how);
  parallel_for(how, ceil_div(n, index_t{64}), [&](index_t task) {
    for (index_t i = task * 64; i < std::min(n, (task + 1) * 64); ++i) {
      const index_t column = order[static_cast<std::size_t>(n - 1 - i)];
      const float* row = natural.row_data(column);
      for (index_t j = 0; j < i; ++j) a(i, j) = row[order[static_cast<std::size_t>(n - 1 - j)]];
      const double diagonal = h(column, column);
      a(i, i) = static_cast<float>((diagonal > 0.0 ? scale * diagonal : 1.0) + damping);
      std::fill(a.row_data(i) + i + 1, a.row_data(i) + n, 0.0f);
    }
  });
}

/// Y, and the relative damping it took.
quant::LargeMatrix factor(const GramMatrix& h, std::span<const index_t> order, const GptqOptions& options,
                          double& damping, const Execution& how) {
  const index_t n = h.in_features();
  const quant::LargeMatrix a({n, n});
  quant::LargeMatrix y({n, n});
  damping = options.damping;
  for (int attempt = 0;; ++attempt) {
    fill_hessian(h, order, damping, y.view(), a.view(), how);
    if (quant::inverse_transposed_factor(a.view(), y.view(), how)) return y;
    if (attempt >= options.damping_retries)
      throw ValueError("gptq: the Hessian" + (options.layer.empty() ? "" : " of layer '" + options.layer + "'") +
                       " is singular with damping " + std::to_string(damping) +
                       " of its mean diagonal; add calibration rows or raise the damping");
    damping = std::max(10.0 * damping, 1e-5);
  }
}

/// The grids of fitted groups as the kernel reads them: kRoundRows rows side by side.
class RowGridTable {
 public:
  explicit RowGridTable(const WeightGrids& grids) : groups_(grids.groups()), rows_(grids.shape().rows) {
    const index_t blocks = checked_mul(ceil_div(rows_, kLanes), groups_, "gptq");
    grids_ = AlignedBuffer<RowGrids>(blocks);
  }

  /// Takes over group g of the rows from row_block * kRoundRows on.
  void keep(const WeightGrids& grids, index_t row_block, index_t g) {
    RowGrids& to = grids_[row_block * groups_ + g];
    const index_t first = row_block * kLanes;
    std::fill_n(to.scale, kRoundRows, 1.0f);
    for (index_t row = first; row < std::min(rows_, first + kLanes); ++row) {
      const auto lane = static_cast<std::size_t>(row - first);
      const Grid grid = grids.grid(row, g);
      if (row == 0 && g == 0) table_ = grid.table();
      kernels::set_row_grid(to, lane, grid);
    }
  }
  const RowGrids& at(index_t row_block, index_t g) const noexcept { return grids_[row_block * groups_ + g]; }
  const GridTable* table() const noexcept { return table_; }

 private:
  index_t groups_, rows_;
  AlignedBuffer<RowGrids> grids_;
  const GridTable* table_ = nullptr;
};

}  // namespace

GptqReport gptq(MatrixView<const float> w, const GramMatrix& h, WeightGrids& grids, MatrixView<float> q,
                const GptqOptions& options, const Execution& how) {
  quant::check_layer("gptq", w, q.shape(), h);
  if (grids.shape() != w.shape())
    throw ShapeError("gptq: grids are " + to_string(grids.shape()) + ", w is " + to_string(w.shape()));
  if (options.block < 1) throw ValueError("gptq: block = " + std::to_string(options.block) + ", at least 1 needed");
  if (!(options.damping >= 0.0)) throw ValueError("gptq: damping must not be negative");
  const Execution step = quant::step_execution(how);
  const index_t rows = w.rows(), n = w.cols(), size = grids.group_size(), together = grids.groups_per_fit();
  GptqReport report;
  report.order = column_order(h, options.act_order);
  const std::vector<index_t>& order = report.order;
  const quant::LargeMatrix factored = factor(h, order, options, report.damping, step);
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
  RowGridTable fitted(grids);
  const auto keep_groups = [&](index_t begin, index_t end) {
    parallel_for(step, ceil_div(rows, kLanes), [&](index_t task) {
      for (index_t g = begin; g < end; ++g) fitted.keep(grids, task, g);
    });
  };
  if (fit_first) keep_groups(0, grids.groups());
  const bool natural_groups = fit_first || !options.act_order;  // groups are runs of columns, not of turns

  // By position: weights at first, the errors of those that had their turn later. q is kept by position until the end.
  const quant::LargeMatrix error_memory(w.shape());
  const MatrixView<float> errors = error_memory.view();
  const MatrixView<const float> read = errors;
  for_rows([&](index_t r) {
    for (index_t t = 0; t < n; ++t) errors(r, t) = weight(r, order[static_cast<std::size_t>(n - 1 - t)]);
  });

  const auto round_columns = kernels::table_for(how.level()).quant.round_columns.fn;
  // Rounds the positions [bottom, top), at most kStep, of rows from `first` on. Their weights lie in `panel` and leave
  // it as errors.
  const auto round_step = [&](MatrixView<float> panel, index_t first, index_t bottom, index_t top) {
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
      const RowGrids* row_grids[kRoundColumns];
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
      if (const GridTable* table = fitted.table()) {
        columns.units = table->units.data();
        columns.thresholds = table->thresholds.data();
        columns.thresholds_count = table->thresholds.size();
      }
      round_columns(columns);
    }
  };
  // Progress when the positions from `bottom` on are done for all rows, which the calling thread's own steps say.
  const auto report_from = [&](index_t bottom, const Execution& here) {
    if (n > 0 && &here == &step) how.report(0.3 + 0.7 * static_cast<double>(n - bottom) / static_cast<double>(n));
  };
  // Positions [bottom, top) of rows from `first` on, whose weights lie in `panel`, by halves: most errors are carried
  // on by large products. Below kCacheColumns rows part, kCacheRows at a time.
  const auto round = [&](const auto& self, MatrixView<float> panel, index_t first, index_t bottom, index_t top,
                         const Execution& here) -> void {
    const index_t width = top - bottom;
    if (width <= kCacheColumns && panel.rows() > kCacheRows) {
      Execution serial = here;
      serial.threads = 1;
      serial.executor = nullptr;
      parallel_for(here, ceil_div(panel.rows(), kCacheRows), [&](index_t task) {
        const index_t row = task * kCacheRows, count = std::min(kCacheRows, panel.rows() - row);
        self(self, panel.rows_from(row, count), first + row, bottom, top, serial);
      });
      return report_from(bottom, here);
    }
    how.throw_if_stopped();
    if (width <= kStep) {
      round_step(panel, first, bottom, top);
      return report_from(bottom, here);
    }
    const index_t low = width - round_up(ceil_div(width, 2), kStep), middle = bottom + low;
    const MatrixView<float> rest = panel.block(0, 0, panel.rows(), low);
    const MatrixView<float> done = panel.block(0, low, panel.rows(), width - low);
    self(self, done, first, middle, top, here);
    quant::multiply(done, y.block(bottom, middle, low, width - low), rest, rest, here);
    self(self, rest, first, bottom, middle, here);
  };

  if (fit_first) {
    round(round, errors, 0, 0, n, step);
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
      round(round, block, 0, n - end, n - begin, step);
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
