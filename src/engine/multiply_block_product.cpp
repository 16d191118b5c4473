// SPDX-License-Identifier: Apache-2.0
/// Block products through ranks, on the kernels of the dense family.
///
/// Few tokens: time = bytes of the packed parts / read bandwidth. Two passes with a barrier between: all values of the
/// first stage, then output block by output block.
///
/// Many tokens: time = operations / peak of the dense kernels. Runs: a task takes a slice of tokens and a group of
/// output blocks, and computes the values that the group alone needs; they stay in L2 (768 KB). x passes from the
/// last-level cache once for each group, an input block fetched during the product with the one before: slices of 28
/// to 96 tokens whose x stays in L2 take 1.02 to 1.2 times as long, for all weights pass for each of them. The sums of
/// a panel are a step of the next stage once they are rounded, so nothing is transposed in between. Coupling: every
/// input block's values go to every output block. 128 tokens at a time, one set of tasks takes 64 ranks of 64 tokens
/// through the first stage of all input blocks and the coupling, the next takes output blocks.

#include <algorithm>
#include <cstring>

#include "blockpack/core/block_product.hpp"
#include "engine/product.hpp"
#include "kernels/table.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {
namespace {

using kernels::kBf16Step;
using kernels::kF32Depth;
using kernels::kF32XStride;
using kernels::kPanelColumns;

/// Panels whose sums are finished together, and whose widened weights lie in scratch memory together.
constexpr index_t kGroupPanels = 8;
/// Tokens of a slice, fewer where their values would take more bytes.
constexpr index_t kSliceTokens = 256, kSliceBytes = index_t{3} << 18;
/// Tokens between the two stages of a coupled product; tokens and panels of ranks of one task of its first stage.
constexpr index_t kCoupledTokens = 128, kCoupleTokens = 64, kCouplePanels = 2;

/// Packed rows of x, or of values between the stages, in the tile order of the block kernels: bf16 one block of the
/// whole depth, f32 blocks of kF32Depth.
struct TileRows {
  Path path = Path::f32;
  index_t depth = 0;  ///< k, padded to whole steps of bf16
  index_t tile_rows = 0, tiles = 0;
  std::byte* data = nullptr;

  index_t block_bytes() const noexcept { return tiles * tile_rows * kF32XStride * 4; }
  index_t bytes() const noexcept {
    return path == Path::bf16 ? tiles * tile_rows * depth * 2 : ceil_div(depth, kF32Depth) * block_bytes();
  }
  index_t tile_bytes() const noexcept {
    return path == Path::bf16 ? tile_rows * depth * 2 : tile_rows * kF32XStride * 4;
  }
  /// Tile `tile` at k0: of the block it lies in for f32 (a multiple of kF32Depth), of any step for bf16.
  std::byte* at(index_t tile, index_t k0) const noexcept {
    const index_t offset = path == Path::bf16 ? k0 * tile_rows * 2 : k0 / kF32Depth * block_bytes();
    return data + offset + tile * tile_bytes();
  }
};

/// One product of many tokens: what stays the same for all its tasks.
struct Blocks {
  const Product& p;
  const PackedBlocks& w;
  const kernels::KernelTable& table;
  index_t tile_rows, tiles;
  index_t slice_tiles;

  const kernels::BlockKernel& kernel() const {
    return p.path == Path::f32 ? p.kernels.block_f32 : p.kernels.block_bf16;
  }
  TileRows rows_of(index_t k, index_t tile_count) const {
    return {p.path, round_up(k, kBf16Step), tile_rows, tile_count, nullptr};
  }
};

index_t in_width(const PackedBlocks& w, index_t l) {
  return std::clamp<index_t>(w.shape().cols - l * w.in_block(), 0, w.in_block());
}

/// A slice of tokens: its tiles, and its rows without those beyond the last token.
struct Slice {
  index_t tile0, tiles, rows;
};

Slice slice_at(const Blocks& b, index_t tokens, index_t slice) {
  const index_t tile0 = slice * b.slice_tiles;
  const index_t tiles = std::min(b.slice_tiles, b.tiles - tile0);
  return {tile0, tiles, std::min(tokens - tile0 * b.tile_rows, tiles * b.tile_rows)};
}

/// What a product is followed by, fetched into L2 meanwhile: weights, and rows that do not wait there already.
struct Next {
  const std::byte* w = nullptr;
  const std::byte* x = nullptr;
  index_t x_bytes = 0;
};

/// First byte of a panel of packed weights.
const std::byte* panel_of(const PackedWeights& w, index_t panel) {
  return w.data() + panel * padded_depth(w.type(), w.shape().cols) * panel_row_bytes(w.type());
}

/// sums (+)= rows · panels [panel0, panel0 + panels) of w, over k of them; panel i at sums + i * slice rows * 32.
/// `widened` holds kGroupPanels blocks of f32 where bf16 weights are multiplied in f32; panels is then no more.
void multiply(const Blocks& b, const TileRows& x, index_t tile0, index_t rows, index_t tiles, const PackedWeights& w,
              index_t k, index_t panel0, index_t panels, float* sums, bool accumulate, float* widened,
              const Next& after) {
  const index_t sums_panel = tiles * b.tile_rows * kPanelColumns;
  if (k == 0) {
    if (!accumulate) std::fill_n(sums, panels * sums_panel, 0.0f);
    return;
  }
  const bool widen = b.p.path == Path::f32 && w.type() == WeightType::bf16;
  const index_t row_bytes = panel_row_bytes(w.type());
  const index_t panel_bytes = padded_depth(w.type(), w.shape().cols) * row_bytes;
  const index_t step = b.p.path == Path::f32 ? kF32Depth : kernels::kBf16Depth;
  for (index_t k0 = 0; k0 < k; k0 += step) {
    const index_t depth = std::min(step, k - k0);
    kernels::BlockProduct product{};
    product.x = x.at(tile0, k0);
    product.x_tile_bytes = x.tile_bytes();
    product.tiles = tiles;
    product.tile_rows = b.tile_rows;
    product.rows = rows;
    product.w = w.data() + panel0 * panel_bytes + k0 * row_bytes;
    product.w_panel_bytes = panel_bytes;
    if (widen) {
      for (index_t i = 0; i < panels; ++i)
        b.p.kernels.widen_panel.fn(
            reinterpret_cast<const std::uint16_t*>(w.data() + (panel0 + i) * panel_bytes + k0 * row_bytes),
            round_up(depth, kBf16Step), widened + i * kF32Depth * kPanelColumns);
      product.w = widened;
      product.w_panel_bytes = kF32Depth * kPanelColumns * 4;
    }
    product.panels = panels;
    product.depth = b.p.path == Path::f32 ? depth : round_up(depth, kBf16Step);
    product.sums = sums;
    product.sums_panel = sums_panel;
    product.accumulate = accumulate || k0 > 0;
    const bool last = k0 + step >= k;
    product.next_w = widen ? nullptr : last ? after.w : panel_of(w, panel0) + (k0 + step) * row_bytes;
    product.next_x = last ? after.x : nullptr;
    product.next_x_bytes = last ? after.x_bytes : 0;
    b.kernel().multiply.fn(product);
  }
}

/// Columns [skip, skip + count) of the sums of a tile in bf16, rows 32 apart.
void store_some(const Blocks& b, const float* sums, index_t rows, index_t skip, index_t count, std::uint16_t* dst) {
  constexpr index_t kRows = 16;
  std::uint16_t some[kRows * kBf16Step];
  const std::uint16_t* src = some + skip;
  for (index_t row = 0; row < rows; row += kRows, dst += kRows * kBf16Step) {
    const index_t n = std::min(kRows, rows - row);
    b.p.kernels.pack_bf16_f32.fn(sums + row * kPanelColumns, n * kPanelColumns, some, kBf16Step);
    if (count == kBf16Step / 2) {  // a copy of known size is two instructions, any other a call
      for (index_t r = 0; r < n; ++r) std::memcpy(dst + r * kBf16Step, src + r * kBf16Step, kBf16Step);
    } else {
      for (index_t r = 0; r < n; ++r)
        std::memcpy(dst + r * kBf16Step, src + r * kBf16Step, static_cast<std::size_t>(count) * 2);
    }
  }
}

/// Columns [col, col + count) of the sums of some panels, rounded, as k [k0, k0 + count) of the next stage.
void store_values(const Blocks& b, const float* sums, index_t col, index_t count, index_t rows, const TileRows& z,
                  index_t tile0, index_t tiles, index_t k0) {
  const index_t tile_floats = b.tile_rows * kPanelColumns;
  while (count > 0) {
    const index_t skip = col % kPanelColumns, place = k0 % kBf16Step;
    const index_t n = std::min({count, kPanelColumns - skip, kBf16Step - place});
    for (index_t t = 0; t < tiles; ++t) {
      const float* src = sums + (col / kPanelColumns * tiles + t) * tile_floats;
      const index_t real = std::clamp<index_t>(rows - t * b.tile_rows, 0, b.tile_rows);
      if (b.p.path == Path::bf16) {
        auto* dst = reinterpret_cast<std::uint16_t*>(z.at(tile0 + t, k0 - place));
        if (n == kBf16Step) {
          b.p.kernels.pack_bf16_f32.fn(src, real * kPanelColumns, dst, kBf16Step);
        } else {
          store_some(b, src, real, skip, n, dst + place);
        }
        std::memset(dst + real * kBf16Step, 0, static_cast<std::size_t>((b.tile_rows - real) * kBf16Step) * 2);
        continue;
      }
      float* dst = reinterpret_cast<float*>(z.at(tile0 + t, k0)) + k0 % kF32Depth;
      for (index_t r = 0; r < b.tile_rows; ++r, dst += kF32XStride) {
        if (r >= real) {
          std::memset(dst, 0, static_cast<std::size_t>(n) * sizeof(float));
          continue;
        }
        std::memcpy(dst, src + r * kPanelColumns + skip, static_cast<std::size_t>(n) * sizeof(float));
        if (b.p.rounding == Activations::bf16) b.p.kernels.round_bf16.fn(dst, n);
      }
    }
    col += n;
    k0 += n;
    count -= n;
  }
}

/// Zeros behind the last of k values, up to a whole step: bf16 kernels read them.
void pad_values(const Blocks& b, const TileRows& z, index_t k) {
  if (b.p.path != Path::bf16 || k == z.depth) return;
  for (index_t t = 0; t < z.tiles; ++t)
    std::memset(z.at(t, z.depth - kBf16Step), 0, static_cast<std::size_t>(b.tile_rows * kBf16Step) * 2);
}

/// What output block k is read from first, or null.
const std::byte* first_weights(const Blocks& b, index_t k) {
  const PackedBlocks::Output& o = b.w.outputs()[static_cast<std::size_t>(k)];
  return o.left.shape().cols > 0 ? o.left.data() : o.tiles.empty() ? nullptr : o.tiles[0].w.data();
}

/// Output block k of a slice from its values z (tile `z_tile0` is the slice's first) and from the tiles of x. `after`
/// are the weights that are read next.
void finish_output(const Blocks& b, const std::vector<TileRows>& x, const TileRows& z, index_t z_tile0, index_t k,
                   const Slice& s, index_t first_token, float* widened, const std::byte* after) {
  const PackedBlocks::Output& o = b.w.outputs()[static_cast<std::size_t>(k)];
  struct Part {
    const TileRows& x;
    index_t tile0;
    const PackedWeights& w;
    index_t k;
  };
  std::vector<Part> parts = {{z, z_tile0, o.left, o.left.shape().cols}};
  for (const PackedBlocks::Tile& tile : o.tiles)
    parts.push_back({x[static_cast<std::size_t>(tile.in_block)], s.tile0, tile.w, in_width(b.w, tile.in_block)});

  const index_t col0 = k * b.w.out_block();
  const index_t cols = std::clamp<index_t>(b.w.shape().rows - col0, 0, b.w.out_block());
  const index_t panels = ceil_div(cols, kPanelColumns);
  const index_t sums_panel = s.tiles * b.tile_rows * kPanelColumns;
  auto sums = AlignedBuffer<float>::uninitialized(std::min(panels, kGroupPanels) * sums_panel);
  for (index_t panel = 0; panel < panels; panel += kGroupPanels) {
    const index_t count = std::min(kGroupPanels, panels - panel);
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const Part& part = parts[i];
      const std::byte* next = i + 1 < parts.size()     ? panel_of(parts[i + 1].w, panel)
                              : panel + count < panels ? panel_of(parts[0].w, panel + count)
                                                       : after;
      multiply(b, part.x, part.tile0, s.rows, s.tiles, part.w, part.k, panel, count, sums.data(), i > 0, widened,
               {next});
    }
    const index_t col = panel * kPanelColumns;
    finish(b.p, sums.data(), kPanelColumns, sums_panel, first_token + s.tile0 * b.tile_rows, s.rows, col0 + col,
           std::min(cols - col, count * kPanelColumns));
  }
}

/// Packs rows [first, first + count) of x, every input block by itself.
void pack_x(const Blocks& b, const std::vector<TileRows>& x, index_t first, index_t count) {
  for_each_task(b.p, b.tiles, [&](index_t tile) {
    for (index_t r = 0; r < b.tile_rows; ++r) {
      const index_t row = tile * b.tile_rows + r;
      for (std::size_t l = 0; l < x.size(); ++l) {
        const index_t col = static_cast<index_t>(l) * b.w.in_block();
        const index_t width = in_width(b.w, static_cast<index_t>(l));
        if (b.p.path == Path::bf16) {
          auto* dst = reinterpret_cast<std::uint16_t*>(x[l].at(tile, 0)) + r * kBf16Step;
          const index_t step = b.tile_rows * kBf16Step;
          if (row < count && width > 0) {
            load_bf16(b.p, first + row, col, width, dst, step);
          } else {
            for (index_t k = 0; k < width; k += kBf16Step, dst += step) std::memset(dst, 0, 2 * kBf16Step);
          }
          continue;
        }
        for (index_t k0 = 0; k0 < width; k0 += kF32Depth) {
          float* dst = reinterpret_cast<float*>(x[l].at(tile, k0)) + r * kF32XStride;
          const index_t n = std::min(kF32Depth, width - k0);
          if (row < count) {
            load_f32(b.p, first + row, col + k0, n, dst);
          } else {
            std::memset(dst, 0, static_cast<std::size_t>(n) * sizeof(float));
          }
        }
      }
    }
  });
}

AlignedBuffer<float> widening_memory(const Blocks& b) {
  const bool widen = b.p.path == Path::f32 && b.w.type() == WeightType::bf16;
  return AlignedBuffer<float>::uninitialized(widen ? kGroupPanels * kF32Depth * kPanelColumns : 0);
}

/// Panels [panel, end) of the ranks of one input block, and the runs of a group that lie in them.
struct Stretch {
  index_t in_block, panel, end;
  std::span<const PackedBlocks::GroupRun> runs;
};

/// The panels of a group of output blocks: each once.
std::vector<Stretch> stretches_of(const PackedBlocks::Group& group) {
  std::vector<Stretch> all;
  for (std::size_t i = 0; i < group.runs.size(); ++i) {
    const PackedBlocks::Run& run = group.runs[i].run;
    const index_t panel = run.first / kPanelColumns, end = ceil_div(run.first + run.count, kPanelColumns);
    if (all.empty() || all.back().in_block != run.in_block || all.back().end < panel) {
      all.push_back({run.in_block, panel, end, std::span(&group.runs[i], 1)});
    } else {
      all.back().end = std::max(all.back().end, end);
      all.back().runs = std::span(all.back().runs.data(), all.back().runs.size() + 1);
    }
  }
  return all;
}
const std::byte* first_panel(const Blocks& b, const Stretch& s) {
  return panel_of(b.w.right()[static_cast<std::size_t>(s.in_block)], s.panel);
}

/// Runs: a slice of tokens and a group of output blocks are a task.
void multiply_runs(const Blocks& b, const std::vector<TileRows>& x, index_t first, index_t tokens) {
  const auto groups = static_cast<index_t>(b.w.groups().size());
  for_each_task(b.p, ceil_div(b.tiles, b.slice_tiles) * groups, [&](index_t task) {
    const PackedBlocks::Group& group = b.w.groups()[static_cast<std::size_t>(task % groups)];
    const Slice s = slice_at(b, tokens, task / groups);
    std::vector<TileRows> z;
    index_t bytes = 0;
    for (index_t i = 0; i < group.count; ++i) {
      z.push_back(b.rows_of(b.w.outputs()[static_cast<std::size_t>(group.first + i)].left.shape().cols, s.tiles));
      bytes += z.back().bytes();
    }
    auto values = AlignedBuffer<std::byte>::uninitialized(bytes);
    std::byte* at = values.data();
    for (index_t i = 0; i < group.count; ++i) {
      TileRows& rows = z[static_cast<std::size_t>(i)];
      rows.data = at;
      at += rows.bytes();
      pad_values(b, rows, b.w.outputs()[static_cast<std::size_t>(group.first + i)].left.shape().cols);
    }
    auto sums = AlignedBuffer<float>::uninitialized(kGroupPanels * s.tiles * b.tile_rows * kPanelColumns);
    const AlignedBuffer<float> widened = widening_memory(b);
    auto* wide = const_cast<float*>(widened.data());
    const std::vector<Stretch> stretches = stretches_of(group);
    const std::byte* first_output = first_weights(b, group.first);
    for (std::size_t i = 0; i < stretches.size(); ++i) {
      const Stretch& stretch = stretches[i];
      const auto l = static_cast<std::size_t>(stretch.in_block);
      for (index_t panel = stretch.panel; panel < stretch.end; panel += kGroupPanels) {
        const index_t panels = std::min(kGroupPanels, stretch.end - panel);
        const std::byte* next = panel + panels < stretch.end ? panel_of(b.w.right()[l], panel + panels)
                                : i + 1 < stretches.size()   ? first_panel(b, stretches[i + 1])
                                                             : first_output;
        const bool last = panel + panels >= stretch.end;
        const TileRows& x_after =
            x[static_cast<std::size_t>(stretches[last && i + 1 < stretches.size() ? i + 1 : i].in_block)];
        multiply(b, x[l], s.tile0, s.rows, s.tiles, b.w.right()[l], in_width(b.w, stretch.in_block), panel, panels,
                 sums.data(), false, wide, {next, x_after.at(s.tile0, 0), last ? s.tiles * x_after.tile_bytes() : 0});
        for (const auto& [output, run] : stretch.runs) {
          const index_t from = std::max(run.first, panel * kPanelColumns);
          const index_t to = std::min(run.first + run.count, (panel + panels) * kPanelColumns);
          store_values(b, sums.data(), from - panel * kPanelColumns, to - from, s.rows,
                       z[static_cast<std::size_t>(output - group.first)], 0, s.tiles, run.offset + from - run.first);
        }
      }
    }
    const PackedBlocks::Group& next_group = b.w.groups()[static_cast<std::size_t>((task + 1) % groups)];
    for (index_t i = 0; i < group.count; ++i)
      finish_output(b, x, z[static_cast<std::size_t>(i)], 0, group.first + i, s, first, wide,
                    i + 1 < group.count       ? first_weights(b, group.first + i + 1)
                    : next_group.runs.empty() ? first_weights(b, next_group.first)
                                              : first_panel(b, stretches_of(next_group).front()));
  });
}

/// Coupling: first stage and coupling of a few ranks at a time, then output blocks.
void multiply_coupled(const Blocks& b, const std::vector<TileRows>& x, const std::vector<TileRows>& z, index_t first,
                      index_t tokens) {
  const index_t outputs = static_cast<index_t>(b.w.outputs().size()), inputs = static_cast<index_t>(x.size());
  const index_t slices = ceil_div(b.tiles, b.slice_tiles);
  const index_t panels = z[0].depth / kPanelColumns;
  const index_t groups = ceil_div(panels, kCouplePanels);
  for_each_task(b.p, slices * groups, [&](index_t task) {
    const index_t panel = task % groups * kCouplePanels;
    const index_t count = std::min(kCouplePanels, panels - panel);
    const Slice s = slice_at(b, tokens, task / groups);
    const index_t panel_sums = s.tiles * b.tile_rows * kPanelColumns;
    auto sums = AlignedBuffer<float>::uninitialized(inputs * count * panel_sums);
    auto coupled = AlignedBuffer<float>::uninitialized(outputs * panel_sums);
    const AlignedBuffer<float> widened = widening_memory(b);
    for (index_t l = 0; l < inputs; ++l) {
      const PackedWeights& right = b.w.right()[static_cast<std::size_t>(l)];
      const std::byte* next = l + 1 < inputs           ? panel_of(b.w.right()[static_cast<std::size_t>(l + 1)], panel)
                              : panel + count < panels ? panel_of(b.w.right()[0], panel + count)
                                                       : b.w.right()[0].data();
      const TileRows& x_after = x[static_cast<std::size_t>(l + 1 < inputs ? l + 1 : 0)];
      multiply(b, x[static_cast<std::size_t>(l)], s.tile0, s.rows, s.tiles, right, in_width(b.w, l), panel, count,
               sums.data() + l * count * panel_sums, false, const_cast<float*>(widened.data()),
               {next, x_after.at(s.tile0, 0), s.tiles * x_after.tile_bytes()});
    }
    for (index_t i = 0; i < count; ++i) {
      kernels::Couple c{};
      c.v = sums.data() + i * panel_sums;
      c.v_block = count * panel_sums;
      c.v_row = c.z_row = kPanelColumns;
      c.s = b.w.coupling() + (panel + i) * outputs * inputs * kPanelColumns;
      c.in_blocks = inputs;
      c.out_blocks = outputs;
      c.tokens = s.rows;
      c.z = coupled.data();
      c.z_block = panel_sums;
      b.table.couple.couple.fn(c);
      for (index_t k = 0; k < outputs; ++k)
        store_values(b, coupled.data() + k * panel_sums, 0, kPanelColumns, s.rows, z[static_cast<std::size_t>(k)],
                     s.tile0, s.tiles, (panel + i) * kPanelColumns);
    }
  });
  for_each_task(b.p, slices * outputs, [&](index_t task) {
    const index_t k = task % outputs;
    const Slice s = slice_at(b, tokens, task / outputs);
    const AlignedBuffer<float> widened = widening_memory(b);
    finish_output(b, x, z[static_cast<std::size_t>(k)], s.tile0, k, s, first, const_cast<float*>(widened.data()),
                  first_weights(b, (k + 1) % outputs));
  });
}

/// Values of a token that a task keeps, at most.
index_t most_values(const PackedBlocks& w) {
  index_t most = 0;
  for (const PackedBlocks::Group& group : w.groups()) {
    index_t values = 0;
    for (index_t i = 0; i < group.count; ++i)
      values += w.outputs()[static_cast<std::size_t>(group.first + i)].left.shape().cols;
    most = std::max(most, values);
  }
  return most;
}

void multiply_many_tokens(const Product& p, const PackedBlocks& w, const kernels::KernelTable& table) {
  const bool coupled = w.coupling() != nullptr;
  const index_t chunk = coupled ? kCoupledTokens : kTokenChunk;
  for (index_t first = 0; first < p.x.rows(); first += chunk) {
    const index_t tokens = std::min(chunk, p.x.rows() - first);
    Blocks b{p, w, table, 0, 0, 0};
    b.tile_rows = balanced(tokens, b.kernel().max_tile_rows);
    b.tiles = ceil_div(tokens, b.tile_rows);
    const index_t value_bytes = most_values(w) * (p.path == Path::f32 ? 4 : 2);
    const index_t slice_tokens =
        coupled ? kCoupleTokens
                : std::clamp<index_t>(kSliceBytes / std::max<index_t>(1, value_bytes), 32, kSliceTokens);
    b.slice_tiles = balanced(b.tiles, std::max<index_t>(1, slice_tokens / b.tile_rows));

    std::vector<TileRows> x, z;
    index_t bytes = 0;
    for (std::size_t l = 0; l < w.right().size(); ++l) {
      x.push_back(b.rows_of(in_width(w, static_cast<index_t>(l)), b.tiles));
      bytes = checked_add(bytes, x.back().bytes(), "matmul");
    }
    for (std::size_t k = 0; coupled && k < w.outputs().size(); ++k) {
      z.push_back(b.rows_of(w.outputs()[k].left.shape().cols, b.tiles));
      bytes = checked_add(bytes, z.back().bytes(), "matmul");
    }
    const ScratchMemory memory(static_cast<std::size_t>(bytes));
    std::byte* at = memory.data();
    for (std::vector<TileRows>* rows : {&x, &z})
      for (TileRows& r : *rows) {
        r.data = at;
        at += r.bytes();
      }
    pack_x(b, x, first, tokens);
    if (coupled) {
      multiply_coupled(b, x, z, first, tokens);
    } else {
      multiply_runs(b, x, first, tokens);
    }
  }
}

void multiply_few_tokens(const Product& p, const PackedBlocks& w, const kernels::KernelTable& table) {
  const auto& slot = p.path == Path::bf16           ? p.kernels.few_f32_bf16_bf16
                     : w.type() == WeightType::bf16 ? p.kernels.few_f32_f32_bf16
                                                    : p.kernels.few_f32_f32_f32;
  const index_t tokens = p.x.rows();
  const auto inputs = static_cast<index_t>(w.right().size()), outputs = static_cast<index_t>(w.outputs().size());
  const auto multiply = [&](const void* x, index_t x_stride, const PackedWeights& m, index_t k, index_t panel,
                            index_t panels, float* sums, index_t sums_stride) {
    const index_t panel_bytes = padded_depth(m.type(), m.shape().cols) * panel_row_bytes(m.type());
    slot.fn({x, x_stride, tokens, m.data() + panel * panel_bytes, panel_bytes, panels, k, sums, sums_stride});
  };

  // x, rounded, a row of all input blocks after another; in place where nothing is to be done.
  std::vector<FewRows> x;
  for (index_t l = 0; l < inputs; ++l) {
    const index_t width = in_width(w, l);
    Product part{p.kernels, p.path, p.rounding, p.x, p.n, width, p.y, p.epilogue, p.execution};
    part.x = p.x.block(0, std::min(l * w.in_block(), p.k), tokens, width);
    x.push_back(few_rows(part));
  }

  // All values of the first stage: a row for each token, the panels of all input blocks side by side.
  struct Part {
    index_t l, panel, panels;
  };
  std::vector<Part> parts;
  std::vector<index_t> offset;
  index_t ranks = 0;
  for (index_t l = 0; l < inputs; ++l) {
    const index_t panels = ceil_div(w.right()[static_cast<std::size_t>(l)].shape().rows, kPanelColumns);
    offset.push_back(ranks);
    ranks += panels * kPanelColumns;
    for (index_t panel = 0; panel < panels; panel += kGroupPanels)
      parts.push_back({l, panel, std::min(kGroupPanels, panels - panel)});
  }
  auto values = AlignedBuffer<float>::uninitialized(checked_mul(tokens, ranks, "matmul"));
  for_each_task(p, static_cast<index_t>(parts.size()), [&](index_t task) {
    const Part& part = parts[static_cast<std::size_t>(task)];
    const auto l = static_cast<std::size_t>(part.l);
    float* sums = values.data() + offset[l] + part.panel * kPanelColumns;
    if (in_width(w, part.l) == 0) {
      for (index_t m = 0; m < tokens; ++m) std::fill_n(sums + m * ranks, part.panels * kPanelColumns, 0.0f);
      return;
    }
    multiply(x[l].data, x[l].stride, w.right()[l], in_width(w, part.l), part.panel, part.panels, sums, ranks);
  });

  const index_t panels = ceil_div(w.out_block(), kPanelColumns);
  const index_t groups = std::max<index_t>(1, ceil_div(panels, kGroupPanels));
  for_each_task(p, outputs * groups, [&](index_t task) {
    const index_t k = task / groups;
    const PackedBlocks::Output& o = w.outputs()[static_cast<std::size_t>(k)];
    const index_t col0 = k * w.out_block() + task % groups * kGroupPanels * kPanelColumns;
    const index_t cols =
        std::min({kGroupPanels * kPanelColumns, w.shape().rows - col0, (k + 1) * w.out_block() - col0});
    if (cols <= 0) return;
    const index_t panel = task % groups * kGroupPanels, count = ceil_div(cols, kPanelColumns);
    const index_t ranks_k = o.left.shape().cols, depth = round_up(ranks_k, kBf16Step);
    auto z = AlignedBuffer<float>::uninitialized(tokens * depth);
    for (index_t m = 0; m < tokens; ++m) std::fill_n(z.data() + m * depth + ranks_k, depth - ranks_k, 0.0f);
    for (const PackedBlocks::Run& run : o.runs)
      for (index_t m = 0; m < tokens; ++m)
        std::memcpy(z.data() + m * depth + run.offset,
                    values.data() + m * ranks + offset[static_cast<std::size_t>(run.in_block)] + run.first,
                    static_cast<std::size_t>(run.count) * sizeof(float));
    for (index_t i = 0; w.coupling() != nullptr && i < depth; i += kPanelColumns) {
      kernels::Couple c{};
      c.v = values.data() + i;
      c.v_block = depth;  // every input block has as many ranks
      c.v_row = ranks;
      c.s = w.coupling() + (i / kPanelColumns * outputs + k) * inputs * kPanelColumns;
      c.in_blocks = inputs;
      c.out_blocks = 1;
      c.tokens = tokens;
      c.z = z.data() + i;
      c.z_row = depth;
      table.couple.couple.fn(c);
    }
    AlignedBuffer<std::uint16_t> z16;
    if (p.path == Path::bf16) {
      z16 = AlignedBuffer<std::uint16_t>::uninitialized(z.size());
      p.kernels.pack_bf16_f32.fn(z.data(), z.size(), z16.data(), kBf16Step);
    } else if (p.rounding == Activations::bf16) {
      p.kernels.round_bf16.fn(z.data(), z.size());
    }
    const index_t stride = count * kPanelColumns;
    AlignedBuffer<float> sums(tokens * stride);
    if (depth > 0)
      multiply(p.path == Path::bf16 ? static_cast<const void*>(z16.data()) : z.data(), depth, o.left, ranks_k, panel,
               count, sums.data(), stride);
    for (const PackedBlocks::Tile& tile : o.tiles) {
      const index_t width = in_width(w, tile.in_block);
      if (width == 0) continue;
      const FewRows& rows = x[static_cast<std::size_t>(tile.in_block)];
      auto more = AlignedBuffer<float>::uninitialized(sums.size());
      multiply(rows.data, rows.stride, tile.w, width, panel, count, more.data(), stride);
      for (index_t i = 0; i < sums.size(); ++i) sums[i] += more[i];
    }
    finish(p, sums.data(), stride, kPanelColumns, 0, tokens, col0, cols);
  });
}

}  // namespace
}  // namespace engine

void matmul(ActivationView x, const PackedBlocks& w, ResultView y, Activations mode, const ApplyOptions& how) {
  if (y.rows() == 0 || y.cols() == 0) return;
  const kernels::KernelTable& table = kernels::table_for(w.level());
  const kernels::DenseKernels& kernels = table.dense;
  const bool bf16_weights = w.type() == WeightType::bf16;
  mode = resolve(mode, bf16_weights ? 16.0 : 32.0, w.level());
  engine::Product p{kernels, engine::Path::f32, mode, x, y.cols(), x.cols(), y, how.epilogue, how.execution};
  const bool few = x.rows() <= engine::kFewTokens && !how.execution.batch_invariant;
  const bool dots = few ? kernels.few_f32_bf16_bf16.fn != nullptr : kernels.block_bf16.multiply.fn != nullptr;
  if (mode == Activations::bf16 && bf16_weights && dots) p.path = engine::Path::bf16;
  few ? engine::multiply_few_tokens(p, w, table) : engine::multiply_many_tokens(p, w, table);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
