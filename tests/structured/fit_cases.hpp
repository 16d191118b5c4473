// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The golden cases of the structured fits, and matrices and statistics for their tests.

#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/random.hpp"
#include "structured/fit_instances.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

namespace blockpack::test {

/// A case of tests/golden/block_low_rank.
struct FitCase {
  std::string name;
  nlohmann::json params;
  nlohmann::json tolerance;
  nlohmann::json inputs;
  nlohmann::json outputs;

  template <class T = double>
  RowMajorMatrix<T> matrix(const std::string& key) const {
    const nlohmann::json& files = inputs.contains(key) ? inputs : outputs;
    const GoldenArray<T> array =
        read_npy<T>(golden_folder("block_low_rank") + files.at(key).at("file").get<std::string>());
    return fit_detail::eigen_map(array.view());
  }
  double number(const std::string& key) const { return matrix(key)(0, 0); }

  /// What is compared: the list of the tolerance, or every output.
  std::vector<std::string> compared() const {
    if (tolerance.contains("compare")) return tolerance.at("compare");
    std::vector<std::string> all;
    for (const auto& [key, value] : outputs.items()) all.push_back(key);
    return all;
  }
};

/// Every case of a kind; fails without any.
inline std::vector<FitCase> fit_cases(std::string_view kind) {
  std::vector<FitCase> cases;
  for (const auto& c : golden_cases("block_low_rank"))
    if (c.at("kind") == kind)
      cases.push_back({c.at("name"), c.at("params"), c.at("tolerance"), c.at("inputs"), c.at("outputs")});
  REQUIRE(!cases.empty());
  return cases;
}

template <class T>
RowMajorMatrix<T> normal(index_t rows, index_t cols, std::uint64_t seed) {
  return fit_detail::normal_matrix<T>(rows, cols, seed);
}

/// Inputs whose features are correlated and of unlike size, as a layer sees them.
inline RowMajorMatrix<float> correlated_inputs(index_t tokens, index_t features, std::uint64_t seed) {
  RowMajorMatrix<float> mix = normal<float>(features, features, seed);
  for (index_t i = 0; i < features; ++i) mix.row(i) *= 1.0f / (1.0f + 0.15f * static_cast<float>(i));
  RowMajorMatrix<float> x = normal<float>(tokens, features, seed + 1) * mix;
  for (index_t j = 0; j < features; ++j) x.col(j) *= j % 17 == 3 ? 4.0f : 1.0f;
  return x;
}
inline GramMatrix gram_of(const RowMajorMatrix<float>& x) {
  GramMatrix gram(x.cols());
  gram.add(view(x));
  return gram;
}

template <class T>
MatrixView<const T> read(const RowMajorMatrix<T>& m) {
  return view(m);
}

template <class A, class B>
double relative_error(const A& w, const B& approximation) {
  return static_cast<double>((w - approximation).norm()) / static_cast<double>(w.norm());
}

}  // namespace blockpack::test
