// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The slots of the block-sparse family: products of any number of tokens with the weights that are there, never with
/// blocks of zeros.
///
/// W [N, K] is cut into half-panels of 16 rows (output columns) and those into units of 32 k; a half-panel is the list
/// of the units that hold weights, in the order of k, and the units themselves, one after the other:
///
///     f32   [32 k][16]
///     bf16  [16 pairs][16 columns][2], half of a dense step (kernels/dense/dense_kernels.hpp): an AMX tile
///     int8  [8][16 columns][4], where 8 k follow each other in kCodeOrder (kernels/codes/codes_kernels.hpp)
///
/// x is packed in row tiles of whole K, [tile][K / 32][tile_rows][32], with zeros beyond M and K: a unit of the list is
/// one contiguous piece of it. The sums of a tile stay in registers over the whole list.

#include "kernels/slot.hpp"

namespace blockpack::kernels {

inline constexpr std::ptrdiff_t kSparseColumns = 16;
inline constexpr std::ptrdiff_t kSparseStep = 32;
inline constexpr std::ptrdiff_t kSparseUnit = kSparseColumns * kSparseStep;  ///< weights

/// y = x · w for tiles of rows of x and neighbouring half-panels, whose lists may be empty.
struct BlockSparseProduct {
  const void* x;                ///< row tile 0
  std::ptrdiff_t x_tile_bytes;  ///< from one row tile to the next
  std::ptrdiff_t tiles;
  std::ptrdiff_t tile_rows;  ///< of every tile, 1 … max_tile_rows
  std::ptrdiff_t rows;       ///< of all tiles without those beyond M, which are the end of the last tile
  std::ptrdiff_t halves;
  const std::ptrdiff_t* first;  ///< [halves + 1]: the units of half-panel h are first[h] … first[h + 1]
  const std::int32_t* steps;    ///< unit i meets k 32 * steps[i] …
  const void* w;                ///< unit 0
  float* y;                     ///< row r, half-panel h at y + r * y_stride + h * 16
  std::ptrdiff_t y_stride;
  // int8, else null: y = token_scales[row] · scales[n] · (sum + starts[n]). x is unsigned, 128 more than its codes; the
  // starts, -128 Σ w[n], make up for that.
  const float* token_scales;   ///< [rows]
  const float* scales;         ///< [halves][16]
  const std::int32_t* starts;  ///< [halves][16]
  bool stream;  ///< y lies on 64-byte boundaries and is large: written past the caches where the level can
};

struct BlockSparseKernel {
  Slot<void (*)(const BlockSparseProduct& p) noexcept> multiply;
  std::ptrdiff_t max_tile_rows = 0;
};

/// Weights of int8 whose columns are shared by strips of 4 rows alone (blocks of 4x1), which would leave units of 16 x
/// 32 nearly empty. A strip is the list of the columns in which it has weights, in groups of four: [4 rows][4 columns],
/// so that four bytes of a row meet four activations; missing columns are zeros at any column. Source: the 4x1 pattern
/// of Intel's sparse accelerator, arXiv:2306.16601.
///
/// x lies column by column, as unsigned codes like those above, 64 tokens side by side: token t of a tile at byte
/// strip_place(t), where four columns interleaved (vpunpck) are registers of 16 tokens that follow each other.
inline constexpr std::ptrdiff_t kStripRows = 4;
inline constexpr std::ptrdiff_t kStripTokens = 64;
static constexpr std::ptrdiff_t strip_place(std::ptrdiff_t t) { return t % 16 / 4 * 16 + t / 16 * 4 + t % 4; }

struct StripProduct {
  const std::uint8_t* x;        ///< tile 0: [columns][64]
  std::ptrdiff_t x_tile_bytes;  ///< from one tile of 64 tokens to the next
  std::ptrdiff_t rows;          ///< tokens
  std::ptrdiff_t halves;        ///< half-panels of four strips
  const std::ptrdiff_t* first;  ///< [4 * halves + 1]: the groups of strip i are first[i] … first[i + 1]
  const std::int32_t* columns;  ///< [groups + 2][4]: where a column of x begins, 64 times its number
  const std::int8_t* w;         ///< [groups][4 rows][4 columns]
  float* y;                     ///< token r, half-panel h at y + r * y_stride + h * 16
  std::ptrdiff_t y_stride;
  const float* token_scales;   ///< whole tiles of them; the rest as above
  const float* scales;         ///< [halves][16]
  const std::int32_t* starts;  ///< [halves][16]
  bool stream;
};

/// Weights of bf16 that stand apart more finely than units: a unit without its zeros is its 16 words of bits, one for
/// each line of 16 pairs, bit i for the i-th bf16 of the line, and behind them those that are not zero. Behind the last
/// unit of all lie 64 bytes that may be read. Source: the bitmaps of SparAMX, arXiv:2502.12444.
struct BitmaskProduct {
  const void* x;                        ///< [K / 32][tokens][32] f32 or bf16, zeros beyond K
  int tokens;                           ///< 1, 2, 4 or 8
  std::ptrdiff_t halves;                ///< half-panels
  const std::ptrdiff_t* first;          ///< [halves + 1]: the units of half-panel h are first[h] … first[h + 1]
  const std::int32_t* steps;            ///< unit i meets k 32 * steps[i] …
  const std::ptrdiff_t* weights_first;  ///< [halves]: where the units of a half-panel begin, in bytes from w
  const unsigned char* w;
  float* sums;  ///< token t, half-panel h at sums + t * sums_stride + h * 16
  std::ptrdiff_t sums_stride;
};

struct BlockSparseKernels {
  Slot<void (*)(const BitmaskProduct& p) noexcept> bitmask_f32;
  Slot<void (*)(const BitmaskProduct& p) noexcept> bitmask_bf16;  ///< bf16 dots; missing where a level has none
  /// So many units with their zeros, as the kernels above take them.
  Slot<void (*)(const unsigned char* w, std::ptrdiff_t units, std::uint16_t* dst) noexcept> expand_bitmask;
  Slot<void (*)(const StripProduct& p) noexcept> strips_int8;
  /// Codes of up to 64 tokens, `stride` bytes apart, to the columns of a tile, 128 added: columns [0, count).
  Slot<void (*)(const std::int8_t* codes, std::ptrdiff_t stride, std::ptrdiff_t tokens, std::ptrdiff_t count,
                std::uint8_t* dst) noexcept>
      spread_tokens;
  BlockSparseKernel f32_f32;
  BlockSparseKernel f32_bf16;   ///< f32 x, bf16 weights widened in registers
  BlockSparseKernel bf16_bf16;  ///< bf16 dots; missing where the dense family has none for many tokens
  BlockSparseKernel int8_int8;  ///< missing where a level has no integer dots
};

/// Calls visit("name", slot) for every slot of the family.
template <class Visitor>
void visit_slots(const BlockSparseKernels& k, Visitor&& visit) {
  visit("f32_f32_f32p16", k.f32_f32.multiply);
  visit("f32_f32_bf16p16", k.f32_bf16.multiply);
  visit("f32_bf16_bf16p16", k.bf16_bf16.multiply);
  visit("f32_int8_int8p16", k.int8_int8.multiply);
  visit("few_f32_f32_bitmask", k.bitmask_f32);
  visit("few_f32_bf16_bf16_bitmask", k.bitmask_bf16);
  visit("expand_bf16_bitmask", k.expand_bitmask);
  visit("f32_int8_int8x4", k.strips_int8);
  visit("spread_tokens_int8", k.spread_tokens);
}

void install_block_sparse_scalar(BlockSparseKernels& k, Features features) noexcept;
void install_block_sparse_avx2(BlockSparseKernels& k, Features features) noexcept;
void install_block_sparse_avx512(BlockSparseKernels& k, Features features) noexcept;
void install_block_sparse_avx512vnni(BlockSparseKernels& k, Features features) noexcept;
void install_block_sparse_avx512bf16(BlockSparseKernels& k, Features features) noexcept;
void install_bitmask_scalar(BlockSparseKernels& k, Features features) noexcept;
void install_bitmask_avx2(BlockSparseKernels& k, Features features) noexcept;
void install_bitmask_avx512(BlockSparseKernels& k, Features features) noexcept;
void install_bitmask_avx512vbmi2(BlockSparseKernels& k, Features features) noexcept;
void install_bitmask_neon(BlockSparseKernels& k, Features features) noexcept;
void install_strips_scalar(BlockSparseKernels& k, Features features) noexcept;
void install_strips_avx512vnni(BlockSparseKernels& k, Features features) noexcept;
void install_block_sparse_neon(BlockSparseKernels& k, Features features) noexcept;

}  // namespace blockpack::kernels
