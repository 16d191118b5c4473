// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The slots of the dense family: everything `matmul` runs per panel, never per element. Installers are called weakest
/// level first, each overwrites what it does better; the scalar level is complete but for the bf16 dots.
///
/// Packed weights, the same at every level. W [N, K] is cut into panels of 32 rows (output columns); N is padded with
/// zeros to whole panels, K to whole steps:
///
///     f32   panel[k][32]                                K padded to 16
///     bf16  panel[k / 32][2][16 pairs][16 columns][2]   K padded to 32: AMX tile and bf16-dot order. Element (k, n) is
///           at (k / 32) * 1024 + (n / 16) * 512 + (k % 32 / 2) * 32 + (n % 16) * 2 + k % 2.
///
/// Sums. A product leaves its sums in float32 tiles, 32 columns wide and contiguous (rows of y lie a power of two apart
/// too often and would alias in L1); `finish` turns sums into y. Whoever adds up a sum does so in the order of k, one
/// chain per output: f32 kernels of one level then agree bit for bit, whatever M is and however K is blocked.

#include "kernels/slot.hpp"

namespace blockpack::kernels {

inline constexpr std::ptrdiff_t kPanelColumns = 32;
/// K of one tile of bf16 weights, and the run of x that belongs to it.
inline constexpr std::ptrdiff_t kBf16Step = 32;
/// K of one block, f32 and bf16: 32 KB of panel either way.
inline constexpr std::ptrdiff_t kF32Depth = 256;
inline constexpr std::ptrdiff_t kBf16Depth = 512;
/// Floats between the rows of a packed f32 tile of x: one line more than the block, so that rows do not alias.
inline constexpr std::ptrdiff_t kF32XStride = kF32Depth + 16;

/// Work that a product does beside its own: the weights of the next panel while it multiplies those of this one.
struct Beside {
  /// Called for each part of the product with one panel; with the last part, all of the work must be done.
  void (*run)(Beside& self, std::ptrdiff_t part, std::ptrdiff_t parts) noexcept;
};

/// sums (+)= x · w for tiles of rows of x and panels of one block of K, depth >= 1.
struct BlockProduct {
  const void* x;                ///< row tile 0 of the block
  std::ptrdiff_t x_tile_bytes;  ///< from one row tile to the next
  std::ptrdiff_t tiles;
  std::ptrdiff_t tile_rows;  ///< rows of every tile, 1 … max_tile_rows; rows beyond M are zeros
  std::ptrdiff_t rows;       ///< rows of all tiles without those beyond M, which are the end of the last tile
  const void* w;             ///< panel 0, at the first k of the block
  std::ptrdiff_t w_panel_bytes;
  Beside* beside;  ///< what makes the weights of the panel after, or null. If not: panel i lies where panel i % 2 does
  std::ptrdiff_t panels;
  std::ptrdiff_t depth;  ///< k in the block, a multiple of the path's step
  float* sums;           ///< panel p, tile t at sums + p * sums_panel + t * tile_rows * 32, rows of 32
  std::ptrdiff_t sums_panel;
  bool accumulate;     ///< false: the sums start at zero
  const void* next_w;  ///< hint: weights wanted after the last panel (one panel's block); null: none, all are in L2
  const void* next_x;  ///< hint: the next block of x, or null
  std::ptrdiff_t next_x_bytes;
  // The last block, where the kernel can write y, all panels are whole and nothing but a bias is added: y of panel 0,
  // tile 0. Else null, and the sums are left for `finish`.
  float* y;
  std::ptrdiff_t y_stride;
  const float* bias;  ///< of panel 0, or null
};

/// The product of many tokens on one path. Layout of a packed row tile of x, [tile_rows] rows of `depth` k:
///     f32   [tile_rows][kF32XStride] floats
///     bf16  [depth / 32][tile_rows][32] bf16
struct BlockKernel {
  Slot<void (*)(const BlockProduct& p) noexcept> multiply;
  std::ptrdiff_t max_tile_rows = 0;
  bool writes_y = false;     ///< whether `multiply` heeds BlockProduct::y
  bool runs_beside = false;  ///< and BlockProduct::beside
};

/// sums = x · w for a few tokens, whole K, panels read once from memory.
struct FewProduct {
  const void* x;            ///< rows of f32, or of bf16 padded with zeros to a multiple of 32
  std::ptrdiff_t x_stride;  ///< elements
  std::ptrdiff_t tokens;    ///< >= 1
  const void* w;
  std::ptrdiff_t w_panel_bytes;
  std::ptrdiff_t panels;
  std::ptrdiff_t k;  ///< columns of x and W without padding
  float* sums;       ///< token t, panel p at sums + t * sums_stride + p * 32
  std::ptrdiff_t sums_stride;
};

/// sums (+)= dots of rows of x with row-major rows of W, in place.
struct RowDots {
  const void* x;
  std::ptrdiff_t x_stride;
  std::ptrdiff_t tokens;
  const void* w;
  std::ptrdiff_t w_stride;
  std::ptrdiff_t rows;
  std::ptrdiff_t k;
  float* sums;  ///< token t, row n at sums + t * sums_stride + n
  std::ptrdiff_t sums_stride;
  bool accumulate;
};

/// y = function(token_scales · sums + bias) ∘ gate + residual. `function` is the value of blockpack::EpilogueFunction.
struct Finish {
  const float* sums;  ///< row r, column c at sums + r * sums_row + c / 32 * sums_panel + c % 32
  std::ptrdiff_t sums_row;
  std::ptrdiff_t sums_panel;
  std::ptrdiff_t rows;
  std::ptrdiff_t cols;
  void* y;
  std::ptrdiff_t y_stride;    ///< elements, like the strides below
  bool y_is_bf16;             ///< rounded half to even; else float
  bool stream;                ///< y is large: write past the caches where its alignment allows
  int function;               ///< 0 none, 1 relu, 2 gelu, 3 silu
  const float* token_scales;  ///< of row 0, or null
  const float* bias;          ///< of column 0, or null
  const float* gate;          ///< of row 0, column 0, or null
  std::ptrdiff_t gate_stride;
  const float* residual;  ///< the same; may be y itself
  std::ptrdiff_t residual_stride;
};

struct DenseKernels {
  // Products of packed weights. A slot without a function: the level has no such instruction, or one slower than f32
  // multiply-adds, and the engine rounds x and takes the f32 path.
  BlockKernel block_f32;   ///< f32 weights, f32 x
  BlockKernel block_bf16;  ///< bf16 weights, bf16 x
  Slot<void (*)(const FewProduct& p) noexcept> few_f32_f32_f32;
  Slot<void (*)(const FewProduct& p) noexcept> few_f32_f32_bf16;   ///< bf16 weights widened in registers
  Slot<void (*)(const FewProduct& p) noexcept> few_f32_bf16_bf16;  ///< bf16 dots
  // Products of row-major weights.
  Slot<void (*)(const RowDots& p) noexcept> dots_f32_f32_f32;
  Slot<void (*)(const RowDots& p) noexcept> dots_f32_f32_bf16;
  Slot<void (*)(const RowDots& p) noexcept> dots_f32_bf16_bf16;
  Slot<void (*)(const Finish& f) noexcept> finish;

  /// Packing of weights, 16 columns at a time: dst[k / 16][k % 16][16] = transpose of src[16][words], in 32-bit words
  /// (one float, or a pair of bf16). `words` is a multiple of 16; 16 words of k lie dst_stride apart, groups of 16
  /// words dst_group apart.
  Slot<void (*)(const std::uint32_t* src, std::ptrdiff_t src_stride, std::ptrdiff_t words, std::uint32_t* dst,
                std::ptrdiff_t dst_stride, std::ptrdiff_t dst_group) noexcept>
      transpose16;
  /// `depth` (a multiple of 32) k of a bf16 panel to f32 panel order.
  Slot<void (*)(const std::uint16_t* src, std::ptrdiff_t depth, float* dst) noexcept> widen_panel;

  // Rows of x. `pack_…` write runs of 32 k, `dst_step` elements apart, the last one padded with zeros.
  Slot<void (*)(const float* src, std::ptrdiff_t n, std::uint16_t* dst, std::ptrdiff_t dst_step) noexcept>
      pack_bf16_f32;  ///< half to even
  Slot<void (*)(const std::uint16_t* src, std::ptrdiff_t n, std::uint16_t* dst, std::ptrdiff_t dst_step) noexcept>
      pack_bf16_bf16;
  Slot<void (*)(const std::uint16_t* src, std::ptrdiff_t n, float* dst) noexcept> widen;
  Slot<void (*)(float* x, std::ptrdiff_t n) noexcept> round_bf16;  ///< in place: x to the nearest bf16
  /// In place, per group of 32: x to the nearest multiple of a = absmax / 127, ties to even. A group whose a is zero or
  /// not finite is left alone.
  Slot<void (*)(float* x, std::ptrdiff_t n) noexcept> round_int8;
};

/// Calls visit("name", slot) for every slot of the family: kernel_report() and the tests walk the table with it.
template <class Visitor>
void visit_slots(const DenseKernels& k, Visitor&& visit) {
  visit("block_f32_f32_f32p32", k.block_f32.multiply);
  visit("block_f32_bf16_bf16p32", k.block_bf16.multiply);
  visit("few_f32_f32_f32p32", k.few_f32_f32_f32);
  visit("few_f32_f32_bf16p32", k.few_f32_f32_bf16);
  visit("few_f32_bf16_bf16p32", k.few_f32_bf16_bf16);
  visit("dots_f32_f32_f32", k.dots_f32_f32_f32);
  visit("dots_f32_f32_bf16", k.dots_f32_f32_bf16);
  visit("dots_f32_bf16_bf16", k.dots_f32_bf16_bf16);
  visit("finish", k.finish);
  visit("transpose16", k.transpose16);
  visit("widen_panel", k.widen_panel);
  visit("pack_bf16_f32", k.pack_bf16_f32);
  visit("pack_bf16_bf16", k.pack_bf16_bf16);
  visit("widen", k.widen);
  visit("round_bf16", k.round_bf16);
  visit("round_int8", k.round_int8);
}

void install_dense_scalar(DenseKernels& k, Features features) noexcept;
void install_dense_avx2(DenseKernels& k, Features features) noexcept;
void install_dense_avx512(DenseKernels& k, Features features) noexcept;
void install_dense_avx512bf16(DenseKernels& k, Features features) noexcept;
void install_dense_amx(DenseKernels& k, Features features) noexcept;
void install_dense_neon(DenseKernels& k, Features features) noexcept;
void install_dense_neon_bf16(DenseKernels& k, Features features) noexcept;

}  // namespace blockpack::kernels
