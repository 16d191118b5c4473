// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The cases of tests/golden/quantization, by algorithm. Each test reads every case of its algorithm and counts them.

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "support/catch.hpp"
#include "support/golden.hpp"

namespace blockpack::test {

/// What the tests of this folder read; a case of another algorithm in the manifest is an error.
inline constexpr std::string_view kGoldenAlgorithms[] = {"mx_quantize",
                                                         "bfp_quantize",
                                                         "group_rtn",
                                                         "ggml_block_quantize",
                                                         "ggml_block_quantize_weighted",
                                                         "gptq",
                                                         "flexround",
                                                         "discquant_pieces",
                                                         "greedy_l2_allocate",
                                                         "hsic_score",
                                                         "ptq161_layer",
                                                         "statsq",
                                                         "qkr"};

struct GoldenCase {
  std::string id;
  nlohmann::json params;
  nlohmann::json files;

  bool has(const std::string& key) const { return files.contains(key); }
  template <class T>
  GoldenArray<T> array(const std::string& key) const {
    return read_npy<T>(golden_folder("quantization") + files.at(key).get<std::string>());
  }
};

/// Every case of one algorithm; fails when the manifest has a case that no test reads, or none of the algorithm.
inline std::vector<GoldenCase> cases_of(std::string_view algorithm) {
  std::vector<GoldenCase> cases;
  for (const auto& c : golden_cases("quantization")) {
    const std::string name = c.at("algorithm");
    CAPTURE(c.at("id").get<std::string>(), name);
    REQUIRE(std::count(std::begin(kGoldenAlgorithms), std::end(kGoldenAlgorithms), name) == 1);
    if (name != algorithm) continue;
    nlohmann::json files = c.at("outputs");
    files.update(c.at("inputs"));
    cases.push_back({c.at("id"), c.at("params"), files});
  }
  REQUIRE(!cases.empty());
  return cases;
}

}  // namespace blockpack::test
