// SPDX-License-Identifier: Apache-2.0
/// The coupling on Advanced SIMD: 2 tokens x 32 ranks, 16 sums. Per input block 24 loads feed 16 multiply-adds: loads
/// are the limit.

#include <arm_neon.h>

#include "kernels/couple/couple_kernels.hpp"

#define BLOCKPACK_LANES 4

namespace blockpack::kernels {
namespace {

constexpr int kTokens = 2;

#include "kernels/dense/dense_vectors.inc"

static inline vf fma_v(vf a, vf b, vf c) {
  return reinterpret_cast<vf>(
      vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
}

#include "kernels/couple/couple_body.inc"

}  // namespace

void install_couple_neon(CoupleKernels& k, Features) noexcept { k.couple = {couple, "neon"}; }

}  // namespace blockpack::kernels
