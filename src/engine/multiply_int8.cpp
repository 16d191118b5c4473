// SPDX-License-Identifier: Apache-2.0
/// Products of int8_token activations with weights that are 8-bit codes, in integers: any number of tokens, in slices
/// whose x, sums and totals stay in L2 while blocks of codes (32 KB) pass through L1. Codes are used as they are
/// packed.

#include <algorithm>

#include "engine/product.hpp"
#include "kernels/table.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {
namespace {

using kernels::kCodeRows;
using kernels::kInt8Depth;
using kernels::kInt8Run;
using kernels::kInt8Step;
using kernels::kPanelColumns;

/// How a product is cut: K into runs (of one integer sum each) and blocks, which are whole runs or parts of one.
struct Int8Plan {
  index_t run;    ///< k of a run
  index_t depth;  ///< k of a block, at most
  index_t tile_rows;
  index_t tiles;
  index_t slice_tiles;
  index_t slice_pairs;  ///< pairs of panels, 32 columns
};

Int8Plan int8_plan(const kernels::Int8Kernels& kernels, const CodeSpec& spec, index_t tokens, index_t n, index_t k) {
  Int8Plan plan{};
  plan.run = std::min({spec.group, kInt8Run, round_up(k, kInt8Step)});
  plan.depth = plan.run < kInt8Depth ? std::max<index_t>(1, 512 / plan.run) * plan.run : kInt8Depth;
  plan.tile_rows = balanced(tokens, kernels.max_tile_rows);
  plan.tiles = ceil_div(tokens, plan.tile_rows);
  if (plan.tiles <= 2) plan.depth = std::max(plan.depth, plan.run);  // codes that are used once need no block in L1
  plan.slice_tiles = balanced(plan.tiles, 256 / plan.tile_rows);
  plan.slice_pairs = balanced(ceil_div(n, kPanelColumns), plan.tiles <= 4 ? 4 : 16);
  return plan;
}

/// Tokens [first, first + count) as int8: tiles of whole K, a scale per token, the sums of their codes per run.
struct TokenCodes {
  TokenCodes(const Product& p, const kernels::Int8Kernels& kernels, const Int8Plan& plan, index_t first, index_t count,
             int zero)
      : tile_bytes(checked_mul(plan.tile_rows, round_up(p.k, kInt8Step), "matmul")),
        rows(plan.tiles * plan.tile_rows),
        codes(static_cast<std::size_t>(checked_mul(plan.tiles, tile_bytes, "matmul"))),
        scales(AlignedBuffer<float>::uninitialized(rows)),
        minus_x(AlignedBuffer<std::int32_t>::uninitialized(checked_mul(ceil_div(p.k, plan.run), rows, "matmul"))) {
    for_each_task(p, plan.tiles, [&](index_t tile) {
      auto wide = AlignedBuffer<float>::uninitialized(p.x.is_bf16() ? p.k : 0);
      for (index_t r = 0; r < plan.tile_rows; ++r) {
        const index_t row = tile * plan.tile_rows + r;
        std::int8_t* dst = data() + tile * tile_bytes + r * kInt8Step;
        const index_t step = plan.tile_rows * kInt8Step;
        if (row >= count) {
          for (index_t k = 0; k < p.k; k += kInt8Step)
            std::fill_n(dst + k / kInt8Step * step, kInt8Step, std::int8_t{0});
          continue;
        }
        if (p.x.is_bf16())
          p.kernels.widen.fn(reinterpret_cast<const std::uint16_t*>(p.x.as_bf16().row_data(first + row)), p.k,
                             wide.data());
        const float* x = p.x.is_bf16() ? wide.data() : p.x.f32().row_data(first + row);
        std::int32_t* sums = minus_x.data() + row;
        scales[static_cast<std::size_t>(row)] = kernels.quantize_token.fn(x, p.k, dst, step, plan.run, sums, rows);
        for (index_t run = 0; run * plan.run < p.k; ++run) sums[run * rows] *= zero;
      }
    });
  }
  std::int8_t* data() const noexcept { return reinterpret_cast<std::int8_t*>(codes.data()); }

  index_t tile_bytes;
  index_t rows;
  ScratchMemory codes;
  AlignedBuffer<float> scales;
  AlignedBuffer<std::int32_t> minus_x;
};

}  // namespace

void multiply_int8(const Product& p, const kernels::Int8Kernels& kernels, const PackedCodes& w) {
  const kernels::CodeProduct codes = code_product(w);
  const CodeSpec& spec = w.spec();
  const index_t pairs = ceil_div(codes.panels, 2), groups = spec.groups(p.k);
  const bool plain = bias_alone(p), stream = plain_y(p);
  for (index_t first = 0; first < p.x.rows(); first += kTokenChunk) {
    const index_t tokens = std::min(kTokenChunk, p.x.rows() - first);
    const Int8Plan plan = int8_plan(kernels, spec, tokens, p.n, p.k);
    const TokenCodes x(p, kernels, plan, first, tokens, spec.zeros ? 1 : spec.zero);
    const index_t token_slices = ceil_div(plan.tiles, plan.slice_tiles);
    const index_t column_slices = ceil_div(pairs, plan.slice_pairs);
    const bool spans = plan.run > plan.depth;
    const index_t totals_pair = plan.slice_tiles * plan.tile_rows * kPanelColumns;

    for_each_task(p, column_slices * token_slices, [&](index_t task) {
      const index_t tile0 = task / column_slices * plan.slice_tiles;
      const index_t pair0 = task % column_slices * plan.slice_pairs;
      const index_t pair_count = std::min(plan.slice_pairs, pairs - pair0);
      const index_t row0 = tile0 * plan.tile_rows;
      const bool direct = plain && (pair0 + pair_count) * kPanelColumns <= p.n;
      auto totals = AlignedBuffer<float>::uninitialized(direct && plan.run >= p.k ? 0 : totals_pair * pair_count);
      auto integers = AlignedBuffer<std::int32_t>::uninitialized(spans ? totals_pair * pair_count : 0);
      auto scales = AlignedBuffer<float>::uninitialized(pair_count * groups * kPanelColumns);
      auto zeros = AlignedBuffer<std::int32_t>::uninitialized(spec.zeros ? scales.size() : 0);

      kernels::Int8Product b{};
      b.x_tile_bytes = x.tile_bytes;
      b.tiles = std::min(plan.slice_tiles, plan.tiles - tile0);
      b.tile_rows = plan.tile_rows;
      b.rows = std::min(tokens - row0, b.tiles * plan.tile_rows);
      b.w = codes.w + 2 * pair0 * codes.panel_bytes;
      b.w_panel_bytes = codes.panel_bytes;
      b.panels = std::min(2 * pair_count, codes.panels - 2 * pair0);
      b.chunk_steps = ceil_div(codes.block_steps, 2);
      b.chunk_bytes = codes.block_bytes;
      b.run_steps = ceil_div(plan.run, kInt8Step);
      b.minus_x_run = x.rows;
      b.scales_pair = groups * kPanelColumns;
      b.totals = totals.data();
      b.totals_pair = totals_pair;
      b.integers = spans ? integers.data() : nullptr;
      for (index_t i = 0; i < 2 * pair_count; ++i) {
        const index_t at = i / 2 * b.scales_pair + i % 2 * kCodeRows;
        const index_t panel = std::min(i, b.panels - 1);
        kernels.read_groups.fn(codes, b.w + panel * codes.panel_bytes, scales.data() + at,
                               spec.zeros ? zeros.data() + at : nullptr);
      }
      for (index_t k0 = 0; k0 < p.k;) {
        const index_t run = k0 / plan.run, left = p.k - k0;
        const index_t depth = std::min({plan.depth, left, spans ? (run + 1) * plan.run - k0 : left});
        b.x = x.data() + tile0 * x.tile_bytes + k0 * plan.tile_rows;
        b.first_step = k0 / kInt8Step;
        b.steps = ceil_div(depth, kInt8Step);
        b.half_step = depth == left && ceil_div(p.k, kernels::kCodeStep) % 2 == 1;
        b.starts = k0 == run * plan.run;
        b.ends = !spans || depth == left || k0 + depth == (run + 1) * plan.run;
        b.first = run == 0;
        b.minus_x = x.minus_x.data() + run * x.rows + row0;
        const index_t group = k0 / spec.group * kPanelColumns;
        b.scales = scales.data() + group;
        b.zeros = spec.zeros ? zeros.data() + group : nullptr;
        k0 += depth;
        b.next_w = b.w + (k0 / (b.chunk_steps * kInt8Step)) * codes.block_bytes +
                   k0 / kInt8Step % b.chunk_steps * (2 * kernels::code_step_bytes(8));
        if (k0 >= p.k) {
          b.next_w = nullptr;
          b.token_scales = x.scales.data() + row0;
          if (direct) {
            b.y = p.y.f32().row_data(first + row0) + pair0 * kPanelColumns;
            b.y_stride = p.y.f32().row_stride();
            b.stream = stream;
            if (!p.epilogue.bias.empty()) b.bias = p.epilogue.bias.data() + pair0 * kPanelColumns;
          }
        }
        kernels.multiply.fn(b);
      }
      if (direct) return;
      const index_t col = pair0 * kPanelColumns;
      finish(p, totals.data(), kPanelColumns, totals_pair, first + row0, b.rows, col,
             std::min(p.n - col, pair_count * kPanelColumns));
    });
  }
}

}  // namespace engine

bool multiplies_int8(const CodeSpec& spec, index_t cols, Isa level) {
  const kernels::Int8Kernels& kernels = kernels::table_for(level).int8;
  if (kernels.multiply.fn == nullptr || spec.bits != 8 || spec.minimums || cols == 0) return false;
  if (spec.element != CodeElement::integer) return false;
  return spec.group >= cols ||
         (spec.group >= 128 && spec.group % kernels::kInt8Step == 0 && spec.group <= kernels::kInt8Run);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
