// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The blocks of a vision transformer as the scorers of entropy.hpp take them.

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../compress_model/blocks.hpp"
#include "blockpack/entropy.hpp"
#include "evaluate.hpp"

namespace example {

/// The values of the blocks' matrices as they are stored.
class StoredBlocks {
 public:
  StoredBlocks(const CompressedModel& model, index_t blocks) {
    for (index_t i = 0; i < blocks; ++i) {
      const std::string block = VisionTransformer::block_name(i);
      blocks_.push_back({block, {}});
      for (const char* name : VisionTransformer::kBlockMatrices) {
        auto matrix = StoredMatrix::open(model, block + name + ".weight");
        if (matrix == nullptr) throw blockpack::Error(block + name + ".weight is compressed: no values to count");
        blocks_.back().matrices.push_back(matrix->view());
        matrices_.push_back(std::move(matrix));
      }
    }
  }
  const std::vector<blockpack::WeightBlock>& blocks() const noexcept { return blocks_; }

 private:
  std::vector<std::unique_ptr<StoredMatrix>> matrices_;
  std::vector<blockpack::WeightBlock> blocks_;
};

/// Standard error of the plug-in entropy of a block, were its n weights drawn independently: sqrt(Var(-ln p) / n) nats.
inline double entropy_error(const blockpack::WeightBlock& block) {
  const blockpack::ValueCounts counts = blockpack::value_counts(block);
  const auto n = static_cast<double>(counts.total);
  double mean = 0, squares = 0;
  for (const std::uint64_t count : counts.counts) {
    if (count == 0) continue;
    const double p = static_cast<double>(count) / n, surprise = -std::log(p);
    mean += p * surprise;
    squares += p * surprise * surprise;
  }
  return std::sqrt((squares - mean * mean) / n);
}

/// 1 - mean cosine between the states before and after each block, over the patches of all images.
inline std::vector<double> block_influences(const VisionTransformer& model, const Images& images,
                                            const ApplyOptions& how = {}) {
  const VisionTransformer::Tape tape = model.forward(images.pixels, how);
  std::vector<double> scores;
  for (std::size_t i = 0; i < tape.blocks.size(); ++i)
    scores.push_back(blockpack::block_influence(tape.blocks[i].x.view(),
                                                (i + 1 < tape.blocks.size() ? tape.blocks[i + 1].x : tape.x).view(),
                                                how.execution)
                         .value);
  return scores;
}

}  // namespace example
