// SPDX-License-Identifier: Apache-2.0
/// bf16 dots (vdpbf16ps). Cycles of one, and of a chain of them, on registers:
///
///                            vdpbf16ps      f32 multiply-add   vpdpbusd
///     Zen 5                  0.5, 6.0       0.5, 4.0           0.5, 4.0
///     Sapphire Rapids        2.1, 8.6       0.5, 4             0.5, 5 to 6
///
/// So on AMD, the feature fastbf16, they are the kernel of many tokens, with twice the products of f32 multiply-adds.
/// Elsewhere widened weights and f32 multiply-adds are twice as fast, that slot stays empty, and dots serve few tokens
/// alone, where memory is the limit.
///
/// Many tokens: tile 14 rows x 32 columns, 28 sums, 2 lines of weights and a broadcast in 32 registers; a pair of k
/// takes 16 loads for 28 dots, 14 cycles, so the dots are the limit. Blocks of 256 k (16 KB of weights, 7 KB of x) stay
/// in L1. The next weights, and during the last panel the next x, are fetched into L2, a line per pair: the hardware
/// does little of that here, without the x the rest reached 0.77 to 0.82 of the limit. Reached on Zen 5, one thread,
/// packing of x and writing of y included: 0.84 to 0.90 of the dots on registers from 32 tokens on. The tile alone,
/// from L2, reaches 0.97; packing, writing and pages the system has to clear take about 6 %. Writing y from the
/// registers of the last block instead of by `finish` made no difference.
///
/// Up to 14 tokens, weights are used once: they are fetched from memory into L1 10 KB ahead, or 5 KB each where two
/// panels go side by side (6 rows and fewer: below 12 sums, dots wait for each other). 2 KB ahead took twice the time,
/// no fetching four times.
///
/// One token walks 4 panels side by side, 8 sums in flight, each line fetched 2 KB ahead into L1: on Sapphire Rapids
/// 0.95 to 0.98 of the read bandwidth of the last-level cache, 1.05 to 1.08 of that of DRAM (which four streams
/// exceed), 4096x4096, one thread. Distances of 1, 4 and 8 KB are slower on one tier or the other. The last step of a
/// panel fetches the panels that come next: of panels of 256 k, that is an eighth of all lines.

#include <immintrin.h>

#include "kernels/dense/dense_kernels.hpp"

namespace blockpack::kernels {
namespace {

constexpr std::ptrdiff_t kAhead = 2048;    // bytes
constexpr std::ptrdiff_t kDotAhead = 512;  // weights

static inline __m512 dot(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// T tokens against P panels walked side by side; a line of weights is one pair of k of 16 columns.
template <int T, int P>
static void few_part(const FewProduct& p, std::ptrdiff_t token, std::ptrdiff_t panel) {
  const std::uint16_t* x = static_cast<const std::uint16_t*>(p.x) + token * p.x_stride;
  const char* w[P];
  for (int i = 0; i < P; ++i) w[i] = static_cast<const char*>(p.w) + (panel + i) * p.w_panel_bytes;
  __m512 acc[T][P][2];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) acc[t][i][0] = acc[t][i][1] = _mm512_setzero_ps();
  }
  for (std::ptrdiff_t k = 0; k < p.k; k += kBf16Step) {
    // A step is as long as the distance: the last one fetches the first of the panels that come next.
    static_assert(kAhead == kBf16Step * 64);
    const std::ptrdiff_t ahead = k + kBf16Step < p.k ? kAhead : P * p.w_panel_bytes - k * 64;
#pragma GCC unroll 4
    for (int pair = 0; pair < 16; ++pair) {
      __m512i a[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        int both;
        __builtin_memcpy(&both, x + t * p.x_stride + k + 2 * pair, sizeof(both));
        a[t] = _mm512_set1_epi32(both);
      }
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) {
        const char* line = w[i] + k * 64 + pair * 64;
        _mm_prefetch(line + ahead, _MM_HINT_T0);
        _mm_prefetch(line + 1024 + ahead, _MM_HINT_T0);
        const __m512i b0 = _mm512_loadu_si512(line);
        const __m512i b1 = _mm512_loadu_si512(line + 1024);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          acc[t][i][0] = dot(acc[t][i][0], a[t], b0);
          acc[t][i][1] = dot(acc[t][i][1], a[t], b1);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
      float* sums = p.sums + (token + t) * p.sums_stride + (panel + i) * kPanelColumns;
      _mm512_storeu_ps(sums, acc[t][i][0]);
      _mm512_storeu_ps(sums + 16, acc[t][i][1]);
    }
  }
}

template <int T, int P>
static void few_parts(const FewProduct& p, std::ptrdiff_t token) {
  std::ptrdiff_t panel = 0;
  for (; panel + P <= p.panels; panel += P) few_part<T, P>(p, token, panel);
  for (; panel < p.panels; ++panel) few_part<T, 1>(p, token, panel);
}

void few_f32_bf16_bf16(const FewProduct& p) noexcept {
  std::ptrdiff_t token = 0;
  for (; token + 4 <= p.tokens; token += 4) few_parts<4, 1>(p, token);
  switch (p.tokens - token) {
    case 3:
      return few_parts<3, 1>(p, token);
    case 2:
      return few_parts<2, 2>(p, token);
    case 1:
      return few_parts<1, 4>(p, token);
    default:
      return;
  }
}

// ---- many tokens ---------------------------------------------------------------------------------------------------

constexpr int kTileRows = 14;
constexpr int kPairRows = 6;  // tiles of so few rows take two panels: fewer than 12 sums wait for each other
constexpr std::ptrdiff_t kLine = 64;
constexpr std::ptrdiff_t kTileDepth = 256;    // k of a block in L1: 16 KB of weights, 7 KB of x
constexpr std::ptrdiff_t kTileAhead = 10240;  // bytes, of one panel or shared by two

// Assembly: a function that only prefetches counts as free of effects, and GCC 12 drops calls of it.
static inline void fetch_l1(const char* p) { __asm__ volatile("prefetcht0 (%0)" : : "r"(p)); }
static inline void fetch_l2(const char* p) { __asm__ volatile("prefetcht1 (%0)" : : "r"(p)); }

// A register tile: rows of x (x_step bytes from one step of 32 k to the next) against panels w_panel bytes apart.
struct Tile {
  const char* x;
  std::ptrdiff_t x_step;
  const char* w;
  std::ptrdiff_t w_panel;
  std::ptrdiff_t steps;
  float* sums;
  std::ptrdiff_t sums_panel;
  bool accumulate;
  const char* ahead;  // fetched into L2 meanwhile, a line every ahead_step bytes with each pair of k
  std::ptrdiff_t ahead_step;
};

// R rows against P panels. Once: the weights are used once and come from memory; they are fetched into L1 a fixed
// distance ahead, and nothing else is.
template <int R, int P, bool Once>
static void block_tile(const Tile& t) {
  const char* x = t.x;
  const char* w = t.w;
  const char* ahead = t.ahead;
  __m512 acc[R][P][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < P; ++i) {
      const float* sums = t.sums + i * t.sums_panel + r * kPanelColumns;
      acc[r][i][0] = t.accumulate ? _mm512_loadu_ps(sums) : _mm512_setzero_ps();
      acc[r][i][1] = t.accumulate ? _mm512_loadu_ps(sums + 16) : _mm512_setzero_ps();
    }
  }
  for (std::ptrdiff_t s = 0; s < t.steps; ++s, x += t.x_step, w += 32 * kLine) {
#pragma GCC unroll 4
    for (int pair = 0; pair < 16; ++pair) {
      __m512i b[P][2];
#pragma GCC unroll 2
      for (int i = 0; i < P; ++i) {
        const char* line = w + i * t.w_panel + pair * kLine;
        if (Once) {
          fetch_l1(line + kTileAhead / P);
          fetch_l1(line + 16 * kLine + kTileAhead / P);
        }
        b[i][0] = _mm512_loadu_si512(line);
        b[i][1] = _mm512_loadu_si512(line + 16 * kLine);
      }
      if (!Once) {
        fetch_l2(ahead);
        ahead += t.ahead_step;
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        int both;
        __builtin_memcpy(&both, x + r * kLine + pair * 4, sizeof(both));
        const __m512i a = _mm512_set1_epi32(both);
#pragma GCC unroll 2
        for (int i = 0; i < P; ++i) {
          acc[r][i][0] = dot(acc[r][i][0], a, b[i][0]);
          acc[r][i][1] = dot(acc[r][i][1], a, b[i][1]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < P; ++i) {
      float* sums = t.sums + i * t.sums_panel + r * kPanelColumns;
      _mm512_storeu_ps(sums, acc[r][i][0]);
      _mm512_storeu_ps(sums + 16, acc[r][i][1]);
    }
  }
}

using TileFunction = void (*)(const Tile& t);

// block_tile of so many rows, R at most.
template <int R, int P, bool Once>
struct Tiles {
  static TileFunction pick(std::ptrdiff_t rows) {
    return rows == R ? &block_tile<R, P, Once> : Tiles<R - 1, P, Once>::pick(rows);
  }
};
template <int P, bool Once>
struct Tiles<0, P, Once> {
  static TileFunction pick(std::ptrdiff_t) { return nullptr; }
};

// One row tile: every line of weights is used once.
template <bool Once>
static void one_tile(const BlockProduct& p) {
  Tile t{};
  t.x = static_cast<const char*>(p.x);
  t.x_step = p.tile_rows * kLine;
  t.w_panel = p.w_panel_bytes;
  t.steps = p.depth / kBf16Step;
  t.sums_panel = p.sums_panel;
  t.accumulate = p.accumulate;
  const TileFunction pair = p.rows <= kPairRows ? Tiles<kPairRows, 2, Once>::pick(p.rows) : nullptr;
  const TileFunction one = Tiles<kTileRows, 1, Once>::pick(p.rows);
  for (std::ptrdiff_t panel = 0; panel < p.panels;) {
    t.w = static_cast<const char*>(p.w) + panel * p.w_panel_bytes;
    t.ahead = t.w;
    t.sums = p.sums + panel * p.sums_panel;
    const bool two = pair != nullptr && panel + 2 <= p.panels;
    two ? pair(t) : one(t);
    panel += two ? 2 : 1;
  }
}

// Where the lines lie that are wanted next, and how many have been asked for.
struct Wanted {
  const char* from;
  std::ptrdiff_t lines;
  std::ptrdiff_t asked;
  // Gives the next `count` of them to a tile; false if none is left.
  bool give(Tile& t, std::ptrdiff_t count) {
    if (from == nullptr || asked >= lines) return false;
    t.ahead = from + asked * kLine;
    t.ahead_step = kLine;
    asked += count;
    return true;
  }
};

void block_bf16(const BlockProduct& p) noexcept {
  if (p.tiles == 1) return p.next_w != nullptr ? one_tile<true>(p) : one_tile<false>(p);
  const TileFunction whole = Tiles<kTileRows, 1, false>::pick(p.tile_rows);
  const TileFunction last = Tiles<kTileRows, 1, false>::pick(p.rows - (p.tiles - 1) * p.tile_rows);
  Tile t{};
  t.x_step = p.tile_rows * kLine;
  Wanted next_x{static_cast<const char*>(p.next_x), p.next_x_bytes / kLine, 0};
  for (std::ptrdiff_t panel = 0; panel < p.panels; ++panel) {
    const char* w = static_cast<const char*>(p.w) + panel * p.w_panel_bytes;
    const char* next_panel = panel + 1 < p.panels ? w + p.w_panel_bytes : static_cast<const char*>(p.next_w);
    for (std::ptrdiff_t k = 0; k < p.depth; k += kTileDepth) {
      const std::ptrdiff_t depth = p.depth - k < kTileDepth ? p.depth - k : kTileDepth;
      const char* next = k + depth < p.depth ? w + depth * kLine : next_panel;
      Wanted next_w{p.next_w != nullptr ? next : nullptr, depth, 0};
      t.steps = depth / kBf16Step;
      t.accumulate = p.accumulate || k > 0;
      for (std::ptrdiff_t tile = 0; tile < p.tiles; ++tile) {
        t.x = static_cast<const char*>(p.x) + tile * p.x_tile_bytes + k / kBf16Step * t.x_step;
        t.w = t.ahead = w;
        t.ahead_step = 0;
        t.sums = p.sums + panel * p.sums_panel + tile * p.tile_rows * kPanelColumns;
        // The next x during the last panel: it takes the place of sums that are done.
        if (!next_w.give(t, depth / 2) && panel + 1 == p.panels) next_x.give(t, depth / 2);
        tile + 1 < p.tiles ? whole(t) : last(t);
      }
      w += depth * kLine;
    }
  }
}

// ---- row-major weights ---------------------------------------------------------------------------------------------

// T rows of x with R rows of W in place, 32 k at a time.
template <int T, int R>
static void dots_part(const RowDots& p, std::ptrdiff_t token, std::ptrdiff_t row) {
  const std::uint16_t* x = static_cast<const std::uint16_t*>(p.x) + token * p.x_stride;
  const std::uint16_t* w = static_cast<const std::uint16_t*>(p.w) + row * p.w_stride;
  __m512 acc[T][R];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[t][r] = _mm512_setzero_ps();
  }
  // Past the end of these rows the prefetch goes on in the next ones.
  const std::ptrdiff_t wrap = R * p.w_stride - p.k;
  std::ptrdiff_t k = 0;
  for (; k + 32 <= p.k; k += 32) {
    const std::uint16_t* ahead = w + k + kDotAhead + (k + kDotAhead < p.k ? 0 : wrap);
    __m512i a[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) a[t] = _mm512_loadu_si512(x + t * p.x_stride + k);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + r * p.w_stride), _MM_HINT_T0);
      const __m512i b = _mm512_loadu_si512(w + r * p.w_stride + k);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[t][r] = dot(acc[t][r], a[t], b);
    }
  }
  if (k < p.k) {
    const __mmask32 mask = static_cast<__mmask32>((1u << (p.k - k)) - 1);
    __m512i a[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) a[t] = _mm512_maskz_loadu_epi16(mask, x + t * p.x_stride + k);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i b = _mm512_maskz_loadu_epi16(mask, w + r * p.w_stride + k);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[t][r] = dot(acc[t][r], a[t], b);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* sum = p.sums + (token + t) * p.sums_stride + row + r;
      *sum = (p.accumulate ? *sum : 0.0f) + _mm512_reduce_add_ps(acc[t][r]);
    }
  }
}

// A few rows of W stay in L1 while all tokens pass.
template <int R>
static void dots_rows(const RowDots& p, std::ptrdiff_t row) {
  std::ptrdiff_t token = 0;
  for (; token + 4 <= p.tokens; token += 4) dots_part<4, R>(p, token, row);
  for (; token + 2 <= p.tokens; token += 2) dots_part<2, R>(p, token, row);
  if (token < p.tokens) dots_part<1, R>(p, token, row);
}

void dots_f32_bf16_bf16(const RowDots& p) noexcept {
  std::ptrdiff_t row = 0;
  for (; row + 4 <= p.rows; row += 4) dots_rows<4>(p, row);
  for (; row < p.rows; ++row) dots_rows<1>(p, row);
}

}  // namespace

void install_dense_avx512bf16(DenseKernels& k, Features features) noexcept {
  if ((features & kFastBf16Dots) != 0) k.block_bf16 = {{block_bf16, "avx512vnni+fastbf16"}, kTileRows};
  k.few_f32_bf16_bf16 = {few_f32_bf16_bf16, "avx512vnni+avx512bf16"};
  k.dots_f32_bf16_bf16 = {dots_f32_bf16_bf16, "avx512vnni+avx512bf16"};
}

}  // namespace blockpack::kernels
