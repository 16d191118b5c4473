// SPDX-License-Identifier: Apache-2.0
#pragma once

/// SIMD levels, which of them run here, and which kernel serves what. A level is a fixed set of instruction bits;
/// further bits are features that may put a better kernel into a slot. Details: docs/dispatch.md.
///
/// `BLOCKPACK_ISA=avx2` in the environment forces a level for the whole process and fails loudly when it cannot;
/// `BLOCKPACK_ISA=avx512vnni-vbmi2` also switches features off. `Execution::isa` forces a level for one call.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/error.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Weakest first within an architecture.
enum class Isa : std::uint8_t {
  scalar,      ///< plain C++, everywhere
  avx2,        ///< AVX2, FMA, F16C
  avx512,      ///< AVX-512 F, BW, DQ, VL, CD
  avx512vnni,  ///< avx512 + VNNI
  amx,         ///< avx512vnni + AMX-TILE, AMX-INT8, AMX-BF16, AVX512-BF16, VBMI, VBMI2
  neon,        ///< Armv8-A Advanced SIMD
  neon_dot     ///< neon + dotprod
};
inline constexpr std::array<Isa, 7> kAllIsas = {Isa::scalar, Isa::avx2, Isa::avx512,  Isa::avx512vnni,
                                                Isa::amx,    Isa::neon, Isa::neon_dot};

constexpr std::string_view to_string(Isa isa) noexcept {
  constexpr std::array<std::string_view, 7> kNames = {"scalar", "avx2", "avx512",  "avx512vnni",
                                                      "amx",    "neon", "neon_dot"};
  return kNames[static_cast<std::size_t>(isa)];
}

/// The level of that name; nothing for any other text.
constexpr std::optional<Isa> parse_isa(std::string_view name) noexcept {
  for (const Isa isa : kAllIsas)
    if (to_string(isa) == name) return isa;
  return std::nullopt;
}

#if defined(BLOCKPACK_HEADERS_ONLY)
inline Isa active_isa() { return Isa::scalar; }
inline std::vector<Isa> compiled_isas() { return {Isa::scalar}; }
inline bool runs_here(Isa isa) { return isa == Isa::scalar; }
inline std::string kernel_report() { return "blockpack " BLOCKPACK_VERSION_STRING ": headers only, scalar\n"; }
#else
/// The level this process uses: the best that runs here, or the one of BLOCKPACK_ISA.
/// UnsupportedError, with the levels of this build, when BLOCKPACK_ISA names one that is unknown or cannot run.
BLOCKPACK_API Isa active_isa();

/// Levels that were compiled in, weakest first.
BLOCKPACK_API std::vector<Isa> compiled_isas();

/// Compiled in, and both the CPU and the operating system support it.
BLOCKPACK_API bool runs_here(Isa isa);

/// One line per kernel slot: family, kernel, level (and feature) that supplied it; first the CPU, the active level, and
/// which activation mode `automatic` means there.
BLOCKPACK_API std::string kernel_report();
#endif

}  // namespace blockpack::inline BLOCKPACK_ABI
