// SPDX-License-Identifier: Apache-2.0
#pragma once

/// JSON from hostile bytes, as events; nothing is built. Refused: text that is not strict UTF-8, a byte-order mark, NUL
/// bytes, comments, a key used twice in one object (at any depth), nesting deeper than 128, anything after the value.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "blockpack/core/config.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace io_detail {

/// What a number, true, false or null is, where only some of them are welcome.
enum class JsonScalar : std::uint8_t { null, boolean, negative, real };

/// Receives a document. A handler stops the parse by throwing; `at()` is where the parser stands.
class JsonEvents {
 public:
  virtual ~JsonEvents() = default;
  virtual void start_object() = 0;
  virtual void key(std::string& text) = 0;  ///< may be moved from
  virtual void end_object() = 0;
  virtual void start_array() = 0;
  virtual void end_array() = 0;
  virtual void string(std::string& text) = 0;  ///< may be moved from
  virtual void number(std::uint64_t value) = 0;
  virtual void other(JsonScalar kind) = 0;

  /// Bytes of the document read so far.
  std::size_t at() const noexcept;

 private:
  friend void parse_strict_json(std::string_view, JsonEvents&, std::string_view, std::int64_t);
  const char* begin_ = nullptr;
  const char* now_ = nullptr;
};

/// The codes of FormatErrors that the parser throws itself.
inline constexpr const char* kBadUtf8 = "InvalidHeader";
inline constexpr const char* kBadJson = "InvalidHeaderDeserialization";
inline constexpr const char* kDuplicateKey = "DuplicateKey";
inline constexpr const char* kLimitExceeded = "LimitExceeded";

/// Runs the events of `text` in order. FormatError (one of the codes above) with `what` in the message and an offset
/// that starts at `first_offset`. Time linear in the size, but for sorting the keys of each object.
void parse_strict_json(std::string_view text, JsonEvents& events, std::string_view what, std::int64_t first_offset);

/// Offset of the first byte that is not strict UTF-8 (overlong forms, surrogates and code points above 10ffff
/// included), or text.size().
std::size_t valid_utf8_prefix(std::string_view text) noexcept;

/// The JSON text of a string, quotes included.
std::string json_quoted(std::string_view text);

/// A short, printable form of a hostile name for messages.
std::string printable(std::string_view name);

}  // namespace io_detail
}  // namespace blockpack::inline BLOCKPACK_ABI
