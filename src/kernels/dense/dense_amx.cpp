// SPDX-License-Identifier: Apache-2.0
/// bf16 products on AMX tiles.
///
/// Tile 2 x 2: 32 rows of x against one panel of 32 columns; four sums, two tiles of x, two of weights. A step of 32 k
/// is 4 products of 16 cycles, in whose shadow 4 tile loads and a few prefetches run. The block of weights (32 columns
/// x 512 k = 32 KB) stays in L1 while x streams from L2; x comes through the T1 load, which keeps it from evicting the
/// weights. While a block is in use the next one is fetched into L2, from its two halves in turn (two pages at once).
///
/// Limits, one thread, 4096x4096, packing of x and writing of y included. Many tokens: the rate of tile products on
/// registers, measured in the same run. Its clock falls under load, so the fraction depends on what ran before: 0.57 at
/// 512 tokens and 0.53 at 128 between runs of this kernel alone, 0.50 and 0.34 between runs of another library. Loading
/// and storing the sums costs about 10 %, panels passing from L2 through L1 another 8 %, weights and x that come from
/// the last-level cache 20 %; docs/benchmarks.md has the parts and what was tried. Up to 32 tokens: the read bandwidth;
/// 0.93 to 0.96 of it at 8 and 16 tokens, 0.87 to 0.90 at 32.
///
/// The tile instructions are written in inline assembly: the intrinsics of GCC 12 declare only part of the memory they
/// read, and the optimizer dropped stores to the tile configuration. Every call configures the tiles and releases them.

#include <immintrin.h>

#include "kernels/dense/dense_kernels.hpp"

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

#define BLOCKPACK_TILE_LOAD(tile, p) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(p), "r"(kRow) : "memory")
#define BLOCKPACK_TILE_LOAD_T1(tile, p) \
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #tile : : "r"(p), "r"(kRow) : "memory")
#define BLOCKPACK_TILE_LOAD_SUMS(tile, p) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(p), "r"(kSumsRow) : "memory")
#define BLOCKPACK_TILE_STORE_SUMS(tile, p) \
  __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(p), "r"(kSumsRow) : "memory")
#define BLOCKPACK_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::)
// tmm(sum) += tmm(x) · tmm(w)
#define BLOCKPACK_TILE_DOT(sum, x, w) __asm__ volatile("tdpbf16ps %%tmm" #w ", %%tmm" #x ", %%tmm" #sum ::)

constexpr std::ptrdiff_t kRow = 64;       // bytes of a row of x or of weights in a tile
constexpr std::ptrdiff_t kSumsRow = 128;  // bytes of a row of sums
constexpr std::ptrdiff_t kTile = 1024;    // bytes of a tile of weights
constexpr std::ptrdiff_t kLine = 64;
constexpr std::ptrdiff_t kFewAhead = 2048;  // bytes

// Tiles below x_end have tile_rows rows (sums and x), the others 16 (weights).
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

// Assembly again: a function that only prefetches counts as free of effects, and GCC 12 drops calls of it.
static inline void fetch(const char* p) { __asm__ volatile("prefetcht2 (%0)" : : "r"(p)); }
static inline void fetch_l1(const char* p) { __asm__ volatile("prefetcht0 (%0)" : : "r"(p)); }

// What is fetched while a panel is multiplied: the next block of weights from two places half a block apart, and x.
struct Ahead {
  const char* w;
  std::ptrdiff_t w_half;
  const char* x;
};

// W lines of each half of the next weights and X lines of the next x per step, spread between the products.
template <int W, int X>
static inline void fetch_part(const Ahead& a, int part) {
#pragma GCC unroll 8
  for (int i = 0; i < W; ++i) {
    if (i % 4 == part) {
      fetch(a.w + i * kLine);
      fetch(a.w + a.w_half + i * kLine);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < X; ++i) {
    if (3 - i % 4 == part) fetch(a.x + i * kLine);
  }
}

// Rows of finished sums on their way to y, past the caches: written a few at a time while the next tiles are
// multiplied, because a burst of stores would wait for memory. Only whole lines are written so: where rows of y do not
// start on a line, a panel also writes what its left neighbour left over and leaves its own last columns to the right
// one.
struct Drain {
  const float* sums;
  const float* left;  // the same rows of the panel before, or null
  float* y;
  std::ptrdiff_t y_stride;
  std::ptrdiff_t rows;
  bool last;  // no panel follows
  __m512 bias[2];
  __m512 left_bias;
};

static inline void drain(Drain& d, std::ptrdiff_t rows) {
  for (; rows > 0 && d.rows > 0; --rows, --d.rows) {
    const __m512 a = _mm512_add_ps(_mm512_loadu_ps(d.sums), d.bias[0]);
    const __m512 b = _mm512_add_ps(_mm512_loadu_ps(d.sums + 16), d.bias[1]);
    const int over = static_cast<int>(reinterpret_cast<std::uintptr_t>(d.y) / sizeof(float) % 16);
    if (over == 0) {
      _mm512_stream_ps(d.y, a);
      _mm512_stream_ps(d.y + 16, b);
    } else {
      const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      const __m512i shifted = _mm512_add_epi32(iota, _mm512_set1_epi32(16 - over));
      const __mmask16 low = static_cast<__mmask16>((1u << over) - 1);
      float* line = d.y - over;
      if (d.left != nullptr) {
        const __m512 left = _mm512_add_ps(_mm512_loadu_ps(d.left + 16), d.left_bias);
        _mm512_stream_ps(line, _mm512_permutex2var_ps(left, shifted, a));
      } else {
        _mm512_mask_storeu_ps(line, static_cast<__mmask16>(~low), _mm512_permutex2var_ps(a, shifted, a));
      }
      _mm512_stream_ps(line + 16, _mm512_permutex2var_ps(a, shifted, b));
      if (d.last) _mm512_mask_storeu_ps(line + 32, low, _mm512_permutex2var_ps(b, shifted, b));
    }
    d.sums += kPanelColumns;
    if (d.left != nullptr) d.left += kPanelColumns;
    d.y += d.y_stride;
  }
}

// What runs beside the products with a panel, a part at every step.
struct Parts {
  Beside* beside;
  std::ptrdiff_t part;
  std::ptrdiff_t parts;
  void run() {
    if (beside != nullptr) beside->run(*beside, part++, parts);
  }
};

// T row tiles (1 or 2) against a panel. Y: the tiles before these are drained meanwhile. In the first step a sum is
// loaded right before its first product, in the last one stored right after its last: the others hide the wait.
template <int T, int W, int X, bool Y>
static inline void multiply_tiles(const char* x, std::ptrdiff_t x_tile_bytes, std::ptrdiff_t x_step, const char* w,
                                  std::ptrdiff_t steps, float* sums, std::ptrdiff_t sums_tile, bool accumulate,
                                  Ahead& ahead, Drain& before, Parts& beside) {
  float* second = sums + sums_tile;
  const char* next_sums = reinterpret_cast<const char*>(sums + T * sums_tile);
  if (!accumulate) {
    BLOCKPACK_TILE_ZERO(0);
    BLOCKPACK_TILE_ZERO(1);
    if (T == 2) BLOCKPACK_TILE_ZERO(2);
    if (T == 2) BLOCKPACK_TILE_ZERO(3);
  }
  for (std::ptrdiff_t s = 0; s < steps; ++s) {
    const bool load = accumulate && s == 0, store = s + 1 == steps;
    BLOCKPACK_TILE_LOAD(6, w);
    BLOCKPACK_TILE_LOAD_T1(4, x);
    if (load) BLOCKPACK_TILE_LOAD_SUMS(0, sums);
    fetch_part<W, X>(ahead, 0);
    fetch_l1(next_sums);
    BLOCKPACK_TILE_DOT(0, 4, 6);
    BLOCKPACK_TILE_LOAD(7, w + kTile);
    if (load) BLOCKPACK_TILE_LOAD_SUMS(1, sums + 16);
    fetch_part<W, X>(ahead, 1);
    fetch_l1(next_sums + kLine);
    BLOCKPACK_TILE_DOT(1, 4, 7);
    if (store) BLOCKPACK_TILE_STORE_SUMS(0, sums);
    if (T == 2) {
      BLOCKPACK_TILE_LOAD_T1(5, x + x_tile_bytes);
      if (load) BLOCKPACK_TILE_LOAD_SUMS(2, second);
    }
    fetch_part<W, X>(ahead, 2);
    fetch_l1(next_sums + 2 * kLine);
    if (T == 2) {
      BLOCKPACK_TILE_DOT(2, 5, 6);
      if (load) BLOCKPACK_TILE_LOAD_SUMS(3, second + 16);
    }
    if (store) BLOCKPACK_TILE_STORE_SUMS(1, sums + 16);
    fetch_part<W, X>(ahead, 3);
    fetch_l1(next_sums + 3 * kLine);
    if (Y) drain(before, 2);
    if (T == 2) {
      BLOCKPACK_TILE_DOT(3, 5, 7);
      if (store) BLOCKPACK_TILE_STORE_SUMS(2, second);
      if (store) BLOCKPACK_TILE_STORE_SUMS(3, second + 16);
    }
    beside.run();
    next_sums += 4 * kLine;
    w += 2 * kTile;
    x += x_step;
    ahead.w += W * kLine;
    ahead.x += X * kLine;
  }
  if (Y) drain(before, before.rows);
}

// Lines [first, first + 16) of the weights kFewAhead on.
template <bool A>
static inline void fetch_ahead(const char* w, int first) {
  if (!A) return;
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) fetch_l1(w + kFewAhead + (first + i) * kLine);
}

// Up to 32 rows: weights are used once, so they stream into L1 with a fixed distance of prefetch (A; none where they
// lie in L2), while x stays in L1 as far as it fits. T row tiles against P panels, T * P = 2: two panels side by side
// where there is one row tile, because one product depends on the one before it in its sum for 52 cycles.
template <int T, int P, bool A>
static void stream_part(const BlockProduct& p, std::ptrdiff_t panel) {
  const std::ptrdiff_t steps = p.depth / kBf16Step;
  const std::ptrdiff_t x_step = p.tile_rows * kRow;
  const char* x = static_cast<const char*>(p.x);
  const char* w = static_cast<const char*>(p.w) + panel * p.w_panel_bytes;
  float* sums = p.sums + panel * p.sums_panel;
  const std::ptrdiff_t second = P == 2 ? p.sums_panel : p.tile_rows * kPanelColumns;
  if (p.accumulate) {
    BLOCKPACK_TILE_LOAD_SUMS(0, sums);
    BLOCKPACK_TILE_LOAD_SUMS(1, sums + 16);
    if (T * P == 2) {
      BLOCKPACK_TILE_LOAD_SUMS(2, sums + second);
      BLOCKPACK_TILE_LOAD_SUMS(3, sums + second + 16);
    }
  } else {
    BLOCKPACK_TILE_ZERO(0);
    BLOCKPACK_TILE_ZERO(1);
    BLOCKPACK_TILE_ZERO(2);
    BLOCKPACK_TILE_ZERO(3);
  }
  for (std::ptrdiff_t s = 0; s < steps; ++s) {
    BLOCKPACK_TILE_LOAD(4, x);
    fetch_ahead<A>(w, 0);
    BLOCKPACK_TILE_LOAD_T1(6, w);
    BLOCKPACK_TILE_DOT(0, 4, 6);
    fetch_ahead<A>(w, 16);
    BLOCKPACK_TILE_LOAD_T1(7, w + kTile);
    BLOCKPACK_TILE_DOT(1, 4, 7);
    if (P == 2) {
      const char* other = w + p.w_panel_bytes;
      fetch_ahead<A>(other, 0);
      BLOCKPACK_TILE_LOAD_T1(5, other);
      BLOCKPACK_TILE_DOT(2, 4, 5);
      fetch_ahead<A>(other, 16);
      BLOCKPACK_TILE_LOAD_T1(6, other + kTile);
      BLOCKPACK_TILE_DOT(3, 4, 6);
    } else if (T == 2) {
      BLOCKPACK_TILE_LOAD(5, x + p.x_tile_bytes);
      BLOCKPACK_TILE_DOT(2, 5, 6);
      BLOCKPACK_TILE_DOT(3, 5, 7);
    }
    w += 2 * kTile;
    x += x_step;
  }
  BLOCKPACK_TILE_STORE_SUMS(0, sums);
  BLOCKPACK_TILE_STORE_SUMS(1, sums + 16);
  if (T * P == 2) {
    BLOCKPACK_TILE_STORE_SUMS(2, sums + second);
    BLOCKPACK_TILE_STORE_SUMS(3, sums + second + 16);
  }
}

template <bool A>
static void stream_panels(const BlockProduct& p) {
  std::ptrdiff_t panel = 0;
  if (p.tiles == 1) {
    for (; panel + 2 <= p.panels; panel += 2) stream_part<1, 2, A>(p, panel);
    if (panel < p.panels) stream_part<1, 1, A>(p, panel);
  } else {
    for (; panel < p.panels; ++panel) stream_part<2, 1, A>(p, panel);
  }
}

// W: lines of each half of the next weights per step; X: lines of the next x per step, 0 when there is none.
template <int W, int X, bool Y>
static void panels_by_pairs(const BlockProduct& p) {
  const std::ptrdiff_t steps = p.depth / kBf16Step;
  const std::ptrdiff_t x_step = p.tile_rows * kRow;
  const std::ptrdiff_t sums_tile = p.tile_rows * kPanelColumns;
  Ahead ahead{nullptr, steps * kTile, static_cast<const char*>(p.next_x)};
  Drain before{};
  for (std::ptrdiff_t panel = 0; panel < p.panels; ++panel) {
    const char* x = static_cast<const char*>(p.x);
    const std::ptrdiff_t place = p.beside == nullptr ? panel : panel % 2;
    const char* w = static_cast<const char*>(p.w) + place * p.w_panel_bytes;
    const char* next = panel + 1 < p.panels ? w + p.w_panel_bytes : static_cast<const char*>(p.next_w);
    Parts beside{p.beside, 0, (p.tiles + 1) / 2 * steps};
    ahead.w = next != nullptr ? next : w;
    float* sums = p.sums + panel * p.sums_panel;
    for (std::ptrdiff_t t = 0; t < p.tiles; t += 2) {
      if (t + 2 <= p.tiles) {
        multiply_tiles<2, W, X, Y>(x, p.x_tile_bytes, x_step, w, steps, sums, sums_tile, p.accumulate, ahead, before,
                                   beside);
      } else {
        multiply_tiles<1, W, X, Y>(x, p.x_tile_bytes, x_step, w, steps, sums, sums_tile, p.accumulate, ahead, before,
                                   beside);
      }
      if (Y) {
        const std::ptrdiff_t row = t * p.tile_rows;
        const std::ptrdiff_t made = t + 2 <= p.tiles ? 2 * p.tile_rows : p.tile_rows;
        before.sums = sums;
        before.y = p.y + row * p.y_stride + panel * kPanelColumns;
        before.y_stride = p.y_stride;
        before.rows = p.rows - row < made ? p.rows - row : made;
        before.left = panel > 0 ? sums - p.sums_panel : nullptr;
        before.last = panel + 1 == p.panels;
        const float* bias = p.bias == nullptr ? nullptr : p.bias + panel * kPanelColumns;
        const __m512 zero = _mm512_setzero_ps();
        before.bias[0] = bias == nullptr ? zero : _mm512_loadu_ps(bias);
        before.bias[1] = bias == nullptr ? zero : _mm512_loadu_ps(bias + 16);
        before.left_bias = bias == nullptr || panel == 0 ? zero : _mm512_loadu_ps(bias - 16);
      }
      x += 2 * p.x_tile_bytes;
      sums += 2 * sums_tile;
    }
  }
  if (Y) {
    drain(before, before.rows);
    _mm_sfence();
  }
}

template <bool Y>
static void blocks(const BlockProduct& p) {
  // 16 lines of each half and step of the block, shared by the pairs of row tiles.
  const std::ptrdiff_t pairs = (p.tiles + 1) / 2;
  const bool x_ahead = p.next_x != nullptr && p.panels * pairs >= 32;
  if (p.beside != nullptr) {
    x_ahead ? panels_by_pairs<0, 2, Y>(p) : panels_by_pairs<0, 0, Y>(p);
  } else if (pairs >= 16) {
    x_ahead ? panels_by_pairs<1, 3, Y>(p) : panels_by_pairs<1, 0, Y>(p);
  } else if (pairs >= 8) {
    x_ahead ? panels_by_pairs<2, 2, Y>(p) : panels_by_pairs<2, 0, Y>(p);
  } else if (pairs >= 4) {
    x_ahead ? panels_by_pairs<4, 2, Y>(p) : panels_by_pairs<4, 0, Y>(p);
  } else {
    panels_by_pairs<8, 0, Y>(p);
  }
}

void block_bf16(const BlockProduct& p) noexcept {
  configure(p.tile_rows, p.tiles == 1 ? 5 : 6);
  if (p.y != nullptr) {
    blocks<true>(p);
  } else if (p.tiles <= 2 && p.beside == nullptr) {
    p.next_w != nullptr ? stream_panels<true>(p) : stream_panels<false>(p);
  } else {
    blocks<false>(p);
  }
  release();
}

}  // namespace

void install_dense_amx(DenseKernels& k, Features) noexcept { k.block_bf16 = {{block_bf16, "amx"}, 16, true, true}; }

}  // namespace blockpack::kernels
