// SPDX-License-Identifier: Apache-2.0
/// The coupling on AVX2: 2 tokens x 32 ranks, 8 sums. Per input block 12 loads feed 8 multiply-adds: loads are the
/// limit.

#include <immintrin.h>

#include "kernels/couple/couple_kernels.hpp"

#define BLOCKPACK_LANES 8

namespace blockpack::kernels {
namespace {

constexpr int kTokens = 2;

#include "kernels/dense/dense_vectors.inc"

static inline vf fma_v(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }

#include "kernels/couple/couple_body.inc"

}  // namespace

void install_couple_avx2(CoupleKernels& k, Features) noexcept { k.couple = {couple, "avx2"}; }

}  // namespace blockpack::kernels
