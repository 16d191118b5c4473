// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Reads the golden vectors of one topic: the manifest, arrays in npy 1.0 (little endian, C order) and the tolerance of
/// a case.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "blockpack/core/view.hpp"

namespace blockpack::test {

/// The folder of all topics: BLOCKPACK_GOLDEN, or tests/golden of this source tree.
inline std::string golden_root() {
  const char* folder = std::getenv("BLOCKPACK_GOLDEN");
  return folder != nullptr ? folder : BLOCKPACK_GOLDEN_DEFAULT;
}

inline std::string golden_folder(const std::string& topic) { return golden_root() + "/" + topic + "/"; }

/// Whether the cases are those of this source tree, which are known one by one.
inline bool golden_is_ours() { return golden_root() == BLOCKPACK_GOLDEN_DEFAULT; }

/// Whether a reader found the cases it must find: `ours` of them in tests/golden, one at least in any other folder.
inline bool golden_complete(std::size_t found, std::size_t ours) {
  return golden_is_ours() ? found == ours : found > 0;
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("golden file missing: " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline nlohmann::json golden_cases(const std::string& topic) {
  return nlohmann::json::parse(read_file(golden_folder(topic) + "manifest.json")).at("cases");
}

/// The values of an array in order, as a matrix whose columns are the last dimension; a scalar is 1 x 1.
template <class T>
struct GoldenArray {
  std::vector<T> values;
  index_t rows = 1;
  index_t cols = 1;

  MatrixView<const T> view() const { return {values.data(), rows, cols}; }
};

/// The type of an npy file that is read as T; 16-bit scalars of the library are stored as their bits.
template <class T>
constexpr std::string_view npy_type() {
  if constexpr (std::is_same_v<T, float>) return "<f4";
  if constexpr (std::is_same_v<T, double>) return "<f8";
  if constexpr (std::is_same_v<T, std::int8_t>) return "|i1";
  if constexpr (std::is_same_v<T, std::int16_t>) return "<i2";
  if constexpr (std::is_same_v<T, std::int32_t>) return "<i4";
  if constexpr (std::is_same_v<T, std::int64_t>) return "<i8";
  if constexpr (std::is_class_v<T> && sizeof(T) == 2) return "<u2";
  return "|u1";
}

/// An error for another type than that of T, which is float, double, a signed integer, uint8_t, fp16 or bf16.
template <class T>
GoldenArray<T> read_npy(const std::string& path) {
  const std::string bytes = read_file(path);
  if (bytes.size() < 10 || bytes.compare(0, 8, std::string("\x93NUMPY\x01\x00", 8)) != 0)
    throw std::runtime_error(path + ": not npy 1.0");
  const std::size_t data = 10u + static_cast<unsigned char>(bytes[8]) + 256u * static_cast<unsigned char>(bytes[9]);
  const std::string header = bytes.substr(0, data);
  const std::size_t shape = header.find("'shape': (");
  if (header.find("'" + std::string(npy_type<T>()) + "'") == std::string::npos ||
      header.find("'fortran_order': False") == std::string::npos || shape == std::string::npos)
    throw std::runtime_error(path + ": another type or order than the test expects: " + header.substr(10));
  GoldenArray<T> array;
  const char* at = header.c_str() + shape + std::strlen("'shape': (");
  while (*at != ')') {  // "(2, 48, 12)", "(5,)" or "()"
    char* end = nullptr;
    const long size = std::strtol(at, &end, 10);
    if (end == at) throw std::runtime_error(path + ": a shape that is none: " + header.substr(10));
    array.rows *= array.cols;
    array.cols = size;
    for (at = end; *at == ',' || *at == ' ';) ++at;
  }
  array.values.resize(static_cast<std::size_t>(array.rows * array.cols));
  if (bytes.size() != data + array.values.size() * sizeof(T)) throw std::runtime_error(path + ": wrong size");
  if (!array.values.empty())
    std::memcpy(static_cast<void*>(array.values.data()), bytes.data() + data, array.values.size() * sizeof(T));
  return array;
}

/// Whether a figure lies within the tolerance a case states.
inline bool within(double value, double expected, const nlohmann::json& tolerance) {
  const double absolute = tolerance.value("abs", 0.0), relative = tolerance.value("rel", 0.0);
  return std::fabs(value - expected) <= absolute + relative * std::fabs(expected);
}

}  // namespace blockpack::test
