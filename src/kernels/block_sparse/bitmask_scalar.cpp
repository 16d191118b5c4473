// SPDX-License-Identifier: Apache-2.0
/// Bitmasks without vector registers: a test for each weight of a unit, a multiply-add for those that are there.

#include "kernels/block_sparse/block_sparse_kernels.hpp"

namespace blockpack::kernels {
namespace {

void multiply(const BitmaskProduct& p) noexcept {
  for (int t = 0; t < p.tokens; ++t)
    for (std::ptrdiff_t h = 0; h < p.halves; ++h) {
      float sum[kSparseColumns] = {};
      const unsigned char* at = p.w + p.weights_first[h];
      for (std::ptrdiff_t i = p.first[h]; i < p.first[h + 1]; ++i) {
        const float* x = static_cast<const float*>(p.x) + (p.steps[i] * p.tokens + t) * kSparseStep;
        const unsigned char* mask = at;
        at += 64;
        for (std::ptrdiff_t e = 0; e < kSparseUnit; ++e) {
          if ((mask[e / 8] >> (e % 8) & 1) == 0) continue;
          const std::uint32_t bits = static_cast<std::uint32_t>(at[0] | (at[1] << 8)) << 16;
          float weight;
          __builtin_memcpy(&weight, &bits, sizeof weight);
          sum[e % 32 / 2] += weight * x[e / 32 * 2 + e % 2];
          at += 2;
        }
      }
      __builtin_memcpy(p.sums + t * p.sums_stride + h * kSparseColumns, sum, sizeof sum);
    }
}

void expand(const unsigned char* w, std::ptrdiff_t units, std::uint16_t* dst) noexcept {
  for (std::ptrdiff_t i = 0; i < units; ++i, dst += kSparseUnit) {
    const unsigned char* mask = w;
    w += 64;
    for (std::ptrdiff_t e = 0; e < kSparseUnit; ++e) {
      dst[e] = 0;
      if ((mask[e / 8] >> (e % 8) & 1) == 0) continue;
      dst[e] = static_cast<std::uint16_t>(w[0] | (w[1] << 8));
      w += 2;
    }
  }
}

}  // namespace

void install_bitmask_scalar(BlockSparseKernels& k, Features) noexcept {
  k.bitmask_f32 = {multiply, "scalar"};
  k.expand_bitmask = {expand, "scalar"};
}

}  // namespace blockpack::kernels
