// SPDX-License-Identifier: Apache-2.0
/// Packed codes to bf16 tiles, a step of 16 rows x 32 k at a time, for products of many tokens: 16 lines of 16 pairs.
///
/// A lane holds codes of one row whose 16-bit halves are an even and an odd k, so one permute of words gives a line of
/// pairs. Where all scales are powers of two and results are far from the ends of the range, the level itself is looked
/// up as bf16 and the scale added to its exponent: shift, permute, test and add, 32 cycles a step of the port that
/// permutes. Otherwise levels become floats, get scale, zero and minimum in one multiply-add, are rounded to nearest
/// even and interleaved: about 9 instructions a line, 72 cycles a step. Codes that are floats of 6 or 8 bits are looked
/// up as bf16 too, a pair a lane, and get their scale in the same two ways.
///
/// Sparse codes are decoded a group of 16 rows x 4 k at a time: a lane then holds the pair of its row, which a byte
/// shuffle puts in its place among two lines, as in two_four_avx512bf16.cpp: 22 instructions and 2 stores.
///
/// Expected limit: none of its own from 128 tokens on, where tile products of 256 cycles a step hide it; these cycles
/// for fewer.

#include <immintrin.h>

#include "kernels/codes/codes_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/codes/codes_plain.inc"

#include "kernels/codes/codes_avx512.inc"

/// Line of pair i of 8 k in a tile, as element order gives them: (k0, k1) (k4, k5) from the first four elements,
/// (k2, k3) (k6, k7) from the others.
constexpr int kPairOrder[4] = {0, 2, 1, 3};

static inline void store_line(std::uint16_t* dst, __m512i line) { _mm512_storeu_si512(dst, line); }

/// Whether weights are small integers or small floats times powers of two, the multiplier among them.
static inline bool by_powers(const CodeProduct& p) {
  return p.scale == 0 && !p.two_four && (p.values != nullptr ? p.bits > 4 : p.bits == 4) && !p.minimums && !p.zeros &&
         p.zero == 0 && (f32_bits(p.multiplier) & 0x807fffffu) == 0;
}
/// The scales of a block as steps of the exponents of both halves of a lane; false if one of them is not within 2^-100
/// … 2^100, where their exponents have room.
static inline bool read_powers(const CodeProduct& p, const unsigned char* at, std::ptrdiff_t groups, CodeDecoder& d) {
  const __m512i bias = _mm512_set1_epi32(254 - static_cast<int>(f32_bits(p.multiplier) >> 23));
  __m512i farthest = _mm512_setzero_si512();
  for (std::ptrdiff_t g = 0; g < groups; ++g) {
    const __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at + kCodeRows * g)));
    const __m512i power = _mm512_sub_epi32(byte, bias);
    farthest = _mm512_max_epu32(farthest, _mm512_abs_epi32(power));
    const __m512i high = _mm512_slli_epi32(power, 23);
    _mm512_store_si512(d.scale[g], _mm512_or_si512(high, _mm512_srli_epi32(high, 16)));
  }
  return _mm512_cmpgt_epi32_mask(farthest, _mm512_set1_epi32(100)) == 0;
}

/// Reads what the groups of the block of step `step` have.
static void enter_block(const CodeProduct& p, const unsigned char* panel, std::ptrdiff_t step, std::ptrdiff_t ahead,
                        CodeDecoder& d) {
  const std::ptrdiff_t index = step / p.block_steps;
  d.panel = panel;
  d.block = panel + index * p.block_bytes;
  d.first = index * p.block_steps;
  d.end = p.steps - d.first < p.block_steps ? p.steps : d.first + p.block_steps;
  const std::ptrdiff_t steps = d.end - d.first, groups = block_groups(p, steps);
  const unsigned char* at = d.block + steps * code_step_bytes(p.bits);
  const unsigned char* end = d.block + block_bytes(p, steps, groups);
  for (const unsigned char* line = at; line < end; line += 64) _mm_prefetch(line + ahead, _MM_HINT_T0);
  d.powers = by_powers(p) && read_powers(p, at, groups, d);
  if (d.powers) return;
  read_scales<1>(p, {at}, groups, p.multiplier, {d.scale});
  const unsigned char* minimums = at + scales_bytes(p, groups);
  if (p.minimums) read_scales<1>(p, {minimums}, groups, 1.0f, {d.offset});
  const unsigned char* zeros = minimums + (p.minimums ? scales_bytes(p, groups) : 0);
  for (std::ptrdiff_t g = 0; g < groups; ++g) {
    // Rounding by addition keeps a NaN only if its fraction has room.
    const __m512 scale = _mm512_load_ps(d.scale[g]), nan = _mm512_set1_ps(__builtin_nanf(""));
    _mm512_store_ps(d.scale[g], _mm512_mask_mov_ps(scale, _mm512_cmp_ps_mask(scale, scale, _CMP_UNORD_Q), nan));
    const __m512 zero = _mm512_cvtepi32_ps(p.zeros ? zero_line(zeros, g) : _mm512_set1_epi32(p.zero));
    const __m512 minimum = p.minimums ? _mm512_load_ps(d.offset[g]) : _mm512_setzero_ps();
    // Levels take zero and minimum in one addition, numbers lose their zero first: times a scale it could overflow.
    const __m512 lowered = _mm512_fnmadd_ps(zero, _mm512_load_ps(d.scale[g]), minimum);
    _mm512_store_ps(d.zero[g], zero);
    _mm512_store_ps(d.offset[g], p.bits > 4 && !p.two_four ? minimum : lowered);
  }
}

/// The levels as bf16, twice: the index of a word permute has 5 bits, the fifth of which belongs to the next code.
static inline __m512i bf16_levels(const CodeProduct& p) {
  const __m512i ints = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p.levels)));
  const __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(ints)), 16);
  const __m512i table = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(bits));
  return _mm512_shuffle_i64x2(table, table, 0x44);
}

/// Levels looked up, and the scale added to their exponents.
static inline void step_of_powers(__m512i levels, const unsigned char* w, const float* scale, std::uint16_t* dst) {
  const __m512i exponent = _mm512_load_si512(scale);
#pragma GCC unroll 4
  for (int line = 0; line < 4; ++line) {
    const __m512i codes = load_line(w + 64 * line);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const unsigned shift = 8 * (static_cast<unsigned>(i) % 2) + 4 * (static_cast<unsigned>(i) / 2);
      const __m512i level = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, shift), levels);
      const __mmask32 nonzero = _mm512_test_epi16_mask(level, level);
      store_line(dst + 32 * (4 * line + kPairOrder[i]), _mm512_mask_add_epi16(level, nonzero, level, exponent));
    }
  }
}

/// Two lines of floats, even and odd k of 16 rows, to pairs of bf16. Additions, shifts and logic run beside the
/// permutes; a conversion and the permute that puts its result in order would not.
static inline __m512i pairs_of(__m512 even, __m512 odd) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
  const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
  return _mm512_ternarylogic_epi32(high, low, _mm512_set1_epi32(0xffff), 0xd8);  // third ? second : first
}

/// The byte b of every lane less zero: 2^23 or 2^15 has the unit of its last bit, or of bit 8, at 1.
static inline __m512 byte_value(__m512i codes, int b, __m512 zero) {
  const __m512i at = b < 2 ? codes : _mm512_srli_epi32(codes, 16);
  const __m512i power = _mm512_set1_epi32(b % 2 == 0 ? 0x4b000000 : 0x47000000);
  const __m512i mask = _mm512_set1_epi32(b % 2 == 0 ? 0xff : 0xff00);
  const __m512 value = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(at, mask, power, 0xea));
  return _mm512_sub_ps(value, _mm512_add_ps(_mm512_castsi512_ps(power), zero));
}

/// What the four codes of quad Q of every row stand for, as floats: by their levels, or as numbers.
template <int Bits, int Q>
static inline void quad_lines(const unsigned char* w, __m512 levels, __m512 zero, __m512 scale, __m512 offset,
                              std::uint16_t* dst) {
  __m512i codes;
  if constexpr (Bits == 4) {  // the permute reads four bits of a lane
    codes = move_up<-plane_bit(4, 4 * Q)>(load_line(w + plane_byte(4, 0, 4 * Q)));
  } else {
    codes = quad<Bits, Q>(w);
  }
  const auto value = [&](int b) {
    __m512 v;
    if constexpr (Bits > 4) {
      v = byte_value(codes, b, zero);
    } else {
      v = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 8 * static_cast<unsigned>(b)), levels);
    }
    return _mm512_fmadd_ps(v, scale, offset);
  };
  std::uint16_t* at = dst + 32 * (Q / 2 * 4 + Q % 2);
  store_line(at, pairs_of(value(0), value(2)));
  store_line(at + 64, pairs_of(value(1), value(3)));
}

/// What the permute of codes up to 4 bits looks up.
template <int Bits>
static inline __m512 f32_levels(const CodeProduct& p) {
  __m512i ints = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  if (Bits == 4 && p.values != nullptr) return _mm512_loadu_ps(p.values);
  if (Bits == 4) ints = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p.levels)));
  return _mm512_cvtepi32_ps(ints);
}

/// Any codes, scales, zeros and minimums. `second`: how far the group of the second half step is from that of the
/// first.
template <int Bits>
static inline void step_of_floats(__m512 levels, const unsigned char* w, const CodeDecoder& d, std::ptrdiff_t group,
                                  std::ptrdiff_t second, std::uint16_t* dst) {
  const auto half = [&](std::ptrdiff_t g, const auto& lines) {
    lines(_mm512_load_ps(d.zero[g]), _mm512_load_ps(d.scale[g]), _mm512_load_ps(d.offset[g]));
  };
  half(group, [&](__m512 zero, __m512 scale, __m512 offset) {
    quad_lines<Bits, 0>(w, levels, zero, scale, offset, dst);
    quad_lines<Bits, 1>(w, levels, zero, scale, offset, dst);
    quad_lines<Bits, 2>(w, levels, zero, scale, offset, dst);
    quad_lines<Bits, 3>(w, levels, zero, scale, offset, dst);
  });
  half(group + second, [&](__m512 zero, __m512 scale, __m512 offset) {
    quad_lines<Bits, 4>(w, levels, zero, scale, offset, dst);
    quad_lines<Bits, 5>(w, levels, zero, scale, offset, dst);
    quad_lines<Bits, 6>(w, levels, zero, scale, offset, dst);
    quad_lines<Bits, 7>(w, levels, zero, scale, offset, dst);
  });
}

/// Quads [Q, End) of codes that are floats.
template <int Bits, int Q, int End>
static inline void float_lines(const Bf16Table<Bits>& table, const unsigned char* w, const CodeDecoder& d,
                               std::ptrdiff_t group, std::uint16_t* dst) {
  if constexpr (Q < End) {
    const __m512i codes = quad<Bits, Q>(w);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512i pair = table.values(half == 0 ? codes : _mm512_srli_epi16(codes, 8));
      if (d.powers) {
        // Neither 0 nor beyond the finite: 2 · magnitude - 1 below that of infinity.
        const __m512i twice = _mm512_sub_epi16(_mm512_slli_epi16(pair, 1), _mm512_set1_epi16(1));
        const __mmask32 finite = _mm512_cmplt_epu16_mask(twice, _mm512_set1_epi16(static_cast<short>(0xfeff)));
        pair = _mm512_mask_add_epi16(pair, finite, pair, _mm512_load_si512(d.scale[group]));
      } else {
        const __m512 scale = _mm512_load_ps(d.scale[group]);
        pair = pairs_of(_mm512_mul_ps(even_of(pair), scale), _mm512_mul_ps(odd_of(pair), scale));
      }
      store_line(dst + 32 * (Q / 2 * 4 + Q % 2 + 2 * half), pair);
    }
    float_lines<Bits, Q + 1, End>(table, w, d, group, dst);
  }
}

/// Steps of one block of codes that are floats.
template <int Bits>
static void decode_floats(const CodeProduct& p, std::ptrdiff_t step, std::ptrdiff_t end, std::ptrdiff_t ahead,
                          const CodeDecoder& d, std::uint16_t* dst) {
  constexpr std::ptrdiff_t kBytes = code_step_bytes(Bits);
  const Bf16Table<Bits> table(p);
  const unsigned char* w = d.block + (step - d.first) * kBytes;
  for (; step < end; ++step, w += kBytes, dst += kCodeTile) {
#pragma GCC unroll 8
    for (std::ptrdiff_t b = 0; b < kBytes; b += 64) _mm_prefetch(w + b + ahead, _MM_HINT_T0);
    const std::ptrdiff_t at = step - d.first;
    const std::ptrdiff_t group = p.group_steps == 0 ? 2 * at : at / p.group_steps;
    float_lines<Bits, 0, 4>(table, w, d, group, dst);
    float_lines<Bits, 4, 8>(table, w, d, p.group_steps == 0 ? group + 1 : group, dst);
  }
}

/// Steps of one block.
template <int Bits>
static void decode_steps(const CodeProduct& p, std::ptrdiff_t step, std::ptrdiff_t end, std::ptrdiff_t ahead,
                         const CodeDecoder& d, std::uint16_t* dst) {
  constexpr std::ptrdiff_t kBytes = code_step_bytes(Bits);
  const unsigned char* w = d.block + (step - d.first) * kBytes;
  const std::ptrdiff_t per_group = p.group_steps == 0 ? 1 : p.group_steps;
  std::ptrdiff_t group = (step - d.first) / per_group, left = per_group - (step - d.first) % per_group;
  if (p.group_steps == 0) group *= 2;
  const __m512i bf16 = bf16_levels(p);
  const __m512 floats = f32_levels<Bits>(p);
  for (; step < end; ++step, w += kBytes, dst += kCodeTile) {
#pragma GCC unroll 8
    for (std::ptrdiff_t b = 0; b < kBytes; b += 64) _mm_prefetch(w + b + ahead, _MM_HINT_T0);
    if (Bits == 4 && d.powers) {
      step_of_powers(bf16, w, d.scale[group], dst);
    } else {
      step_of_floats<Bits>(floats, w, d, group, p.group_steps == 0 ? 1 : 0, dst);
    }
    if (--left == 0) {
      group += p.group_steps == 0 ? 2 : 1;
      left = per_group;
    }
  }
}

#include "kernels/two_four/two_four_lines.inc"

/// Quads [Q, End) of half a step of sparse codes; dst is where its tile begins.
template <int Q, int End>
static inline void sparse_lines(const unsigned char* w, __m512 values, __m512 scale, __m512 offset,
                                std::uint16_t* dst) {
  if constexpr (Q < End) {
    const __m512i codes = load_line(w + plane_byte(4, 0, 4 * Q));
    const __m512i places = load_line(w + code_step_bytes(4) + plane_byte(2, 0, 4 * Q));
#pragma GCC unroll 2
    for (int b = 0; b < 2; ++b) {
      const auto value = [&](int place) {
        const auto bit = static_cast<unsigned>(8 * place + plane_bit(4, 4 * Q));
        return _mm512_fmadd_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(codes, bit), values), scale, offset);
      };
      const int group = Q / 2 % 2 * 4 + kCodeOrder[Q % 2 * 4 + b] / 2;
      store_lines(pairs_of(value(b), value(b + 2)), places, 8 * b + plane_bit(2, 4 * Q), dst + 64 * group);
    }
    sparse_lines<Q + 1, End>(w, values, scale, offset, dst);
  }
}

/// Half steps [half, end) of one block of sparse codes.
static void decode_sparse(const CodeProduct& p, std::ptrdiff_t half, std::ptrdiff_t end, std::ptrdiff_t ahead,
                          const CodeDecoder& d, std::uint16_t* dst) {
  constexpr std::ptrdiff_t kBytes = code_step_bytes(6);
  const __m512 values = f32_levels<4>(p);
  for (; half < end; ++half, dst += kCodeTile) {
    const std::ptrdiff_t step = half / 2 - d.first;
    const unsigned char* w = d.block + step * kBytes;
    const std::ptrdiff_t group = p.group_steps == 0 ? 2 * step + half % 2 : step / p.group_steps;
    const __m512 scale = _mm512_load_ps(d.scale[group]), offset = _mm512_load_ps(d.offset[group]);
#pragma GCC unroll 4
    for (std::ptrdiff_t b = half % 2 * 192; b < half % 2 * 192 + 192; b += 64) _mm_prefetch(w + b + ahead, _MM_HINT_T0);
    if (half % 2 == 0) {
      sparse_lines<0, 4>(w, values, scale, offset, dst);
    } else {
      sparse_lines<4, 8>(w, values, scale, offset, dst);
    }
  }
}

void decode_bf16(const CodeProduct& p, const unsigned char* panel, std::ptrdiff_t step, std::ptrdiff_t count,
                 std::ptrdiff_t ahead, CodeDecoder& d, std::uint16_t* dst) noexcept {
  if (p.two_four) {
    for (const std::ptrdiff_t last = step + count; step < last;) {
      const std::ptrdiff_t in = step / 2;
      if (d.panel != panel || in < d.first || in >= d.end) enter_block(p, panel, in, ahead, d);
      const std::ptrdiff_t end = last < 2 * d.end ? last : 2 * d.end;
      decode_sparse(p, step, end, ahead, d, dst);
      dst += (end - step) * kCodeTile;
      step = end;
    }
    return;
  }
  for (const std::ptrdiff_t last = step + count; step < last;) {
    if (d.panel != panel || step < d.first || step >= d.end) enter_block(p, panel, step, ahead, d);
    const std::ptrdiff_t end = last < d.end ? last : d.end;
    switch (p.bits) {
      case 2:
        decode_steps<2>(p, step, end, ahead, d, dst);
        break;
      case 3:
        decode_steps<3>(p, step, end, ahead, d, dst);
        break;
      case 4:
        decode_steps<4>(p, step, end, ahead, d, dst);
        break;
      case 5:
        decode_steps<5>(p, step, end, ahead, d, dst);
        break;
      case 6:
        (p.values != nullptr ? decode_floats<6> : decode_steps<6>)(p, step, end, ahead, d, dst);
        break;
      default:
        (p.values != nullptr ? decode_floats<8> : decode_steps<8>)(p, step, end, ahead, d, dst);
    }
    dst += (end - step) * kCodeTile;
    step = end;
  }
}

}  // namespace

void install_codes_avx512bf16(CodeKernels& k, Features) noexcept {
  k.decode_bf16 = {decode_bf16, "avx512vnni+avx512bf16"};
}

}  // namespace blockpack::kernels
