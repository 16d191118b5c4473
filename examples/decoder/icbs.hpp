// SPDX-License-Identifier: Apache-2.0
#pragma once

/// iCBS on the projections of the byte decoder: gradients of whole windows, their loss summed over the bytes, through
/// the decoder's backward pass.

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "blockpack/sparse/prune/icbs.hpp"
#include "blockpack/sparse/prune/wanda.hpp"
#include "calibration.hpp"

namespace example {

struct DecoderIcbs {
  blockpack::IcbsOptions options = standard();
  index_t batch = 112;    ///< windows whose gradients make the models of the next `shared` steps
  index_t shared = 28;    ///< steps
  index_t held_out = 16;  ///< the last windows of the text decide which passes are accepted

  /// The projections, pruned, in the order of DecoderConfig::matrices(). `grams`: XᵀX of every matrix.
  std::vector<Matrix> pruned(const ByteDecoder& plain, const CalibrationText& text,
                             std::span<const blockpack::TensorCalibration> grams, const blockpack::Execution& how = {},
                             blockpack::IcbsReport* report = nullptr) const {
    constexpr std::size_t kFirst = 1;  // the embedding stays
    GradientDecoder decoder(plain);
    const index_t training = text.windows() - held_out;
    std::vector<Matrix> weights;
    std::vector<blockpack::IcbsLayer> layers;
    for (std::size_t m = kFirst; m < grams.size(); ++m) {
      weights.push_back(decoder.weights(m));
      layers.push_back({weights.back().view(), blockpack::wanda(*grams[m].gram).column});
    }
    const auto refresh = [&] {
      blockpack::parallel_for(how, static_cast<index_t>(weights.size()), [&](index_t i) {
        decoder.set(kFirst + static_cast<std::size_t>(i), weights[static_cast<std::size_t>(i)].view());
      });
    };
    /// The loss of a window in nats, summed over its bytes.
    const auto loss_of = [&](index_t window, Gradients* gradients) {
      const auto tape = decoder.forward(text.input(window));
      Matrix dlogits(tape.logits.rows, tape.logits.cols);
      const auto bytes = static_cast<float>(dlogits.rows);
      const double nats = cross_entropy(tape.logits.view(), text.targets(window), dlogits.view());
      for (float& d : dlogits.values) d *= bytes;
      if (gradients != nullptr) decoder.backward(text.input(window), tape, dlogits, *gradients);
      return nats * static_cast<double>(bytes);
    };

    std::vector<Gradients> gradients;
    for (index_t i = 0; i < batch; ++i) gradients.push_back(decoder.make_gradients());
    index_t steps = 0, next = 0;
    blockpack::IcbsModel loss;
    loss.next_batch = [&] {
      if (steps++ % shared != 0) return;
      refresh();
      blockpack::parallel_for(
          how, batch, [&](index_t i) { loss_of((next + i) % training, &gradients[static_cast<std::size_t>(i)]); });
      next += batch;
    };
    loss.gradient = [&](std::size_t layer, MatrixView<float> mean) {
      for (index_t r = 0; r < mean.rows(); ++r) {
        std::fill_n(mean.row_data(r), mean.cols(), 0.0f);
        for (const Gradients& g : gradients)
          add_scaled(1.0f / static_cast<float>(batch), g[kFirst + layer].view().row_data(r), mean.row_data(r),
                     mean.cols());
      }
    };
    loss.local = [&](std::size_t layer, blockpack::Coordinates block, std::span<double> mean, MatrixView<double> h) {
      Matrix samples(batch, static_cast<index_t>(block.size()));
      for (index_t i = 0; i < batch; ++i) {
        const float* g = gradients[static_cast<std::size_t>(i)][kFirst + layer].values.data();
        std::transform(block.begin(), block.end(), samples.view().row_data(i), [&](index_t k) { return g[k]; });
      }
      blockpack::empirical_fisher(samples.view(), mean, h);
    };
    loss.loss = [&] {
      refresh();
      std::vector<double> nats(static_cast<std::size_t>(held_out));
      blockpack::parallel_for(how, held_out,
                              [&](index_t i) { nats[static_cast<std::size_t>(i)] = loss_of(training + i, nullptr); });
      return std::accumulate(nats.begin(), nats.end(), 0.0);
    };
    blockpack::Icbs icbs(std::move(layers), std::move(loss), options, how);
    const blockpack::IcbsReport done = icbs.run(how);
    if (report != nullptr) *report = done;
    return weights;
  }

 private:
  static blockpack::IcbsOptions standard() {
    blockpack::IcbsOptions o;
    o.start = blockpack::IcbsScore::wanda;
    o.block = 256;
    o.pruned = 128;
    o.fix_pruned = o.fix_kept = 0.2;
    o.passes = 6;
    o.steps = 56;
    o.min_steps = 1;
    o.annealing.restarts = 1;
    return o;
  }
};

}  // namespace example
