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
  full          ///< none: block-diagonal, BLAST and Monarch in blocked order here; low rank keeps its values in cache
};

/// How often the values between the stages pass through memory: of low rank, tokens · rank of them, of Monarch, tokens
/// · in_blocks · out_blocks · rank of a block, of BLAST, tokens · blocks · rank.
constexpr index_t low_rank_passes(Fusion fusion) noexcept { return fusion == Fusion::full ? 0 : 2; }
constexpr index_t monarch_passes(Fusion fusion) noexcept {
  return fusion == Fusion::full ? 0 : fusion == Fusion::none ? 4 : 2;
}
constexpr index_t blast_passes(Fusion fusion) noexcept {
  return fusion == Fusion::full ? 0 : fusion == Fusion::none ? 8 : fusion == Fusion::permutation ? 4 : 2;
}

/// Bytes of a layer at `element` bytes a value: x, y and the weights once, `between` values written or read between the
/// stages, and y once more in and out where its features are permuted afterwards.
constexpr index_t layer_bytes(index_t tokens, index_t in, index_t out, index_t weights, index_t between, bool permutes,
                              index_t element) noexcept {
  return element * (tokens * in + weights + tokens * out + between + (permutes ? 2 * tokens * out : 0));
}

}  // namespace blockpack::inline BLOCKPACK_ABI
