// SPDX-License-Identifier: Apache-2.0
/// Dense kernels on AVX-512. f32 tile 14 rows x 32 columns: 28 sums, 2 weight vectors and a broadcast in 32 registers;
/// per k 16 loads feed 28 multiply-adds, so the two FMA ports are the limit, not the loads. Rows are shared out evenly
/// (128 tokens are 10 tiles of 13 rows) because a tile of 1 to 3 rows waits for its own sums.
///
/// Reached, one thread: 0.77 to 0.88 of the multiply-adds on registers at 32 to 512 tokens; one token 0.99 to 1.0 of
/// the read bandwidth of the last-level cache.

#include <immintrin.h>

#include "kernels/dense/dense_kernels.hpp"

#define BLOCKPACK_LANES 16
#define BLOCKPACK_TILE_ROWS 14
#define BLOCKPACK_TILE_VECTORS 2
#define BLOCKPACK_DOT_ROWS 4
#define BLOCKPACK_FEW_PANELS 4

namespace blockpack::kernels {
namespace {

constexpr std::ptrdiff_t kFewAhead = 512;
constexpr std::ptrdiff_t kDotAhead = 512;
constexpr std::ptrdiff_t kRowAhead = 512;

#include "kernels/dense/dense_vectors.inc"

static inline vf fma_v(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline void stream_v(float* p, vf v) { _mm512_stream_ps(p, v); }
static inline void fence_v() { _mm_sfence(); }
// Assembly: a function that only prefetches counts as free of effects, and GCC 12 drops calls of it.
static inline void prefetch_v(const void* p) { __asm__ volatile("prefetcht0 (%0)" : : "r"(p)); }
static inline void prefetch_l2_v(const void* p) { __asm__ volatile("prefetcht1 (%0)" : : "r"(p)); }
static inline void prefetch_to_write_v(void* p) { __asm__ volatile("prefetchw (%0)" : : "r"(p)); }

#include "kernels/dense/dense_body.inc"

void transpose16(const std::uint32_t* src, std::ptrdiff_t src_stride, std::ptrdiff_t words, std::uint32_t* dst,
                 std::ptrdiff_t dst_stride, std::ptrdiff_t dst_group) noexcept {
  for (std::ptrdiff_t k = 0; k < words; k += 16) {
    __m512i r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(src + i * src_stride + k);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // r[4 g + j] holds, in 128-bit lane l, columns 4 g … 4 g + 3 of row 4 l + j.
    std::uint32_t* out = dst + k / 16 * dst_group;
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x44);
      const __m512i b = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xee);
      const __m512i c = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x44);
      const __m512i d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xee);
      _mm512_storeu_si512(out + j * dst_stride, _mm512_shuffle_i32x4(a, c, 0x88));
      _mm512_storeu_si512(out + (4 + j) * dst_stride, _mm512_shuffle_i32x4(a, c, 0xdd));
      _mm512_storeu_si512(out + (8 + j) * dst_stride, _mm512_shuffle_i32x4(b, d, 0x88));
      _mm512_storeu_si512(out + (12 + j) * dst_stride, _mm512_shuffle_i32x4(b, d, 0xdd));
    }
  }
}

}  // namespace

void install_dense_avx512(DenseKernels& k, Features) noexcept {
  k.block_f32 = {{block_f32, "avx512"}, BLOCKPACK_TILE_ROWS};
  k.few_f32_f32_f32 = {few_f32_f32_f32, "avx512"};
  k.few_f32_f32_bf16 = {few_f32_f32_bf16, "avx512"};
  k.dots_f32_f32_f32 = {dots_f32_f32_f32, "avx512"};
  k.dots_f32_f32_bf16 = {dots_f32_f32_bf16, "avx512"};
  k.finish = {finish, "avx512"};
  k.transpose16 = {transpose16, "avx512"};
  k.widen_panel = {widen_panel, "avx512"};
  k.pack_bf16_f32 = {pack_bf16_f32, "avx512"};
  k.pack_bf16_bf16 = {pack_bf16_bf16, "avx512"};
  k.widen = {widen, "avx512"};
  k.round_bf16 = {round_bf16, "avx512"};
  k.round_int8 = {round_int8, "avx512"};
}

}  // namespace blockpack::kernels
