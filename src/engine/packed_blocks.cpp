// SPDX-License-Identifier: Apache-2.0
/// The packed form of block products: every part a matrix of panels of its own, one after the other in one allocation.
/// Runs of ranks are padded with zeros to whole panels, so that the sums of a run are whole steps of the next stage.

#include <algorithm>
#include <cstring>

#include "blockpack/core/block_product.hpp"
#include "engine/large_memory.hpp"
#include "engine/product.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {
namespace {

using kernels::kPanelColumns;

index_t padded(index_t ranks) { return round_up(ranks, kPanelColumns); }

/// Stretches of ranks and where they lie in the padded order; zeros between them.
struct Stretch {
  index_t from, count, to;
};
struct Stretches {
  std::vector<Stretch> parts;
  index_t padded_count = 0;

  void add(index_t from, index_t count) {
    parts.push_back({from, count, padded_count});
    padded_count += padded(count);
  }
};

/// `inner` with its rows (ranks of a right matrix) or columns (ranks of a left one) in the padded order. A left matrix
/// gets `rows` rows, zeros behind its own.
struct PaddedSource {
  const RowSource* inner;
  const Stretches* ranks;
  index_t rows = 0;
};

template <class T>
void decode(const RowSource& w, index_t row, index_t col, index_t count, T* dst) {
  if constexpr (std::is_same_v<T, float>) {
    w.decode_f32(w.self, row, col, count, dst);
  } else {
    w.decode_bf16(w.self, row, col, count, dst);
  }
}

template <class T>
void decode_padded_row(const void* self, index_t row, index_t col, index_t count, T* dst) {
  const auto& [inner, ranks, rows] = *static_cast<const PaddedSource*>(self);
  for (const Stretch& s : ranks->parts)
    if (row >= s.to && row < s.to + s.count) return decode(*inner, s.from + row - s.to, col, count, dst);
  std::memset(static_cast<void*>(dst), 0, static_cast<std::size_t>(count) * sizeof(T));
}

/// Columns of a row are decoded from its start: `inner` may be asked for any of them then.
template <class T>
void decode_padded_columns(const void* self, index_t row, index_t col, index_t count, T* dst) {
  const auto& [inner, ranks, rows] = *static_cast<const PaddedSource*>(self);
  std::memset(static_cast<void*>(dst), 0, static_cast<std::size_t>(count) * sizeof(T));
  if (row >= inner->rows || inner->cols == 0) return;
  auto whole = AlignedBuffer<T>::uninitialized(inner->cols);
  decode(*inner, row, 0, inner->cols, whole.data());
  for (const Stretch& s : ranks->parts) {
    const index_t begin = std::max(s.to, col), end = std::min(s.to + s.count, col + count);
    if (begin < end)
      std::memcpy(static_cast<void*>(dst + (begin - col)), whole.data() + s.from + (begin - s.to),
                  static_cast<std::size_t>(end - begin) * sizeof(T));
  }
}

RowSource padded_rows(const PaddedSource& p) {
  RowSource w;
  w.rows = p.ranks->padded_count;
  w.cols = p.inner->cols;
  w.self = &p;
  w.decode_f32 = decode_padded_row<float>;
  if (p.inner->decode_bf16 != nullptr) w.decode_bf16 = decode_padded_row<bf16>;
  return w;
}

RowSource padded_columns(const PaddedSource& p) {
  RowSource w;
  w.rows = p.rows;
  w.cols = p.ranks->padded_count;
  w.self = &p;
  w.decode_f32 = decode_padded_columns<float>;
  if (p.inner->decode_bf16 != nullptr) w.decode_bf16 = decode_padded_columns<bf16>;
  return w;
}

/// The padded order of the ranks of every right and of every left matrix.
struct PaddedRanks {
  std::vector<Stretches> right, left;

  explicit PaddedRanks(const BlockSource& w) : right(w.right.size()), left(w.left.size()) {
    if (w.coupling.data() != nullptr) {
      for (Stretches& s : right) s.add(0, w.coupling.cols());
      for (Stretches& s : left) s.add(0, w.coupling.cols());
      return;
    }
    std::vector<index_t> used(w.left.size(), 0);
    for (const RankRun& run : w.runs) {
      right[static_cast<std::size_t>(run.in_block)].add(run.first, run.count);
      index_t& from = used[static_cast<std::size_t>(run.out_block)];
      left[static_cast<std::size_t>(run.out_block)].add(from, run.count);
      from += run.count;
    }
  }
};

index_t rows_of_block(const BlockSource& w, std::size_t k) {
  return std::clamp<index_t>(w.shape.rows - static_cast<index_t>(k) * w.out_block, 0, w.out_block);
}

index_t coupling_floats(const BlockSource& w) {
  if (w.coupling.data() == nullptr) return 0;
  return checked_mul(w.coupling.rows(), padded(w.coupling.cols()), "PackedBlocks");
}

/// Calls part(shape) for every matrix, in the order of their memory.
template <class Part>
void for_each_part(const BlockSource& w, const PaddedRanks& ranks, const Part& part) {
  for (std::size_t l = 0; l < w.right.size(); ++l) part(MatrixShape{ranks.right[l].padded_count, w.right[l].cols});
  for (std::size_t k = 0; k < w.left.size(); ++k) part(MatrixShape{rows_of_block(w, k), ranks.left[k].padded_count});
  for (const BlockTile& tile : w.tiles) part(MatrixShape{tile.w.rows, tile.w.cols});
}

}  // namespace
}  // namespace engine

std::size_t PackedBlocks::bytes_needed(const BlockSource& w, WeightType type) {
  index_t bytes = checked_mul(engine::coupling_floats(w), 4, "PackedBlocks");
  engine::for_each_part(w, engine::PaddedRanks(w), [&](MatrixShape shape) {
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
  const engine::PaddedRanks ranks(w);
  for (std::size_t l = 0; l < w.right.size(); ++l) {
    const engine::PaddedSource source{&w.right[l], &ranks.right[l]};
    packed.right_[l] = pack_part(engine::padded_rows(source));
  }
  for (std::size_t k = 0; k < w.left.size(); ++k) {
    const engine::PaddedSource source{&w.left[k], &ranks.left[k], engine::rows_of_block(w, k)};
    packed.outputs_[k].left = pack_part(engine::padded_columns(source));
  }
  for (const BlockTile& tile : w.tiles)
    packed.outputs_[static_cast<std::size_t>(tile.out_block)].tiles.push_back({tile.in_block, pack_part(tile.w)});

  std::vector<std::size_t> next_right(w.right.size(), 0), next_left(w.left.size(), 0);
  for (const RankRun& run : w.runs) {
    const auto l = static_cast<std::size_t>(run.in_block), k = static_cast<std::size_t>(run.out_block);
    const engine::Stretch& from = ranks.right[l].parts[next_right[l]++];
    const engine::Stretch& to = ranks.left[k].parts[next_left[k]++];
    packed.outputs_[k].runs.push_back({run.in_block, from.to, engine::padded(run.count), to.to});
  }
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
