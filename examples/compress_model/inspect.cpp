// SPDX-License-Identifier: Apache-2.0
// `compress_model inspect`: what is in a model, and which of its blocks the entropy of their weights calls important.

#include <fmt/format.h>

#include <numbers>

#include "blockpack/entropy/gardener.hpp"
#include "blockpack/entropy/plan.hpp"
#include "compress_model/blocks.hpp"
#include "compress_model/commands.hpp"

namespace example {
namespace {

using namespace blockpack;

struct BlockScore {
  std::string name;
  index_t weights = 0;
  GardenerScore score;
};

void print_tensor(const CompressedModel& model, const std::string& name, const Execution& how) {
  const std::string shape = shape_text(model.shape(name));
  if (const CompressedTensor* t = model.find_compressed(name)) {
    fmt::print("{:<44} {:<14} {:>12} {:>10} {:>12.3f}\n", name, t->scheme, shape, mebibytes(t->stored_bytes()),
               t->codec->bits_per_weight(t->shape));
    return;
  }
  const Tensor tensor = model.tensor(name);
  std::string entropy = "-";
  if (const auto matrix = StoredMatrix::open(model, name))
    entropy =
        fmt::format("{:.3f}", gardener_score(matrix->view(), ValueGrid::automatic(), how).score() / std::numbers::ln2);
  fmt::print("{:<44} {:<14} {:>12} {:>10} {:>12}\n", name, to_string(tensor.dtype), shape,
             mebibytes(tensor.data.bytes.size()), entropy);
}

std::vector<BlockScore> score_blocks(const CompressedModel& model, const Execution& how) {
  std::vector<BlockScore> scores;
  for (const auto& [name, tensors] : blocks_of(model)) {
    std::vector<std::unique_ptr<StoredMatrix>> matrices;
    WeightBlock block;
    block.name = name;
    for (const std::string& tensor : tensors)
      if (auto matrix = StoredMatrix::open(model, tensor)) {
        block.matrices.push_back(matrix->view());
        matrices.push_back(std::move(matrix));
      }
    if (tensors.size() < 2 || block.matrices.size() < tensors.size()) continue;  // one matrix, or partly compressed
    scores.push_back({name, block.size(), gardener_score(block, ValueGrid::automatic(), how)});
    how.report(0);
    how.throw_if_stopped();
  }
  return scores;
}

}  // namespace

int inspect(const std::string& path, const Execution& how) {
  const CompressedModel model = CompressedModel::open(path);
  fmt::print(
      "{}: {} tensors, {} MiB{}\n", path, model.names().size(), mebibytes(model.storage_bytes()),
      model.version() > 0 ? fmt::format(", compressed (version {}) by {}", model.version(), model.recipe()) : "");
  fmt::print("{:<44} {:<14} {:>12} {:>10} {:>12}\n", "tensor", "stored as", "shape", "MiB",
             model.is_compressed() ? "bits/weight" : "entropy bits");
  for (const std::string& name : model.names()) {
    print_tensor(model, name, how);
    how.report(0);
    how.throw_if_stopped();
  }
  const std::vector<BlockScore> blocks = score_blocks(model, how);
  if (blocks.empty()) {
    fmt::print("\nNo blocks of uncompressed matrices to rank (names such as layers.0.q_proj.weight make a block).\n");
    return 0;
  }
  std::vector<double> scores;
  for (const BlockScore& b : blocks) scores.push_back(b.score.score());
  fmt::print("\nBlocks by entropy of their stored values (Gardener), most important first:\n");
  fmt::print("{:<28} {:>12} {:>12} {:>11}\n", "block", "weights", "entropy bits", "efficiency");
  const std::vector<index_t> order = removal_order(scores);  // lowest entropy first
  for (auto it = order.rbegin(); it != order.rend(); ++it) {
    const BlockScore& b = blocks[static_cast<std::size_t>(*it)];
    fmt::print("{:<28} {:>12} {:>12.4f} {:>11.4f}{}\n", b.name, b.weights, b.score.score() / std::numbers::ln2,
               b.score.efficiency, b.score.saturated ? "  (the grid is too fine to rank by)" : "");
  }
  fmt::print("most important: {}; least important, first to remove: {}\n",
             blocks[static_cast<std::size_t>(order.back())].name, blocks[static_cast<std::size_t>(order.front())].name);
  return 0;
}

}  // namespace example
