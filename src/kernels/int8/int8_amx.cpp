// SPDX-License-Identifier: Apache-2.0
/// int8 products on AMX tiles (tdpbsud: x signed, codes unsigned).
///
/// Tile 2 x 2, as in dense_amx.cpp: 32 rows of x against two panels of 16 columns; 64 k are 4 products of 16 cycles, in
/// whose shadow 4 tile loads, a few prefetches and part of the conversion of the sums before run. A block of codes
/// (32 columns x 1024 k = 32 KB) stays in L1 while x streams from L2 through the T1 load.
///
/// Limit, many tokens: the rate of tile products on registers; reached, one thread, 4096x4096, packing of x and writing
/// of y included: 0.40 of it at 128 tokens, 0.42 at 512 (docs/benchmarks.md has the parts).
///
/// With one scale a row a sum is converted once. With a scale per group of 128 k it is every second step: 64 cycles of
/// tile products then have 96 vector operations (48 cycles of two ports), 144 loads of a line (72 cycles) and 64 stores
/// beside them; reached 0.21 to 0.24, about what bf16 tiles take for the same product. With a scale per group of 32 k a
/// product of 16 x 16 sums would take 8 cycles, where bf16 takes 16, but its conversion 48 vector operations, 24
/// cycles: weights in groups of fewer than 128 are left to bf16 tiles, where the weights carry their scales.

#include <immintrin.h>

#include "kernels/int8/int8_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/int8/int8_avx512.inc"

struct alignas(64) TileConfig {
  std::uint8_t palette;
  std::uint8_t start_row;
  std::uint8_t reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// Inline assembly for the reasons given in dense_amx.cpp.
#define BLOCKPACK_TILE_LOAD(tile, p) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(p), "r"(kRow) : "memory")
#define BLOCKPACK_TILE_LOAD_T1(tile, p) \
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #tile : : "r"(p), "r"(kRow) : "memory")
#define BLOCKPACK_TILE_LOAD_SUMS(tile, p) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(p), "r"(kSumsRow) : "memory")
#define BLOCKPACK_TILE_STORE_SUMS(tile, p) \
  __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(p), "r"(kSumsRow) : "memory")
#define BLOCKPACK_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::)
// tmm(sum) += tmm(x) · tmm(w), x signed, w unsigned
#define BLOCKPACK_TILE_DOT(sum, x, w) __asm__ volatile("tdpbsud %%tmm" #w ", %%tmm" #x ", %%tmm" #sum ::)

constexpr std::ptrdiff_t kRow = 64;       // bytes of a row of x or of codes in a tile
constexpr std::ptrdiff_t kSumsRow = 128;  // bytes of a row of sums
constexpr std::ptrdiff_t kTile = 1024;    // bytes of a tile of codes
constexpr std::ptrdiff_t kLine = 64;
constexpr std::ptrdiff_t kTileRows = 16;

// Tiles below x_end have tile_rows rows (sums and x), the others 16 (codes).
static inline void configure(std::ptrdiff_t tile_rows, int x_end) {
  TileConfig config;
  __builtin_memset(&config, 0, sizeof(config));
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = tile < x_end ? static_cast<std::uint8_t>(tile_rows) : 16;
  }
  __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
}
static inline void release() { __asm__ volatile("tilerelease" ::: "memory"); }

static inline void fetch(const void* p) { __asm__ volatile("prefetcht1 (%0)" : : "r"(p)); }

// The codes of one run, and what is fetched meanwhile: the next pair of panels.
struct Codes {
  const unsigned char* w[2];
  const unsigned char* last[2];  // the tiles of the last step, where it ends with the codes; else null
};
struct Ahead {
  const unsigned char* w[2];
};

template <int W>
static inline void fetch_part(const Ahead& a, int part) {
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if (i % 4 == part) {
      fetch(a.w[0] + i * kLine);
      fetch(a.w[1] + i * kLine);
    }
  }
}

// T row tiles (1 or 2) against a pair of panels over one run; the rows before these are drained meanwhile. A sum is
// loaded right before its first product and stored right after its last: the others hide the wait.
template <int T, int W>
static inline void multiply_run(const std::int8_t* x, std::ptrdiff_t x_tile_bytes, std::ptrdiff_t x_step,
                                const Codes& codes, std::ptrdiff_t steps, const std::int32_t* from, std::int32_t* to,
                                std::ptrdiff_t tile_sums, Ahead& ahead, Drain& before) {
  // Two times a step where there are many; the loop of a short run is better left alone.
  const std::ptrdiff_t part = steps > 4 ? (kTileRows + steps - 1) / steps : 0;
  const unsigned char* w0 = codes.w[0];
  const unsigned char* w1 = codes.w[1];
  if (from == nullptr) {
    BLOCKPACK_TILE_ZERO(0);
    BLOCKPACK_TILE_ZERO(1);
    if (T == 2) BLOCKPACK_TILE_ZERO(2);
    if (T == 2) BLOCKPACK_TILE_ZERO(3);
  }
  for (std::ptrdiff_t s = 0; s < steps; ++s) {
    const bool load = from != nullptr && s == 0, store = s + 1 == steps;
    if (store && codes.last[0] != nullptr) {
      w0 = codes.last[0];
      w1 = codes.last[1];
    }
    BLOCKPACK_TILE_LOAD(6, w0);
    BLOCKPACK_TILE_LOAD_T1(4, x);
    if (load) BLOCKPACK_TILE_LOAD_SUMS(0, from);
    fetch_part<W>(ahead, 0);
    BLOCKPACK_TILE_DOT(0, 4, 6);
    BLOCKPACK_TILE_LOAD(7, w1);
    if (load) BLOCKPACK_TILE_LOAD_SUMS(1, from + 16);
    fetch_part<W>(ahead, 1);
    BLOCKPACK_TILE_DOT(1, 4, 7);
    if (store) BLOCKPACK_TILE_STORE_SUMS(0, to);
    if (T == 2) {
      BLOCKPACK_TILE_LOAD_T1(5, x + x_tile_bytes);
      if (load) BLOCKPACK_TILE_LOAD_SUMS(2, from + tile_sums);
    }
    drain(before, part);
    fetch_part<W>(ahead, 2);
    if (T == 2) {
      BLOCKPACK_TILE_DOT(2, 5, 6);
      if (load) BLOCKPACK_TILE_LOAD_SUMS(3, from + tile_sums + 16);
    }
    if (store) BLOCKPACK_TILE_STORE_SUMS(1, to + 16);
    fetch_part<W>(ahead, 3);
    drain(before, part);
    if (T == 2) {
      BLOCKPACK_TILE_DOT(3, 5, 7);
      if (store) BLOCKPACK_TILE_STORE_SUMS(2, to + tile_sums);
      if (store) BLOCKPACK_TILE_STORE_SUMS(3, to + tile_sums + 16);
    }
    w0 += kTile;
    w1 += kTile;
    x += x_step;
    ahead.w[0] += W * kLine;
    ahead.w[1] += W * kLine;
  }
  drain(before, before.rows);
}

// W: lines of each of the next panels per step.
template <int W>
static void panels_by_pairs(const Int8Product& p) {
  const std::ptrdiff_t x_step = p.tile_rows * kRow, tile_sums = p.tile_rows * kPanelColumns;
  alignas(64) std::int32_t ring[3][2 * kTileRows * kPanelColumns];
  alignas(64) unsigned char last[2][kTile];
  int turn = 0;
  Ahead ahead;
  // Sums are drained while the run after the next is multiplied: a load of what a tile just stores would wait for it.
  Drain before{}, latest{};
  const std::ptrdiff_t end = p.first_step + p.steps;
  for (std::ptrdiff_t panel = 0; panel < p.panels; panel += 2) {
    // A panel without a neighbour is its own: the second half of its sums goes nowhere.
    const std::ptrdiff_t beside = panel + 1 < p.panels ? p.w_panel_bytes : 0;
    const unsigned char* w = p.w + panel * p.w_panel_bytes;
    const unsigned char* next = panel + 2 < p.panels ? codes_at(p, w + 2 * p.w_panel_bytes, p.first_step) : p.next_w;
    ahead.w[0] = next != nullptr ? next : codes_at(p, w, p.first_step);
    ahead.w[1] = ahead.w[0] + beside;
    if (p.half_step) {
      __builtin_memset(last, 0, sizeof last);
      __builtin_memcpy(last[0], codes_at(p, w, end - 1), kTile / 2);
      __builtin_memcpy(last[1], codes_at(p, w + beside, end - 1), kTile / 2);
    }
    for (std::ptrdiff_t t = 0; t < p.tiles; t += 2) {
      const bool two = t + 2 <= p.tiles;
      std::int32_t* integers = nullptr;
      if (p.integers != nullptr) integers = p.integers + panel / 2 * p.totals_pair + t * tile_sums;
      for (std::ptrdiff_t s = 0, run = 0; s < p.steps; s += p.run_steps, ++run) {
        const std::ptrdiff_t steps = p.steps - s < p.run_steps ? p.steps - s : p.run_steps;
        const bool ends = p.ends || s + steps < p.steps;
        Codes codes{};
        codes.w[0] = codes_at(p, w, p.first_step + s);
        codes.w[1] = codes.w[0] + beside;
        if (p.half_step && s + steps == p.steps) {
          codes.last[0] = last[0];
          codes.last[1] = last[1];
        }
        const std::int32_t* from = p.starts || s > 0 ? nullptr : integers;
        std::int32_t* to = ends ? ring[turn] : integers;
        const std::int8_t* x = p.x + t * p.x_tile_bytes + s * x_step;
        if (two) {
          multiply_run<2, W>(x, p.x_tile_bytes, x_step, codes, steps, from, to, tile_sums, ahead, before);
        } else {
          multiply_run<1, W>(x, p.x_tile_bytes, x_step, codes, steps, from, to, tile_sums, ahead, before);
        }
        before = latest;
        latest.rows = 0;
        if (ends) {
          latest = drain_of(p, panel / 2, t, run, to, two ? 2 * p.tile_rows : p.tile_rows);
          turn = turn == 2 ? 0 : turn + 1;
        }
      }
    }
  }
  drain(before, before.rows);
  drain(latest, latest.rows);
  if (p.y != nullptr) _mm_sfence();
}

void multiply(const Int8Product& p) noexcept {
  configure(p.tile_rows, 6);
  // 16 lines of each panel and step of the block, shared by the pairs of row tiles.
  const std::ptrdiff_t pairs = (p.tiles + 1) / 2;
  if (pairs >= 16) {
    panels_by_pairs<1>(p);
  } else if (pairs >= 8) {
    panels_by_pairs<2>(p);
  } else if (pairs >= 4) {
    panels_by_pairs<4>(p);
  } else if (pairs >= 2) {
    panels_by_pairs<8>(p);
  } else {
    panels_by_pairs<16>(p);
  }
  release();
}

}  // namespace

void install_int8_amx(Int8Kernels& k, Features) noexcept {
  k.multiply = {multiply, "amx"};
  k.max_tile_rows = kTileRows;
}

}  // namespace blockpack::kernels
