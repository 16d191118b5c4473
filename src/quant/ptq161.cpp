// SPDX-License-Identifier: Apache-2.0
/// The fit of PTQ1.61: the loss of a layer with its closed-form gradients, alternating least squares as a start, and
/// AdamW. Products run in float32 through the engine, sums over rows and tokens in double.

#include "blockpack/quant/ptq161.hpp"

#include <cmath>

#include "quant/hessian.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

/// A dense matrix of its own.
struct Matrix {
  Matrix(index_t rows, index_t cols) : data(checked_mul(rows, cols, "ptq161")), view(data.data(), rows, cols) {}
  AlignedBuffer<float> data;
  MatrixView<float> view;
};

Matrix product(MatrixView<const float> x, MatrixView<const float> w, const Execution& how) {
  Matrix y(x.rows(), w.rows());
  quant::multiply(x, w, {}, y.view, how);
  return y;
}

Matrix transposed(MatrixView<const float> m) {
  Matrix t(m.cols(), m.rows());
  constexpr index_t kTile = 64;
  for (index_t i0 = 0; i0 < m.rows(); i0 += kTile)
    for (index_t j0 = 0; j0 < m.cols(); j0 += kTile)
      for (index_t i = i0; i < std::min(m.rows(), i0 + kTile); ++i)
        for (index_t j = j0; j < std::min(m.cols(), j0 + kTile); ++j) t.view(j, i) = m(i, j);
  return t;
}

/// Inputs, their transpose and the outputs of the uncompressed layer, for every gradient of a run.
class LayerLoss {
 public:
  LayerLoss(MatrixView<const float> w, MatrixView<const float> x, const Execution& how)
      : w_(w), x_(x), how_(how), inputs_(transposed(x)), target_(product(x, w, how)) {}

  MatrixView<const float> x() const { return x_; }
  MatrixView<const float> w() const { return w_; }
  const Execution& how() const { return how_; }

  double loss(const Ptq161Layer& layer) const {
    std::vector<double> cosines;
    Matrix error = outputs(layer);
    return measure(error.view, cosines, nullptr);
  }

  Ptq161Gradient gradient(const Ptq161Layer& layer) const {
    Ptq161Gradient g;
    const auto rows = static_cast<std::size_t>(w_.rows()), cols = static_cast<std::size_t>(w_.cols());
    g.scale.assign(rows, 0.0);
    g.row.assign(rows, 0.0);
    g.column.assign(cols, 0.0);
    Matrix q = outputs(layer);
    std::vector<double> cosines;
    Matrix slope(x_.rows(), w_.rows());
    g.loss = measure(q.view, cosines, &slope);
    const Matrix by_row = transposed(slope.view);
    const Matrix weights = product(by_row.view, inputs_.view, how_);  // dloss/dŴ [out, in]
    std::vector<double> column(cols, 0.0);
    for (std::size_t r = 0; r < rows; ++r) {
      const double mean = layer.mean[r], scale = layer.scale[r], row = layer.row[r];
      for (std::size_t c = 0; c < cols; ++c) {
        if (layer.salient[c] != 0) continue;
        const double slope_of = weights.view(static_cast<index_t>(r), static_cast<index_t>(c));
        const double sign = layer.sign[r * cols + c] != 0 ? 1.0 : -1.0, factor = layer.column[c];
        const double level = mean + sign * scale;
        g.scale[r] += slope_of * row * factor * sign;
        g.row[r] += slope_of * factor * level;
        g.column[c] += slope_of * row * level;
      }
    }
    return g;
  }

 private:
  Matrix outputs(const Ptq161Layer& layer) const {
    Matrix values(w_.rows(), w_.cols());
    ptq161_values(w_, layer, values.view);
    return product(x_, values.view, how_);
  }

  /// The loss of outputs q; with `slope` also its derivative with respect to each of them.
  double measure(MatrixView<const float> q, std::vector<double>& cosines, Matrix* slope) const {
    const index_t tokens = q.rows(), out = q.cols();
    const double count = static_cast<double>(tokens) * static_cast<double>(out);
    if (count == 0) return 0;
    double squares = 0, sum = 0;
    std::vector<double> ours, theirs;
    for (index_t t = 0; t < tokens; ++t) {
      double dot = 0, qq = 0, yy = 0, error = 0;
      for (index_t r = 0; r < out; ++r) {
        const double a = q(t, r), b = target_.view(t, r);
        dot += a * b;
        qq += a * a;
        yy += b * b;
        error += (a - b) * (a - b);
      }
      squares += error;
      ours.push_back(std::sqrt(qq));
      theirs.push_back(std::sqrt(yy));
      cosines.push_back(qq > 0 && yy > 0 ? dot / (ours.back() * theirs.back()) : 0.0);
      sum += cosines.back();
    }
    const double mean = sum / static_cast<double>(tokens);
    if (mean == 0)
      throw ValueError("ptq161: the outputs have no direction in common with those of the uncompressed layer");
    if (slope != nullptr) {
      for (index_t t = 0; t < tokens; ++t) {
        const auto i = static_cast<std::size_t>(t);
        const bool defined = ours[i] > 0 && theirs[i] > 0;
        const double along = defined ? 1.0 / (mean * static_cast<double>(tokens) * ours[i] * theirs[i]) : 0.0;
        const double back = defined ? cosines[i] / (mean * static_cast<double>(tokens) * ours[i] * ours[i]) : 0.0;
        for (index_t r = 0; r < out; ++r) {
          const double a = q(t, r), b = target_.view(t, r);
          slope->view(t, r) = static_cast<float>(2 * (a - b) / count - (along * b - back * a));
        }
      }
    }
    return squares / count - std::log(std::fabs(mean));
  }

  MatrixView<const float> w_, x_;
  const Execution& how_;
  Matrix inputs_;  ///< xᵀ [in, tokens]
  Matrix target_;  ///< x Wᵀ [tokens, out]
};

/// What the binary channels have to make up for: w less the 4-bit values on salient channels.
Matrix residual_of(MatrixView<const float> w, const Ptq161Layer& layer) {
  Matrix residual(w.rows(), w.cols());
  ptq161_values(w, layer, residual.view);
  for (index_t r = 0; r < w.rows(); ++r)
    for (index_t c = 0; c < w.cols(); ++c)
      residual.view(r, c) = layer.salient[static_cast<std::size_t>(c)] != 0 ? w(r, c) - residual.view(r, c) : w(r, c);
  return residual;
}

/// scale and mean of every row (row = 1): a 2 x 2 least-squares problem on the tokens.
void fit_rows(const LayerLoss& loss, MatrixView<const float> wanted, Ptq161Layer& layer) {
  const index_t rows = layer.out_features(), cols = layer.in_features(), tokens = loss.x().rows();
  Matrix signs(rows, cols), ones(1, cols);
  for (index_t c = 0; c < cols; ++c) {
    const auto j = static_cast<std::size_t>(c);
    ones.view(0, c) = layer.salient[j] != 0 ? 0.0f : layer.column[j];
    for (index_t r = 0; r < rows; ++r)
      signs.view(r, c) =
          layer.sign[static_cast<std::size_t>(r) * layer.salient.size() + j] != 0 ? ones.view(0, c) : -ones.view(0, c);
  }
  const Matrix u = product(loss.x(), signs.view, loss.how()), z = product(loss.x(), ones.view, loss.how());
  std::vector<double> uu(static_cast<std::size_t>(rows)), uz(uu), ud(uu), zd(uu);
  double zz = 0;
  for (index_t t = 0; t < tokens; ++t) {
    const double b = z.view(t, 0);
    zz += b * b;
    for (index_t r = 0; r < rows; ++r) {
      const auto i = static_cast<std::size_t>(r);
      const double a = u.view(t, r), d = wanted(t, r);
      uu[i] += a * a;
      uz[i] += a * b;
      ud[i] += a * d;
      zd[i] += b * d;
    }
  }
  for (std::size_t i = 0; i < uu.size(); ++i) {
    const double determinant = uu[i] * zz - uz[i] * uz[i];
    if (!(determinant > 1e-9 * uu[i] * zz)) continue;
    layer.scale[i] = static_cast<float>((zz * ud[i] - uz[i] * zd[i]) / determinant);
    layer.mean[i] = static_cast<float>((uu[i] * zd[i] - uz[i] * ud[i]) / determinant);
    layer.row[i] = 1.0f;
  }
}

/// The factors of the columns given the rows: N f = b with N = H ∘ (VᵀV), V the levels; three sweeps of Gauss-Seidel
/// from the factors as they are, each of which lowers the squared error.
void fit_columns(const LayerLoss& loss, MatrixView<const float> wanted, Ptq161Layer& layer) {
  const index_t rows = layer.out_features(), cols = layer.in_features(), tokens = loss.x().rows();
  Matrix levels(cols, rows);
  for (index_t c = 0; c < cols; ++c) {
    const auto j = static_cast<std::size_t>(c);
    for (index_t r = 0; r < rows; ++r) {
      const auto i = static_cast<std::size_t>(r);
      const float scale = layer.sign[i * layer.salient.size() + j] != 0 ? layer.scale[i] : -layer.scale[i];
      levels.view(c, r) = layer.salient[j] != 0 ? 0.0f : layer.row[i] * (layer.mean[i] + scale);
    }
  }
  const Matrix inputs = transposed(loss.x());
  const Matrix gram = product(inputs.view, inputs.view, loss.how());
  const Matrix overlap = product(levels.view, levels.view, loss.how());
  const Matrix pull = product(wanted, levels.view, loss.how());  // [tokens, in]
  std::vector<double> b(static_cast<std::size_t>(cols), 0.0);
  for (index_t t = 0; t < tokens; ++t)
    for (index_t c = 0; c < cols; ++c)
      b[static_cast<std::size_t>(c)] += static_cast<double>(pull.view(t, c)) * static_cast<double>(loss.x()(t, c));
  for (int sweep = 0; sweep < 3; ++sweep) {
    for (index_t c = 0; c < cols; ++c) {
      const auto j = static_cast<std::size_t>(c);
      const double own = static_cast<double>(gram.view(c, c)) * static_cast<double>(overlap.view(c, c));
      if (layer.salient[j] != 0 || !(own > 0)) continue;
      double rest = b[j];
      for (index_t k = 0; k < cols; ++k)
        rest -= static_cast<double>(gram.view(c, k)) * static_cast<double>(overlap.view(c, k)) *
                static_cast<double>(layer.column[static_cast<std::size_t>(k)]);
      layer.column[j] += static_cast<float>(rest / own);
    }
  }
}

/// One vector of parameters under AdamW with weight decay 0.
struct Adam {
  std::vector<double> first, second;
  explicit Adam(std::size_t n) : first(n, 0.0), second(n, 0.0) {}
  void step(std::vector<float>& values, const std::vector<double>& gradient, double rate, int t) {
    const double a = 1 - std::pow(0.9, t), b = 1 - std::pow(0.999, t);
    for (std::size_t i = 0; i < values.size(); ++i) {
      first[i] += 0.1 * (gradient[i] - first[i]);
      second[i] += 0.001 * (gradient[i] * gradient[i] - second[i]);
      values[i] -= static_cast<float>(rate * (first[i] / a) / (std::sqrt(second[i] / b) + 1e-8));
    }
  }
};

void check_arguments(const char* function, MatrixView<const float> w, MatrixView<const float> x,
                     const Ptq161Layer& layer) {
  const MatrixShape shape{layer.out_features(), layer.in_features()};
  if (w.shape() != shape || x.cols() != shape.cols)
    throw ShapeError(std::string(function) + ": w is " + to_string(w.shape()) + ", x " + to_string(x.shape()) +
                     ", the layer " + to_string(shape));
  for (const auto& [name, m] : {std::pair("w", w), std::pair("x", x)})
    if (const MatrixShape bad = find_non_finite(m); bad.rows >= 0)
      throw ValueError(std::string(function) + ": " + name + " is not finite at row " + std::to_string(bad.rows) +
                       ", column " + std::to_string(bad.cols));
}

}  // namespace

Ptq161Gradient ptq161_gradient(MatrixView<const float> w, MatrixView<const float> x, const Ptq161Layer& layer,
                               const Execution& how) {
  check_arguments("ptq161_gradient", w, x, layer);
  const Execution step = how.quiet();
  return LayerLoss(w, x, step).gradient(layer);
}

Ptq161Report ptq161_optimise(MatrixView<const float> w, MatrixView<const float> x, Ptq161Layer& layer,
                             const Ptq161Options& options, const Execution& how) {
  check_arguments("ptq161_optimise", w, x, layer);
  const Execution step = how.quiet();
  const LayerLoss loss(w, x, step);
  Ptq161Report report;
  report.start_loss = report.loss = loss.loss(layer);
  Ptq161Layer trial = layer;
  const int rounds = options.alternations + options.steps;
  int done = 0;
  const auto keep_better = [&](double value) {
    if (value < report.loss) {
      report.loss = value;
      layer = trial;
    }
    how.report(static_cast<double>(++done) / static_cast<double>(std::max(rounds, 1)));
  };
  if (options.alternations > 0) {
    const Matrix residual = residual_of(w, layer);
    const Matrix wanted = product(x, residual.view, step);
    for (int i = 0; i < options.alternations; ++i) {
      how.throw_if_stopped();
      fit_rows(loss, wanted.view, trial);
      fit_columns(loss, wanted.view, trial);
      keep_better(loss.loss(trial));
    }
    trial = layer;
  }
  Adam scale(trial.scale.size()), row(trial.row.size()), column(trial.column.size());
  for (int t = 1; t <= options.steps; ++t) {
    how.throw_if_stopped();
    const Ptq161Gradient g = loss.gradient(trial);
    keep_better(g.loss);
    const double fall = 0.5 * (1 + std::cos(3.141592653589793 * (t - 1) / options.steps));
    scale.step(trial.scale, g.scale, options.scale_rate * fall, t);
    row.step(trial.row, g.row, options.factor_rate * fall, t);
    column.step(trial.column, g.column, options.factor_rate * fall, t);
  }
  if (options.steps > 0) {
    --done;
    keep_better(loss.loss(trial));
  }
  return report;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
