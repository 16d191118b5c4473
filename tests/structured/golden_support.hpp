// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The golden cases of the block low-rank topic.

#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/golden.hpp"

namespace blockpack::test {

/// An array of a case as it is stored.
template <class T>
GoldenArray<T> golden_array(const nlohmann::json& one_case, const std::string& side, const std::string& name) {
  return read_npy<T>(golden_folder("block_low_rank") + one_case.at(side).at(name).at("file").get<std::string>());
}

/// A float64 array in float32.
inline GoldenArray<float> golden_narrowed(const nlohmann::json& one_case, const std::string& side,
                                          const std::string& name) {
  const GoldenArray<double> wide = golden_array<double>(one_case, side, name);
  GoldenArray<float> array;
  array.rows = wide.rows;
  array.cols = wide.cols;
  for (const double v : wide.values) array.values.push_back(static_cast<float>(v));
  return array;
}

/// |got - expected| <= atol + rtol |expected| everywhere.
template <class T, class U>
void require_close(const std::vector<T>& got, const std::vector<U>& expected, double atol, double rtol) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double g = static_cast<double>(got[i]), e = static_cast<double>(expected[i]);
    if (std::fabs(g - e) <= atol + rtol * std::fabs(e)) continue;
    CAPTURE(i, g, e);
    REQUIRE(std::fabs(g - e) <= atol + rtol * std::fabs(e));
  }
}

/// Runs `check` on every case of a kind and returns how many there are.
template <class Check>
int each_golden_case(const std::string& kind, const Check& check) {
  int count = 0;
  for (const nlohmann::json& one_case : golden_cases("block_low_rank")) {
    if (one_case.at("kind") != kind) continue;
    CAPTURE(one_case.at("name").get<std::string>());
    check(one_case);
    ++count;
  }
  return count;
}

}  // namespace blockpack::test
