// SPDX-License-Identifier: Apache-2.0
#include "blockpack/recipe/recipe.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#include "blockpack/core/error.hpp"
#include "recipe/json_value.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

using recipe_detail::json_quote;
using recipe_detail::JsonValue;
constexpr std::string_view kKeep = "keep";

[[noreturn]] void fail(std::string_view what, const std::string& problem) {
  throw FormatError(fmt::format("{}: {}", what, problem), "InvalidRecipe");
}

const std::string& string_of(const JsonValue& value, std::string_view what, std::string_view key) {
  if (value.kind != JsonValue::Kind::string)
    fail(what, fmt::format("\"{}\" must be a string, it is {}", key, value.kind_name()));
  return value.text;
}

/// A string, or an array of strings that is not empty.
std::vector<std::string> patterns_of(const JsonValue& value, std::string_view what, std::string_view key) {
  std::vector<std::string> patterns;
  if (value.kind == JsonValue::Kind::array) {
    for (const JsonValue& item : value.items) patterns.push_back(string_of(item, what, key));
  } else {
    patterns.push_back(string_of(value, what, key));
  }
  for (const std::string& p : patterns)
    if (p.empty()) fail(what, fmt::format("\"{}\" holds an empty pattern", key));
  return patterns;
}

/// Of a format the codec's own, of a target its text.
std::string canonical_scheme(std::string_view text, const Registry& registry) {
  const Scheme scheme = parse_scheme(text);
  return scheme.kind != Scheme::Kind::format ? to_string(scheme) : registry.codec(scheme)->scheme();
}

std::string canonical_scheme(const std::string& text, const Registry& registry, std::string_view what) {
  if (text == kKeep) return text;
  try {
    return canonical_scheme(text, registry);
  } catch (const FormatError& error) {
    throw FormatError(fmt::format("{}: {}", what, error.what()), error.code(), error.byte_offset());
  }
}

RecipeRule parse_rule(const JsonValue& value, const Registry& registry, std::string_view what) {
  if (value.kind != JsonValue::Kind::object)
    fail(what, fmt::format("a rule must be an object with \"tensors\" and \"scheme\", it is {}", value.kind_name()));
  RecipeRule rule;
  for (std::size_t i = 0; i < value.keys.size(); ++i) {
    const std::string& key = value.keys[i];
    const JsonValue& member = value.items[i];
    if (key == "tensors") {
      rule.tensors = patterns_of(member, what, key);
    } else if (key == "scheme") {
      rule.scheme = canonical_scheme(string_of(member, what, key), registry, what);
    } else {
      fail(what, fmt::format("unknown key {} in a rule; it has \"tensors\" and \"scheme\"", json_quote(key)));
    }
  }
  if (rule.tensors.empty())
    fail(what, "\"tensors\" is missing or empty: a pattern such as \"*.q_proj.weight\" is needed");
  if (rule.scheme.empty()) fail(what, "\"scheme\" is missing: a scheme such as \"int4-g32\", or \"keep\", is needed");
  return rule;
}

std::string read_text_file(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))
    throw IoError(fmt::format("recipe '{}': is a directory, a JSON file is needed", path), EISDIR);
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file) throw IoError(fmt::format("recipe '{}': cannot be opened: {}", path, std::strerror(errno)), errno);
  std::string text;
  char buffer[4096];
  while (const std::size_t n = std::fread(buffer, 1, sizeof buffer, file.get())) {
    text.append(buffer, n);
    if (text.size() > (std::size_t{1} << 20)) break;  // the JSON reader refuses it
  }
  if (std::ferror(file.get()) != 0) throw IoError(fmt::format("recipe '{}': cannot be read", path), EIO);
  return text;
}

std::string name_examples(std::span<const RecipeTensor> tensors) {
  std::string list;
  std::size_t shown = 0, matrices = 0;
  for (const RecipeTensor& t : tensors) {
    if (!t.is_matrix) continue;
    ++matrices;
    if (shown == 4) continue;
    list += fmt::format("{}{}", shown++ == 0 ? "" : ", ", t.name);
  }
  if (matrices == 0) return "the model has no matrices";
  if (matrices > shown) list += fmt::format(" and {} more", matrices - shown);
  return "the matrices are " + list;
}

}  // namespace

bool glob_match(std::string_view pattern, std::string_view text) noexcept {
  std::size_t p = 0, t = 0;
  std::size_t star = std::string_view::npos, resume = 0;  // the last star and where its run may grow
  while (t < text.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || (pattern[p] == text[t] && pattern[p] != '*'))) {
      ++p;
      ++t;
    } else if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

Recipe Recipe::parse(std::string_view text, const Registry& registry, std::string_view what) {
  Recipe recipe;
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos || (text[first] != '{' && text[first] != '[')) {
    if (text == kKeep) return recipe;
    recipe.default_scheme = canonical_scheme(text, registry);
    return recipe;
  }
  const JsonValue root = recipe_detail::parse_json(text, what);
  if (root.kind != JsonValue::Kind::object) fail(what, "a JSON object is needed");
  for (std::size_t i = 0; i < root.keys.size(); ++i) {
    const std::string& key = root.keys[i];
    const JsonValue& value = root.items[i];
    if (key == "name") {
      recipe.name = string_of(value, what, key);
    } else if (key == "keep") {
      recipe.keep = patterns_of(value, what, key);
    } else if (key == "default") {
      recipe.default_scheme = canonical_scheme(string_of(value, what, key), registry, fmt::format("{}: default", what));
    } else if (key == "rules") {
      if (value.kind != JsonValue::Kind::array)
        fail(what, fmt::format("\"rules\" must be an array, it is {}", value.kind_name()));
      for (const JsonValue& rule : value.items)
        recipe.rules.push_back(parse_rule(rule, registry, fmt::format("{}: rule {}", what, recipe.rules.size() + 1)));
    } else {
      fail(what,
           fmt::format("unknown key {}; a recipe has \"name\", \"keep\", \"rules\" and \"default\"", json_quote(key)));
    }
  }
  return recipe;
}

Recipe Recipe::load(const std::string& argument, const Registry& registry) {
  const bool is_path = argument.ends_with(".json") || argument.find('/') != std::string::npos;
  if (!is_path) return parse(argument, registry);
  const std::string what = fmt::format("recipe '{}'", argument);
  const std::string text = read_text_file(argument);
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos || text[first] != '{') {
    if (text.substr(0, 3) != "\xef\xbb\xbf") fail(what, "a JSON object, starting with '{', is needed");
    return (void)recipe_detail::parse_json(text, what), Recipe{};  // throws: the byte-order mark
  }
  return parse(text, registry, what);
}

std::string Recipe::to_json() const {
  const auto list = [](const std::vector<std::string>& items) {
    std::string out = "[";
    for (std::size_t i = 0; i < items.size(); ++i) out += (i == 0 ? "" : ",") + json_quote(items[i]);
    return out + "]";
  };
  std::string out = "{";
  if (!name.empty()) out += "\"name\":" + json_quote(name) + ",";
  if (!keep.empty()) out += "\"keep\":" + list(keep) + ",";
  if (!rules.empty()) {
    out += "\"rules\":[";
    for (std::size_t i = 0; i < rules.size(); ++i)
      out += fmt::format("{}{{\"tensors\":{},\"scheme\":{}}}", i == 0 ? "" : ",", list(rules[i].tensors),
                         json_quote(rules[i].scheme));
    out += "],";
  }
  return out + "\"default\":" + json_quote(default_scheme) + "}";
}

std::vector<std::string> plan_recipe(const Recipe& recipe, std::span<const RecipeTensor> tensors) {
  const auto refuse = [&](const std::string& problem) {
    throw FormatError(fmt::format("recipe: {}; {}", problem, name_examples(tensors)), "RecipeMatchesNothing");
  };
  enum class State : std::uint8_t { open, taken };
  std::vector<State> state(tensors.size(), State::open);
  std::vector<std::string> plan(tensors.size());

  for (const std::string& pattern : recipe.keep) {
    bool found = false;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (!glob_match(pattern, tensors[i].name)) continue;
      found = true;  // keeping a tensor that would be kept anyway is no mistake
      state[i] = State::taken;
    }
    if (!found) refuse(fmt::format("the pattern \"{}\" under \"keep\" matches no tensor", pattern));
  }
  for (std::size_t r = 0; r < recipe.rules.size(); ++r) {
    const RecipeRule& rule = recipe.rules[r];
    bool takes_one = false;
    for (const std::string& pattern : rule.tensors) {
      bool found = false;
      for (std::size_t i = 0; i < tensors.size(); ++i) {
        if (!tensors[i].is_matrix || !glob_match(pattern, tensors[i].name)) continue;
        found = true;
        if (state[i] == State::taken) continue;
        state[i] = State::taken;
        takes_one = true;
        if (rule.scheme != kKeep) plan[i] = rule.scheme;
      }
      if (!found) refuse(fmt::format("the pattern \"{}\" of rule {} matches no matrix", pattern, r + 1));
    }
    if (!takes_one)
      refuse(fmt::format("rule {} has nothing left to do: \"keep\" and earlier rules took its tensors", r + 1));
  }
  if (recipe.default_scheme != kKeep)
    for (std::size_t i = 0; i < tensors.size(); ++i)
      if (tensors[i].is_matrix && state[i] == State::open) plan[i] = recipe.default_scheme;
  if (std::all_of(plan.begin(), plan.end(), [](const std::string& scheme) { return scheme.empty(); }))
    refuse("it compresses nothing");
  return plan;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
