// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Reads the golden cases of the entropy scorers: the manifest, arrays in npy 1.0 and the tolerance of a case.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "blockpack/core/scalar.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::test {

inline std::string golden_folder() {
  const char* folder = std::getenv("BLOCKPACK_GOLDEN");
  return std::string(folder != nullptr ? folder : BLOCKPACK_GOLDEN_DEFAULT) + "/entropy/";
}

inline std::string read_golden(const std::string& name) {
  std::ifstream file(golden_folder() + name, std::ios::binary);
  if (!file) throw std::runtime_error("golden file missing: " + golden_folder() + name);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Values in order with the last dimension as columns. float is '<f4', the 16-bit types are '<u2'.
template <class T>
struct GoldenArray {
  std::vector<T> values;
  index_t rows = 0;
  index_t cols = 0;
};

template <class T>
GoldenArray<T> read_golden_array(const std::string& name) {
  const std::string bytes = read_golden(name);
  if (bytes.size() < 10 || bytes.compare(0, 8, std::string("\x93NUMPY\x01\x00", 8)) != 0)
    throw std::runtime_error(name + ": not npy 1.0");
  const std::size_t data = 10u + static_cast<unsigned char>(bytes[8]) + 256u * static_cast<unsigned char>(bytes[9]);
  const std::string header = bytes.substr(0, data);
  if (header.find(sizeof(T) == 4 ? "'<f4'" : "'<u2'") == std::string::npos ||
      header.find("'fortran_order': False") == std::string::npos)
    throw std::runtime_error(name + ": another type or order than the test expects");
  GoldenArray<T> array;
  array.values.resize((bytes.size() - data) / sizeof(T));
  std::memcpy(static_cast<void*>(array.values.data()), bytes.data() + data, array.values.size() * sizeof(T));
  index_t last = 1;  // "'shape': (2, 48, 12), }": the last number is the number of columns
  const std::size_t open = header.find('(', header.find("'shape'")), close = header.find(')', open);
  std::string number;
  for (const char c : header.substr(open + 1, close - open - 1)) {
    if (c >= '0' && c <= '9') number += c;
    if (c == ',') number.clear();
    if (!number.empty()) last = std::stol(number);
  }
  array.cols = last;
  array.rows = static_cast<index_t>(array.values.size()) / last;
  return array;
}

/// Whether a figure lies within the tolerance a case states.
inline bool within(double value, double expected, const nlohmann::json& tolerance) {
  const double absolute = tolerance.value("abs", 0.0), relative = tolerance.value("rel", 0.0);
  return std::fabs(value - expected) <= absolute + relative * std::fabs(expected);
}

}  // namespace blockpack::test
