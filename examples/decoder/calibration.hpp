// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Calibration of the byte decoder: runs text through it and gathers, for every matrix, XᵀX of its inputs and the
/// diagonal Fisher matrix of its weights.

#include <algorithm>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/calibration.hpp"
#include "blockpack/recipe/calibration.hpp"
#include "evaluate.hpp"
#include "gradient.hpp"

namespace example {

/// Windows of max_positions + 1 bytes: the first max_positions are the input, each next byte the target.
class CalibrationText {
 public:
  static constexpr index_t kSets = 3;

  /// Set `set` of `calib.bin`, which holds kSets sets of as many windows each, row after row.
  static CalibrationText load(const std::filesystem::path& path, const DecoderConfig& config, index_t set) {
    const std::vector<std::uint8_t> bytes = read_bytes(path);
    const auto size = static_cast<std::size_t>(config.max_positions + 1);
    const std::size_t windows = bytes.size() / size / kSets;
    if (windows == 0 || bytes.size() != windows * size * kSets)
      throw blockpack::FormatError("'" + path.string() + "' has " + std::to_string(bytes.size()) + " bytes, " +
                                   std::to_string(kSets) + " sets of windows of " + std::to_string(size) + " needed");
    if (set < 0 || set >= kSets)
      throw blockpack::ValueError("calibration set " + std::to_string(set) + ", 0 to " + std::to_string(kSets - 1) +
                                  " needed");
    const auto first = bytes.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(set) * windows * size);
    return CalibrationText({first, first + static_cast<std::ptrdiff_t>(windows * size)}, size);
  }

  /// The first windows of this text.
  CalibrationText first(index_t windows) const {
    return CalibrationText({bytes_.begin(), bytes_.begin() + windows * static_cast<std::ptrdiff_t>(size_)}, size_);
  }

  index_t windows() const noexcept { return static_cast<index_t>(bytes_.size() / size_); }
  std::span<const std::uint8_t> input(index_t window) const { return part(window, 0); }
  std::span<const std::uint8_t> targets(index_t window) const { return part(window, 1); }

 private:
  CalibrationText(std::vector<std::uint8_t> bytes, std::size_t size) : bytes_(std::move(bytes)), size_(size) {}
  std::span<const std::uint8_t> part(index_t window, std::size_t offset) const {
    return std::span(bytes_).subspan(static_cast<std::size_t>(window) * size_ + offset, size_ - 1);
  }
  std::vector<std::uint8_t> bytes_;
  std::size_t size_;
};

/// Tokens whose inputs are kept: evenly spread over the text.
inline constexpr index_t kSampledTokens = 1024;

/// What calibration gathers of one matrix.
struct MatrixCalibration {
  std::shared_ptr<blockpack::GramMatrix> gram;  ///< shared by matrices with the same input
  blockpack::SecondMoments fisher;              ///< of the gradient of a window's mean cross entropy
  std::shared_ptr<Matrix> inputs;               ///< of up to kSampledTokens tokens, shared as `gram` is

  /// As the library's algorithms take it.
  blockpack::TensorCalibration tensor() const {
    auto importance = std::make_shared<Matrix>(fisher.shape().rows, fisher.shape().cols);
    fisher.copy_to(importance->view());
    const MatrixView<const float> view = std::as_const(*importance).view();
    return {gram, view, std::move(importance), std::as_const(*inputs).view(), inputs};
  }
};

/// Statistics of every matrix over the windows of the text, in the order of DecoderConfig::matrices(). For the
/// embedding, XᵀX is that of the head's input. The numbers do not depend on the threads.
inline std::vector<MatrixCalibration> calibrate(const GradientDecoder& decoder, const CalibrationText& text,
                                                const blockpack::Execution& how = {}) {
  const std::vector<DecoderMatrix> matrices = decoder.config().matrices();
  const index_t positions = decoder.config().max_positions, tokens = text.windows() * positions;
  const index_t every = blockpack::ceil_div(tokens, kSampledTokens);
  std::vector<MatrixCalibration> all;
  std::vector<bool> owns_gram;
  for (std::size_t m = 0; m < matrices.size(); ++m) {
    const auto p = m == 0 ? Projection::q : static_cast<Projection>((m - 1) % kProjections.size());
    const std::size_t shared_with = p == Projection::k || p == Projection::up ? m - 1 : p == Projection::v ? m - 2 : m;
    owns_gram.push_back(shared_with == m);
    const index_t in = matrices[m].shape.cols;
    all.push_back({shared_with == m ? std::make_shared<blockpack::GramMatrix>(in) : all[shared_with].gram,
                   blockpack::SecondMoments(matrices[m].shape),
                   shared_with == m ? std::make_shared<Matrix>(blockpack::ceil_div(tokens, every), in)
                                    : all[shared_with].inputs});
  }
  constexpr index_t kBatch = 8;  // windows in flight
  std::vector<Gradients> gradients;
  std::vector<GradientDecoder::Tape> tapes(kBatch);
  for (index_t i = 0; i < kBatch; ++i) gradients.push_back(decoder.make_gradients());
  for (index_t first = 0; first < text.windows(); first += kBatch) {
    const index_t count = std::min(kBatch, text.windows() - first);
    how.throw_if_stopped();
    how.report(static_cast<double>(first) / static_cast<double>(text.windows()));
    blockpack::parallel_for(how, count, [&](index_t i) {
      const auto at = static_cast<std::size_t>(i);
      tapes[at] = decoder.forward(text.input(first + i));
      Matrix dlogits(tapes[at].logits.rows, tapes[at].logits.cols);
      cross_entropy(tapes[at].logits.view(), text.targets(first + i), dlogits.view());
      decoder.backward(text.input(first + i), tapes[at], dlogits, gradients[at]);
    });
    blockpack::Execution alone;
    alone.threads = 1;
    blockpack::parallel_for(how, static_cast<index_t>(matrices.size()), [&](index_t m) {
      MatrixCalibration& c = all[static_cast<std::size_t>(m)];
      for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
        if (owns_gram[static_cast<std::size_t>(m)]) {
          const MatrixView<const float> x = tapes[i].input(static_cast<std::size_t>(m));
          c.gram->add(x, alone);
          const index_t before = (first + static_cast<index_t>(i)) * positions;
          for (index_t t = blockpack::round_up(before, every) - before; t < x.rows(); t += every)
            std::copy_n(x.row_data(t), x.cols(), c.inputs->view().row_data((before + t) / every));
        }
        c.fisher.add(gradients[i][static_cast<std::size_t>(m)].view(), alone);
      }
    });
  }
  how.report(1);
  return all;
}

}  // namespace example
