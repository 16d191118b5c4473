// SPDX-License-Identifier: Apache-2.0
/// Quantization formats with AVX-512 F, BW, DQ, VL.
///
/// Encoding works on the bits of the weights: the mantissa is shifted right by a per-lane count (vpsrlvd) with half to
/// even done in integers, so subnormals, ties and the floating-point environment need no thought. About 15 instructions
/// per 16 weights and 20 for a block's maximum: limited by the two vector ports, near 10 GB/s of weights.
///
/// Decoding permutes tables of scaled values (vpermps for 4-bit codes, vpermt2ps for 6-bit ones) or moves the bits of
/// an 8-bit float into place and scales them: 4 to 10 instructions per 16 values, near the store bandwidth of L2.

#include <immintrin.h>

#include "kernels/quant/quant_kernels.hpp"
#include "kernels/quant/quant_x86.hpp"

namespace blockpack::kernels {
namespace {

constexpr std::size_t kMaxBlock = 128;

inline __m512i load_magnitude(const float* w) noexcept {
  return _mm512_and_si512(_mm512_loadu_si512(w), _mm512_set1_epi32(0x7fffffff));
}

inline std::uint32_t max_magnitude(const float* w, std::uint32_t n) noexcept {
  __m512i top = load_magnitude(w);
  for (std::uint32_t i = 16; i < n; i += 16) top = _mm512_max_epi32(top, load_magnitude(w + i));
  return static_cast<std::uint32_t>(_mm512_reduce_max_epi32(top));
}

/// mantissa / 2^shift, half to even; 0 from shift 26 on. shift >= 1.
inline __m512i shift_half_even(__m512i mantissa, __m512i shift) noexcept {
  const __m512i one = _mm512_set1_epi32(1);
  const __m512i odd = _mm512_and_si512(_mm512_srlv_epi32(mantissa, shift), one);
  const __m512i half_less_one = _mm512_sub_epi32(_mm512_sllv_epi32(one, _mm512_sub_epi32(shift, one)), one);
  return _mm512_srlv_epi32(_mm512_add_epi32(_mm512_add_epi32(mantissa, half_less_one), odd), shift);
}

inline __m512i mantissa_of(__m512i magnitude) noexcept {
  // (magnitude & 0x7fffff) | 0x800000
  return _mm512_ternarylogic_epi32(magnitude, _mm512_set1_epi32(0x007fffff), _mm512_set1_epi32(0x00800000), 0xea);
}

/// Codes of small floats in a block with scale byte `scale`.
struct SmallEncoder {
  __m512i mantissa_shift, tiny_shift, rebias, max_code, sign_bit;
  __m128i code_shift, sign_shift;

  SmallEncoder(const BlockCode& f, std::uint32_t scale) noexcept {
    const int m = static_cast<int>(f.mantissa_bits);
    const int s = static_cast<int>(scale);
    const int bias = static_cast<int>(f.bias);
    mantissa_shift = _mm512_set1_epi32(23 - m);
    tiny_shift = _mm512_set1_epi32(24 - m - bias + s);
    rebias = _mm512_set1_epi32(bias - 1 - s);
    max_code = _mm512_set1_epi32(static_cast<int>(f.max_code));
    sign_bit = _mm512_set1_epi32(1 << (f.bits - 1));
    code_shift = _mm_cvtsi32_si128(m);
    sign_shift = _mm_cvtsi32_si128(static_cast<int>(32 - f.bits));
  }
  __m512i operator()(const float* w) const noexcept {
    const __m512i bits = _mm512_loadu_si512(w);
    const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    const __m512i exponent = _mm512_srli_epi32(magnitude, 23);
    const __m512i shift = _mm512_max_epi32(mantissa_shift, _mm512_sub_epi32(tiny_shift, exponent));
    const __m512i base = _mm512_max_epi32(_mm512_add_epi32(exponent, rebias), _mm512_setzero_si512());
    const __m512i rounded = shift_half_even(mantissa_of(magnitude), shift);
    const __m512i code = _mm512_min_epi32(_mm512_add_epi32(rounded, _mm512_sll_epi32(base, code_shift)), max_code);
    const __m512i sign = _mm512_and_si512(_mm512_srl_epi32(bits, sign_shift), sign_bit);
    return _mm512_or_si512(code, sign);
  }
};

/// Two's complement codes in a block with scale byte `scale`.
struct FixedEncoder {
  __m512i base_shift, limit, mask, lowest;
  bool asymmetric;

  FixedEncoder(const BlockCode& f, std::uint32_t scale) noexcept {
    base_shift = _mm512_set1_epi32(static_cast<int>(scale - f.mantissa_bits) + 23);
    limit = _mm512_set1_epi32(static_cast<int>(f.max_code));
    mask = _mm512_set1_epi32((1 << f.bits) - 1);
    lowest = _mm512_set1_epi32(static_cast<int>(2 * f.max_code + 1));
    asymmetric = f.asymmetric && scale < 254;  // at 254 it would be -2^128
  }
  __m512i operator()(const float* w) const noexcept {
    const __m512i bits = _mm512_loadu_si512(w);
    const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    const __m512i shift = _mm512_sub_epi32(base_shift, _mm512_srli_epi32(magnitude, 23));
    const __m512i mantissa = mantissa_of(magnitude);
    __m512i steps = _mm512_min_epi32(shift_half_even(mantissa, shift), limit);
    const __mmask16 negative = _mm512_movepi32_mask(bits);
    if (asymmetric) {  // one more where |v| is at least limit + 1/2 steps
      const __m512i half_steps = _mm512_srlv_epi32(mantissa, _mm512_sub_epi32(shift, _mm512_set1_epi32(1)));
      const __mmask16 lower = _mm512_mask_cmpge_epi32_mask(negative, half_steps, lowest);
      steps = _mm512_mask_add_epi32(steps, lower, steps, _mm512_set1_epi32(1));
    }
    steps = _mm512_mask_sub_epi32(steps, negative, _mm512_setzero_si512(), steps);
    return _mm512_and_si512(steps, mask);
  }
};

template <class Encoder, int Bits>
void encode_row(const float* w, std::size_t cols, const BlockCode& f, std::uint8_t* scales,
                std::uint8_t* codes) noexcept {
  alignas(64) float padded[kMaxBlock];
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
      pack16<Bits>(_mm512_cvtepi32_epi8(encoder(values + i)), codes + i * Bits / 8);
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

/// Magnitude of a small float without special codes, as float32 bits, for filling tables.
inline float small_value(const BlockCode& f, std::uint32_t code) noexcept {
  const std::uint32_t exponent = code >> f.mantissa_bits;
  const std::uint32_t mantissa = code & ((1u << f.mantissa_bits) - 1);
  const std::uint32_t unit_bits = (128 - f.bias - f.mantissa_bits) << 23;  // 2^(1 - bias - mantissa_bits)
  std::uint32_t bits = ((exponent + 127 - f.bias) << 23) | (mantissa << (23 - f.mantissa_bits));
  float value;
  __builtin_memcpy(&value, exponent == 0 ? &unit_bits : &bits, 4);
  return exponent == 0 ? static_cast<float>(mantissa) * value : value;
}

/// 4-bit codes of either kind: one table.
template <bool Small>
struct Table16 {
  static constexpr int kBits = 4;
  __m512 unit, scaled;
  explicit Table16(const BlockCode& f) noexcept {
    alignas(64) float table[16];
    for (int i = 0; i < 16; ++i) {
      if constexpr (Small) {
        const float v = small_value(f, static_cast<std::uint32_t>(i) & 7u);
        table[i] = i < 8 ? v : -v;
      } else {
        table[i] = static_cast<float>(i < 8 ? i : i - 16);
      }
    }
    unit = _mm512_load_ps(table);
    scaled = unit;
  }
  void scale(float factor) noexcept { scaled = _mm512_mul_ps(unit, _mm512_set1_ps(factor)); }
  __m512 values(const std::uint8_t* codes) const noexcept {
    return _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(unpack16<4>(codes)), scaled);
  }
};

/// 6-bit small floats: 32 magnitudes in two registers, the sign put on top.
struct Table32 {
  static constexpr int kBits = 6;
  __m512 unit_low, unit_high, low, high;
  explicit Table32(const BlockCode& f) noexcept {
    alignas(64) float table[32];
    for (std::uint32_t i = 0; i < 32; ++i) table[i] = small_value(f, i);
    low = unit_low = _mm512_load_ps(table);
    high = unit_high = _mm512_load_ps(table + 16);
  }
  void scale(float factor) noexcept {
    low = _mm512_mul_ps(unit_low, _mm512_set1_ps(factor));
    high = _mm512_mul_ps(unit_high, _mm512_set1_ps(factor));
  }
  __m512 values(const std::uint8_t* codes) const noexcept {
    const __m512i c = _mm512_cvtepu8_epi32(unpack16<6>(codes));
    const __m512i magnitude = _mm512_castps_si512(_mm512_permutex2var_ps(low, c, high));
    const __m512i sign = _mm512_slli_epi32(c, 26);  // magnitude | (sign & 0x80000000)
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(magnitude, sign, _mm512_set1_epi32(INT32_MIN), 0xf8));
  }
};

/// 8-bit small floats: exponent and mantissa moved into place, subnormals from a table of 2^mantissa_bits values.
struct SmallBits {
  static constexpr int kBits = 8;
  __m512i rebias, subnormal_end, subnormals, max_code, infinity_code;
  __m128i shift;
  __m512 factor;
  explicit SmallBits(const BlockCode& f) noexcept {
    alignas(64) float table[16] = {};
    for (std::uint32_t i = 0; i < (1u << f.mantissa_bits); ++i) table[i] = small_value(f, i);
    subnormals = _mm512_load_si512(table);
    shift = _mm_cvtsi32_si128(static_cast<int>(23 - f.mantissa_bits));
    rebias = _mm512_set1_epi32(static_cast<int>((127 - f.bias) << 23));
    subnormal_end = _mm512_set1_epi32(1 << f.mantissa_bits);
    max_code = _mm512_set1_epi32(static_cast<int>(f.max_code));
    infinity_code = _mm512_set1_epi32(static_cast<int>(f.infinity_code));
    factor = _mm512_set1_ps(1.0f);
  }
  void scale(float v) noexcept { factor = _mm512_set1_ps(v); }
  __m512 values(const std::uint8_t* codes) const noexcept {
    const __m512i c = _mm512_cvtepi8_epi32(unpack16<8>(codes));  // the sign is already on top
    const __m512i magnitude = _mm512_and_si512(c, _mm512_set1_epi32(0x7f));
    __m512i v = _mm512_add_epi32(_mm512_sll_epi32(magnitude, shift), rebias);
    v = _mm512_mask_permutexvar_epi32(v, _mm512_cmplt_epi32_mask(magnitude, subnormal_end), magnitude, subnormals);
    v = _mm512_mask_mov_epi32(v, _mm512_cmpgt_epi32_mask(magnitude, max_code), _mm512_set1_epi32(0x7fc00000));
    v = _mm512_mask_mov_epi32(v, _mm512_cmpeq_epi32_mask(magnitude, infinity_code), _mm512_set1_epi32(0x7f800000));
    v = _mm512_ternarylogic_epi32(v, c, _mm512_set1_epi32(INT32_MIN), 0xf8);
    return _mm512_mul_ps(_mm512_castsi512_ps(v), factor);
  }
};

/// 6- and 8-bit fixed point.
template <int Bits>
struct FixedBits {
  static constexpr int kBits = Bits;
  __m512 factor;
  explicit FixedBits(const BlockCode&) noexcept { factor = _mm512_set1_ps(1.0f); }
  void scale(float v) noexcept { factor = _mm512_set1_ps(v); }
  __m512 values(const std::uint8_t* codes) const noexcept {
    __m512i c = _mm512_cvtepi8_epi32(unpack16<Bits>(codes));
    if constexpr (Bits == 6) c = _mm512_srai_epi32(_mm512_slli_epi32(c, 26), 26);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(c), factor);
  }
};

inline void store(float* dst, __m512 v, __mmask16 mask, bool) noexcept { _mm512_mask_storeu_ps(dst, mask, v); }
inline void store(std::uint16_t* dst, __m512 v, __mmask16 mask, bool exact) noexcept {
  __m512i bits = _mm512_castps_si512(v);
  if (!exact) {  // half to even; NaN does not come here
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  }
  _mm256_mask_storeu_epi16(dst, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}

template <class Decoder, class T>
void decode_row(const std::uint8_t* scales, const std::uint8_t* codes, std::size_t count, const BlockCode& f,
                T* dst) noexcept {
  constexpr std::size_t kBytes = 2 * Decoder::kBits;
  Decoder decoder(f);
  for (std::size_t col = 0; col < count; col += f.block) {
    const std::uint8_t scale = *scales++;
    const std::size_t n = count - col < f.block ? count - col : f.block;
    const bool exact = scale >= kExactBf16Scale;
    decoder.scale(f.factors[scale]);
    std::size_t i = 0;
    if (scale == 255) {
      for (; i < n; i += 16)
        store(dst + col + i, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)),
              n - i < 16 ? static_cast<__mmask16>((1u << (n - i)) - 1) : __mmask16{0xffff}, true);
    } else if (exact) {
      for (; i + 16 <= n; i += 16) store(dst + col + i, decoder.values(codes + i / 16 * kBytes), 0xffff, true);
    }
    for (; i < n; i += 16)
      store(dst + col + i, decoder.values(codes + i / 16 * kBytes),
            n - i < 16 ? static_cast<__mmask16>((1u << (n - i)) - 1) : __mmask16{0xffff}, exact);
    codes += f.block / 16 * kBytes;
  }
}

template <class T>
void decode_small(const std::uint8_t* scales, const std::uint8_t* codes, std::size_t count, const BlockCode& f,
                  T* dst) noexcept {
  if (f.bits == 4) return decode_row<Table16<true>>(scales, codes, count, f, dst);
  if (f.bits == 6) return decode_row<Table32>(scales, codes, count, f, dst);
  decode_row<SmallBits>(scales, codes, count, f, dst);
}
template <class T>
void decode_fixed(const std::uint8_t* scales, const std::uint8_t* codes, std::size_t count, const BlockCode& f,
                  T* dst) noexcept {
  if (f.bits == 4) return decode_row<Table16<false>>(scales, codes, count, f, dst);
  if (f.bits == 6) return decode_row<FixedBits<6>>(scales, codes, count, f, dst);
  decode_row<FixedBits<8>>(scales, codes, count, f, dst);
}

void group_range(const float* w, std::size_t n, float* low, float* high) noexcept {
  __m512 least = _mm512_setzero_ps();
  __m512 most = _mm512_setzero_ps();
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 v = _mm512_loadu_ps(w + i);
    least = _mm512_min_ps(v, least);
    most = _mm512_max_ps(v, most);
  }
  if (i < n) {
    const __m512 v = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << (n - i)) - 1), w + i);
    least = _mm512_min_ps(v, least);
    most = _mm512_max_ps(v, most);
  }
  *low = _mm512_reduce_min_ps(least);
  *high = _mm512_reduce_max_ps(most);
}

/// 16 codes as numbers.
inline __m512i group_codes(const float* w, __m512 scale, __m512 zero, __m512 low, __m512 high) noexcept {
  constexpr int kNearestEven = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const __m512 q = _mm512_add_ps(_mm512_roundscale_ps(_mm512_div_ps(_mm512_loadu_ps(w), scale), kNearestEven), zero);
  return _mm512_cvttps_epi32(_mm512_min_ps(_mm512_max_ps(q, low), high));
}

/// Stores 32 codes: 4 * Bits bytes.
template <int Bits>
inline void store_codes32(__m512i first, __m512i second, std::uint8_t* dst) noexcept {
  if constexpr (Bits == 3) {
    for (int p = 0; p < 3; ++p) {
      const __m512i bit = _mm512_set1_epi32(1 << p);
      const std::uint32_t plane = static_cast<std::uint32_t>(_mm512_test_epi32_mask(first, bit)) |
                                  (static_cast<std::uint32_t>(_mm512_test_epi32_mask(second, bit)) << 16);
      __builtin_memcpy(dst + 4 * p, &plane, 4);
    }
  } else {
    pack16<Bits>(_mm512_cvtepi32_epi8(first), dst);
    pack16<Bits>(_mm512_cvtepi32_epi8(second), dst + 2 * Bits);
  }
}

template <int Bits>
void encode_codes(const float* w, std::size_t n, const GroupCode& g, std::uint8_t* codes) noexcept {
  const __m512 scale = _mm512_set1_ps(g.scale);
  const __m512 zero = _mm512_set1_ps(g.zero);
  const __m512 low = _mm512_set1_ps(g.low);
  const __m512 high = _mm512_set1_ps(g.high);
  std::size_t i = 0;
  for (; i + 32 <= n; i += 32, codes += 4 * Bits)
    store_codes32<Bits>(group_codes(w + i, scale, zero, low, high), group_codes(w + i + 16, scale, zero, low, high),
                        codes);
  if (i == n) return;
  alignas(64) float rest[32] = {};
  std::uint8_t packed[4 * Bits];
  for (std::size_t j = 0; i + j < n; ++j) rest[j] = w[i + j];
  store_codes32<Bits>(group_codes(rest, scale, zero, low, high), group_codes(rest + 16, scale, zero, low, high),
                      packed);
  const std::size_t bytes = Bits == 3 ? 12 : ((n - i) * Bits + 7) / 8;
  for (std::size_t j = 0; j < bytes; ++j) codes[j] = packed[j];
}

void group_encode(const float* w, std::size_t n, const GroupCode& g, std::uint8_t* codes) noexcept {
  if (g.bits == 2) return encode_codes<2>(w, n, g, codes);
  if (g.bits == 3) return encode_codes<3>(w, n, g, codes);
  if (g.bits == 4) return encode_codes<4>(w, n, g, codes);
  encode_codes<8>(w, n, g, codes);
}

/// Values of a group: 8-bit codes by arithmetic, narrower ones through a table of 16 (repeated for 2 and 3 bits, so
/// that the bits above a code do not matter).
template <int Bits>
struct GroupDecoder {
  __m512 table, scale;
  __m512i zero;
  explicit GroupDecoder(const GroupCode& g) noexcept {
    scale = _mm512_set1_ps(g.scale);
    zero = _mm512_set1_epi32(static_cast<int>(g.zero));
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i code = _mm512_and_si512(lane, _mm512_set1_epi32(Bits == 8 ? 15 : (1 << Bits) - 1));
    table = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(code, zero)), scale);
  }
  /// Values of half `h` (0 or 1) of the 32 codes at `codes`.
  template <int H>
  __m512 values(const std::uint8_t* codes) const noexcept {
    if constexpr (Bits == 8) {
      const __m512i c = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes) + H));
      return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(c, zero)), scale);
    } else if constexpr (Bits == 4) {
      const __m128i pairs = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + 8 * H));
      const __m128i bytes = _mm_unpacklo_epi8(pairs, _mm_srli_epi16(pairs, 4));
      return _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(bytes), table);
    } else if constexpr (Bits == 2) {
      int four;
      __builtin_memcpy(&four, codes + 4 * H, 4);
      const __m512i shift = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
      return _mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi32(four), shift), table);
    } else {
      std::uint16_t plane[3];
      for (int p = 0; p < 3; ++p) __builtin_memcpy(plane + p, codes + 4 * p + 2 * H, 2);
      __m512i c = _mm512_maskz_set1_epi32(plane[0], 1);
      c = _mm512_mask_add_epi32(c, plane[1], c, _mm512_set1_epi32(2));
      c = _mm512_mask_add_epi32(c, plane[2], c, _mm512_set1_epi32(4));
      return _mm512_permutexvar_ps(c, table);
    }
  }
};

template <int Bits>
void decode_codes(const std::uint8_t* codes, std::size_t n, const GroupCode& g, float* dst) noexcept {
  const GroupDecoder<Bits> decoder(g);
  std::size_t i = 0;
  for (; i + 32 <= n; i += 32, codes += 4 * Bits) {
    _mm512_storeu_ps(dst + i, decoder.template values<0>(codes));
    _mm512_storeu_ps(dst + i + 16, decoder.template values<1>(codes));
  }
  if (i == n) return;
  std::uint8_t rest[4 * Bits] = {};
  const std::size_t left = n - i;
  const std::size_t bytes = Bits == 3 ? 12 : (left * Bits + 7) / 8;
  for (std::size_t j = 0; j < bytes; ++j) rest[j] = codes[j];
  const std::uint32_t mask = (1u << left) - 1;
  _mm512_mask_storeu_ps(dst + i, static_cast<__mmask16>(mask), decoder.template values<0>(rest));
  if (left > 16)
    _mm512_mask_storeu_ps(dst + i + 16, static_cast<__mmask16>(mask >> 16), decoder.template values<1>(rest));
}

void group_decode(const std::uint8_t* codes, std::size_t n, const GroupCode& g, float* dst) noexcept {
  if (g.bits == 2) return decode_codes<2>(codes, n, g, dst);
  if (g.bits == 3) return decode_codes<3>(codes, n, g, dst);
  if (g.bits == 4) return decode_codes<4>(codes, n, g, dst);
  decode_codes<8>(codes, n, g, dst);
}

}  // namespace

void install_quant_avx512(QuantKernels& t, Features) noexcept {
  t.encode_small = {encode_small, "avx512"};
  t.encode_fixed = {encode_fixed, "avx512"};
  t.decode_f32_small = {decode_small<float>, "avx512"};
  t.decode_f32_fixed = {decode_fixed<float>, "avx512"};
  t.decode_bf16_small = {decode_small<std::uint16_t>, "avx512"};
  t.decode_bf16_fixed = {decode_fixed<std::uint16_t>, "avx512"};
  t.group_range = {group_range, "avx512"};
  t.group_encode = {group_encode, "avx512"};
  t.group_decode = {group_decode, "avx512"};
  install_table_avx512(t);
  install_nvfp4_avx512(t);
  install_rounding_avx512(t);
  install_gram_avx512(t);
}

}  // namespace blockpack::kernels
