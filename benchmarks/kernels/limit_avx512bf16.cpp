// SPDX-License-Identifier: Apache-2.0
// Limit of bf16 dots on registers: 24 independent chains of vdpbf16ps. AMD Zen 5 takes two a cycle with a latency of 6,
// Intel Sapphire Rapids one in 2.1 cycles with a latency of 8.6. Operands are not zero, for the clock may depend on
// them.
#include "kernels/limit_loops.hpp"

namespace bench {

#define BENCH_FOUR(statement, a, b, c, d) statement(a) statement(b) statement(c) statement(d)
#define BENCH_ALL(statement)            \
  BENCH_FOUR(statement, 0, 1, 2, 3)     \
  BENCH_FOUR(statement, 4, 5, 6, 7)     \
  BENCH_FOUR(statement, 8, 9, 10, 11)   \
  BENCH_FOUR(statement, 12, 13, 14, 15) \
  BENCH_FOUR(statement, 16, 17, 18, 19) \
  BENCH_FOUR(statement, 20, 21, 22, 23)
#define BENCH_CLEAR(i) "vpxord %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n\t"
#define BENCH_DOT(i) "vdpbf16ps %%zmm31, %%zmm30, %%zmm" #i "\n\t"

double dots_avx512_bf16(std::int64_t steps) noexcept {
  const std::uint32_t x = 0xbf853f81, w = 0x3f8e3f93;  // pairs of about -1, 1 and 1, 1
  std::int64_t n = steps;
  asm volatile(
      "vpbroadcastd %[x], %%zmm30\n\t"
      "vpbroadcastd %[w], %%zmm31\n\t" BENCH_ALL(BENCH_CLEAR) ".p2align 6\n"
      "1:\n\t" BENCH_ALL(BENCH_DOT) "dec %[n]\n\t"
      "jnz 1b\n\t"
      "vzeroupper"
      : [n] "+r"(n)
      : [x] "m"(x), [w] "m"(w)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
        "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm30",
        "xmm31");
  return static_cast<double>(steps) * 24 * 16 * 2 * 2;
}

}  // namespace bench
