// SPDX-License-Identifier: Apache-2.0
/// Conversions on AVX2 and F16C, 8 elements a step.
///
/// vcvtps2ph takes its rounding from the instruction; vcvtph2ps makes signalling NaNs quiet, which the scalar type does
/// not, so NaN lanes are patched. Limit: memory for bf16 and fp16; about 20 instructions per 8 elements (the integer
/// shift ports) for the small floats.

#include <immintrin.h>

#include "kernels/convert/convert_kernels.hpp"

namespace blockpack::kernels {
namespace {

using V = __m256i;
constexpr std::size_t kLanes = 8;

inline V load_f32(const float* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline V load_u16(const std::uint16_t* p) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline V load_u8(const std::uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline void store_f32(float* p, V v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline __m128i narrow_u16(V v) { return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)); }
inline void store_u16(std::uint16_t* p, V v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_u16(v)); }
inline void store_u8(std::uint8_t* p, V v) {
  const __m128i words = narrow_u16(v);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}

inline V set1(std::uint32_t v) { return _mm256_set1_epi32(static_cast<int>(v)); }
inline V add(V a, V b) { return _mm256_add_epi32(a, b); }
inline V sub(V a, V b) { return _mm256_sub_epi32(a, b); }
inline V and_(V a, V b) { return _mm256_and_si256(a, b); }
inline V or_(V a, V b) { return _mm256_or_si256(a, b); }
template <int N>
inline V shl(V a) {
  return _mm256_slli_epi32(a, N);
}
template <int N>
inline V shr(V a) {
  return _mm256_srli_epi32(a, N);
}
inline V shlv(V a, V count) { return _mm256_sllv_epi32(a, count); }
inline V shrv(V a, V count) { return _mm256_srlv_epi32(a, count); }
inline V min_s(V a, V b) { return _mm256_min_epi32(a, b); }
inline V max_s(V a, V b) { return _mm256_max_epi32(a, b); }
inline V sub_f32(V a, V b) {
  return _mm256_castps_si256(_mm256_sub_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)));
}
inline V gt(V a, V b) { return _mm256_cmpgt_epi32(a, b); }
inline V select(V mask, V a, V b) { return _mm256_blendv_epi8(b, a, mask); }

#include "kernels/convert/convert_body.inc"

struct Fp16 {
  static V encode(V u) {
    return _mm256_cvtepu16_epi32(
        _mm256_cvtps_ph(_mm256_castsi256_ps(u), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static V decode(V c) {
    const V value = _mm256_castps_si256(_mm256_cvtph_ps(narrow_u16(c)));
    const V magnitude = and_(c, set1(0x7fffu));
    const V nan = or_(shl<13>(magnitude), or_(shl<16>(and_(c, set1(0x8000u))), set1(0x7f800000u)));
    return select(gt(magnitude, set1(0x7c00u)), nan, value);
  }
};

}  // namespace

void install_convert_avx2(ConvertKernels& table, Features) noexcept { install_all<Fp16>(table, "avx2"); }

}  // namespace blockpack::kernels
