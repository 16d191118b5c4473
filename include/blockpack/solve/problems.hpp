// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The synthetic problems block coordinate descent is compared on, from a seed. Sizes are those of the paper.
///
///   A   design_problem(1000, 10000, seed)         LeastSquares(p.a(), p.targets)
///   B   the same                                  Logistic(p.a(), p.signs)
///   C   softmax_problem(1000, 1000, 50, seed)     Softmax(p.a(), p.labels, p.classes)
///   D   lattice_problem(50, 50, 100, seed)        Quadratic(p.matrix, p.right)
///   L1  A with Penalty{.l1 = 50000, .nonnegative = true}
///
/// Source: J. Nutini, I. Laradji, M. Schmidt, JMLR 23 (2022), section 7. The published optima belong to other numbers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/solve/objective.hpp"
#include "blockpack/solve/quadratic.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// A design matrix with what is to be predicted from it.
struct DesignProblem {
  index_t rows = 0, cols = 0, classes = 0;
  std::vector<double> values;   ///< A [rows, cols]
  std::vector<double> targets;  ///< A w + N(0, 1)
  std::vector<double> signs;    ///< of A w, 10 % of them flipped
  std::vector<index_t> labels;  ///< of softmax_problem: argmax of A W + N(0, 1)

  MatrixView<const double> a() const { return {values.data(), rows, cols}; }
};

namespace detail {

/// N(1, 1), columns times 10 · N(0, 1), each entry kept with probability 10 log(rows) / rows.
inline DesignProblem design_matrix(index_t rows, index_t cols, Random& random) {
  if (rows < 1 || cols < 1)
    throw ValueError("design_problem: rows and cols are " + to_string(MatrixShape{rows, cols}) +
                     ", at least 1x1 needed");
  DesignProblem p;
  p.rows = rows;
  p.cols = cols;
  p.values.resize(static_cast<std::size_t>(checked_mul(rows, cols, "design_problem")));
  std::vector<double> gain(static_cast<std::size_t>(cols));
  for (double& g : gain) g = 10.0 * static_cast<double>(random.normal());
  const double kept = 10.0 * std::log(static_cast<double>(rows)) / static_cast<double>(rows);
  for (std::size_t i = 0; i < p.values.size(); ++i) {
    const double v = static_cast<double>(random.normal()) + 1.0;
    p.values[i] = static_cast<double>(random.uniform()) < kept ? v * gain[i % gain.size()] : 0.0;
  }
  return p;
}

}  // namespace detail

/// Problems A, B and L1: w is N(0, 1) in a tenth of its elements, else 0.
/// Errors:  ValueError for rows or cols below 1.
inline DesignProblem design_problem(index_t rows, index_t cols, std::uint64_t seed) {
  Random random(seed);
  DesignProblem p = detail::design_matrix(rows, cols, random);
  std::vector<double> w(static_cast<std::size_t>(cols));
  for (double& v : w) {
    const auto value = static_cast<double>(random.normal());
    v = random.uniform() < 0.1f ? value : 0.0;
  }
  for (index_t t = 0; t < rows; ++t) {
    const double z = detail::dot(p.a().row(t), w);
    p.targets.push_back(z + static_cast<double>(random.normal()));
    p.signs.push_back((z < 0.0 ? -1.0 : 1.0) * (random.uniform() < 0.1f ? -1.0 : 1.0));
  }
  return p;
}

/// Problem C: W [cols, classes] is N(0, 1).
/// Errors:  ValueError for rows, cols or classes below 1.
inline DesignProblem softmax_problem(index_t rows, index_t cols, index_t classes, std::uint64_t seed) {
  if (classes < 1) throw ValueError("softmax_problem: classes = " + std::to_string(classes) + ", at least 1 needed");
  Random random(seed);
  DesignProblem p = detail::design_matrix(rows, cols, random);
  p.classes = classes;
  std::vector<double> w(static_cast<std::size_t>(checked_mul(cols, classes, "softmax_problem")));
  for (double& v : w) v = static_cast<double>(random.normal());
  for (index_t t = 0; t < rows; ++t) {
    std::vector<double> z(static_cast<std::size_t>(classes));
    for (double& v : z) v = static_cast<double>(random.normal());
    for (index_t j = 0; j < cols; ++j)
      for (std::size_t c = 0; c < z.size(); ++c) z[c] += p.a()(t, j) * w[static_cast<std::size_t>(j) * z.size() + c];
    p.labels.push_back(std::max_element(z.begin(), z.end()) - z.begin());
  }
  return p;
}

/// Labels spread over a lattice: minimize 1/2 Σ_edges 1e5 (x_i - x_j)², x given at the labelled nodes.
struct LatticeProblem {
  index_t rows = 0, cols = 0;
  std::vector<index_t> unknown;  ///< rising; node (r, c) is c · rows + r
  SparseSymmetric matrix;        ///< of the unknown nodes
  std::vector<double> right;
};

/// Problem D: `labelled` random nodes have 10 · N(0, 1).
/// Errors:  ValueError for rows or cols below 1 or labelled outside [1, nodes].
inline LatticeProblem lattice_problem(index_t rows, index_t cols, index_t labelled, std::uint64_t seed) {
  constexpr double kWeight = 1e5;
  const index_t nodes = checked_mul(rows, cols, "lattice_problem");
  if (nodes < 1 || labelled < 1 || labelled > nodes)
    throw ValueError("lattice_problem: labelled = " + std::to_string(labelled) + " of " +
                     to_string(MatrixShape{rows, cols}) + " nodes, at least 1 and at most all needed");
  Random random(seed);
  std::vector<double> label(static_cast<std::size_t>(nodes), HUGE_VAL);
  for (index_t left = labelled; left > 0;) {
    double& y = label[random.below(static_cast<std::uint32_t>(nodes))];
    if (y != HUGE_VAL) continue;
    y = 10.0 * static_cast<double>(random.normal());
    --left;
  }
  LatticeProblem p;
  p.rows = rows;
  p.cols = cols;
  std::vector<index_t> place(label.size(), -1);
  for (index_t i = 0; i < nodes; ++i)
    if (label[static_cast<std::size_t>(i)] == HUGE_VAL) {
      place[static_cast<std::size_t>(i)] = static_cast<index_t>(p.unknown.size());
      p.unknown.push_back(i);
    }
  std::vector<std::vector<SparseSymmetric::Entry>> entries;
  for (const index_t i : p.unknown) {
    const index_t r = i % rows, c = i / rows;
    std::vector<SparseSymmetric::Entry> row;
    double degree = 0.0, right = 0.0;
    const auto edge = [&](bool there, index_t j) {
      if (!there) return;
      degree += kWeight;
      if (const index_t at = place[static_cast<std::size_t>(j)]; at >= 0)
        row.push_back({at, -kWeight});
      else
        right += kWeight * label[static_cast<std::size_t>(j)];
    };
    edge(c > 0, i - rows);
    edge(r > 0, i - 1);
    edge(r + 1 < rows, i + 1);
    edge(c + 1 < cols, i + rows);
    row.push_back({place[static_cast<std::size_t>(i)], degree});
    entries.push_back(std::move(row));
    p.right.push_back(right);
  }
  p.matrix = SparseSymmetric(entries);
  return p;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
