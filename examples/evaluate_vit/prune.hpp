// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The matrices of a vision transformer's blocks compressed: under any scheme of the registry, and pruned by iCBS,
/// which asks the loss of the whole network, by gradients of single images through the backward pass.

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/calibration.hpp"
#include "blockpack/recipe/registry.hpp"
#include "blockpack/sparse/block_sparse.hpp"
#include "blockpack/sparse/prune/icbs.hpp"
#include "blockpack/sparse/prune/wanda.hpp"
#include "evaluate.hpp"

namespace example {

/// Gradients of the loss of single images by the matrices of the blocks, as the sums over patches they are made of.
class ImageGradients {
 public:
  ImageGradients() = default;
  ImageGradients(const VisionTransformer& model, const Images& images, const ApplyOptions& how)
      : images_(images.count()), patches_(model.config().patches()), how_(how) {
    batches_.resize(static_cast<std::size_t>(blockpack::ceil_div(images_, kBatch)));
    for_each_batch(images_, how, [&](index_t first, index_t count, const ApplyOptions& alone) {
      const Images part = images.part(first, count);
      Batch& batch = batches_[static_cast<std::size_t>(first / kBatch)];
      batch.tape = model.forward(part.pixels, alone);
      Matrix dlogits(count, model.config().classes);
      cross_entropy(batch.tape.logits, part.labels, dlogits);
      batch.sensitivity = model.backward(batch.tape, dlogits.view(), alone);
    });
  }

  /// The mean over the images.
  void mean(const std::string& matrix, MatrixView<float> g) const {
    for (index_t i = 0; i < g.rows(); ++i) std::fill_n(g.row_data(i), g.cols(), 0.0f);
    for (const Batch& batch : batches_) {
      const auto& [x, dy] = batch.sensitivity.at(matrix);
      blockpack::parallel_for(how_.execution, g.rows(), [&, rows = x, &outputs = dy](index_t i) {
        for (index_t t = 0; t < rows.rows(); ++t)
          add_scaled(outputs.view()(t, i) / static_cast<float>(images_), rows.row_data(t), g.row_data(i), g.cols());
      });
    }
  }
  /// [images, weights.size()] of chosen weights, row · in + column.
  Matrix of_weights(const std::string& matrix, std::span<const index_t> weights) const {
    Matrix samples(images_, static_cast<index_t>(weights.size()));
    blockpack::parallel_for(how_.execution, images_, [&](index_t image) {
      const auto& [x, dy] = batches_[static_cast<std::size_t>(image / kBatch)].sensitivity.at(matrix);
      const index_t first = image % kBatch * patches_, in = x.cols();
      float* g = samples.view().row_data(image);
      for (std::size_t k = 0; k < weights.size(); ++k) {
        const index_t row = weights[k] / in, col = weights[k] % in;
        float sum = 0;
        for (index_t t = first; t < first + patches_; ++t) sum += dy.view()(t, row) * x(t, col);
        g[k] = sum;
      }
    });
    return samples;
  }

 private:
  struct Batch {
    VisionTransformer::Tape tape;
    std::map<std::string, VisionTransformer::Sensitivity> sensitivity;
  };
  index_t images_ = 0, patches_ = 0;
  ApplyOptions how_;
  std::vector<Batch> batches_;
};

/// XᵀX of the inputs of the blocks' matrices over all patches of the images, by name.
using VitCalibration = std::map<std::string, blockpack::GramMatrix>;

inline VitCalibration calibrate(const VisionTransformer& model, const Images& images, const ApplyOptions& how = {}) {
  VitCalibration grams;
  const std::vector<std::string> names = model.block_matrices();
  for (index_t first = 0; first < images.count(); first += kBatch) {
    const index_t count = std::min(kBatch, images.count() - first);
    const VisionTransformer::Tape tape = model.forward(images.part(first, count).pixels, how);
    for (std::size_t m = 0; m < names.size(); ++m) {
      const MatrixView<const float> x = tape.input(m);
      grams.try_emplace(names[m], x.cols()).first->second.add(x, how.execution);
    }
  }
  return grams;
}

/// The matrices of the blocks under a scheme; what needs calibration takes XᵀX.
inline VisionTransformer compressed(const VisionTransformer& model, const std::string& scheme,
                                    const VitCalibration& calibration, const blockpack::Execution& how = {}) {
  const auto codec = blockpack::Registry::standard().codec(scheme);
  VisionTransformer result = model;
  for (const std::string& name : model.block_matrices()) {
    blockpack::EncodeOptions options;
    options.execution = how;
    if (codec->needs().gram) options.gram = &calibration.at(name);
    const Matrix w = decoded(model.matrices().at(name));
    result.replace(name, encode_matrix(*fitted(codec, w.view(), options), w.view(), options));
  }
  return result;
}

/// iCBS on the matrices of the blocks.
struct VitIcbs {
  blockpack::IcbsOptions options = standard();
  index_t batch = 200;     ///< images whose gradients make a step's model
  index_t held_out = 512;  ///< the last of the calibration images decide which passes are accepted

  /// Every matrix keeps `density` of its weights, in bf16 with a bit a weight. ValueError for fewer images than
  /// `held_out` and a batch.
  VisionTransformer pruned(const VisionTransformer& model, const Images& calibration, double density,
                           const ApplyOptions& how = {}, blockpack::IcbsReport* report = nullptr) const {
    if (calibration.count() < held_out + batch)
      throw blockpack::ValueError("iCBS: " + std::to_string(calibration.count()) + " images, at least " +
                                  std::to_string(held_out + batch) + " needed");
    const Images training = calibration.part(0, calibration.count() - held_out);
    const Images apart = calibration.part(training.count(), held_out);
    const std::vector<std::string> names = model.block_matrices();
    const VitCalibration grams = calibrate(model, training, how);
    std::vector<Matrix> weights;
    std::vector<blockpack::IcbsLayer> layers;
    for (const std::string& name : names) {
      weights.push_back(decoded(model.matrices().at(name)));
      layers.push_back({weights.back().view(), blockpack::wanda(grams.at(name)).column});
    }

    VisionTransformer current = model;
    const auto refresh = [&] {
      for (std::size_t m = 0; m < names.size(); ++m)
        current.replace(names[m], blockpack::Dense<float>::encode(weights[m].view()));
    };
    ImageGradients gradients;
    index_t next = 0;
    blockpack::IcbsModel loss;
    loss.next_batch = [&] {
      refresh();
      if (next + batch > training.count()) next = 0;
      gradients = ImageGradients(current, training.part(next, batch), how);
      next += batch;
    };
    loss.gradient = [&](std::size_t m, MatrixView<float> g) { gradients.mean(names[m], g); };
    loss.local = [&](std::size_t m, blockpack::Coordinates block, std::span<double> g, MatrixView<double> h) {
      blockpack::empirical_fisher(gradients.of_weights(names[m], block).view(), g, h);
    };
    loss.loss = [&] {
      refresh();
      Matrix ignored(apart.count(), model.config().classes);
      return cross_entropy(logits_of(current, apart, how), apart.labels, ignored);
    };
    blockpack::IcbsOptions chosen = options;
    chosen.pattern.density = density;
    blockpack::Icbs icbs(std::move(layers), std::move(loss), chosen, how.execution);
    const blockpack::IcbsReport done = icbs.run(how.execution);
    if (report != nullptr) *report = done;
    VisionTransformer result = model;
    for (std::size_t m = 0; m < names.size(); ++m)
      result.replace(
          names[m], blockpack::BlockSparse<blockpack::DenseFormat<blockpack::bf16>>::encode(weights[m].view(), {1, 1}));
    return result;
  }

 private:
  static blockpack::IcbsOptions standard() {
    blockpack::IcbsOptions o;
    o.pattern = blockpack::MaskPattern::rows(0.5);
    o.start = blockpack::IcbsScore::wanda;
    o.passes = 8;
    o.steps = 12;
    o.min_steps = 1;
    o.annealing.restarts = 1;
    return o;
  }
};

}  // namespace example
