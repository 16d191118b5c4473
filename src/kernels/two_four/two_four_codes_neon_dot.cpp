// SPDX-License-Identifier: Apache-2.0
/// Sparse codes by integer dots (sdot): tbl takes the four activations that a quad of codes meets out of 16, and the
/// levels of the codes.
///
/// For 4 rows x 64 k a quad takes 7 instructions, and 2 more a token (3 where groups have zeros). Expected limit:
/// these, 36 cycles of two pipes for one token.

#include <arm_neon.h>

#include "kernels/two_four/two_four_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/codes/codes_plain.inc"

#include "kernels/codes/codes_neon.inc"

#include "kernels/two_four/two_four_codes_neon.inc"

struct DotSum {
  static constexpr int kRegisters = 1;
  int32x4_t total;
  void add(int8x16_t w, int8x16_t x, int, bool) { total = vdotq_s32(total, w, x); }
};

void few_int8(const CodeProduct& p) noexcept { few_int8_of<DotSum>(p); }

}  // namespace

void install_two_four_codes_neon_dot(TwoFourKernels& k, Features) noexcept {
  k.few_int8_codes = {few_int8, "neon_dot"};
}

}  // namespace blockpack::kernels
