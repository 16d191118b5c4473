// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Sixteen codes at a time between one byte each and their packed form, in 128-bit registers; shared by the x86 levels.
/// Everything has internal linkage: each file gets its own copy with its own instruction set.

#include <immintrin.h>

#include "kernels/slot.hpp"

namespace blockpack::kernels {
namespace {

/// Sixteen codes below 2^Bits, packed: 2 * Bits bytes are written.
template <int Bits>
inline void pack16(__m128i codes, std::uint8_t* dst) noexcept {
  if constexpr (Bits == 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), codes);
  } else if constexpr (Bits == 4) {
    const __m128i words = _mm_maddubs_epi16(codes, _mm_set1_epi16(0x1001));  // c0 + 16 c1, at most 255
    _mm_storel_epi64(reinterpret_cast<__m128i*>(dst), _mm_packus_epi16(words, words));
  } else if constexpr (Bits == 6) {
    const __m128i words = _mm_maddubs_epi16(codes, _mm_set1_epi16(0x4001));     // c0 + 64 c1, at most 4095
    const __m128i triples = _mm_madd_epi16(words, _mm_set1_epi32(0x10000001));  // 12 bits + 12 bits
    const __m128i bytes =
        _mm_shuffle_epi8(triples, _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(dst), bytes);
    const int last = _mm_extract_epi32(bytes, 2);
    __builtin_memcpy(dst + 8, &last, 4);
  } else if constexpr (Bits == 2) {
    const __m128i words = _mm_maddubs_epi16(codes, _mm_set1_epi16(0x0401));    // c0 + 4 c1, at most 15
    const __m128i dwords = _mm_madd_epi16(words, _mm_set1_epi32(0x00100001));  // … + 16 (c2 + 4 c3), at most 255
    const __m128i bytes =
        _mm_shuffle_epi8(dwords, _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const int four = _mm_cvtsi128_si32(bytes);
    __builtin_memcpy(dst, &four, 4);
  }
}

/// The inverse: sixteen unsigned codes, one a byte. Reads 2 * Bits bytes.
template <int Bits>
inline __m128i unpack16(const std::uint8_t* src) noexcept {
  if constexpr (Bits == 8) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(src));
  } else if constexpr (Bits == 4) {
    const __m128i pairs = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(src));
    return _mm_and_si128(_mm_unpacklo_epi8(pairs, _mm_srli_epi16(pairs, 4)), _mm_set1_epi8(15));
  } else if constexpr (Bits == 6) {
    int last;
    __builtin_memcpy(&last, src + 8, 4);
    const __m128i bytes = _mm_insert_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(src)), last, 2);
    const __m128i triples =
        _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1));
    const __m128i low = _mm_or_si128(_mm_and_si128(triples, _mm_set1_epi32(0x3f)),
                                     _mm_and_si128(_mm_slli_epi32(triples, 2), _mm_set1_epi32(0x3f00)));
    const __m128i high = _mm_or_si128(_mm_and_si128(_mm_slli_epi32(triples, 4), _mm_set1_epi32(0x3f0000)),
                                      _mm_and_si128(_mm_slli_epi32(triples, 6), _mm_set1_epi32(0x3f000000)));
    return _mm_or_si128(low, high);
  } else {
    static_assert(Bits == 2);
    int four;
    __builtin_memcpy(&four, src, 4);
    const __m128i bytes = _mm_cvtsi32_si128(four);
    const __m128i nibbles = _mm_and_si128(_mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4)), _mm_set1_epi8(15));
    return _mm_and_si128(_mm_unpacklo_epi8(nibbles, _mm_srli_epi16(nibbles, 2)), _mm_set1_epi8(3));
  }
}

}  // namespace
}  // namespace blockpack::kernels
