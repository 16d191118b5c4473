// SPDX-License-Identifier: Apache-2.0
/// Codes over a table of sixteen levels with AVX-512 F, BW, VL.
///
/// Encoding counts the thresholds below a value: a compare to a mask and a masked add each, 7 (E2M1) or 15 (NF4) times
/// per 16 weights. Compares go through one port, so 15 of them bound it near 10 GB/s of weights. Decoding is one
/// vpermps and two products per 16 values: bound by stores.

#include <immintrin.h>

#include "kernels/quant/quant_kernels.hpp"
#include "kernels/quant/quant_x86.hpp"

namespace blockpack::kernels {
namespace {

std::uint32_t table_absmax(const float* w, std::size_t n) noexcept {
  const __m512i sign = _mm512_set1_epi32(0x7fffffff);
  __m512i top = _mm512_setzero_si512();
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) top = _mm512_max_epu32(top, _mm512_and_si512(_mm512_loadu_si512(w + i), sign));
  if (i < n) {
    const __m512i rest = _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << (n - i)) - 1), w + i);
    top = _mm512_max_epu32(top, _mm512_and_si512(rest, sign));
  }
  return static_cast<std::uint32_t>(_mm512_reduce_max_epu32(top));
}

template <bool SignedMagnitude>
inline __m128i codes16(__m512 w, const TableThresholds& t) noexcept {
  const __m512 x = _mm512_mul_ps(w, _mm512_set1_ps(t.multiplier));
  const __m512 at = SignedMagnitude ? _mm512_abs_ps(x) : x;
  const __m512i one = _mm512_set1_epi32(1);
  __m512i code = _mm512_setzero_si512();
  for (int i = 0; i < (SignedMagnitude ? 7 : 15); ++i)
    code = _mm512_mask_add_epi32(code, _mm512_cmp_ps_mask(at, _mm512_set1_ps(t.thresholds[i]), _CMP_GT_OQ), code, one);
  if (SignedMagnitude) {
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(_mm512_castps_si512(x), 28), _mm512_set1_epi32(8));
    code = _mm512_or_si512(code, sign);
  }
  return _mm512_cvtepi32_epi8(code);
}

template <bool SignedMagnitude>
inline void encode(const float* w, std::size_t n, const TableThresholds& t, std::uint8_t* codes) noexcept {
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16, codes += 8) pack16<4>(codes16<SignedMagnitude>(_mm512_loadu_ps(w + i), t), codes);
  if (i == n) return;
  std::uint8_t rest[8];
  const __m512 last = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << (n - i)) - 1), w + i);
  pack16<4>(codes16<SignedMagnitude>(last, t), rest);
  for (std::size_t j = 0; j < (n - i) / 2; ++j) codes[j] = rest[j];
}

void table_encode(const float* w, std::size_t n, const TableThresholds& t, std::uint8_t* codes) noexcept {
  if (t.signed_magnitude) return encode<true>(w, n, t, codes);
  encode<false>(w, n, t, codes);
}

void table_decode(const std::uint8_t* codes, std::size_t n, const float* levels, float first, float second,
                  float* dst) noexcept {
  const __m512 scaled =
      _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(levels), _mm512_set1_ps(first)), _mm512_set1_ps(second));
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16, codes += 8)
    _mm512_storeu_ps(dst + i, _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(unpack16<4>(codes)), scaled));
  if (i == n) return;
  std::uint8_t rest[8] = {};
  for (std::size_t j = 0; j < (n - i + 1) / 2; ++j) rest[j] = codes[j];
  _mm512_mask_storeu_ps(dst + i, static_cast<__mmask16>((1u << (n - i)) - 1),
                        _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(unpack16<4>(rest)), scaled));
}

}  // namespace

void install_table_avx512(QuantKernels& t) noexcept {
  t.table_absmax = {table_absmax, "avx512"};
  t.table_encode = {table_encode, "avx512"};
  t.table_decode = {table_decode, "avx512"};
}

}  // namespace blockpack::kernels
