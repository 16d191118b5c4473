// SPDX-License-Identifier: Apache-2.0
/// Strips of four rows by VNNI dots (vpdpbusd): 4 rows x 64 tokens of sums in 16 registers over the whole list of a
/// strip. A group of four columns is four lines of 64 tokens; 8 interleavings of bytes and words make four registers of
/// them, in which a lane holds the four activations of one token, and each of the four rows is one broadcast of 4
/// weights and 4 dots: 8 loads, 8 shuffles and 16 dots for 1024 products, 8 cycles of the two ports that multiply,
/// where the shuffles find a third one. The limit is these dots, 128 products a cycle; x of 64 tokens, 64 bytes a
/// column, is read from L2 (32 bytes a cycle), fetched two groups ahead: no hardware foresees the columns. Sums of a
/// half-panel are put together as lines of y in L1, 48 conversions, multiplications and shuffles for each 16 tokens and
/// strip.

#include <immintrin.h>

#include "kernels/block_sparse/block_sparse_kernels.hpp"

namespace blockpack::kernels {
namespace {

// Assembly: a function that only prefetches counts as free of effects, and GCC 12 drops calls of it.
static inline void fetch_l1(const void* p) { __asm__ volatile("prefetcht0 (%0)" : : "r"(p)); }

// Assembly: from the intrinsic GCC 12 makes a dot and two moves, and stores of some sums.
static inline void add_dots(__m512i& sum, __m512i x, __m512i w) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
}

/// 16 V tokens of a tile against the strip i of half-panel h, to lines of 16 columns, 4 (i % 4) … of them.
template <int V>
static inline void strip(const StripProduct& p, std::ptrdiff_t i, const std::uint8_t* x, const float* token_scales,
                         float* lines) {
  __m512i sum[kStripRows][V];
#pragma GCC unroll 4
  for (int r = 0; r < kStripRows; ++r) {
    const __m512i start = _mm512_set1_epi32(p.starts[i * kStripRows + r]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = start;
  }
  const std::ptrdiff_t end = p.first[i + 1];
  const std::int32_t* columns = p.columns + 4 * p.first[i];
  for (std::ptrdiff_t g = p.first[i]; g < end; ++g, columns += 4) {
    const auto line = [&](int k) { return _mm512_loadu_si512(x + columns[k]); };
    // Behind the last group of a strip lie those of the next one, or two more of padding.
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) fetch_l1(x + columns[8 + k]);
    const __m512i a = line(0), b = line(1), c = line(2), d = line(3);
    __m512i four[V];
    const __m512i ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);
    four[0] = _mm512_unpacklo_epi16(ab, cd);
    if constexpr (V > 1) four[1] = _mm512_unpackhi_epi16(ab, cd);
    if constexpr (V > 2) {
      const __m512i ab_high = _mm512_unpackhi_epi8(a, b), cd_high = _mm512_unpackhi_epi8(c, d);
      four[2] = _mm512_unpacklo_epi16(ab_high, cd_high);
      if constexpr (V > 3) four[3] = _mm512_unpackhi_epi16(ab_high, cd_high);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kStripRows; ++r) {
      int quad;
      __builtin_memcpy(&quad, p.w + 16 * g + 4 * r, sizeof quad);
      const __m512i w = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) add_dots(sum[r][v], four[v], w);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const __m512 tokens = _mm512_loadu_ps(token_scales + 16 * v);
    __m512 row[kStripRows];
#pragma GCC unroll 4
    for (int r = 0; r < kStripRows; ++r)
      row[r] = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][v]), _mm512_set1_ps(p.scales[i * kStripRows + r])),
                             tokens);
    const auto pair = [](__m512 a, __m512 b, bool high) {
      return _mm512_castps_pd(high ? _mm512_unpackhi_ps(a, b) : _mm512_unpacklo_ps(a, b));
    };
    const __m512d low01 = pair(row[0], row[1], false), high01 = pair(row[0], row[1], true);
    const __m512d low23 = pair(row[2], row[3], false), high23 = pair(row[2], row[3], true);
    // Lane l of token[j] is token 4 l + j.
    const __m512d token[4] = {_mm512_unpacklo_pd(low01, low23), _mm512_unpackhi_pd(low01, low23),
                              _mm512_unpacklo_pd(high01, high23), _mm512_unpackhi_pd(high01, high23)};
    float* to = lines + 16 * v * kSparseColumns + i % 4 * kStripRows;
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512 four = _mm512_castpd_ps(token[j]);
      _mm_store_ps(to + j * kSparseColumns, _mm512_castps512_ps128(four));
      _mm_store_ps(to + (4 + j) * kSparseColumns, _mm512_extractf32x4_ps(four, 1));
      _mm_store_ps(to + (8 + j) * kSparseColumns, _mm512_extractf32x4_ps(four, 2));
      _mm_store_ps(to + (12 + j) * kSparseColumns, _mm512_extractf32x4_ps(four, 3));
    }
  }
}

template <int V>
static void tile(const StripProduct& p, std::ptrdiff_t row) {
  alignas(64) float lines[kStripTokens * kSparseColumns];
  const std::uint8_t* x = p.x + row / kStripTokens * p.x_tile_bytes;
  const std::ptrdiff_t rows = p.rows - row < kStripTokens ? p.rows - row : kStripTokens;
  for (std::ptrdiff_t h = 0; h < p.halves; ++h) {
    for (std::ptrdiff_t i = 4 * h; i < 4 * h + 4; ++i) strip<V>(p, i, x, p.token_scales + row, lines);
    float* y = p.y + row * p.y_stride + h * kSparseColumns;
    for (std::ptrdiff_t r = 0; r < rows; ++r, y += p.y_stride) {
      const __m512 line = _mm512_load_ps(lines + r * kSparseColumns);
      p.stream ? _mm512_stream_ps(y, line) : _mm512_storeu_ps(y, line);
    }
  }
}

void multiply(const StripProduct& p) noexcept {
  for (std::ptrdiff_t row = 0; row < p.rows; row += kStripTokens) {
    const std::ptrdiff_t left = p.rows - row;
    left > 48 ? tile<4>(p, row) : left > 32 ? tile<3>(p, row) : left > 16 ? tile<2>(p, row) : tile<1>(p, row);
  }
  if (p.stream) _mm_sfence();
}

/// Bytes of 16 tokens x 16 columns to 16 columns of 16 tokens.
static inline void transpose(const std::int8_t* codes, std::ptrdiff_t stride, std::ptrdiff_t tokens, __m128i (&v)[16]) {
  for (int t = 0; t < 16; ++t)
    v[t] = t < tokens ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + t * stride)) : _mm_setzero_si128();
  // Four times: the registers are halves of a deck that is shuffled.
  for (int round = 0; round < 4; ++round) {
    __m128i next[16];
    for (int t = 0; t < 8; ++t) {
      next[2 * t] = _mm_unpacklo_epi8(v[t], v[t + 8]);
      next[2 * t + 1] = _mm_unpackhi_epi8(v[t], v[t + 8]);
    }
    for (int t = 0; t < 16; ++t) v[t] = next[t];
  }
}

void spread(const std::int8_t* codes, std::ptrdiff_t stride, std::ptrdiff_t tokens, std::ptrdiff_t count,
            std::uint8_t* dst) noexcept {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  std::ptrdiff_t k = 0;
  for (; k + 16 <= count; k += 16, dst += 16 * kStripTokens) {
    __m128i v[4][16];
    for (int i = 0; i < 4; ++i) transpose(codes + 16 * i * stride + k, stride, tokens - 16 * i, v[i]);
    for (int c = 0; c < 16; ++c) {
      __m512i all = _mm512_castsi128_si512(v[0][c]);
      all = _mm512_inserti32x4(all, v[1][c], 1);
      all = _mm512_inserti32x4(all, v[2][c], 2);
      all = _mm512_inserti32x4(all, v[3][c], 3);
      all = _mm512_xor_si512(_mm512_permutexvar_epi32(order, all), _mm512_set1_epi8(static_cast<char>(0x80)));
      _mm512_storeu_si512(dst + c * kStripTokens, all);
    }
  }
  for (; k < count; ++k, dst += kStripTokens)
    for (std::ptrdiff_t t = 0; t < kStripTokens; ++t)
      dst[strip_place(t)] = static_cast<std::uint8_t>(128 + (t < tokens ? codes[t * stride + k] : 0));
}

}  // namespace

void install_strips_avx512vnni(BlockSparseKernels& k, Features) noexcept {
  k.strips_int8 = {multiply, "avx512vnni"};
  k.spread_tokens = {spread, "avx512vnni"};
}

}  // namespace blockpack::kernels
