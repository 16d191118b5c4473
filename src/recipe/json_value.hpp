// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A small JSON tree for recipes, read through nlohmann's SAX interface so that duplicate keys, deep nesting, a
/// byte-order mark and NUL bytes are refused, and every value knows no more than a recipe needs.

#include <string>
#include <string_view>
#include <vector>

namespace blockpack::recipe_detail {

struct JsonValue {
  enum class Kind { null, boolean, number, string, array, object };
  Kind kind = Kind::null;
  std::string text;               ///< of a string
  std::vector<JsonValue> items;   ///< of an array, or the values of an object
  std::vector<std::string> keys;  ///< of an object: keys[i] belongs to items[i], all different

  const char* kind_name() const;
};

/// FormatError (code `InvalidRecipe`) with line and column; `what` names the text in messages.
JsonValue parse_json(std::string_view text, std::string_view what);

/// `text` as a JSON string, quotes included.
std::string json_quote(std::string_view text);

}  // namespace blockpack::recipe_detail
