// SPDX-License-Identifier: Apache-2.0
// Any bytes as the index of a sharded model: refused with a FormatError, or names of files beside it.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "io/index_json.hpp"

using namespace blockpack;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const io_detail::ShardIndex index = io_detail::parse_shard_index(text, {}, "index");
    for (const auto& [tensor, shard] : index.entries)
      if (shard.empty() || shard == "." || shard == ".." || shard.find_first_of("/\\") != shard.npos) std::abort();
  } catch (const FormatError& error) {
    if (error.code().empty()) std::abort();
  }
  return 0;
}
