// SPDX-License-Identifier: Apache-2.0
/// Quantization formats with AVX2: the algorithms of the AVX-512 file eight lanes at a time. Masks become compares and
/// blends, 16-entry tables of floats become byte shuffles (vpshufb) that look up the upper half of the value.
///
/// Expected limit: three vector ports; about 20 instructions per 8 weights to encode and 8 to 12 per 8 values to
/// decode.

#include <immintrin.h>

#include "kernels/quant/quant_kernels.hpp"
#include "kernels/quant/quant_x86.hpp"

namespace blockpack::kernels {
namespace {

constexpr std::size_t kMaxBlock = 128;

inline __m256i load_bits(const float* w) noexcept { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)); }
inline __m256i magnitude_of(__m256i bits) noexcept { return _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)); }

inline std::uint32_t max_magnitude(const float* w, std::uint32_t n) noexcept {
  __m256i top = magnitude_of(load_bits(w));
  for (std::uint32_t i = 8; i < n; i += 8) top = _mm256_max_epi32(top, magnitude_of(load_bits(w + i)));
  __m128i t = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
  t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0x4e));
  t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0xb1));
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(t));
}

/// mantissa / 2^shift, half to even; 0 from shift 26 on. shift >= 1.
inline __m256i shift_half_even(__m256i mantissa, __m256i shift) noexcept {
  const __m256i one = _mm256_set1_epi32(1);
  const __m256i odd = _mm256_and_si256(_mm256_srlv_epi32(mantissa, shift), one);
  const __m256i half_less_one = _mm256_sub_epi32(_mm256_sllv_epi32(one, _mm256_sub_epi32(shift, one)), one);
  return _mm256_srlv_epi32(_mm256_add_epi32(_mm256_add_epi32(mantissa, half_less_one), odd), shift);
}

inline __m256i mantissa_of(__m256i magnitude) noexcept {
  return _mm256_or_si256(_mm256_and_si256(magnitude, _mm256_set1_epi32(0x007fffff)), _mm256_set1_epi32(0x00800000));
}

/// Two vectors of 8 numbers in [0, 255] to 16 bytes in order.
inline __m128i to_bytes(__m256i a, __m256i b) noexcept {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
  return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

/// Codes of small floats in a block with scale byte `scale`.
struct SmallEncoder {
  __m256i mantissa_shift, tiny_shift, rebias, max_code, sign_bit;
  __m128i code_shift, sign_shift;

  SmallEncoder(const BlockCode& f, std::uint32_t scale) noexcept {
    const int m = static_cast<int>(f.mantissa_bits);
    const int s = static_cast<int>(scale);
    const int bias = static_cast<int>(f.bias);
    mantissa_shift = _mm256_set1_epi32(23 - m);
    tiny_shift = _mm256_set1_epi32(24 - m - bias + s);
    rebias = _mm256_set1_epi32(bias - 1 - s);
    max_code = _mm256_set1_epi32(static_cast<int>(f.max_code));
    sign_bit = _mm256_set1_epi32(1 << (f.bits - 1));
    code_shift = _mm_cvtsi32_si128(m);
    sign_shift = _mm_cvtsi32_si128(static_cast<int>(32 - f.bits));
  }
  __m256i operator()(const float* w) const noexcept {
    const __m256i bits = load_bits(w);
    const __m256i magnitude = magnitude_of(bits);
    const __m256i exponent = _mm256_srli_epi32(magnitude, 23);
    const __m256i shift = _mm256_max_epi32(mantissa_shift, _mm256_sub_epi32(tiny_shift, exponent));
    const __m256i base = _mm256_max_epi32(_mm256_add_epi32(exponent, rebias), _mm256_setzero_si256());
    const __m256i rounded = shift_half_even(mantissa_of(magnitude), shift);
    const __m256i code = _mm256_min_epi32(_mm256_add_epi32(rounded, _mm256_sll_epi32(base, code_shift)), max_code);
    return _mm256_or_si256(code, _mm256_and_si256(_mm256_srl_epi32(bits, sign_shift), sign_bit));
  }
};

/// Two's complement codes in a block with scale byte `scale`.
struct FixedEncoder {
  __m256i base_shift, limit, mask, below_lowest;
  bool asymmetric;

  FixedEncoder(const BlockCode& f, std::uint32_t scale) noexcept {
    base_shift = _mm256_set1_epi32(static_cast<int>(scale - f.mantissa_bits) + 23);
    limit = _mm256_set1_epi32(static_cast<int>(f.max_code));
    mask = _mm256_set1_epi32((1 << f.bits) - 1);
    below_lowest = _mm256_set1_epi32(static_cast<int>(2 * f.max_code));
    asymmetric = f.asymmetric && scale < 254;  // at 254 it would be -2^128
  }
  __m256i operator()(const float* w) const noexcept {
    const __m256i bits = load_bits(w);
    const __m256i magnitude = magnitude_of(bits);
    const __m256i shift = _mm256_sub_epi32(base_shift, _mm256_srli_epi32(magnitude, 23));
    const __m256i mantissa = mantissa_of(magnitude);
    const __m256i negative = _mm256_srai_epi32(bits, 31);
    __m256i steps = _mm256_min_epi32(shift_half_even(mantissa, shift), limit);
    if (asymmetric) {  // one more where |v| is at least limit + 1/2 steps
      const __m256i half_steps = _mm256_srlv_epi32(mantissa, _mm256_sub_epi32(shift, _mm256_set1_epi32(1)));
      const __m256i lower = _mm256_and_si256(negative, _mm256_cmpgt_epi32(half_steps, below_lowest));
      steps = _mm256_sub_epi32(steps, lower);
    }
    return _mm256_and_si256(_mm256_sub_epi32(_mm256_xor_si256(steps, negative), negative), mask);
  }
};

template <class Encoder, int Bits>
void encode_row(const float* w, std::size_t cols, const BlockCode& f, std::uint8_t* scales,
                std::uint8_t* codes) noexcept {
  alignas(32) float padded[kMaxBlock];
  for (std::size_t col = 0; col < cols; col += f.block, codes += f.block * Bits / 8) {
    const float* values = w + col;
    if (cols - col < f.block) {
      for (std::uint32_t i = 0; i < f.block; ++i) padded[i] = col + i < cols ? values[i] : 0.0f;
      values = padded;
    }
    const std::uint32_t top = max_magnitude(values, f.block);
    const std::uint32_t field = top >> 23;
    if (field < kFastExponentField || field == 255) {
      if (top == 0) {
        *scales++ = 0;
        for (std::uint32_t i = 0; i < f.block; i += 16) pack16<Bits>(_mm_setzero_si128(), codes + i * Bits / 8);
      } else {
        f.encode_block(f.self, values, scales++, codes);
      }
      continue;
    }
    std::uint32_t scale = field - f.max_exponent + ((top & 0x007fffffu) > f.max_fraction ? 1 : 0);
    scale = scale > 254 - f.max_exponent ? 254 - f.max_exponent : scale;
    *scales++ = static_cast<std::uint8_t>(scale);
    const Encoder encoder(f, scale);
    for (std::uint32_t i = 0; i < f.block; i += 16)
      pack16<Bits>(to_bytes(encoder(values + i), encoder(values + i + 8)), codes + i * Bits / 8);
  }
}

void encode_small(const float* w, std::size_t cols, const BlockCode& f, std::uint8_t* scales,
                  std::uint8_t* codes) noexcept {
  if (f.bits == 4) return encode_row<SmallEncoder, 4>(w, cols, f, scales, codes);
  if (f.bits == 6) return encode_row<SmallEncoder, 6>(w, cols, f, scales, codes);
  encode_row<SmallEncoder, 8>(w, cols, f, scales, codes);
}
void encode_fixed(const float* w, std::size_t cols, const BlockCode& f, std::uint8_t* scales,
                  std::uint8_t* codes) noexcept {
  if (f.bits == 4) return encode_row<FixedEncoder, 4>(w, cols, f, scales, codes);
  if (f.bits == 6) return encode_row<FixedEncoder, 6>(w, cols, f, scales, codes);
  encode_row<FixedEncoder, 8>(w, cols, f, scales, codes);
}

/// Magnitude of a small float without special codes, as float32 bits.
inline std::uint32_t small_bits(const BlockCode& f, std::uint32_t code) noexcept {
  const std::uint32_t exponent = code >> f.mantissa_bits;
  const std::uint32_t mantissa = code & ((1u << f.mantissa_bits) - 1);
  if (exponent != 0) return ((exponent + 127 - f.bias) << 23) | (mantissa << (23 - f.mantissa_bits));
  const std::uint32_t unit_bits = (128 - f.bias - f.mantissa_bits) << 23;  // 2^(1 - bias - mantissa_bits)
  float unit;
  __builtin_memcpy(&unit, &unit_bits, 4);
  const float value = static_cast<float>(mantissa) * unit;
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

struct Sixteen {
  __m256 first, second;
};

inline Sixteen times(__m256i first, __m256i second, __m256 factor) noexcept {
  return {_mm256_mul_ps(_mm256_castsi256_ps(first), factor), _mm256_mul_ps(_mm256_castsi256_ps(second), factor)};
}

/// 4-bit small floats: the upper 16 bits of the float32, one byte at a time.
struct SmallNibbles {
  static constexpr int kBits = 4;
  __m128i upper, lower;
  __m256 factor;
  explicit SmallNibbles(const BlockCode& f) noexcept {
    alignas(16) std::uint8_t high[16];
    alignas(16) std::uint8_t low[16];
    for (std::uint32_t i = 0; i < 16; ++i) {
      const std::uint32_t bits = small_bits(f, i & 7u) | ((i & 8u) << 28);
      high[i] = static_cast<std::uint8_t>(bits >> 24);
      low[i] = static_cast<std::uint8_t>(bits >> 16);
    }
    upper = _mm_load_si128(reinterpret_cast<const __m128i*>(high));
    lower = _mm_load_si128(reinterpret_cast<const __m128i*>(low));
    factor = _mm256_set1_ps(1.0f);
  }
  void scale(float v) noexcept { factor = _mm256_set1_ps(v); }
  Sixteen values(const std::uint8_t* codes) const noexcept {
    const __m128i c = unpack16<4>(codes);
    const __m128i high = _mm_shuffle_epi8(upper, c);
    const __m128i low = _mm_shuffle_epi8(lower, c);
    const __m256i first = _mm256_cvtepu16_epi32(_mm_unpacklo_epi8(low, high));
    const __m256i second = _mm256_cvtepu16_epi32(_mm_unpackhi_epi8(low, high));
    return times(_mm256_slli_epi32(first, 16), _mm256_slli_epi32(second, 16), factor);
  }
};

/// 6- and 8-bit small floats: exponent and mantissa moved into place, subnormals from a table.
template <int Bits>
struct SmallBits {
  static constexpr int kBits = Bits;
  __m256i rebias, subnormal_end, subnormals, max_code, infinity_code;
  __m128i shift;
  __m256 factor;
  explicit SmallBits(const BlockCode& f) noexcept {
    alignas(32) std::uint32_t table[8] = {};
    for (std::uint32_t i = 0; i < (1u << f.mantissa_bits); ++i) table[i] = small_bits(f, i);
    subnormals = _mm256_load_si256(reinterpret_cast<const __m256i*>(table));
    shift = _mm_cvtsi32_si128(static_cast<int>(23 - f.mantissa_bits));
    rebias = _mm256_set1_epi32(static_cast<int>((127 - f.bias) << 23));
    subnormal_end = _mm256_set1_epi32(1 << f.mantissa_bits);
    max_code = _mm256_set1_epi32(static_cast<int>(f.max_code));
    infinity_code = _mm256_set1_epi32(static_cast<int>(f.infinity_code));
    factor = _mm256_set1_ps(1.0f);
  }
  void scale(float v) noexcept { factor = _mm256_set1_ps(v); }
  __m256i eight(__m128i bytes) const noexcept {
    const __m256i c = _mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 32 - Bits);  // the sign on top
    const __m256i magnitude = _mm256_srli_epi32(_mm256_slli_epi32(c, 1), 33 - Bits);
    __m256i v = _mm256_add_epi32(_mm256_sll_epi32(magnitude, shift), rebias);
    v = _mm256_blendv_epi8(v, _mm256_permutevar8x32_epi32(subnormals, magnitude),
                           _mm256_cmpgt_epi32(subnormal_end, magnitude));
    if constexpr (Bits == 8) {
      v = _mm256_blendv_epi8(v, _mm256_set1_epi32(0x7fc00000), _mm256_cmpgt_epi32(magnitude, max_code));
      v = _mm256_blendv_epi8(v, _mm256_set1_epi32(0x7f800000), _mm256_cmpeq_epi32(magnitude, infinity_code));
    }
    return _mm256_or_si256(v, _mm256_and_si256(c, _mm256_set1_epi32(INT32_MIN)));
  }
  Sixteen values(const std::uint8_t* codes) const noexcept {
    const __m128i c = unpack16<Bits>(codes);
    return times(eight(c), eight(_mm_srli_si128(c, 8)), factor);
  }
};

/// Two's complement codes.
template <int Bits>
struct FixedBits {
  static constexpr int kBits = Bits;
  __m256 factor;
  explicit FixedBits(const BlockCode&) noexcept { factor = _mm256_set1_ps(1.0f); }
  void scale(float v) noexcept { factor = _mm256_set1_ps(v); }
  static __m256i eight(__m128i bytes) noexcept {
    const __m256i c = _mm256_cvtepu8_epi32(bytes);
    return _mm256_castps_si256(_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(c, 32 - Bits), 32 - Bits)));
  }
  Sixteen values(const std::uint8_t* codes) const noexcept {
    const __m128i c = unpack16<Bits>(codes);
    return times(eight(c), eight(_mm_srli_si128(c, 8)), factor);
  }
};

inline void store(float* dst, const Sixteen& v, bool) noexcept {
  _mm256_storeu_ps(dst, v.first);
  _mm256_storeu_ps(dst + 8, v.second);
}
inline __m256i upper_half(__m256 v, bool exact) noexcept {
  __m256i bits = _mm256_castps_si256(v);
  if (!exact) {  // half to even; NaN stays one
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  }
  return _mm256_srli_epi32(bits, 16);
}
inline void store(std::uint16_t* dst, const Sixteen& v, bool exact) noexcept {
  const __m256i words = _mm256_packus_epi32(upper_half(v.first, exact), upper_half(v.second, exact));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), _mm256_permute4x64_epi64(words, 0xd8));
}

template <class Decoder, class T>
void decode_row(const std::uint8_t* scales, const std::uint8_t* codes, std::size_t count, const BlockCode& f,
                T* dst) noexcept {
  constexpr std::size_t kBytes = 2 * Decoder::kBits;
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
  Decoder decoder(f);
  for (std::size_t col = 0; col < count; col += f.block) {
    const std::uint8_t scale = *scales++;
    const std::size_t n = count - col < f.block ? count - col : f.block;
    const bool exact = scale >= kExactBf16Scale;
    decoder.scale(f.factors[scale]);
    for (std::size_t i = 0; i < n; i += 16) {
      const Sixteen v = scale == 255 ? Sixteen{nan, nan} : decoder.values(codes + i / 16 * kBytes);
      if (n - i >= 16) {
        store(dst + col + i, v, exact);
      } else {
        T rest[16];
        store(rest, v, exact);
        for (std::size_t j = 0; i + j < n; ++j) dst[col + i + j] = rest[j];
      }
    }
    codes += f.block / 16 * kBytes;
  }
}

template <class T>
void decode_small(const std::uint8_t* scales, const std::uint8_t* codes, std::size_t count, const BlockCode& f,
                  T* dst) noexcept {
  if (f.bits == 4) return decode_row<SmallNibbles>(scales, codes, count, f, dst);
  if (f.bits == 6) return decode_row<SmallBits<6>>(scales, codes, count, f, dst);
  decode_row<SmallBits<8>>(scales, codes, count, f, dst);
}
template <class T>
void decode_fixed(const std::uint8_t* scales, const std::uint8_t* codes, std::size_t count, const BlockCode& f,
                  T* dst) noexcept {
  if (f.bits == 4) return decode_row<FixedBits<4>>(scales, codes, count, f, dst);
  if (f.bits == 6) return decode_row<FixedBits<6>>(scales, codes, count, f, dst);
  decode_row<FixedBits<8>>(scales, codes, count, f, dst);
}

void group_range(const float* w, std::size_t n, float* low, float* high) noexcept {
  __m256 least = _mm256_setzero_ps();
  __m256 most = _mm256_setzero_ps();
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 v = _mm256_loadu_ps(w + i);
    least = _mm256_min_ps(v, least);
    most = _mm256_max_ps(v, most);
  }
  alignas(32) float a[8];
  alignas(32) float b[8];
  _mm256_store_ps(a, least);
  _mm256_store_ps(b, most);
  for (int j = 1; j < 8; ++j) {
    a[0] = a[j] < a[0] ? a[j] : a[0];
    b[0] = b[j] > b[0] ? b[j] : b[0];
  }
  for (; i < n; ++i) {
    a[0] = w[i] < a[0] ? w[i] : a[0];
    b[0] = w[i] > b[0] ? w[i] : b[0];
  }
  *low = a[0];
  *high = b[0];
}

struct GroupEncoder {
  __m256 scale, zero, low, high;
  explicit GroupEncoder(const GroupCode& g) noexcept
      : scale(_mm256_set1_ps(g.scale)),
        zero(_mm256_set1_ps(g.zero)),
        low(_mm256_set1_ps(g.low)),
        high(_mm256_set1_ps(g.high)) {}
  __m256i eight(const float* w) const noexcept {
    constexpr int kNearestEven = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    const __m256 q = _mm256_add_ps(_mm256_round_ps(_mm256_div_ps(_mm256_loadu_ps(w), scale), kNearestEven), zero);
    return _mm256_cvttps_epi32(_mm256_min_ps(_mm256_max_ps(q, low), high));
  }
  __m128i sixteen(const float* w) const noexcept { return to_bytes(eight(w), eight(w + 8)); }
};

/// Stores 32 codes: 4 * Bits bytes.
template <int Bits>
inline void store_codes32(__m128i first, __m128i second, std::uint8_t* dst) noexcept {
  if constexpr (Bits == 3) {
    const __m256i codes = _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
    const int planes[3] = {_mm256_movemask_epi8(_mm256_slli_epi16(codes, 7)),
                           _mm256_movemask_epi8(_mm256_slli_epi16(codes, 6)),
                           _mm256_movemask_epi8(_mm256_slli_epi16(codes, 5))};
    __builtin_memcpy(dst, planes, 12);
  } else {
    pack16<Bits>(first, dst);
    pack16<Bits>(second, dst + 2 * Bits);
  }
}

template <int Bits>
void encode_codes(const float* w, std::size_t n, const GroupCode& g, std::uint8_t* codes) noexcept {
  const GroupEncoder encoder(g);
  std::size_t i = 0;
  for (; i + 32 <= n; i += 32, codes += 4 * Bits)
    store_codes32<Bits>(encoder.sixteen(w + i), encoder.sixteen(w + i + 16), codes);
  if (i == n) return;
  alignas(32) float rest[32] = {};
  std::uint8_t packed[4 * Bits];
  for (std::size_t j = 0; i + j < n; ++j) rest[j] = w[i + j];
  store_codes32<Bits>(encoder.sixteen(rest), encoder.sixteen(rest + 16), packed);
  const std::size_t bytes = Bits == 3 ? 12 : ((n - i) * Bits + 7) / 8;
  for (std::size_t j = 0; j < bytes; ++j) codes[j] = packed[j];
}

void group_encode(const float* w, std::size_t n, const GroupCode& g, std::uint8_t* codes) noexcept {
  if (g.bits == 2) return encode_codes<2>(w, n, g, codes);
  if (g.bits == 3) return encode_codes<3>(w, n, g, codes);
  if (g.bits == 4) return encode_codes<4>(w, n, g, codes);
  encode_codes<8>(w, n, g, codes);
}

/// Sixteen 3-bit codes, one a byte, from bits 16 H … of three planes.
template <int H>
inline __m128i unpack_planes(const std::uint8_t* codes) noexcept {
  const __m128i bit = _mm_setr_epi8(1, 2, 4, 8, 16, 32, 64, -128, 1, 2, 4, 8, 16, 32, 64, -128);
  const __m128i spread = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  __m128i c = _mm_setzero_si128();
  for (int p = 0; p < 3; ++p) {
    std::uint16_t plane;
    __builtin_memcpy(&plane, codes + 4 * p + 2 * H, 2);
    const __m128i set = _mm_and_si128(_mm_shuffle_epi8(_mm_cvtsi32_si128(plane), spread), bit);
    c = _mm_or_si128(c, _mm_and_si128(_mm_cmpeq_epi8(set, bit), _mm_set1_epi8(static_cast<char>(1 << p))));
  }
  return c;
}

template <int Bits>
struct GroupDecoder {
  __m256 scale;
  __m256i zero;
  explicit GroupDecoder(const GroupCode& g) noexcept
      : scale(_mm256_set1_ps(g.scale)), zero(_mm256_set1_epi32(static_cast<int>(g.zero))) {}
  __m256i eight(__m128i bytes) const noexcept {
    return _mm256_castps_si256(_mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_cvtepu8_epi32(bytes), zero)));
  }
  /// Half H (0 or 1) of the 32 codes at `codes`.
  template <int H>
  Sixteen values(const std::uint8_t* codes) const noexcept {
    __m128i c;
    if constexpr (Bits == 3) {
      c = unpack_planes<H>(codes);
    } else {
      c = unpack16<Bits>(codes + 2 * Bits * H);
    }
    return times(eight(c), eight(_mm_srli_si128(c, 8)), scale);
  }
};

template <int Bits>
void decode_codes(const std::uint8_t* codes, std::size_t n, const GroupCode& g, float* dst) noexcept {
  const GroupDecoder<Bits> decoder(g);
  std::size_t i = 0;
  for (; i + 32 <= n; i += 32, codes += 4 * Bits) {
    store(dst + i, decoder.template values<0>(codes), true);
    store(dst + i + 16, decoder.template values<1>(codes), true);
  }
  if (i == n) return;
  std::uint8_t rest[4 * Bits] = {};
  float values[32];
  const std::size_t bytes = Bits == 3 ? 12 : ((n - i) * Bits + 7) / 8;
  for (std::size_t j = 0; j < bytes; ++j) rest[j] = codes[j];
  store(values, decoder.template values<0>(rest), true);
  store(values + 16, decoder.template values<1>(rest), true);
  for (std::size_t j = 0; i + j < n; ++j) dst[i + j] = values[j];
}

void group_decode(const std::uint8_t* codes, std::size_t n, const GroupCode& g, float* dst) noexcept {
  if (g.bits == 2) return decode_codes<2>(codes, n, g, dst);
  if (g.bits == 3) return decode_codes<3>(codes, n, g, dst);
  if (g.bits == 4) return decode_codes<4>(codes, n, g, dst);
  decode_codes<8>(codes, n, g, dst);
}

}  // namespace

void install_quant_avx2(QuantKernels& t, Features) noexcept {
  t.encode_small = {encode_small, "avx2"};
  t.encode_fixed = {encode_fixed, "avx2"};
  t.decode_f32_small = {decode_small<float>, "avx2"};
  t.decode_f32_fixed = {decode_fixed<float>, "avx2"};
  t.decode_bf16_small = {decode_small<std::uint16_t>, "avx2"};
  t.decode_bf16_fixed = {decode_fixed<std::uint16_t>, "avx2"};
  t.group_range = {group_range, "avx2"};
  t.group_encode = {group_encode, "avx2"};
  t.group_decode = {group_decode, "avx2"};
  install_table_avx2(t);
  install_nvfp4_avx2(t);
  install_rounding_avx2(t);
  install_gram_avx2(t);
}

}  // namespace blockpack::kernels
