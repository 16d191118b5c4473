// SPDX-License-Identifier: Apache-2.0
/// ggml's blocks with AVX-512: sixteen sub-blocks side by side in the searches (vdivps once a trial, the rest adds and
/// multiplies), vpermt2ps for the levels of IQ4.
///
/// Expected limit: the adds of the searches, which stay in element order: 3 chains of 4 cycles a step of 16 sub-blocks.

#include <immintrin.h>

#include "kernels/ggml/ggml_kernels.hpp"

namespace blockpack::kernels {
namespace {

using F = __m512;
using M = __mmask16;
constexpr int kLanes = 16;

inline F set1(float v) { return _mm512_set1_ps(v); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline F abs(F v) { return _mm512_abs_ps(v); }
inline F sqrt(F v) { return _mm512_sqrt_ps(v); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F truncate(F v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
inline M above(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline M not_below(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline M differ(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_OQ); }
inline M both(M a, M b) { return static_cast<M>(a & b); }
inline M either(M a, M b) { return static_cast<M>(a | b); }
inline bool any(M m) { return m != 0; }
inline F select(M m, F a, F b) { return _mm512_mask_blend_ps(m, b, a); }
inline float lowest(F v) { return _mm512_reduce_min_ps(v); }
inline float highest(F v) { return _mm512_reduce_max_ps(v); }
inline void to_bytes(std::uint8_t* dst, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(v)));
}
inline F from_i8(const std::uint8_t* src) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src))));
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

/// Bins of 8 from -128 on; each holds at most one middle: the level index below it, and the middle.
struct alignas(64) Iq4Bins {
  std::int32_t index[32];
  float middle[32];
};
constexpr Iq4Bins make_bins() {
  Iq4Bins bins{};
  for (int b = 0; b < 32; ++b) {
    const float from = -128.0f + 8.0f * static_cast<float>(b);
    bins.middle[b] = 1e30f;
    for (int k = 0; k < 15; ++k) {
      if (iq4_middle(k) < from) bins.index[b] = k + 1;
      if (iq4_middle(k) >= from && iq4_middle(k) < from + 8.0f) bins.middle[b] = iq4_middle(k);
    }
  }
  return bins;
}
constexpr Iq4Bins kBins = make_bins();

inline __m512i iq4_index(F v) {
  const F within = clip(v, set1(-128.0f), set1(127.0f));
  const __m512i bin = _mm512_srai_epi32(_mm512_cvttps_epi32(within + set1(128.0f)), 3);
  const __m512i index =
      _mm512_permutex2var_epi32(_mm512_load_si512(kBins.index), bin, _mm512_load_si512(kBins.index + 16));
  const F middle = _mm512_permutex2var_ps(_mm512_load_ps(kBins.middle), bin, _mm512_load_ps(kBins.middle + 16));
  return _mm512_mask_add_epi32(index, not_below(v, middle), index, _mm512_set1_epi32(1));
}
inline F iq4_level(F v) { return _mm512_permutexvar_ps(iq4_index(v), load(kIq4Levels)); }
inline void iq4_codes(std::uint8_t* dst, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), _mm512_cvtepi32_epi8(iq4_index(v)));
}

}  // namespace

void install_ggml_avx512(GgmlKernels& t, Features) noexcept {
  t.encode = {encode, "avx512"};
  t.decode = {decode, "avx512"};
}

}  // namespace blockpack::kernels
