// SPDX-License-Identifier: Apache-2.0
/// Block-sparse bf16 products on AMX tiles: up to 4 row tiles of x (64 rows) against a half-panel of 16 columns, 4
/// sums. A step is a tile of weights, then per row tile a load through T1 and a product of 16 cycles; the tile loads
/// from L2 are the limit, 4 KB for 64 cycles. The instructions are inline assembly for the reason dense_amx.cpp gives.

#include <immintrin.h>

#include "kernels/block_sparse/block_sparse_kernels.hpp"

namespace blockpack::kernels {
namespace {

struct alignas(64) TileConfig {
  std::uint8_t palette;
  std::uint8_t start_row;
  std::uint8_t reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

constexpr std::ptrdiff_t kRow = 64;     // bytes of a row of x or of weights in a tile
constexpr std::ptrdiff_t kUnit = 1024;  // bytes
constexpr std::ptrdiff_t kAhead = 2 * kUnit;

// tmm0-3 sums, tmm4 and tmm5 x in turn, tmm6 weights.
static inline void configure(std::ptrdiff_t tile_rows) {
  TileConfig config;
  __builtin_memset(&config, 0, sizeof(config));
  config.palette = 1;
  for (int tile = 0; tile < 7; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = tile < 6 ? static_cast<std::uint8_t>(tile_rows) : 16;
  }
  __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
}

static inline void fetch(const char* p) { __asm__ volatile("prefetcht0 (%0)" : : "r"(p)); }

#define BLOCKPACK_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::)
#define BLOCKPACK_TILE_STEP(sum, a, p)                                                               \
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #a "\n\ttdpbf16ps %%tmm6, %%tmm" #a ", %%tmm" #sum \
                   :                                                                                 \
                   : "r"(p), "r"(kRow)                                                               \
                   : "memory")
#define BLOCKPACK_TILE_STORE(tile, p, row) \
  __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(p), "r"(row) : "memory")

// T row tiles against the list of a half-panel; `rows` of them are written.
template <int T>
static void tiles(const BlockSparseProduct& p, std::ptrdiff_t half, const char* x, std::ptrdiff_t rows, float* y) {
  BLOCKPACK_TILE_ZERO(0);
  if (T > 1) BLOCKPACK_TILE_ZERO(1);
  if (T > 2) BLOCKPACK_TILE_ZERO(2);
  if (T > 3) BLOCKPACK_TILE_ZERO(3);
  for (std::ptrdiff_t i = p.first[half]; i < p.first[half + 1]; ++i) {
    const char* w = static_cast<const char*>(p.w) + i * kUnit;
    const char* a = x + p.steps[i] * (p.tile_rows * kRow);
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm6" : : "r"(w), "r"(kRow) : "memory");
#pragma GCC unroll 16
    for (int line = 0; line < 16; ++line) fetch(w + kAhead + line * kRow);
    BLOCKPACK_TILE_STEP(0, 4, a);
    if (T > 1) BLOCKPACK_TILE_STEP(1, 5, a + p.x_tile_bytes);
    if (T > 2) BLOCKPACK_TILE_STEP(2, 4, a + 2 * p.x_tile_bytes);
    if (T > 3) BLOCKPACK_TILE_STEP(3, 5, a + 3 * p.x_tile_bytes);
  }
  // A tile is stored whole: not to y, where that ends before it does.
  alignas(64) float sums[T * 16 * kSparseColumns];
  const bool direct = !p.stream && rows >= T * p.tile_rows;
  float* to = direct ? y : sums;
  const std::ptrdiff_t stride = direct ? p.y_stride : kSparseColumns, row = stride * 4, next = p.tile_rows * stride;
  BLOCKPACK_TILE_STORE(0, to, row);
  if (T > 1) BLOCKPACK_TILE_STORE(1, to + next, row);
  if (T > 2) BLOCKPACK_TILE_STORE(2, to + 2 * next, row);
  if (T > 3) BLOCKPACK_TILE_STORE(3, to + 3 * next, row);
  for (std::ptrdiff_t r = 0; !direct && r < rows && r < T * p.tile_rows; ++r) {
    const __m512 sum = _mm512_load_ps(sums + r * kSparseColumns);
    p.stream ? _mm512_stream_ps(y + r * p.y_stride, sum) : _mm512_storeu_ps(y + r * p.y_stride, sum);
  }
}

void multiply(const BlockSparseProduct& p) noexcept {
  configure(p.tile_rows);
  for (std::ptrdiff_t half = 0; half < p.halves; ++half) {
    for (std::ptrdiff_t t = 0; t < p.tiles; t += 4) {
      const char* x = static_cast<const char*>(p.x) + t * p.x_tile_bytes;
      const std::ptrdiff_t row = t * p.tile_rows, rows = p.rows - row;
      float* y = p.y + row * p.y_stride + half * kSparseColumns;
      switch (p.tiles - t) {
        case 1:
          tiles<1>(p, half, x, rows, y);
          break;
        case 2:
          tiles<2>(p, half, x, rows, y);
          break;
        case 3:
          tiles<3>(p, half, x, rows, y);
          break;
        default:
          tiles<4>(p, half, x, rows, y);
      }
    }
  }
  __asm__ volatile("tilerelease" ::: "memory");
  if (p.stream) _mm_sfence();
}

}  // namespace

void install_block_sparse_amx(BlockSparseKernels& k, Features) noexcept { k.bf16_bf16 = {{multiply, "amx"}, 16}; }

}  // namespace blockpack::kernels
