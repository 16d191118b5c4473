// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The slots of the int8 family: products of any number of tokens, rounded to int8 with one scale each, with weights
/// that are 8-bit codes (core/code_spec.hpp).
///
/// Packed codes (kernels/codes/codes_kernels.hpp) are used as they are: 16 lines of 8-bit codes, two steps of 32 k, are
/// the tile of 16 columns x 64 k that AMX and VNNI want. Codes are unsigned and have a zero, so
///
///     x · w = a[m] · Σ_runs scale[run][n] · (Σ x̂ code - zero[run][n] · Σ x̂),    x = a[m] · x̂
///
/// A run is the k of one integer sum: a group, or a part of one that is longer than kInt8Run.
///
/// x is packed as [tile][steps][tile_rows][64] int8: row tiles, each a run of steps of 64 k, in the order of the codes
/// (kCodeOrder within 8), zeros beyond M and K.

#include "kernels/codes/codes_kernels.hpp"
#include "kernels/dense/dense_kernels.hpp"
#include "kernels/slot.hpp"

namespace blockpack::kernels {

inline constexpr std::ptrdiff_t kInt8Step = 64;
/// K of one block: 32 KB of two panels of codes.
inline constexpr std::ptrdiff_t kInt8Depth = 1024;
/// K of one integer sum, at most: 255 * 127 * 66311 is the last that an int32 holds.
inline constexpr std::ptrdiff_t kInt8Run = 65536;
static_assert(255 * 127 * kInt8Run <= 0x7fffffff && kInt8Run % kInt8Depth == 0);

/// totals (+)= a · x̂ · w for tiles of rows of x and pairs of panels of one block of K, depth >= 1.
struct Int8Product {
  const std::int8_t* x;         ///< row tile 0 at the first step of the block
  std::ptrdiff_t x_tile_bytes;  ///< from one row tile to the next
  std::ptrdiff_t tiles;
  std::ptrdiff_t tile_rows;  ///< rows of every tile, 1 … max_tile_rows
  std::ptrdiff_t rows;       ///< rows of all tiles without those beyond M
  const unsigned char* w;    ///< panel 0
  std::ptrdiff_t w_panel_bytes;
  std::ptrdiff_t panels;        ///< of 16 columns
  std::ptrdiff_t first_step;    ///< of the block
  std::ptrdiff_t steps;         ///< of the block; the last one may end with the codes
  bool half_step;               ///< the last step has 32 k of codes; what lies behind them is not read
  std::ptrdiff_t chunk_steps;   ///< codes of so many steps lie in one piece,
  std::ptrdiff_t chunk_bytes;   ///< pieces so far apart
  std::ptrdiff_t run_steps;     ///< of a run; a block holds whole runs, or a part of one
  bool starts;                  ///< the integer sums start at zero, else at `integers`
  bool ends;                    ///< the last run ends with the block, else its sums are left in `integers`
  std::int32_t* integers;       ///< laid out as totals; null where every run lies in one block
  const std::int32_t* minus_x;  ///< [runs of the block][minus_x_run]: what is added to the integer sums of a row: -zero
                                ///< Σ x̂, or -Σ x̂ where zeros are given
  std::ptrdiff_t minus_x_run;
  const float* scales;        ///< [pairs of panels][scales_pair]: of each run of the block 32 scales
  const std::int32_t* zeros;  ///< the same of zeros, or null
  std::ptrdiff_t scales_pair;
  bool first;                 ///< the first runs of K are in this block: totals start at zero
  const float* token_scales;  ///< [rows] a, in the last block of K; else null
  float* totals;              ///< pair p, tile t at totals + p * totals_pair + t * tile_rows * 32, rows of 32
  std::ptrdiff_t totals_pair;
  const unsigned char* next_w;  ///< hint: panel 0 of what is wanted next, at its first step; or null
  // The last block, where all pairs are whole and nothing but a bias is added: y of pair 0, tile 0. Else null.
  float* y;
  std::ptrdiff_t y_stride;
  bool stream;        ///< y is large: written past the caches where its alignment allows
  const float* bias;  ///< of column 0, or null
};

struct Int8Kernels {
  /// Missing where a level has no integer dots: the engine rounds x and takes the float paths.
  Slot<void (*)(const Int8Product& p) noexcept> multiply;
  std::ptrdiff_t max_tile_rows = 0;
  /// Scales of all groups of a panel, group g at scales + g * 32; the zeros likewise, where codes.zeros.
  Slot<void (*)(const CodeProduct& codes, const unsigned char* panel, float* scales, std::int32_t* zeros) noexcept>
      read_groups;
  /// One token to int8: code = half_even(x · (1 / a)), a = absmax / 127. 64 k at dst + step * dst_step in kCodeOrder,
  /// the last padded with zeros; minus_x[run] = -Σ codes of `run` k. A value that is not finite gives a = NaN and codes
  /// 0. Where absmax / 127 is 0 or too coarse a subnormal to reach absmax in 127 steps, a is the next float.
  Slot<float (*)(const float* x, std::ptrdiff_t n, std::int8_t* dst, std::ptrdiff_t dst_step, std::ptrdiff_t run,
                 std::int32_t* minus_x, std::ptrdiff_t minus_x_run) noexcept>
      quantize_token;
};

/// Calls visit("name", slot) for every slot of the family.
template <class Visitor>
void visit_slots(const Int8Kernels& k, Visitor&& visit) {
  visit("block_f32_int8_int8p16", k.multiply);
  visit("read_groups", k.read_groups);
  visit("quantize_token", k.quantize_token);
}

void install_int8_avx512vnni(Int8Kernels& k, Features features) noexcept;
void install_int8_amx(Int8Kernels& k, Features features) noexcept;

}  // namespace blockpack::kernels
