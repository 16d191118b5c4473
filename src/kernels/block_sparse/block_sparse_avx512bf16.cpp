// SPDX-License-Identifier: Apache-2.0
/// Block-sparse products of bf16 dots (vdpbf16ps), where they are fast (dense_avx512bf16.cpp).

#include <immintrin.h>

#include "kernels/block_sparse/block_sparse_kernels.hpp"

namespace blockpack::kernels {
namespace {

constexpr int kLines = 16;  // pairs of k
using Sums = __m512;
static inline Sums add(Sums a, Sums b) { return _mm512_add_ps(a, b); }
static inline Sums dot(Sums sum, __m512i w, __m512i x) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
}

#include "kernels/block_sparse/block_sparse_dots.inc"

static inline __m512 finished(const Tile&, int, Sums low, Sums high) {
  return _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x88), _mm512_shuffle_ps(low, high, 0xdd));
}

}  // namespace

void install_block_sparse_avx512bf16(BlockSparseKernels& k, Features features) noexcept {
  if ((features & kFastBf16Dots) != 0) k.bf16_bf16 = {{multiply, "avx512vnni+fastbf16"}, kTileRows};
}

}  // namespace blockpack::kernels
