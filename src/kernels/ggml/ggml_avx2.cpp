// SPDX-License-Identifier: Apache-2.0
/// ggml's blocks with AVX2: eight sub-blocks side by side in the searches; the levels of IQ4 by fifteen compares.
///
/// Expected limit: the adds of the searches, which stay in element order: 3 chains of 4 cycles a step of 8 sub-blocks.

#include <immintrin.h>

#include "kernels/ggml/ggml_kernels.hpp"

namespace blockpack::kernels {
namespace {

using F = __m256;
/// All bits of a lane where a comparison holds.
struct M {
  __m256 bits;
};
constexpr int kLanes = 8;

inline F set1(float v) { return _mm256_set1_ps(v); }
inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline F abs(F v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
inline F sqrt(F v) { return _mm256_sqrt_ps(v); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F truncate(F v) { return _mm256_round_ps(v, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
inline M above(F a, F b) { return {_mm256_cmp_ps(a, b, _CMP_GT_OQ)}; }
inline M not_below(F a, F b) { return {_mm256_cmp_ps(a, b, _CMP_GE_OQ)}; }
inline M differ(F a, F b) { return {_mm256_cmp_ps(a, b, _CMP_NEQ_OQ)}; }
inline M both(M a, M b) { return {_mm256_and_ps(a.bits, b.bits)}; }
inline M either(M a, M b) { return {_mm256_or_ps(a.bits, b.bits)}; }
inline bool any(M m) { return _mm256_movemask_ps(m.bits) != 0; }
inline F select(M m, F a, F b) { return _mm256_blendv_ps(b, a, m.bits); }
inline float lowest(F v) {
  __m128 t = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  t = _mm_min_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_min_ss(t, _mm_shuffle_ps(t, t, 1)));
}
inline float highest(F v) {
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}
inline void to_bytes(std::uint8_t* dst, F v) {
  const __m256i low_bytes = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12,
                                             -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_cvttps_epi32(v), low_bytes);
  const __m128i both_halves = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(dst), both_halves);
}
inline F from_i8(const std::uint8_t* src) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(src))));
}
inline std::uint16_t half_bits(float v) {
  return static_cast<std::uint16_t>(_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(v), _MM_FROUND_TO_NEAREST_INT), 0));
}
inline float half_value(std::uint16_t bits) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))); }
inline void lookup16(std::uint8_t* codes, const std::int8_t* table) {
  auto* p = reinterpret_cast<__m128i*>(codes);
  _mm_storeu_si128(p, _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)), _mm_loadu_si128(p)));
}

#include "kernels/ggml/ggml_body.inc"

inline F iq4_level(F v) { return level_by_compares(v); }
inline void iq4_codes(std::uint8_t* dst, F v) { to_bytes(dst, code_by_compares(v)); }

}  // namespace

void install_ggml_avx2(GgmlKernels& t, Features) noexcept {
  t.encode = {encode, "avx2"};
  t.decode = {decode, "avx2"};
}

}  // namespace blockpack::kernels
