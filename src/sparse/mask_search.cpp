// SPDX-License-Identifier: Apache-2.0
#include "blockpack/sparse/prune/mask_search.hpp"

#include <algorithm>
#include <vector>

#include "quant/hessian.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

/// H of some columns, swept on the kept ones, with the vector of their problem. The lower triangle is held.
class Tableau {
 public:
  /// `h` is damped; it outlives the tableau.
  Tableau(MatrixView<const double> h, std::span<const double> v, double loss)
      : n_(h.rows()),
        h_(h),
        t_(checked_mul(n_, n_, "mask_search")),
        column_(v.size()),
        v_(v.begin(), v.end()),
        loss_(loss) {
    for (index_t i = 0; i < n_; ++i) std::copy_n(h.row_data(i), i + 1, t_.data() + i * n_);
  }

  double value(index_t i) const { return v_[static_cast<std::size_t>(i)]; }
  double loss() const { return loss_; }
  /// What is left of a pruned column beside the kept ones, of its own square.
  bool regular(index_t i) const { return at(i, i) > 1e-10 * h_(i, i); }

  void keep(index_t k) {
    loss_ -= value(k) * value(k) / at(k, k);
    pivot(k, 1.0);
  }
  void prune(index_t k) {
    loss_ += value(k) * value(k) / -at(k, k);
    pivot(k, -1.0);
  }
  /// How much the loss falls when kept p makes room for pruned r.
  double gain(index_t p, index_t r) const {
    const double a = -at(p, p), t = p < r ? at(r, p) : at(p, r), q = value(p) / a;
    const double gradient = value(r) + t * q;
    return gradient * gradient / (at(r, r) + t * t / a) - value(p) * q;
  }

 private:
  /// i >= j.
  double at(index_t i, index_t j) const { return t_[i * n_ + j]; }

  /// The symmetric sweep on k, or its inverse (sign -1).
  void pivot(index_t k, double sign) {
    const double inverse = 1.0 / at(k, k), v_k = value(k);
    double* column = column_.data();
    for (index_t i = 0; i < n_; ++i) column[i] = i < k ? at(k, i) : at(i, k);
    column[k] = 0.0;
    for (index_t i = 0; i < n_; ++i) {
      double* row = t_.data() + i * n_;
      const double factor = column[i] * inverse;
      for (index_t j = 0; j <= i; ++j) row[j] -= factor * column[j];
      v_[static_cast<std::size_t>(i)] -= factor * v_k;
    }
    for (index_t i = 0; i < n_; ++i) (i < k ? t_[k * n_ + i] : t_[i * n_ + k]) = sign * column[i] * inverse;
    t_[k * n_ + k] = -inverse;
    v_[static_cast<std::size_t>(k)] = sign * v_k * inverse;
  }

  index_t n_;
  MatrixView<const double> h_;
  AlignedBuffer<double> t_;
  std::vector<double> column_, v_;
  double loss_;
};

/// One row: its error w - q, what H makes of it, and its loss.
class RowSearch {
 public:
  RowSearch(MatrixView<const double> h, std::span<const float> w, index_t row, Mask& mask, std::span<float> q,
            const MaskSearchOptions& options)
      : h_(h), w_(w), row_(row), mask_(mask), q_(q), options_(options), gradient_(w.size()) {
    for (index_t j = 0; j < columns(); ++j) {
      const double error = difference(j);
      if (error != 0.0) add(j, error);
    }
    for (index_t j = 0; j < columns(); ++j) loss_ += difference(j) * gradient_[static_cast<std::size_t>(j)];
  }

  double loss() const { return loss_; }
  index_t swaps() const { return swaps_; }

  /// The columns [first, end), cut into groups, with all others as they are. Whether a weight was exchanged.
  bool window(index_t first, index_t end, index_t of) {
    const index_t n = end - first;
    const MatrixView<const double> h = h_.block(first, first, n, n);
    // With the weights of the window gone: their gradient and the loss.
    std::vector<double> v(static_cast<std::size_t>(n));
    double loss = loss_;
    for (index_t i = 0; i < n; ++i) {
      double own = 0;
      for (index_t j = 0; j < n; ++j) own += h(i, j) * static_cast<double>(q_[std::size_t(first + j)]);
      v[std::size_t(i)] = gradient_[std::size_t(first + i)] + own;
      loss += static_cast<double>(q_[std::size_t(first + i)]) * (2.0 * gradient_[std::size_t(first + i)] + own);
    }
    Tableau t(h, v, loss);
    for (index_t j = 0; j < n; ++j) {
      if (!kept(h, first, j)) continue;
      if (!t.regular(j))
        throw ValueError("mask_search: the kept columns of row " + std::to_string(row_) + " are singular" +
                         (options_.layer.empty() ? "" : " in layer '" + options_.layer + "'") + "; raise the damping");
      t.keep(j);
    }
    bool any = false, moved = true;
    for (int pass = 0; pass < options_.passes && moved; ++pass) {
      moved = false;
      for (index_t group = 0; group < n; group += of)
        while (exchange(t, h, first, group, std::min(n, group + of))) {
          ++swaps_;
          any = moved = true;
        }
    }
    for (index_t j = 0; j < n; ++j) {
      const auto at = static_cast<std::size_t>(first + j);
      const float value = kept(h, first, j) ? static_cast<float>(t.value(j)) : 0.0f;
      const double change = static_cast<double>(q_[at]) - static_cast<double>(value);
      q_[at] = value;
      if (change != 0.0) add(first + j, change);
    }
    loss_ = t.loss();
    return any;
  }

 private:
  index_t columns() const { return static_cast<index_t>(w_.size()); }
  double difference(index_t j) const {
    return static_cast<double>(w_[std::size_t(j)]) - static_cast<double>(q_[std::size_t(j)]);
  }
  void add(index_t j, double error) {
    const double* row = h_.row_data(j);
    for (std::size_t i = 0; i < gradient_.size(); ++i) gradient_[i] += error * row[i];
  }
  bool kept(MatrixView<const double> h, index_t first, index_t j) const {
    return mask_(row_, first + j) && h(j, j) != 0.0;
  }

  /// The best exchange within columns [group, end) of the window, if it gains enough.
  bool exchange(Tableau& t, MatrixView<const double> h, index_t first, index_t group, index_t end) {
    double best = options_.least_gain * t.loss();
    index_t out = -1, in = -1;
    for (index_t p = group; p < end; ++p) {
      if (!kept(h, first, p)) continue;
      for (index_t r = group; r < end; ++r) {
        if (mask_(row_, first + r) || h(r, r) == 0.0 || !t.regular(r)) continue;
        const double gain = t.gain(p, r);
        if (!(gain > best)) continue;
        best = gain;
        out = p;
        in = r;
      }
    }
    if (out < 0) return false;
    t.prune(out);
    t.keep(in);
    mask_.set(row_, first + out, false);
    mask_.set(row_, first + in);
    return true;
  }

  MatrixView<const double> h_;
  std::span<const float> w_;
  index_t row_;
  Mask& mask_;
  std::span<float> q_;
  const MaskSearchOptions& options_;
  std::vector<double> gradient_;
  double loss_ = 0;
  index_t swaps_ = 0;
};

}  // namespace

MaskSearchReport mask_search(MatrixView<const float> w, const GramMatrix& h, const Mask& start, index_t of,
                             MatrixView<float> q, const MaskSearchOptions& options, const Execution& how) {
  quant::check_layer("mask_search", w, q.shape(), h);
  quant::check_layer<float>("mask_search, its start", q, q.shape(), h);
  if (start.shape() != w.shape())
    throw ShapeError("mask_search: the mask is " + to_string(start.shape()) + ", w is " + to_string(w.shape()));
  if (of < 0 || options.window < 1 || options.rounds < 0 || options.passes < 0 || !(options.damping >= 0.0))
    throw ValueError("mask_search: of, window, rounds, passes and damping must not be negative, nor window 0");
  MaskSearchReport report{start, 0, 0, 0};
  if (w.empty()) return report;
  start.apply(q);
  const index_t n = w.cols(), group = of == 0 ? std::min(n, options.window) : of;
  const index_t width = std::min(n, std::max(group, options.window / group * group));
  AlignedBuffer<double> memory(checked_mul(n, n, "mask_search"));
  const MatrixView<double> damped(memory.data(), n, n);
  h.copy_to(damped, 1.0, options.damping, how);
  for (index_t j = 0; j < n; ++j)  // what no input reaches
    if (h(j, j) == 0.0)
      for (index_t i = 0; i < n; ++i) damped(i, j) = damped(j, i) = 0.0;
  struct Row {
    double before = 0, after = 0;
    index_t swaps = 0;
  };
  std::vector<Row> rows(static_cast<std::size_t>(w.rows()));
  parallel_for(how, w.rows(), [&](index_t i) {
    RowSearch search(damped, w.row(i), i, report.mask, q.row(i), options);
    Row& row = rows[static_cast<std::size_t>(i)];
    row.before = search.loss();
    bool moved = true;
    for (int round = 0; round < (width == n ? std::min(1, options.rounds) : options.rounds) && moved; ++round) {
      moved = false;
      for (index_t first = 0; first < n; first += width)
        moved = search.window(first, std::min(n, first + width), group) || moved;
    }
    row.after = search.loss();
    row.swaps = search.swaps();
  });
  for (const Row& row : rows) {
    report.loss_before += row.before;
    report.loss_after += row.after;
    report.swaps += row.swaps;
  }
  return report;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
