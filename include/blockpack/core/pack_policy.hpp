// SPDX-License-Identifier: Apache-2.0
#pragma once

/// When an operator packs its weights for the kernels, and into which memory.

#include <cstdint>
#include <span>

#include "blockpack/core/config.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Where and when an operator builds the packed form of its weights.
struct PackPolicy {
  enum class Kind : std::uint8_t { on_first_use, ahead, into, none };
  Kind kind = Kind::on_first_use;
  std::span<std::byte> memory;  ///< for `into`: 64-byte aligned, packed_bytes_needed() at least, outlives the operator

  static PackPolicy on_first_use() { return {}; }          ///< at the first apply, once, under std::call_once
  static PackPolicy ahead() { return {Kind::ahead, {}}; }  ///< in the constructor
  static PackPolicy into(std::span<std::byte> memory) { return {Kind::into, memory}; }  ///< ahead, into caller memory
  static PackPolicy none() { return {Kind::none, {}}; }  ///< never: every apply computes from the stored form
};

}  // namespace blockpack::inline BLOCKPACK_ABI
