// SPDX-License-Identifier: Apache-2.0
/// int8 products by VNNI dots (vpdpbusd: 4 unsigned codes x 4 signed x to each of 16 lanes), and the packing of x.
///
/// Tile 14 rows x 32 columns: 28 sums, two lines of codes and a broadcast in 32 registers; per 4 k, 16 loads feed 28
/// dots of half a cycle, so the dots are the limit, not the loads. Rows are shared out evenly. A block of codes (32
/// columns x 1024 k) stays in L1 while x streams from L2.
///
/// Expected limit: 2 dots a cycle, 256 operations; about 0.77 of it at 128 tokens on 4096x4096. Packing x: two passes
/// over a row, one from memory, one from L1.

#include <immintrin.h>

#include "kernels/int8/int8_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/codes/codes_plain.inc"

#include "kernels/codes/codes_avx512.inc"

#include "kernels/int8/int8_avx512.inc"

constexpr std::ptrdiff_t kTileRows = 14;
constexpr std::ptrdiff_t kAhead = 1024;  // floats of x
constexpr int kLines = 16;               // of a step: 4 k of 16 columns each

static inline __m512i four(const std::int8_t* x) {
  int bytes;
  __builtin_memcpy(&bytes, x, sizeof bytes);
  return _mm512_set1_epi32(bytes);
}

/// R rows of a tile against a pair of panels over the steps of one run; the last step has `last_lines` lines.
template <int R>
static void multiply_run(const std::int8_t* x, std::ptrdiff_t x_step, const unsigned char* w0, const unsigned char* w1,
                         std::ptrdiff_t steps, int last_lines, const std::int32_t* from, std::int32_t* to) {
  __m512i sum[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
      sum[r][i] = from == nullptr ? _mm512_setzero_si512() : _mm512_loadu_si512(from + r * kPanelColumns + 16 * i);
  }
  for (std::ptrdiff_t s = 0; s < steps; ++s) {
    const int lines = s + 1 == steps ? last_lines : kLines;
#pragma GCC unroll 2
    for (int line = 0; line < lines; ++line) {
      const __m512i a = load_line(w0 + 64 * line), b = load_line(w1 + 64 * line);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const __m512i v = four(x + r * kInt8Step + 4 * line);
        sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], a, v);
        sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], b, v);
      }
    }
    w0 += kLines * 64;
    w1 += kLines * 64;
    x += x_step;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) _mm512_storeu_si512(to + r * kPanelColumns + 16 * i, sum[r][i]);
  }
}

template <int R>
static void panels_by_pairs(const Int8Product& p) {
  alignas(64) std::int32_t sums[kTileRows * kPanelColumns];
  for (std::ptrdiff_t panel = 0; panel < p.panels; panel += 2) {
    // A panel without a neighbour is its own: the second half of its sums goes nowhere.
    const std::ptrdiff_t beside = panel + 1 < p.panels ? p.w_panel_bytes : 0;
    const unsigned char* w = p.w + panel * p.w_panel_bytes;
    for (std::ptrdiff_t t = 0; t < p.tiles; ++t) {
      std::int32_t* integers = nullptr;
      if (p.integers != nullptr) integers = p.integers + panel / 2 * p.totals_pair + t * R * kPanelColumns;
      for (std::ptrdiff_t s = 0, run = 0; s < p.steps; s += p.run_steps, ++run) {
        const std::ptrdiff_t steps = p.steps - s < p.run_steps ? p.steps - s : p.run_steps;
        const bool last = s + steps == p.steps;
        const unsigned char* codes = codes_at(p, w, p.first_step + s);
        std::int32_t* to = p.ends || !last ? sums : integers;
        multiply_run<R>(p.x + t * p.x_tile_bytes + s * R * kInt8Step, R * kInt8Step, codes, codes + beside, steps,
                        last && p.half_step ? kLines / 2 : kLines, p.starts || s > 0 ? nullptr : integers, to);
        if (to == sums) {
          Drain d = drain_of(p, panel / 2, t, run, to, R);
          drain(d, R);
        }
      }
    }
  }
  if (p.y != nullptr) _mm_sfence();
}

template <int R>
struct Tiles {
  static void multiply(const Int8Product& p) {
    if (p.tile_rows == R) return panels_by_pairs<R>(p);
    if constexpr (R > 1) Tiles<R - 1>::multiply(p);
  }
};

void multiply(const Int8Product& p) noexcept { Tiles<kTileRows>::multiply(p); }

void read_groups(const CodeProduct& p, const unsigned char* panel, float* scales, std::int32_t* zeros) noexcept {
  Groups groups[1];
  std::ptrdiff_t group = 0;
  for (std::ptrdiff_t s0 = 0; s0 < p.steps; s0 += p.block_steps) {
    const std::ptrdiff_t steps = p.steps - s0 < p.block_steps ? p.steps - s0 : p.block_steps;
    const std::ptrdiff_t count = block_groups(p, steps);
    read_groups<1>(p, {panel + steps * code_step_bytes(p.bits)}, count, groups,
                   [](__m512i v, std::ptrdiff_t) { return v; });
    for (std::ptrdiff_t g = 0; g < count; ++g, ++group) {
      _mm512_storeu_ps(scales + group * kPanelColumns, _mm512_load_ps(groups[0].scale[g]));
      if (p.zeros) _mm512_storeu_si512(zeros + group * kPanelColumns, _mm512_load_si512(groups[0].zero[g]));
    }
    panel += block_bytes(p, steps, count);
  }
}

/// 16 of x as int32 codes.
static inline __m512i codes_of(__m512 x, __m512 lift, __m512 inverse) {
  return _mm512_cvt_roundps_epi32(_mm512_mul_ps(_mm512_mul_ps(x, lift), inverse),
                                  _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/// The lanes of v that x[first …] of n fill.
static inline __mmask16 lanes(std::ptrdiff_t n, std::ptrdiff_t first) {
  const std::ptrdiff_t left = n - first;
  return left >= 16  ? static_cast<__mmask16>(0xffff)
         : left <= 0 ? static_cast<__mmask16>(0)
                     : static_cast<__mmask16>((1u << left) - 1);
}

float quantize_token(const float* x, std::ptrdiff_t n, std::int8_t* dst, std::ptrdiff_t dst_step, std::ptrdiff_t run,
                     std::int32_t* minus_x, std::ptrdiff_t minus_x_run) noexcept {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i top[4] = {};
  std::ptrdiff_t k = 0;
  for (; k + 64 <= n; k += 64) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) _mm_prefetch(x + k + kAhead + 16 * i, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      top[i] = _mm512_max_epi32(top[i], _mm512_and_si512(_mm512_loadu_si512(x + k + 16 * i), magnitude));
  }
  for (; k < n; k += 16)
    top[0] = _mm512_max_epi32(top[0], _mm512_and_si512(_mm512_maskz_loadu_epi32(lanes(n, k), x + k), magnitude));
  const __m512i all = _mm512_max_epi32(_mm512_max_epi32(top[0], top[1]), _mm512_max_epi32(top[2], top[3]));
  const std::uint32_t absmax = static_cast<std::uint32_t>(_mm512_reduce_max_epi32(all));
  const bool finite = absmax < 0x7f800000u;
  const float a = finite ? step_scale(as_f32(absmax)) : as_f32(0x7fc00000u);
  // 1 / a must be finite as well.
  const float up = a < 0x1p-64f ? 0x1p64f : 1.0f;
  const __m512 lift = _mm512_set1_ps(up), inverse = _mm512_set1_ps(1.0f / (a * up));
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
  const __m512i ones = _mm512_set1_epi8(1), lowest = _mm512_set1_epi8(-127);

  for (std::ptrdiff_t begin = 0; begin < n; begin += run) {
    const std::ptrdiff_t end = n - begin < run ? n : begin + run;
    __m512i sum = _mm512_setzero_si512();
    for (k = begin; k < end; k += kInt8Step, dst += dst_step) {
      __asm__ volatile("prefetchw (%0)" : : "r"(dst + 8 * dst_step));
      __m128i part[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m512 v = end - k >= kInt8Step ? _mm512_loadu_ps(x + k + 16 * i)
                                              : _mm512_maskz_loadu_ps(lanes(end, k + 16 * i), x + k + 16 * i);
        part[i] = _mm512_cvtsepi32_epi8(codes_of(v, lift, inverse));
      }
      const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(part[0]), part[1], 1);
      const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(part[2]), part[3], 1);
      __m512i codes = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
      codes = finite ? _mm512_shuffle_epi8(_mm512_max_epi8(codes, lowest), order) : _mm512_setzero_si512();
      sum = _mm512_dpbusd_epi32(sum, ones, codes);
      _mm512_storeu_si512(dst, codes);
    }
    *minus_x = -_mm512_reduce_add_epi32(sum);
    minus_x += minus_x_run;
  }
  return a;
}

}  // namespace

void install_int8_avx512vnni(Int8Kernels& k, Features) noexcept {
  k.multiply = {multiply, "avx512vnni"};
  k.max_tile_rows = kTileRows;
  k.read_groups = {read_groups, "avx512vnni"};
  k.quantize_token = {quantize_token, "avx512vnni"};
}

}  // namespace blockpack::kernels
