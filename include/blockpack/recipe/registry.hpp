// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The registry of schemes: which formats exist, which fields and algorithms each takes, and how a scheme string
/// becomes a codec. A new format is one `add` with one SchemeFamily (src/recipe/registry.cpp has those of the library);
/// callers may copy the standard registry and add their own.

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/recipe/codec.hpp"
#include "blockpack/recipe/scheme.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// One scheme as it is listed.
struct ListedScheme {
  std::string scheme;  ///< canonical
  std::string what;    ///< a few words
};

/// Formats that differ in parameters only.
struct SchemeFamily {
  std::string pattern;                  ///< what may be written: "bfp<10…32>[-b<block>][-asym]"
  std::vector<std::string> names;       ///< the format names it answers to: {"int2", "int3", "int4", "int8"}
  std::vector<ListedScheme> listed;     ///< the schemes worth listing; tests and hashes.txt cover each of them
  std::vector<std::string> algorithms;  ///< the ones it takes, besides none
  /// The codec of a scheme whose format is one of `names` and whose algorithms are all among `algorithms`. Points at
  /// bad fields (SchemeFields).
  std::function<std::shared_ptr<const Codec>(const Scheme&)> make;
};

/// How codes or masks are picked.
struct SchemeAlgorithm {
  std::string name;
  std::string what;
};

class Registry {
 public:
  Registry() = default;

  /// Everything this version of the library offers.
  BLOCKPACK_API static const Registry& standard();

  /// ValueError when one of the family's names is taken or an algorithm is unknown.
  BLOCKPACK_API void add(SchemeFamily family);
  /// ValueError when the name is taken.
  BLOCKPACK_API void add(SchemeAlgorithm algorithm);

  std::span<const SchemeFamily> families() const noexcept { return families_; }
  std::span<const SchemeAlgorithm> algorithms() const noexcept { return algorithms_; }
  /// Every listed scheme, in the order of the families.
  BLOCKPACK_API std::vector<ListedScheme> listed() const;

  /// The codec of a scheme string. FormatError (code `InvalidScheme`, `UnknownScheme`) that points at the character.
  BLOCKPACK_API std::shared_ptr<const Codec> codec(std::string_view scheme) const;
  /// The same for a parsed scheme, or for the inner format of a composite one.
  BLOCKPACK_API std::shared_ptr<const Codec> codec(const Scheme& scheme) const;

 private:
  std::vector<SchemeFamily> families_;
  std::vector<SchemeAlgorithm> algorithms_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
