// SPDX-License-Identifier: Apache-2.0
// Any bytes as an npy file: refused with a FormatError, or an array of the size its shape says; a stream of the same
// bytes gives the same array.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>

#include "blockpack/io/npy.hpp"

using namespace blockpack;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  std::optional<NpyArray> whole, streamed;
  try {
    whole = parse_npy(SharedBytes(bytes, nullptr));
    std::uint64_t count = static_cast<std::uint64_t>(whole->type.bytes);
    for (const index_t d : whole->shape) count *= static_cast<std::uint64_t>(d);
    if (whole->data.bytes.size() != count) std::abort();
  } catch (const FormatError& error) {
    if (error.code().empty()) std::abort();
  }
  try {
    std::istringstream stream(std::string(reinterpret_cast<const char*>(data), size));
    streamed = read_npy(stream);
  } catch (const FormatError&) {
  }
  if (whole.has_value() != streamed.has_value()) std::abort();
  if (whole && !std::equal(whole->data.bytes.begin(), whole->data.bytes.end(), streamed->data.bytes.begin(),
                           streamed->data.bytes.end()))
    std::abort();
  return 0;
}
