// SPDX-License-Identifier: Apache-2.0
/// Codes over a table of sixteen levels with NEON.
///
/// Encoding counts the thresholds below a value: a compare and a subtraction each, 7 (E2M1) or 15 (NF4) times per 4
/// weights. Decoding reads the scaled levels, 64 bytes in four registers, with tbl: bound by its two to four cycles per
/// four values.

#include <arm_neon.h>

#include "kernels/quant/quant_kernels.hpp"

namespace blockpack::kernels {
namespace {

std::uint32_t table_absmax(const float* w, std::size_t n) noexcept {
  uint32x4_t top = vdupq_n_u32(0);
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4)
    top = vmaxq_u32(top, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(w + i)), vdupq_n_u32(0x7fffffffu)));
  std::uint32_t largest = vmaxvq_u32(top);
  for (; i < n; ++i) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, w + i, 4);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

template <bool SignedMagnitude>
inline uint32x4_t codes4(const float* w, const TableThresholds& t) noexcept {
  const float32x4_t x = vmulq_n_f32(vld1q_f32(w), t.multiplier);
  const float32x4_t at = SignedMagnitude ? vabsq_f32(x) : x;
  uint32x4_t code = vdupq_n_u32(0);
  for (int i = 0; i < (SignedMagnitude ? 7 : 15); ++i)
    code = vsubq_u32(code, vcgtq_f32(at, vdupq_n_f32(t.thresholds[i])));
  if (SignedMagnitude) code = vorrq_u32(code, vandq_u32(vshrq_n_u32(vreinterpretq_u32_f32(x), 28), vdupq_n_u32(8)));
  return code;
}

/// Sixteen codes, two to a byte.
template <bool SignedMagnitude>
inline uint8x8_t packed16(const float* w, const TableThresholds& t) noexcept {
  const uint16x8_t low =
      vcombine_u16(vmovn_u32(codes4<SignedMagnitude>(w, t)), vmovn_u32(codes4<SignedMagnitude>(w + 4, t)));
  const uint16x8_t high =
      vcombine_u16(vmovn_u32(codes4<SignedMagnitude>(w + 8, t)), vmovn_u32(codes4<SignedMagnitude>(w + 12, t)));
  const uint16x8_t pairs = vreinterpretq_u16_u8(vcombine_u8(vmovn_u16(low), vmovn_u16(high)));
  return vmovn_u16(vorrq_u16(pairs, vshrq_n_u16(pairs, 4)));
}

template <bool SignedMagnitude>
inline void encode(const float* w, std::size_t n, const TableThresholds& t, std::uint8_t* codes) noexcept {
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16, codes += 8) vst1_u8(codes, packed16<SignedMagnitude>(w + i, t));
  if (i == n) return;
  float last[16] = {};
  std::uint8_t rest[8];
  __builtin_memcpy(last, w + i, (n - i) * sizeof(float));
  vst1_u8(rest, packed16<SignedMagnitude>(last, t));
  __builtin_memcpy(codes, rest, (n - i) / 2);
}

void table_encode(const float* w, std::size_t n, const TableThresholds& t, std::uint8_t* codes) noexcept {
  if (t.signed_magnitude) return encode<true>(w, n, t, codes);
  encode<false>(w, n, t, codes);
}

/// Values of sixteen codes at `codes`.
inline void decode16(const std::uint8_t* codes, const uint8x16x4_t& table, float* dst) noexcept {
  const uint8x8_t pairs = vld1_u8(codes);
  const uint8x8x2_t both = vzip_u8(vand_u8(pairs, vdup_n_u8(15)), vshr_n_u8(pairs, 4));
  const uint8x16_t bytes = vshlq_n_u8(vcombine_u8(both.val[0], both.val[1]), 2);  // of the first byte of a level
  static constexpr std::uint8_t kSpread[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
  static constexpr std::uint8_t kByte[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
  uint8x16_t spread = vld1q_u8(kSpread);
  const uint8x16_t byte = vld1q_u8(kByte);
  for (int i = 0; i < 4; ++i, spread = vaddq_u8(spread, vdupq_n_u8(4)))
    vst1q_f32(dst + 4 * i, vreinterpretq_f32_u8(vqtbl4q_u8(table, vaddq_u8(vqtbl1q_u8(bytes, spread), byte))));
}

void table_decode(const std::uint8_t* codes, std::size_t n, const float* levels, float first, float second,
                  float* dst) noexcept {
  uint8x16x4_t table;
  for (int i = 0; i < 4; ++i)
    table.val[i] = vreinterpretq_u8_f32(vmulq_n_f32(vmulq_n_f32(vld1q_f32(levels + 4 * i), first), second));
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16, codes += 8) decode16(codes, table, dst + i);
  if (i == n) return;
  std::uint8_t rest[8] = {};
  float values[16];
  __builtin_memcpy(rest, codes, (n - i + 1) / 2);
  decode16(rest, table, values);
  __builtin_memcpy(dst + i, values, (n - i) * sizeof(float));
}

}  // namespace

void install_table_neon(QuantKernels& t) noexcept {
  t.table_absmax = {table_absmax, "neon"};
  t.table_encode = {table_encode, "neon"};
  t.table_decode = {table_decode, "neon"};
}

}  // namespace blockpack::kernels
