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

struct BlockSparseKernels {
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
}

void install_block_sparse_scalar(BlockSparseKernels& k, Features features) noexcept;
void install_block_sparse_avx2(BlockSparseKernels& k, Features features) noexcept;
void install_block_sparse_avx512(BlockSparseKernels& k, Features features) noexcept;
void install_block_sparse_avx512vnni(BlockSparseKernels& k, Features features) noexcept;
void install_block_sparse_avx512bf16(BlockSparseKernels& k, Features features) noexcept;
void install_block_sparse_neon(BlockSparseKernels& k, Features features) noexcept;

}  // namespace blockpack::kernels
