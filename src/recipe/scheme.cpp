// SPDX-License-Identifier: Apache-2.0
#include "blockpack/recipe/scheme.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }
constexpr bool is_letter(char c) { return c >= 'a' && c <= 'z'; }
constexpr bool is_token_char(char c) { return is_letter(c) || is_digit(c) || c == '_' || c == ':' || c == '.'; }

/// The characters of a message: anything a terminal could act upon becomes \xNN.
std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7f)
      out += fmt::format("\\x{:02x}", byte);
    else
      out += c;
  }
  return out;
}

/// digits [ "." digits ], at most 9 characters, from text[at]; moves `at` behind it.
double parse_number(std::string_view text, std::size_t& at) {
  const std::size_t start = at;
  while (at < text.size() && is_digit(text[at])) ++at;
  if (at == start) fail_scheme(text, start, "a number is needed here");
  if (at < text.size() && text[at] == '.') {
    const std::size_t fraction = ++at;
    while (at < text.size() && is_digit(text[at])) ++at;
    if (at == fraction) fail_scheme(text, fraction, "digits are needed after the point");
  }
  if (at - start > 9) fail_scheme(text, start, "the number has more than 9 characters");
  // Exact in double: at most 8 digits over a power of ten, divided once.
  double digits = 0, unit = 1;
  bool behind_point = false;
  for (const char c : text.substr(start, at - start)) {
    if (c == '.') {
      behind_point = true;
      continue;
    }
    digits = digits * 10 + (c - '0');
    if (behind_point) unit *= 10;
  }
  if (digits == 0) fail_scheme(text, start, "the number must be above 0");
  return digits / unit;
}

/// The run of token characters at `at`; refuses an empty one and dots or colons at its ends.
SchemeToken parse_token(std::string_view text, std::size_t& at, std::string_view what) {
  SchemeToken token;
  token.offset = at;
  while (at < text.size() && is_token_char(text[at])) ++at;
  token.text = std::string(text.substr(token.offset, at - token.offset));
  if (at < text.size() && text[at] != '-' && text[at] != '+') {
    if (text[at] >= 'A' && text[at] <= 'Z') fail_scheme(text, at, "schemes are written in lower case");
    if (text[at] == ' ' || text[at] == '\t') fail_scheme(text, at, "a scheme has no spaces");
    fail_scheme(text, at, "this character cannot stand in a scheme");
  }
  if (token.text.empty()) fail_scheme(text, token.offset, fmt::format("{} is missing here", what));
  const auto ends_badly = [](char c) { return c == ':' || c == '.' || c == '_'; };
  if (ends_badly(token.text.front()))
    fail_scheme(text, token.offset, fmt::format("{} starts with a letter or a digit", what));
  if (ends_badly(token.text.back())) fail_scheme(text, at - 1, fmt::format("{} ends in a letter or a digit", what));
  if (is_letter(token.text.front()) && token.text.size() > 1 &&
      std::all_of(token.text.begin() + 1, token.text.end(), is_digit)) {
    if (token.text.size() > 10) fail_scheme(text, token.offset + 1, "the number has more than 9 digits");
    if (token.text.size() > 2 && token.text[1] == '0')
      fail_scheme(text, token.offset + 1, "the number has a leading zero");
    token.key = token.text.front();
    std::from_chars(token.text.data() + 1, token.text.data() + token.text.size(), token.number);
  }
  return token;
}

}  // namespace

void fail_scheme(std::string_view text, std::size_t offset, const std::string& what) {
  // A text of megabytes is shown as the surroundings of the place.
  std::string_view shown = text;
  std::size_t at = std::min(offset, text.size());
  const std::size_t position = at + 1;
  const char* before = "";
  const char* after = "";
  if (shown.size() > kMaxSchemeLength) {
    const std::size_t start = at > 40 ? at - 40 : 0;
    before = start > 0 ? "..." : "";
    after = start + 80 < text.size() ? "..." : "";
    shown = text.substr(start, 80);
    at -= start;
  }
  throw FormatError(
      fmt::format("scheme \"{}{}{}\", character {} ({}{}^{}{}): {}", before, printable(shown), after, position, before,
                  printable(shown.substr(0, at)), printable(shown.substr(at)), after, what),
      "InvalidScheme", static_cast<std::int64_t>(offset));
}

std::string scheme_caret(std::string_view text, std::size_t offset) {
  const std::string before = printable(text.substr(0, std::min(offset, text.size())));
  return fmt::format("{}\n{}^", printable(text), std::string(before.size(), ' '));
}

Scheme parse_scheme(std::string_view text) {
  if (text.empty()) fail_scheme(text, 0, "a scheme is needed, for example int4-g32");
  if (text.size() > kMaxSchemeLength)
    fail_scheme(text, kMaxSchemeLength, fmt::format("a scheme has at most {} characters", kMaxSchemeLength));
  Scheme scheme;
  scheme.text = std::string(text);
  std::size_t at = 0;
  const auto target = [&](std::string_view prefix, std::string_view unit, Scheme::Kind kind) {
    if (text.substr(0, prefix.size()) != prefix) return false;
    at = prefix.size();
    scheme.target = parse_number(text, at);
    if (text.substr(at) != unit) fail_scheme(text, at, fmt::format("'{}' is needed here, and then the end", unit));
    scheme.kind = kind;
    return true;
  };
  if (target("auto:", "bpw", Scheme::Kind::bits) || target("structured:", "%", Scheme::Kind::share)) {
    if (scheme.kind == Scheme::Kind::share && scheme.target > 100) fail_scheme(text, 11, "the share is at most 100 %");
    return scheme;
  }
  scheme.format = parse_token(text, at, "a format");
  while (at < text.size() && text[at] == '-') scheme.fields.push_back(parse_token(text, ++at, "a field"));
  while (at < text.size() && text[at] == '+') {
    SchemeToken algorithm = parse_token(text, ++at, "an algorithm");
    if (!is_letter(algorithm.text.front())) fail_scheme(text, algorithm.offset, "an algorithm starts with a letter");
    scheme.algorithms.push_back(std::move(algorithm));
  }
  if (at < text.size()) fail_scheme(text, at, "fields stand before algorithms");
  return scheme;
}

std::string to_string(const Scheme& scheme) {
  if (scheme.kind != Scheme::Kind::format) {
    std::string number = fmt::format("{:.8f}", scheme.target);
    number.erase(number.find_last_not_of('0') + 1);
    if (number.back() == '.') number.pop_back();
    return scheme.kind == Scheme::Kind::bits ? "auto:" + number + "bpw" : "structured:" + number + "%";
  }
  std::string out = scheme.format.text;
  for (const SchemeToken& field : scheme.fields) out += "-" + field.text;
  for (const SchemeToken& algorithm : scheme.algorithms) out += "+" + algorithm.text;
  return out;
}

Scheme Scheme::inner(std::size_t first) const {
  Scheme part;
  part.text = text;
  part.format = fields.at(first);
  part.fields.assign(fields.begin() + static_cast<std::ptrdiff_t>(first) + 1, fields.end());
  return part;
}

std::optional<index_t> SchemeFields::number(char key, index_t low, index_t high) {
  std::optional<index_t> found;
  for (std::size_t i = 0; i < taken_.size(); ++i) {
    const SchemeToken& field = scheme_.fields[i];
    if (field.key != key) continue;
    if (found) fail_scheme(scheme_.text, field.offset, fmt::format("the field '{}' is given twice", key));
    if (field.number < low || field.number > high)
      fail_scheme(scheme_.text, field.offset + 1,
                  fmt::format("{} takes {} from {} to {}", scheme_.format.text, key, low, high));
    found = field.number;
    taken_[i] = true;
  }
  return found;
}

std::optional<index_t> SchemeFields::number(char key, const std::vector<index_t>& offered) {
  const auto value = number(key, 0, std::numeric_limits<index_t>::max());
  if (!value || std::find(offered.begin(), offered.end(), *value) != offered.end()) return value;
  const auto field =
      std::find_if(scheme_.fields.begin(), scheme_.fields.end(), [&](const SchemeToken& f) { return f.key == key; });
  fail_scheme(scheme_.text, field->offset + 1,
              fmt::format("{} takes {} of {}", scheme_.format.text, key, fmt::join(offered, ", ")));
}

bool SchemeFields::variant(std::string_view name) { return one_of({name}).has_value(); }

std::optional<std::size_t> SchemeFields::one_of(const std::vector<std::string_view>& names) {
  std::optional<std::size_t> found;
  for (std::size_t i = 0; i < taken_.size(); ++i) {
    const SchemeToken& field = scheme_.fields[i];
    const auto match = std::find(names.begin(), names.end(), field.text);
    if (match == names.end()) continue;
    if (found)
      fail_scheme(scheme_.text, field.offset, fmt::format("'{}' cannot stand beside '{}'", field.text, names[*found]));
    found = static_cast<std::size_t>(match - names.begin());
    taken_[i] = true;
  }
  return found;
}

index_t SchemeFields::format_number(std::string_view prefix, index_t low, index_t high) const {
  const std::string& name = scheme_.format.text;
  index_t value = 0;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + std::min(prefix.size(), name.size()), end, value);
  if (!name.starts_with(prefix) || error != std::errc() || stop != end || value < low || value > high ||
      name[prefix.size()] == '0')
    fail_scheme(scheme_.text, scheme_.format.offset + prefix.size(),
                fmt::format("{} is followed by a number from {} to {}", prefix, low, high));
  return value;
}

void SchemeFields::finish(std::string_view accepted) const {
  for (std::size_t i = 0; i < taken_.size(); ++i)
    if (!taken_[i])
      fail_scheme(scheme_.text, scheme_.fields[i].offset,
                  fmt::format("{} does not take '{}'; it takes {}", scheme_.format.text, scheme_.fields[i].text,
                              accepted.empty() ? "no fields" : accepted));
}

}  // namespace blockpack::inline BLOCKPACK_ABI
