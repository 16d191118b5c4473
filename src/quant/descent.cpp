// SPDX-License-Identifier: Apache-2.0
/// Plain rounding, the layer objective, and coordinate descent on it.

#include <algorithm>
#include <atomic>
#include <numeric>

#include "blockpack/quant/rounding.hpp"
#include "quant/hessian.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

/// Rows whose gradients are in memory at once.
constexpr index_t kRows = 512;

/// Calls body(first, d, g) for panels of rows: d = q - w and g = d · H / unit.
template <class Body>
void for_gradients(MatrixView<const float> w, MatrixView<const float> q, const quant::HessianProduct& h,
                   const Execution& how, const Body& body) {
  const index_t rows = std::min(kRows, w.rows()), n = w.cols();
  const Execution step = how.quiet();
  auto memory = AlignedBuffer<float>::uninitialized(2 * rows * n);
  for (index_t first = 0; first < w.rows(); first += kRows) {
    const index_t count = std::min(kRows, w.rows() - first);
    const MatrixView<float> d(memory.data(), count, n), g(memory.data() + rows * n, count, n);
    parallel_for(step, count, [&](index_t r) {
      for (index_t j = 0; j < n; ++j) d(r, j) = q(first + r, j) - w(first + r, j);
    });
    h.apply(d, g, step);
    body(first, d, g);
    how.report(static_cast<double>(first + count) / static_cast<double>(w.rows()));
  }
}

}  // namespace

double layer_loss(MatrixView<const float> w, MatrixView<const float> q, const GramMatrix& h, const Execution& how) {
  quant::check_layer("layer_loss", w, q.shape(), h);
  const quant::HessianProduct product(h, how);
  double total = 0.0;
  for_gradients(w, q, product, how, [&](index_t, MatrixView<float> d, MatrixView<float> g) {
    for (index_t r = 0; r < d.rows(); ++r)
      for (index_t j = 0; j < d.cols(); ++j) total += static_cast<double>(d(r, j)) * static_cast<double>(g(r, j));
  });
  return total * product.unit();
}

void nearest(MatrixView<const float> w, WeightGrids& grids, MatrixView<float> q, const Execution& how) {
  if (q.shape() != w.shape() || grids.shape() != w.shape())
    throw ShapeError("nearest: w is " + to_string(w.shape()) + ", q " + to_string(q.shape()) + ", grids " +
                     to_string(grids.shape()));
  const MatrixShape bad = find_non_finite(w);
  if (bad.rows >= 0)
    throw ValueError("nearest: w is not finite at row " + std::to_string(bad.rows) + ", column " +
                     std::to_string(bad.cols));
  const index_t size = grids.group_size();
  parallel_for(how, w.rows(), [&](index_t r) {
    for (index_t g = 0; g < grids.groups(); g += grids.groups_per_fit())
      grids.fit(r, g, detail::part_of(w.row(r), g * size, grids.groups_per_fit() * size), {});
    for (index_t g = 0; g < grids.groups(); ++g) {
      const Grid grid = grids.grid(r, g);
      for (index_t j = g * size; j < std::min(w.cols(), (g + 1) * size); ++j) q(r, j) = grid.nearest(w(r, j));
    }
  });
}

index_t descend(MatrixView<const float> w, const GramMatrix& h, const WeightGrids& grids, MatrixView<float> q,
                const DescentOptions& options, const Execution& how) {
  quant::check_layer("descend", w, q.shape(), h);
  if (grids.shape() != w.shape())
    throw ShapeError("descend: grids are " + to_string(grids.shape()) + ", w is " + to_string(w.shape()));
  if (options.sweeps <= 0 || w.empty()) return 0;
  const quant::HessianProduct product(h, how);
  const MatrixView<const float> hessian = product.matrix();
  const index_t n = w.cols(), size = grids.group_size();
  std::atomic<index_t> moves{0};
  for_gradients(w, q, product, how, [&](index_t first, MatrixView<float> d, MatrixView<float> g) {
    parallel_for(how.quiet(), d.rows(), [&](index_t r) {
      const index_t row = first + r;
      float* gradient = g.row_data(r);  // half of it: (q - w) H
      for (int sweep = 0; sweep < options.sweeps; ++sweep) {
        index_t moved = 0;
        for (index_t group = 0; group < grids.groups(); ++group) {
          const Grid grid = grids.grid(row, group);
          for (index_t j = group * size; j < std::min(n, (group + 1) * size); ++j) {
            const float curvature = hessian(j, j);
            if (!(curvature > 0.0f)) continue;
            const float now = q(row, j);
            const float best = grid.nearest(now - gradient[j] / curvature);
            const float step = best - now;
            // The change of the objective over `step`; what rounding of the gradient can explain is no gain.
            const float slope = 2.0f * gradient[j] + step * curvature;
            if (step == 0.0f || !(step * slope < -1e-4f * step * step * curvature)) continue;
            const float* column = hessian.row_data(j);
            for (index_t k = 0; k < n; ++k) gradient[k] += step * column[k];
            q(row, j) = best;
            ++moved;
          }
        }
        moves.fetch_add(moved, std::memory_order_relaxed);
        if (moved == 0) break;
      }
    });
  });
  return moves.load();
}

}  // namespace blockpack::inline BLOCKPACK_ABI
