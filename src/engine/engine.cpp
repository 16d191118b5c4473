// SPDX-License-Identifier: Apache-2.0
/// Which path a product takes, and where its weights come from.

#include "blockpack/core/engine.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "engine/product.hpp"
#include "kernels/table.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {
namespace {

using kernels::kPanelColumns;

/// Tokens up to which row-major weights are multiplied row by row instead of being packed on the way.
constexpr index_t kRowTokens = 8;

/// Packed panels as they are.
class StoredPanels final : public PanelSource {
 public:
  StoredPanels(const PackedWeights& w, const Product& p) : w_(w) {
    step = std::max<index_t>(1, w.shape().cols);
    if (p.path == Path::bf16 && p.x.rows() <= 32) slice_panels = 4;
  }
  PanelBlock prepare(std::byte*, index_t first, index_t, index_t k0, index_t) const override {
    const index_t row_bytes = panel_row_bytes(w_.type());
    const index_t panel_bytes = padded_depth(w_.type(), w_.shape().cols) * row_bytes;
    return {w_.data() + first * panel_bytes + k0 * row_bytes, panel_bytes};
  }

 private:
  const PackedWeights& w_;
};

/// bf16 panels for the f32 path, widened block by block.
class WidenedPanels final : public PanelSource {
 public:
  WidenedPanels(const PackedWeights& w, const kernels::DenseKernels& kernels) : w_(w), kernels_(kernels) {
    step = kernels::kF32Depth;
    scratch_per_panel = step * panel_row_bytes(WeightType::f32);
    slice_panels = 8;
  }
  PanelBlock prepare(std::byte* scratch, index_t first, index_t count, index_t k0, index_t depth) const override {
    const index_t row_bytes = panel_row_bytes(WeightType::bf16);
    const index_t panel_bytes = padded_depth(WeightType::bf16, w_.shape().cols) * row_bytes;
    for (index_t p = 0; p < count; ++p)
      kernels_.widen_panel.fn(
          reinterpret_cast<const std::uint16_t*>(w_.data() + (first + p) * panel_bytes + k0 * row_bytes),
          round_up(depth, kernels::kBf16Step), reinterpret_cast<float*>(scratch + p * scratch_per_panel));
    return {scratch, scratch_per_panel};
  }

 private:
  const PackedWeights& w_;
  const kernels::DenseKernels& kernels_;
};

/// A product with packed weights, and with those of its gate, through panels that `args` say how to make.
template <class Panels, class... Args>
void multiply_panels(const Product& p, const PackedWeights& w, const Gate<PackedWeights>& gate, const Args&... args) {
  const Panels panels(w, args...);
  if (gate.product == nullptr) return multiply_blocks(p, panels);
  const Panels gate_panels(*gate.weights, args...);
  multiply_blocks(p, panels, {gate.product, &gate_panels});
}

/// Rows decoded and packed into scratch, once per call (once per 2048 tokens).
class DecodedPanels final : public PanelSource {
 public:
  DecodedPanels(const RowSource& w, const Product& p) : w_(w), kernels_(p.kernels) {
    type_ = p.path == Path::f32 ? WeightType::f32 : WeightType::bf16;
    // Up to 512 tokens the sums of all tokens fit L2 beside a block of weights; above, a whole slice of weights is
    // decoded first.
    const bool whole = p.x.rows() > 512;
    step = std::max(RowSource::kColumnStep, whole ? round_up(p.k, RowSource::kColumnStep) : 0);
    scratch_per_panel = step * panel_row_bytes(type_);
    reusable = true;
    slice_panels = p.x.rows() > 256 || p.path == Path::f32 ? 8 : 16;
    if (p.x.rows() <= 64) slice_panels = 4;
  }
  PanelBlock prepare(std::byte* scratch, index_t first, index_t count, index_t k0, index_t depth) const override {
    alignas(64) std::byte stage[kStageBytes];
    for (index_t p = 0; p < count; ++p)
      for (index_t k = 0; k < depth; k += RowSource::kColumnStep)
        pack_panel(kernels_, w_, type_, first + p, k0 + k, std::min(RowSource::kColumnStep, depth - k),
                   scratch + p * scratch_per_panel + k * panel_row_bytes(type_), stage);
    return {scratch, scratch_per_panel};
  }

 private:
  const RowSource& w_;
  const kernels::DenseKernels& kernels_;
  WeightType type_;
};

/// The panels of W itself, for x = y · W: row n of W is k = n of the panels, no transposition needed.
class TransposedPanels final : public PanelSource {
 public:
  explicit TransposedPanels(const RowSource& w) : w_(w) {
    step = kernels::kF32Depth;
    scratch_per_panel = step * panel_row_bytes(WeightType::f32);
    reusable = true;
    slice_panels = RowSource::kColumnStep / kPanelColumns;
    whole_slices = true;
  }
  PanelBlock prepare(std::byte* scratch, index_t first, index_t count, index_t k0, index_t depth) const override {
    alignas(64) float row[RowSource::kColumnStep];
    const index_t col = first * kPanelColumns;
    const index_t columns = std::min(count * kPanelColumns, w_.cols - col);
    std::fill(row + columns, row + count * kPanelColumns, 0.0f);
    for (index_t k = 0; k < depth; ++k) {
      w_.decode_f32(w_.self, k0 + k, col, columns, row);
      for (index_t p = 0; p < count; ++p)
        std::memcpy(scratch + p * scratch_per_panel + k * panel_row_bytes(WeightType::f32), row + p * kPanelColumns,
                    kPanelColumns * sizeof(float));
    }
    return {scratch, scratch_per_panel};
  }

 private:
  const RowSource& w_;
};

/// y = epilogue(x · Wᵀ) from 2:4 weights; `mode` is neither automatic nor int8_token. Selections halve the
/// multiply-adds whatever the number of tokens; what beats them is tiles, or dots without selections, in bf16.
void multiply_two_four(ActivationView x, const PackedWeights& w, ResultView y, Activations mode,
                       const ApplyOptions& how, const PackedWeights* gate) {
  const kernels::KernelTable& table = kernels::table_for(w.level());
  const bool few = x.rows() <= kernels::kTwoFourTokens && !how.execution.batch_invariant;
  const bool has_dots = few ? table.two_four.few_f32_bf16_bf16.fn != nullptr
                            : table.dense.block_bf16.multiply.fn != nullptr && x.cols() > 0;
  const bool dots = mode == Activations::bf16 && w.type() == WeightType::bf16 && has_dots;
  const Product p{table.dense,  dots ? Path::bf16 : Path::f32, mode, x, y.cols(), x.cols(), y, how.epilogue,
                  how.execution};
  with_gate(p, gate, [&](const Product& q, const Gate<PackedWeights>& g) {
    if (dots && !few) return multiply_two_four_panels(q, table.two_four, w, g);
    multiply_selected(q, table.two_four, w, g);
  });
}

}  // namespace
}  // namespace engine

using engine::Path;
using engine::Product;

bool multiplies_codes(Isa level) { return kernels::table_for(level).codes.few_f32.fn != nullptr; }

index_t code_tokens(const CodeSpec& spec, Isa level, Activations mode) {
  const kernels::KernelTable& table = kernels::table_for(level);
  if (table.codes.few_f32.fn == nullptr) return 0;
  // Tiles of bf16 beat integer dots. Dots of vectors do not: one makes 2 products a lane, one of VNNI 4.
  const bool tiles = table.dense.block_bf16.multiply.fn != nullptr && level != Isa::avx512vnni;
  if (mode != Activations::int8 || tiles || spec.element != CodeElement::integer) return kCodeTokens;
  // Sums in 16 bits beat the multiply-adds of the same registers where the values of codes are small. AVX-512 has
  // longer ones for the latter alone.
  const auto [lowest, highest] = std::minmax_element(spec.levels.begin(), spec.levels.end());
  const bool small = spec.bits == 4 ? *highest - *lowest <= 32 : spec.bits < 8;
  const bool dots = level == Isa::avx512vnni || level == Isa::amx || level == Isa::neon_dot;
  const bool sums = level == Isa::avx2 || level == Isa::neon;
  return dots || (sums && small) ? std::numeric_limits<index_t>::max() : kCodeTokens;
}

bool decodes_codes(Isa level) {
  const kernels::KernelTable& table = kernels::table_for(level);
  return table.codes.decode_bf16.fn != nullptr && table.dense.block_bf16.multiply.fn != nullptr;
}

Activations resolve(Activations mode, double bits_per_weight, Isa level, bool codes) {
  if (mode != Activations::automatic) return mode;
  const kernels::KernelTable& table = kernels::table_for(level);
  // Steps of absmax / 127 are 6 dB below the error of a format of that many bits. Scalar integers gain nothing.
  const bool has_integer_dots = table.codes.few_int8.fn != nullptr && level != Isa::scalar;
  if (codes) return bits_per_weight <= 6.6 && has_integer_dots ? Activations::int8 : Activations::f32;
  const bool has_bf16_dots = table.dense.few_f32_bf16_bf16.fn != nullptr;
  return bits_per_weight < 32.0 && has_bf16_dots ? Activations::bf16 : Activations::f32;
}

void matmul(ActivationView x, const PackedWeights& w, ResultView y, Activations mode, const ApplyOptions& how,
            const PackedWeights* gate) {
  if (y.rows() == 0 || y.cols() == 0) return;
  if (mode == Activations::int8_token)
    return matmul(engine::RoundedTokens(x, how.execution).view(), w, y, Activations::f32, how, gate);
  const kernels::DenseKernels& kernels = kernels::table_for(w.level()).dense;
  const bool bf16_weights = w.type() == WeightType::bf16;
  mode = resolve(mode, bf16_weights ? 16.0 : 32.0, w.level());
  if (w.layout() == WeightLayout::two_four) return engine::multiply_two_four(x, w, y, mode, how, gate);
  const bool invariant = how.execution.batch_invariant;
  bool few = x.rows() <= engine::kFewTokens && x.cols() > 0;
  Path path = Path::f32;
  if (mode == Activations::bf16 && bf16_weights) {
    // Tiles take up to 16 tokens (8, if made of dots) in about the time of one; only what comes from memory gains by
    // four streams of dots.
    const bool tiles = kernels.block_bf16.multiply.fn != nullptr;
    const bool by_tiles =
        tiles && (invariant || x.rows() > 1 || engine::stay_in_l2(WeightType::bf16, y.cols(), x.cols()));
    const bool by_dots = few && !by_tiles && !invariant && kernels.few_f32_bf16_bf16.fn != nullptr;
    if (by_dots || tiles) path = Path::bf16;
    if (tiles) few = by_dots;
  }
  // f32 kernels agree bit for bit for every number of tokens: batch_invariant needs nothing more.
  const Product p{kernels, path, mode, x, y.cols(), x.cols(), y, how.epilogue, how.execution};
  engine::with_gate(p, gate, [&](const Product& q, const engine::Gate<PackedWeights>& g) {
    if (few) return engine::multiply_few(q, w, g);
    if (path == Path::f32 && bf16_weights) return engine::multiply_panels<engine::WidenedPanels>(q, w, g, kernels);
    engine::multiply_panels<engine::StoredPanels>(q, w, g, p);
  });
}

void matmul(ActivationView x, const RowSource& w, ResultView y, Activations mode, const ApplyOptions& how) {
  if (y.rows() == 0 || y.cols() == 0) return;
  if (mode == Activations::int8_token)
    return matmul(engine::RoundedTokens(x, how.execution).view(), w, y, Activations::f32, how);
  const Isa level = how.execution.level();
  const kernels::DenseKernels& kernels = kernels::table_for(level).dense;
  const bool bf16_weights = w.dense != nullptr ? w.dense_type == WeightType::bf16 : w.decode_bf16 != nullptr;
  mode = resolve(mode, bf16_weights ? 16.0 : 32.0, level);
  Product p{kernels, Path::f32, mode, x, y.cols(), x.cols(), y, how.epilogue, how.execution};

  const bool want_bf16 = mode == Activations::bf16;
  if (x.rows() <= engine::kRowTokens && p.k > 0 && !how.execution.batch_invariant) {
    if (want_bf16 && bf16_weights && kernels.dots_f32_bf16_bf16.fn != nullptr) p.path = Path::bf16;
    return engine::multiply_rows(p, w);
  }
  // What is not exact in bf16 is rounded on its way into the panels, as the mode says.
  if (want_bf16 && kernels.block_bf16.multiply.fn != nullptr) p.path = Path::bf16;
  engine::multiply_blocks(p, engine::DecodedPanels(w, p));
}

void matmul_transpose(MatrixView<const float> y, const RowSource& w, MatrixView<float> x, const ApplyOptions& how) {
  if (x.rows() == 0 || x.cols() == 0) return;
  const kernels::DenseKernels& kernels = kernels::table_for(how.execution.level()).dense;
  const Epilogue none;
  const Product p{kernels, Path::f32, Activations::f32, y, x.cols(), y.cols(), x, none, how.execution};
  engine::multiply_blocks(p, engine::TransposedPanels(w));
}

}  // namespace blockpack::inline BLOCKPACK_ABI
