// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The coupling between the two stages of a BLAST product: z_k = Σ_l s_kl ∘ v_l, element by element over the ranks.

#include "kernels/slot.hpp"

namespace blockpack::kernels {

/// One panel of 32 ranks of any number of tokens. Sums are chains in the order of l.
struct Couple {
  const float* v;  ///< token t, input block l at v + l * v_block + t * v_row, 32 values
  std::ptrdiff_t v_block;
  std::ptrdiff_t v_row;
  const float* s;  ///< output block k, input block l at s + (k * in_blocks + l) * 32
  std::ptrdiff_t in_blocks;
  std::ptrdiff_t out_blocks;
  std::ptrdiff_t tokens;
  float* z;  ///< token t, output block k at z + k * z_block + t * z_row, 32 values
  std::ptrdiff_t z_block;
  std::ptrdiff_t z_row;
};

struct CoupleKernels {
  Slot<void (*)(const Couple& c) noexcept> couple;
};

template <class Visitor>
void visit_slots(const CoupleKernels& k, Visitor&& visit) {
  visit("couple_f32_f32_f32p32", k.couple);
}

void install_couple_scalar(CoupleKernels& k, Features features) noexcept;
void install_couple_avx2(CoupleKernels& k, Features features) noexcept;
void install_couple_avx512(CoupleKernels& k, Features features) noexcept;
void install_couple_neon(CoupleKernels& k, Features features) noexcept;

}  // namespace blockpack::kernels
