// SPDX-License-Identifier: Apache-2.0
/// Integer products with packed codes by sdot: 4 signed x 4 signed bytes to each of 4 lanes, a row each. Codes become
/// signed bytes by a shift and a mask a plane, those of 4 bits by a look-up on top (tbl), those of 8 bits by one XOR;
/// the sum of a step, on top of minus what the zero adds to it, is exact.
///
/// For 16 rows x 32 k of 4-bit codes 80 instructions decode, and a token takes 32 dots and 12 float operations.
/// Expected limit: these instructions, 62 cycles of two pipes for one token, then 22 for each of 8.

#include <arm_neon.h>

#include "kernels/codes/codes_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/codes/codes_plain.inc"

#include "kernels/codes/codes_neon.inc"

struct DotSum {
  static constexpr int kRegisters = 1;
  int32x4_t total;
  void add(int8x16_t w, int8x16_t x, int, bool) { total = vdotq_s32(total, w, x); }
};

void few_int8(const CodeProduct& p) noexcept {
  switch (p.bits) {
    case 2:
      return few_int8_of<DotSum, 2>(p);
    case 3:
      return few_int8_of<DotSum, 3>(p);
    case 4:
      return few_int8_of<DotSum, 4>(p);
    case 5:
      return few_int8_of<DotSum, 5>(p);
    case 6:
      return few_int8_of<DotSum, 6>(p);
    default:
      return few_int8_of<DotSum, 8>(p);
  }
}

}  // namespace

void install_codes_neon_dot(CodeKernels& k, Features) noexcept { k.few_int8 = {few_int8, "neon_dot"}; }

}  // namespace blockpack::kernels
