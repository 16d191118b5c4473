// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What the kernel files of every ISA may include: slots of the table and the feature bits. No standard library beyond
/// <cstddef> and <cstdint>: an inline function compiled here with ISA flags could be the copy the linker keeps.

#include <cstddef>
#include <cstdint>

namespace blockpack::kernels {

/// Instruction bits beyond the level, and kFastBf16Dots: a vdpbf16ps takes no longer than a multiply-add of floats.
using Features = std::uint32_t;
inline constexpr Features kAvxVnni = 1u << 0;
inline constexpr Features kVbmi2 = 1u << 1;
inline constexpr Features kAvx512Bf16 = 1u << 2;
inline constexpr Features kI8mm = 1u << 3;
inline constexpr Features kArmBf16 = 1u << 4;
inline constexpr Features kFastBf16Dots = 1u << 5;

/// One kernel and who supplied it ("avx2", "avx512vnni+avx512bf16").
template <class Fn>
struct Slot {
  Fn fn = nullptr;
  const char* isa = "";
};

}  // namespace blockpack::kernels
