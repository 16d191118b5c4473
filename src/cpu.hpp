// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Which levels and features a CPU and its operating system support. The rules are a pure function of what a small
/// interface answers, so that tests can make up CPUs. An instruction set counts only when the operating system saves
/// its registers: OSXSAVE, then XCR0 bits 1-2 for AVX2, 5-7 for AVX-512 and 17-18 for AMX, which on Linux also needs
/// the permission to use tile data. Source: Intel SDM volume 1, 13.3 and 14.3; Linux Documentation/x86/xstate.rst,
/// Documentation/arm64/elf_hwcaps.rst.

#include <cstdint>
#include <initializer_list>
#include <string>

#include "blockpack/core/isa.hpp"
#include "kernels/slot.hpp"

namespace blockpack::kernels {

enum class Architecture : std::uint8_t { other, x86_64, aarch64 };

struct CpuidRegisters {
  std::uint32_t eax = 0;
  std::uint32_t ebx = 0;
  std::uint32_t ecx = 0;
  std::uint32_t edx = 0;
};

/// What detection asks of a machine; the defaults are those of a machine without the thing.
class CpuQuery {
 public:
  virtual ~CpuQuery() = default;
  virtual Architecture architecture() const = 0;
  /// x86: leaf 0 and 0x80000000 tell the largest leaf of their range; detection asks for no leaf beyond it.
  virtual CpuidRegisters cpuid(std::uint32_t /*leaf*/, std::uint32_t /*subleaf*/) const { return {}; }
  /// x86: XCR0; asked only when OSXSAVE is set (the instruction faults without it).
  virtual std::uint64_t xgetbv0() const { return 0; }
  /// x86: requests the use of AMX tile data; asked only when everything else of AMX is there.
  virtual bool amx_permission() const { return false; }
  /// Arm: AT_HWCAP and AT_HWCAP2 with the bits of Linux.
  virtual std::uint64_t arm_hwcap() const { return 0; }
  virtual std::uint64_t arm_hwcap2() const { return 0; }
};

/// A set of levels.
class IsaSet {
 public:
  constexpr IsaSet() = default;
  constexpr IsaSet(std::initializer_list<Isa> levels) {
    for (const Isa isa : levels) insert(isa);
  }
  constexpr void insert(Isa isa) noexcept { bits_ |= 1u << static_cast<unsigned>(isa); }
  constexpr bool contains(Isa isa) const noexcept { return ((bits_ >> static_cast<unsigned>(isa)) & 1u) != 0; }
  friend constexpr bool operator==(const IsaSet&, const IsaSet&) = default;

 private:
  std::uint32_t bits_ = 0;
};

struct CpuSupport {
  IsaSet levels;          ///< scalar always
  Features features = 0;  ///< bits beyond the levels
  std::string name;       ///< brand string, or the architecture
};

/// The levels and features of the machine behind `query`.
CpuSupport detect(const CpuQuery& query);

/// The same of this machine, asked once.
const CpuSupport& this_cpu();

}  // namespace blockpack::kernels
