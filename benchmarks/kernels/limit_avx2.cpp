// SPDX-License-Identifier: Apache-2.0
// Limits of the avx2 level: 32-byte loads, and 10 independent chains of f32 multiply-adds (latency 4, two a cycle).
#include <immintrin.h>

#include "kernels/limit_loops.hpp"

namespace bench {
namespace {

using Vector = __m256i;
Vector load(const unsigned char* p) noexcept { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
Vector add(Vector a, Vector b) noexcept { return _mm256_add_epi64(a, b); }
std::uint64_t total(Vector v) noexcept {
  std::uint64_t lane[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lane), v);
  return lane[0] + lane[1] + lane[2] + lane[3];
}
#include "kernels/read_streams.inc"

}  // namespace

std::uint64_t read_avx2(const void* data, std::size_t bytes, int streams) noexcept {
  return read_any(data, bytes, streams);
}

double fma_avx2_f32(std::int64_t steps) noexcept {
  const float factor = 0.999f;
  std::int64_t n = steps;
  asm volatile(
      "vbroadcastss %[factor], %%ymm14\n\t"
      "vmovaps %%ymm14, %%ymm15\n\t"
      "vmovaps %%ymm14, %%ymm0\n\tvmovaps %%ymm14, %%ymm1\n\tvmovaps %%ymm14, %%ymm2\n\tvmovaps %%ymm14, %%ymm3\n\t"
      "vmovaps %%ymm14, %%ymm4\n\tvmovaps %%ymm14, %%ymm5\n\tvmovaps %%ymm14, %%ymm6\n\tvmovaps %%ymm14, %%ymm7\n\t"
      "vmovaps %%ymm14, %%ymm8\n\tvmovaps %%ymm14, %%ymm9\n\t"
      ".p2align 5\n"
      "1:\n\t"
      "vfmadd213ps %%ymm15, %%ymm14, %%ymm0\n\tvfmadd213ps %%ymm15, %%ymm14, %%ymm1\n\t"
      "vfmadd213ps %%ymm15, %%ymm14, %%ymm2\n\tvfmadd213ps %%ymm15, %%ymm14, %%ymm3\n\t"
      "vfmadd213ps %%ymm15, %%ymm14, %%ymm4\n\tvfmadd213ps %%ymm15, %%ymm14, %%ymm5\n\t"
      "vfmadd213ps %%ymm15, %%ymm14, %%ymm6\n\tvfmadd213ps %%ymm15, %%ymm14, %%ymm7\n\t"
      "vfmadd213ps %%ymm15, %%ymm14, %%ymm8\n\tvfmadd213ps %%ymm15, %%ymm14, %%ymm9\n\t"
      "dec %[n]\n\t"
      "jnz 1b\n\t"
      "vzeroupper"
      : [n] "+r"(n)
      : [factor] "m"(factor)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm14", "xmm15");
  return static_cast<double>(steps) * 10 * 8 * 2;
}

}  // namespace bench
