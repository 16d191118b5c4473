// SPDX-License-Identifier: Apache-2.0
/// Dense kernels on Advanced SIMD. f32 tile 6 rows x 16 columns: 24 sums, 4 weight vectors and a broadcast in 32
/// registers; per k 10 loads feed 24 multiply-adds, so the FMA pipes are the limit, not the loads.

#include <arm_neon.h>

#include "kernels/dense/dense_kernels.hpp"

#define BLOCKPACK_LANES 4
#define BLOCKPACK_TILE_ROWS 6
#define BLOCKPACK_TILE_VECTORS 4
#define BLOCKPACK_DOT_ROWS 4
#define BLOCKPACK_FEW_PANELS 2

namespace blockpack::kernels {
namespace {

constexpr std::ptrdiff_t kFewAhead = 256;
constexpr std::ptrdiff_t kDotAhead = 512;
constexpr std::ptrdiff_t kRowAhead = 512;

#include "kernels/dense/dense_vectors.inc"

static inline vf fma_v(vf a, vf b, vf c) {
  return reinterpret_cast<vf>(
      vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
}
static inline void stream_v(float* p, vf v) { store_v(p, v); }
static inline void fence_v() {}
// Assembly: a function that only prefetches counts as free of effects, and GCC 12 drops calls of it.
static inline void prefetch_v(const void* p) { __asm__ volatile("prfm pldl1keep, [%0]" : : "r"(p)); }
static inline void prefetch_l2_v(const void* p) { __asm__ volatile("prfm pldl2keep, [%0]" : : "r"(p)); }
static inline void prefetch_to_write_v(void* p) { __asm__ volatile("prfm pstl1keep, [%0]" : : "r"(p)); }

#include "kernels/dense/dense_body.inc"

// 4 x 4 words: rows to columns by two rounds of interleaving.
static inline void transpose4(const std::uint32_t* src, std::ptrdiff_t src_stride, std::uint32_t* dst,
                              std::ptrdiff_t dst_stride) {
  const uint32x4x2_t a = vtrnq_u32(vld1q_u32(src), vld1q_u32(src + src_stride));
  const uint32x4x2_t b = vtrnq_u32(vld1q_u32(src + 2 * src_stride), vld1q_u32(src + 3 * src_stride));
  vst1q_u32(dst, vcombine_u32(vget_low_u32(a.val[0]), vget_low_u32(b.val[0])));
  vst1q_u32(dst + dst_stride, vcombine_u32(vget_low_u32(a.val[1]), vget_low_u32(b.val[1])));
  vst1q_u32(dst + 2 * dst_stride, vcombine_u32(vget_high_u32(a.val[0]), vget_high_u32(b.val[0])));
  vst1q_u32(dst + 3 * dst_stride, vcombine_u32(vget_high_u32(a.val[1]), vget_high_u32(b.val[1])));
}

static void transpose16(const std::uint32_t* src, std::ptrdiff_t src_stride, std::ptrdiff_t words, std::uint32_t* dst,
                        std::ptrdiff_t dst_stride, std::ptrdiff_t dst_group) noexcept {
  for (std::ptrdiff_t k = 0; k < words; k += 4) {
    std::uint32_t* out = dst + k / 16 * dst_group + k % 16 * dst_stride;
    for (std::ptrdiff_t n = 0; n < 16; n += 4) transpose4(src + n * src_stride + k, src_stride, out + n, dst_stride);
  }
}

}  // namespace

void install_dense_neon(DenseKernels& k, Features) noexcept {
  k.block_f32 = {{block_f32, "neon"}, BLOCKPACK_TILE_ROWS};
  k.few_f32_f32_f32 = {few_f32_f32_f32, "neon"};
  k.few_f32_f32_bf16 = {few_f32_f32_bf16, "neon"};
  k.dots_f32_f32_f32 = {dots_f32_f32_f32, "neon"};
  k.dots_f32_f32_bf16 = {dots_f32_f32_bf16, "neon"};
  k.finish = {finish, "neon"};
  k.transpose16 = {transpose16, "neon"};
  k.widen_panel = {widen_panel, "neon"};
  k.pack_bf16_f32 = {pack_bf16_f32, "neon"};
  k.pack_bf16_bf16 = {pack_bf16_bf16, "neon"};
  k.widen = {widen, "neon"};
  k.round_bf16 = {round_bf16, "neon"};
  k.round_int8 = {round_int8, "neon"};
}

}  // namespace blockpack::kernels
