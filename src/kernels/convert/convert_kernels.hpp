// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The slots of the convert family: float to each scalar type of core/scalar.hpp and back, one slot per type and
/// direction. Every kernel gives the bits of the scalar types for every input, takes any alignment and any length, and
/// reads and writes exactly n elements. src and dst do not overlap.
/// Installers are called weakest level first, each overwrites what it does better.

#include "kernels/slot.hpp"

namespace blockpack::kernels {

/// In the order of detail::ScalarKind in core/convert.hpp.
enum ConvertKind {
  kCodeBf16,
  kCodeFp16,
  kCodeFp8E4m3,
  kCodeFp8E5m2,
  kCodeFp6E2m3,
  kCodeFp6E3m2,
  kCodeFp4E2m1,
  kCodeE8m0,
  kConvertKinds
};

/// dst is std::uint16_t for bf16 and fp16, std::uint8_t (one code per byte) for the others.
using ConvertFromF32 = void (*)(const float* src, void* dst, std::size_t n) noexcept;
using ConvertToF32 = void (*)(const void* src, float* dst, std::size_t n) noexcept;

struct ConvertKernels {
  Slot<ConvertFromF32> from_f32[kConvertKinds];
  Slot<ConvertToF32> to_f32[kConvertKinds];
};

/// Calls visit("name", slot) for every slot of the family: kernel_report() and the tests walk the table with it.
template <class Visitor>
void visit_slots(const ConvertKernels& kernels, Visitor&& visit) {
  constexpr const char* kFrom[kConvertKinds] = {"bf16_f32",     "fp16_f32",     "fp8_e4m3_f32", "fp8_e5m2_f32",
                                                "fp6_e2m3_f32", "fp6_e3m2_f32", "fp4_e2m1_f32", "e8m0_f32"};
  constexpr const char* kTo[kConvertKinds] = {"f32_bf16",     "f32_fp16",     "f32_fp8_e4m3", "f32_fp8_e5m2",
                                              "f32_fp6_e2m3", "f32_fp6_e3m2", "f32_fp4_e2m1", "f32_e8m0"};
  for (int i = 0; i < kConvertKinds; ++i) visit(kFrom[i], kernels.from_f32[i]);
  for (int i = 0; i < kConvertKinds; ++i) visit(kTo[i], kernels.to_f32[i]);
}

void install_convert_scalar(ConvertKernels& table, Features features) noexcept;
void install_convert_avx2(ConvertKernels& table, Features features) noexcept;
void install_convert_avx512(ConvertKernels& table, Features features) noexcept;
void install_convert_neon(ConvertKernels& table, Features features) noexcept;

}  // namespace blockpack::kernels
