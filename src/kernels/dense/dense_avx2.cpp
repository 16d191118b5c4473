// SPDX-License-Identifier: Apache-2.0
/// Dense kernels on AVX2 and FMA. f32 tile 6 rows x 16 columns: 12 sums, 2 weight vectors and a broadcast in 16
/// registers; per k 8 loads feed 12 multiply-adds, so the two FMA ports are the limit, not the loads. Reached on a CPU
/// whose AVX-512 registers do 190 GFLOP/s: 91 to 95 GFLOP/s at 128 tokens; one token 0.92 of the read bandwidth of the
/// last-level cache.

#include <immintrin.h>

#include "kernels/dense/dense_kernels.hpp"

#define BLOCKPACK_LANES 8
#define BLOCKPACK_TILE_ROWS 6
#define BLOCKPACK_TILE_VECTORS 2
#define BLOCKPACK_DOT_ROWS 2
#define BLOCKPACK_FEW_PANELS 2

namespace blockpack::kernels {
namespace {

constexpr std::ptrdiff_t kFewAhead = 512;
constexpr std::ptrdiff_t kDotAhead = 512;
constexpr std::ptrdiff_t kRowAhead = 512;

#include "kernels/dense/dense_vectors.inc"

static inline vf fma_v(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline void stream_v(float* p, vf v) { _mm256_stream_ps(p, v); }
static inline void fence_v() { _mm_sfence(); }
// Assembly: a function that only prefetches counts as free of effects, and GCC 12 drops calls of it.
static inline void prefetch_v(const void* p) { __asm__ volatile("prefetcht0 (%0)" : : "r"(p)); }
static inline void prefetch_l2_v(const void* p) { __asm__ volatile("prefetcht1 (%0)" : : "r"(p)); }
static inline void prefetch_to_write_v(void* p) { __asm__ volatile("prefetchw (%0)" : : "r"(p)); }

#include "kernels/dense/dense_body.inc"

// 8 x 8 words: rows to columns in three rounds of interleaving.
static inline void transpose8(const std::uint32_t* src, std::ptrdiff_t src_stride, std::uint32_t* dst,
                              std::ptrdiff_t dst_stride) {
  __m256 r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(src + i * src_stride));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(reinterpret_cast<float*>(dst + i * dst_stride), _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(reinterpret_cast<float*>(dst + (i + 4) * dst_stride),
                     _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

void transpose16(const std::uint32_t* src, std::ptrdiff_t src_stride, std::ptrdiff_t words, std::uint32_t* dst,
                 std::ptrdiff_t dst_stride, std::ptrdiff_t dst_group) noexcept {
  for (std::ptrdiff_t k = 0; k < words; k += 8) {
    std::uint32_t* out = dst + k / 16 * dst_group + k % 16 * dst_stride;
    transpose8(src + k, src_stride, out, dst_stride);
    transpose8(src + k + 8 * src_stride, src_stride, out + 8, dst_stride);
  }
}

}  // namespace

void install_dense_avx2(DenseKernels& k, Features) noexcept {
  k.block_f32 = {{block_f32, "avx2"}, BLOCKPACK_TILE_ROWS};
  k.few_f32_f32_f32 = {few_f32_f32_f32, "avx2"};
  k.few_f32_f32_bf16 = {few_f32_f32_bf16, "avx2"};
  k.dots_f32_f32_f32 = {dots_f32_f32_f32, "avx2"};
  k.dots_f32_f32_bf16 = {dots_f32_f32_bf16, "avx2"};
  k.finish = {finish, "avx2"};
  k.transpose16 = {transpose16, "avx2"};
  k.widen_panel = {widen_panel, "avx2"};
  k.pack_bf16_f32 = {pack_bf16_f32, "avx2"};
  k.pack_bf16_bf16 = {pack_bf16_bf16, "avx2"};
  k.widen = {widen, "avx2"};
  k.round_bf16 = {round_bf16, "avx2"};
  k.round_int8 = {round_int8, "avx2"};
}

}  // namespace blockpack::kernels
