// SPDX-License-Identifier: Apache-2.0
/// bf16 dots on Arm (bfdot, a feature of the level neon_dot): two products and a sum per 32-bit lane. The packed order,
/// pairs of k of 16 columns, is the order of the instruction, with the pair of x taken from a lane: four pairs of x
/// come with one load. Its sums round to odd and flush subnormals, within the bound of the bf16 mode.
///
/// Tile for many tokens: 5 rows x 16 columns, 20 sums, 4 weight vectors and 5 of x in 32 registers; per 4 pairs 21
/// loads feed 80 dots, so the dot pipes are the limit. Few tokens: memory.

#include <arm_neon.h>

#include "kernels/dense/dense_kernels.hpp"

namespace blockpack::kernels {
namespace {

constexpr int kTileRows = 5;

static inline bfloat16x8_t load8(const void* p) {
  uint16x8_t v;
  __builtin_memcpy(&v, p, sizeof(v));
  return vreinterpretq_bf16_u16(v);
}

// One step of 4 pairs of k: R rows of x against V vectors of 4 columns. Lines of weights lie 64 bytes apart.
template <int R, int V, int Pair>
static inline void dot_pair(float32x4_t (&acc)[R][V], const bfloat16x8_t (&a)[R], const char* line) {
  bfloat16x8_t b[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) b[v] = load8(line + v * 16);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) acc[r][v] = vbfdotq_laneq_f32(acc[r][v], b[v], a[r], Pair);
  }
}

// R rows of x (x_step bytes from row to row, x_run from one run of 32 k to the next) against 16 columns of a panel.
template <int R>
static inline void dot_columns(const char* x, std::ptrdiff_t x_step, std::ptrdiff_t x_run, const char* w,
                               std::ptrdiff_t depth, float* sums, std::ptrdiff_t sums_stride, bool accumulate) {
  float32x4_t acc[R][4];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < 4; ++v) acc[r][v] = accumulate ? vld1q_f32(sums + r * sums_stride + v * 4) : vdupq_n_f32(0.0f);
  }
  for (std::ptrdiff_t k = 0; k < depth; k += kBf16Step, x += x_run, w += 2048) {
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; ++quarter) {
      const char* line = w + quarter * 256;
      __builtin_prefetch(line + 4096);
      bfloat16x8_t a[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) a[r] = load8(x + r * x_step + quarter * 16);
      dot_pair<R, 4, 0>(acc, a, line);
      dot_pair<R, 4, 1>(acc, a, line + 64);
      dot_pair<R, 4, 2>(acc, a, line + 128);
      dot_pair<R, 4, 3>(acc, a, line + 192);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < 4; ++v) vst1q_f32(sums + r * sums_stride + v * 4, acc[r][v]);
  }
}

// As many rows as the tile has.
static inline void dot_rows(std::ptrdiff_t rows, const char* x, std::ptrdiff_t x_step, std::ptrdiff_t x_run,
                            const char* w, std::ptrdiff_t depth, float* sums, std::ptrdiff_t sums_stride,
                            bool accumulate) {
  switch (rows) {
    case 5:
      return dot_columns<5>(x, x_step, x_run, w, depth, sums, sums_stride, accumulate);
    case 4:
      return dot_columns<4>(x, x_step, x_run, w, depth, sums, sums_stride, accumulate);
    case 3:
      return dot_columns<3>(x, x_step, x_run, w, depth, sums, sums_stride, accumulate);
    case 2:
      return dot_columns<2>(x, x_step, x_run, w, depth, sums, sums_stride, accumulate);
    default:
      return dot_columns<1>(x, x_step, x_run, w, depth, sums, sums_stride, accumulate);
  }
}

static void block_bf16(const BlockProduct& p) noexcept {
  for (std::ptrdiff_t panel = 0; panel < p.panels; ++panel)
    for (std::ptrdiff_t t = 0; t < p.tiles; ++t)
      for (std::ptrdiff_t half = 0; half < 2; ++half)
        dot_rows(p.tile_rows, static_cast<const char*>(p.x) + t * p.x_tile_bytes, kBf16Step * 2,
                 p.tile_rows * kBf16Step * 2, static_cast<const char*>(p.w) + panel * p.w_panel_bytes + half * 1024,
                 p.depth, p.sums + panel * p.sums_panel + t * p.tile_rows * kPanelColumns + half * 16, kPanelColumns,
                 p.accumulate);
}

static void few_f32_bf16_bf16(const FewProduct& p) noexcept {
  const std::ptrdiff_t depth = (p.k + kBf16Step - 1) / kBf16Step * kBf16Step;
  for (std::ptrdiff_t token = 0; token < p.tokens; token += kTileRows) {
    const std::ptrdiff_t rows = p.tokens - token < kTileRows ? p.tokens - token : kTileRows;
    const char* x = static_cast<const char*>(p.x) + token * p.x_stride * 2;
    for (std::ptrdiff_t panel = 0; panel < p.panels; ++panel)
      for (std::ptrdiff_t half = 0; half < 2; ++half)
        dot_rows(rows, x, p.x_stride * 2, kBf16Step * 2,
                 static_cast<const char*>(p.w) + panel * p.w_panel_bytes + half * 1024, depth,
                 p.sums + token * p.sums_stride + panel * kPanelColumns + half * 16, p.sums_stride, false);
  }
}

// n <= 8 values, zeros behind.
static inline bfloat16x8_t load_some(const std::uint16_t* p, std::ptrdiff_t n) {
  std::uint16_t part[8] = {};
  __builtin_memcpy(part, p, static_cast<std::size_t>(n) * 2);
  return load8(part);
}

template <int R>
static void dots_part(const RowDots& p, std::ptrdiff_t token, std::ptrdiff_t row) {
  const std::uint16_t* x = static_cast<const std::uint16_t*>(p.x) + token * p.x_stride;
  const std::uint16_t* w = static_cast<const std::uint16_t*>(p.w) + row * p.w_stride;
  float32x4_t acc[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) acc[r] = vdupq_n_f32(0.0f);
  std::ptrdiff_t k = 0;
  for (; k + 8 <= p.k; k += 8) {
    const bfloat16x8_t a = load8(x + k);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r] = vbfdotq_f32(acc[r], load8(w + r * p.w_stride + k), a);
  }
  if (k < p.k) {
    const bfloat16x8_t a = load_some(x + k, p.k - k);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r] = vbfdotq_f32(acc[r], load_some(w + r * p.w_stride + k, p.k - k), a);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    float* sum = p.sums + token * p.sums_stride + row + r;
    *sum = (p.accumulate ? *sum : 0.0f) + vaddvq_f32(acc[r]);
  }
}

static void dots_f32_bf16_bf16(const RowDots& p) noexcept {
  for (std::ptrdiff_t token = 0; token < p.tokens; ++token) {
    std::ptrdiff_t row = 0;
    for (; row + 4 <= p.rows; row += 4) dots_part<4>(p, token, row);
    for (; row < p.rows; ++row) dots_part<1>(p, token, row);
  }
}

}  // namespace

void install_dense_neon_bf16(DenseKernels& k, Features) noexcept {
  k.block_bf16 = {{block_bf16, "neon_dot+bf16"}, kTileRows};
  k.few_f32_bf16_bf16 = {few_f32_bf16_bf16, "neon_dot+bf16"};
  k.dots_f32_bf16_bf16 = {dots_f32_bf16_bf16, "neon_dot+bf16"};
}

}  // namespace blockpack::kernels
