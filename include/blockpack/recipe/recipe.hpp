// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A recipe says which tensor of a model is stored under which scheme. As JSON:
///
///     { "name": "attention in 8 bits",
///       "keep": ["embed_tokens.*"],
///       "rules": [ {"tensors": "*.q_proj.weight", "scheme": "int8-g128"},
///                  {"tensors": ["*.gate_proj.weight", "*.up_proj.weight"], "scheme": "mxfp4"} ],
///       "default": "int4-g32" }
///
/// Patterns are globs over the whole tensor name: `*` is any run of characters, `?` any one. `keep` wins over the
/// rules, the first rule that matches wins over later ones, and `default` ("keep" when absent) takes the rest. Only
/// matrices (2-D tensors of a floating-point type, not empty) are compressed; everything else is kept as it is. A plain
/// scheme string is a recipe too: that scheme for every matrix. A scheme may be a target, `auto:3.0bpw`: a budget for
/// the tensors it stands for, which recipe/auto_plan.hpp turns into a scheme for each.

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/recipe/registry.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

struct RecipeRule {
  std::vector<std::string> tensors;  ///< patterns
  std::string scheme;                ///< canonical, or "keep"
};

struct Recipe {
  std::string name;  ///< free text
  std::vector<std::string> keep;
  std::vector<RecipeRule> rules;
  std::string default_scheme = "keep";  ///< canonical, or "keep"

  /// Reads a JSON object or a plain scheme string. FormatError with line and column for bad JSON, with the character
  /// for a bad scheme, with the key for anything else. `what` names the text in messages.
  BLOCKPACK_API static Recipe parse(std::string_view text, const Registry& registry = Registry::standard(),
                                    std::string_view what = "recipe");

  /// `argument` is the path of a JSON file when it ends in `.json` or contains a slash, otherwise a scheme string.
  BLOCKPACK_API static Recipe load(const std::string& argument, const Registry& registry = Registry::standard());

  /// One line of JSON; parse(to_json()) is the same recipe.
  BLOCKPACK_API std::string to_json() const;
};

/// What a recipe needs to know about a tensor.
struct RecipeTensor {
  std::string_view name;
  bool is_matrix = false;
};

/// The scheme of each tensor, in the order given; an empty string: kept. FormatError (code `RecipeMatchesNothing`) when
/// a pattern matches no matrix (the message lists some), when earlier rules leave nothing for a rule, or when nothing
/// at all would be compressed.
BLOCKPACK_API std::vector<std::string> plan_recipe(const Recipe& recipe, std::span<const RecipeTensor> tensors);

/// Whether the glob `pattern` (`*`, `?`) matches the whole of `text`. Linear in pattern times text, no recursion.
BLOCKPACK_API bool glob_match(std::string_view pattern, std::string_view text) noexcept;

}  // namespace blockpack::inline BLOCKPACK_ABI
