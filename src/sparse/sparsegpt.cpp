// SPDX-License-Identifier: Apache-2.0
/// SparseGPT over the walk of quant/column_sweep.hpp: position p is column n - 1 - p.

#include "blockpack/sparse/prune/sparsegpt.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "quant/column_sweep.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

std::vector<index_t> natural_order(index_t n) {
  std::vector<index_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), index_t{0});
  return order;
}

template <class T>
class Pruner {
 public:
  Pruner(MatrixView<const T> w, const GramMatrix& h, const MaskPattern& pattern, MatrixView<T> q,
         const SparseGptOptions& options, WeightGrids* grids, const Execution& how)
      : w_(w),
        pattern_(pattern),
        q_(q),
        grids_(grids),
        how_(how),
        step_(how.quiet()),
        y_memory_(quant::inverse_factor<T>(h, natural_order(w.cols()),
                                           {"sparsegpt", options.damping, options.damping_retries, options.layer},
                                           report_.damping, step_)),
        y_(y_memory_.view()),
        error_memory_(w.shape()),
        errors_(error_memory_.view()),
        mean_(h.mean_diagonal() > 0.0 ? h.mean_diagonal() : 1.0) {
    how.report(0.3);
    report_.mask = Mask(w.shape());
    const index_t n = w.cols();
    std::vector<T> alive(static_cast<std::size_t>(n));
    for (index_t j = 0; j < n; ++j) alive[static_cast<std::size_t>(j)] = h(j, j) > 0.0 ? T{1} : T{0};
    for_rows([&](index_t r) {
      for (index_t p = 0; p < n; ++p) errors_(r, p) = alive[static_cast<std::size_t>(n - 1 - p)] * w(r, n - 1 - p);
    });
    if (grids != nullptr) fit_grids();
    if (pattern.scope == MaskScope::group) {
      unit_ = quant::kStep / pattern.of * pattern.of;
    } else {
      const index_t block = pattern.scope == MaskScope::block ? pattern.block.cols : 1;
      decided_ = std::min(round_up(options.block, block), std::max<index_t>(n, 1));
      unit_ = std::min(quant::kStep, decided_);
    }
  }

  SparseGptReport run() {
    const index_t n = w_.cols();
    const quant::ColumnSweep<T> inner{y_,
                                      unit_,
                                      quant::kCacheColumns,
                                      how_,
                                      step_,
                                      0.7,
                                      [this](MatrixView<T> panel, index_t first, index_t bottom, index_t top,
                                             const Execution&) { prune_step(panel, first, bottom, top); }};
    const quant::ColumnSweep<T> outer{
        y_,
        decided_,
        0,
        how_,
        step_,
        0.7,
        [&](MatrixView<T> panel, index_t first, index_t bottom, index_t top, const Execution& here) {
          decide(panel, bottom, top);
          inner.run(panel, first, bottom, top, here);
        }};
    (decided_ > 0 ? outer : inner).run(errors_, 0, 0, n, step_);
    std::vector<double> losses(static_cast<std::size_t>(w_.rows()));
    for_rows([&](index_t r) {
      T* e = errors_.row_data(r);
      losses[static_cast<std::size_t>(r)] = detail::interleaved_sum(static_cast<std::size_t>(n), [&](std::size_t i) {
        return static_cast<double>(e[i]) * static_cast<double>(e[i]);
      });
      std::reverse(q_.row_data(r), q_.row_data(r) + n);
    });
    report_.loss = std::accumulate(losses.begin(), losses.end(), 0.0) * mean_;
    return std::move(report_);
  }

 private:
  template <class F>
  void for_rows(const F& body) const {
    constexpr index_t kRows = 8;
    parallel_for(step_, ceil_div(w_.rows(), kRows), [&](index_t task) {
      for (index_t r = task * kRows; r < std::min(w_.rows(), (task + 1) * kRows); ++r) body(r);
    });
  }

  void fit_grids() {
    for_rows([&](index_t r) {
      std::vector<float> values;
      for (index_t g = 0; g < grids_->groups(); ++g) {
        values.clear();
        for (index_t j = g * grids_->group_size(); j < std::min(w_.cols(), (g + 1) * grids_->group_size()); ++j)
          values.push_back(static_cast<float>(errors_(r, w_.cols() - 1 - j)));
        grids_->fit(r, g, values, {});
      }
    });
    table_.emplace(*grids_);
    parallel_for(step_, ceil_div(w_.rows(), quant::kLanes), [&](index_t task) {
      for (index_t g = 0; g < grids_->groups(); ++g) table_->keep(*grids_, task, g);
    });
  }

  /// The mask of the columns at [bottom, top), from the weights of all rows as they are now.
  void decide(MatrixView<T> panel, index_t bottom, index_t top) {
    const index_t width = top - bottom, first = w_.cols() - top;
    MaskPattern pattern = pattern_;
    pattern.block.cols = std::min(pattern.block.cols, width);
    std::vector<T> pivots;
    for (index_t p = top; p-- > bottom;) pivots.push_back(y_(p, p));
    const Mask kept =
        detail::select_rows<T>("sparsegpt", {w_.rows(), width}, pattern, step_, [&](index_t i, std::span<T> dst) {
          bool nan = false;
          for (index_t k = 0; k < width; ++k) {
            const T ratio = panel(i, width - 1 - k) / pivots[static_cast<std::size_t>(k)];
            dst[static_cast<std::size_t>(k)] = std::fabs(ratio);
            nan |= ratio != ratio;
          }
          return nan;
        });
    for_rows([&](index_t i) { report_.mask.keep_columns(i, first, width, kept.row_words(i).data()); });
  }

  /// One step of rows [first, first + panel.rows()), whose mask is known but for groups.
  void prune_step(MatrixView<T> panel, index_t first, index_t bottom, index_t top);

  /// The bits of a row's columns at [bottom, top), at most 64: bit s for position bottom + s, the last column first.
  std::uint64_t kept_bits(index_t row, index_t bottom, index_t top) const {
    return reversed(report_.mask.columns_from(row, w_.cols() - top)) >> (64 - (top - bottom));
  }
  void set_kept_bits(index_t row, index_t bottom, index_t top, std::uint64_t bits) {
    const std::uint64_t natural = reversed(bits << (64 - (top - bottom)));
    report_.mask.keep_columns(row, w_.cols() - top, top - bottom, &natural);
  }
  static std::uint64_t reversed(std::uint64_t v) noexcept {
    constexpr std::uint64_t kPairs[] = {0x5555555555555555, 0x3333333333333333, 0x0f0f0f0f0f0f0f0f,
                                        0x00ff00ff00ff00ff, 0x0000ffff0000ffff, 0x00000000ffffffff};
    for (int k = 0; k < 6; ++k) v = (v & kPairs[k]) << (1 << k) | (v >> (1 << k) & kPairs[k]);
    return v;
  }

  SparseGptReport report_;
  MatrixView<const T> w_;
  const MaskPattern& pattern_;
  MatrixView<T> q_;
  WeightGrids* grids_;
  std::optional<quant::RowGridTable> table_;
  const Execution& how_;
  const Execution step_;
  const quant::LargeMatrix<T> y_memory_;
  MatrixView<const T> y_;
  const quant::LargeMatrix<T> error_memory_;
  MatrixView<T> errors_;  ///< by position: weights at first, negated errors of those that had their turn
  double mean_;
  index_t unit_ = 0;     ///< columns of a step
  index_t decided_ = 0;  ///< columns whose mask is chosen before their first step; 0: chosen in the steps
};

template <>
void Pruner<float>::prune_step(MatrixView<float> panel, index_t first, index_t bottom, index_t top) {
  constexpr auto kColumns = static_cast<index_t>(kernels::kRoundColumns);
  const auto round_columns = kernels::table_for(how_.level()).quant.round_columns.fn;
  const index_t count = top - bottom;
  alignas(64) float updates[kColumns * kColumns];  // columns of Y, contiguous
  for (index_t s = 0; s < count; ++s)
    for (index_t t = 0; t <= s; ++t) updates[s * kColumns + t] = y_(bottom + t, bottom + s);
  for (index_t r = 0; r < panel.rows(); r += quant::kLanes) {
    const index_t rows = std::min(quant::kLanes, panel.rows() - r);
    const kernels::RowGrids* row_grids[kColumns];
    std::uint64_t kept[quant::kLanes] = {};
    kernels::RoundColumns columns{};
    columns.values = panel.row_data(r);
    columns.values_stride = static_cast<std::size_t>(panel.row_stride());
    columns.chosen = q_.row_data(first + r) + bottom;
    columns.chosen_stride = static_cast<std::size_t>(q_.row_stride());
    columns.rows = static_cast<std::size_t>(rows);
    columns.columns = static_cast<std::size_t>(count);
    columns.updates = updates;
    columns.kept = kept;
    if (table_) {
      for (index_t s = 0; s < count; ++s)
        row_grids[s] = &table_->at((first + r) / quant::kLanes, (w_.cols() - 1 - (bottom + s)) / grids_->group_size());
      columns.grids = row_grids;
      table_->set_table(columns);
    }
    if (decided_ > 0) {
      for (index_t i = 0; i < rows; ++i) kept[i] = kept_bits(first + r + i, bottom, top);
    } else {
      columns.keep = static_cast<std::size_t>(pattern_.keep);
      columns.of = static_cast<std::size_t>(pattern_.of);
    }
    round_columns(columns);
    if (decided_ == 0)
      for (index_t i = 0; i < rows; ++i) set_kept_bits(first + r + i, bottom, top, kept[i]);
  }
}

template <>
void Pruner<double>::prune_step(MatrixView<double> panel, index_t first, index_t bottom, index_t top) {
  std::vector<double> scores(static_cast<std::size_t>(std::max<index_t>(pattern_.of, 1)));
  for (index_t r = 0; r < panel.rows(); ++r) {
    const index_t row = first + r;
    double* w = panel.row_data(r) - bottom;  // by position
    for (index_t p = top; p-- > bottom;) {
      if (decided_ == 0 && (top - 1 - p) % pattern_.of == 0) {
        const index_t size = std::min(pattern_.of, p + 1 - bottom);
        for (index_t k = 0; k < size; ++k) scores[static_cast<std::size_t>(k)] = std::fabs(w[p - k] / y_(p - k, p - k));
        std::uint64_t bits = 0;  // bit k: position p - k, the natural order
        detail::keep_in_groups(scores.data(), size, pattern_.keep, pattern_.of, &bits);
        for (index_t k = 0; k < size; ++k)
          if ((bits >> k & 1) != 0) report_.mask.set(row, w_.cols() - 1 - (p - k));
      }
      const index_t column = w_.cols() - 1 - p;
      double q = 0.0;
      if (report_.mask(row, column))
        q = grids_ == nullptr ? w[p]
                              : static_cast<double>(
                                    grids_->grid(row, column / grids_->group_size()).nearest(static_cast<float>(w[p])));
      const double error = (q - w[p]) / y_(p, p);
      q_(row, p) = q;
      w[p] = error;
      for (index_t t = bottom; t < p; ++t) w[t] += error * y_(t, p);
    }
  }
}

template <class T>
SparseGptReport prune(MatrixView<const T> w, const GramMatrix& h, const MaskPattern& pattern, MatrixView<T> q,
                      const SparseGptOptions& options, WeightGrids* grids, const Execution& how) {
  quant::check_layer("sparsegpt", w, q.shape(), h);
  detail::check_pattern("sparsegpt", w.shape(), pattern);
  if (grids != nullptr && grids->shape() != w.shape())
    throw ShapeError("sparsegpt: grids are " + to_string(grids->shape()) + ", w is " + to_string(w.shape()));
  if (options.block < 1)
    throw ValueError("sparsegpt: block = " + std::to_string(options.block) + ", at least 1 needed");
  if (!(options.damping >= 0.0)) throw ValueError("sparsegpt: damping must not be negative");
  if (pattern.scope == MaskScope::group && pattern.of > quant::kStep)
    throw ValueError("sparsegpt: of = " + std::to_string(pattern.of) + ", at most " + std::to_string(quant::kStep) +
                     " needed");
  if (w.empty()) return {Mask(w.shape()), 0.0, options.damping};
  return Pruner<T>(w, h, pattern, q, options, grids, how).run();
}

}  // namespace

SparseGptReport sparsegpt(MatrixView<const float> w, const GramMatrix& h, const MaskPattern& pattern,
                          MatrixView<float> q, const SparseGptOptions& options, WeightGrids* grids,
                          const Execution& how) {
  return prune(w, h, pattern, q, options, grids, how);
}
SparseGptReport sparsegpt(MatrixView<const double> w, const GramMatrix& h, const MaskPattern& pattern,
                          MatrixView<double> q, const SparseGptOptions& options, WeightGrids* grids,
                          const Execution& how) {
  return prune(w, h, pattern, q, options, grids, how);
}

Criterion second_order(const GramMatrix& h, const SparseGptOptions& options, const Execution& how) {
  const index_t n = h.in_features();
  double damping = 0;
  const quant::LargeMatrix<> y = quant::inverse_factor<float>(
      h, natural_order(n), {"second_order", options.damping, options.damping_retries, options.layer}, damping,
      how.quiet());
  Criterion c;
  for (index_t j = 0; j < n; ++j) c.column.push_back(1.0 / static_cast<double>(y.view()(n - 1 - j, n - 1 - j)));
  return c;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
