// SPDX-License-Identifier: Apache-2.0
#include "blockpack/sparse/prune/refit.hpp"

#include <algorithm>
#include <numeric>

#include "blockpack/quant/block_rows.hpp"
#include "quant/hessian.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

/// Rows with equal masks.
using RowSet = std::vector<index_t>;

std::vector<RowSet> sets_of_rows(const Mask& mask) {
  std::vector<index_t> rows(static_cast<std::size_t>(mask.rows()));
  std::iota(rows.begin(), rows.end(), index_t{0});
  const auto before = [&](index_t a, index_t b) {
    return std::ranges::lexicographical_compare(mask.row_words(a), mask.row_words(b));
  };
  std::stable_sort(rows.begin(), rows.end(), before);
  std::vector<RowSet> sets;
  for (const index_t row : rows) {
    if (sets.empty() || before(sets.back().front(), row)) sets.emplace_back();
    sets.back().push_back(row);
  }
  return sets;
}

/// The least squares of one set of rows.
class SetRefit {
 public:
  /// `h` is over its mean diagonal.
  SetRefit(MatrixView<const float> h, const Mask& mask, const RowSet& rows) : h_(h), rows_(rows) {
    for (index_t j = 0; j < mask.cols(); ++j)
      if (mask(rows.front(), j) && h(j, j) > 0.0f) columns_.push_back(j);
  }

  /// q += the solution for the gradients g = (w - q) H. The relative damping it took.
  double run(MatrixView<const float> g, MatrixView<float> q, const RefitOptions& options, const Execution& how) const {
    const auto k = static_cast<index_t>(columns_.size()), m = static_cast<index_t>(rows_.size());
    if (k == 0) return options.damping;
    const quant::LargeMatrix<> a({k, k}), y({k, k}), d({m, k}), product({m, k}), right({m, k});
    const double damping = factorize(a.view(), y.view(), options, how);
    gather(a.view(), damping, true);
    const auto at = [&](index_t r, index_t s) { return g(rows_[std::size_t(r)], columns_[std::size_t(s)]); };
    for (index_t r = 0; r < m; ++r)
      for (index_t s = 0; s < k; ++s) right.view()(r, s) = at(r, s);
    solve(y.view(), right.view(), product.view(), d.view(), how);
    // One step of refinement: what H still asks for.
    quant::multiply(d.view(), a.view(), {}, product.view(), how);
    for (index_t r = 0; r < m; ++r)
      for (index_t s = 0; s < k; ++s) right.view()(r, s) = at(r, s) - product.view()(r, s);
    const quant::LargeMatrix<> correction({m, k});
    solve(y.view(), right.view(), product.view(), correction.view(), how);
    for (index_t r = 0; r < m; ++r)
      for (index_t s = 0; s < k; ++s)
        q(rows_[std::size_t(r)], columns_[std::size_t(s)]) += d.view()(r, s) + correction.view()(r, s);
    return damping;
  }

 private:
  /// H of the kept columns, damped: the lower triangle with zeros above, or both.
  void gather(MatrixView<float> a, double damping, bool both) const {
    for (index_t i = 0; i < a.rows(); ++i) {
      const float* row = h_.row_data(columns_[static_cast<std::size_t>(i)]);
      for (index_t j = 0; j < a.cols(); ++j)
        a(i, j) = both || j <= i ? row[columns_[static_cast<std::size_t>(j)]] : 0.0f;
      a(i, i) += static_cast<float>(damping);
    }
  }

  double factorize(MatrixView<float> a, MatrixView<float> y, const RefitOptions& options, const Execution& how) const {
    double damping = options.damping;
    for (int attempt = 0;; ++attempt) {
      gather(a, damping, false);
      if (quant::inverse_transposed_factor(a, y, how)) return damping;
      if (attempt >= options.damping_retries)
        throw ValueError("refit: the kept columns of row " + std::to_string(rows_.front()) + " are singular" +
                         (options.layer.empty() ? "" : " in layer '" + options.layer + "'") + " with damping " +
                         std::to_string(damping) + " of the mean diagonal; add calibration rows or raise the damping");
      damping = std::max(10.0 * damping, 1e-5);
    }
  }

  /// x = b · (Y Yᵀ).
  static void solve(MatrixView<const float> y, MatrixView<const float> b, MatrixView<float> scratch,
                    MatrixView<float> x, const Execution& how) {
    ApplyOptions options;
    options.execution = how;
    matmul_transpose(b, rows_of(y), scratch, options);
    quant::multiply(scratch, y, {}, x, how);
  }

  MatrixView<const float> h_;
  const RowSet& rows_;
  std::vector<index_t> columns_;
};

}  // namespace

RefitReport refit(MatrixView<const float> w, const GramMatrix& h, const Mask& mask, MatrixView<float> q,
                  const RefitOptions& options, const Execution& how) {
  quant::check_layer("refit", w, q.shape(), h);
  quant::check_layer<float>("refit, its start", q, q.shape(), h);
  if (mask.shape() != w.shape())
    throw ShapeError("refit: the mask is " + to_string(mask.shape()) + ", w is " + to_string(w.shape()));
  if (!(options.damping >= 0.0)) throw ValueError("refit: damping must not be negative");
  RefitReport report;
  report.damping = options.damping;
  if (w.empty()) return report;
  const Execution step = how.quiet();
  const quant::HessianProduct product(h, step);
  const quant::LargeMatrix<> difference_memory(w.shape()), gradient_memory(w.shape());
  const MatrixView<float> difference = difference_memory.view(), gradient = gradient_memory.view();
  // (w - q) H over the mean diagonal to `gradient`, and the losses of the rows.
  const auto losses = [&] {
    for (index_t i = 0; i < w.rows(); ++i)
      for (index_t j = 0; j < w.cols(); ++j) difference(i, j) = w(i, j) - q(i, j);
    product.apply(difference, gradient, step);
    std::vector<double> rows;
    for (index_t i = 0; i < w.rows(); ++i)
      rows.push_back(product.unit() * detail::interleaved_sum(static_cast<std::size_t>(w.cols()), [&](std::size_t j) {
                       return double{difference.row(i)[j]} * double{gradient.row(i)[j]};
                     }));
    return rows;
  };
  mask.apply(q);
  const std::vector<double> before = losses();
  report.loss_before = std::accumulate(before.begin(), before.end(), 0.0);

  const std::vector<RowSet> sets = sets_of_rows(mask);
  report.factorizations = static_cast<index_t>(sets.size());
  std::vector<double> dampings(sets.size());
  const quant::LargeMatrix<> start(w.shape());
  for (index_t i = 0; i < w.rows(); ++i) std::copy_n(q.row_data(i), q.cols(), start.view().row_data(i));
  const Execution inner = sets.size() > 1 ? step.serial() : step;
  constexpr index_t kSets = 64;  // between two reports of progress
  for (index_t first = 0; first < report.factorizations; first += kSets) {
    parallel_for(step, std::min(kSets, report.factorizations - first), [&](index_t i) {
      const auto s = static_cast<std::size_t>(first + i);
      dampings[s] = SetRefit(product.matrix(), mask, sets[s]).run(gradient, q, options, inner);
    });
    how.report(static_cast<double>(std::min(report.factorizations, first + kSets)) /
               static_cast<double>(report.factorizations));
  }
  report.damping = *std::max_element(dampings.begin(), dampings.end());

  const std::vector<double> after = losses();
  for (index_t i = 0; i < w.rows(); ++i) {
    const auto r = static_cast<std::size_t>(i);
    if (after[r] <= before[r]) {
      report.loss_after += after[r];
      continue;
    }
    std::copy_n(start.view().row_data(i), q.cols(), q.row_data(i));
    report.loss_after += before[r];
    ++report.rows_left;
  }
  return report;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
