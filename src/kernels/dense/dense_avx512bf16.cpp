// SPDX-License-Identifier: Apache-2.0
/// bf16 dots (vdpbf16ps, 2.1 cycles where f32 multiply-adds take 0.5): for few tokens only, where memory is the limit.
/// For many tokens widened weights and f32 multiply-adds are twice as fast, so that slot stays empty at this level.
///
/// One token walks 4 panels side by side, 8 sums in flight, each line fetched 2 KB ahead into L1: 0.95 to 0.98 of the
/// read bandwidth of the last-level cache, 1.05 to 1.08 of that of DRAM (which four streams exceed), 4096x4096, one
/// thread. Distances of 1, 4 and 8 KB are slower on one tier or the other.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // in GCC 12's own intrinsics (its bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
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
        _mm_prefetch(line + kAhead, _MM_HINT_T0);
        _mm_prefetch(line + 1024 + kAhead, _MM_HINT_T0);
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

void install_dense_avx512bf16(DenseKernels& k, Features) noexcept {
  k.few_f32_bf16_bf16 = {few_f32_bf16_bf16, "avx512vnni+avx512bf16"};
  k.dots_f32_bf16_bf16 = {dots_f32_bf16_bf16, "avx512vnni+avx512bf16"};
}

}  // namespace blockpack::kernels
