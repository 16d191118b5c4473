// SPDX-License-Identifier: Apache-2.0
#pragma once

/// `model.safetensors.index.json`: which file holds which tensor.

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/io/safetensors.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace io_detail {

struct ShardIndex {
  std::vector<std::pair<std::string, std::string>> entries;  ///< tensor, file; in the order of the text
  Metadata metadata;                                         ///< entries of "metadata" that are strings
};

/// FormatError (InvalidIndex, UnsafeShardName, the parser's codes) with `what` in the message.
ShardIndex parse_shard_index(std::string_view text, const ReadLimits& limits, std::string_view what);

}  // namespace io_detail
}  // namespace blockpack::inline BLOCKPACK_ABI
