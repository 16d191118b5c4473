// SPDX-License-Identifier: Apache-2.0
#pragma once

/// W ≈ a BLAST matrix, block (i, j) = U_i · diag(s_ij) · V_jᵀ, by alternating preconditioned gradient descent, for the
/// error of the weights or, given XᵀX, for the error of the outputs.
///
/// Source: "BLAST: Block-Level Adaptive Structured Matrices for Efficient Deep Neural Network Inference",
/// arXiv:2410.21262, algorithm 2, in the form of the released code (changwoolee/BLAST, ops/blast_ops.py), whose step at
/// learning_rate 1 is twice the damped least-squares step. The starts, the choice among them, the steps against XᵀX and
/// the order of the products are ours.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/structured/factors.hpp"
#include "blockpack/structured/low_rank_fit.hpp"
#include "blockpack/structured/monarch_fit.hpp"
#include "blockpack/structured/product.hpp"
#include "blockpack/structured/svd.hpp"

namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI {

/// What the gradient of s_ij is divided by: `matched` (U_iᵀU_i) ∘ (V_jᵀV_j), the Hessian; `swapped`
/// (U_jᵀU_j) ∘ (V_iᵀV_i), what the released code computes, which converges more slowly.
enum class BlastPreconditioner : std::uint8_t { matched, swapped };

enum class BlastStart : std::uint8_t {
  noise,    ///< U, V ~ 0.001 / sqrt(rank) N(0, 1), s ~ N(0, 1)
  svd,      ///< slices of the truncated SVD, of the whitened one with a Gram matrix, s = 1: never worse than it
  monarch,  ///< the blocked Monarch projection, s_ij picks the ranks of group (i + j) mod blocks: never worse than it
  plain,    ///< with a Gram matrix: the fit without it, of as many iterations
  given,    ///< the factors that are passed
  best      ///< each of the others for trial_iterations, then the best of them; no noise with a Gram matrix
};

/// Which iterate is the result: the one of least error, or the last.
enum class BlastKeep : std::uint8_t { best, last };

/// How the systems of the s step are solved.
enum class CouplingSolver : std::uint8_t {
  cholesky,            ///< blocks² factorizations, blocks² · rank³ / 3 operations
  conjugate_gradients  ///< coupling_iterations products each, 2 · blocks² · rank² · coupling_iterations operations
};

struct BlastOptions {
  index_t blocks = 16;
  index_t rank = 1;
  int iterations = 300;
  double learning_rate = 1.0;
  double end_factor = 0.0;  ///< of the learning rate, which falls linearly to learning_rate · end_factor
  double damping = 0.1;     ///< delta: ||E||_F times it is added to the diagonal of every preconditioner
  BlastPreconditioner preconditioner = BlastPreconditioner::matched;
  BlastStart start = BlastStart::best;
  int trial_iterations = 0;  ///< of `best`; 0 = a tenth of the iterations, at least 10
  BlastKeep keep = BlastKeep::best;
  bool fix_coupling = false;  ///< s stays that of the start
  int coupling_every = 1;     ///< the s step is made in every so many iterations
  CouplingSolver coupling_solver = CouplingSolver::cholesky;
  int coupling_iterations = 8;  ///< of conjugate_gradients
  std::uint64_t seed = 0;       ///< of `noise` and of the SVD of large matrices
  /// The loss becomes ||(W - M) Xᵀ||_F. The preconditioner must be `matched` then, and these take the place of
  /// learning_rate and damping: the metric itself is ill-conditioned, and directions it calls small need large steps.
  const GramMatrix* gram = nullptr;
  double gram_learning_rate = 0.75;
  double gram_damping = 1e-3;
  Execution execution = {};
};

template <class T>
struct BlastFit {
  BlastFactors<T> factors;
  /// ||E|| / ||W|| of each iteration as the fit sees it: after the U and V steps and before the s step (when s is
  /// fixed, or this iteration has no s step, before the V step; with a Gram matrix, of output errors before the
  /// iteration).
  std::vector<double> error_trace;
  double rel_error = 0.0;                ///< of `factors`, of output errors with a Gram matrix
  BlastStart start = BlastStart::noise;  ///< which one the result comes from
};

namespace fit_detail {

template <class T>
class BlastDescent {
 public:
  struct State {
    RowMajorMatrix<T> u;  ///< [blocks · p, rank]
    RowMajorMatrix<T> v;  ///< [blocks · q, rank]
    RowMajorMatrix<T> s;  ///< [blocks², rank]
    double error = INFINITY;
  };

  BlastDescent(MatrixView<const T> w, const BlastOptions& options)
      : options_(options),
        step_(for_work(options.execution, static_cast<double>(w.rows()) * static_cast<double>(w.cols()) *
                                              static_cast<double>(options.rank))),
        inner_(options.blocks > 1 ? options.execution.serial() : step_),
        shape_(w.shape()),
        b_(options.blocks),
        r_(options.rank),
        p_(ceil_div(w.rows(), b_)),
        q_(ceil_div(w.cols(), b_)) {
    unit_ = deviation(w);
    a_ = RowMajorMatrix<T>::Zero(b_ * p_, b_ * q_);
    a_.topLeftCorner(w.rows(), w.cols()) = eigen_map(w) / static_cast<T>(unit_);
    if (options.gram != nullptr) {
      g_ = normalized_gram<T>(*options.gram, b_ * q_, step_);
      for (index_t j = 0; j < b_; ++j) {
        inputs_.emplace_back();
        inputs_.back().factorize_damped(g_.block(j * q_, j * q_, q_, q_), kInputDamping, step_);
      }
      RowMajorMatrix<T> ag(a_.rows(), a_.cols());
      product<T>(view(std::as_const(a_)), view(std::as_const(g_)), view(ag), step_);
      norm_ = std::sqrt(std::max(0.0, inner<T>(view(std::as_const(ag)), view(std::as_const(a_)))));
    } else {
      at_ = a_.transpose();
      norm_ = std::sqrt(squared_norm<T>(view(std::as_const(a_))));
    }
  }

  double norm() const noexcept { return norm_; }
  double unit() const noexcept { return unit_; }

  State noise() const {
    State state = zeros();
    Random random(options_.seed);
    const double scale = 0.001 / std::sqrt(static_cast<double>(r_));
    // In the order of the rows of W, so that padding does not move the numbers.
    fill_normal_rows(random, state.u, shape_.rows, scale);
    fill_normal_rows(random, state.v, shape_.cols, scale);
    fill_normal_rows(random, state.s, b_ * b_, 1.0);
    return state;
  }

  State from_svd() const {
    LowRankOptions options;
    options.svd.execution = step_;
    options.svd.seed = options_.seed;
    const index_t smaller = std::min(shape_.rows, shape_.cols);
    if (smaller > kExactSvd) options.svd.method = SvdMethod::krylov;
    if (options_.gram != nullptr) {
      options.scale = ScaleMode::cholesky;
      options.gram = options_.gram;
    }
    const index_t kept = std::min(r_, smaller);
    const LowRankFactors<T> f =
        low_rank_fit<T>(view(std::as_const(a_)).block(0, 0, shape_.rows, shape_.cols), kept, options);
    State state = zeros();
    state.u.topLeftCorner(shape_.rows, kept) = f.left;
    state.v.topLeftCorner(shape_.cols, kept) = f.right.transpose();
    state.s.setOnes();
    if (kept < r_) {  // slots beyond the rank of W start as zeros that can grow
      const State other = noise();
      state.u.rightCols(r_ - kept) = other.u.rightCols(r_ - kept);
    }
    return state;
  }

  State from_monarch() const {
    MonarchOptions options;
    options.in_blocks = options.out_blocks = b_;
    options.rank = ceil_div(r_, b_);
    options.gram = options_.gram;
    options.svd.execution = step_;
    const MonarchFactors<T> f =
        monarch_project<T>(view(std::as_const(a_)).block(0, 0, shape_.rows, shape_.cols), options);
    State state = zeros();
    index_t slot = 0;
    for (index_t group = 0; group < b_; ++group) {
      const index_t rank = r_ / b_ + (group < r_ % b_ ? 1 : 0);
      for (index_t i = 0; i < b_; ++i) {
        const index_t j = (group - i + b_) % b_;
        state.u.block(i * p_, slot, p_, rank) = f.second_block(i, j).leftCols(rank);
        state.v.block(j * q_, slot, q_, rank) = f.first_block(j, i).topRows(rank).transpose();
        state.s.row(i * b_ + j).segment(slot, rank).setOnes();
      }
      slot += rank;
    }
    return state;
  }

  State from_factors(const BlastFactors<T>& f) const {
    State state = zeros();
    state.u = f.left;
    for (index_t j = 0; j < b_; ++j) state.v.middleRows(j * q_, q_) = f.right.middleRows(j * r_, r_).transpose();
    state.s = f.coupling / static_cast<T>(unit_);
    return state;
  }

  BlastFactors<T> factors(const State& state) const {
    BlastFactors<T> f{shape_.rows, shape_.cols, b_, r_, state.u, RowMajorMatrix<T>(b_ * r_, q_), {}};
    for (index_t j = 0; j < b_; ++j) f.right.middleRows(j * r_, r_) = state.v.middleRows(j * q_, q_).transpose();
    f.coupling = state.s * static_cast<T>(unit_);
    return f;
  }

  /// Iterations [begin, end). `best` keeps the state of least error among those at the start of an iteration.
  /// `report(t)` after each. Stops early at an error of 0.
  template <class Report>
  void run(State& state, State& best, int begin, int end, std::vector<double>& trace, const Report& report) const {
    std::vector<RowMajorMatrix<T>> gram_v = options_.gram == nullptr ? grams(state.v, q_) : decltype(gram_v)();
    for (int t = begin; t < end; ++t) {
      options_.execution.throw_if_stopped();
      const double fraction = static_cast<double>(t) / options_.iterations;
      const double rate = options_.gram == nullptr ? options_.learning_rate : options_.gram_learning_rate;
      const double eta = rate * (1.0 - (1.0 - options_.end_factor) * fraction);
      const bool couple = !options_.fix_coupling && t % options_.coupling_every == 0;
      const double error = options_.gram == nullptr ? plain_step(state, best, gram_v, eta, couple)
                                                    : weighted_step(state, best, eta, couple);
      trace.push_back(norm_ > 0.0 ? error / norm_ : 0.0);
      report(t);
      if (!(error > 0.0)) break;
    }
  }

  /// ||E||, of the outputs with a Gram matrix.
  double error(const State& state) const {
    if (options_.gram != nullptr) {
      RowMajorMatrix<T> e(a_.rows(), a_.cols()), eg(a_.rows(), a_.cols());
      residual(state, e);
      product<T>(view(std::as_const(e)), view(g_), view(eg), step_);
      return std::sqrt(std::max(0.0, inner<T>(view(std::as_const(eg)), view(std::as_const(e)))));
    }
    std::vector<double> squares(static_cast<std::size_t>(b_));
    parallel_for(step_, b_, [&](index_t i) {
      RowMajorMatrix<T> e(p_, b_ * q_);
      const RowMajorMatrix<T> scaled = scale_rows(state.v, q_, [&](index_t j) { return state.s.row(i * b_ + j); });
      residual_rows(state.u, scaled, a_, i, e);
      squares[static_cast<std::size_t>(i)] = squared_norm<T>(view(std::as_const(e)));
    });
    return root_of_sum(squares);
  }

 private:
  static constexpr index_t kExactSvd = 1024;     ///< above it starts take the Krylov method
  static constexpr double kInputDamping = 1e-4;  ///< of the mean diagonal of XᵀX, in the solves with its blocks

  static double deviation(MatrixView<const T> w) {
    const double n = static_cast<double>(w.rows()) * static_cast<double>(w.cols());
    double sum = 0.0;
    for (index_t i = 0; i < w.rows(); ++i)
      for (index_t j = 0; j < w.cols(); ++j) sum += static_cast<double>(w(i, j));
    const double mean = sum / n;
    double squares = 0.0;
    for (index_t i = 0; i < w.rows(); ++i) {
      double row = 0.0;
      for (index_t j = 0; j < w.cols(); ++j) {
        const double d = static_cast<double>(w(i, j)) - mean;
        row += d * d;
      }
      squares += row;
    }
    const double deviation = n > 1.0 ? std::sqrt(squares / (n - 1.0)) : 0.0;
    if (deviation > 1e-6 * std::fabs(mean)) return deviation;
    return mean != 0.0 ? std::fabs(mean) : 1.0;  // (nearly) the same value everywhere
  }

  static double root_of_sum(const std::vector<double>& squares) {
    double sum = 0.0;
    for (const double v : squares) sum += v;
    return std::sqrt(sum);
  }

  static void fill_normal_rows(Random& random, RowMajorMatrix<T>& m, index_t rows, double scale) {
    for (index_t i = 0; i < rows; ++i)
      for (index_t j = 0; j < m.cols(); ++j) m(i, j) = static_cast<T>(scale * static_cast<double>(random.normal()));
  }

  State zeros() const {
    return {RowMajorMatrix<T>::Zero(b_ * p_, r_), RowMajorMatrix<T>::Zero(b_ * q_, r_),
            RowMajorMatrix<T>::Zero(b_ * b_, r_), INFINITY};
  }

  /// The blocks of m, rows each, with the columns of block j scaled by s(j).
  template <class Row>
  RowMajorMatrix<T> scale_rows(const RowMajorMatrix<T>& m, index_t rows, const Row& s) const {
    RowMajorMatrix<T> scaled(m.rows(), r_);
    for (index_t j = 0; j < b_; ++j) {
      const auto scale = s(j);
      for (index_t c = j * rows; c < (j + 1) * rows; ++c) scaled.row(c).array() = m.row(c).array() * scale.array();
    }
    return scaled;
  }

  /// e = x_i · scaledᵀ - target_i.
  void residual_rows(const RowMajorMatrix<T>& x, const RowMajorMatrix<T>& scaled, const RowMajorMatrix<T>& target,
                     index_t i, RowMajorMatrix<T>& e) const {
    const index_t rows = x.rows() / b_;
    product_transposed<T>(view(x).rows_from(i * rows, rows), view(scaled), view(e), inner_);
    e -= target.middleRows(i * rows, rows);
  }

  /// mᵀ m of each block of rows.
  std::vector<RowMajorMatrix<T>> grams(const RowMajorMatrix<T>& m, index_t rows) const {
    std::vector<RowMajorMatrix<T>> result(static_cast<std::size_t>(b_));
    parallel_for(step_, b_, [&](index_t i) {
      result[static_cast<std::size_t>(i)] = gram_of_columns<T>(view(m).rows_from(i * rows, rows), inner_);
    });
    return result;
  }

  /// h += (s tᵀ) ∘ m.
  template <class Row>
  static void add_scaled(RowMajorMatrix<T>& h, const Row& s, const Row& t, const RowMajorMatrix<T>& m) {
    for (index_t a = 0; a < h.rows(); ++a) h.row(a).array() += s(a) * (t.array() * m.row(a).array());
  }

  /// The gradient of ||E||² / 2 in x, where block (i, j) of the matrix is x_i · diag(s(i, j)) · y_jᵀ; gives ||E||.
  template <class Row>
  double gradient(const RowMajorMatrix<T>& x, const RowMajorMatrix<T>& y, const RowMajorMatrix<T>& target, const Row& s,
                  RowMajorMatrix<T>& g) const {
    const index_t rows = x.rows() / b_;
    g.resize(x.rows(), r_);
    std::vector<double> squares(static_cast<std::size_t>(b_));
    parallel_for(step_, b_, [&](index_t i) {
      const RowMajorMatrix<T> scaled = scale_rows(y, y.rows() / b_, [&](index_t j) { return s(i, j); });
      RowMajorMatrix<T> e(rows, y.rows());
      residual_rows(x, scaled, target, i, e);
      squares[static_cast<std::size_t>(i)] = squared_norm<T>(view(std::as_const(e)));
      product<T>(view(std::as_const(e)), view(scaled), view(g).rows_from(i * rows, rows), inner_);
    });
    return root_of_sum(squares);
  }

  /// x_i -= 2 eta g_i (Σ_j (s s^T) ∘ y_jᵀy_j + shift I)⁻¹.
  template <class Row>
  void descend(RowMajorMatrix<T>& x, const std::vector<RowMajorMatrix<T>>& gram_y, const Row& s, RowMajorMatrix<T>& g,
               double shift, double eta) const {
    const index_t rows = x.rows() / b_;
    parallel_for(step_, b_, [&](index_t i) {
      RowMajorMatrix<T> h = RowMajorMatrix<T>::Zero(r_, r_);
      for (index_t j = 0; j < b_; ++j) add_scaled(h, s(i, j), s(i, j), gram_y[static_cast<std::size_t>(j)]);
      Cholesky<T> cholesky;
      cholesky.factorize_damped(h, shift, inner_);
      const MatrixView<T> d = view(g).rows_from(i * rows, rows);
      cholesky.solve_rows(d, inner_);
      x.middleRows(i * rows, rows) -= static_cast<T>(2.0 * eta) * eigen_map(d);
    });
  }

  /// x ← x · (h + shift I)⁻¹ for one row x.
  void solve_coupling(const RowMajorMatrix<T>& h, double shift, MatrixView<T> x) const {
    auto row = eigen_map(x);
    if (options_.coupling_solver == CouplingSolver::cholesky) {
      Cholesky<T> cholesky;
      cholesky.factorize_damped(h, shift, inner_);
      return cholesky.solve_rows(x, inner_);
    }
    // Conjugate gradients, preconditioned by the diagonal.
    using Vector = Eigen::Matrix<T, Eigen::Dynamic, 1>;
    const T damp = static_cast<T>(shift);
    const Vector scale = (h.diagonal().array() + damp).cwiseMax(std::numeric_limits<T>::min()).inverse();
    Vector solution = Vector::Zero(r_), residual = row.row(0).transpose();
    Vector z = scale.cwiseProduct(residual), direction = z;
    double rz = static_cast<double>(residual.dot(z));
    const double target = 1e-12 * rz;
    for (int k = 0; k < options_.coupling_iterations && rz > target; ++k) {
      const Vector image = h * direction + damp * direction;
      const double curvature = static_cast<double>(direction.dot(image));
      if (!(curvature > 0.0)) break;
      const T alpha = static_cast<T>(rz / curvature);
      solution += alpha * direction;
      residual -= alpha * image;
      z = scale.cwiseProduct(residual);
      const double next = static_cast<double>(residual.dot(z));
      direction = z + static_cast<T>(next / rz) * direction;
      rz = next;
    }
    row.row(0) = solution.transpose();
  }

  /// The s step of all blocks; gives ||E|| before it.
  double couple_all(State& state, const std::vector<RowMajorMatrix<T>>& gram_u,
                    const std::vector<RowMajorMatrix<T>>& gram_v, double eta) const {
    RowMajorMatrix<T> g(b_ * b_, r_);
    std::vector<double> squares(static_cast<std::size_t>(b_));
    parallel_for(step_, b_, [&](index_t i) {
      const RowMajorMatrix<T> scaled = scale_rows(state.v, q_, [&](index_t j) { return state.s.row(i * b_ + j); });
      RowMajorMatrix<T> e(p_, b_ * q_), ev(p_, r_);
      residual_rows(state.u, scaled, a_, i, e);
      squares[static_cast<std::size_t>(i)] = squared_norm<T>(view(std::as_const(e)));
      for (index_t j = 0; j < b_; ++j) {
        product<T>(view(std::as_const(e)).block(0, j * q_, p_, q_), view(std::as_const(state.v)).rows_from(j * q_, q_),
                   view(ev), inner_);
        g.row(i * b_ + j) = state.u.middleRows(i * p_, p_).cwiseProduct(ev).colwise().sum();
      }
    });
    const double error = root_of_sum(squares);
    if (!(error > 0.0)) return error;
    const bool matched = options_.preconditioner == BlastPreconditioner::matched;
    parallel_for(step_, b_ * b_, [&](index_t task) {
      const auto i = static_cast<std::size_t>(task / b_), j = static_cast<std::size_t>(task % b_);
      const RowMajorMatrix<T> h = gram_u[matched ? i : j].cwiseProduct(gram_v[matched ? j : i]);
      solve_coupling(h, options_.damping * error, view(g).rows_from(task, 1));
    });
    state.s -= static_cast<T>(2.0 * eta) * g;
    return error;
  }

  void keep(const State& state, State& best, double error) const {
    if (!std::isfinite(error))
      throw ValueError("blast_factorize: the descent left the range of numbers; lower learning_rate or raise damping");
    if (options_.keep == BlastKeep::best && error < best.error) {
      best = state;
      best.error = error;
    }
  }

  double plain_step(State& state, State& best, std::vector<RowMajorMatrix<T>>& gram_v, double eta, bool couple) const {
    const auto row = [&](index_t i, index_t j) { return state.s.row(i * b_ + j); };
    const auto column = [&](index_t j, index_t i) { return state.s.row(i * b_ + j); };
    RowMajorMatrix<T> g;
    double error = gradient(state.u, state.v, a_, row, g);
    keep(state, best, error);
    if (!(error > 0.0)) return error;
    descend(state.u, gram_v, row, g, options_.damping * error, eta);
    const std::vector<RowMajorMatrix<T>> gram_u = grams(state.u, p_);
    error = gradient(state.v, state.u, at_, column, g);
    if (!(error > 0.0)) return error;
    descend(state.v, gram_u, column, g, options_.damping * error, eta);
    gram_v = grams(state.v, q_);
    return couple ? couple_all(state, gram_u, gram_v, eta) : error;
  }

  void residual(const State& state, RowMajorMatrix<T>& e) const {
    parallel_for(step_, b_, [&](index_t i) {
      const RowMajorMatrix<T> scaled = scale_rows(state.v, q_, [&](index_t j) { return state.s.row(i * b_ + j); });
      product_transposed<T>(view(state.u).rows_from(i * p_, p_), view(scaled), view(e).rows_from(i * p_, p_), inner_);
      e.middleRows(i * p_, p_) -= a_.middleRows(i * p_, p_);
    });
  }

  /// The same three steps in the metric of XᵀX = G. U_i meets the Hessian C̄_i G C̄_iᵀ; then, block column by block
  /// column, V_j the Hessian (Σ_i s_ij s_ijᵀ ∘ U_iᵀU_i) ⊗ G_jj and s_ij (U_iᵀU_i) ∘ (V_jᵀ G_jj V_j), with the residual
  /// brought up to date in between: inputs of different blocks are correlated. Each step is one of block coordinate
  /// descent, relaxed by 2 eta < 2, so that the loss does not rise.
  double weighted_step(State& state, State& best, double eta, bool couple) const {
    RowMajorMatrix<T> e(a_.rows(), a_.cols()), eg(a_.rows(), a_.cols());
    residual(state, e);
    product<T>(view(std::as_const(e)), view(g_), view(eg), step_);
    const double error = std::sqrt(std::max(0.0, inner<T>(view(std::as_const(eg)), view(std::as_const(e)))));
    keep(state, best, error);
    if (!(error > 0.0)) return error;
    const double shift = options_.gram_damping * error;
    const T relax = static_cast<T>(2.0 * eta);

    std::vector<RowMajorMatrix<T>> hessians(static_cast<std::size_t>(b_), RowMajorMatrix<T>::Zero(r_, r_));
    for (index_t k = 0; k < b_; ++k) {
      RowMajorMatrix<T> gv((k + 1) * q_, r_);  // rows of the blocks up to k: the rest is symmetric
      product<T>(view(g_).block(0, k * q_, (k + 1) * q_, q_), view(std::as_const(state.v)).rows_from(k * q_, q_),
                 view(gv), step_);
      for (index_t j = 0; j <= k; ++j) {
        const RowMajorMatrix<T> m = transposed_product<T>(view(std::as_const(state.v)).rows_from(j * q_, q_),
                                                          view(std::as_const(gv)).rows_from(j * q_, q_), step_);
        const RowMajorMatrix<T> mt = m.transpose();
        parallel_for(step_, b_, [&](index_t i) {
          RowMajorMatrix<T>& h = hessians[static_cast<std::size_t>(i)];
          add_scaled(h, state.s.row(i * b_ + j), state.s.row(i * b_ + k), m);
          if (j < k) add_scaled(h, state.s.row(i * b_ + k), state.s.row(i * b_ + j), mt);
        });
      }
    }
    parallel_for(step_, b_, [&](index_t i) {
      const RowMajorMatrix<T> scaled = scale_rows(state.v, q_, [&](index_t j) { return state.s.row(i * b_ + j); });
      RowMajorMatrix<T> d(p_, r_);
      product<T>(view(std::as_const(eg)).rows_from(i * p_, p_), view(scaled), view(d), inner_);
      Cholesky<T> cholesky;
      cholesky.factorize_damped(hessians[static_cast<std::size_t>(i)], shift, inner_);
      cholesky.solve_rows(view(d), inner_);
      state.u.middleRows(i * p_, p_) -= relax * d;
    });
    hessians.clear();

    const std::vector<RowMajorMatrix<T>> gram_u = grams(state.u, p_);
    residual(state, e);
    RowMajorMatrix<T> eg_j(a_.rows(), q_), change(a_.rows(), q_);
    for (index_t j = 0; j < b_; ++j) {
      options_.execution.throw_if_stopped();
      const auto s = [&](index_t i) { return state.s.row(i * b_ + j); };
      const MatrixView<const T> g_rows = view(g_).rows_from(j * q_, q_), g_jj = g_rows.block(0, j * q_, q_, q_);
      const MatrixView<T> e_j = view(e).block(0, j * q_, e.rows(), q_);
      product_transposed<T>(view(std::as_const(e)), g_rows, view(eg_j), step_);

      const RowMajorMatrix<T> scaled = scale_rows(state.u, p_, s);
      RowMajorMatrix<T> d = transposed_product<T>(view(std::as_const(eg_j)), view(scaled), step_);  // [q, r]
      RowMajorMatrix<T> h = RowMajorMatrix<T>::Zero(r_, r_);
      for (index_t i = 0; i < b_; ++i) add_scaled(h, s(i), s(i), gram_u[static_cast<std::size_t>(i)]);
      Cholesky<T> cholesky;
      cholesky.factorize_damped(h, shift, step_);
      cholesky.solve_rows(view(d), step_);
      RowMajorMatrix<T> dt = d.transpose();
      inputs_[static_cast<std::size_t>(j)].solve_rows(view(dt), step_);
      d = -relax * dt.transpose();
      state.v.middleRows(j * q_, q_) += d;
      product_transposed<T>(view(scaled), view(std::as_const(d)), view(change), step_);
      eigen_map(e_j) += change;
      if (!couple) continue;

      product_transposed<T>(view(std::as_const(change)), g_jj, view(eg_j), step_, true);
      const MatrixView<const T> v_j = view(std::as_const(state.v)).rows_from(j * q_, q_);
      RowMajorMatrix<T> gv(q_, r_);
      product<T>(g_jj, v_j, view(gv), step_);
      const RowMajorMatrix<T> m = transposed_product<T>(v_j, view(std::as_const(gv)), step_);
      parallel_for(step_, b_, [&](index_t i) {
        RowMajorMatrix<T> ev(p_, r_), x(1, r_);
        product<T>(view(std::as_const(eg_j)).rows_from(i * p_, p_), v_j, view(ev), inner_);
        x = state.u.middleRows(i * p_, p_).cwiseProduct(ev).colwise().sum();
        solve_coupling(gram_u[static_cast<std::size_t>(i)].cwiseProduct(m), shift, view(x));
        state.s.row(i * b_ + j) -= relax * x.row(0);
        const RowMajorMatrix<T> us = state.u.middleRows(i * p_, p_) * state.s.row(i * b_ + j).asDiagonal();
        const MatrixView<T> block = e_j.rows_from(i * p_, p_);
        product_transposed<T>(view(us), v_j, block, inner_);
        eigen_map(block) -= a_.block(i * p_, j * q_, p_, q_);
      });
    }
    return error;
  }

  BlastOptions options_;
  Execution step_;
  Execution inner_;
  MatrixShape shape_;
  index_t b_, r_, p_, q_;
  double unit_ = 1.0;
  double norm_ = 0.0;
  RowMajorMatrix<T> a_, at_;  ///< W over `unit`, padded
  RowMajorMatrix<T> g_;       ///< XᵀX over its mean diagonal, padded
  std::vector<Cholesky<T>> inputs_;
};

inline void check_blast(MatrixShape w, const BlastOptions& o) {
  const auto number = [](double v) { return std::to_string(v); };
  check_blocks("blast_factorize", "blocks", o.blocks, w.rows == 0 || w.cols == 0 ? o.blocks : std::min(w.rows, w.cols));
  if (o.rank < 1) throw ValueError("blast_factorize: rank = " + std::to_string(o.rank) + ", at least 1 needed");
  const index_t most = checked_mul(o.blocks, std::min(ceil_div(w.rows, o.blocks), ceil_div(w.cols, o.blocks)), "rank");
  if (o.rank > most && most > 0)
    throw ShapeError("blast_factorize: rank = " + std::to_string(o.rank) + ", at most " + std::to_string(most) +
                     " possible: " + std::to_string(o.blocks) + " times a side of the blocks holds any matrix");
  if (o.iterations < 0 || o.trial_iterations < 0)
    throw ValueError("blast_factorize: iterations and trial_iterations must not be negative");
  if (!(o.learning_rate > 0.0 && o.learning_rate <= 1.0))
    throw ValueError("blast_factorize: learning_rate = " + number(o.learning_rate) + ", in (0, 1] needed");
  if (!(o.gram_learning_rate > 0.0 && o.gram_learning_rate <= 1.0))
    throw ValueError("blast_factorize: gram_learning_rate = " + number(o.gram_learning_rate) + ", in (0, 1] needed");
  if (!(o.gram_damping >= 0.0 && std::isfinite(o.gram_damping)))
    throw ValueError("blast_factorize: gram_damping = " + number(o.gram_damping) +
                     ", a number that is not negative needed");
  if (!(o.end_factor >= 0.0 && o.end_factor <= 1.0))
    throw ValueError("blast_factorize: end_factor = " + number(o.end_factor) + ", in [0, 1] needed");
  if (!(o.damping >= 0.0 && std::isfinite(o.damping)))
    throw ValueError("blast_factorize: damping = " + number(o.damping) + ", a number that is not negative needed");
  if (o.coupling_every < 1 || o.coupling_iterations < 1)
    throw ValueError("blast_factorize: coupling_every and coupling_iterations must be at least 1");
  if (o.gram != nullptr && o.preconditioner != BlastPreconditioner::matched)
    throw ValueError("blast_factorize: with a Gram matrix the preconditioner is matched");
  if (o.gram == nullptr && o.start == BlastStart::plain)
    throw ValueError("blast_factorize: start plain needs a Gram matrix");
}

template <class T>
void check_start(MatrixShape w, const BlastOptions& o, const BlastFactors<T>& f) {
  const index_t p = ceil_div(w.rows, o.blocks), q = ceil_div(w.cols, o.blocks);
  const auto shape = [](const RowMajorMatrix<T>& m) { return MatrixShape{m.rows(), m.cols()}; };
  if (f.shape() != w || f.blocks != o.blocks || f.rank != o.rank ||
      shape(f.left) != MatrixShape{o.blocks * p, f.rank} || shape(f.right) != MatrixShape{o.blocks * f.rank, q} ||
      shape(f.coupling) != MatrixShape{o.blocks * o.blocks, f.rank})
    throw ShapeError("blast_factorize: the factors to start from are of " + to_string(f.shape()) + ", " +
                     std::to_string(f.blocks) + " blocks and rank " + std::to_string(f.rank) + "; " + to_string(w) +
                     ", " + std::to_string(o.blocks) + " and " + std::to_string(o.rank) + " needed");
}

}  // namespace fit_detail

/// Fits a BLAST matrix.
///
/// W is divided by its standard deviation; iteration t has eta = learning_rate · (1 - (1 - end_factor) · t /
/// iterations) and, each with E = M - W of the moment and shift = damping · ||E||_F,
///   U_i  -= 2 eta E_i C̄_iᵀ (C̄_i C̄_iᵀ + shift I)⁻¹,   C̄_i = [diag(s_i1) V_1ᵀ, …]
///   V_jᵀ -= 2 eta (B̄_jᵀ B̄_j + shift I)⁻¹ B̄_jᵀ E_j,     B̄_j = [U_1 diag(s_1j); …]
///   s_ij -= 2 eta ((U_iᵀU_i) ∘ (V_jᵀV_j) + shift I)⁻¹ diag(U_iᵀ E_ij V_j).
/// With `gram` the same steps are made for ||(W - M) Xᵀ||_F (blast_fit.hpp, weighted_step); with `keep` best the result
/// is then not worse than the start.
///
/// Shapes:  w [out, in]; sizes that the blocks do not divide are padded (factors.hpp). given: factors of w's shape, the
///          blocks and the rank of the options, an approximation of w; needed by the start `given`, one more candidate
///          of `best`.
/// Errors:  ValueError for blocks or rank below 1, other options out of range, NaN or infinity in w (row and column), a
///          start `given` without factors, a descent that leaves the range of numbers; ShapeError for more blocks than
///          rows or columns, a rank above blocks · min(ceil(out / blocks), ceil(in / blocks)), a gram or factors of
///          another size; CancelledError. A matrix of zeros has factors of zeros, one of no rows or columns factors of
///          rank 0.
/// Cost:    per iteration, with b blocks and rank r: 12 · out · in · r operations in products, 4 r² (out + in) and
///          b² r² for the preconditioners, (2 b + b²) r³ / 3 for their factorizations, where those of the s step, b² of
///          them, are most of all from r about 1000 on: `coupling_every` leaves some out, `conjugate_gradients` solves
///          less exactly (the preconditioner is not exact either). With a Gram matrix 4 · out · in² and b · in · r²
///          more. Memory: three copies of w, 2 b r² for the preconditioners, both in T.
/// Source:  see the head of the file. Deterministic for a seed, on one SIMD level, for any number of threads.
template <class T>
BlastFit<T> blast_factorize(MatrixView<const T> w, const BlastOptions& options,
                            const BlastFactors<T>* given = nullptr) {
  static_assert(std::is_floating_point_v<T>);
  fit_detail::check_blast(w.shape(), options);
  fit_detail::check_gram("blast_factorize", options.gram, w.cols());
  fit_detail::check_finite_weights<T>("blast_factorize", w);
  if (options.start == BlastStart::given && given == nullptr)
    throw ValueError("blast_factorize: start given needs factors");
  if (given != nullptr) fit_detail::check_start(w.shape(), options, *given);
  BlastFit<T> fit;
  fit.start = options.start == BlastStart::best ? BlastStart::svd : options.start;
  const index_t b = options.blocks;
  if (w.empty() || fit_detail::eigen_map(w).isZero(T(0))) {
    const index_t r = w.empty() ? 0 : options.rank;
    fit.factors = {w.rows(),
                   w.cols(),
                   b,
                   r,
                   RowMajorMatrix<T>::Zero(b * ceil_div(w.rows(), b), r),
                   RowMajorMatrix<T>::Zero(b * r, ceil_div(w.cols(), b)),
                   RowMajorMatrix<T>::Zero(b * b, r)};
    return fit;
  }

  using Descent = fit_detail::BlastDescent<T>;
  using State = typename Descent::State;
  const Descent descent(w, options);
  const auto start = [&](BlastStart kind) -> State {
    switch (kind) {
      case BlastStart::noise:
        return descent.noise();
      case BlastStart::monarch:
        return descent.from_monarch();
      case BlastStart::given:
        return descent.from_factors(*given);
      case BlastStart::plain: {
        BlastOptions plain = options;
        plain.gram = nullptr;
        plain.start = BlastStart::best;
        plain.keep = BlastKeep::best;
        plain.execution = options.execution.quiet();
        return descent.from_factors(blast_factorize<T>(w, plain).factors);
      }
      default:
        return descent.from_svd();
    }
  };
  std::vector<BlastStart> kinds;
  if (options.start != BlastStart::best) {
    kinds = {options.start};
  } else {
    kinds = {BlastStart::svd, BlastStart::monarch, options.gram == nullptr ? BlastStart::noise : BlastStart::plain};
    if (given != nullptr) kinds.push_back(BlastStart::given);
  }
  int trial = options.iterations;
  if (kinds.size() > 1)
    trial = std::min(trial,
                     options.trial_iterations > 0 ? options.trial_iterations : std::max(10, options.iterations / 10));
  const double total =
      std::max(1.0, static_cast<double>(kinds.size()) * trial + static_cast<double>(options.iterations - trial));
  int done = 0;
  const auto report = [&](int) { options.execution.report(++done / total); };

  State state, best;
  double least = INFINITY;
  for (const BlastStart kind : kinds) {
    State now = start(kind), now_best;
    std::vector<double> trace;
    descent.run(now, now_best, 0, trial, trace, report);
    const double error = kinds.size() > 1 ? descent.error(now) : 0.0;
    if (!(std::min(error, now_best.error) < least) && kind != kinds.front()) continue;
    least = std::min(error, now_best.error);
    state = std::move(now);
    best = std::move(now_best);
    fit.error_trace = std::move(trace);
    fit.start = kind;
  }
  const bool ended = !fit.error_trace.empty() && !(fit.error_trace.back() > 0.0);
  if (!ended) descent.run(state, best, trial, options.iterations, fit.error_trace, report);
  state.error = descent.error(state);
  if (options.keep == BlastKeep::best && best.error <= state.error) state = std::move(best);
  fit.factors = descent.factors(state);
  fit.rel_error = descent.norm() > 0.0 ? state.error / descent.norm() : 0.0;
  return fit;
}

/// Scales every rank of every U_i and V_j to a root mean square of 1 and s_ij by the inverses: what the factors are to
/// have before they are stored in few bits, with s in more. The matrix stays the same up to rounding; columns of zeros
/// stay.
template <class T>
void balance(BlastFactors<T>& f) {
  const index_t p = f.block_rows(), q = f.block_cols();
  const auto scale = [](double squares, index_t n) {
    return squares > 0.0 ? std::sqrt(squares / static_cast<double>(n)) : 1.0;
  };
  for (index_t i = 0; i < f.blocks; ++i)
    for (index_t k = 0; k < f.rank; ++k) {
      auto u = f.left.col(k).segment(i * p, p);
      const T rms = static_cast<T>(scale(u.template cast<double>().squaredNorm(), p));
      u /= rms;
      for (index_t j = 0; j < f.blocks; ++j) f.coupling(i * f.blocks + j, k) *= rms;
      auto v = f.right.row(i * f.rank + k);
      const T other = static_cast<T>(scale(v.template cast<double>().squaredNorm(), q));
      v /= other;
      for (index_t j = 0; j < f.blocks; ++j) f.coupling(j * f.blocks + i, k) *= other;
    }
}

/// Lowers ||(W - M) Xᵀ||_F of a BLAST matrix: `steps` iterations of blast_factorize with that loss from the factors
/// given. Never worse than they are.
///
/// Errors: as blast_factorize.
template <class T>
RefineResult<BlastFactors<T>> blast_refine(MatrixView<const T> w, const BlastFactors<T>& f, const GramMatrix& gram,
                                           int steps = 10, const Execution& how = {}) {
  BlastOptions options;
  options.blocks = f.blocks;
  options.rank = f.rank;
  options.iterations = steps;
  options.end_factor = 1.0;
  options.start = BlastStart::given;
  options.gram = &gram;
  options.execution = how;
  BlastFit<T> fit = blast_factorize<T>(w, options, &f);
  const double before = fit.error_trace.empty() ? fit.rel_error : fit.error_trace.front();
  return {std::move(fit.factors), before, fit.rel_error};
}

}  // namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI
