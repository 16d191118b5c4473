// SPDX-License-Identifier: Apache-2.0
/// Codes over a table of sixteen levels with AVX2.
///
/// Encoding counts the thresholds below a value: a compare and a subtraction each, 7 (E2M1) or 15 (NF4) times per 8
/// weights, near 6 GB/s of weights. Decoding takes two vpermps of eight levels and a blend by bit 3 of the code.

#include <immintrin.h>

#include "kernels/quant/quant_kernels.hpp"
#include "kernels/quant/quant_x86.hpp"

namespace blockpack::kernels {
namespace {

std::uint32_t table_absmax(const float* w, std::size_t n) noexcept {
  const __m256i sign = _mm256_set1_epi32(0x7fffffff);
  __m256i top = _mm256_setzero_si256();
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8)
    top = _mm256_max_epu32(top, _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + i)), sign));
  alignas(32) std::uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), top);
  for (std::size_t j = 0; i + j < n; ++j) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, w + i + j, 4);
    bits &= 0x7fffffffu;
    lanes[j] = bits > lanes[j] ? bits : lanes[j];
  }
  for (int j = 1; j < 8; ++j) lanes[0] = lanes[j] > lanes[0] ? lanes[j] : lanes[0];
  return lanes[0];
}

template <bool SignedMagnitude>
inline __m256i codes8(__m256 w, const TableThresholds& t) noexcept {
  const __m256 x = _mm256_mul_ps(w, _mm256_set1_ps(t.multiplier));
  const __m256 at = SignedMagnitude ? _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x) : x;
  __m256i code = _mm256_setzero_si256();
  for (int i = 0; i < (SignedMagnitude ? 7 : 15); ++i)
    code = _mm256_sub_epi32(code, _mm256_castps_si256(_mm256_cmp_ps(at, _mm256_set1_ps(t.thresholds[i]), _CMP_GT_OQ)));
  if (SignedMagnitude) {
    const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(x), 28), _mm256_set1_epi32(8));
    code = _mm256_or_si256(code, sign);
  }
  return code;
}

template <bool SignedMagnitude>
inline __m128i codes16(const float* w, const TableThresholds& t) noexcept {
  const __m256i words = _mm256_packs_epi32(codes8<SignedMagnitude>(_mm256_loadu_ps(w), t),
                                           codes8<SignedMagnitude>(_mm256_loadu_ps(w + 8), t));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  return _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
}

template <bool SignedMagnitude>
inline void encode(const float* w, std::size_t n, const TableThresholds& t, std::uint8_t* codes) noexcept {
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16, codes += 8) pack16<4>(codes16<SignedMagnitude>(w + i, t), codes);
  if (i == n) return;
  alignas(32) float last[16] = {};
  std::uint8_t rest[8];
  for (std::size_t j = 0; i + j < n; ++j) last[j] = w[i + j];
  pack16<4>(codes16<SignedMagnitude>(last, t), rest);
  for (std::size_t j = 0; j < (n - i) / 2; ++j) codes[j] = rest[j];
}

void table_encode(const float* w, std::size_t n, const TableThresholds& t, std::uint8_t* codes) noexcept {
  if (t.signed_magnitude) return encode<true>(w, n, t, codes);
  encode<false>(w, n, t, codes);
}

struct Levels {
  __m256 low, high;
  __m256 eight(__m128i codes) const noexcept {
    const __m256i c = _mm256_cvtepu8_epi32(codes);
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, c), _mm256_permutevar8x32_ps(high, c),
                            _mm256_castsi256_ps(_mm256_slli_epi32(c, 28)));
  }
};

void table_decode(const std::uint8_t* codes, std::size_t n, const float* levels, float first, float second,
                  float* dst) noexcept {
  const auto scaled = [&](const float* p) {
    return _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(p), _mm256_set1_ps(first)), _mm256_set1_ps(second));
  };
  const Levels table{scaled(levels), scaled(levels + 8)};
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16, codes += 8) {
    const __m128i c = unpack16<4>(codes);
    _mm256_storeu_ps(dst + i, table.eight(c));
    _mm256_storeu_ps(dst + i + 8, table.eight(_mm_srli_si128(c, 8)));
  }
  if (i == n) return;
  std::uint8_t rest[8] = {};
  alignas(32) float values[16];
  for (std::size_t j = 0; j < (n - i + 1) / 2; ++j) rest[j] = codes[j];
  const __m128i c = unpack16<4>(rest);
  _mm256_store_ps(values, table.eight(c));
  _mm256_store_ps(values + 8, table.eight(_mm_srli_si128(c, 8)));
  for (std::size_t j = 0; i + j < n; ++j) dst[i + j] = values[j];
}

}  // namespace

void install_table_avx2(QuantKernels& t) noexcept {
  t.table_absmax = {table_absmax, "avx2"};
  t.table_encode = {table_encode, "avx2"};
  t.table_decode = {table_decode, "avx2"};
}

}  // namespace blockpack::kernels
