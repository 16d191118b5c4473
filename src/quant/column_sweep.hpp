// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The walk GPTQ and SparseGPT share. Columns are kept in falling order of their turn (position n - 1 has the first):
/// the factor of the inverse Hessian in the order of the turns is then Y = L⁻ᵀ of the Hessian in the order of the
/// positions, and every update has the form x · wᵀ the engine computes. Errors are stored negated, so that updates add.

#include <algorithm>
#include <functional>

#include "blockpack/quant/rounding.hpp"
#include "quant/block_code.hpp"
#include "quant/hessian.hpp"

namespace blockpack::inline BLOCKPACK_ABI::quant {

/// Columns that are done one by one before the engine carries their errors on.
inline constexpr auto kStep = static_cast<index_t>(kernels::kRoundColumns);
/// Rows that are done side by side.
inline constexpr auto kLanes = static_cast<index_t>(kernels::kRoundRows);
/// Columns and rows of what stays in the second-level cache until all its columns are done.
inline constexpr index_t kCacheColumns = 512;
inline constexpr index_t kCacheRows = 256;

/// Columns by halves: most errors are carried on by large products.
template <class T>
struct ColumnSweep {
  MatrixView<const T> y;
  index_t unit;           ///< columns `leaf` takes; halves are cut at multiples of it, counted from the first turn
  index_t row_columns;    ///< up to so many columns rows part, kCacheRows at a time; 0: never
  const Execution& how;   ///< told the progress: the last `share` of it
  const Execution& step;  ///< of the whole rows
  double share;
  /// leaf(panel, first, bottom, top, here): does the positions [bottom, top), at most `unit`, of the rows from `first`
  /// on, which lie in `panel`: weights, and their negated errors afterwards.
  std::function<void(MatrixView<T>, index_t, index_t, index_t, const Execution&)> leaf;

  /// Positions [bottom, top) of rows from `first` on, whose weights lie in `panel`.
  void run(MatrixView<T> panel, index_t first, index_t bottom, index_t top, const Execution& here) const {
    const index_t width = top - bottom;
    if (width <= row_columns && panel.rows() > kCacheRows) {
      const Execution serial = here.serial();
      parallel_for(here, ceil_div(panel.rows(), kCacheRows), [&](index_t task) {
        const index_t row = task * kCacheRows, count = std::min(kCacheRows, panel.rows() - row);
        run(panel.rows_from(row, count), first + row, bottom, top, serial);
      });
      return report(bottom, here);
    }
    how.throw_if_stopped();
    if (width <= unit) {
      leaf(panel, first, bottom, top, here);
      return report(bottom, here);
    }
    const index_t low = width - round_up(ceil_div(width, 2), unit), middle = bottom + low;
    const MatrixView<T> rest = panel.block(0, 0, panel.rows(), low);
    const MatrixView<T> done = panel.block(0, low, panel.rows(), width - low);
    run(done, first, middle, top, here);
    multiply(MatrixView<const T>(done), y.block(bottom, middle, low, width - low), MatrixView<const T>(rest), rest,
             here);
    run(rest, first, bottom, middle, here);
  }

 private:
  // The positions from `bottom` on are done for all rows, which the calling thread's own steps say.
  void report(index_t bottom, const Execution& here) const {
    if (y.rows() > 0 && &here == &step)
      how.report(1.0 - share + share * static_cast<double>(y.rows() - bottom) / static_cast<double>(y.rows()));
  }
};

/// The grids of fitted groups as the kernel reads them: kRoundRows rows side by side.
class RowGridTable {
 public:
  explicit RowGridTable(const WeightGrids& grids) : groups_(grids.groups()), rows_(grids.shape().rows) {
    const index_t blocks = checked_mul(ceil_div(rows_, kLanes), groups_, "RowGridTable");
    grids_ = AlignedBuffer<kernels::RowGrids>(blocks);
  }

  /// Takes over group g of the rows from row_block * kRoundRows on.
  void keep(const WeightGrids& grids, index_t row_block, index_t g) {
    kernels::RowGrids& to = grids_[row_block * groups_ + g];
    const index_t first = row_block * kLanes;
    std::fill_n(to.scale, kernels::kRoundRows, 1.0f);
    for (index_t row = first; row < std::min(rows_, first + kLanes); ++row) {
      const auto lane = static_cast<std::size_t>(row - first);
      const Grid grid = grids.grid(row, g);
      if (row == 0 && g == 0) table_ = grid.table();
      kernels::set_row_grid(to, lane, grid);
    }
  }
  const kernels::RowGrids& at(index_t row_block, index_t g) const noexcept { return grids_[row_block * groups_ + g]; }
  /// Hands the kernel the table of the grids, if they have one.
  void set_table(kernels::RoundColumns& columns) const noexcept {
    if (table_ == nullptr) return;
    columns.units = table_->units.data();
    columns.thresholds = table_->thresholds.data();
    columns.thresholds_count = table_->thresholds.size();
  }

 private:
  index_t groups_, rows_;
  AlignedBuffer<kernels::RowGrids> grids_;
  const GridTable* table_ = nullptr;
};

}  // namespace blockpack::inline BLOCKPACK_ABI::quant
