// SPDX-License-Identifier: Apache-2.0
/// Bitmasks on Advanced SIMD: a byte of bits names the table look-up (tbl) that puts eight weights in their places;
/// widened, they are four rows of two k, which meet a pair of activations. Expected limit: for every 8 weights about 8
/// instructions, and 2 multiply-adds a token.

#include <arm_neon.h>

#include "kernels/block_sparse/block_sparse_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/block_sparse/bitmask_table.inc"

/// The next eight words, of which `mask` says the places.
static inline uint16x8_t next_words(const unsigned char*& w, unsigned mask) {
  const uint8x16_t words = vld1q_u8(w);
  w += 2 * __builtin_popcount(mask);
  return vreinterpretq_u16_u8(vqtbl1q_u8(words, vld1q_u8(kWordTable.bytes[mask])));
}

template <int T, int P>
static void part(const BitmaskProduct& p, std::ptrdiff_t h) {
  const unsigned char* w = p.w + p.weights_first[h];
  float32x4_t sum[T][4][2];
  for (int t = 0; t < T; ++t)
    for (int b = 0; b < 4; ++b) sum[t][b][0] = sum[t][b][1] = vdupq_n_f32(0.0f);
  for (std::ptrdiff_t i = p.first[h]; i < p.first[h + 1]; ++i) {
    const float* x = static_cast<const float*>(p.x) + p.steps[i] * T * kSparseStep;
    const unsigned char* masks = w;
    w += 64;
    for (int line = 0; line < 16; ++line) {
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        const uint16x8_t words = next_words(w, masks[4 * line + b]);
        const float32x4_t low = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(words), 16));
        const float32x4_t high = vreinterpretq_f32_u32(vshll_high_n_u16(words, 16));
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const float32x2_t pair = vld1_f32(x + t * kSparseStep + 2 * line);
          sum[t][b][0] = vfmaq_f32(sum[t][b][0], low, vcombine_f32(pair, pair));
          sum[t][b][1] = vfmaq_f32(sum[t][b][1], high, vcombine_f32(pair, pair));
        }
      }
    }
  }
  for (int t = 0; t < T; ++t)
    for (int b = 0; b < 4; ++b)
      vst1q_f32(p.sums + t * p.sums_stride + h * kSparseColumns + 4 * b, vpaddq_f32(sum[t][b][0], sum[t][b][1]));
}

#include "kernels/block_sparse/bitmask_walk.inc"

void multiply(const BitmaskProduct& p) noexcept { walk_tokens<1>(p); }

void expand(const unsigned char* w, std::ptrdiff_t units, std::uint16_t* dst) noexcept {
  for (std::ptrdiff_t i = 0; i < units; ++i) {
    const unsigned char* masks = w;
    w += 64;
    for (int b = 0; b < 64; ++b, dst += 8) vst1q_u16(dst, next_words(w, masks[b]));
  }
}

}  // namespace

void install_bitmask_neon(BlockSparseKernels& k, Features) noexcept {
  k.bitmask_f32 = {multiply, "neon"};
  k.expand_bitmask = {expand, "neon"};
}

}  // namespace blockpack::kernels
