// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What the tests of golden/sparsity share.

#include <string>

#include "blockpack/core/execution.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

namespace blockpack::test {

/// For many small steps.
inline const Execution kSerial = [] {
  Execution one;
  one.threads = 1;
  return one;
}();

/// An array of a case; `side` is "inputs" or "outputs".
template <class T>
GoldenArray<T> array_of(const nlohmann::json& one_case, const char* side, const char* name) {
  return read_npy<T>(golden_folder("sparsity") + one_case.at(side).at(name).at("file").get<std::string>());
}

/// Calls check(case, its params) for every case of a family and returns how many there are.
template <class Check>
std::size_t each_case(const std::string& family, const Check& check) {
  std::size_t count = 0;
  for (const nlohmann::json& one_case : golden_cases("sparsity")) {
    const std::string name = one_case.at("name");
    if (name.rfind(family, 0) != 0) continue;
    CAPTURE(name);
    check(one_case, one_case.at("params"));
    ++count;
  }
  return count;
}

}  // namespace blockpack::test
