// SPDX-License-Identifier: Apache-2.0
/// Block-sparse products of bf16 dots (vdpbf16ps), where they are fast (dense_avx512bf16.cpp).
///
/// Tile 14 rows x 16 columns. A sum for each would take 14 broadcasts of x and a line of weights for 14 dots, more
/// loads than there are; so an output has two, of the even and of the odd pairs of k: two lines of weights are
/// interleaved to lanes of pairs k and k + 1 side by side, and one broadcast of 8 bytes of x serves two dots. 28 sums;
/// 16 loads and 2 shuffles for 28 dots, 14 cycles, so the dots are the limit.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // in GCC 12's own intrinsics (its bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "kernels/block_sparse/block_sparse_kernels.hpp"

namespace blockpack::kernels {
namespace {

constexpr int kTileRows = 14;
constexpr std::ptrdiff_t kLine = 64;
constexpr std::ptrdiff_t kUnit = 16 * kLine;

// Assembly: a function that only prefetches counts as free of effects, and GCC 12 drops calls of it.
static inline void fetch_l1(const char* p) { __asm__ volatile("prefetcht0 (%0)" : : "r"(p)); }
static inline void fetch_l2(const char* p) { __asm__ volatile("prefetcht1 (%0)" : : "r"(p)); }

template <class T>
static inline T load(const char* p) {
  T v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

static inline __m512 dot(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// A register tile: a row tile of x against the list of a half-panel.
struct Tile {
  const char* x;
  const std::int32_t* steps;
  std::ptrdiff_t units;
  const char* w;
  float* y;
  std::ptrdiff_t y_stride;
  std::ptrdiff_t rows;  // that are written
  bool stream;
  const char* next_x;  // fetched during the last unit
  const char* ahead;   // fetched into L2 meanwhile, ahead_step bytes on with each pair of k
  std::ptrdiff_t ahead_step;
};

// R rows; the x of the next unit is fetched meanwhile. Few rows have C times the sums, each of every C-th two pairs:
// fewer than 12 wait for each other.
template <int R>
static void tile(const Tile& t) {
  constexpr int C = R >= 6 ? 1 : R >= 3 ? 2 : 4;
  const char* w = t.w;
  const char* ahead = t.ahead;
  __m512 acc[C][R][2];
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) {
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) acc[c][r][0] = acc[c][r][1] = _mm512_setzero_ps();
  }
  for (std::ptrdiff_t i = 0; i < t.units; ++i, w += kUnit) {
    const char* a = t.x + t.steps[i] * (R * kLine);
    const char* next = i + 1 < t.units ? t.x + t.steps[i + 1] * (R * kLine) : t.next_x;
#pragma GCC unroll 2
    for (int pair0 = 0; pair0 < 16; pair0 += 2 * C) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        const int pair = pair0 + 2 * c;
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j, ahead += t.ahead_step) {
          if (pair + j < R) fetch_l1(next + (pair + j) * kLine);
          fetch_l2(ahead);
        }
        const __m512i b0 = _mm512_loadu_si512(w + pair * kLine), b1 = _mm512_loadu_si512(w + (pair + 1) * kLine);
        const __m512i low = _mm512_unpacklo_epi32(b0, b1), high = _mm512_unpackhi_epi32(b0, b1);
#pragma GCC unroll 14
        for (int r = 0; r < R; ++r) {
          long long both;
          __builtin_memcpy(&both, a + r * kLine + pair * 4, sizeof(both));
          const __m512i v = _mm512_set1_epi64(both);
          acc[c][r][0] = dot(acc[c][r][0], low, v);
          acc[c][r][1] = dot(acc[c][r][1], high, v);
        }
      }
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r) {
    if (r == t.rows) return;
    __m512 low = acc[0][r][0], high = acc[0][r][1];
#pragma GCC unroll 4
    for (int c = 1; c < C; ++c) {
      low = _mm512_add_ps(low, acc[c][r][0]);
      high = _mm512_add_ps(high, acc[c][r][1]);
    }
    const __m512 even = _mm512_shuffle_ps(low, high, 0x88), odd = _mm512_shuffle_ps(low, high, 0xdd);
    float* y = t.y + r * t.y_stride;
    t.stream ? _mm512_stream_ps(y, _mm512_add_ps(even, odd)) : _mm512_storeu_ps(y, _mm512_add_ps(even, odd));
  }
}

using TileFunction = void (*)(const Tile&);

// The tile of so many rows, R at most.
template <int R>
struct Tiles {
  static TileFunction pick(std::ptrdiff_t rows) { return rows == R ? &tile<R> : Tiles<R - 1>::pick(rows); }
};
template <>
struct Tiles<0> {
  static TileFunction pick(std::ptrdiff_t) { return nullptr; }
};

void multiply(const BlockSparseProduct& p) noexcept {
  const TileFunction whole = Tiles<kTileRows>::pick(p.tile_rows);
  Tile t{};
  t.y_stride = p.y_stride;
  t.stream = p.stream;
  t.ahead_step = kLine / p.tiles;
  t.ahead = static_cast<const char*>(p.w) + p.first[p.halves] * kUnit;
  for (std::ptrdiff_t row = 0; row < p.rows; row += p.tile_rows) {
    t.x = static_cast<const char*>(p.x) + row / p.tile_rows * p.x_tile_bytes;
    t.rows = p.rows - row;
    for (std::ptrdiff_t h = 0; h < p.halves; ++h) {
      t.steps = p.steps + p.first[h];
      t.units = p.first[h + 1] - p.first[h];
      t.w = static_cast<const char*>(p.w) + p.first[h] * kUnit;
      t.y = p.y + row * p.y_stride + h * kSparseColumns;
      // Lists follow each other; behind the last one lies a list of other half-panels, or what is no step of x.
      t.next_x =
          h + 1 < p.halves && p.first[h + 2] > p.first[h + 1] ? t.x + t.steps[t.units] * (p.tile_rows * kLine) : t.x;
      whole(t);
      t.ahead += t.units * 16 * t.ahead_step;
    }
  }
  if (p.stream) _mm_sfence();
}

}  // namespace

void install_block_sparse_avx512bf16(BlockSparseKernels& k, Features features) noexcept {
  if ((features & kFastBf16Dots) != 0) k.bf16_bf16 = {{multiply, "avx512vnni+fastbf16"}, kTileRows};
}

}  // namespace blockpack::kernels
