// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <memory>
#include <numbers>

#include "blockpack/core/random.hpp"
#include "blockpack/quant/rounding.hpp"
#include "blockpack/solve/adam.hpp"
#include "quant/hessian.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

/// The x that gives back w; 1/2 where the neighbours are one value.
float interpolate(float w, float down, float up) {
  return std::fabs(up - down) <= 1e-8f + 1e-5f * std::fabs(down) ? 0.5f : (w - down) / (up - down);
}

}  // namespace

DiscQuant::DiscQuant(std::span<const Layer> layers, const DiscQuantOptions& options, const Execution& how)
    : options_(options) {
  if (options.steps < 1 || options.warmup < 0 || !(options.learning_rate > 0.0) || !(options.linear > 0.0) ||
      !(options.linear_growth > 0.0))
    throw ValueError("DiscQuant: steps, learning_rate, linear and linear_growth must be positive");
  Random random(options.seed);
  for (const Layer& layer : layers) {
    State s;
    s.w = layer.w;
    const index_t count = checked_mul(layer.w.rows(), layer.w.cols(), "DiscQuant");
    for (AlignedBuffer<float>* b : {&s.down, &s.up, &s.x, &s.gradient, &s.first_moment, &s.second_moment})
      *b = AlignedBuffer<float>(count);
    nearest(layer.w, *layer.grids, s.view(s.x), how);
    double error = 0.0;
    for (index_t r = 0; r < layer.w.rows(); ++r)
      for (index_t j = 0; j < layer.w.cols(); ++j) {
        const index_t at = r * layer.w.cols() + j;
        const float w = layer.w(r, j);
        const Grid grid = layer.grids->grid(r, j / layer.grids->group_size());
        s.down[at] = grid.down(w);
        s.up[at] = grid.up(w);
        error += std::pow(static_cast<double>(s.x[at]) - static_cast<double>(w), 2);
        s.x[at] = options.random_start ? random.uniform() : interpolate(w, s.down[at], s.up[at]);
      }
    if (count > 0) delta2_ += 12.0 * error / static_cast<double>(count) / static_cast<double>(layers.size());
    layers_.push_back(std::move(s));
  }
}

MatrixView<float> DiscQuant::x(std::size_t layer) { return layers_.at(layer).view(layers_[layer].x); }
MatrixView<const float> DiscQuant::down(std::size_t layer) const { return layers_.at(layer).view(layers_[layer].down); }
MatrixView<const float> DiscQuant::up(std::size_t layer) const { return layers_.at(layer).view(layers_[layer].up); }
MatrixView<const float> DiscQuant::gradient(std::size_t layer) const {
  return layers_.at(layer).view(layers_[layer].gradient);
}
float DiscQuant::interpolation(std::size_t layer, index_t row, index_t col) const {
  const State& s = layers_.at(layer);
  return interpolate(s.w(row, col), s.view(s.down)(row, col), s.view(s.up)(row, col));
}

double DiscQuant::step(const LayerGradients& gradients, const Execution& how) {
  const double fraction = options_.steps > 1 ? step_ / static_cast<double>(options_.steps - 1) : 0.0;
  const auto linear = static_cast<float>(options_.linear * std::pow(options_.linear_growth, fraction));
  const double warmed = step_ < options_.warmup ? (step_ + 1) / static_cast<double>(options_.warmup)
                                                : 0.5 * (1.0 + std::cos(std::numbers::pi * (step_ - options_.warmup) /
                                                                        std::max(1, options_.steps - options_.warmup)));
  const auto rate = static_cast<float>(options_.learning_rate * warmed);
  const auto decay = static_cast<float>(options_.weight_decay);
  const auto scale = static_cast<float>(delta2_ > 0.0 ? options_.rho / delta2_ : 0.0);
  const auto clamp = static_cast<float>(options_.clamp);
  const Adam<float> adam({.learning_rate = options_.learning_rate * warmed, .epsilon = 1e-8}, step_ + 1);

  std::vector<AlignedBuffer<float>> memory;
  std::vector<MatrixView<const float>> weights;
  std::vector<MatrixView<float>> loss_gradients;
  for (State& s : layers_) {
    memory.push_back(AlignedBuffer<float>::uninitialized(s.x.size()));
    AlignedBuffer<float>& w = memory.back();
    for (index_t k = 0; k < w.size(); ++k) w[k] = (1.0f - s.x[k]) * s.down[k] + s.x[k] * s.up[k];
    weights.push_back(s.view(std::as_const(w)));
    loss_gradients.push_back(s.view(s.gradient));
  }
  const double loss = gradients(weights, loss_gradients);
  how.throw_if_stopped();
  for (State& s : layers_)
    parallel_for(how, s.w.rows(), [&](index_t r) {
      for (index_t j = 0; j < s.w.cols(); ++j) {
        const index_t k = r * s.w.cols() + j;
        const float c = 2.0f * interpolate(s.w(r, j), s.down[k], s.up[k]) - 1.0f;
        const float pull = scale * (s.gradient[k] * (s.up[k] - s.down[k]));
        const float g = std::clamp(pull, -clamp, clamp) - linear * c;
        float moved = s.x[k] - rate * decay * s.x[k];
        adam.update(g, moved, s.first_moment[k], s.second_moment[k]);
        s.x[k] = std::clamp(moved, 0.0f, 1.0f);
        s.gradient[k] = g;
      }
    });
  ++step_;
  return loss;
}

void DiscQuant::round(std::size_t layer, MatrixView<float> q) const {
  const State& s = layers_.at(layer);
  if (q.shape() != s.w.shape())
    throw ShapeError("DiscQuant::round: q is " + to_string(q.shape()) + ", " + to_string(s.w.shape()) + " needed");
  for (index_t r = 0; r < q.rows(); ++r)
    for (index_t j = 0; j < q.cols(); ++j) {
      const index_t k = r * q.cols() + j;
      q(r, j) = s.x[k] > 0.5f ? s.up[k] : s.down[k];
    }
}

LayerGradients layer_gradients(MatrixView<const float> w, const GramMatrix& h, const Execution& how) {
  quant::check_layer("layer_gradients", w, w.shape(), h);
  const Execution step = how.quiet();
  const auto product = std::make_shared<const quant::HessianProduct>(h, step);
  auto difference = std::make_shared<AlignedBuffer<float>>(checked_mul(w.rows(), w.cols(), "layer_gradients"));
  const MatrixView<float> d(difference->data(), w.rows(), w.cols());
  // |w Xᵀ|² in the units of the product.
  auto scratch = AlignedBuffer<float>::uninitialized(difference->size());
  const MatrixView<float> wh(scratch.data(), w.rows(), w.cols());
  product->apply(w, wh, step);
  double norm = 0.0;
  for (index_t r = 0; r < w.rows(); ++r)
    for (index_t j = 0; j < w.cols(); ++j) norm += static_cast<double>(w(r, j)) * static_cast<double>(wh(r, j));
  return [w, product, difference, d, norm, step](std::span<const MatrixView<const float>> weights,
                                                 std::span<const MatrixView<float>> gradients) {
    if (weights.size() != 1 || weights[0].shape() != w.shape())
      throw ShapeError("layer_gradients: one layer of " + to_string(w.shape()) + " needed");
    const MatrixView<float> g = gradients[0];
    for (index_t r = 0; r < w.rows(); ++r)
      for (index_t j = 0; j < w.cols(); ++j) d(r, j) = weights[0](r, j) - w(r, j);
    product->apply(d, g, step);
    double loss = 0.0;
    const auto factor = static_cast<float>(norm > 0.0 ? 2.0 / norm : 0.0);
    for (index_t r = 0; r < w.rows(); ++r)
      for (index_t j = 0; j < w.cols(); ++j) {
        loss += static_cast<double>(d(r, j)) * static_cast<double>(g(r, j));
        g(r, j) *= factor;
      }
    return norm > 0.0 ? loss / norm : 0.0;
  };
}

void discquant(MatrixView<const float> w, const GramMatrix& h, WeightGrids& grids, MatrixView<float> q,
               const DiscQuantOptions& options, const Execution& how) {
  quant::check_layer("discquant", w, q.shape(), h);
  const Execution step = how.quiet();
  const DiscQuant::Layer layer{w, &grids};
  DiscQuant run(std::span(&layer, 1), options, step);
  const LayerGradients gradients = layer_gradients(w, h, step);
  while (!run.done()) {
    run.step(gradients, step);
    how.report(run.steps_done() / static_cast<double>(options.steps));
  }
  run.round(0, q);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
