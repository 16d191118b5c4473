// SPDX-License-Identifier: Apache-2.0
/// 2:4 weights on Advanced SIMD: the bytes of four activations are a table of 16, from which tbl takes what a lane
/// names. Per 4 rows and group 2 shifts, masks and multiply-adds make indices, and every token takes 2 tables and 2
/// multiply-adds.

#include <arm_neon.h>

#include "kernels/two_four/two_four_kernels.hpp"

#define BLOCKPACK_LANES 4

namespace blockpack::kernels {
namespace {

constexpr int kTokens = 4;
constexpr int kPanels = 1;

#include "kernels/dense/dense_vectors.inc"

using Index = uint8x16_t;
static inline Index index_v(vu places) {
  const uint32x4_t place = vandq_u32(reinterpret_cast<uint32x4_t>(places), vdupq_n_u32(3));
  return vreinterpretq_u8_u32(vmlaq_n_u32(vdupq_n_u32(0x03020100u), place, 0x04040404u));
}
static inline vf pick_v(const float* x, Index index) {
  return reinterpret_cast<vf>(vqtbl1q_u8(vreinterpretq_u8_f32(vld1q_f32(x)), index));
}
static inline vf fma_v(vf a, vf b, vf c) {
  return reinterpret_cast<vf>(
      vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
}

#include "kernels/two_four/two_four_body.inc"

}  // namespace

void install_two_four_neon(TwoFourKernels& k, Features) noexcept {
  k.few_f32_f32_f32 = {few<float>, "neon"};
  k.few_f32_f32_bf16 = {few<std::uint16_t>, "neon"};
}

}  // namespace blockpack::kernels
