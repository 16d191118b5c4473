// SPDX-License-Identifier: Apache-2.0
#include "recipe/json_value.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "blockpack/core/error.hpp"

namespace blockpack::recipe_detail {
namespace {

constexpr std::size_t kMaxDepth = 8;
constexpr std::size_t kMaxBytes = std::size_t{1} << 20;

[[noreturn]] void fail_at(std::string_view what, std::string_view text, std::size_t offset,
                          const std::string& problem) {
  const std::string_view before = text.substr(0, std::min(offset, text.size()));
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const std::size_t newline = before.rfind('\n');
  const std::size_t column = before.size() - (newline == std::string_view::npos ? 0 : newline + 1) + 1;
  throw FormatError(fmt::format("{}: line {}, column {}: {}", what, line, column, problem), "InvalidRecipe",
                    static_cast<std::int64_t>(before.size()));
}

/// Builds the tree; false from a callback stops the parser, the reason is in `problem`.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  JsonValue root;
  std::string problem;
  std::size_t error_offset = 0;

  bool null() override { return add(JsonValue{}); }
  bool boolean(bool) override { return add(JsonValue{JsonValue::Kind::boolean, {}, {}, {}}); }
  bool number_integer(number_integer_t) override { return add_number(); }
  bool number_unsigned(number_unsigned_t) override { return add_number(); }
  bool number_float(number_float_t, const string_t&) override { return add_number(); }
  bool string(string_t& text) override { return add(JsonValue{JsonValue::Kind::string, std::move(text), {}, {}}); }
  bool binary(binary_t&) override { return refuse("binary data"); }
  bool start_object(std::size_t) override { return open(JsonValue::Kind::object); }
  bool start_array(std::size_t) override { return open(JsonValue::Kind::array); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    for (const std::string& known : stack_.back()->keys)
      if (known == name) return refuse(fmt::format("the key {} is given twice", json_quote(name)));
    stack_.back()->keys.push_back(std::move(name));
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) override {
    error_offset = position > 0 ? position - 1 : 0;
    std::string text = error.what();
    const std::size_t detail = text.find(": ", text.find("parse error"));
    problem = "not valid JSON" + (detail == std::string::npos ? std::string{} : text.substr(detail));
    return false;
  }

 private:
  bool refuse(std::string why) {
    problem = std::move(why);
    return false;
  }
  bool add_number() { return add(JsonValue{JsonValue::Kind::number, {}, {}, {}}); }
  JsonValue& place() {
    if (stack_.empty()) return root;
    return stack_.back()->items.emplace_back();
  }
  bool add(JsonValue value) {
    place() = std::move(value);
    return true;
  }
  bool open(JsonValue::Kind kind) {
    if (stack_.size() == kMaxDepth) return refuse(fmt::format("nested deeper than {} levels", kMaxDepth));
    JsonValue& value = place();
    value.kind = kind;
    stack_.push_back(&value);  // stays valid: a parent grows only while it is the last of the stack
    return true;
  }
  bool close() {
    stack_.pop_back();
    return true;
  }

  std::vector<JsonValue*> stack_;
};

}  // namespace

const char* JsonValue::kind_name() const {
  constexpr const char* kNames[] = {"null", "a truth value", "a number", "a string", "an array", "an object"};
  return kNames[static_cast<std::size_t>(kind)];
}

JsonValue parse_json(std::string_view text, std::string_view what) {
  if (text.size() > kMaxBytes) fail_at(what, text, kMaxBytes, "longer than 1 MiB");
  if (text.substr(0, 3) == "\xef\xbb\xbf") fail_at(what, text, 0, "starts with a byte-order mark; save it without");
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos) fail_at(what, text, nul, "a NUL byte");
  Builder builder;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder))
    fail_at(what, text, builder.error_offset, builder.problem);
  return std::move(builder.root);
}

std::string json_quote(std::string_view text) {
  return nlohmann::json(std::string(text)).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace blockpack::recipe_detail
