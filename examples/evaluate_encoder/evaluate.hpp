// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What compression does to sentence embeddings: their distance from the uncompressed ones, and how many of the ten
/// nearest neighbours of a sentence stay the same.

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/recipe/registry.hpp"
#include "sentence_encoder.hpp"

namespace example {

/// The embeddings of many sentences, one a row.
inline Matrix embed_all(const SentenceEncoder& encoder, std::span<const std::vector<index_t>> sentences,
                        const ApplyOptions& how = {}, const SentenceEncoder::Tap& tap = {}) {
  constexpr std::size_t kBatch = 128;  // sentences in flight
  Matrix all(static_cast<index_t>(sentences.size()), encoder.width());
  for (std::size_t first = 0; first < sentences.size(); first += kBatch) {
    const std::size_t count = std::min(kBatch, sentences.size() - first);
    const auto rows = all.view().rows_from(static_cast<index_t>(first), static_cast<index_t>(count));
    encoder.embed(sentences.subspan(first, count), rows, how, tap);
  }
  return all;
}

/// 1 - the mean cosine between row i of a and row i of b, all of length 1: the mean of |a_i - b_i|² / 2, which loses no
/// digits when they are close.
inline double mean_cosine_distance(MatrixView<const float> a, MatrixView<const float> b) {
  double sum = 0;
  for (index_t i = 0; i < a.rows(); ++i)
    for (index_t j = 0; j < a.cols(); ++j) {
      const double d = static_cast<double>(a(i, j)) - static_cast<double>(b(i, j));
      sum += d * d;
    }
  return sum / 2 / static_cast<double>(a.rows());
}

/// The k rows of e with the largest cosine to each row, itself left out; of equals the first. Row after row, ascending.
/// Rows have length 1. ValueError for fewer than k + 1 rows.
inline std::vector<index_t> nearest_rows(MatrixView<const float> e, index_t k, const blockpack::Execution& how = {}) {
  if (e.rows() <= k)
    throw blockpack::ValueError(std::to_string(e.rows()) + " sentences, more than " + std::to_string(k) + " needed");
  constexpr index_t kPanel = 256;
  const auto rows = blockpack::dense_view(e);
  ApplyOptions apply;
  apply.execution = how;
  apply.activations = blockpack::Activations::f32;
  std::vector<index_t> nearest(static_cast<std::size_t>(e.rows() * k));
  for (index_t first = 0; first < e.rows(); first += kPanel) {
    Matrix cosines(std::min(kPanel, e.rows() - first), e.rows());
    rows.apply(e.rows_from(first, cosines.rows), cosines.view(), apply);
    blockpack::parallel_for(how, cosines.rows, [&](index_t i) {
      const float* cosine = cosines.view().row_data(i);
      std::vector<index_t> order(static_cast<std::size_t>(e.rows()));
      std::iota(order.begin(), order.end(), index_t{0});
      order.erase(order.begin() + first + i);
      std::partial_sort(order.begin(), order.begin() + k, order.end(),
                        [&](index_t a, index_t b) { return cosine[a] != cosine[b] ? cosine[a] > cosine[b] : a < b; });
      std::sort(order.begin(), order.begin() + k);
      std::copy_n(order.begin(), k, nearest.begin() + (first + i) * k);
    });
  }
  return nearest;
}

/// The share of the neighbours in `expected` that `got` has too; both as nearest_rows gives them.
inline double recall(std::span<const index_t> expected, std::span<const index_t> got, index_t k) {
  std::vector<index_t> common;
  for (std::size_t row = 0; row < expected.size(); row += static_cast<std::size_t>(k)) {
    const auto a = expected.subspan(row, static_cast<std::size_t>(k)), b = got.subspan(row, a.size());
    std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(common));
  }
  return static_cast<double>(common.size()) / static_cast<double>(expected.size());
}

/// XᵀX of the input of every linear layer, by the name of its matrix.
using EncoderCalibration = std::map<std::string, blockpack::GramMatrix>;

inline EncoderCalibration calibrate(const SentenceEncoder& encoder, std::span<const std::vector<index_t>> sentences,
                                    const ApplyOptions& how = {}) {
  EncoderCalibration grams;
  embed_all(encoder, sentences, how, [&](const std::string& matrix, MatrixView<const float> x) {
    grams.try_emplace(matrix, x.cols()).first->second.add(x, how.execution);
  });
  return grams;
}

/// Which matrices are compressed: the linear layers, or the embedding too.
enum class Scope { linears, all };
inline bool includes(Scope scope, const std::string& matrix) {
  return scope == Scope::all || matrix != SentenceEncoder::kEmbedding;
}

/// The matrices of the scope under `scheme`. What needs calibration takes XᵀX, or its diagonal as the importance of the
/// columns; the embedding, which nothing is multiplied with, is then stored without the algorithms of the scheme.
inline SentenceEncoder compressed(const SentenceEncoder& encoder, Scope scope, const std::string& scheme,
                                  const EncoderCalibration& calibration, const blockpack::Execution& how = {}) {
  const blockpack::Registry& registry = blockpack::Registry::standard();
  SentenceEncoder result = encoder;
  for (const auto& [name, op] : encoder.matrices()) {
    if (!includes(scope, name)) continue;
    std::shared_ptr<const blockpack::Codec> codec = registry.codec(scheme);
    blockpack::CalibrationNeeds needs = codec->needs();
    const auto gram = calibration.find(name);
    if ((needs.gram || needs.importance) && gram == calibration.end()) {
      blockpack::Scheme plain = blockpack::parse_scheme(scheme);
      plain.algorithms.clear();
      codec = registry.codec(plain);
      needs = {};
    }
    blockpack::EncodeOptions options;
    options.execution = how;
    if (needs.gram) options.gram = &gram->second;
    Matrix importance(1, needs.importance ? op.in_features() : 0);
    for (index_t i = 0; i < importance.cols; ++i)
      importance.view()(0, i) = static_cast<float>(gram->second(i, i) / static_cast<double>(gram->second.rows()));
    if (needs.importance) options.importance = std::as_const(importance).view();
    const Matrix w = decoded(op);
    result.replace(name, encode_matrix(*fitted(codec, w.view(), options), w.view(), options));
  }
  return result;
}

}  // namespace example
