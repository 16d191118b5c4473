// SPDX-License-Identifier: Apache-2.0
/// Products with packed weights without their blocks of zeros, and their packing. A task is some half-panels by a slice
/// of tokens whose x stays in L2 while the weights pass; sums live in registers over a whole list, then go to y, or
/// where more is to be done with them to `finish`.

#include "blockpack/core/packed_block_sparse.hpp"

#include <algorithm>
#include <cstring>

#include "engine/product.hpp"
#include "kernels/table.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {
namespace {

using kernels::kPanelColumns;
using kernels::kSparseColumns;
using kernels::kSparseStep;
using kernels::kSparseUnit;

constexpr index_t kGroupHalves = 4;
constexpr index_t kGroups = 16;                    ///< tasks there should be at least
constexpr index_t kSliceBytes = index_t{5} << 17;  ///< of x

constexpr index_t unit_bytes(WeightType type) { return kSparseUnit * (type == WeightType::f32 ? 4 : 2); }

/// The steps of every half-panel.
struct Lists {
  std::vector<index_t> first{0};
  std::vector<std::int32_t> steps;
};

Lists lists_of(const SparseRowSource& w) {
  Lists lists;
  std::vector<std::uint8_t> kept(static_cast<std::size_t>(ceil_div(w.rows.cols, kSparseStep)));
  for (index_t row = 0; row < w.rows.rows; row += kSparseColumns) {
    std::fill(kept.begin(), kept.end(), std::uint8_t{0});
    w.mark_steps(w.rows.self, row, std::min(row + kSparseColumns, w.rows.rows), kept.data());
    for (std::size_t s = 0; s < kept.size(); ++s)
      if (kept[s] != 0) lists.steps.push_back(static_cast<std::int32_t>(s));
    lists.first.push_back(static_cast<index_t>(lists.steps.size()));
  }
  return lists;
}

/// `first` has `per_half` lists for each half-panel.
std::vector<index_t> groups_of(const std::vector<index_t>& first, index_t per_half = 1) {
  const index_t halves = (static_cast<index_t>(first.size()) - 1) / per_half, most = ceil_div(first.back(), kGroups);
  std::vector<index_t> groups{0};
  for (index_t h = 1; h <= halves; ++h) {
    const index_t begin = groups.back();
    const index_t units =
        first[static_cast<std::size_t>(h * per_half)] - first[static_cast<std::size_t>(begin * per_half)];
    if (h == halves || h - begin == kGroupHalves || units >= most) groups.push_back(h);
  }
  return groups;
}

/// Row tiles of x as the kernels want them.
struct TiledRows {
  /// `int8`: rounded as int8_token says, or null.
  TiledRows(const Product& p, const kernels::Int8Kernels* int8, index_t first, index_t count, index_t rows)
      : tile_rows(rows),
        tiles(ceil_div(count, rows)),
        tile_bytes(checked_mul(rows * ceil_div(p.k, kSparseStep),
                               kSparseStep * (int8 != nullptr       ? index_t{1}
                                              : p.path == Path::f32 ? index_t{4}
                                                                    : index_t{2}),
                               "matmul")),
        scales(AlignedBuffer<float>::uninitialized(int8 != nullptr ? count : 0)),
        data(static_cast<std::size_t>(checked_mul(tiles, tile_bytes, "matmul"))) {
    for_each_task(p.execution, static_cast<double>(count * p.k) * 0.2, tiles, [&](index_t tile) {
      const index_t step = tile_rows * kSparseStep;
      const index_t padded = round_up(p.k, kernels::kInt8Step);
      auto wide = AlignedBuffer<float>::uninitialized(int8 != nullptr && p.x.is_bf16() ? p.k : 0);
      auto codes = AlignedBuffer<std::int8_t>::uninitialized(int8 != nullptr ? padded : 0);
      for (index_t r = 0; r < tile_rows; ++r) {
        const index_t row = tile * tile_rows + r;
        std::byte* dst = data.data() + tile * tile_bytes;
        if (int8 != nullptr) {
          if (row >= count) break;  // what such rows give is not written
          if (p.x.is_bf16()) load_f32(p, first + row, 0, p.k, wide.data());
          const float* x = p.x.is_bf16() ? wide.data() : p.x.f32().row_data(first + row);
          std::int32_t minus_sum = 0;  // not needed
          scales[static_cast<std::size_t>(row)] =
              int8->quantize_token.fn(x, p.k, codes.data(), kernels::kInt8Step, padded, &minus_sum, 0);
          auto* to = reinterpret_cast<std::uint8_t*>(dst) + r * kSparseStep;
          for (index_t k = 0; k < p.k; k += kSparseStep, to += step)
            for (index_t i = 0; i < kSparseStep; ++i) to[i] = static_cast<std::uint8_t>(codes[k + i] ^ 0x80);
          continue;
        }
        if (p.path == Path::bf16) {
          auto* to = reinterpret_cast<std::uint16_t*>(dst) + r * kSparseStep;
          if (row < count) {
            load_bf16(p, first + row, 0, p.k, to, step);
          } else {
            for (index_t k = 0; k < p.k; k += kSparseStep, to += step) std::fill_n(to, kSparseStep, std::uint16_t{0});
          }
          continue;
        }
        float* to = reinterpret_cast<float*>(dst) + r * kSparseStep;
        for (index_t k = 0; k < p.k; k += kSparseStep, to += step) {
          const index_t n = row < count ? std::min(kSparseStep, p.k - k) : 0;
          if (n > 0) load_f32(p, first + row, k, n, to);
          std::fill(to + n, to + kSparseStep, 0.0f);
        }
      }
    });
  }

  index_t tile_rows, tiles, tile_bytes;
  AlignedBuffer<float> scales;
  ScratchMemory data;
};

using Expand = void (*)(const unsigned char* w, std::ptrdiff_t units, std::uint16_t* dst) noexcept;

/// The product of half-panels from `half0` on, whose units get their zeros back one half-panel at a time, in L2.
void multiply_expanded(const kernels::BlockSparseProduct& p, const kernels::BlockSparseKernel& kernel, Expand expand,
                       const PackedBlockSparse& w, index_t half0) {
  index_t most = 0;
  for (index_t h = 0; h < p.halves; ++h) most = std::max(most, p.first[h + 1] - p.first[h]);
  auto units = AlignedBuffer<std::uint16_t>::uninitialized(most * kSparseUnit);
  for (index_t h = 0; h < p.halves; ++h) {
    const index_t first[2] = {0, p.first[h + 1] - p.first[h]};
    expand(reinterpret_cast<const unsigned char*>(w.data()) + w.weights_first()[static_cast<std::size_t>(half0 + h)],
           first[1], units.data());
    kernels::BlockSparseProduct b = p;
    b.halves = 1;
    b.first = first;
    b.steps = p.steps + p.first[h];
    b.w = units.data();
    b.y = p.y + h * kSparseColumns;
    kernel.multiply.fn(b);
  }
}

/// Lets `multiply` compute the half-panels from `half0` on that block product b has, for rows of y from `row` on:
/// straight into y where nothing follows and they are whole, otherwise through sums that `finish` takes.
template <class Block, class Multiply>
void write_half_panels(const Product& p, Block& b, index_t row, index_t half0, const Multiply& multiply) {
  const index_t col = half0 * kSparseColumns, cols = std::min(p.n - col, b.halves * kSparseColumns);
  if (bias_alone(p) && p.epilogue.bias.empty() && cols == b.halves * kSparseColumns) {
    const MatrixView<float> y = p.y.f32();
    b.y = y.row_data(row) + col;
    b.y_stride = y.row_stride();
    b.stream = plain_y(p) && y.row_stride() % kSparseColumns == 0 && reinterpret_cast<std::uintptr_t>(b.y) % 64 == 0;
    return multiply();
  }
  b.y_stride = kGroupHalves * kSparseColumns;
  auto sums = AlignedBuffer<float>::uninitialized(b.rows * b.y_stride);
  b.y = sums.data();
  multiply();
  finish(p, sums.data(), b.y_stride, kPanelColumns, row, b.rows, col, cols);
}

/// `expand`: for weights without their zeros.
void multiply_block_sparse(const Product& p, const kernels::BlockSparseKernel& kernel, const PackedBlockSparse& w,
                           const kernels::Int8Kernels* int8, Expand expand) {
  const double multiplies_per_ns = p.path == Path::bf16 ? 200.0 : 100.0;
  const auto groups = static_cast<index_t>(w.groups().size()) - 1;
  for (index_t first = 0; first < p.x.rows(); first += kTokenChunk) {
    const index_t tokens = std::min(kTokenChunk, p.x.rows() - first);
    // The order of a sum depends on the rows of its tile.
    const index_t tile_rows =
        p.execution.batch_invariant ? kernel.max_tile_rows : balanced(tokens, kernel.max_tile_rows);
    const TiledRows x(p, int8, first, tokens, tile_rows);
    const index_t slice_tiles =
        balanced(x.tiles, std::max<index_t>(1, kSliceBytes / std::max<index_t>(1, x.tile_bytes)));
    const double ns = static_cast<double>(w.steps().size()) * kSparseUnit * static_cast<double>(tokens);
    for_each_task(p.execution, ns / multiplies_per_ns, groups * ceil_div(x.tiles, slice_tiles), [&](index_t task) {
      const index_t tile0 = task / groups * slice_tiles, row0 = tile0 * tile_rows;
      const auto group = static_cast<std::size_t>(task % groups);
      const index_t half0 = w.groups()[group], halves = w.groups()[group + 1] - half0;
      kernels::BlockSparseProduct b{};
      b.x = x.data.data() + tile0 * x.tile_bytes;
      b.x_tile_bytes = x.tile_bytes;
      b.tiles = std::min(slice_tiles, x.tiles - tile0);
      b.tile_rows = tile_rows;
      b.rows = std::min(tokens - row0, b.tiles * tile_rows);
      b.halves = halves;
      b.first = w.first().data() + half0;
      b.steps = w.steps().data();
      b.w = w.data();
      if (int8 != nullptr) {
        b.token_scales = x.scales.data() + row0;
        b.scales = w.scales().data() + half0 * kSparseColumns;
        b.starts = w.starts().data() + half0 * kSparseColumns;
      }
      const auto multiply = [&] {
        if (w.layout() == BlockLayout::bitmask) return multiply_expanded(b, kernel, expand, w, half0);
        kernel.multiply.fn(b);
      };
      write_half_panels(p, b, first + row0, half0, multiply);
    });
  }
}

/// Up to kernels::kTwoFourTokens tokens and weights without their zeros, which are read once.
void multiply_bitmask(const Product& p, const kernels::BlockSparseKernels& kernels, const PackedBlockSparse& w) {
  const auto halves = static_cast<index_t>(w.first().size()) - 1;
  const AlignedBuffer<std::byte> x = step_rows(p, 0, p.x.rows());
  const index_t per_task = halves <= 64 ? 4 : 8;
  const double ns = static_cast<double>(w.bytes()) / 30.0;
  for_each_task(p.execution, ns * (1.0 + static_cast<double>(p.x.rows())), ceil_div(halves, per_task),
                [&](index_t task) {
                  const index_t half0 = task * per_task, count = std::min(per_task, halves - half0);
                  kernels::BitmaskProduct b{};
                  b.x = x.data();
                  b.tokens = static_cast<int>(kernel_tokens(p.x.rows()));
                  b.halves = count;
                  b.first = w.first().data() + half0;
                  b.steps = w.steps().data();
                  b.weights_first = w.weights_first().data() + half0;
                  b.w = reinterpret_cast<const unsigned char*>(w.data());
                  // `finish` reads whole vectors of 32 columns.
                  b.sums_stride = round_up(count * kSparseColumns, kPanelColumns);
                  AlignedBuffer<float> sums(b.sums_stride * b.tokens);
                  b.sums = sums.data();
                  (p.path == Path::bf16 ? kernels.bitmask_bf16 : kernels.bitmask_f32).fn(b);
                  const index_t col = half0 * kSparseColumns;
                  finish(p, sums.data(), b.sums_stride, kPanelColumns, 0, p.x.rows(), col,
                         std::min(p.n - col, count * kSparseColumns));
                });
}

/// Tokens as strips take them, each rounded as int8_token says.
struct SpreadTokens {
  SpreadTokens(const Product& p, const kernels::KernelTable& table, index_t first, index_t count)
      : tiles(ceil_div(count, kernels::kStripTokens)),
        columns(round_up(p.k, kernels::kInt8Step)),
        tile_bytes(checked_mul(columns, kernels::kStripTokens, "matmul")),
        scales(tiles * kernels::kStripTokens),
        data(static_cast<std::size_t>(checked_mul(tiles, tile_bytes, "matmul"))) {
    for_each_task(p.execution, static_cast<double>(count * p.k) * 0.2, tiles, [&](index_t tile) {
      const index_t row0 = tile * kernels::kStripTokens, tokens = std::min(kernels::kStripTokens, count - row0);
      auto wide = AlignedBuffer<float>::uninitialized(p.x.is_bf16() ? p.k : 0);
      auto codes = AlignedBuffer<std::int8_t>::uninitialized(tokens * columns);
      for (index_t r = 0; r < tokens; ++r) {
        if (p.x.is_bf16()) load_f32(p, first + row0 + r, 0, p.k, wide.data());
        const float* x = p.x.is_bf16() ? wide.data() : p.x.f32().row_data(first + row0 + r);
        std::int32_t minus_sum = 0;  // not needed
        scales[static_cast<std::size_t>(row0 + r)] = table.int8.quantize_token.fn(
            x, p.k, codes.data() + r * columns, kernels::kInt8Step, columns, &minus_sum, 0);
      }
      table.block_sparse.spread_tokens.fn(codes.data(), columns, tokens, columns,
                                          reinterpret_cast<std::uint8_t*>(data.data()) + tile * tile_bytes);
    });
  }

  index_t tiles, columns, tile_bytes;
  AlignedBuffer<float> scales;
  ScratchMemory data;
};

/// The product of strips: a task is some half-panels by a slice of tokens whose x stays in L2.
void multiply_strips(const Product& p, const kernels::KernelTable& table, const PackedBlockSparse& w) {
  const auto groups = static_cast<index_t>(w.groups().size()) - 1;
  for (index_t first = 0; first < p.x.rows(); first += kTokenChunk) {
    const index_t tokens = std::min(kTokenChunk, p.x.rows() - first);
    const SpreadTokens x(p, table, first, tokens);
    const index_t slice_tiles =
        balanced(x.tiles, std::max<index_t>(1, kSliceBytes / std::max<index_t>(1, x.tile_bytes)));
    const double ns = static_cast<double>(w.steps().size()) * 4.0 * static_cast<double>(tokens) / 200.0;
    for_each_task(p.execution, ns, groups * ceil_div(x.tiles, slice_tiles), [&](index_t task) {
      const index_t tile0 = task / groups * slice_tiles, row0 = tile0 * kernels::kStripTokens;
      const auto group = static_cast<std::size_t>(task % groups);
      const index_t half0 = w.groups()[group], halves = w.groups()[group + 1] - half0;
      kernels::StripProduct b{};
      b.x = reinterpret_cast<const std::uint8_t*>(x.data.data()) + tile0 * x.tile_bytes;
      b.x_tile_bytes = x.tile_bytes;
      b.rows = std::min(tokens - row0, std::min(slice_tiles, x.tiles - tile0) * kernels::kStripTokens);
      b.halves = halves;
      b.first = w.first().data() + 4 * half0;
      b.columns = w.steps().data();
      b.w = reinterpret_cast<const std::int8_t*>(w.data());
      b.token_scales = x.scales.data() + row0;
      b.scales = w.scales().data() + half0 * kSparseColumns;
      b.starts = w.starts().data() + half0 * kSparseColumns;
      write_half_panels(p, b, first + row0, half0, [&] { table.block_sparse.strips_int8.fn(b); });
    });
  }
}

/// The columns of every strip in which one of its rows has a weight, as places of x, which has them in kCodeOrder.
/// Groups of four, the last one filled up with the column before, or column 0.
struct Strips {
  std::vector<index_t> first{0};
  std::vector<std::int32_t> columns;
  std::vector<std::int8_t> w;
};
/// `rows` has the integers of 16 rows side by side, `stride` apart.
Strips strips_of(const std::int8_t* rows, index_t stride, index_t cols) {
  Strips strips;
  constexpr auto kColumn = static_cast<std::int32_t>(kernels::kStripTokens);  // bytes
  std::int32_t place[8];
  for (std::int32_t e = 0; e < 8; ++e) place[kernels::kCodeOrder[e]] = e;
  for (index_t r = 0; r < kSparseColumns; r += kernels::kStripRows) {
    const std::int8_t* row = rows + r * stride;
    std::vector<index_t> kept;
    for (index_t k = 0; k < cols; ++k)
      if ((row[k] | row[stride + k] | row[2 * stride + k] | row[3 * stride + k]) != 0) kept.push_back(k);
    for (std::size_t g = 0; g < kept.size(); g += 4) {
      std::int8_t group[16] = {};
      for (std::size_t i = 0; i < 4; ++i) {
        const bool there = g + i < kept.size();
        const index_t k = kept[std::min(g + i, kept.size() - 1)];
        strips.columns.push_back((static_cast<std::int32_t>(k / 8 * 8) + place[k % 8]) * kColumn);
        for (index_t n = 0; n < 4 && there; ++n) group[4 * n + static_cast<index_t>(i)] = row[n * stride + k];
      }
      strips.w.insert(strips.w.end(), group, group + 16);
    }
    strips.first.push_back(static_cast<index_t>(strips.columns.size() / 4));
  }
  return strips;
}

/// What a group of strips costs in units: their dots, and the shuffles and loads beside them.
constexpr double kGroupCost = 1.4 * 16.0 / static_cast<double>(kSparseUnit);

}  // namespace
}  // namespace engine

std::size_t PackedBlockSparse::bytes_needed(const SparseRowSource& w, WeightType type) {
  const auto units = static_cast<index_t>(engine::lists_of(w).steps.size());
  return static_cast<std::size_t>(checked_mul(units, engine::unit_bytes(type), "PackedBlockSparse"));
}

PackedBlockSparse PackedBlockSparse::pack(const SparseRowSource& w, WeightType type, const Execution& how,
                                          std::span<std::byte> memory) {
  using namespace engine;
  PackedBlockSparse packed;
  packed.level_ = how.level();
  packed.shape_ = {w.rows.rows, w.rows.cols};
  packed.type_ = type;
  Lists lists = lists_of(w);
  packed.groups_ = groups_of(lists.first);
  packed.first_ = std::move(lists.first);
  packed.steps_ = std::move(lists.steps);
  const index_t unit = unit_bytes(type);
  const auto units = static_cast<index_t>(packed.steps_.size());
  packed.bytes_ = static_cast<std::size_t>(checked_mul(units, unit, "PackedBlockSparse"));
  if (packed.bytes_ == 0) return packed;
  const std::shared_ptr<std::byte> block = packed_memory("PackedBlockSparse::pack", memory, packed.bytes_);
  packed.owner_ = block;
  packed.data_ = block.get();

  // Whole panels in pieces, of which the units of the lists are kept.
  const kernels::DenseKernels& kernels = kernels::table_for(packed.level_).dense;
  constexpr index_t kPiece = RowSource::kColumnStep;
  const auto halves = static_cast<index_t>(packed.first_.size()) - 1;
  parallel_for(how, ceil_div(halves, 2), [&](index_t panel) {
    auto stage = AlignedBuffer<std::byte>::uninitialized(kStageBytes);
    AlignedBuffer<std::byte> piece(kPiece * panel_row_bytes(type));
    index_t piece_k = -1;
    const auto keep = [&](index_t half, index_t i) {
      const index_t k = packed.steps_[static_cast<std::size_t>(i)] * kSparseStep;
      std::byte* dst = block.get() + i * unit;
      if (type == WeightType::bf16) {
        std::memcpy(dst, piece.data() + (k - piece_k) * panel_row_bytes(type) + half * unit,
                    static_cast<std::size_t>(unit));
        return;
      }
      for (index_t r = 0; r < kSparseStep; ++r)
        std::memcpy(dst + r * kSparseColumns * 4,
                    piece.data() + (k - piece_k + r) * panel_row_bytes(type) + half * kSparseColumns * 4,
                    kSparseColumns * 4);
    };
    index_t at[2], end[2];
    for (index_t half = 0; half < 2; ++half) {
      const auto h = static_cast<std::size_t>(std::min(2 * panel + half, halves));
      at[half] = packed.first_[h];
      end[half] = h + 1 < packed.first_.size() ? packed.first_[h + 1] : at[half];
    }
    for (index_t k0 = 0; k0 < w.rows.cols; k0 += kPiece) {
      for (index_t half = 0; half < 2; ++half)
        for (; at[half] < end[half] && packed.steps_[static_cast<std::size_t>(at[half])] * kSparseStep < k0 + kPiece;
             ++at[half]) {
          if (piece_k != k0) {
            const index_t count = std::min(kPiece, w.rows.cols - k0);
            pack_panel(kernels, w.rows, type, panel, k0, count, piece.data(), stage.data());
            // float32 is padded to 16 k, the last unit wants 32.
            const index_t padded = padded_depth(type, count) * panel_row_bytes(type);
            std::memset(piece.data() + padded, 0, piece.size() - static_cast<std::size_t>(padded));
            piece_k = k0;
          }
          keep(half, at[half]);
        }
    }
  });
  if (type == WeightType::f32 || !memory.empty()) return packed;

  // Units without their zeros, where that is a quarter less to read; what lies beyond the matrix does not count.
  const auto* words = reinterpret_cast<const std::uint16_t*>(block.get());
  std::vector<index_t> bytes(static_cast<std::size_t>(halves));
  const auto half_units = [&](index_t half) {
    const auto h = static_cast<std::size_t>(half);
    return std::pair(packed.first_[h], packed.first_[h + 1]);
  };
  parallel_for(how, halves, [&](index_t half) {
    const auto [begin, end] = half_units(half);
    const std::uint16_t* at = words + begin * kSparseUnit;
    const index_t zeros = std::count(at, words + end * kSparseUnit, std::uint16_t{0});
    bytes[static_cast<std::size_t>(half)] = (end - begin) * (64 + unit) - 2 * zeros;
  });
  packed.weights_first_ = {0};
  for (const index_t b : bytes) packed.weights_first_.push_back(packed.weights_first_.back() + b);
  const auto total = static_cast<std::size_t>(packed.weights_first_.back()) + 64;  // kernels load whole lines
  index_t inside = 0;
  for (index_t half = 0; half < halves; ++half) {
    const index_t rows = std::min(kSparseColumns, w.rows.rows - half * kSparseColumns);
    const auto [begin, end] = half_units(half);
    for (index_t i = begin; i < end; ++i)
      inside += rows * std::min(kSparseStep, w.rows.cols - packed.steps_[static_cast<std::size_t>(i)] * kSparseStep);
  }
  if (static_cast<double>(total) > 0.75 * 2.0 * static_cast<double>(inside)) {
    packed.weights_first_.clear();
    return packed;
  }
  const std::shared_ptr<std::byte> squeezed = packed_memory("PackedBlockSparse::pack", {}, total);
  std::memset(squeezed.get() + total - 64, 0, 64);
  parallel_for(how, halves, [&](index_t half) {
    const auto [begin, end] = half_units(half);
    std::byte* dst = squeezed.get() + packed.weights_first_[static_cast<std::size_t>(half)];
    for (index_t i = begin; i < end; ++i) {
      std::uint32_t masks[16] = {};
      std::byte* to = dst + sizeof(masks);
      for (index_t e = 0; e < kSparseUnit; ++e) {
        const std::uint16_t word = words[i * kSparseUnit + e];
        if (word == 0) continue;
        masks[e / 32] |= std::uint32_t{1} << (e % 32);
        std::memcpy(to, &word, sizeof(word));
        to += sizeof(word);
      }
      std::memcpy(dst, masks, sizeof(masks));
      dst = to;
    }
  });
  packed.layout_ = BlockLayout::bitmask;
  packed.bytes_ = total;
  packed.owner_ = squeezed;
  packed.data_ = squeezed.get();
  return packed;
}

PackedBlockSparse PackedBlockSparse::pack_int8(const SparseRowSource& w, const Execution& how) {
  using namespace engine;
  PackedBlockSparse packed;
  packed.level_ = how.level();
  packed.shape_ = {w.rows.rows, w.rows.cols};
  Lists lists = lists_of(w);
  const auto units = static_cast<index_t>(lists.steps.size());
  const auto halves = static_cast<index_t>(lists.first.size()) - 1;
  packed.scales_.resize(static_cast<std::size_t>(halves * kSparseColumns));
  packed.starts_.resize(packed.scales_.size());

  // The integers of a half-panel; their scales and starts.
  const index_t stride = round_up(w.rows.cols, kSparseStep);
  const auto read = [&](index_t half, std::int8_t* rows) {
    for (index_t n = 0; n < std::min(kSparseColumns, w.rows.rows - half * kSparseColumns); ++n) {
      const index_t row = half * kSparseColumns + n;
      const auto at = static_cast<std::size_t>(row);
      std::int8_t* codes = rows + n * stride;
      packed.scales_[at] = w.read_int8(w.rows.self, row, codes);
      packed.starts_[at] = 0;
      for (index_t k = 0; k < w.rows.cols; ++k) packed.starts_[at] -= 128 * codes[k];
    }
  };
  std::vector<Strips> strips(static_cast<std::size_t>(halves));
  parallel_for(how, halves, [&](index_t half) {
    AlignedBuffer<std::int8_t> rows(kSparseColumns * stride);
    read(half, rows.data());
    strips[static_cast<std::size_t>(half)] = strips_of(rows.data(), stride, w.rows.cols);
  });
  index_t groups = 0;
  for (const Strips& s : strips) groups += s.first.back();
  if (static_cast<double>(groups) * kGroupCost < static_cast<double>(units)) {
    packed.layout_ = BlockLayout::strips;
    packed.first_ = {0};
    for (const Strips& s : strips) {
      const index_t before = packed.first_.back();
      for (std::size_t i = 1; i < s.first.size(); ++i) packed.first_.push_back(before + s.first[i]);
      packed.steps_.insert(packed.steps_.end(), s.columns.begin(), s.columns.end());
    }
    packed.steps_.resize(packed.steps_.size() + 8);  // kernels fetch what two groups further name
    packed.groups_ = groups_of(packed.first_, 4);
    packed.bytes_ = static_cast<std::size_t>(checked_mul(groups, 16, "PackedBlockSparse"));
  } else {
    packed.groups_ = groups_of(lists.first);
    packed.first_ = std::move(lists.first);
    packed.steps_ = std::move(lists.steps);
    packed.bytes_ = static_cast<std::size_t>(checked_mul(units, kSparseUnit, "PackedBlockSparse"));
  }
  const std::shared_ptr<std::byte> block = packed_memory("PackedBlockSparse::pack", {}, packed.bytes_);
  packed.owner_ = block;
  packed.data_ = block.get();
  parallel_for(how, halves, [&](index_t half) {
    if (packed.layout_ == BlockLayout::strips) {
      const std::vector<std::int8_t>& from = strips[static_cast<std::size_t>(half)].w;
      const index_t at = packed.first_[static_cast<std::size_t>(4 * half)] * 16;
      if (!from.empty()) std::memcpy(block.get() + at, from.data(), from.size());
      return;
    }
    AlignedBuffer<std::int8_t> rows(kSparseColumns * stride);
    read(half, rows.data());
    for (index_t i = packed.first_[static_cast<std::size_t>(half)];
         i < packed.first_[static_cast<std::size_t>(half) + 1]; ++i) {
      const std::int8_t* from = rows.data() + packed.steps_[static_cast<std::size_t>(i)] * kSparseStep;
      auto* dst = reinterpret_cast<std::int8_t*>(block.get() + i * kSparseUnit);
      for (index_t k = 0; k < kSparseStep; ++k)
        for (index_t n = 0; n < kSparseColumns; ++n)
          dst[(k / 4 * kSparseColumns + n) * 4 + k % 4] = from[n * stride + k / 8 * 8 + kernels::kCodeOrder[k % 8]];
    }
  });
  return packed;
}

bool multiplies_int8_blocks(index_t cols, Isa level) {
  const kernels::KernelTable& table = kernels::table_for(level);
  return table.block_sparse.int8_int8.multiply.fn != nullptr && cols <= kernels::kInt8Run;
}

void matmul(ActivationView x, const PackedBlockSparse& w, ResultView y, Activations mode, const ApplyOptions& how) {
  if (y.rows() == 0 || y.cols() == 0) return;
  const kernels::KernelTable& table = kernels::table_for(w.level());
  if (!w.scales().empty()) {
    const engine::Product p{table.dense, engine::Path::f32, Activations::f32, x, y.cols(), x.cols(),
                            y,           how.epilogue,      how.execution};
    if (w.layout() == BlockLayout::strips) return engine::multiply_strips(p, table, w);
    return engine::multiply_block_sparse(p, table.block_sparse.int8_int8, w, &table.int8, nullptr);
  }
  if (mode == Activations::int8_token)
    return matmul(engine::RoundedTokens(x, how.execution).view(), w, y, Activations::f32, how);
  const bool bf16_weights = w.type() == WeightType::bf16;
  engine::Product p{table.dense, engine::Path::f32, mode, x, y.cols(), x.cols(), y, how.epilogue, how.execution};
  const kernels::BlockSparseKernels& sparse = table.block_sparse;
  const bool few =
      w.layout() == BlockLayout::bitmask && x.rows() <= kernels::kTwoFourTokens && !how.execution.batch_invariant;
  const bool has_dots = few ? sparse.bitmask_bf16.fn != nullptr : sparse.bf16_bf16.multiply.fn != nullptr;
  const bool dots = mode == Activations::bf16 && bf16_weights && has_dots;
  if (dots) p.path = engine::Path::bf16;
  if (few) return engine::multiply_bitmask(p, sparse, w);
  engine::multiply_block_sparse(p,
                                dots           ? sparse.bf16_bf16
                                : bf16_weights ? sparse.f32_bf16
                                               : sparse.f32_f32,
                                w, nullptr, sparse.expand_bitmask.fn);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
