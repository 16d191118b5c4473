// SPDX-License-Identifier: Apache-2.0
/// Conversions on AVX-512, 16 elements a step: the AVX2 kernels with mask registers and the narrowing stores vpmovdw
/// and vpmovdb. vcvtneps2bf16 would be shorter but flushes subnormals. Limit: memory.

#include <immintrin.h>

#include "kernels/convert/convert_kernels.hpp"

namespace blockpack::kernels {
namespace {

using V = __m512i;
constexpr std::size_t kLanes = 16;

inline V load_f32(const float* p) { return _mm512_loadu_si512(p); }
inline V load_u16(const std::uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline V load_u8(const std::uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store_f32(float* p, V v) { _mm512_storeu_si512(p, v); }
inline void store_u16(std::uint16_t* p, V v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v));
}
inline void store_u8(std::uint8_t* p, V v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v)); }

inline V set1(std::uint32_t v) { return _mm512_set1_epi32(static_cast<int>(v)); }
inline V add(V a, V b) { return _mm512_add_epi32(a, b); }
inline V sub(V a, V b) { return _mm512_sub_epi32(a, b); }
inline V and_(V a, V b) { return _mm512_and_si512(a, b); }
inline V or_(V a, V b) { return _mm512_or_si512(a, b); }
template <int N>
inline V shl(V a) {
  return _mm512_slli_epi32(a, N);
}
template <int N>
inline V shr(V a) {
  return _mm512_srli_epi32(a, N);
}
inline V shlv(V a, V count) { return _mm512_sllv_epi32(a, count); }
inline V shrv(V a, V count) { return _mm512_srlv_epi32(a, count); }
inline V min_s(V a, V b) { return _mm512_min_epi32(a, b); }
inline V max_s(V a, V b) { return _mm512_max_epi32(a, b); }
inline V sub_f32(V a, V b) {
  return _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)));
}
inline __mmask16 gt(V a, V b) { return _mm512_cmpgt_epi32_mask(a, b); }
inline V select(__mmask16 mask, V a, V b) { return _mm512_mask_mov_epi32(b, mask, a); }

#include "kernels/convert/convert_body.inc"

struct Fp16 {
  static V encode(V u) {
    return _mm512_cvtepu16_epi32(
        _mm512_cvtps_ph(_mm512_castsi512_ps(u), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static V decode(V c) {
    const V value = _mm512_castps_si512(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(c)));
    const V magnitude = and_(c, set1(0x7fffu));
    const V nan = or_(shl<13>(magnitude), or_(shl<16>(and_(c, set1(0x8000u))), set1(0x7f800000u)));
    return select(gt(magnitude, set1(0x7c00u)), nan, value);
  }
};

}  // namespace

void install_convert_avx512(ConvertKernels& table, Features) noexcept { install_all<Fp16>(table, "avx512"); }

}  // namespace blockpack::kernels
