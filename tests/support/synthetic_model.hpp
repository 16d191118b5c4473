// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Models of any size for tests of streaming: bf16 weights from a seed, written piece by piece, so that making one
/// takes a few MiB of memory.

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/random.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/io/sharded.hpp"

namespace blockpack::test {

struct SyntheticModel {
  std::uint64_t bytes = std::uint64_t{64} << 20;          ///< of all matrices together, about
  std::uint64_t largest_bytes = std::uint64_t{16} << 20;  ///< of the first one, "embed.weight"
  std::uint64_t layer_bytes = std::uint64_t{8} << 20;     ///< of each of the others, "layers.<n>.weight"
  index_t cols = 4096;
  std::uint64_t seed = 1;
  std::uint64_t max_shard_bytes = 0;  ///< 0: one file
};

/// The matrices, and a short vector "layers.<n>.norm" after each layer.
inline std::vector<TensorSpec> synthetic_specs(const SyntheticModel& model) {
  const auto rows = [&](std::uint64_t bytes) {
    return std::max<index_t>(1, static_cast<index_t>(bytes / 2) / model.cols);
  };
  std::vector<TensorSpec> specs;
  specs.push_back({"embed.weight", Dtype::bf16, {rows(model.largest_bytes), model.cols}});
  for (std::uint64_t left = model.bytes - std::min(model.bytes, model.largest_bytes), n = 0; left != 0; ++n) {
    const std::uint64_t bytes = std::min(left, model.layer_bytes);
    specs.push_back({"layers." + std::to_string(n) + ".weight", Dtype::bf16, {rows(bytes), model.cols}});
    specs.push_back({"layers." + std::to_string(n) + ".norm", Dtype::bf16, {model.cols}});
    left -= bytes;
  }
  return specs;
}

/// Writes the model to the file `path`, or into the folder `path` when it is sharded. The same bytes for the same
/// arguments. About 1 GB/s: rows are random windows of one pool of weights.
inline void write_synthetic_model(const std::filesystem::path& path, const SyntheticModel& model) {
  constexpr index_t kPoolRows = 256;
  std::vector<float> weights(static_cast<std::size_t>(kPoolRows * model.cols));
  fill_weights(MatrixView<float>(weights.data(), kPoolRows, model.cols), model.seed);
  std::vector<bf16> pool(weights.size());
  std::transform(weights.begin(), weights.end(), pool.begin(), [](float v) { return bf16(v); });

  const std::vector<TensorSpec> specs = synthetic_specs(model);
  const auto fill = [&](auto& writer) {
    const std::uint64_t row_bytes = static_cast<std::uint64_t>(model.cols) * 2;
    const index_t panel_rows = std::max<index_t>(1, static_cast<index_t>((std::uint64_t{4} << 20) / row_bytes));
    std::vector<bf16> panel;
    for (std::size_t t = 0; t < specs.size(); ++t) {
      const MatrixShape shape = matrix_shape(specs[t].shape);
      Random random(model.seed, t + 1);
      for (index_t row = 0; row < shape.rows; row += panel_rows) {
        const index_t rows = std::min(panel_rows, shape.rows - row);
        panel.clear();
        for (index_t i = 0; i < rows; ++i) {
          const auto start =
              random.below(static_cast<std::uint32_t>(pool.size() - static_cast<std::size_t>(model.cols)));
          panel.insert(panel.end(), pool.begin() + start, pool.begin() + start + model.cols);
        }
        writer.write(specs[t].name, static_cast<std::uint64_t>(row) * row_bytes,
                     std::as_bytes(std::span<const bf16>(panel)));
      }
    }
    writer.commit();
  };
  if (model.max_shard_bytes == 0) {
    SafetensorsWriter writer(path, specs, {{"format", "pt"}});
    fill(writer);
  } else {
    ShardedWriter writer(path, specs, {{"format", "pt"}}, model.max_shard_bytes);
    fill(writer);
  }
}

}  // namespace blockpack::test
