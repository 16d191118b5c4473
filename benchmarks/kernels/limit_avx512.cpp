// SPDX-License-Identifier: Apache-2.0
// Limits of the avx512 level: 64-byte loads, and 12 independent chains of f32 multiply-adds (latency 4, two a cycle).
#include <immintrin.h>

#include "kernels/limit_loops.hpp"

namespace bench {
namespace {

using Vector = __m512i;
Vector load(const unsigned char* p) noexcept { return _mm512_loadu_si512(p); }
Vector add(Vector a, Vector b) noexcept { return _mm512_add_epi64(a, b); }
std::uint64_t total(Vector v) noexcept {
  std::uint64_t lane[8];
  _mm512_storeu_si512(lane, v);
  return lane[0] + lane[1] + lane[2] + lane[3] + lane[4] + lane[5] + lane[6] + lane[7];
}
#include "kernels/read_streams.inc"

}  // namespace

std::uint64_t read_avx512(const void* data, std::size_t bytes, int streams) noexcept {
  return read_any(data, bytes, streams);
}

double fma_avx512_f32(std::int64_t steps) noexcept {
  const float factor = 0.999f;
  std::int64_t n = steps;
  asm volatile(
      "vbroadcastss %[factor], %%zmm14\n\t"
      "vmovaps %%zmm14, %%zmm15\n\t"
      "vmovaps %%zmm14, %%zmm0\n\tvmovaps %%zmm14, %%zmm1\n\tvmovaps %%zmm14, %%zmm2\n\tvmovaps %%zmm14, %%zmm3\n\t"
      "vmovaps %%zmm14, %%zmm4\n\tvmovaps %%zmm14, %%zmm5\n\tvmovaps %%zmm14, %%zmm6\n\tvmovaps %%zmm14, %%zmm7\n\t"
      "vmovaps %%zmm14, %%zmm8\n\tvmovaps %%zmm14, %%zmm9\n\tvmovaps %%zmm14, %%zmm10\n\tvmovaps %%zmm14, %%zmm11\n\t"
      ".p2align 6\n"
      "1:\n\t"
      "vfmadd213ps %%zmm15, %%zmm14, %%zmm0\n\tvfmadd213ps %%zmm15, %%zmm14, %%zmm1\n\t"
      "vfmadd213ps %%zmm15, %%zmm14, %%zmm2\n\tvfmadd213ps %%zmm15, %%zmm14, %%zmm3\n\t"
      "vfmadd213ps %%zmm15, %%zmm14, %%zmm4\n\tvfmadd213ps %%zmm15, %%zmm14, %%zmm5\n\t"
      "vfmadd213ps %%zmm15, %%zmm14, %%zmm6\n\tvfmadd213ps %%zmm15, %%zmm14, %%zmm7\n\t"
      "vfmadd213ps %%zmm15, %%zmm14, %%zmm8\n\tvfmadd213ps %%zmm15, %%zmm14, %%zmm9\n\t"
      "vfmadd213ps %%zmm15, %%zmm14, %%zmm10\n\tvfmadd213ps %%zmm15, %%zmm14, %%zmm11\n\t"
      "dec %[n]\n\t"
      "jnz 1b\n\t"
      "vzeroupper"
      : [n] "+r"(n)
      : [factor] "m"(factor)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm14",
        "xmm15");
  return static_cast<double>(steps) * 12 * 16 * 2;
}

}  // namespace bench
