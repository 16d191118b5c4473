// SPDX-License-Identifier: Apache-2.0
/// Conversions on Advanced SIMD, 4 elements a step. fcvtn and fcvtl obey the rounding mode, flush-to-zero and
/// alternative half-precision bits of FPCR, so fp16 takes the integer path like the small floats.
/// Limit: about 20 instructions per 4 elements.

#include <arm_neon.h>

#include "kernels/convert/convert_kernels.hpp"

namespace blockpack::kernels {
namespace {

using V = uint32x4_t;
constexpr std::size_t kLanes = 4;

inline V load_f32(const float* p) { return vreinterpretq_u32_f32(vld1q_f32(p)); }
inline V load_u16(const std::uint16_t* p) { return vmovl_u16(vld1_u16(p)); }
inline V load_u8(const std::uint8_t* p) {
  std::uint32_t four;
  __builtin_memcpy(&four, p, 4);
  return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}
inline void store_f32(float* p, V v) { vst1q_f32(p, vreinterpretq_f32_u32(v)); }
inline void store_u16(std::uint16_t* p, V v) { vst1_u16(p, vmovn_u32(v)); }
inline void store_u8(std::uint8_t* p, V v) {
  const uint16x4_t words = vmovn_u32(v);
  const std::uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
  __builtin_memcpy(p, &four, 4);
}

inline V set1(std::uint32_t v) { return vdupq_n_u32(v); }
inline V add(V a, V b) { return vaddq_u32(a, b); }
inline V sub(V a, V b) { return vsubq_u32(a, b); }
inline V and_(V a, V b) { return vandq_u32(a, b); }
inline V or_(V a, V b) { return vorrq_u32(a, b); }
template <int N>
inline V shl(V a) {
  return vshlq_n_u32(a, N);
}
template <int N>
inline V shr(V a) {
  return vshrq_n_u32(a, N);
}
inline V shlv(V a, V count) { return vshlq_u32(a, vreinterpretq_s32_u32(count)); }
inline V shrv(V a, V count) { return vshlq_u32(a, vnegq_s32(vreinterpretq_s32_u32(count))); }
inline V min_s(V a, V b) {
  return vreinterpretq_u32_s32(vminq_s32(vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b)));
}
inline V max_s(V a, V b) {
  return vreinterpretq_u32_s32(vmaxq_s32(vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b)));
}
inline V sub_f32(V a, V b) {
  return vreinterpretq_u32_f32(vsubq_f32(vreinterpretq_f32_u32(a), vreinterpretq_f32_u32(b)));
}
inline V gt(V a, V b) { return vcgtq_s32(vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b)); }
inline V select(V mask, V a, V b) { return vbslq_u32(mask, a, b); }

#include "kernels/convert/convert_body.inc"

using Fp16 = Small<5, 10, 15, kIeee, false>;

}  // namespace

void install_convert_neon(ConvertKernels& table, Features) noexcept { install_all<Fp16>(table, "neon"); }

}  // namespace blockpack::kernels
