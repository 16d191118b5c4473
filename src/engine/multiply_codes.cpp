// SPDX-License-Identifier: Apache-2.0
/// Packed codes (layout: kernels/codes/codes_kernels.hpp) and the products of few tokens with them. Tasks are runs of
/// panels; every panel is read once, and nothing but memory should matter.

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "blockpack/core/scalar.hpp"
#include "engine/large_memory.hpp"
#include "engine/product.hpp"
#include "kernels/table.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {
namespace {

using kernels::kCodeOrder;
using kernels::kCodeRows;
using kernels::kCodeStep;

/// How one panel is cut.
struct CodeLayout {
  CodeLayout(index_t cols, const CodeSpec& s)
      : spec(s), steps(ceil_div(s.codes(cols), kCodeStep)), group_steps(s.group / kCodeStep) {
    const index_t line = kCodeRows * group_bits() / 8;
    // Scales of one level fill whole lines, and come after at least 128 k of codes.
    index_t groups = std::max<index_t>(1, 128 / s.group);
    while (line * groups % 64 != 0) groups *= 2;
    if (has_two_levels(s.scale)) groups = 256 / s.group;
    block_steps = groups * s.group / kCodeStep;
    const index_t whole = steps / block_steps, rest = steps % block_steps;
    panel_bytes = checked_add(checked_mul(whole, block_bytes(block_steps), "PackedCodes"),
                              rest > 0 ? block_bytes(rest) : 0, "PackedCodes");
  }
  /// Bits a row has for each of its groups.
  index_t group_bits() const { return scale_bits(spec.scale) * (spec.minimums ? 2 : 1) + (spec.zeros ? 8 : 0); }
  /// Bytes of the scales, or of the minimums, of that many groups of the panel.
  index_t scales_bytes(index_t groups) const {
    return kCodeRows * (ceil_div(groups * scale_bits(spec.scale), 8) + (has_two_levels(spec.scale) ? 2 : 0));
  }
  index_t groups(index_t block) const { return group_steps == 0 ? 2 * block : ceil_div(block, group_steps); }
  index_t block_bytes(index_t block) const {
    const index_t parameters =
        scales_bytes(groups(block)) * (spec.minimums ? 2 : 1) + (spec.zeros ? groups(block) * kCodeRows : 0);
    return block * kernels::code_step_bytes(spec.packed_bits()) + round_up(parameters, 64);
  }

  CodeSpec spec;
  index_t steps;
  index_t group_steps;  ///< 0: two groups a step
  index_t block_steps;
  index_t panel_bytes;
};

/// One row's codes of a step, in place among the 16 rows of the panel, which is zeros there.
void write_codes(const std::uint8_t* codes, int bits, index_t row, std::byte* step) {
  const int low = kernels::low_plane(bits), high = kernels::high_plane(bits);
  const unsigned mask = (1u << low) - 1;
  std::byte* upper = step + kernels::code_step_bytes(low);
  for (index_t e = 0; e < kCodeStep; ++e) {
    const unsigned code = codes[e / 8 * 8 + kCodeOrder[e % 8]];
    step[kernels::plane_byte(low, row, e)] |= std::byte((code & mask) << kernels::plane_bit(low, e));
    if (high > 0) upper[kernels::plane_byte(high, row, e)] |= std::byte(code >> low << kernels::plane_bit(high, e));
  }
}

/// One row's scales, or minimums, of a block of that many groups.
void write_scales(const CodeLayout& layout, std::span<const std::uint32_t> scales, index_t groups, index_t row,
                  std::byte* dst) {
  const bool two_levels = has_two_levels(layout.spec.scale), nibbles = layout.spec.scale == CodeScale::super4;
  const index_t bytes = ceil_div(scale_bits(layout.spec.scale), 8), shift = two_levels ? 16 : 0;
  for (std::size_t i = 0; i < scales.size(); ++i) {
    const auto g = static_cast<index_t>(i);
    if (nibbles) dst[g / 2 * kCodeRows + row] |= std::byte((scales[i] >> 16 & 15u) << (g % 2 * 4));
    for (index_t b = 0; b < bytes && !nibbles; ++b)
      dst[(g * kCodeRows + row) * bytes + b] = static_cast<std::byte>(scales[i] >> (shift + 8 * b));
  }
  if (!two_levels) return;
  std::byte* shared = dst + layout.scales_bytes(groups) - 2 * kCodeRows;
  for (index_t b = 0; b < 2; ++b) shared[2 * row + b] = static_cast<std::byte>(scales[0] >> (8 * b));
}

void pack_row(const CodeLayout& layout, const CodeRow& row, index_t r, std::byte* panel) {
  std::size_t first = 0;
  for (index_t s0 = 0; s0 < layout.steps; s0 += layout.block_steps) {
    const index_t steps = std::min(layout.block_steps, layout.steps - s0);
    const index_t step_bytes = kernels::code_step_bytes(layout.spec.packed_bits());
    for (index_t s = 0; s < steps; ++s)
      write_codes(row.codes.data() + (s0 + s) * kCodeStep, layout.spec.packed_bits(), r, panel + s * step_bytes);
    const index_t groups = layout.groups(steps);
    const std::size_t count = std::min(static_cast<std::size_t>(groups), row.scales.size() - first);
    std::byte* at = panel + steps * step_bytes;
    write_scales(layout, row.scales.subspan(first, count), groups, r, at);
    at += layout.scales_bytes(groups);
    if (layout.spec.minimums) {
      write_scales(layout, row.minimums.subspan(first, count), groups, r, at);
      at += layout.scales_bytes(groups);
    }
    for (std::size_t g = 0; layout.spec.zeros && g < count; ++g)
      at[static_cast<index_t>(g) * kCodeRows + r] = std::byte{row.zeros[first + g]};
    first += count;
    panel += layout.block_bytes(steps);
  }
}

/// Tokens that share one pass over the weights: bounds the memory their coded forms take.
constexpr index_t kCodeChunk = 256;

/// Rows of x for a kernel, as int8 or as float32.
class CodeActivations {
 public:
  /// Rows [first, first + count) of x; `k` columns, `steps` steps.
  CodeActivations(const FewRows& x, index_t first, index_t count, index_t k, index_t steps,
                  const kernels::CodeKernels& kernels, bool int8)
      : tokens_(static_cast<int>(kernel_tokens(count))) {
    const index_t cells = steps * tokens_;
    if (cells == 0) return;
    const auto* rows = static_cast<const float*>(x.data) + first * x.stride;
    if (int8) {
      codes_ = AlignedBuffer<std::int8_t>(cells * kCodeStep);
      scales_ = AlignedBuffer<float>(cells);
      sums_ = AlignedBuffer<std::int16_t>(2 * cells);
      for (index_t m = 0; m < count; ++m)
        kernels.quantize.fn(rows + m * x.stride, k, tokens_, codes_.data() + m * kCodeStep, scales_.data() + m,
                            sums_.data() + 2 * m);
      return;
    }
    floats_ = AlignedBuffer<float>(cells * kCodeStep);
    for (index_t m = 0; m < count; ++m)
      for (index_t k0 = 0; k0 < k; k0 += kCodeStep)
        std::copy_n(rows + m * x.stride + k0, std::min<index_t>(kCodeStep, k - k0),
                    floats_.data() + k0 * tokens_ + m * kCodeStep);
  }
  CodeActivations() = default;

  void give(kernels::CodeProduct& c) const {
    c.tokens = tokens_;
    c.x8 = {codes_.data(), scales_.data(), sums_.data()};
    c.x = floats_.data();
  }

 private:
  int tokens_ = 0;
  AlignedBuffer<std::int8_t> codes_;
  AlignedBuffer<float> scales_;
  AlignedBuffer<std::int16_t> sums_;
  AlignedBuffer<float> floats_;
};

/// The steps of 32 k that kernels read of x.
index_t activation_steps(const kernels::CodeProduct& c) { return c.steps * (c.two_four ? 2 : 1); }

/// y = epilogue(x · Wᵀ) for up to kCodeChunk tokens. More than kCodeTokens
/// take turns with a few panels that stay in L2.
void multiply_codes(const Product& p, const kernels::KernelTable& table, const PackedCodes& w, bool int8,
                    const Gate<PackedCodes>& gate) {
  const kernels::CodeProduct c = code_product(w);
  const kernels::CodeProduct gate_codes = gate.product != nullptr ? code_product(*gate.weights) : c;
  const index_t steps = std::max(activation_steps(c), activation_steps(gate_codes));
  const FewRows rows = few_rows(p);
  const index_t turns = ceil_div(p.x.rows(), kCodeTokens);
  const auto tokens_of = [&p](index_t turn) { return std::min(kCodeTokens, p.x.rows() - turn * kCodeTokens); };
  std::vector<CodeActivations> x(static_cast<std::size_t>(turns));
  const double columns = static_cast<double>(p.k);
  for_each_task(p.execution, columns * static_cast<double>(p.x.rows()), turns, [&](index_t turn) {
    x[static_cast<std::size_t>(turn)] =
        CodeActivations(rows, turn * kCodeTokens, tokens_of(turn), p.k, steps, table.codes, int8);
  });

  const index_t panels = ceil_div(p.n, kCodeRows);
  const index_t per_task = panels <= 64 || turns > 1 ? 4 : 16;
  const double bytes = static_cast<double>(w.bytes());
  const double ns = bytes / 30.0 + bytes * static_cast<double>(p.x.rows()) / 100.0;
  const auto multiply = [&](const Product& q, const kernels::CodeProduct& of, index_t task) {
    const index_t first = task * per_task;
    kernels::CodeProduct part = of;
    part.panels = std::min(per_task, panels - first);
    part.w = of.w + first * of.panel_bytes;
    // `finish` reads whole vectors of 32 columns.
    part.sums_stride = round_up(part.panels * kCodeRows, kernels::kPanelColumns);
    auto sums = AlignedBuffer<float>(part.sums_stride * kernel_tokens(tokens_of(0)));
    part.sums = sums.data();
    const index_t col = first * kCodeRows;
    for (index_t turn = 0; turn < turns; ++turn) {
      x[static_cast<std::size_t>(turn)].give(part);
      if (part.two_four) {
        (int8 ? table.two_four.few_int8_codes : table.two_four.few_f32_codes).fn(part);
      } else {
        (int8 ? table.codes.few_int8 : table.codes.few_f32).fn(part);
      }
      finish(q, sums.data(), part.sums_stride, kernels::kPanelColumns, turn * kCodeTokens, tokens_of(turn), col,
             std::min(p.n - col, part.panels * kCodeRows));
    }
  };
  for_each_task(p.execution, ns, ceil_div(panels, per_task), [&](index_t task) {
    if (gate.product != nullptr) multiply(*gate.product, gate_codes, task);
    multiply(p, c, task);
  });
}

/// The values of codes that are no integers, otherwise null; a table's lie in the spec.
const float* element_values(const CodeSpec& spec) {
  const auto table = [](const auto& value) {
    std::array<float, 256> values{};
    for (std::size_t c = 0; c < values.size(); ++c) values[c] = value(static_cast<std::uint8_t>(c));
    return values;
  };
  static const std::array<std::array<float, 256>, 4> floats = {
      table([](std::uint8_t c) { return static_cast<float>(fp6_e2m3::from_bits(c % 64)); }),
      table([](std::uint8_t c) { return static_cast<float>(fp6_e3m2::from_bits(c % 64)); }),
      table([](std::uint8_t c) { return static_cast<float>(fp8_e4m3::from_bits(c)); }),
      table([](std::uint8_t c) { return static_cast<float>(fp8_e5m2::from_bits(c)); })};
  if (spec.element == CodeElement::integer) return nullptr;
  if (spec.element == CodeElement::table) return spec.values.data();
  return floats[static_cast<std::size_t>(spec.element) - static_cast<std::size_t>(CodeElement::e2m3)].data();
}

/// Some tokens of a product.
struct RowsOf {
  RowsOf(const Product& p, index_t first, index_t tokens)
      : epilogue(p.epilogue), product{p.kernels,
                                      p.path,
                                      p.rounding,
                                      p.x.block(first, 0, tokens, p.k),
                                      p.n,
                                      p.k,
                                      p.y.block(first, 0, tokens, p.n),
                                      epilogue,
                                      p.execution,
                                      p.kept} {
    if (!epilogue.token_scales.empty())
      epilogue.token_scales =
          epilogue.token_scales.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(tokens));
    if (epilogue.gate.data() != nullptr) epilogue.gate = epilogue.gate.rows_from(first, tokens);
    if (epilogue.residual.data() != nullptr) epilogue.residual = epilogue.residual.rows_from(first, tokens);
  }
  RowsOf(const RowsOf&) = delete;
  RowsOf& operator=(const RowsOf&) = delete;

  Epilogue epilogue;
  Product product;
};

}  // namespace

kernels::CodeProduct code_product(const PackedCodes& w) {
  const CodeSpec& spec = w.spec();
  const CodeLayout layout(w.shape().cols, spec);
  kernels::CodeProduct c{};
  c.w = reinterpret_cast<const unsigned char*>(w.data());
  c.panel_bytes = layout.panel_bytes;
  c.panels = ceil_div(w.shape().rows, kCodeRows);
  c.steps = layout.steps;
  c.block_steps = layout.block_steps;
  c.block_bytes = layout.block_bytes(layout.block_steps);
  c.group_steps = layout.group_steps;
  c.bits = spec.packed_bits();
  c.two_four = spec.two_four;
  c.scale = static_cast<int>(spec.scale);
  c.zeros = spec.zeros;
  c.minimums = spec.minimums;
  c.zero = spec.zero;
  c.multiplier = spec.multiplier;
  std::copy(spec.levels.begin(), spec.levels.end(), c.levels);
  c.values = element_values(spec);
  c.mantissa_bits = spec.element == CodeElement::e2m3 || spec.element == CodeElement::e4m3 ? 3 : 2;
  return c;
}

}  // namespace engine

std::size_t PackedCodes::bytes_needed(MatrixShape shape, const CodeSpec& spec) {
  const engine::CodeLayout layout(shape.cols, spec);
  return static_cast<std::size_t>(
      checked_mul(ceil_div(shape.rows, kernels::kCodeRows), layout.panel_bytes, "PackedCodes"));
}

PackedCodes PackedCodes::pack(const CodeSource& w, const Execution& how, std::span<std::byte> memory) {
  PackedCodes packed;
  packed.shape_ = {w.rows, w.cols};
  packed.spec_ = w.spec;
  packed.bytes_ = bytes_needed(packed.shape_, w.spec);
  if (packed.bytes_ == 0) return packed;
  const std::shared_ptr<std::byte> block = engine::packed_memory("PackedCodes::pack", memory, packed.bytes_);
  std::byte* dst = block.get();
  packed.owner_ = block;
  packed.data_ = dst;
  const engine::CodeLayout layout(w.cols, w.spec);
  parallel_for(how, ceil_div(w.rows, kernels::kCodeRows), [&](index_t panel) {
    std::byte* out = dst + panel * layout.panel_bytes;
    std::memset(out, 0, static_cast<std::size_t>(layout.panel_bytes));
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(layout.steps * kernels::kCodeStep));
    std::vector<std::uint32_t> scales(static_cast<std::size_t>(w.spec.groups(w.cols)));
    std::vector<std::uint32_t> minimums(w.spec.minimums ? scales.size() : 0);
    std::vector<std::uint8_t> zeros(w.spec.zeros ? scales.size() : 0);
    const CodeRow row{std::span(codes).first(static_cast<std::size_t>(w.spec.codes(w.cols))), scales, minimums, zeros};
    for (index_t r = 0; r < kernels::kCodeRows && panel * kernels::kCodeRows + r < w.rows; ++r) {
      w.read_row(w.self, panel * kernels::kCodeRows + r, row);
      engine::pack_row(layout, {codes, scales, minimums, zeros}, r, out);
    }
  });
  return packed;
}

void matmul(ActivationView x, const PackedCodes& w, ResultView y, Activations mode, const ApplyOptions& how,
            const PackedCodes* gate) {
  if (y.rows() == 0 || y.cols() == 0) return;
  const kernels::KernelTable& table = kernels::table_for(how.execution.level());
  if (table.codes.few_f32.fn == nullptr)
    throw UnsupportedError("matmul: level " + std::string(to_string(table.level)) + " has no kernels for packed codes");
  engine::Product p{table.dense, engine::Path::bf16, mode, x, y.cols(), x.cols(), y, how.epilogue, how.execution};
  if (mode == Activations::int8_token) {
    if (gate == nullptr && multiplies_int8(w.spec(), x.cols(), table.level))
      return engine::multiply_int8(p, table.int8, w);
    return matmul(engine::RoundedTokens(x, how.execution).view(), w, y, Activations::f32, how, gate);
  }
  const bool many = x.rows() > kCodeTokens || how.execution.batch_invariant;
  if (many && mode == Activations::bf16 && decodes_codes(table.level) && x.cols() > 0)
    return engine::with_gate(p, gate, [&](const engine::Product& q, const engine::Gate<PackedCodes>& g) {
      engine::multiply_code_panels(q, table.codes, w, g);
    });
  const auto integers = [](const PackedCodes& v) { return v.spec().element == CodeElement::integer; };
  const bool int8 = mode == Activations::int8 && table.codes.few_int8.fn != nullptr && integers(w) &&
                    (gate == nullptr || integers(*gate));
  p.path = engine::Path::f32;
  if (int8) p.rounding = Activations::f32;
  engine::with_gate(p, gate, [&](const engine::Product& all, const engine::Gate<PackedCodes>& all_gate) {
    for (index_t first = 0; first < y.rows(); first += engine::kCodeChunk) {
      const index_t tokens = std::min(engine::kCodeChunk, y.rows() - first);
      const engine::RowsOf chunk(all, first, tokens);
      if (all_gate.product == nullptr) {
        engine::multiply_codes(chunk.product, table, w, int8, {});
      } else {
        const engine::RowsOf gate_chunk(*all_gate.product, first, tokens);
        engine::multiply_codes(chunk.product, table, w, int8, {&gate_chunk.product, gate});
      }
    }
  });
}

}  // namespace blockpack::inline BLOCKPACK_ABI
