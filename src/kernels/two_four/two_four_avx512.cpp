// SPDX-License-Identifier: Apache-2.0
/// 2:4 weights on AVX-512: four activations in all quarters of a register, from which vpermilps takes what a lane
/// names. Per group 2 shifts of places, and for every token 2 selections and 2 multiply-adds.

#include <immintrin.h>

#include "kernels/two_four/two_four_kernels.hpp"

#define BLOCKPACK_LANES 16

namespace blockpack::kernels {
namespace {

constexpr int kTokens = 8;
constexpr int kPanels = 2;

#include "kernels/dense/dense_vectors.inc"

using Index = __m512i;
static inline Index index_v(vu places) { return reinterpret_cast<__m512i>(places); }
static inline vf pick_v(const float* x, Index index) {
  return _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(x)), index);
}
static inline vf fma_v(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }

#include "kernels/two_four/two_four_body.inc"

}  // namespace

void install_two_four_avx512(TwoFourKernels& k, Features) noexcept {
  k.few_f32_f32_f32 = {few<float>, "avx512"};
  k.few_f32_f32_bf16 = {few<std::uint16_t>, "avx512"};
}

}  // namespace blockpack::kernels
