// SPDX-License-Identifier: Apache-2.0
/// The packed form of weights: panels of 32 columns, laid out as kernels/dense/dense_kernels.hpp says, the same at
/// every level.

#include <algorithm>
#include <cstring>

#include "engine/large_memory.hpp"
#include "engine/product.hpp"
#include "kernels/table.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {
namespace {

using kernels::kPanelColumns;

constexpr index_t kHalf = 16;

/// 16 rows of w as 32-bit words, zeros beyond its edges: in place when they lie there ready, else in `stage`.
struct Words {
  const std::uint32_t* data;
  index_t stride;
};

Words f32_words(const RowSource& w, index_t row, index_t k0, index_t count, float* stage) {
  const index_t padded = round_up(count, 16);
  if (w.dense != nullptr && w.dense_type == WeightType::f32 && row + kHalf <= w.rows && padded == count)
    return {reinterpret_cast<const std::uint32_t*>(static_cast<const float*>(w.dense) + row * w.dense_row_stride + k0),
            w.dense_row_stride};
  for (index_t r = 0; r < kHalf; ++r) {
    float* dst = stage + r * padded;
    const index_t real = row + r < w.rows ? count : 0;
    if (real > 0) w.decode_f32(w.self, row + r, k0, real, dst);
    std::fill(dst + real, dst + padded, 0.0f);
  }
  return {reinterpret_cast<const std::uint32_t*>(stage), padded};
}

Words bf16_words(const kernels::DenseKernels& kernels, const RowSource& w, index_t row, index_t k0, index_t count,
                 std::uint16_t* stage, float* row_f32) {
  const index_t padded = round_up(count, kernels::kBf16Step);
  if (w.dense != nullptr && w.dense_type == WeightType::bf16 && row + kHalf <= w.rows && padded == count &&
      w.dense_row_stride % 2 == 0) {
    const bf16* first = static_cast<const bf16*>(w.dense) + row * w.dense_row_stride + k0;
    if (reinterpret_cast<std::uintptr_t>(first) % 4 == 0)
      return {reinterpret_cast<const std::uint32_t*>(first), w.dense_row_stride / 2};
  }
  for (index_t r = 0; r < kHalf; ++r) {
    std::uint16_t* dst = stage + r * padded;
    if (row + r >= w.rows) {
      std::memset(dst, 0, static_cast<std::size_t>(padded) * 2);
    } else if (w.decode_bf16 != nullptr) {
      w.decode_bf16(w.self, row + r, k0, count, reinterpret_cast<bf16*>(dst));
      std::memset(dst + count, 0, static_cast<std::size_t>(padded - count) * 2);
    } else {
      w.decode_f32(w.self, row + r, k0, count, row_f32);
      kernels.pack_bf16_f32.fn(row_f32, count, dst, kernels::kBf16Step);
    }
  }
  return {reinterpret_cast<const std::uint32_t*>(stage), padded / 2};
}

}  // namespace

void pack_panel(const kernels::DenseKernels& kernels, const RowSource& w, WeightType type, index_t panel, index_t k0,
                index_t count, std::byte* dst, std::byte* stage) {
  auto* out = reinterpret_cast<std::uint32_t*>(dst);
  for (index_t half = 0; half < 2; ++half) {
    const index_t row = panel * kPanelColumns + half * kHalf;
    if (type == WeightType::f32) {
      const Words words = f32_words(w, row, k0, count, reinterpret_cast<float*>(stage));
      kernels.transpose16.fn(words.data, words.stride, padded_depth(type, count), out + half * kHalf, kPanelColumns,
                             16 * kPanelColumns);
    } else {
      auto* row_f32 = reinterpret_cast<float*>(stage + kHalf * RowSource::kColumnStep * 4);
      const Words words = bf16_words(kernels, w, row, k0, count, reinterpret_cast<std::uint16_t*>(stage), row_f32);
      kernels.transpose16.fn(words.data, words.stride, padded_depth(type, count) / 2, out + half * 256, 16, 512);
    }
  }
}

}  // namespace engine

std::size_t PackedWeights::bytes_needed(MatrixShape shape, WeightType type, Isa /*level*/, WeightLayout layout) {
  if (layout == WeightLayout::two_four) return engine::two_four_bytes(shape, type);
  const index_t panels = ceil_div(shape.rows, kernels::kPanelColumns);
  const index_t panel_bytes =
      checked_mul(engine::padded_depth(type, shape.cols), engine::panel_row_bytes(type), "PackedWeights");
  return static_cast<std::size_t>(checked_mul(panels, panel_bytes, "PackedWeights"));
}

PackedWeights PackedWeights::pack(const RowSource& w, WeightType type, const Execution& how,
                                  std::span<std::byte> memory, WeightLayout layout) {
  PackedWeights packed;
  packed.level_ = how.level();
  packed.layout_ = layout;
  packed.shape_ = {w.rows, w.cols};
  packed.type_ = type;
  packed.bytes_ = bytes_needed(packed.shape_, type, packed.level_, layout);
  if (packed.bytes_ == 0) return packed;
  const std::shared_ptr<std::byte> block = engine::packed_memory("PackedWeights::pack", memory, packed.bytes_);
  std::byte* dst = block.get();
  packed.owner_ = block;
  packed.data_ = dst;
  if (layout == WeightLayout::two_four) {
    engine::pack_two_four(w, type, how, dst);
    return packed;
  }
  const kernels::DenseKernels& kernels = kernels::table_for(packed.level_).dense;
  const index_t row_bytes = engine::panel_row_bytes(type);
  const index_t panel_bytes = engine::padded_depth(type, w.cols) * row_bytes;
  parallel_for(how, ceil_div(w.rows, kernels::kPanelColumns), [&](index_t panel) {
    auto stage = AlignedBuffer<std::byte>::uninitialized(engine::kStageBytes);
    for (index_t k0 = 0; k0 < w.cols; k0 += RowSource::kColumnStep)
      engine::pack_panel(kernels, w, type, panel, k0, std::min(RowSource::kColumnStep, w.cols - k0),
                         dst + panel * panel_bytes + k0 * row_bytes, stage.data());
  });
  return packed;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
