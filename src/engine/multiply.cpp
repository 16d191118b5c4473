// SPDX-License-Identifier: Apache-2.0
/// The loops around the kernels. Many tokens: slices whose partial sums (512 to 768 KB) and block of x stay in L2 while
/// blocks of weights (32 KB) pass through L1: 256 tokens x 512 columns, or up to 512 tokens x 352 columns where a
/// single slice takes all tokens or the weights are large. Few tokens: every panel is read once, from memory, and
/// nothing else matters. Scratch memory: x packed (once per call, in a block that is kept for the next one) and, per
/// slice from the heap, the sums and whatever the weights need.

#include <algorithm>

#include "engine/product.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {
namespace {

using kernels::kPanelColumns;

/// Weights above this many compete for the last-level cache: they pass half as often.
constexpr index_t kLargeWeights = index_t{1} << 25;
/// y of this many bytes and more is written past the caches.
constexpr index_t kStreamBytes = index_t{1} << 20;

}  // namespace

bool plain_y(const Product& p) { return bias_alone(p) && !p.kept && p.y.rows() * p.n * 4 >= kStreamBytes; }

bool bias_alone(const Product& p) {
  const Epilogue& e = p.epilogue;
  return !p.y.is_bf16() && e.function == EpilogueFunction::none && e.gate.data() == nullptr &&
         e.residual.data() == nullptr && e.token_scales.empty();
}

void finish(const Product& p, const float* sums, index_t sums_row, index_t sums_panel, index_t row, index_t rows,
            index_t col, index_t cols) {
  kernels::Finish f{};
  f.sums = sums;
  f.sums_row = sums_row;
  f.sums_panel = sums_panel;
  f.rows = rows;
  f.cols = cols;
  f.y_is_bf16 = p.y.is_bf16();
  f.y_stride = f.y_is_bf16 ? p.y.as_bf16().row_stride() : p.y.f32().row_stride();
  f.y = f.y_is_bf16 ? static_cast<void*>(p.y.as_bf16().row_data(row) + col)
                    : static_cast<void*>(p.y.f32().row_data(row) + col);
  f.stream = !p.kept && p.y.rows() * p.n * 4 >= kStreamBytes;
  f.function = static_cast<int>(p.epilogue.function);
  if (!p.epilogue.token_scales.empty()) f.token_scales = p.epilogue.token_scales.data() + row;
  if (!p.epilogue.bias.empty()) f.bias = p.epilogue.bias.data() + col;
  if (p.epilogue.gate.data() != nullptr) {
    f.gate = p.epilogue.gate.row_data(row) + col;
    f.gate_stride = p.epilogue.gate.row_stride();
  }
  if (p.epilogue.residual.data() != nullptr) {
    f.residual = p.epilogue.residual.row_data(row) + col;
    f.residual_stride = p.epilogue.residual.row_stride();
  }
  p.kernels.finish.fn(f);
}

BlockPlan block_plan(const Product& p, const PanelSource& w, index_t tokens) {
  const kernels::BlockKernel& kernel = p.path == Path::f32 ? p.kernels.block_f32 : p.kernels.block_bf16;
  const index_t panels = ceil_div(p.n, kPanelColumns);
  BlockPlan plan{};
  plan.depth = p.path == Path::f32 ? kernels::kF32Depth : kernels::kBf16Depth;
  // Weights that are used once need no block in L1.
  if (p.path == Path::bf16 && tokens <= 2 * kernel.max_tile_rows && w.step >= p.k)
    plan.depth = std::max(plan.depth, round_up(p.k, kernels::kBf16Step));
  plan.tile_rows = balanced(tokens, kernel.max_tile_rows);
  plan.tiles = ceil_div(tokens, plan.tile_rows);
  const bool tall = p.path == Path::bf16 && tokens > 256 && (tokens <= 384 || p.n * p.k > kLargeWeights);
  const index_t slice_tokens = tall ? 512 : 256;
  plan.slice_tiles = balanced(plan.tiles, std::max<index_t>(1, slice_tokens / plan.tile_rows));
  plan.slice_panels =
      w.whole_slices ? w.slice_panels : balanced(panels, tall ? std::min<index_t>(11, w.slice_panels) : w.slice_panels);
  return plan;
}

void multiply_blocks(const Product& p, const PanelSource& w, const Gate<PanelSource>& gate) {
  const kernels::BlockKernel& kernel = p.path == Path::f32 ? p.kernels.block_f32 : p.kernels.block_bf16;
  const index_t panels = ceil_div(p.n, kPanelColumns);
  const index_t weight_row_bytes = panel_row_bytes(p.path == Path::f32 ? WeightType::f32 : WeightType::bf16);
  for (index_t first = 0; first < p.x.rows(); first += kTokenChunk) {
    const index_t tokens = std::min(kTokenChunk, p.x.rows() - first);
    const BlockPlan plan = block_plan(p, w, tokens);
    const PackedActivations x(p, plan, first, tokens);
    const index_t token_slices = ceil_div(plan.tiles, plan.slice_tiles);
    const index_t column_slices = ceil_div(panels, plan.slice_panels);
    const index_t slices_per_task = w.reusable ? token_slices : 1;
    const bool one_step = w.step >= p.k;
    const bool in_place = one_step && w.scratch_per_panel == 0;
    // Prefetching weights that lie in L2 costs more than it brings.
    const bool in_l2 = stay_in_l2(p.path == Path::f32 ? WeightType::f32 : WeightType::bf16, p.n, p.k);
    const bool can_write_y = kernel.writes_y && plan.tiles > 2 && p.k > 0 && gate.product == nullptr && plain_y(p);

    const index_t panel_sums = plan.slice_tiles * plan.tile_rows * kPanelColumns;
    const index_t slice_sums = panel_sums * plan.slice_panels;
    // `then`: the weights multiplied next by the same tokens, where they are not w's own.
    const auto multiply = [&](const Product& q, const PanelSource& panels_of, const PanelSource* then, index_t task) {
      const index_t column_slice = task % column_slices;
      const index_t first_slice = task / column_slices * slices_per_task;
      const index_t panel0 = column_slice * plan.slice_panels;
      const index_t panel_count = std::min(plan.slice_panels, panels - panel0);
      const bool direct = can_write_y && (panel0 + panel_count) * kPanelColumns <= p.n;
      auto scratch = AlignedBuffer<std::byte>::uninitialized(panels_of.scratch_per_panel * panel_count);
      auto sums = AlignedBuffer<float>::uninitialized(slice_sums * (one_step ? 1 : slices_per_task));
      // With K = 0 one round of no blocks leaves the sums at zero.
      if (p.k == 0) std::fill(sums.begin(), sums.end(), 0.0f);
      for (index_t step0 = 0; step0 == 0 || step0 < p.k; step0 += w.step) {
        const index_t step_end = one_step ? p.k : std::min(p.k, step0 + w.step);
        PanelBlock weights;
        if (p.k > 0) weights = panels_of.prepare(scratch.data(), panel0, panel_count, step0, step_end - step0);
        for (index_t s = 0; s < slices_per_task; ++s) {
          const index_t tile0 = (first_slice + s) * plan.slice_tiles;
          const index_t tile_count = std::min(plan.slice_tiles, plan.tiles - tile0);
          const index_t row0 = tile0 * plan.tile_rows;
          const index_t rows = std::min(tokens - row0, tile_count * plan.tile_rows);
          float* slice = sums.data() + (one_step ? 0 : s * slice_sums);
          for (index_t k0 = step0; k0 < step_end; k0 += plan.depth) {
            const index_t n = std::min(plan.depth, p.k - k0);
            kernels::BlockProduct b{};
            b.x_tile_bytes = x.tile_bytes(k0);
            b.x = x.block(k0) + tile0 * b.x_tile_bytes;
            b.tiles = tile_count;
            b.tile_rows = plan.tile_rows;
            b.rows = rows;
            b.w = weights.w + (k0 - step0) * weight_row_bytes;
            b.w_panel_bytes = weights.panel_bytes;
            b.panels = panel_count;
            b.depth = p.path == Path::f32 ? n : round_up(n, kernels::kBf16Step);
            b.sums = slice;
            b.sums_panel = panel_sums;
            b.accumulate = k0 > 0;
            const index_t next = k0 + plan.depth;
            b.next_w = in_l2 ? nullptr : b.w;
            if (next < step_end) {
              b.next_w = weights.w + (next - step0) * weight_row_bytes;
              b.next_x = x.block(next) + tile0 * x.tile_bytes(next);
              b.next_x_bytes = tile_count * x.tile_bytes(next);
            } else if (in_place && !in_l2) {
              // What one thread multiplies next: the same tokens by the next columns, or the next tokens by the first.
              const index_t next_panel = then != nullptr ? panel0 : (panel0 + panel_count) % panels;
              const index_t next_tile = then != nullptr || next_panel > 0
                                            ? tile0
                                            : (tile0 + plan.slice_tiles) % (token_slices * plan.slice_tiles);
              b.next_w = (then != nullptr           ? *then
                          : gate.product != nullptr ? *gate.weights
                                                    : w)
                             .prepare(nullptr, next_panel, 1, 0, p.k)
                             .w;
              b.next_x = x.block(0) + next_tile * x.tile_bytes(0);
              b.next_x_bytes = std::min(plan.slice_tiles, plan.tiles - next_tile) * x.tile_bytes(0);
            }
            if (k0 + n == p.k && direct) {
              b.y = p.y.f32().row_data(first + row0) + panel0 * kPanelColumns;
              b.y_stride = p.y.f32().row_stride();
              if (!p.epilogue.bias.empty()) b.bias = p.epilogue.bias.data() + panel0 * kPanelColumns;
            }
            kernel.multiply.fn(b);
          }
          if (step_end == p.k && !direct) {
            const index_t col = panel0 * kPanelColumns;
            finish(q, slice, kPanelColumns, panel_sums, first + row0, rows, col,
                   std::min(p.n - col, panel_count * kPanelColumns));
          }
        }
        if (one_step) break;
      }
    };
    for_each_task(p, column_slices * (token_slices / slices_per_task), [&](index_t task) {
      if (gate.product != nullptr) multiply(*gate.product, *gate.weights, &w, task);
      multiply(p, w, nullptr, task);
    });
  }
}

void multiply_few(const Product& p, const PackedWeights& w, const Gate<PackedWeights>& gate) {
  const FewRows x = few_rows(p);
  const auto& slot = p.path == Path::bf16           ? p.kernels.few_f32_bf16_bf16
                     : w.type() == WeightType::bf16 ? p.kernels.few_f32_f32_bf16
                                                    : p.kernels.few_f32_f32_f32;
  const index_t panels = ceil_div(p.n, kPanelColumns);
  const index_t panel_bytes = padded_depth(w.type(), p.k) * panel_row_bytes(w.type());
  constexpr index_t kPanelsPerTask = 8;
  const index_t per_task = panels <= 64 ? 4 : kPanelsPerTask;
  const auto multiply = [&](const Product& q, const PackedWeights& weights, index_t task) {
    const index_t panel0 = task * per_task;
    const index_t count = std::min(per_task, panels - panel0);
    alignas(64) float sums[kFewTokens * kPanelsPerTask * kPanelColumns];  // on the stack: a task may take a microsecond
    kernels::FewProduct f{};
    f.x = x.data;
    f.x_stride = x.stride;
    f.tokens = p.x.rows();
    f.w = weights.data() + panel0 * panel_bytes;
    f.w_panel_bytes = panel_bytes;
    f.panels = count;
    f.k = p.k;
    f.sums = sums;
    f.sums_stride = count * kPanelColumns;
    slot.fn(f);
    const index_t col = panel0 * kPanelColumns;
    finish(q, sums, f.sums_stride, kPanelColumns, 0, p.x.rows(), col, std::min(p.n - col, f.sums_stride));
  };
  for_each_task(p, ceil_div(panels, per_task), [&](index_t task) {
    if (gate.product != nullptr) multiply(*gate.product, *gate.weights, task);
    multiply(p, w, task);
  });
}

void multiply_rows(const Product& p, const RowSource& w) {
  constexpr index_t kRowsPerTask = 64;
  constexpr index_t kStageRows = 4;
  constexpr index_t kStageDepth = 4 * RowSource::kColumnStep;
  const FewRows x = few_rows(p);
  const bool in_place = w.dense != nullptr;
  const bool bf16_weights =
      in_place ? w.dense_type == WeightType::bf16 : p.path == Path::bf16 && w.decode_bf16 != nullptr;
  const auto& slot = p.path == Path::bf16 ? p.kernels.dots_f32_bf16_bf16
                     : bf16_weights       ? p.kernels.dots_f32_f32_bf16
                                          : p.kernels.dots_f32_f32_f32;
  const index_t x_bytes = p.path == Path::bf16 ? 2 : 4;
  const index_t w_bytes = bf16_weights ? 2 : 4;
  for_each_task(p, ceil_div(p.n, kRowsPerTask), [&](index_t task) {
    const index_t row0 = task * kRowsPerTask;
    const index_t rows = std::min(kRowsPerTask, p.n - row0);
    // Row n of W is column n of y; `finish` wants whole vectors, so the sums of
    // a token are padded.
    auto sums = AlignedBuffer<float>(p.x.rows() * kRowsPerTask);
    kernels::RowDots d{};
    d.x_stride = x.stride;
    d.tokens = p.x.rows();
    d.sums_stride = kRowsPerTask;
    if (in_place) {
      d.x = x.data;
      d.w = static_cast<const std::byte*>(w.dense) + row0 * w.dense_row_stride * w_bytes;
      d.w_stride = w.dense_row_stride;
      d.rows = rows;
      d.k = p.k;
      d.sums = sums.data();
      slot.fn(d);
    } else {
      auto stage = AlignedBuffer<std::byte>::uninitialized(kStageRows * kStageDepth * w_bytes);
      for (index_t r = 0; r < rows; r += kStageRows) {
        d.rows = std::min(kStageRows, rows - r);
        d.w = stage.data();
        d.w_stride = kStageDepth;
        d.sums = sums.data() + r;
        for (index_t k0 = 0; k0 < p.k; k0 += kStageDepth) {
          d.k = std::min(kStageDepth, p.k - k0);
          for (index_t i = 0; i < d.rows; ++i) {
            std::byte* dst = stage.data() + i * kStageDepth * w_bytes;
            if (bf16_weights) {
              w.decode_bf16(w.self, row0 + r + i, k0, d.k, reinterpret_cast<bf16*>(dst));
            } else {
              w.decode_f32(w.self, row0 + r + i, k0, d.k, reinterpret_cast<float*>(dst));
            }
          }
          d.x = static_cast<const std::byte*>(x.data) + k0 * x_bytes;
          d.accumulate = k0 > 0;
          slot.fn(d);
        }
      }
    }
    finish(p, sums.data(), kRowsPerTask, kPanelColumns, 0, p.x.rows(), row0, rows);
  });
}

}  // namespace engine
}  // namespace blockpack::inline BLOCKPACK_ABI
