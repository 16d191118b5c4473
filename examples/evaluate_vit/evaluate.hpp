// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Labelled images, and how well a vision transformer tells them apart.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "vision_transformer.hpp"

namespace example {

/// Images one after another, one byte a pixel, and their labels.
struct Images {
  std::vector<std::uint8_t> pixels, labels;

  /// Two files of bytes. blockpack::Error when one is missing or they do not belong together.
  static Images load(const std::filesystem::path& pixels, const std::filesystem::path& labels,
                     const VitConfig& config) {
    Images images{read(pixels), read(labels)};
    if (images.labels.empty() ||
        images.pixels.size() != images.labels.size() * static_cast<std::size_t>(config.pixels()))
      throw blockpack::FormatError("'" + pixels.string() + "' has " + std::to_string(images.pixels.size()) +
                                   " bytes, " + std::to_string(config.pixels()) + " for each of " +
                                   std::to_string(images.labels.size()) + " labels needed");
    for (const std::uint8_t label : images.labels)
      if (label >= config.classes)
        throw blockpack::FormatError("'" + labels.string() + "' has a label beyond the classes");
    return images;
  }

  index_t count() const noexcept { return static_cast<index_t>(labels.size()); }
  Images part(index_t first, index_t images) const {
    const auto size = static_cast<index_t>(pixels.size()) / count();
    return {{pixels.begin() + first * size, pixels.begin() + (first + images) * size},
            {labels.begin() + first, labels.begin() + first + images}};
  }

 private:
  static std::vector<std::uint8_t> read(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw blockpack::Error("no images at '" + path.string() + "'");
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
};

inline constexpr index_t kBatch = 16;  ///< images in one pass

/// f(first, count, how) of batches of images, side by side; products inside run on the thread of their batch.
template <class F>
void for_each_batch(index_t images, const ApplyOptions& how, const F& f) {
  ApplyOptions alone = how;
  alone.execution = {};
  alone.execution.isa = how.execution.isa;
  alone.execution.threads = 1;
  blockpack::parallel_for(how.execution, blockpack::ceil_div(images, kBatch),
                          [&](index_t batch) { f(batch * kBatch, std::min(kBatch, images - batch * kBatch), alone); });
}

/// [images, classes].
inline Matrix logits_of(const VisionTransformer& model, const Images& images, const ApplyOptions& how = {}) {
  Matrix all(images.count(), model.config().classes);
  for_each_batch(images.count(), how, [&](index_t first, index_t count, const ApplyOptions& alone) {
    const Matrix logits = model.forward(images.part(first, count).pixels, alone).logits;
    std::copy(logits.values.begin(), logits.values.end(), all.view().row_data(first));
  });
  return all;
}

/// Share of the images whose label has the largest logit.
inline double accuracy(const Matrix& logits, std::span<const std::uint8_t> labels) {
  index_t right = 0;
  for (index_t i = 0; i < logits.rows; ++i) {
    const auto row = logits.view().row(i);
    right += std::max_element(row.begin(), row.end()) - row.begin() == labels[static_cast<std::size_t>(i)] ? 1 : 0;
  }
  return static_cast<double>(right) / static_cast<double>(logits.rows);
}

/// |logits - reference| / |reference|, of all images together.
inline double relative_error(const Matrix& reference, const Matrix& logits) {
  double error = 0, norm = 0;
  for (index_t i = 0; i < logits.values.size(); ++i) {
    error += std::pow(static_cast<double>(logits.values[i]) - static_cast<double>(reference.values[i]), 2);
    norm += std::pow(static_cast<double>(reference.values[i]), 2);
  }
  return std::sqrt(error / norm);
}

/// Mean over the images of -ln p(label); row i of `dlogits` becomes the derivative of image i's own loss.
inline double cross_entropy(const Matrix& logits, std::span<const std::uint8_t> labels, Matrix& dlogits) {
  double nats = 0;
  for (index_t i = 0; i < logits.rows; ++i) {
    const auto z = logits.view().row(i);
    const std::span<float> d = dlogits.view().row(i);
    const float top = *std::max_element(z.begin(), z.end());
    double sum = 0;
    for (const float v : z) sum += std::exp(static_cast<double>(v - top));
    for (std::size_t c = 0; c < d.size(); ++c)
      d[c] = static_cast<float>(std::exp(static_cast<double>(z[c] - top)) / sum);
    const std::uint8_t label = labels[static_cast<std::size_t>(i)];
    nats += std::log(sum) - static_cast<double>(z[label] - top);
    d[label] -= 1.0f;
  }
  return nats / static_cast<double>(logits.rows);
}

}  // namespace example
