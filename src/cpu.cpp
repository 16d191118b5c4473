// SPDX-License-Identifier: Apache-2.0
#include "cpu.hpp"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace blockpack::kernels {
namespace {

constexpr bool bit(std::uint64_t word, int i) { return ((word >> i) & 1u) != 0; }
constexpr bool bits(std::uint64_t word, std::uint64_t mask) { return (word & mask) == mask; }

constexpr std::uint64_t kXcr0Avx = 0x6;      // XMM and the upper halves of YMM
constexpr std::uint64_t kXcr0Avx512 = 0xe6;  // those, opmask, the upper halves of ZMM0-15, ZMM16-31
constexpr std::uint64_t kXcr0Amx = 0x60000;  // XTILECFG and XTILEDATA
constexpr std::uint32_t kExtended = 0x80000000u;

// HWCAP bits of Linux on AArch64.
constexpr int kHwcapAsimd = 1;
constexpr int kHwcapAsimdDp = 20;
constexpr int kHwcap2I8mm = 13;
constexpr int kHwcap2Bf16 = 14;

std::string brand_string(const CpuQuery& query) {
  if (query.cpuid(kExtended, 0).eax < kExtended + 4) return "x86-64";
  std::array<char, 49> text{};
  for (std::uint32_t i = 0; i < 3; ++i) {
    const CpuidRegisters r = query.cpuid(kExtended + 2 + i, 0);
    const std::array<std::uint32_t, 4> words = {r.eax, r.ebx, r.ecx, r.edx};
    std::memcpy(text.data() + 16 * i, words.data(), 16);
  }
  std::string name(text.data());
  const std::size_t first = name.find_first_not_of(' ');
  const std::size_t last = name.find_last_not_of(' ');
  return first == std::string::npos ? "x86-64" : name.substr(first, last - first + 1);
}

// "AuthenticAMD". No bit tells how fast an instruction is: on AMD vdpbf16ps is as fast as a multiply-add of floats (0.5
// cycles, measured on Zen 5; Zen 4, the other core that has it, was not measured), on Intel it takes four times as long
// (2.1 cycles, measured on Sapphire Rapids).
constexpr bool is_amd(const CpuidRegisters& leaf0) {
  return leaf0.ebx == 0x68747541 && leaf0.edx == 0x69746e65 && leaf0.ecx == 0x444d4163;
}

void detect_x86(const CpuQuery& query, CpuSupport& cpu) {
  cpu.name = brand_string(query);
  const CpuidRegisters leaf0 = query.cpuid(0, 0);
  if (leaf0.eax < 7) return;
  const CpuidRegisters leaf1 = query.cpuid(1, 0);
  const CpuidRegisters leaf7 = query.cpuid(7, 0);
  const CpuidRegisters leaf7_1 = leaf7.eax >= 1 ? query.cpuid(7, 1) : CpuidRegisters{};
  const std::uint64_t xcr0 = bit(leaf1.ecx, 27) ? query.xgetbv0() : 0;  // OSXSAVE

  const bool avx = bit(leaf1.ecx, 28) && bits(xcr0, kXcr0Avx);
  const bool avx2 = avx && bit(leaf7.ebx, 5) && bit(leaf1.ecx, 12) && bit(leaf1.ecx, 29);  // AVX2, FMA, F16C
  if (!avx2) return;
  cpu.levels.insert(Isa::avx2);
  if (bit(leaf7_1.eax, 4)) cpu.features |= kAvxVnni;

  // F, DQ, CD, BW, VL
  const bool avx512 =
      bits(xcr0, kXcr0Avx512) && bits(leaf7.ebx, 1ull << 16 | 1ull << 17 | 1ull << 28 | 1ull << 30 | 1ull << 31);
  if (!avx512) return;
  cpu.levels.insert(Isa::avx512);
  const bool vnni = bit(leaf7.ecx, 11);
  if (vnni) cpu.levels.insert(Isa::avx512vnni);
  if (bit(leaf7.ecx, 1) && bit(leaf7.ecx, 6)) cpu.features |= kVbmi2;  // with VBMI, which every such CPU has
  if (bit(leaf7_1.eax, 5)) {
    cpu.features |= kAvx512Bf16;
    if (is_amd(leaf0)) cpu.features |= kFastBf16Dots;
  }

  // AMX-BF16, AMX-TILE, AMX-INT8
  const bool amx = vnni && bits(cpu.features, kVbmi2 | kAvx512Bf16) && bits(xcr0, kXcr0Amx) &&
                   bits(leaf7.edx, 1ull << 22 | 1ull << 24 | 1ull << 25);
  if (amx && query.amx_permission()) cpu.levels.insert(Isa::amx);
}

void detect_arm(const CpuQuery& query, CpuSupport& cpu) {
  cpu.name = "AArch64";
  const std::uint64_t hwcap = query.arm_hwcap();
  const std::uint64_t hwcap2 = query.arm_hwcap2();
  if (!bit(hwcap, kHwcapAsimd)) return;
  cpu.levels.insert(Isa::neon);
  if (bit(hwcap, kHwcapAsimdDp)) cpu.levels.insert(Isa::neon_dot);
  if (bit(hwcap2, kHwcap2I8mm)) cpu.features |= kI8mm;
  if (bit(hwcap2, kHwcap2Bf16)) cpu.features |= kArmBf16;
}

class ThisMachine final : public CpuQuery {
 public:
#if defined(__x86_64__)
  Architecture architecture() const override { return Architecture::x86_64; }
  CpuidRegisters cpuid(std::uint32_t leaf, std::uint32_t subleaf) const override {
    CpuidRegisters r;
    __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
    return r;
  }
  std::uint64_t xgetbv0() const override {
    std::uint32_t low = 0;
    std::uint32_t high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<std::uint64_t>(high) << 32 | low;
  }
  bool amx_permission() const override {
#if defined(__linux__)
    constexpr long kRequest = 0x1023;  // ARCH_REQ_XCOMP_PERM, Linux 5.16
    constexpr long kTileData = 18;
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return true;
#endif
  }
#elif defined(__aarch64__)
  Architecture architecture() const override { return Architecture::aarch64; }
#if defined(__linux__)
  std::uint64_t arm_hwcap() const override { return getauxval(AT_HWCAP); }
  std::uint64_t arm_hwcap2() const override { return getauxval(AT_HWCAP2); }
#elif defined(__APPLE__)
  static std::uint64_t has(const char* name) {
    int value = 0;
    std::size_t size = sizeof(value);
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0 ? 1 : 0;
  }
  std::uint64_t arm_hwcap() const override {
    return 1ull << kHwcapAsimd | has("hw.optional.arm.FEAT_DotProd") << kHwcapAsimdDp;
  }
  std::uint64_t arm_hwcap2() const override {
    return has("hw.optional.arm.FEAT_I8MM") << kHwcap2I8mm | has("hw.optional.arm.FEAT_BF16") << kHwcap2Bf16;
  }
#else
  std::uint64_t arm_hwcap() const override { return 1ull << kHwcapAsimd; }  // part of the base architecture
#endif
#else
  Architecture architecture() const override { return Architecture::other; }
#endif
};

}  // namespace

CpuSupport detect(const CpuQuery& query) {
  CpuSupport cpu;
  cpu.levels.insert(Isa::scalar);
  cpu.name = "unknown CPU";
  if (query.architecture() == Architecture::x86_64) detect_x86(query, cpu);
  if (query.architecture() == Architecture::aarch64) detect_arm(query, cpu);
  return cpu;
}

const CpuSupport& this_cpu() {
  static const CpuSupport cpu = detect(ThisMachine());
  return cpu;
}

}  // namespace blockpack::kernels
