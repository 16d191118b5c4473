// SPDX-License-Identifier: Apache-2.0
/// Products of many tokens with packed codes, or with 2:4 weights: blocks of 32 columns are decoded to bf16 tiles a
/// step at a time between the products with the block before, so that weights are read at their packed size and never
/// written to memory.
///
/// Slices of 256 tokens x 512 columns, or of 512 x 352, keep their sums and their block of x in L2. A block is 256 k
/// deep up to 128 tokens, where both blocks then lie in L1, and 512 k above, where it counts more that sums are touched
/// rarely.
///
/// Limits: tile products (16,384 steps of 64 cycles for 32 tokens and 4096 x 4096 weights), beside which decoding
/// should cost nothing. Measured there, one thread, MXFP4 / int4-g32: 1.2 / 1.4 ms for 32 tokens, 3.0 / 3.3 ms for
/// 128, 10.0 / 10.3 ms for 512, where dense bf16 takes 1.24, 2.4 and 8.4 ms. Without any decoding they would take
/// 0.65, 2.0 and 8.0 ms: decoding, 0.5 / 0.9 ms by itself, is hardly hidden. A loop of tile products takes four
/// permutes or additions a product for nothing, so the window of the core is too small for runs of 80 to 160
/// instructions at a time; calls after every product, a quarter of a step each, were slower still (1.9, 4.8 and 13 ms)
/// for their number.
///
/// Kernels that run nothing beside take a panel at a time, and a block is decoded between two of them. On Zen 5 with
/// bf16 dots: MXFP4 / q4_0 2.7 / 2.9 ms for 32 tokens, 9.4 / 9.8 ms for 128, 37 / 41 ms for 512, where dense bf16 takes
/// 2.3, 8.9 and 35 ms.

#include <algorithm>

#include "engine/product.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {
namespace {

using kernels::kPanelColumns;

/// Packed codes as panels of 32 rows, two of theirs. `State` is where a decoder stands.
class CodePanels {
 public:
  using State = kernels::CodeDecoder;

  CodePanels(const PackedCodes& w, const kernels::CodeKernels& kernels)
      : kernels_(kernels), codes_(code_product(w)), steps_(ceil_div(w.shape().cols, kernels::kCodeStep)) {}

  index_t steps() const { return steps_; }
  /// Where a step of a panel begins.
  const unsigned char* at(index_t panel, index_t step) const {
    if (codes_.two_four) step /= 2;
    return codes_.w + 2 * panel * codes_.panel_bytes + step / codes_.block_steps * codes_.block_bytes +
           step % codes_.block_steps * kernels::code_step_bytes(codes_.bits);
  }
  /// Units of a panel's part of that many steps: the steps of its first 16 rows, then those of the others.
  index_t units(index_t panel, index_t steps) const { return steps * std::min<index_t>(2, codes_.panels - 2 * panel); }
  /// Units [done, end) of the part that starts at `step`; meanwhile what lies `ahead` bytes further is fetched.
  void decode(index_t panel, index_t step, index_t steps, index_t done, index_t end, index_t ahead, State& state,
              std::uint16_t* block) const {
    while (done < end) {
      const index_t half = done < steps ? 0 : 1, s = done - half * steps;
      const index_t count = std::min(end - done, steps - s);
      kernels_.decode_bf16.fn(codes_, codes_.w + (2 * panel + half) * codes_.panel_bytes, step + s, count, ahead, state,
                              block + s * kernels::kCodeTile + half * (kernels::kCodeTile / 2));
      done += count;
    }
  }

 private:
  const kernels::CodeKernels& kernels_;
  kernels::CodeProduct codes_;
  index_t steps_;  ///< of 32 k
};

/// 2:4 weights: units lie in the order of tiles.
class TwoFourPanels {
 public:
  struct State {};

  TwoFourPanels(const PackedWeights& w, const kernels::TwoFourKernels& kernels)
      : kernels_(kernels),
        w_(reinterpret_cast<const unsigned char*>(w.data())),
        steps_(ceil_div(w.shape().cols, kernels::kTwoFourStep)) {}

  index_t steps() const { return steps_; }
  const unsigned char* at(index_t panel, index_t step) const { return w_ + (panel * steps_ + step) * 2 * kUnit; }
  index_t units(index_t, index_t steps) const { return 2 * steps; }
  void decode(index_t panel, index_t step, index_t, index_t done, index_t end, index_t ahead, State&,
              std::uint16_t* block) const {
    kernels_.expand_bf16_bf16.fn(at(panel, step) + done * kUnit, end - done, ahead,
                                 block + done * (kernels::kCodeTile / 2));
  }

 private:
  static constexpr index_t kUnit = kernels::two_four_unit_bytes(2);

  const kernels::TwoFourKernels& kernels_;
  const unsigned char* w_;
  index_t steps_;
};

/// The blocks of panels [first, end) one after the other, K block by K block. Two are held: the current
/// one, and the next one, which `run` decodes.
template <class Panels>
class DecodedBlocks final : public kernels::Beside {
 public:
  DecodedBlocks(const Panels& w, index_t depth, index_t first, index_t end)
      : Beside{[](Beside& self, index_t part, index_t parts) noexcept {
          static_cast<DecodedBlocks&>(self).decode(part, parts);
        }},
        w_(w),
        depth_(depth / kernels::kCodeStep),
        first_(first),
        end_(end),
        next_{first, 0},
        state_{},
        memory_(2 * block_bytes()) {
    aim();
    decode(0, 1);
  }

  /// The current block, and the distance to the place of the next one.
  const std::byte* current() const { return memory_.data() + (odd_ ? block_bytes() : 0); }
  /// What the next block is decoded from, or null after the last one.
  const void* next() const { return next_.step < w_.steps() ? w_.at(next_.panel, next_.step) : nullptr; }
  index_t distance() const { return odd_ ? -block_bytes() : block_bytes(); }

 private:
  /// Where a block begins.
  struct Place {
    index_t panel;
    index_t step;
  };

  index_t block_bytes() const { return depth_ * kernels::kCodeStep * panel_row_bytes(WeightType::bf16); }

  Place after(const Place& p) const {
    return p.panel + 1 < end_ ? Place{p.panel + 1, p.step} : Place{first_, p.step + depth_};
  }

  /// Makes the next block the one that `decode` works on.
  void aim() {
    done_ = units_ = 0;
    if (next_.step >= w_.steps()) return;  // the current one is the last
    steps_ = std::min(depth_, w_.steps() - next_.step);
    units_ = w_.units(next_.panel, steps_);
    const Place then = after(next_);
    ahead_ = then.step < w_.steps() ? w_.at(then.panel, then.step) - w_.at(next_.panel, next_.step) : 0;
    block_ = reinterpret_cast<std::uint16_t*>(memory_.data() + (odd_ ? 0 : block_bytes()));
  }

  void decode(index_t part, index_t parts) noexcept {
    // part + 1 of parts of the units, without a division
    if (part == 0) share_ = 0;
    index_t target = done_;
    for (share_ += units_; share_ >= parts; share_ -= parts) ++target;
    w_.decode(next_.panel, next_.step, steps_, done_, target, ahead_, state_, block_);
    done_ = target;
    if (part + 1 < parts) return;
    odd_ = !odd_;
    next_ = after(next_);
    aim();
  }

  const Panels& w_;
  index_t depth_;  ///< steps of a block
  index_t first_;
  index_t end_;
  Place next_;
  bool odd_ = true;  ///< which half of the memory is the current block
  // Of the next block: its steps and units, how many of them are done and what is left over of the
  // share of the last part; how far the block after lies; where it goes.
  index_t steps_ = 0;
  index_t units_ = 0;
  index_t done_ = 0;
  index_t share_ = 0;
  index_t ahead_ = 0;
  std::uint16_t* block_ = nullptr;
  typename Panels::State state_;
  AlignedBuffer<std::byte> memory_;
};

template <class Panels>
void multiply_decoded(const Product& p, const Panels& w, const Gate<Panels>& gate) {
  const kernels::BlockKernel& kernel = p.kernels.block_bf16;
  const index_t panels = ceil_div(p.n, kPanelColumns);
  for (index_t first = 0; first < p.x.rows(); first += kTokenChunk) {
    const index_t tokens = std::min(kTokenChunk, p.x.rows() - first);
    const bool tall = tokens > 256;
    BlockPlan plan{};
    plan.depth = tokens <= 128 ? kernels::kBf16Depth / 2 : kernels::kBf16Depth;
    plan.tile_rows = balanced(tokens, kernel.max_tile_rows);
    plan.tiles = ceil_div(tokens, plan.tile_rows);
    plan.slice_tiles = balanced(plan.tiles, (tall ? 512 : 256) / plan.tile_rows);
    plan.slice_panels = balanced(panels, tall ? 11 : 16);
    const PackedActivations x(p, plan, first, tokens);
    const index_t column_slices = ceil_div(panels, plan.slice_panels);
    const index_t token_slices = ceil_div(plan.tiles, plan.slice_tiles);
    const index_t panel_sums = plan.slice_tiles * plan.tile_rows * kPanelColumns;
    const bool can_write_y = kernel.writes_y && kernel.runs_beside && gate.product == nullptr && plain_y(p);

    const auto multiply = [&](const Product& q, const Panels& of, index_t task) {
      const index_t panel0 = task % column_slices * plan.slice_panels;
      const index_t count = std::min(plan.slice_panels, panels - panel0);
      const index_t tile0 = task / column_slices * plan.slice_tiles;
      const index_t tile_count = std::min(plan.slice_tiles, plan.tiles - tile0);
      const index_t row0 = tile0 * plan.tile_rows;
      const index_t rows = std::min(tokens - row0, tile_count * plan.tile_rows);
      const bool direct = can_write_y && (panel0 + count) * kPanelColumns <= p.n;
      DecodedBlocks<Panels> blocks(of, plan.depth, panel0, panel0 + count);
      auto sums = AlignedBuffer<float>::uninitialized(panel_sums * count);
      for (index_t k0 = 0; k0 < p.k; k0 += plan.depth) {
        const index_t next = k0 + plan.depth;
        kernels::BlockProduct b{};
        b.x_tile_bytes = x.tile_bytes(k0);
        b.x = x.block(k0) + tile0 * b.x_tile_bytes;
        b.tiles = tile_count;
        b.tile_rows = plan.tile_rows;
        b.rows = rows;
        b.depth = round_up(std::min(plan.depth, p.k - k0), kernels::kBf16Step);
        b.sums_panel = panel_sums;
        b.accumulate = k0 > 0;
        const std::byte* next_x = nullptr;
        if (next < p.k) {
          next_x = x.block(next) + tile0 * x.tile_bytes(next);
          b.next_x_bytes = tile_count * x.tile_bytes(next);
        } else if (direct) {
          b.y = p.y.f32().row_data(first + row0) + panel0 * kPanelColumns;
          b.y_stride = p.y.f32().row_stride();
          if (!p.epilogue.bias.empty()) b.bias = p.epilogue.bias.data() + panel0 * kPanelColumns;
        }
        b.panels = kernel.runs_beside ? count : 1;
        for (index_t i = 0; i < count; i += b.panels) {
          b.sums = sums.data() + i * panel_sums;
          b.w = blocks.current();
          b.w_panel_bytes = blocks.distance();
          b.next_x = i + b.panels < count ? nullptr : next_x;
          if (!kernel.runs_beside) b.next_w = blocks.next();
          if (kernel.runs_beside) b.beside = &blocks;
          kernel.multiply.fn(b);
          if (!kernel.runs_beside) blocks.run(blocks, 0, 1);
        }
      }
      if (direct) return;
      const index_t col = panel0 * kPanelColumns;
      finish(q, sums.data(), kPanelColumns, panel_sums, first + row0, rows, col,
             std::min(p.n - col, count * kPanelColumns));
    };
    for_each_task(p, column_slices * token_slices, [&](index_t task) {
      if (gate.product != nullptr) multiply(*gate.product, *gate.weights, task);
      multiply(p, w, task);
    });
  }
}

/// The same from a packed form, whose panels `kernels` decode.
template <class Panels, class Weights, class Kernels>
void multiply_decoded(const Product& p, const Kernels& kernels, const Weights& w, const Gate<Weights>& gate) {
  const Panels panels(w, kernels);
  if (gate.product == nullptr) return multiply_decoded<Panels>(p, panels, {});
  const Panels gate_panels(*gate.weights, kernels);
  multiply_decoded<Panels>(p, panels, {gate.product, &gate_panels});
}

}  // namespace

void multiply_code_panels(const Product& p, const kernels::CodeKernels& kernels, const PackedCodes& w,
                          const Gate<PackedCodes>& gate) {
  multiply_decoded<CodePanels>(p, kernels, w, gate);
}

void multiply_two_four_panels(const Product& p, const kernels::TwoFourKernels& kernels, const PackedWeights& w,
                              const Gate<PackedWeights>& gate) {
  multiply_decoded<TwoFourPanels>(p, kernels, w, gate);
}

}  // namespace engine
}  // namespace blockpack::inline BLOCKPACK_ABI
