// SPDX-License-Identifier: Apache-2.0
#pragma once

/// NoWag-P: scores of the weights after columns, then rows of the result, are brought to norm 1. Its own pattern for
/// unstructured masks is MaskPattern::layer. ARMOR starts from it.
///
///     r1_j = |W[:, j]|₂ + 1e-5;  r2_i = |(W / r1)[i, :]|₂ + 1e-5;  Wn = W / (r2 r1ᵀ);  score_ij = Wn_ij² · h_j
///
/// The normalization is undone after pruning, so that what is kept are the weights themselves.
/// Source: "NoWag", arXiv:2504.14569; LawrenceRLiu/NoWag (whose `frac_sparse` is the fraction kept).

#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/sparse/prune/criterion.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

struct NowagNorms {
  std::vector<double> column, row;  ///< r1 [in], r2 [out]
};

/// r1 and r2, in double.
template <class T>
NowagNorms nowag_norms(MatrixView<const T> w) {
  constexpr double kEpsilon = 1e-5;
  NowagNorms norms{std::vector<double>(static_cast<std::size_t>(w.cols())), {}};
  for (index_t i = 0; i < w.rows(); ++i)
    for (std::size_t j = 0; j < norms.column.size(); ++j) {
      const auto v = static_cast<double>(w.row(i)[j]);
      norms.column[j] += v * v;
    }
  for (double& norm : norms.column) norm = std::sqrt(norm) + kEpsilon;
  for (index_t i = 0; i < w.rows(); ++i) {
    double sum = 0;
    for (std::size_t j = 0; j < norms.column.size(); ++j) {
      const double v = static_cast<double>(w.row(i)[j]) / norms.column[j];
      sum += v * v;
    }
    norms.row.push_back(std::sqrt(sum) + kEpsilon);
  }
  return norms;
}

/// The importance of inputs as NoWag takes it: what is not finite or not positive becomes the mean of the rest (1
/// where there is none).
inline std::vector<double> nowag_importance(std::span<const double> h) {
  double sum = 0;
  std::size_t count = 0;
  const auto valid = [](double v) { return std::isfinite(v) && v > 0.0; };
  for (const double v : h)
    if (valid(v)) {
      sum += v;
      ++count;
    }
  std::vector<double> cleaned(h.begin(), h.end());
  for (double& v : cleaned)
    if (!valid(v)) v = count == 0 ? 1.0 : sum / static_cast<double>(count);
  return cleaned;
}

/// sqrt(score) as factors: 1 / r2_i of the rows, sqrt(h_j) / r1_j of the columns.
///
/// Shapes:  w [out, in]; h [in], the mean (or sum) of x_j² over the tokens. ShapeError for another number.
template <class T>
Criterion nowag(MatrixView<const T> w, std::span<const double> h) {
  if (h.size() != static_cast<std::size_t>(w.cols()))
    throw ShapeError("nowag: h has " + std::to_string(h.size()) + " entries, " + std::to_string(w.cols()) + " needed");
  const NowagNorms norms = nowag_norms(w);
  const std::vector<double> importance = nowag_importance(h);
  Criterion c;
  for (const double r2 : norms.row) c.row.push_back(1.0 / r2);
  for (std::size_t j = 0; j < importance.size(); ++j) c.column.push_back(std::sqrt(importance[j]) / norms.column[j]);
  return c;
}
inline Criterion nowag(MatrixView<const float> w, const ColumnStats& x) {
  std::vector<double> h;
  for (index_t j = 0; j < x.in_features(); ++j) h.push_back(x.mean_square(j));
  return nowag<float>(w, h);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
