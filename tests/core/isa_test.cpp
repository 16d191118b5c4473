// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/isa.hpp"

#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "cpu.hpp"
#include "dispatch.hpp"
#include "kernels/table.hpp"
#include "support/catch.hpp"

using namespace blockpack;
using namespace blockpack::kernels;

namespace {

// Bits of CPUID as the SDM numbers them.
constexpr std::uint32_t kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;  // leaf 1 ecx
constexpr std::uint32_t kAvx2 = 1u << 5, kF = 1u << 16, kDq = 1u << 17, kCd = 1u << 28, kBw = 1u << 30,
                        kVl = 1u << 31;                                                 // leaf 7 ebx
constexpr std::uint32_t kVbmi = 1u << 1, kVbmi2Bit = 1u << 6, kVnni = 1u << 11;         // leaf 7 ecx
constexpr std::uint32_t kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;  // leaf 7 edx
constexpr std::uint32_t kAvxVnniBit = 1u << 4, kBf16 = 1u << 5;                         // leaf 7.1 eax
constexpr std::uint32_t kAvx512 = kAvx2 | kF | kDq | kCd | kBw | kVl;
constexpr std::uint64_t kYmmState = 0x7, kZmmState = 0xe7, kTileState = 0x600e7;

struct MadeUpCpu final : CpuQuery {
  Architecture arch = Architecture::x86_64;
  std::map<std::pair<std::uint32_t, std::uint32_t>, CpuidRegisters> leaves;
  std::uint64_t xcr0 = 0;
  bool permission = false;
  std::uint64_t hwcap = 0;
  std::uint64_t hwcap2 = 0;
  mutable int xgetbv_calls = 0;
  mutable int permission_calls = 0;

  Architecture architecture() const override { return arch; }
  CpuidRegisters cpuid(std::uint32_t leaf, std::uint32_t subleaf) const override {
    const auto found = leaves.find({leaf, subleaf});
    // A leaf beyond the largest gives what the largest does on real CPUs: garbage. Detection must not ask.
    return found == leaves.end() ? CpuidRegisters{~0u, ~0u, ~0u, ~0u} : found->second;
  }
  std::uint64_t xgetbv0() const override {
    ++xgetbv_calls;
    return xcr0;
  }
  bool amx_permission() const override {
    ++permission_calls;
    return permission;
  }
  std::uint64_t arm_hwcap() const override { return hwcap; }
  std::uint64_t arm_hwcap2() const override { return hwcap2; }
};

MadeUpCpu x86(std::uint32_t leaf1_ecx, CpuidRegisters leaf7, std::uint32_t leaf7_1_eax, std::uint64_t xcr0) {
  MadeUpCpu cpu;
  leaf7.eax = leaf7_1_eax != 0 ? 1 : 0;
  cpu.leaves[{0, 0}] = {0x16, 0, 0, 0};
  cpu.leaves[{1, 0}] = {0, 0, leaf1_ecx, 0};
  cpu.leaves[{7, 0}] = leaf7;
  if (leaf7_1_eax != 0) cpu.leaves[{7, 1}] = {leaf7_1_eax, 0, 0, 0};
  cpu.leaves[{0x80000000u, 0}] = {0x80000001u, 0, 0, 0};
  cpu.xcr0 = xcr0;
  return cpu;
}
constexpr std::uint32_t kLeaf1 = kFma | kOsxsave | kAvx | kF16c;

MadeUpCpu sapphire_rapids() {
  MadeUpCpu cpu = x86(kLeaf1, {0, kAvx512, kVbmi | kVbmi2Bit | kVnni, kAmxBf16 | kAmxTile | kAmxInt8},
                      kAvxVnniBit | kBf16, kTileState);
  cpu.permission = true;
  return cpu;
}

}  // namespace

TEST_CASE("detection believes neither the CPU nor the operating system alone", "[core]") {
  SECTION("Nehalem: leaf 7 does not exist") {
    MadeUpCpu cpu = x86(0, {}, 0, 0);
    cpu.leaves[{0, 0}] = {0xb, 0, 0, 0};
    cpu.leaves.erase({7, 0});
    CHECK(detect(cpu).levels == IsaSet{Isa::scalar});
    CHECK(detect(cpu).features == 0);
    CHECK(cpu.xgetbv_calls == 0);
  }
  SECTION("without OSXSAVE nothing counts, and XGETBV is not executed") {
    MadeUpCpu cpu = sapphire_rapids();
    cpu.leaves[{1, 0}].ecx &= ~kOsxsave;
    CHECK(detect(cpu).levels == IsaSet{Isa::scalar});
    CHECK(detect(cpu).features == 0);
    CHECK(cpu.xgetbv_calls == 0);
    CHECK(cpu.permission_calls == 0);
  }
  SECTION("an operating system that saves XMM only has no AVX2") {
    MadeUpCpu cpu = sapphire_rapids();
    cpu.xcr0 = 0x3;
    CHECK(detect(cpu).levels == IsaSet{Isa::scalar});
  }
  SECTION("Haswell") {
    const MadeUpCpu cpu = x86(kLeaf1, {0, kAvx2, 0, 0}, 0, kYmmState);
    CHECK(detect(cpu).levels == IsaSet{Isa::scalar, Isa::avx2});
    CHECK(detect(cpu).features == 0);
  }
  SECTION("AVX2 without FMA or without F16C is not the level avx2") {
    CHECK(detect(x86(kLeaf1 & ~kFma, {0, kAvx2, 0, 0}, 0, kYmmState)).levels == IsaSet{Isa::scalar});
    CHECK(detect(x86(kLeaf1 & ~kF16c, {0, kAvx2, 0, 0}, 0, kYmmState)).levels == IsaSet{Isa::scalar});
  }
  SECTION("Alder Lake: AVX-VNNI without AVX-512") {
    const MadeUpCpu cpu = x86(kLeaf1, {0, kAvx2, 0, 0}, kAvxVnniBit, kYmmState);
    CHECK(detect(cpu).levels == IsaSet{Isa::scalar, Isa::avx2});
    CHECK(detect(cpu).features == kAvxVnni);
  }
  SECTION("Skylake-X") {
    const MadeUpCpu cpu = x86(kLeaf1, {0, kAvx512, 0, 0}, 0, kZmmState);
    CHECK(detect(cpu).levels == IsaSet{Isa::scalar, Isa::avx2, Isa::avx512});
    CHECK(detect(cpu).features == 0);
  }
  SECTION("each of the five sub-sets of AVX-512 is needed") {
    for (const std::uint32_t missing : {kF, kDq, kCd, kBw, kVl})
      CHECK(detect(x86(kLeaf1, {0, kAvx512 & ~missing, kVnni, 0}, 0, kZmmState)).levels ==
            IsaSet{Isa::scalar, Isa::avx2});
  }
  SECTION("XCR0 without any one of the three AVX-512 states") {
    for (const std::uint64_t missing : {0x20u, 0x40u, 0x80u}) {
      MadeUpCpu cpu = sapphire_rapids();
      cpu.xcr0 = kTileState & ~missing;
      CHECK(detect(cpu).levels == IsaSet{Isa::scalar, Isa::avx2});
      CHECK(detect(cpu).features == kAvxVnni);
      CHECK(cpu.permission_calls == 0);
    }
  }
  SECTION("Zen 4: bf16 dots without AMX") {
    const MadeUpCpu cpu = x86(kLeaf1, {0, kAvx512, kVbmi | kVbmi2Bit | kVnni, 0}, kBf16, kZmmState);
    CHECK(detect(cpu).levels == IsaSet{Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512vnni});
    CHECK(detect(cpu).features == (kVbmi2 | kAvx512Bf16));
    CHECK(cpu.permission_calls == 0);
  }
  SECTION("bf16 dots are fast on AMD, where they exist") {
    // The letters of the vendor lie in ebx, edx, ecx.
    const CpuidRegisters amd = {0x10, 0x68747541, 0x444d4163, 0x69746e65};
    const CpuidRegisters intel = {0x16, 0x756e6547, 0x6c65746e, 0x49656e69};
    MadeUpCpu cpu = x86(kLeaf1, {0, kAvx512, kVbmi | kVbmi2Bit | kVnni, 0}, kBf16, kZmmState);
    cpu.leaves[{0, 0}] = amd;
    CHECK(detect(cpu).levels == IsaSet{Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512vnni});
    CHECK(detect(cpu).features == (kVbmi2 | kAvx512Bf16 | kFastBf16Dots));
    cpu.leaves[{0, 0}] = intel;
    CHECK(detect(cpu).features == (kVbmi2 | kAvx512Bf16));
    MadeUpCpu without = x86(kLeaf1, {0, kAvx512, kVnni, 0}, 0, kZmmState);
    without.leaves[{0, 0}] = amd;
    CHECK(detect(without).features == 0);
    MadeUpCpu no_state = x86(kLeaf1, {0, kAvx512, kVnni, 0}, kBf16, kYmmState);
    no_state.leaves[{0, 0}] = amd;
    CHECK(detect(no_state).features == 0);
  }
  SECTION("Sapphire Rapids") {
    const MadeUpCpu cpu = sapphire_rapids();
    CHECK(detect(cpu).levels == IsaSet{Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512vnni, Isa::amx});
    CHECK(detect(cpu).features == (kAvxVnni | kVbmi2 | kAvx512Bf16));
  }
  SECTION("AMX without the kernel's permission, or without its state in XCR0, or without int8 products") {
    const IsaSet without_amx = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512vnni};
    MadeUpCpu refused = sapphire_rapids();
    refused.permission = false;
    CHECK(detect(refused).levels == without_amx);
    CHECK(refused.permission_calls == 1);
    MadeUpCpu no_state = sapphire_rapids();
    no_state.xcr0 = kZmmState | 0x20000;
    CHECK(detect(no_state).levels == without_amx);
    CHECK(no_state.permission_calls == 0);
    MadeUpCpu no_int8 = sapphire_rapids();
    no_int8.leaves[{7, 0}].edx &= ~kAmxInt8;
    CHECK(detect(no_int8).levels == without_amx);
    CHECK(no_int8.permission_calls == 0);
  }
  SECTION("the brand string is trimmed") {
    MadeUpCpu cpu = sapphire_rapids();
    CHECK(detect(cpu).name == "x86-64");
    cpu.leaves[{0x80000000u, 0}].eax = 0x80000008u;
    const char brand[49] = "   Made Up CPU @ 1.00GHz                        ";
    for (std::uint32_t i = 0; i < 3; ++i) {
      CpuidRegisters r;
      std::memcpy(&r, brand + 16 * i, 16);
      cpu.leaves[{0x80000002u + i, 0}] = r;
    }
    CHECK(detect(cpu).name == "Made Up CPU @ 1.00GHz");
  }
}

TEST_CASE("Arm levels follow the hardware capabilities", "[core]") {
  MadeUpCpu cpu;
  cpu.arch = Architecture::aarch64;
  SECTION("Cortex-A53") {
    cpu.hwcap = 0xff;
    CHECK(detect(cpu).levels == IsaSet{Isa::scalar, Isa::neon});
    CHECK(detect(cpu).features == 0);
  }
  SECTION("dotprod, i8mm and bf16") {
    cpu.hwcap = 0xff | 1u << 20;
    CHECK(detect(cpu).levels == IsaSet{Isa::scalar, Isa::neon, Isa::neon_dot});
    cpu.hwcap2 = 1u << 13;
    CHECK(detect(cpu).features == kI8mm);
    cpu.hwcap2 |= 1u << 14;
    CHECK(detect(cpu).features == (kI8mm | kArmBf16));
  }
  SECTION("no Advanced SIMD") {
    cpu.hwcap = 1u << 20;
    CHECK(detect(cpu).levels == IsaSet{Isa::scalar});
  }
  SECTION("another architecture") {
    cpu.arch = Architecture::other;
    cpu.hwcap = ~std::uint64_t{0};
    CHECK(detect(cpu).levels == IsaSet{Isa::scalar});
  }
}

TEST_CASE("level names are read back and nothing else is", "[core]") {
  for (const Isa isa : kAllIsas) CHECK(parse_isa(to_string(isa)) == isa);
  CHECK_FALSE(parse_isa(""));
  CHECK_FALSE(parse_isa("AVX2"));
  CHECK_FALSE(parse_isa("avx"));
}

TEST_CASE("BLOCKPACK_ISA names a level and the features to leave out", "[core]") {
  CHECK(parse_request("").off == 0);
  CHECK(parse_request("scalar").level == Isa::scalar);
  CHECK(parse_request("scalar-vbmi2").off == kVbmi2);
  CHECK(parse_request("scalar-avx512bf16-avxvnni").off == (kAvx512Bf16 | kAvxVnni));
  CHECK(parse_request("scalar-i8mm-bf16").off == (kI8mm | kArmBf16));
  CHECK(parse_request("scalar-fastbf16").off == kFastBf16Dots);
  for (const Isa isa : compiled_isas()) {
    if (runs_here(isa)) CHECK(parse_request(to_string(isa)).level == isa);
    // Without a request the strongest level is taken.
    if (runs_here(isa)) CHECK(parse_request("").level >= isa);
  }
}

TEST_CASE("a BLOCKPACK_ISA that cannot be honoured throws and lists the levels of the build", "[core]") {
  for (const char* wrong :
       {"avx", "AVX2", "scalar-", "scalar-foo", "-vbmi2", "scalar-vbmi2-", "scalar,avx2", " scalar"}) {
    CAPTURE(wrong);
    std::string message;
    try {
      parse_request(wrong);
    } catch (const UnsupportedError& e) {
      message = e.what();
    }
    CHECK(message.find(wrong) != std::string::npos);
    for (const Isa isa : compiled_isas()) CHECK(message.find(to_string(isa)) != std::string::npos);
  }
  for (const Isa isa : kAllIsas) {
    if (runs_here(isa)) continue;
    CHECK_THROWS_AS(parse_request(to_string(isa)), UnsupportedError);
    CHECK_THROWS_AS(table_for(isa), UnsupportedError);
    CHECK_THROWS_AS(make_table(isa, 0), UnsupportedError);
  }
}

TEST_CASE("scalar is always compiled and always runs", "[core]") {
  CHECK(runs_here(Isa::scalar));
  REQUIRE_FALSE(compiled_isas().empty());
  CHECK(compiled_isas().front() == Isa::scalar);
  CHECK(runs_here(active_isa()));
  if (const char* forced = std::getenv("BLOCKPACK_ISA"); forced != nullptr && *forced != '\0')
    CHECK(active_isa() == parse_request(forced).level);
}

TEST_CASE("every slot of every table is filled by a level the table may use, bf16 dots where they exist",
          "[core][smoke]") {
  for (const Isa level : compiled_isas()) {
    if (!runs_here(level)) continue;
    for (const Features features : feature_sets(level)) {
      const KernelTable table = make_table(level, features);
      CHECK(table.level == level);
      visit_slots(table, [&](const char* family, const char* name, const auto& slot) {
        CAPTURE(to_string(level), feature_names(features), family, name, slot.isa);
        if (slot.fn == nullptr) {
          // The bf16 dots may be missing: where a level has no such instruction the engine takes the f32 path. So may
          // products with packed codes: rows are decoded instead. And products of int8, on levels without integer dots.
          if (std::string(family) == "codes" || std::string(family) == "int8") return;
          if (std::string(family) == "two_four") {
            REQUIRE(std::string(name) == "few_f32_bf16_s24bf16");
            return;
          }
          const std::string of = family, slot_name = name;
          REQUIRE((of == "dense" || of == "block_sparse"));
          REQUIRE(
              (slot_name.find("_bf16_bf16") != std::string::npos || slot_name.find("_int8_int8") != std::string::npos));
          return;
        }
        const std::string_view supplier = slot.isa;
        const std::size_t plus = supplier.find('+');
        const auto from = parse_isa(supplier.substr(0, plus));
        REQUIRE(from.has_value());
        CHECK(includes(level, *from));
        if (plus != std::string_view::npos)
          CHECK((" " + feature_names(features) + " ").find(" " + std::string(supplier.substr(plus + 1)) + " ") !=
                std::string::npos);
      });
    }
    CHECK(table_for(level).level == level);
    CHECK(&table_for(level) == &table_for(level));
  }
  CHECK(active().level == active_isa());
}

TEST_CASE("a stronger table of one architecture includes the weaker ones, and none of the other", "[core]") {
  CHECK(includes(Isa::amx, Isa::scalar));
  CHECK(includes(Isa::amx, Isa::avx2));
  CHECK_FALSE(includes(Isa::avx2, Isa::avx512));
  CHECK(includes(Isa::neon_dot, Isa::neon));
  CHECK(includes(Isa::neon, Isa::scalar));
  CHECK_FALSE(includes(Isa::neon, Isa::avx2));
  CHECK_FALSE(includes(Isa::scalar, Isa::avx2));
  CHECK_FALSE(includes(Isa::amx, Isa::neon));
}

TEST_CASE("the kernel report names the CPU, the level, the automatic modes and the supplier of each slot", "[core]") {
  const std::string report = kernel_report();
  CAPTURE(report);
  CHECK(report.find(this_cpu().name) != std::string::npos);
  CHECK(report.find("level: " + std::string(to_string(active_isa()))) != std::string::npos);
  CHECK(report.find("automatic activations: ") != std::string::npos);
  CHECK(report.find("for 4-bit weights") != std::string::npos);
  visit_slots(active(), [&](const char*, const char* name, const auto& slot) {
    const std::size_t line = report.find(" " + std::string(name) + " ");
    REQUIRE(line != std::string::npos);
    const std::string supplier = slot.fn == nullptr ? "missing" : slot.isa;
    CHECK(report.substr(line, report.find('\n', line) - line).find(supplier) != std::string::npos);
  });
}
