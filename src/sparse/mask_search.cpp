// SPDX-License-Identifier: Apache-2.0
#include "blockpack/sparse/prune/mask_search.hpp"

#include <algorithm>
#include <vector>

#include "quant/hessian.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

/// H swept on the kept columns of one row, with the vector of its problem.
class Tableau {
 public:
  /// `h` is damped.
  explicit Tableau(MatrixView<const double> h) : n_(h.rows()), h_(h), t_(checked_mul(n_, n_, "mask_search")) {}

  /// Begins with nothing kept and the gradients w H.
  void begin(std::span<const float> w) {
    for (index_t i = 0; i < n_; ++i) {
      std::copy_n(h_.row_data(i), n_, t_.data() + i * n_);
      double sum = 0;
      for (index_t j = 0; j < n_; ++j) sum += h_(i, j) * static_cast<double>(w[static_cast<std::size_t>(j)]);
      v_[static_cast<std::size_t>(i)] = sum;
      loss_ += sum * static_cast<double>(w[static_cast<std::size_t>(i)]);
    }
  }

  double at(index_t i, index_t j) const { return t_[i * n_ + j]; }
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
    const double a = -at(p, p), t = at(r, p), q = value(p) / a;
    const double gradient = value(r) + t * q;
    return gradient * gradient / (at(r, r) + t * t / a) - value(p) * q;
  }

 private:
  /// The symmetric sweep on k, or its inverse (sign -1).
  void pivot(index_t k, double sign) {
    double* row_k = t_.data() + k * n_;
    const double inverse = 1.0 / row_k[k];
    const double v_k = value(k) * inverse;
    row_k[k] = 0.0;
    for (index_t i = 0; i < n_; ++i) {
      if (i == k) continue;
      double* row = t_.data() + i * n_;
      const double factor = row[k] * inverse;
      for (index_t j = 0; j < n_; ++j) row[j] -= factor * row_k[j];
      row[k] = sign * factor;
      v_[static_cast<std::size_t>(i)] -= factor * value(k);
    }
    for (index_t j = 0; j < n_; ++j) row_k[j] = sign * row_k[j] * inverse;
    row_k[k] = -inverse;
    v_[static_cast<std::size_t>(k)] = sign * v_k;
  }

  index_t n_;
  MatrixView<const double> h_;
  AlignedBuffer<double> t_;
  std::vector<double> v_ = std::vector<double>(static_cast<std::size_t>(n_));
  double loss_ = 0;
};

struct RowResult {
  double before = 0, after = 0;
  index_t swaps = 0;
};

/// The best exchange within columns [first, end) of a row, if it gains more than `least`.
bool exchange(Tableau& t, MatrixView<const double> h, index_t first, index_t end, double least, index_t row,
              Mask& mask) {
  index_t out = -1, in = -1;
  for (index_t p = first; p < end; ++p) {
    if (!mask(row, p) || h(p, p) == 0.0) continue;
    for (index_t r = first; r < end; ++r) {
      if (mask(row, r) || h(r, r) == 0.0 || !t.regular(r)) continue;
      const double gain = t.gain(p, r);
      if (!(gain > least)) continue;
      least = gain;
      out = p;
      in = r;
    }
  }
  if (out < 0) return false;
  t.prune(out);
  t.keep(in);
  mask.set(row, out, false);
  mask.set(row, in);
  return true;
}

RowResult search_row(MatrixView<const double> h, std::span<const float> w, index_t of, const MaskSearchOptions& options,
                     index_t row, Mask& mask, std::span<float> q) {
  const auto n = static_cast<index_t>(w.size());
  Tableau t(h);
  t.begin(w);
  for (index_t j = 0; j < n; ++j) {
    if (!mask(row, j) || h(j, j) == 0.0) continue;
    if (!t.regular(j))
      throw ValueError("mask_search: the kept columns of row " + std::to_string(row) + " are singular" +
                       (options.layer.empty() ? "" : " in layer '" + options.layer + "'") + "; raise the damping");
    t.keep(j);
  }
  RowResult result{t.loss(), 0, 0};
  bool moved = true;
  for (int pass = 0; pass < options.passes && moved; ++pass) {
    moved = false;
    for (index_t first = 0; first < n; first += of)
      while (exchange(t, h, first, std::min(n, first + of), options.least_gain * t.loss(), row, mask)) {
        ++result.swaps;
        moved = true;
      }
  }
  for (index_t j = 0; j < n; ++j)
    q[static_cast<std::size_t>(j)] = mask(row, j) && h(j, j) != 0.0 ? static_cast<float>(t.value(j)) : 0.0f;
  result.after = t.loss();
  return result;
}

}  // namespace

MaskSearchReport mask_search(MatrixView<const float> w, const GramMatrix& h, const Mask& start, index_t of,
                             MatrixView<float> q, const MaskSearchOptions& options, const Execution& how) {
  quant::check_layer("mask_search", w, q.shape(), h);
  if (start.shape() != w.shape())
    throw ShapeError("mask_search: the mask is " + to_string(start.shape()) + ", w is " + to_string(w.shape()));
  if (of < 0 || options.passes < 0 || !(options.damping >= 0.0))
    throw ValueError("mask_search: of, passes and damping must not be negative");
  MaskSearchReport report{start, 0, 0, 0};
  if (w.empty()) return report;
  const index_t n = w.cols();
  AlignedBuffer<double> memory(checked_mul(n, n, "mask_search"));
  const MatrixView<double> damped(memory.data(), n, n);
  h.copy_to(damped, 1.0, options.damping, how);
  for (index_t j = 0; j < n; ++j)  // what no input reaches
    if (h(j, j) == 0.0)
      for (index_t i = 0; i < n; ++i) damped(i, j) = damped(j, i) = 0.0;
  std::vector<RowResult> rows(static_cast<std::size_t>(w.rows()));
  parallel_for(how, w.rows(), [&](index_t i) {
    rows[static_cast<std::size_t>(i)] =
        search_row(damped, w.row(i), of == 0 ? n : of, options, i, report.mask, q.row(i));
  });
  for (const RowResult& row : rows) {
    report.loss_before += row.before;
    report.loss_after += row.after;
    report.swaps += row.swaps;
  }
  return report;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
