// SPDX-License-Identifier: Apache-2.0
/// The coupling without vector registers: products and sums rounded one by one.

#include "kernels/couple/couple_kernels.hpp"

namespace blockpack::kernels {
namespace {

void couple(const Couple& c) noexcept {
  for (std::ptrdiff_t k = 0; k < c.out_blocks; ++k)
    for (std::ptrdiff_t t = 0; t < c.tokens; ++t)
      for (std::ptrdiff_t i = 0; i < 32; ++i) {
        float sum = 0.0f;
        for (std::ptrdiff_t l = 0; l < c.in_blocks; ++l)
          sum += c.s[(k * c.in_blocks + l) * 32 + i] * c.v[l * c.v_block + t * c.v_row + i];
        c.z[k * c.z_block + t * c.z_row + i] = sum;
      }
}

}  // namespace

void install_couple_scalar(CoupleKernels& k, Features) noexcept { k.couple = {couple, "scalar"}; }

}  // namespace blockpack::kernels
