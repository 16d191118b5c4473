// SPDX-License-Identifier: Apache-2.0
/// ARMOR over weighted matrices: with C = B diag(√h) and target = Wn diag(√h) the loss is |E|², E = A S C - target, and
///
///     P = A S, E = P C - target, Q = E Cᵀ, D = Aᵀ Q:    ∂A = Q Sᵀ, ∂C = Pᵀ E, ∂S = D    (times 2 / Z)
///
/// D is also all that the core step needs: with a = column r of A_i and G = M rows of C_j, c = D_group - |a|² G Gᵀ s. A
/// new group changes P, E, Q and D by matrices of rank one, so that the next gradient costs three products, not six.

#include "blockpack/sparse/prune/armor.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>
#include <type_traits>

#include "blockpack/core/random.hpp"
#include "blockpack/quant/block_rows.hpp"
#include "blockpack/solve/objective.hpp"
#include "blockpack/sparse/prune/nowag.hpp"
#include "quant/hessian.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

constexpr index_t kMaxGroup = 16;
/// Below, loops cost less than packing.
constexpr index_t kEngineBlock = 8;

ApplyOptions serial() {
  ApplyOptions options;
  options.execution.threads = 1;
  return options;
}

template <class T>
bool by_engine(MatrixShape block) {
  return std::is_same_v<T, float> && std::min(block.rows, block.cols) >= kEngineBlock;
}

template <class T>
std::vector<T> transposed(MatrixView<const T> x) {
  constexpr index_t kTile = 16;
  std::vector<T> values(static_cast<std::size_t>(x.rows() * x.cols()));
  for (index_t i0 = 0; i0 < x.rows(); i0 += kTile)
    for (index_t j0 = 0; j0 < x.cols(); j0 += kTile)
      for (index_t j = j0; j < std::min(x.cols(), j0 + kTile); ++j)
        for (index_t i = i0; i < std::min(x.rows(), i0 + kTile); ++i)
          values[static_cast<std::size_t>(j * x.rows() + i)] = x(i, j);
  return values;
}

/// Products of blocks on one thread: through the engine, or plain.
template <class T>
struct Product {
  bool engine;

  /// y = x · w
  void plain(MatrixView<const T> x, MatrixView<const T> w, MatrixView<T> y) const {
    if constexpr (std::is_same_v<T, float>)
      if (engine) return matmul_transpose(x, rows_of(w), y, serial());
    for (index_t i = 0; i < y.rows(); ++i) {
      std::fill_n(y.row_data(i), y.cols(), T{0});
      for (index_t k = 0; k < x.cols(); ++k) detail::add_scaled(x(i, k), w.row_data(k), y.cols(), y.row_data(i));
    }
  }
  /// y = xᵀ · w
  void left_transposed(MatrixView<const T> x, MatrixView<const T> w, MatrixView<T> y) const {
    const std::vector<T> copy = transposed(x);
    plain(MatrixView<const T>(copy.data(), x.cols(), x.rows()), w, y);
  }
  /// y = x · wᵀ
  void right_transposed(MatrixView<const T> x, MatrixView<const T> w, MatrixView<T> y) const {
    if constexpr (std::is_same_v<T, float>)
      if (engine) return matmul(x, rows_of(w), y, Activations::f32, serial());
    for (index_t i = 0; i < y.rows(); ++i)
      for (index_t j = 0; j < y.cols(); ++j) y(i, j) = detail::dot(x.row_data(i), w.row_data(j), x.cols());
  }
};

template <class T>
double square_sum(const T* x, index_t n) {
  return detail::interleaved_sum(static_cast<std::size_t>(n), [&](std::size_t j) {
    const auto v = static_cast<double>(x[j]);
    return v * v;
  });
}

/// A bound of the largest eigenvalue of a symmetric positive semidefinite m, at most n^(1/32) times it: |m^16|^(1/16).
/// Destroys m.
template <class T>
double eigenvalue_bound(std::vector<T>& m, index_t n, const Product<T>& product) {
  constexpr int kSquarings = 4;
  std::vector<T> square(m.size());
  double log_bound = 0.0, share = 1.0;
  for (int k = 0;; ++k, share *= 0.5) {
    const double norm = std::sqrt(square_sum(m.data(), n * n));
    if (norm == 0.0) return 0.0;
    log_bound += share * std::log(norm);
    if (k == kSquarings) break;
    for (T& v : m) v = static_cast<T>(static_cast<double>(v) / norm);
    product.right_transposed(MatrixView<const T>(m.data(), n, n), MatrixView<const T>(m.data(), n, n),
                             MatrixView<T>(square.data(), n, n));
    std::swap(m, square);
  }
  return 1.001 * std::exp(log_bound);  // roundings of the squares
}

/// max cᵀ K⁻¹ c over supports of `keep` of a group of `of`, K = G Gᵀ + damping I restricted to the support: depth
/// first, supports that share a beginning share its Cholesky factor.
class SupportSearch {
 public:
  SupportSearch(const ArmorOptions& o, const double* gram, const double* c)
      : keep_(o.keep), of_(o.of), damping_(o.damping), gram_(gram), c_(c) {}

  /// The support, ascending; K⁻¹ c of it is in solution(). The first of equal ones. Empty when no K is definite.
  std::span<const index_t> best() {
    extend(0, 0, 0.0);
    return {best_.data(), static_cast<std::size_t>(found_ ? keep_ : 0)};
  }
  std::span<const double> solution() const { return {solution_.data(), static_cast<std::size_t>(keep_)}; }

 private:
  void extend(index_t depth, index_t first, double gain) {
    if (depth == keep_) {
      if (found_ && !(gain > best_gain_)) return;
      found_ = true;
      best_gain_ = gain;
      best_ = support_;
      for (index_t k = keep_; k-- > 0;) {
        double v = z_[k];
        for (index_t l = k + 1; l < keep_; ++l) v -= factor_[l][k] * solution_[l];
        solution_[k] = v / factor_[k][k];
      }
      return;
    }
    for (index_t p = first; p <= of_ - (keep_ - depth); ++p) {
      double pivot = gram_[p * of_ + p] + damping_, z = c_[p];
      for (index_t k = 0; k < depth; ++k) {
        double v = gram_[p * of_ + support_[k]];
        for (index_t l = 0; l < k; ++l) v -= factor_[depth][l] * factor_[k][l];
        v /= factor_[k][k];
        factor_[depth][k] = v;
        pivot -= v * v;
        z -= v * z_[k];
      }
      if (!(pivot > 0.0)) continue;
      factor_[depth][depth] = std::sqrt(pivot);
      z_[depth] = z / factor_[depth][depth];
      support_[depth] = p;
      extend(depth + 1, p + 1, gain + z_[depth] * z_[depth]);
    }
  }

  index_t keep_, of_;
  double damping_;
  const double *gram_, *c_;
  bool found_ = false;
  double best_gain_ = 0.0;
  std::array<index_t, kMaxGroup> support_{}, best_{};
  std::array<std::array<double, kMaxGroup>, kMaxGroup> factor_{};
  std::array<double, kMaxGroup> z_{}, solution_{};
};

}  // namespace

template <class T>
class ArmorFit<T>::State {
 public:
  State(MatrixView<const T> w, std::span<const double> h, const ArmorOptions& options, const Execution& how);

  double loss() const noexcept {
    return norm_ == 0.0 ? 0.0 : std::accumulate(block_loss_.begin(), block_loss_.end(), 0.0) / norm_;
  }
  void adam_step(const Execution& how);
  void sequential_step(const Execution& how);
  std::vector<index_t> choose_groups(const Execution& how);
  void core_step(std::span<const index_t> groups, const Execution& how);
  ArmorFactors<T> normalized() const;
  ArmorFactors<T> factors(const ArmorFactors<T>& normalized) const;
  void set_normalized(const ArmorFactors<T>& point, const Execution& how);
  ArmorResult<T> run(ArmorFit& fit, const Execution& how);
  const ArmorOptions& options() const noexcept { return options_; }

 private:
  /// A, S, B and which entries of S are kept.
  struct Point {
    std::vector<T> a, s, b;
    std::vector<std::uint8_t> kept;
  };
  struct Moments {
    std::vector<T> m, v;
    explicit Moments(std::size_t n) : m(n), v(n) {}
  };

  MatrixView<T> rows_of_a(std::vector<T>& values, index_t i, index_t cols) const {
    return {values.data() + i * options_.block.rows * cols, options_.block.rows, cols};
  }
  MatrixView<T> cols_of_b(std::vector<T>& values, index_t j) const {
    return MatrixView<T>(values.data(), shape_.rows, shape_.cols).block(0, j * db(), shape_.rows, db());
  }
  MatrixView<T> a(index_t i) { return rows_of_a(point_.a, i, da()); }
  MatrixView<T> b(std::vector<T>& values, index_t j) { return {values.data() + j * db() * db(), db(), db()}; }
  index_t da() const noexcept { return options_.block.rows; }
  index_t db() const noexcept { return options_.block.cols; }

  void weigh_b(index_t j);
  void compute_p(index_t i) {
    product_.plain(a(i), rows_of_a(point_.s, i, shape_.cols), rows_of_a(p_, i, shape_.cols));
  }
  void compute_error(index_t j);
  void compute_q(index_t j) { product_.right_transposed(cols_of_b(error_, j), b(weighted_, j), cols_of_b(q_, j)); }
  void compute_d(index_t i) {
    product_.left_transposed(a(i), rows_of_a(q_, i, shape_.cols), rows_of_a(d_, i, shape_.cols));
  }
  /// Everything that follows from the point.
  void evaluate(const Execution& how);
  void solve_group(index_t i, index_t j, index_t group);

  ArmorOptions options_;
  MatrixShape shape_, grid_;
  Product<T> product_;
  NowagNorms norms_;
  std::vector<T> root_h_;  ///< √h, h of mean 1
  std::vector<T> target_;
  double norm_ = 0.0;  ///< Z
  Point point_;
  std::vector<T> weighted_;  ///< C [in, db]
  std::vector<T> p_, error_, q_, d_;
  std::vector<double> block_loss_;  ///< |E|² of the blocks, row after row
  std::optional<Moments> moments_a_, moments_b_, moments_s_;
  std::int64_t adam_steps_ = 0;
  Random random_;
};

template <class T>
ArmorFit<T>::State::State(MatrixView<const T> w, std::span<const double> h, const ArmorOptions& options,
                          const Execution& how)
    : options_(options), shape_(w.shape()), product_{by_engine<T>(options.block)}, random_(options.seed) {
  const MatrixShape block = options.block;
  if (h.size() != static_cast<std::size_t>(w.cols()))
    throw ShapeError("armor: h has " + std::to_string(h.size()) + " entries, " + std::to_string(w.cols()) + " needed");
  if (options.of < 1 || options.of > kMaxGroup || options.keep < 0 || options.keep > options.of)
    throw ValueError("armor: keep = " + std::to_string(options.keep) + " of = " + std::to_string(options.of) +
                     ", 0 <= keep <= of <= " + std::to_string(kMaxGroup) + " and of >= 1 needed");
  if (block.rows < 1 || block.cols < 1 || w.rows() % block.rows != 0 || w.cols() % block.cols != 0 ||
      block.cols % options.of != 0)
    throw ShapeError("armor: blocks of " + to_string(block) + " must divide w, " + to_string(w.shape()) + ", and " +
                     std::to_string(options.of) + " their columns");
  if (options.iterations < 0 || options.patience < 0 || !(options.damping >= 0.0) ||
      !(options.adam.learning_rate > 0.0))
    throw ValueError(
        "armor: iterations, patience and damping must not be negative, the learning rate must be positive");
  quant::check_finite("armor", w);

  norms_ = nowag_norms(w);
  grid_ = {w.rows() / block.rows, w.cols() / block.cols};
  std::vector<double> importance = nowag_importance(h);
  const double mean = std::accumulate(importance.begin(), importance.end(), 0.0) /
                      static_cast<double>(std::max<std::size_t>(importance.size(), 1));
  for (const double v : importance) root_h_.push_back(static_cast<T>(std::sqrt(v / mean)));
  const Mask mask = prune_mask<T>(w, nowag<T>(w, h), MaskPattern::nm(options.keep, options.of), how.quiet());

  const auto size = static_cast<std::size_t>(checked_mul(w.rows(), w.cols(), "armor"));
  for (std::vector<T>* values : {&target_, &point_.s, &p_, &error_, &q_, &d_}) values->resize(size);
  point_.kept.resize(size);
  for (index_t i = 0, k = 0; i < w.rows(); ++i)
    for (index_t j = 0; j < w.cols(); ++j, ++k) {
      const auto at = static_cast<std::size_t>(k), column = static_cast<std::size_t>(j);
      const auto v = static_cast<T>(static_cast<double>(w(i, j)) / norms_.column[column] /
                                    norms_.row[static_cast<std::size_t>(i)]);
      target_[at] = v * root_h_[column];
      point_.kept[at] = mask(i, j) ? 1 : 0;
      point_.s[at] = mask(i, j) ? v : T{0};
    }
  norm_ = square_sum(target_.data(), static_cast<index_t>(size));
  const auto identity = [](std::vector<T>& values, index_t rows, index_t d) {
    values.resize(static_cast<std::size_t>(checked_mul(rows, d, "armor")));
    for (index_t i = 0; i < rows; ++i) values[static_cast<std::size_t>(i * d + i % d)] = T{1};
  };
  identity(point_.a, w.rows(), block.rows);
  identity(point_.b, w.cols(), block.cols);
  weighted_.resize(point_.b.size());
  block_loss_.resize(static_cast<std::size_t>(grid_.rows * grid_.cols));
  evaluate(how);
}

template <class T>
void ArmorFit<T>::State::weigh_b(index_t j) {
  const MatrixView<T> from = b(point_.b, j), to = b(weighted_, j);
  const T* root = root_h_.data() + j * db();
  for (index_t r = 0; r < db(); ++r)
    for (index_t c = 0; c < db(); ++c) to(r, c) = from(r, c) * root[c];
}

template <class T>
void ArmorFit<T>::State::compute_error(index_t j) {
  const MatrixView<T> error = cols_of_b(error_, j), target = cols_of_b(target_, j);
  product_.plain(cols_of_b(p_, j), b(weighted_, j), error);
  for (index_t i = 0; i < grid_.rows; ++i) {
    double sum = 0.0;
    for (index_t r = i * da(); r < (i + 1) * da(); ++r) {
      T* e = error.row_data(r);
      const T* t = target.row_data(r);
      for (index_t c = 0; c < db(); ++c) e[c] -= t[c];
      sum += square_sum(e, db());
    }
    block_loss_[static_cast<std::size_t>(i * grid_.cols + j)] = sum;
  }
}

template <class T>
void ArmorFit<T>::State::evaluate(const Execution& how) {
  parallel_for(how, grid_.rows, [&](index_t i) { compute_p(i); });
  parallel_for(how, grid_.cols, [&](index_t j) {
    weigh_b(j);
    compute_error(j);
    compute_q(j);
  });
  parallel_for(how, grid_.rows, [&](index_t i) { compute_d(i); });
}

template <class T>
void ArmorFit<T>::State::adam_step(const Execution& how) {
  if (norm_ < 1e-30) return;  // 2 / Z must be a float; weights of 1e-20 and less are zeros to the 1e-5 of NoWag
  if (!moments_a_) {
    moments_a_.emplace(point_.a.size());
    moments_b_.emplace(point_.b.size());
    moments_s_.emplace(point_.s.size());
  }
  const Adam<T> adam(options_.adam, ++adam_steps_);
  const auto scale = static_cast<T>(2.0 / norm_);
  // n parameters from `first` on; g is destroyed.
  const auto update = [adam, scale](T* g, index_t n, index_t first, std::vector<T>& values, Moments& moments) {
    const Adam<T> step = adam;  // not behind a pointer that values may alias
    T *x = values.data() + first, *m = moments.m.data() + first, *v = moments.v.data() + first;
    for (index_t k = 0; k < n; ++k) g[k] *= scale;
    for (index_t k = 0; k < n; ++k) step.update(g[k], x[k], m[k], v[k]);
  };
  std::vector<T> gradient_b(point_.b.size());
  parallel_for(how, grid_.cols,
               [&](index_t j) { product_.left_transposed(cols_of_b(p_, j), cols_of_b(error_, j), b(gradient_b, j)); });
  parallel_for(how, grid_.rows, [&](index_t i) {
    const index_t size = da() * da();
    std::vector<T> gradient(static_cast<std::size_t>(std::max(size, shape_.cols)));
    product_.right_transposed(rows_of_a(q_, i, shape_.cols), rows_of_a(point_.s, i, shape_.cols),
                              MatrixView<T>(gradient.data(), da(), da()));
    update(gradient.data(), size, i * size, point_.a, *moments_a_);
    for (index_t first = i * da() * shape_.cols; first < (i + 1) * da() * shape_.cols; first += shape_.cols) {
      // Pruned entries have the gradient 0, their moments fade.
      const std::uint8_t* kept = point_.kept.data() + first;
      const T* d = d_.data() + first;
      T *g = gradient.data(), *x = point_.s.data() + first;
      for (index_t k = 0; k < shape_.cols; ++k) g[k] = d[k] * static_cast<T>(kept[k]);
      update(g, shape_.cols, first, point_.s, *moments_s_);
      for (index_t k = 0; k < shape_.cols; ++k) x[k] *= static_cast<T>(kept[k]);
    }
  });
  parallel_for(how, grid_.cols, [&](index_t j) {
    const T* root = root_h_.data() + j * db();
    const MatrixView<T> gradient = b(gradient_b, j);
    for (index_t r = 0; r < db(); ++r)
      for (index_t c = 0; c < db(); ++c) gradient(r, c) *= root[c];
    update(gradient.data(), db() * db(), j * db() * db(), point_.b, *moments_b_);
  });
  evaluate(how);
}

/// Steps by 1 / L of A_i, then of C_j, then of S_ij, with L / 2 the largest eigenvalue of
/// Σ_j S_ij C_j C_jᵀ S_ijᵀ, of Σ_i P_ijᵀ P_ij, and the product of those of A_iᵀ A_i and C_j C_jᵀ.
template <class T>
void ArmorFit<T>::State::sequential_step(const Execution& how) {
  const auto bound = [&](auto multiply, index_t n) {
    std::vector<T> gram(static_cast<std::size_t>(n * n));
    multiply(MatrixView<T>(gram.data(), n, n));
    return eigenvalue_bound(gram, n, product_);
  };
  const auto step = [](const std::vector<T>& gradient, double curvature, T* values) {
    if (curvature <= 0.0) return;
    detail::add_scaled(static_cast<T>(-1.0 / curvature), gradient.data(), static_cast<index_t>(gradient.size()),
                       values);
  };
  // d_ holds S C until D is computed anew.
  parallel_for(how, grid_.cols,
               [&](index_t j) { product_.plain(cols_of_b(point_.s, j), b(weighted_, j), cols_of_b(d_, j)); });
  std::vector<double> bound_a(static_cast<std::size_t>(grid_.rows)), bound_b(static_cast<std::size_t>(grid_.cols));
  parallel_for(how, grid_.rows, [&](index_t i) {
    const MatrixView<T> sc = rows_of_a(d_, i, shape_.cols);
    std::vector<T> gradient(static_cast<std::size_t>(da() * da()));
    product_.right_transposed(rows_of_a(q_, i, shape_.cols), rows_of_a(point_.s, i, shape_.cols),
                              MatrixView<T>(gradient.data(), da(), da()));
    step(gradient, bound([&](MatrixView<T> y) { product_.right_transposed(sc, sc, y); }, da()), a(i).data());
    compute_p(i);
    bound_a[static_cast<std::size_t>(i)] =
        bound([&](MatrixView<T> y) { product_.left_transposed(a(i), a(i), y); }, da());
  });
  parallel_for(how, grid_.cols, [&](index_t j) {
    const MatrixView<T> p = cols_of_b(p_, j), c = b(weighted_, j);
    compute_error(j);
    std::vector<T> gradient(static_cast<std::size_t>(db() * db()));
    product_.left_transposed(p, cols_of_b(error_, j), MatrixView<T>(gradient.data(), db(), db()));
    step(gradient, bound([&](MatrixView<T> y) { product_.left_transposed(p, p, y); }, db()), c.data());
    const T* root = root_h_.data() + j * db();
    for (index_t r = 0; r < db(); ++r)
      for (index_t k = 0; k < db(); ++k) b(point_.b, j)(r, k) = c(r, k) / root[k];
    compute_error(j);
    compute_q(j);
    bound_b[static_cast<std::size_t>(j)] = bound([&](MatrixView<T> y) { product_.right_transposed(c, c, y); }, db());
  });
  parallel_for(how, grid_.rows, [&](index_t i) {
    compute_d(i);
    const std::uint8_t* kept = point_.kept.data();
    for (index_t j = 0; j < grid_.cols; ++j) {
      const double curvature = bound_a[static_cast<std::size_t>(i)] * bound_b[static_cast<std::size_t>(j)];
      if (curvature <= 0.0) continue;
      const auto rate = static_cast<T>(1.0 / curvature);
      for (index_t r = i * da(); r < (i + 1) * da(); ++r)
        for (index_t k = r * shape_.cols + j * db(); k < r * shape_.cols + (j + 1) * db(); ++k)
          if (kept[k] != 0) point_.s[static_cast<std::size_t>(k)] -= rate * d_[static_cast<std::size_t>(k)];
    }
  });
  evaluate(how);
}

template <class T>
std::vector<index_t> ArmorFit<T>::State::choose_groups(const Execution& how) {
  const index_t of = options_.of, in_row = db() / of, groups = da() * in_row;
  std::vector<double> drawn(block_loss_.size());
  if (options_.choice == ArmorChoice::sampled)
    for (double& u : drawn) u = static_cast<double>(random_.uniform());
  std::vector<index_t> chosen(block_loss_.size(), -1);
  parallel_for(how, grid_.rows, [&](index_t i) {
    std::vector<double> norms(static_cast<std::size_t>(groups));
    for (index_t j = 0; j < grid_.cols; ++j) {
      double sum = 0.0, largest = 0.0;
      const auto block = static_cast<std::size_t>(i * grid_.cols + j);
      for (index_t g = 0; g < groups; ++g) {
        const T* d = d_.data() + (i * da() + g / in_row) * shape_.cols + j * db() + g % in_row * of;
        double norm = 0.0;
        for (index_t k = 0; k < of; ++k) {
          const double v = std::fabs(static_cast<double>(d[k]));
          norm = options_.norm == ArmorNorm::l1   ? norm + v
                 : options_.norm == ArmorNorm::l2 ? norm + v * v
                                                  : std::max(norm, v);
        }
        if (options_.norm == ArmorNorm::l2) norm = std::sqrt(norm);
        norms[static_cast<std::size_t>(g)] = norm;
        sum += norm;
        if (norm > largest) {
          largest = norm;
          chosen[block] = g;  // greedy; and where rounding leaves nothing to draw
        }
      }
      if (options_.choice == ArmorChoice::greedy || !(sum > 0.0)) continue;
      double rest = drawn[block] * sum;
      for (index_t g = 0; g < groups; ++g) {
        rest -= norms[static_cast<std::size_t>(g)];
        if (rest >= 0.0) continue;
        chosen[block] = g;
        break;
      }
    }
  });
  return chosen;
}

template <class T>
void ArmorFit<T>::State::core_step(std::span<const index_t> groups, const Execution& how) {
  const index_t per_block = da() * (db() / options_.of);
  if (groups.size() != block_loss_.size())
    throw ShapeError("ArmorFit::core_step: " + std::to_string(groups.size()) + " groups, " +
                     std::to_string(block_loss_.size()) + " needed");
  for (const index_t g : groups)
    if (g < -1 || g >= per_block)
      throw ValueError("ArmorFit::core_step: group " + std::to_string(g) + ", a block has " +
                       std::to_string(per_block));
  parallel_for(how, grid_.rows, [&](index_t i) {
    for (index_t j = 0; j < grid_.cols; ++j)
      if (const index_t g = groups[static_cast<std::size_t>(i * grid_.cols + j)]; g >= 0) solve_group(i, j, g);
  });
}

template <class T>
void ArmorFit<T>::State::solve_group(index_t i, index_t j, index_t group) {
  const index_t of = options_.of, in_row = db() / of;
  const index_t row = group / in_row, first = group % in_row * of;  // in the block
  const index_t at = (i * da() + row) * shape_.cols + j * db() + first;
  const MatrixView<T> left = a(i), c_block = b(weighted_, j);
  const auto column = [&](index_t r) { return static_cast<double>(left(r, row)); };
  double a_norm = 0.0;
  for (index_t r = 0; r < da(); ++r) a_norm += column(r) * column(r);

  std::array<double, kMaxGroup * kMaxGroup> gram;
  std::array<double, kMaxGroup> c, before, delta;
  for (index_t k = 0; k < of; ++k) {
    before[k] = static_cast<double>(point_.s[static_cast<std::size_t>(at + k)]);
    for (index_t l = 0; l <= k; ++l) {
      const T *x = c_block.row_data(first + k), *y = c_block.row_data(first + l);
      gram[k * of + l] = gram[l * of + k] = detail::interleaved_sum(static_cast<std::size_t>(db()), [&](std::size_t n) {
        return static_cast<double>(x[n]) * static_cast<double>(y[n]);
      });
    }
  }
  for (index_t k = 0; k < of; ++k) {
    c[k] = static_cast<double>(d_[static_cast<std::size_t>(at + k)]);
    for (index_t l = 0; l < of; ++l) c[k] -= a_norm * gram[k * of + l] * before[l];
  }
  SupportSearch search(options_, gram.data(), c.data());
  const std::span<const index_t> support = search.best();
  if (static_cast<index_t>(support.size()) != options_.keep) return;
  std::array<double, kMaxGroup> after{};
  for (std::size_t k = 0; k < support.size(); ++k)
    after[support[k]] = static_cast<double>(static_cast<T>(-search.solution()[k] / (a_norm + 1e-8)));
  double change = 0.0;  // of the loss
  for (index_t k = 0; k < of; ++k) {
    delta[k] = after[k] - before[k];
    double image = 0.0;
    for (index_t l = 0; l < of; ++l) image += gram[k * of + l] * (after[l] - before[l]);
    change += delta[k] * (2.0 * static_cast<double>(d_[static_cast<std::size_t>(at + k)]) + a_norm * image);
  }
  if (!(change < 0.0)) return;

  for (index_t k = 0; k < of; ++k) {
    point_.s[static_cast<std::size_t>(at + k)] = static_cast<T>(after[k]);
    point_.kept[static_cast<std::size_t>(at + k)] = 0;
  }
  for (const index_t k : support) point_.kept[static_cast<std::size_t>(at + k)] = 1;
  // E += a uᵀ, Q += a (C u)ᵀ, D += (Aᵀ a) (C u)ᵀ.
  std::vector<T> u(static_cast<std::size_t>(db())), cu, aa(static_cast<std::size_t>(da()));
  for (index_t k = 0; k < of; ++k)
    detail::add_scaled(static_cast<T>(delta[k]), c_block.row_data(first + k), db(), u.data());
  for (index_t k = 0; k < db(); ++k) cu.push_back(detail::dot(c_block.row_data(k), u.data(), db()));
  for (index_t r = 0; r < da(); ++r) detail::add_scaled(left(r, row), left.row_data(r), da(), aa.data());
  double loss = 0.0;
  for (index_t r = 0; r < da(); ++r) {
    const index_t start = (i * da() + r) * shape_.cols + j * db();
    detail::add_scaled(left(r, row), u.data(), db(), error_.data() + start);
    detail::add_scaled(left(r, row), cu.data(), db(), q_.data() + start);
    detail::add_scaled(aa[static_cast<std::size_t>(r)], cu.data(), db(), d_.data() + start);
    for (index_t k = 0; k < of; ++k)
      p_[static_cast<std::size_t>(start + first + k)] += left(r, row) * static_cast<T>(delta[k]);
    loss += square_sum(error_.data() + start, db());
  }
  block_loss_[static_cast<std::size_t>(i * grid_.cols + j)] = loss;
}

template <class T>
ArmorFactors<T> ArmorFit<T>::State::normalized() const {
  ArmorFactors<T> f{shape_, options_.block, point_.a, point_.s, point_.b, {}};
  f.mask = Mask::of_nonzeros(MatrixView<const std::uint8_t>(point_.kept.data(), shape_.rows, shape_.cols));
  return f;
}

template <class T>
ArmorFactors<T> ArmorFit<T>::State::factors(const ArmorFactors<T>& normalized) const {
  ArmorFactors<T> f = normalized;
  for (std::size_t k = 0; k < f.left.size(); ++k)
    f.left[k] = static_cast<T>(static_cast<double>(f.left[k]) * norms_.row[k / static_cast<std::size_t>(da())]);
  for (std::size_t k = 0; k < f.right.size(); ++k) {
    const std::size_t d = static_cast<std::size_t>(db()), column = k / (d * d) * d + k % d;
    f.right[k] = static_cast<T>(static_cast<double>(f.right[k]) * norms_.column[column]);
  }
  return f;
}

template <class T>
void ArmorFit<T>::State::set_normalized(const ArmorFactors<T>& point, const Execution& how) {
  if (point.shape != shape_ || point.block != options_.block || point.mask.shape() != shape_ ||
      point.left.size() != point_.a.size() || point.core.size() != point_.s.size() ||
      point.right.size() != point_.b.size())
    throw ShapeError("ArmorFit::set_normalized: the point is of another shape than w, " + to_string(shape_) +
                     ", in blocks of " + to_string(options_.block));
  point.mask.require_nm("ArmorFit::set_normalized", options_.keep, options_.of);
  for (const MatrixView<const T> part : {point.left_view(), point.core_view(), point.right_view()})
    quant::check_finite("ArmorFit::set_normalized", part);
  point_.a = point.left;
  point_.b = point.right;
  for (index_t i = 0, k = 0; i < shape_.rows; ++i)
    for (index_t j = 0; j < shape_.cols; ++j, ++k) {
      const auto at = static_cast<std::size_t>(k);
      point_.kept[at] = point.mask(i, j) ? 1 : 0;
      point_.s[at] = point.mask(i, j) ? point.core[at] : T{0};
    }
  evaluate(how);
}

template <class T>
ArmorResult<T> ArmorFit<T>::State::run(ArmorFit& fit, const Execution& how) {
  const Execution step = how.quiet();
  ArmorReport report;
  report.losses.push_back(loss());
  Point best = point_;
  index_t idle = 0;
  for (index_t k = 1; k <= options_.iterations; ++k) {
    how.throw_if_stopped();
    fit.continuous_step(step);
    core_step(choose_groups(step), step);
    const double previous = report.losses.back(), now = loss();
    report.losses.push_back(now);
    how.report(static_cast<double>(k) / static_cast<double>(options_.iterations));
    if (now < report.best()) {
      best = point_;
      report.best_iteration = k;
    }
    idle = now > (1.0 - 1e-6) * previous || now > previous - 1e-8 ? idle + 1 : 0;
    if (options_.patience > 0 && idle >= options_.patience) break;
  }
  std::swap(best, point_);
  ArmorResult<T> result{factors(normalized()), std::move(report)};
  std::swap(best, point_);
  return result;
}

template <class T>
ArmorFit<T>::ArmorFit(MatrixView<const T> w, std::span<const double> h, const ArmorOptions& options,
                      const Execution& how)
    : state_(std::make_unique<State>(w, h, options, how.quiet())) {}
template <class T>
ArmorFit<T>::ArmorFit(ArmorFit&&) noexcept = default;
template <class T>
ArmorFit<T>::~ArmorFit() = default;
template <class T>
double ArmorFit<T>::loss() const noexcept {
  return state_->loss();
}
template <class T>
void ArmorFit<T>::continuous_step(const Execution& how) {
  if (state_->options().update == ArmorUpdate::adam)
    state_->adam_step(how.quiet());
  else
    state_->sequential_step(how.quiet());
}
template <class T>
std::vector<index_t> ArmorFit<T>::choose_groups(const Execution& how) {
  return state_->choose_groups(how.quiet());
}
template <class T>
void ArmorFit<T>::core_step(std::span<const index_t> groups, const Execution& how) {
  state_->core_step(groups, how.quiet());
}
template <class T>
ArmorFactors<T> ArmorFit<T>::normalized() const {
  return state_->normalized();
}
template <class T>
ArmorFactors<T> ArmorFit<T>::factors() const {
  return state_->factors(state_->normalized());
}
template <class T>
void ArmorFit<T>::set_normalized(const ArmorFactors<T>& point, const Execution& how) {
  state_->set_normalized(point, how.quiet());
}
template <class T>
ArmorResult<T> ArmorFit<T>::run(const Execution& how) {
  return state_->run(*this, how);
}
template class ArmorFit<float>;
template class ArmorFit<double>;

ArmorResult<float> armor(MatrixView<const float> w, std::span<const double> h, const ArmorOptions& options,
                         const Execution& how) {
  return ArmorFit<float>(w, h, options, how).run(how);
}
ArmorResult<double> armor(MatrixView<const double> w, std::span<const double> h, const ArmorOptions& options,
                          const Execution& how) {
  return ArmorFit<double>(w, h, options, how).run(how);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
