// SPDX-License-Identifier: Apache-2.0
#include "blockpack/recipe/recipe.hpp"

#include <string>
#include <vector>

#include "support/catch.hpp"

namespace blockpack {
namespace {

const std::vector<RecipeTensor> kModel = {{"embed.weight", true},
                                          {"layers.0.k_proj.weight", true},
                                          {"layers.0.norm", false},
                                          {"layers.0.q_proj.weight", true},
                                          {"layers.10.q_proj.weight", true}};

std::string message_of(const std::string& text) {
  try {
    plan_recipe(Recipe::parse(text), kModel);
  } catch (const FormatError& error) {
    return error.what();
  }
  return {};
}

bool says(const std::string& text, const std::string& part) {
  const std::string message = message_of(text);
  CAPTURE(text, message);
  CHECK(message.find('\n') == std::string::npos);
  const bool found = message.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

TEST_CASE("globs match whole names", "[recipe]") {
  CHECK(glob_match("*", ""));
  CHECK(glob_match("*", "anything"));
  CHECK(glob_match("a?c", "abc"));
  CHECK_FALSE(glob_match("a?c", "ac"));
  CHECK(glob_match("*.q_proj.*", "layers.0.q_proj.weight"));
  CHECK_FALSE(glob_match("q_proj", "layers.0.q_proj.weight"));
  CHECK(glob_match("layers.?.*", "layers.1.w"));
  CHECK_FALSE(glob_match("layers.?.*", "layers.10.w"));
  CHECK(glob_match("a*b*c", "aXbXbc"));
  CHECK_FALSE(glob_match("a*b*c", "aXbXb"));
  CHECK(glob_match("", ""));
  CHECK_FALSE(glob_match("", "a"));
  CHECK(glob_match("*a*a*a*a*b", std::string(200, 'a') + "b"));
  CHECK_FALSE(glob_match("*a*a*a*a*a*a*a*b", std::string(2000, 'a')));
}

TEST_CASE("a scheme string is a recipe for every matrix", "[recipe]") {
  const Recipe recipe = Recipe::parse("fp16");
  CHECK(recipe.default_scheme == "fp16");
  CHECK(plan_recipe(recipe, kModel) == std::vector<std::string>{"fp16", "fp16", "", "fp16", "fp16"});
}

TEST_CASE("keep wins, then the first rule, then the default", "[recipe]") {
  const Recipe recipe = Recipe::parse(R"({
    "name": "mixed", "keep": "embed.*",
    "rules": [ {"tensors": "layers.0.*", "scheme": "fp16"}, {"tensors": ["*.q_proj.weight"], "scheme": "f32"} ],
    "default": "bf16" })");
  CHECK(plan_recipe(recipe, kModel) == std::vector<std::string>{"", "fp16", "", "fp16", "f32"});
  const Recipe again = Recipe::parse(recipe.to_json());
  CHECK(again.to_json() == recipe.to_json());
  CHECK(again.name == "mixed");
}

TEST_CASE("the default of a recipe is to keep", "[recipe]") {
  const Recipe recipe = Recipe::parse(R"({"rules": [{"tensors": "*.k_proj.weight", "scheme": "bf16+nearest"}]})");
  CHECK(recipe.rules[0].scheme == "bf16");
  CHECK(plan_recipe(recipe, kModel) == std::vector<std::string>{"", "bf16", "", "", ""});
}

TEST_CASE("a rule may keep what the default would take", "[recipe]") {
  const Recipe recipe = Recipe::parse(R"({"rules": [{"tensors": "embed.*", "scheme": "keep"}], "default": "bf16"})");
  CHECK(plan_recipe(recipe, kModel) == std::vector<std::string>{"", "bf16", "", "bf16", "bf16"});
}

TEST_CASE("a recipe that does nothing is an error that lists matrices", "[recipe]") {
  CHECK(
      says(R"({"rules": [{"tensors": "*.nope", "scheme": "bf16"}]})",
           "the pattern \"*.nope\" of rule 1 matches no matrix; the matrices are embed.weight, layers.0.k_proj.weight, "
           "layers.0.q_proj.weight, layers.10.q_proj.weight"));
  CHECK(says(R"({"rules": [{"tensors": "*norm", "scheme": "bf16"}]})", "matches no matrix"));
  CHECK(says(R"({"keep": ["x*"], "default": "bf16"})", "under \"keep\" matches no tensor"));
  CHECK(says(R"({"rules": [{"tensors": "*", "scheme": "bf16"}, {"tensors": "embed.*", "scheme": "fp16"}]})",
             "rule 2 has nothing left to do"));
  CHECK(says("{}", "it compresses nothing"));
  CHECK(says("keep", "it compresses nothing"));
  CHECK_THROWS_AS(plan_recipe(Recipe::parse("bf16"), std::vector<RecipeTensor>{{"norm", false}}), FormatError);
}

TEST_CASE("what a recipe cannot mean is an error that says where", "[recipe]") {
  CHECK(says("{\n  \"default\": bf16 }", "line 2, column 14"));
  CHECK(says(R"({"default": "bf16", "default": "f32"})", "the key \"default\" is given twice"));
  CHECK(says(R"({"defualt": "bf16"})", "unknown key \"defualt\""));
  CHECK(says(R"({"default": "bf61"})", "default: scheme \"bf61\", character 1 (^bf61): unknown format"));
  CHECK(says(R"({"rules": [{"tensors": "*", "scheme": "bf16"}, {"tensors": "*", "scheme": "bf16-x9"}]})",
             "rule 2: scheme \"bf16-x9\", character 6"));
  CHECK(says(R"({"rules": [{"tensors": "*"}]})", "\"scheme\" is missing"));
  CHECK(says(R"({"rules": [{"scheme": "bf16"}]})", "\"tensors\" is missing"));
  CHECK(says(R"({"rules": [{"tensors": [], "scheme": "bf16"}]})", "\"tensors\" is missing or empty"));
  CHECK(says(R"({"rules": [{"tensors": [7], "scheme": "bf16"}]})", "must be a string, it is a number"));
  CHECK(says(R"({"rules": ["*"]})", "a rule must be an object"));
  CHECK(says(R"({"rules": {}})", "\"rules\" must be an array, it is an object"));
  CHECK(says(R"({"rules": [{"pattern": "*"}]})", "unknown key \"pattern\""));
  CHECK(says(R"([])", "a JSON object is needed"));
  CHECK(says(R"({"default": "bf16"} x)", "not valid JSON"));
  CHECK(says(R"({"default": [[[[[[[[[[1]]]]]]]]]]})", "nested deeper than 8"));
  CHECK(says(std::string("{\"default\": \"bf\0\"}", 18), "a NUL byte"));
  CHECK(says("int4-", "a field is missing"));
}

TEST_CASE("a recipe that is not there or not a file says so", "[recipe]") {
  const auto message = [](const char* path) -> std::string {
    try {
      Recipe::load(path);
    } catch (const IoError& error) {
      return error.what();
    }
    return {};
  };
  CHECK(message("missing/recipe.json").find("cannot be opened: No such file") != std::string::npos);
  CHECK(message("./").find("is a directory") != std::string::npos);
  CHECK(Recipe::load("bf16").default_scheme == "bf16");
}

}  // namespace
}  // namespace blockpack
