// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What a structured product moves and computes, for the roofline: time = max(flops / peak, bytes / bandwidth).
///
/// Source: "Memory-Efficient Acceleration of Block Low-Rank Foundation Models on Resource Constrained GPUs",
/// arXiv:2512.20861, table 2 and the cost functions of its code. A multiply-add is two operations; bytes count every
/// weight, x and y once, and what lies between the stages once for each time it is written or read.

#include <cstdint>

#include "blockpack/core/config.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Which values between the stages are written to memory and read back.
enum class Fusion : std::uint8_t {
  none,         ///< all: one kernel for each product, permutation and coupling
  permutation,  ///< permutations are part of the kernel before them
  partial,      ///< BLAST: the first product and the coupling are one kernel. Others: as `permutation`
  full          ///< none: what blockpack computes
};

}  // namespace blockpack::inline BLOCKPACK_ABI
