// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Scheme strings: the name of a compressed form, as people type it and as files store it.
///
///     scheme = format { "-" field } { "+" algorithm } | "auto:" number "bpw" | "structured:" number "%"
///
/// A format may contain `:` or `.` (`2:4`, `ptq1.61`). A field is a letter key with a number (`g32`), a named variant
/// (`half`, `e4m3`) or, last, the format of stored values with fields of its own (`2:4-int4-g32`). The parser knows the
/// grammar only; which formats exist and which fields they take is the registry's business (recipe/registry.hpp).
///
/// Every error is a FormatError of one line that shows the text with a caret before the offending character:
/// `scheme "int4-q32", character 6 (int4-^q32): …`; byte_offset() is the same position counted from 0.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/error.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// One run of characters between `-` and `+`, and where it stands.
struct SchemeToken {
  std::string text;
  std::size_t offset = 0;  ///< in the text that was parsed
  char key = 0;            ///< 'g' for "g32"; 0 for what is not one letter and a decimal number
  index_t number = 0;      ///< 32 for "g32"
};

/// A parsed scheme string.
struct Scheme {
  enum class Kind : std::uint8_t {
    format,  ///< a format with fields and algorithms
    bits,    ///< `auto:4.5bpw`: choose formats to reach `target` bits per weight
    share    ///< `structured:50%`: remove `target` percent of the weights
  };
  Kind kind = Kind::format;
  std::string text;                     ///< what was parsed; offsets count in it
  SchemeToken format;                   ///< of Kind::format
  std::vector<SchemeToken> fields;      ///< of Kind::format, without the dashes
  std::vector<SchemeToken> algorithms;  ///< of Kind::format, without the plus signs
  double target = 0;                    ///< of the other two kinds

  /// The scheme made of fields[first] as format, the later fields as its fields and no algorithm: how a composite
  /// format reads the format of its values. Offsets still count in `text`. Needs first < fields.size().
  BLOCKPACK_API Scheme inner(std::size_t first) const;
};

/// Longest accepted scheme string, in characters.
inline constexpr std::size_t kMaxSchemeLength = 256;

/// Reads a scheme string. FormatError (code `InvalidScheme`) that points at the character.
BLOCKPACK_API Scheme parse_scheme(std::string_view text);

/// The one way to write a scheme: parse_scheme(to_string(s)) equals s, and numbers have no needless digits.
BLOCKPACK_API std::string to_string(const Scheme& scheme);

/// Throws the FormatError of a scheme: the text with a caret before character `offset`, then `what`.
[[noreturn]] BLOCKPACK_API void fail_scheme(std::string_view text, std::size_t offset, const std::string& what);

/// Two lines for a terminal: the text, and a caret under character `offset`.
BLOCKPACK_API std::string scheme_caret(std::string_view text, std::size_t offset);

/// How a family reads the fields of a scheme: each call takes the fields it knows, in any order, and `finish` refuses
/// the ones nobody took.
class SchemeFields {
 public:
  explicit SchemeFields(const Scheme& scheme) : scheme_(scheme), taken_(scheme.fields.size(), false) {}

  /// The number behind `key` (`g32`), or nothing when the field is absent. FormatError outside [low, high] or when it
  /// appears twice.
  BLOCKPACK_API std::optional<index_t> number(char key, index_t low, index_t high);

  /// The same for a number that must be one of a few.
  BLOCKPACK_API std::optional<index_t> number(char key, const std::vector<index_t>& offered);

  /// Whether the named variant is present; FormatError when it appears twice.
  BLOCKPACK_API bool variant(std::string_view name);

  /// Which of the variants is present, by index; nothing for none, FormatError for two of them.
  BLOCKPACK_API std::optional<std::size_t> one_of(const std::vector<std::string_view>& names);

  /// The number at the end of the format's own name: 12 for ("bfp12", "bfp"). FormatError outside [low, high].
  BLOCKPACK_API index_t format_number(std::string_view prefix, index_t low, index_t high) const;

  /// FormatError that points at the first field nobody took and says what the format takes.
  BLOCKPACK_API void finish(std::string_view accepted) const;

 private:
  const Scheme& scheme_;
  std::vector<bool> taken_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
