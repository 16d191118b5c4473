// SPDX-License-Identifier: Apache-2.0
/// The coupling on AVX-512: 8 tokens x 32 ranks, 16 sums. Per input block 18 loads, 16 of them operands of the 16
/// multiply-adds: two loads a cycle are the limit, at 0.9 of the multiply-add peak.

#include <immintrin.h>

#include "kernels/couple/couple_kernels.hpp"

#define BLOCKPACK_LANES 16

namespace blockpack::kernels {
namespace {

constexpr int kTokens = 8;

#include "kernels/dense/dense_vectors.inc"

static inline vf fma_v(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }

#include "kernels/couple/couple_body.inc"

}  // namespace

void install_couple_avx512(CoupleKernels& k, Features) noexcept { k.couple = {couple, "avx512"}; }

}  // namespace blockpack::kernels
