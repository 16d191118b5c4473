// SPDX-License-Identifier: Apache-2.0
// Any bytes as a compressed model, a safetensors or a GGUF file: refused with a FormatError or an UnsupportedError, or
// every operator decodes and multiplies whatever its stored bytes are, on every level.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <vector>

#include "blockpack/recipe/compressed_model.hpp"
#include "support/levels.hpp"

using namespace blockpack;

namespace {

constexpr index_t kLargest = 1 << 14;  // weights of a tensor that is looked into

/// A folder for the one model file, which is removed at exit.
struct Folder {
  std::filesystem::path path;
  Folder() : path(std::filesystem::temp_directory_path() / ("blockpack_fuzz_model." + std::to_string(::getpid()))) {
    std::filesystem::create_directory(path);
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
};

void use(const CompressedTensor& tensor) {
  const MatrixShape shape = tensor.shape;
  if (shape.cols > kLargest || shape.rows > kLargest / shape.cols) return;  // a row may be larger than the whole file
  std::vector<float> row(static_cast<std::size_t>(shape.cols)), x(row.size(), 0.5f);
  std::vector<float> y(static_cast<std::size_t>(2 * shape.rows));
  x.resize(2 * row.size(), -0.25f);
  for (const Isa level : test::levels_here()) {
    const AnyLinear op = tensor.open();
    if (op.out_features() != shape.rows || op.in_features() != shape.cols) std::abort();
    if (op.storage_bytes() != tensor.stored_bytes()) std::abort();
    for (const index_t i : {index_t{0}, shape.rows - 1})
      op.decode_rows({&i, 1}, MatrixView<float>(row.data(), 1, shape.cols));
    for (const index_t tokens : {1, 2}) {
      ApplyOptions how;
      how.execution.isa = level;
      how.execution.threads = 1;
      op.apply(MatrixView<const float>(x.data(), tokens, shape.cols), MatrixView<float>(y.data(), tokens, shape.rows),
               how);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Folder folder;
  const bool gguf = size >= 4 && data[0] == 'G' && data[1] == 'G' && data[2] == 'U' && data[3] == 'F';
  const std::filesystem::path path = folder.path / (gguf ? "model.gguf" : "model.safetensors");
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const CompressedModel model = CompressedModel::open(path);
    for (const CompressedTensor& tensor : model.compressed()) {
      if (model.find_compressed(tensor.name) != &tensor) std::abort();
      try {
        use(tensor);
      } catch (const FormatError&) {
      }
    }
    Execution how;
    how.threads = 1;
    if (model.has_hashes()) model.verify_hashes(how);
  } catch (const FormatError&) {
  } catch (const UnsupportedError&) {
  }
  return 0;
}
