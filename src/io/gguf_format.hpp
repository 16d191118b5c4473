// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What the reader and the writer of GGUF share.

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

#include "blockpack/io/gguf.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace io_detail {

inline constexpr std::string_view kGgufMagic = "GGUF";
inline constexpr std::uint32_t kGgufVersion = 3;
inline constexpr std::uint64_t kGgufDefaultAlignment = 32;
inline constexpr std::size_t kGgufMaxNameBytes = 63;  // ggml keeps 64 with the closing NUL
inline constexpr std::size_t kGgufMaxRank = 4;
inline constexpr std::uint64_t kGgufMaxItems = std::uint64_t{1} << 30;  // arithmetic: of a string or an array; 2^30
inline constexpr std::uint32_t kGgufBool = 7;
inline constexpr std::uint32_t kGgufString = 8;
inline constexpr std::uint32_t kGgufArray = 9;

/// Calls f with std::type_identity of the C++ type of scalar value type `type`; false for an array or no type.
template <class F>
bool with_gguf_type(std::uint32_t type, const F& f) {
  switch (type) {
    case 0:
      return f(std::type_identity<std::uint8_t>{}), true;
    case 1:
      return f(std::type_identity<std::int8_t>{}), true;
    case 2:
      return f(std::type_identity<std::uint16_t>{}), true;
    case 3:
      return f(std::type_identity<std::int16_t>{}), true;
    case 4:
      return f(std::type_identity<std::uint32_t>{}), true;
    case 5:
      return f(std::type_identity<std::int32_t>{}), true;
    case 6:
      return f(std::type_identity<float>{}), true;
    case kGgufBool:
      return f(std::type_identity<bool>{}), true;
    case kGgufString:
      return f(std::type_identity<std::string>{}), true;
    case 10:
      return f(std::type_identity<std::uint64_t>{}), true;
    case 11:
      return f(std::type_identity<std::int64_t>{}), true;
    case 12:
      return f(std::type_identity<double>{}), true;
    default:
      return false;
  }
}

/// The alignment the metadata ask for; nothing when the entry is no u32 power of two.
inline std::optional<std::uint64_t> gguf_alignment(const GgufMetadata& metadata) {
  const GgufValue* value = find_value(metadata, kGgufAlignmentKey);
  if (value == nullptr) return kGgufDefaultAlignment;
  const auto* number = std::get_if<std::uint32_t>(value);
  if (number == nullptr || !std::has_single_bit(*number)) return std::nullopt;
  return *number;
}

}  // namespace io_detail
}  // namespace blockpack::inline BLOCKPACK_ABI
