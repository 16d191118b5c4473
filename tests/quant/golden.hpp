// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Reads the golden vectors of one folder: the manifest and arrays in npy 1.0 (little endian, C order).

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "blockpack/core/view.hpp"

namespace blockpack::test {

inline std::string golden_folder(const std::string& topic) {
  const char* folder = std::getenv("BLOCKPACK_GOLDEN");
  return std::string(folder != nullptr ? folder : BLOCKPACK_GOLDEN_DEFAULT) + "/" + topic + "/";
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("golden file missing: " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline nlohmann::json golden_cases(const std::string& topic) {
  return nlohmann::json::parse(read_file(golden_folder(topic) + "manifest.json")).at("cases");
}

/// A matrix; anything but one with the type of T is an error.
template <class T>
struct GoldenArray {
  std::vector<T> values;
  index_t rows = 0;
  index_t cols = 0;

  MatrixView<const T> view() const { return {values.data(), rows, cols}; }
};

template <class T>
GoldenArray<T> read_npy(const std::string& path) {
  const std::string bytes = read_file(path);
  if (bytes.size() < 10 || bytes.compare(0, 8, std::string("\x93NUMPY\x01\x00", 8)) != 0)
    throw std::runtime_error(path + ": not npy 1.0");
  const std::size_t header = static_cast<unsigned char>(bytes[8]) + 256u * static_cast<unsigned char>(bytes[9]);
  const std::string text = bytes.substr(10, header);
  const std::string type = sizeof(T) == 1 ? "|u1" : (static_cast<T>(0.5) != T{0} ? "<f4" : "<i4");
  int rows = 0;
  int cols = 0;
  const std::size_t shape = text.find("'shape': (");
  if (text.find("'" + type + "'") == std::string::npos || text.find("'fortran_order': False") == std::string::npos ||
      shape == std::string::npos || std::sscanf(text.c_str() + shape, "'shape': (%d, %d)", &rows, &cols) != 2)
    throw std::runtime_error(path + ": another type or shape than the test expects: " + text);
  GoldenArray<T> array;
  array.rows = rows;
  array.cols = cols;
  array.values.resize(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols));
  if (bytes.size() != 10 + header + array.values.size() * sizeof(T)) throw std::runtime_error(path + ": wrong size");
  std::memcpy(array.values.data(), bytes.data() + 10 + header, array.values.size() * sizeof(T));
  return array;
}

}  // namespace blockpack::test
