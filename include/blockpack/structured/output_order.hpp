// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Which outputs form an output block of a Monarch matrix.

#include <cstdint>

#include "blockpack/core/config.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Where feature s of output block k of out_blocks blocks of q features stands. The two orders are different families
/// of matrices.
enum class OutputOrder : std::uint8_t {
  blocked,     ///< k · q + s: a block is a run of features
  interleaved  ///< s · out_blocks + k, the order of the paper and of the fly library: every out_blocks-th feature
};

}  // namespace blockpack::inline BLOCKPACK_ABI
