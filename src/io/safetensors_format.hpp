// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What the reader and the writer of safetensors share.

#include <cstdint>

#include "blockpack/core/config.hpp"

namespace blockpack::inline BLOCKPACK_ABI::io_detail {

inline constexpr std::uint64_t kSafetensorsPrefixBytes = 8;  ///< the length of the header

}  // namespace blockpack::inline BLOCKPACK_ABI::io_detail
