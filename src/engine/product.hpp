// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The parts of the dense engine. A product is cut into row tiles of x, panels of 32 columns and blocks of K; how, is
/// decided from M, N and K alone (`block_plan`), and threads only take slices of the cut.

#include "blockpack/core/engine.hpp"
#include "engine/large_memory.hpp"
#include "kernels/codes/codes_kernels.hpp"
#include "kernels/dense/dense_kernels.hpp"
#include "kernels/int8/int8_kernels.hpp"
#include "kernels/two_four/two_four_kernels.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {

/// Tokens up to which packed weights are read once by the kernels of few tokens.
inline constexpr index_t kFewTokens = 4;

/// Which unit multiplies: f32 multiply-adds or bf16 dots.
enum class Path : std::uint8_t { f32, bf16 };

/// Bytes of one k of a panel.
constexpr index_t panel_row_bytes(WeightType type) {
  return kernels::kPanelColumns * (type == WeightType::f32 ? 4 : 2);
}
/// Whether weights are so small that they stay in L2 from call to call.
constexpr bool stay_in_l2(WeightType type, index_t n, index_t k) {
  constexpr index_t kBytes = index_t{5} << 18;
  return round_up(n, kernels::kPanelColumns) * k <= kBytes / (type == WeightType::f32 ? 4 : 2);
}
/// K padded to whole packing steps.
constexpr index_t padded_depth(WeightType type, index_t k) {
  return round_up(k, type == WeightType::f32 ? 16 : kernels::kBf16Step);
}

/// Rows of x that are packed at a time: bounds the scratch memory of very long batches.
inline constexpr index_t kTokenChunk = 2048;
/// Parts of at most that size, as equal as can be.
constexpr index_t balanced(index_t total, index_t at_most) { return ceil_div(total, ceil_div(total, at_most)); }

/// One product on its way through the engine. `rounding` is what happens to x before it is multiplied.
struct Product {
  const kernels::DenseKernels& kernels;
  Path path;
  Activations rounding;
  ActivationView x;
  index_t n;  ///< columns of y
  index_t k;
  ResultView y;
  const Epilogue& epilogue;
  const Execution& execution;
  bool kept = false;  ///< y is read again at once: not written past the caches
};

/// The product that makes the gate of another one, of the same x and shape, and its weights; or null, there is none.
/// Task by task it comes before what it gates, which reads its y.
template <class Weights>
struct Gate {
  const Product* product = nullptr;
  const Weights* weights = nullptr;
};

/// Calls multiply(product, gate): p as it is, or, with weights of a gate, gated. The gate is written to y itself unless
/// that is bf16 or added as the residual.
template <class Weights, class Multiply>
void with_gate(const Product& p, const Weights* gate, const Multiply& multiply) {
  if (gate == nullptr) return multiply(p, Gate<Weights>{});
  const bool in_y = !p.y.is_bf16() && !detail::may_overlap(p.epilogue.residual, p.y.f32());
  auto own = AlignedBuffer<float>::uninitialized(in_y ? 0 : checked_mul(p.y.rows(), p.n, "matmul"));
  const MatrixView<float> values = in_y ? p.y.f32() : MatrixView<float>(own.data(), p.y.rows(), p.n);
  Epilogue scaled, gated = p.epilogue;
  scaled.token_scales = p.epilogue.token_scales;
  gated.gate = values;
  const Product first{p.kernels, p.path, p.rounding, p.x, p.n, p.k, values, scaled, p.execution, true};
  multiply({p.kernels, p.path, p.rounding, p.x, p.n, p.k, p.y, gated, p.execution, in_y}, Gate<Weights>{&first, gate});
}

/// Runs the tasks of a product that one thread would need `ns` for. Below about 20 µs of work, waking threads costs
/// more than it saves (and far more when other programs want the cores), so the calling thread does it all; the
/// caller's own executor is always asked.
template <class F>
void for_each_task(const Execution& how, double ns, index_t tasks, const F& task) {
  if (ns >= 20'000.0 || how.executor) return parallel_for(how, tasks, task);
  for (index_t i = 0; i < tasks; ++i) {
    how.throw_if_stopped();
    task(i);
  }
}
template <class F>
void for_each_task(const Product& p, index_t tasks, const F& task) {
  const double multiplies_per_ns = p.path == Path::bf16 ? 700.0 : 100.0, bytes_per_ns = 30.0;
  const double weights = static_cast<double>(p.n) * static_cast<double>(p.k);
  const double ns = weights * static_cast<double>(p.x.rows()) / multiplies_per_ns + 2.0 * weights / bytes_per_ns;
  for_each_task(p.execution, ns, tasks, task);
}

/// Where the block kernels get their weights. `prepare` makes panels [first, first + count) ready for
/// k0 … k0 + depth, in caller scratch if it needs any, and says where they lie.
struct PanelBlock {
  const std::byte* w = nullptr;
  index_t panel_bytes = 0;
};
class PanelSource {
 public:
  virtual ~PanelSource() = default;
  virtual PanelBlock prepare(std::byte* scratch, index_t first, index_t count, index_t k0, index_t depth) const = 0;
  /// k one call prepares, a multiple of the plan's depth or all of K; bytes of scratch per panel for that.
  index_t step = 0;
  index_t scratch_per_panel = 0;
  bool reusable = false;      ///< prepared weights cost something: all tokens use them before the next are made
  index_t slice_panels = 16;  ///< panels of a slice, at most
  bool whole_slices = false;  ///< exactly that many, but for the last slice
};

/// How a product of many tokens is cut.
struct BlockPlan {
  index_t depth;         ///< k per block
  index_t tile_rows;     ///< rows per tile, tiles are of equal height
  index_t tiles;         ///< in the chunk of tokens
  index_t slice_tiles;   ///< row tiles of a slice
  index_t slice_panels;  ///< panels of a slice
};

/// Whether a block kernel may write y itself: large, float32, and nothing but a bias to add.
bool plain_y(const Product& p);
/// The same of any size.
bool bias_alone(const Product& p);

BlockPlan block_plan(const Product& p, const PanelSource& w, index_t tokens);

/// x[row, k0 … k0 + n) as float32, rounded as the product says.
void load_f32(const Product& p, index_t row, index_t k0, index_t n, float* dst);
/// The same in bf16, runs of 32 k `step` elements apart, the last one padded with zeros.
void load_bf16(const Product& p, index_t row, index_t k0, index_t n, std::uint16_t* dst, index_t step);

/// Rows [first, first + count) of x in the tile order of the block kernels: blocks of K, in each the tiles.
class PackedActivations {
 public:
  PackedActivations(const Product& p, const BlockPlan& plan, index_t first, index_t count);
  /// First tile of the block that starts at k0, and the distance between tiles.
  const std::byte* block(index_t k0) const noexcept;
  index_t tile_bytes(index_t k0) const noexcept;

 private:
  /// The block of row `row` (of those packed) that starts at k0; zeros for rows beyond `count`.
  void pack_row(const Product& p, index_t first, index_t count, index_t row, index_t k0);

  Path path_;
  index_t k_;
  index_t depth_;
  index_t tile_rows_;
  index_t tiles_;
  ScratchMemory data_;
};

/// x in float32, rounded as int8_token says: what weights are multiplied by that have no kernels for the mode. Reads
/// and writes x once more than a product in f32.
class RoundedTokens {
 public:
  RoundedTokens(ActivationView x, const Execution& how);
  ActivationView view() const noexcept { return MatrixView<const float>(data_.data(), shape_.rows, shape_.cols); }

 private:
  MatrixShape shape_;
  AlignedBuffer<float> data_;
};

/// Rows of x ready for the kernels of few tokens: in place where nothing has to be done to them.
struct FewRows {
  const void* data = nullptr;
  index_t stride = 0;
  AlignedBuffer<std::byte> owned;
};
FewRows few_rows(const Product& p);

/// Writes panel `panel` of w, k0 … k0 + count (k0 a multiple of RowSource::kColumnStep, count at most that), in packed
/// order to dst. `stage` holds kStageBytes.
inline constexpr index_t kStageBytes = 16 * RowSource::kColumnStep * 4 + RowSource::kColumnStep * 4;
void pack_panel(const kernels::DenseKernels& kernels, const RowSource& w, WeightType type, index_t panel, index_t k0,
                index_t count, std::byte* dst, std::byte* stage);

/// The packed form of WeightLayout::two_four (kernels/two_four/two_four_kernels.hpp): its bytes, and those of a panel
/// of 16 rows; its values, from rows of which every four neighbours have two that are not 0 at most.
std::size_t two_four_bytes(MatrixShape shape, WeightType type);
index_t two_four_panel_bytes(WeightType type, index_t k);
void pack_two_four(const RowSource& w, WeightType type, const Execution& how, std::byte* dst);

/// `count` rows of x from `first` on, 8 at most, as kernels take them that walk steps of 32 k: [k / 32][tokens][32],
/// float32 or bf16 by the path, zeros beyond K and beyond the rows. kernel_tokens: 1, 2, 4 or 8.
index_t kernel_tokens(index_t count);
AlignedBuffer<std::byte> step_rows(const Product& p, index_t first, index_t count);

/// y = epilogue(x · Wᵀ) by blocks, by panels read once, and by rows in place.
void multiply_blocks(const Product& p, const PanelSource& w, const Gate<PanelSource>& gate = {});
void multiply_few(const Product& p, const PackedWeights& w, const Gate<PackedWeights>& gate = {});
void multiply_rows(const Product& p, const RowSource& w);

/// What the kernels need to know of packed codes; tokens, x and sums are still to be filled in.
kernels::CodeProduct code_product(const PackedCodes& w);

/// y = epilogue(x · Wᵀ) in integers, x rounded as int8_token says, where the level multiplies_int8().
void multiply_int8(const Product& p, const kernels::Int8Kernels& kernels, const PackedCodes& w);

/// y = epilogue(x · Wᵀ) by bf16 blocks that are decoded beside the products with the ones before. K > 0.
void multiply_code_panels(const Product& p, const kernels::CodeKernels& kernels, const PackedCodes& w,
                          const Gate<PackedCodes>& gate = {});
void multiply_two_four_panels(const Product& p, const kernels::TwoFourKernels& kernels, const PackedWeights& w,
                              const Gate<PackedWeights>& gate = {});

/// y = epilogue(x · Wᵀ) from 2:4 weights by selected activations. f32: any number of tokens, a token has the same bits
/// in every batch; bf16: up to kernels::kTwoFourTokens.
void multiply_selected(const Product& p, const kernels::TwoFourKernels& kernels, const PackedWeights& w,
                       const Gate<PackedWeights>& gate = {});

/// Rows [row, row + rows) and columns [col, col + cols) of y from their sums.
void finish(const Product& p, const float* sums, index_t sums_row, index_t sums_panel, index_t row, index_t rows,
            index_t col, index_t cols);

}  // namespace engine
}  // namespace blockpack::inline BLOCKPACK_ABI
