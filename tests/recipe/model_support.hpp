// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What the tests of compressed models share: folders that vanish, and a small model with every kind of tensor.

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "blockpack/core/random.hpp"
#include "blockpack/core/sha256.hpp"
#include "blockpack/recipe/compressed_model.hpp"

namespace blockpack::test {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "blockpack-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw Error("mkdtemp failed");
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }
  /// Names in the folder, hidden ones too.
  std::size_t count() const {
    return static_cast<std::size_t>(
        std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator()));
  }

 private:
  std::filesystem::path path_;
};

inline std::string file_content(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}
inline void write_content(const std::filesystem::path& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}
inline std::string file_hash(const std::filesystem::path& path) { return Sha256().update(file_content(path)).hex(); }

inline const std::filesystem::path kEmbeddedModel =
    std::filesystem::path(BLOCKPACK_SOURCE_DIR) / "examples" / "data" / "bytelm";

/// A tensor with its bytes.
struct Filled {
  TensorSpec spec;
  std::vector<std::byte> bytes;
};

template <class T>
Filled filled(const std::string& name, Dtype dtype, std::vector<index_t> shape, std::uint64_t seed) {
  const auto n = static_cast<std::size_t>(element_count(shape));
  std::vector<float> weights(n);
  const index_t cols = shape.empty() || n == 0 ? 1 : shape.back();
  if (n > 0) fill_weights(MatrixView<float>(weights.data(), static_cast<index_t>(n) / cols, cols), seed);
  std::vector<T> values(n);
  for (std::size_t i = 0; i < n; ++i) values[i] = T(weights[i]);
  const auto bytes = std::as_bytes(std::span<const T>(values));
  return {{name, dtype, std::move(shape)}, {bytes.begin(), bytes.end()}};
}

/// Ragged matrices of three types, and everything a recipe leaves alone.
inline std::vector<Filled> small_model() {
  return {filled<float>("a.weight", Dtype::f32, {33, 70}, 1),
          filled<bf16>("b.weight", Dtype::bf16, {7, 129}, 2),
          filled<fp16>("layers.0.c.weight", Dtype::f16, {5, 64}, 3),
          filled<float>("one.weight", Dtype::f32, {1, 1}, 4),
          filled<float>("norm.weight", Dtype::f32, {10}, 5),
          filled<float>("conv.weight", Dtype::f32, {2, 3, 4, 5}, 6),
          filled<float>("scalar", Dtype::f32, {}, 7),
          filled<float>("empty.weight", Dtype::f32, {0, 8}, 8),
          Filled{{"ids", Dtype::i64, {2}}, std::vector<std::byte>(16, std::byte{9})}};
}
/// Those of small_model() that get compressed.
inline const std::vector<std::string> kSmallMatrices = {"a.weight", "b.weight", "layers.0.c.weight", "one.weight"};

inline void write_model(const std::filesystem::path& path, const std::vector<Filled>& tensors,
                        const Metadata& metadata = {{"format", "pt"}}) {
  std::vector<TensorSpec> specs;
  for (const Filled& t : tensors) specs.push_back(t.spec);
  SafetensorsWriter writer(path, specs, metadata);
  for (const Filled& t : tensors) writer.write(t.spec.name, 0, t.bytes);
  writer.commit();
}

/// The tensors and metadata of a file, to write it again with something changed.
inline std::vector<Filled> read_model(const std::filesystem::path& path, Metadata& metadata) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  metadata = file.metadata();
  std::vector<Filled> tensors;
  for (const Tensor& t : file.tensors()) tensors.push_back({t.spec(), {t.data.bytes.begin(), t.data.bytes.end()}});
  return tensors;
}

/// The floats of a whole matrix of a model.
inline std::vector<float> matrix_values(const CompressedModel& model, const std::string& name) {
  const MatrixShape shape = matrix_shape(model.shape(name));
  std::vector<float> values(static_cast<std::size_t>(shape.rows * shape.cols));
  model.read_rows(name, 0, MatrixView<float>(values.data(), shape.rows, shape.cols));
  return values;
}

/// XᵀX of inputs whose columns depend on one another: x_j = 0.9 x_(j-1) + noise.
inline GramMatrix correlated(index_t cols, std::uint64_t seed) {
  constexpr index_t kRows = 200;
  std::vector<float> x(static_cast<std::size_t>(kRows * cols));
  Random random(seed);
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = random.normal() + (i % static_cast<std::size_t>(cols) > 0 ? 0.9f * x[i - 1] : 0.0f);
  GramMatrix gram(cols);
  gram.add(MatrixView<const float>(x.data(), kRows, cols));
  return gram;
}

/// What the exception of type E says that f throws; empty when it throws none.
template <class E = Error, class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const E& error) {
    return error.what();
  }
  return {};
}

}  // namespace blockpack::test
