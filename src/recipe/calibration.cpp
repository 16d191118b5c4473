// SPDX-License-Identifier: Apache-2.0
#include "blockpack/recipe/calibration.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cmath>
#include <string>
#include <vector>

#include "blockpack/io/npy.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void refuse(const fs::path& file, const std::string& what) {
  throw FormatError(fmt::format("calibration '{}': {}", file.string(), what), "InvalidCalibration");
}

NpyArray read_matrix(const fs::path& file, NpyType type) {
  NpyArray array = read_npy(file);
  if (array.type != type || array.shape.size() != 2)
    refuse(file, fmt::format("it holds {} of rank {}, a matrix of {} is needed", to_string(array.type),
                             array.shape.size(), to_string(type)));
  return array;
}

/// A tensor's file; empty for a name that cannot be a file's.
fs::path file_of(const fs::path& folder, std::string_view tensor, const char* suffix) {
  if (tensor.find_first_of(std::string_view("/\\\0", 3)) != std::string_view::npos) return {};
  return folder / (std::string(tensor) + suffix);
}

std::shared_ptr<const GramMatrix> read_gram(const fs::path& file) {
  const NpyArray array = read_matrix(file, npy_type<double>());
  const std::vector<double> values = array.values<double>();
  try {
    return std::make_shared<const GramMatrix>(
        GramMatrix::from_values(MatrixView<const double>(values.data(), array.shape[0], array.shape[1])));
  } catch (const Error& error) {
    refuse(file, error.what());
  }
}

/// A float32 matrix that passes `valid`, and its owner.
template <class Valid>
std::shared_ptr<const void> read_floats(const fs::path& file, const Valid& valid, const char* problem,
                                        MatrixView<const float>& to) {
  const NpyArray array = read_matrix(file, npy_type<float>());
  auto values = std::make_shared<const std::vector<float>>(array.values<float>());
  for (const float v : *values)
    if (!valid(v)) refuse(file, problem);
  to = MatrixView<const float>(values->data(), array.shape[0], array.shape[1]);
  return values;
}

void write_floats(const fs::path& file, MatrixView<const float> m) {
  if (m.empty()) return;
  std::vector<float> values;
  for (index_t i = 0; i < m.rows(); ++i) values.insert(values.end(), m.row(i).begin(), m.row(i).end());
  write_npy(file, {m.rows(), m.cols()}, std::span<const float>(values));
}

}  // namespace

TensorCalibration TensorCalibration::only(const CalibrationNeeds& needs) const {
  TensorCalibration part = *this;
  if (!needs.gram) part.gram = nullptr;
  if (!needs.importance) part.importance = {};
  if (!needs.inputs) part.inputs = {};
  return part;
}

bool TensorCalibration::lacks(const CalibrationNeeds& needs) const noexcept {
  return (needs.gram && gram == nullptr) || (needs.importance && importance.data() == nullptr) ||
         (needs.inputs && inputs.empty());
}

CalibrationFolder::CalibrationFolder(fs::path folder) : folder_(std::move(folder)) {
  std::error_code error;
  if (!fs::is_directory(folder_, error))
    throw IoError(fmt::format("CalibrationFolder: '{}' is not a folder; make one with compress_model calibrate",
                              folder_.string()),
                  ENOENT);
}

TensorCalibration CalibrationFolder::find(std::string_view tensor) const {
  TensorCalibration found;
  const fs::path gram = file_of(folder_, tensor, ".gram.npy"), fisher = file_of(folder_, tensor, ".fisher.npy"),
                 inputs = file_of(folder_, tensor, ".inputs.npy");
  std::error_code error;
  if (!gram.empty() && fs::exists(gram, error)) found.gram = read_gram(gram);
  if (!fisher.empty() && fs::exists(fisher, error))
    found.importance_owner = read_floats(
        fisher, [](float v) { return v >= 0.0f && std::isfinite(v); }, "an importance is negative or not finite",
        found.importance);
  if (!inputs.empty() && fs::exists(inputs, error))
    found.inputs_owner = read_floats(
        inputs, [](float v) { return std::isfinite(v); }, "an input is not finite", found.inputs);
  return found;
}

void CalibrationFolder::write(std::string_view tensor, const GramMatrix& gram, MatrixView<const float> importance,
                              MatrixView<const float> inputs) const {
  const fs::path file = file_of(folder_, tensor, ".gram.npy");
  if (file.empty()) throw ValueError(fmt::format("CalibrationFolder: '{}' cannot be the name of a file", tensor));
  if (gram.in_features() > 0 && gram.rows() > 0) {
    const index_t n = gram.in_features();
    std::vector<double> values(static_cast<std::size_t>(checked_mul(n, n, "CalibrationFolder")));
    gram.copy_to(MatrixView<double>(values.data(), n, n), 1.0 / static_cast<double>(gram.rows()));
    write_npy(file, {n, n}, std::span<const double>(values));
  }
  write_floats(file_of(folder_, tensor, ".fisher.npy"), importance);
  write_floats(file_of(folder_, tensor, ".inputs.npy"), inputs);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
