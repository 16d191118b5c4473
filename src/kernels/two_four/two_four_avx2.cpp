// SPDX-License-Identifier: Apache-2.0
/// 2:4 weights on AVX2: four activations in both halves of a register, from which vpermilps takes what a lane names.
/// Per 8 rows and group 2 shifts of places, and for every token 2 selections and 2 multiply-adds.

#include <immintrin.h>

#include "kernels/two_four/two_four_kernels.hpp"

#define BLOCKPACK_LANES 8

namespace blockpack::kernels {
namespace {

constexpr int kTokens = 4;
constexpr int kPanels = 1;

#include "kernels/dense/dense_vectors.inc"

using Index = __m256i;
static inline Index index_v(vu places) { return reinterpret_cast<__m256i>(places); }
static inline vf pick_v(const float* x, Index index) {
  return _mm256_permutevar_ps(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(x)), index);
}
static inline vf fma_v(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }

#include "kernels/two_four/two_four_body.inc"

}  // namespace

void install_two_four_avx2(TwoFourKernels& k, Features) noexcept {
  k.few_f32_f32_f32 = {few<float>, "avx2"};
  k.few_f32_f32_bf16 = {few<std::uint16_t>, "avx2"};
}

}  // namespace blockpack::kernels
