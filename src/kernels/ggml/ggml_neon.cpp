// SPDX-License-Identifier: Apache-2.0
/// ggml's blocks with NEON: four sub-blocks side by side in the searches; the levels of IQ4 by fifteen compares.
///
/// Expected limit: two vector ports; about 12 operations for a weight and trial of 4 sub-blocks.

#include <arm_neon.h>

#include "kernels/ggml/ggml_kernels.hpp"

namespace blockpack::kernels {
namespace {

using F = float32x4_t;
/// All bits of a lane where a comparison holds.
struct M {
  uint32x4_t bits;
};
constexpr int kLanes = 4;

inline F set1(float v) { return vdupq_n_f32(v); }
inline F load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, F v) { vst1q_f32(p, v); }
inline F abs(F v) { return vabsq_f32(v); }
inline F sqrt(F v) { return vsqrtq_f32(v); }
inline M above(F a, F b) { return {vcgtq_f32(a, b)}; }
inline M not_below(F a, F b) { return {vcgeq_f32(a, b)}; }
inline M differ(F a, F b) { return {vmvnq_u32(vceqq_f32(a, b))}; }
inline M both(M a, M b) { return {vandq_u32(a.bits, b.bits)}; }
inline M either(M a, M b) { return {vorrq_u32(a.bits, b.bits)}; }
inline bool any(M m) { return vmaxvq_u32(m.bits) != 0; }
inline F select(M m, F a, F b) { return vbslq_f32(m.bits, a, b); }
inline F min(F a, F b) { return select(above(b, a), a, b); }  // b where one is NaN
inline F max(F a, F b) { return select(above(a, b), a, b); }
inline F truncate(F v) { return vrndq_f32(v); }
inline float lowest(F v) { return vminvq_f32(v); }
inline float highest(F v) { return vmaxvq_f32(v); }
inline void to_bytes(std::uint8_t* dst, F v) {
  const uint16x4_t words = vmovn_u32(vreinterpretq_u32_s32(vcvtq_s32_f32(v)));
  const std::uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
  __builtin_memcpy(dst, &bytes, 4);
}
inline F from_i8(const std::uint8_t* src) {
  std::uint32_t bytes;
  __builtin_memcpy(&bytes, src, 4);
  const int16x8_t words = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(bytes)));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
}
inline std::uint16_t half_bits(float v) { return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(v))), 0); }
inline float half_value(std::uint16_t bits) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
}
inline void lookup16(std::uint8_t* codes, const std::int8_t* table) {
  vst1q_u8(codes, vqtbl1q_u8(vreinterpretq_u8_s8(vld1q_s8(table)), vld1q_u8(codes)));
}

#include "kernels/ggml/ggml_body.inc"

inline F iq4_level(F v) { return level_by_compares(v); }
inline void iq4_codes(std::uint8_t* dst, F v) { to_bytes(dst, code_by_compares(v)); }

}  // namespace

void install_ggml_neon(GgmlKernels& t, Features) noexcept {
  t.encode = {encode, "neon"};
  t.decode = {decode, "neon"};
}

}  // namespace blockpack::kernels
