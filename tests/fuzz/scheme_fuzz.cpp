// SPDX-License-Identifier: Apache-2.0
// Scheme strings and recipes: any bytes give a result that prints back, or a FormatError that points into the text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "blockpack/recipe/recipe.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace blockpack;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const Scheme scheme = parse_scheme(text);
    const std::string printed = to_string(scheme);
    if (to_string(parse_scheme(printed)) != printed) std::abort();
    const auto codec = Registry::standard().codec(scheme);
    if (Registry::standard().codec(codec->scheme())->scheme() != codec->scheme()) std::abort();
    codec->bits_per_weight({3, 70});
  } catch (const FormatError& error) {
    if (error.byte_offset() < 0 || error.byte_offset() > static_cast<std::int64_t>(size)) std::abort();
  }
  try {
    const Recipe recipe = Recipe::parse(text);
    if (Recipe::parse(recipe.to_json()).to_json() != recipe.to_json()) std::abort();
    const RecipeTensor tensors[] = {{"a.weight", true}, {text.substr(0, 20), true}, {"norm", false}};
    plan_recipe(recipe, tensors);
  } catch (const FormatError&) {
  }
  return 0;
}
