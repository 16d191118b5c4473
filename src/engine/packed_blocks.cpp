// SPDX-License-Identifier: Apache-2.0
/// The packed form of block products: every part a matrix of panels of its own, one after the other in one allocation.

#include <algorithm>
#include <cstring>

#include "blockpack/core/block_product.hpp"
#include "engine/large_memory.hpp"
#include "engine/product.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {
namespace {

using kernels::kPanelColumns;

/// `inner` with zeros behind its rows.
struct LongerSource {
  const RowSource* inner;
  index_t rows;
};

template <class T>
void decode_longer(const void* self, index_t row, index_t col, index_t count, T* dst) {
  const RowSource& w = *static_cast<const LongerSource*>(self)->inner;
  if (row >= w.rows || w.cols == 0) {
    std::memset(static_cast<void*>(dst), 0, static_cast<std::size_t>(count) * sizeof(T));
  } else if constexpr (std::is_same_v<T, float>) {
    w.decode_f32(w.self, row, col, count, dst);
  } else {
    w.decode_bf16(w.self, row, col, count, dst);
  }
}

RowSource longer(const LongerSource& l) {
  RowSource w;
  w.rows = l.rows;
  w.cols = l.inner->cols;
  w.self = &l;
  w.decode_f32 = decode_longer<float>;
  if (l.inner->decode_bf16 != nullptr) w.decode_bf16 = decode_longer<bf16>;
  return w;
}

index_t rows_of_block(const BlockSource& w, std::size_t k) {
  return std::clamp<index_t>(w.shape.rows - static_cast<index_t>(k) * w.out_block, 0, w.out_block);
}

index_t coupling_floats(const BlockSource& w) {
  if (w.coupling.data() == nullptr) return 0;
  return checked_mul(w.coupling.rows(), round_up(w.coupling.cols(), kPanelColumns), "PackedBlocks");
}

/// Calls part(shape) for every matrix, in the order of their memory.
template <class Part>
void for_each_part(const BlockSource& w, const Part& part) {
  for (const RowSource& right : w.right) part(MatrixShape{right.rows, right.cols});
  for (std::size_t k = 0; k < w.left.size(); ++k) part(MatrixShape{rows_of_block(w, k), w.left[k].cols});
  for (const BlockTile& tile : w.tiles) part(MatrixShape{tile.w.rows, tile.w.cols});
}

/// Panels of ranks that groups of so many output blocks go through: a panel that two groups share counts twice.
index_t panels_of_groups(std::span<const PackedBlocks::Output> outputs, index_t in_blocks, index_t group) {
  index_t panels = 0;
  std::vector<index_t> end(static_cast<std::size_t>(in_blocks));
  for (std::size_t k = 0; k < outputs.size(); ++k) {
    if (k % static_cast<std::size_t>(group) == 0) std::fill(end.begin(), end.end(), 0);
    for (const PackedBlocks::Run& run : outputs[k].runs) {
      index_t& done = end[static_cast<std::size_t>(run.in_block)];
      const index_t last = ceil_div(run.first + run.count, kPanelColumns);
      panels += std::max<index_t>(0, last - std::max(done, run.first / kPanelColumns));
      done = std::max(done, last);
    }
  }
  return panels;
}

/// Groups of 1, 2 or 4 output blocks: of more where that saves a tenth of the panels, since their values share L2.
std::vector<PackedBlocks::Group> grouped(std::span<const PackedBlocks::Output> outputs, index_t in_blocks) {
  index_t size = 1;
  for (const index_t larger : {2, 4})
    if (panels_of_groups(outputs, in_blocks, larger) * 10 <= panels_of_groups(outputs, in_blocks, size) * 9)
      size = larger;
  std::vector<PackedBlocks::Group> groups;
  const auto count = static_cast<index_t>(outputs.size());
  for (index_t first = 0; first < count; first += size) {
    PackedBlocks::Group g{first, std::min(size, count - first), {}};
    for (index_t k = first; k < first + g.count; ++k)
      for (const PackedBlocks::Run& run : outputs[static_cast<std::size_t>(k)].runs) g.runs.push_back({k, run});
    std::sort(g.runs.begin(), g.runs.end(), [](const PackedBlocks::GroupRun& a, const PackedBlocks::GroupRun& b) {
      return a.run.in_block != b.run.in_block ? a.run.in_block < b.run.in_block : a.run.first < b.run.first;
    });
    groups.push_back(std::move(g));
  }
  return groups;
}

}  // namespace
}  // namespace engine

std::size_t PackedBlocks::bytes_needed(const BlockSource& w, WeightType type) {
  index_t bytes = checked_mul(engine::coupling_floats(w), 4, "PackedBlocks");
  engine::for_each_part(w, [&](MatrixShape shape) {
    const auto part = static_cast<index_t>(PackedWeights::bytes_needed(shape, type, Isa::scalar));
    bytes = checked_add(bytes, part, "PackedBlocks");
  });
  return static_cast<std::size_t>(bytes);
}

PackedBlocks PackedBlocks::pack(const BlockSource& w, WeightType type, const Execution& how,
                                std::span<std::byte> memory) {
  PackedBlocks packed;
  packed.shape_ = w.shape;
  packed.type_ = type;
  packed.level_ = how.level();
  packed.in_block_ = w.in_block;
  packed.out_block_ = w.out_block;
  packed.bytes_ = bytes_needed(w, type);
  packed.right_.resize(w.right.size());
  packed.outputs_.resize(w.left.size());
  std::byte* at = nullptr;
  if (packed.bytes_ > 0) {
    const std::shared_ptr<std::byte> block = engine::packed_memory("PackedBlocks::pack", memory, packed.bytes_);
    at = block.get();
    packed.owner_ = block;
  }
  const auto pack_part = [&](const RowSource& part) {
    const std::size_t bytes = PackedWeights::bytes_needed({part.rows, part.cols}, type, packed.level_);
    const std::span<std::byte> place(at, bytes);
    at = at == nullptr ? nullptr : at + bytes;
    return PackedWeights::pack(part, type, how, place);
  };
  for (std::size_t l = 0; l < w.right.size(); ++l) packed.right_[l] = pack_part(w.right[l]);
  for (std::size_t k = 0; k < w.left.size(); ++k) {
    const engine::LongerSource source{&w.left[k], engine::rows_of_block(w, k)};
    packed.outputs_[k].left = pack_part(source.rows == w.left[k].rows ? w.left[k] : engine::longer(source));
  }
  for (const BlockTile& tile : w.tiles)
    packed.outputs_[static_cast<std::size_t>(tile.out_block)].tiles.push_back({tile.in_block, pack_part(tile.w)});

  for (const RankRun& run : w.runs) {
    std::vector<Run>& runs = packed.outputs_[static_cast<std::size_t>(run.out_block)].runs;
    const index_t offset = runs.empty() ? 0 : runs.back().offset + runs.back().count;
    runs.push_back({run.in_block, run.first, run.count, offset});
  }
  packed.groups_ = engine::grouped(packed.outputs_, w.in_blocks());
  if (w.coupling.data() != nullptr && packed.bytes_ > 0) {
    auto* s = reinterpret_cast<float*>(at);
    packed.coupling_ = s;
    const index_t blocks = w.coupling.rows(), rank = w.coupling.cols();
    for (index_t first = 0; first < rank; first += kernels::kPanelColumns)
      for (index_t b = 0; b < blocks; ++b)
        for (index_t i = 0; i < kernels::kPanelColumns; ++i) *s++ = first + i < rank ? w.coupling(b, first + i) : 0.0f;
  }
  return packed;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
