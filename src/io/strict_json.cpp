// SPDX-License-Identifier: Apache-2.0
#include "io/strict_json.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "blockpack/core/error.hpp"
#include "blockpack/io/checked.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace io_detail {
namespace {

constexpr std::size_t kMaxDepth = 128;

/// Reads bytes and tells where it stands through a pointer that outlives it: the parser keeps its own copy.
class Cursor {
 public:
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;
  using iterator_category = std::input_iterator_tag;

  Cursor(const char* at, const char** told) noexcept : at_(at), told_(told) {}
  reference operator*() const noexcept { return *at_; }
  Cursor& operator++() noexcept {
    *told_ = ++at_;
    return *this;
  }
  Cursor operator++(int) noexcept {
    Cursor before = *this;
    ++*this;
    return before;
  }
  friend bool operator==(const Cursor& a, const Cursor& b) noexcept { return a.at_ == b.at_; }

 private:
  const char* at_;
  const char** told_;
};

/// The interface nlohmann::json's parser calls. Adds the depth limit and the search for duplicate keys.
class Sax {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = std::string;
  using binary_t = nlohmann::json::binary_t;

  Sax(JsonEvents& events, std::string_view what, std::int64_t first_offset)
      : events_(events), what_(what), first_offset_(first_offset) {}

  bool null() { return other(JsonScalar::null); }
  bool boolean(bool) { return other(JsonScalar::boolean); }
  bool number_integer(number_integer_t) { return other(JsonScalar::negative); }  // a minus sign, -0 included
  bool number_float(number_float_t, const string_t&) { return other(JsonScalar::real); }
  bool number_unsigned(number_unsigned_t value) {
    events_.number(value);
    return true;
  }
  bool string(string_t& text) {
    events_.string(text);
    return true;
  }
  bool binary(binary_t&) { return false; }  // not reached from text

  bool start_object(std::size_t) {
    enter();
    objects_.push_back(keys_.size());
    events_.start_object();
    return true;
  }
  bool key(string_t& text) {
    // Offsets fit 32 bits: the document is shorter than 4 GiB and keys shorter than their text.
    keys_.push_back({static_cast<std::uint32_t>(arena_.size()), static_cast<std::uint32_t>(text.size()),
                     static_cast<std::uint32_t>(events_.at())});
    arena_.append(text);
    events_.key(text);
    return true;
  }
  bool end_object() {
    const std::span<Key> keys =
        slice(std::span(keys_), objects_.back(), size_sub(keys_.size(), objects_.back(), "keys"), "keys");
    if (!keys.empty()) {
      const std::size_t arena_begin = keys.front().begin;
      std::sort(keys.begin(), keys.end(), [this](const Key& a, const Key& b) { return text(a) < text(b); });
      const auto twice = std::adjacent_find(keys.begin(), keys.end(),
                                            [this](const Key& a, const Key& b) { return text(a) == text(b); });
      if (twice != keys.end())
        fail(kDuplicateKey, fmt::format("the key '{}' appears twice in one object", printable(text(*twice))),
             std::max(twice->position, std::next(twice)->position));
      arena_.resize(arena_begin);
    }
    keys_.resize(objects_.back());
    objects_.pop_back();
    --depth_;
    events_.end_object();
    return true;
  }
  bool start_array(std::size_t) {
    enter();
    events_.start_array();
    return true;
  }
  bool end_array() {
    --depth_;
    events_.end_array();
    return true;
  }
  template <class Exception>
  bool parse_error(std::size_t position, const std::string& token, const Exception&) {
    fail(kBadJson, fmt::format("not valid JSON near '{}'", printable(token)), position);
  }

 private:
  struct Key {
    std::uint32_t begin;
    std::uint32_t length;
    std::uint32_t position;
  };

  std::string_view text(const Key& key) const noexcept {
    return std::string_view(arena_).substr(key.begin, key.length);
  }
  bool other(JsonScalar kind) {
    events_.other(kind);
    return true;
  }
  void enter() {
    if (depth_ == kMaxDepth) fail(kBadJson, fmt::format("nested deeper than {} levels", kMaxDepth), events_.at());
    ++depth_;
  }
  [[noreturn]] void fail(const char* code, const std::string& message, std::size_t position) const {
    const auto offset = size_add(static_cast<std::uint64_t>(first_offset_), position, "an offset");
    throw FormatError(fmt::format("{}: {} (byte {})", what_, message, offset), code, static_cast<std::int64_t>(offset));
  }

  JsonEvents& events_;
  std::string_view what_;
  std::int64_t first_offset_;
  std::size_t depth_ = 0;
  std::string arena_;                 // the keys of all open objects
  std::vector<Key> keys_;             // of all open objects
  std::vector<std::size_t> objects_;  // where the keys of each open object start
};

}  // namespace

std::size_t JsonEvents::at() const noexcept {
  return begin_ == nullptr ? 0 : static_cast<std::size_t>(std::distance(begin_, now_));
}

void parse_strict_json(std::string_view text, JsonEvents& events, std::string_view what, std::int64_t first_offset) {
  const auto fail = [&](const char* code, const char* message, std::size_t position) {
    const auto offset = size_add(static_cast<std::uint64_t>(first_offset), position, "an offset");
    throw FormatError(fmt::format("{}: {} (byte {})", what, message, offset), code, static_cast<std::int64_t>(offset));
  };
  if (text.size() > std::numeric_limits<std::uint32_t>::max()) fail(kLimitExceeded, "longer than 4 GiB", 0);
  const std::size_t valid = valid_utf8_prefix(text);
  if (valid != text.size()) fail(kBadUtf8, "not UTF-8", valid);
  if (text.starts_with("\xef\xbb\xbf")) fail(kBadJson, "starts with a byte-order mark", 0);
  const std::size_t nul = text.find('\0');
  if (nul != std::string_view::npos) fail(kBadJson, "holds a NUL byte", nul);
  if (text.empty()) fail(kBadJson, "is empty", 0);

  const std::span<const char> chars(text.data(), text.size());
  events.begin_ = events.now_ = chars.data();
  Sax sax(events, what, first_offset);
  nlohmann::json::sax_parse(Cursor(&*chars.begin(), &events.now_), Cursor(std::to_address(chars.end()), &events.now_),
                            &sax);
}

std::size_t valid_utf8_prefix(std::string_view text) noexcept {
  std::string_view rest = text;
  while (!rest.empty()) {
    const auto lead = static_cast<unsigned char>(rest.front());
    if (lead < 0x80) {
      rest.remove_prefix(1);
      continue;
    }
    // Length of the sequence, and the range of its second byte: narrower than 80..bf where a shorter form exists
    // (e0, f0), for surrogates (ed) and above 10ffff (f4).
    std::size_t length = 0;
    unsigned low = 0x80, high = 0xbf;
    if (lead >= 0xc2 && lead <= 0xdf) {
      length = 2;
    } else if (lead >= 0xe0 && lead <= 0xef) {
      length = 3;
      if (lead == 0xe0) low = 0xa0;
      if (lead == 0xed) high = 0x9f;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
      length = 4;
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;
    }
    bool valid = length != 0 && rest.size() >= length;
    if (valid) {
      for (const char c : rest.substr(1, length - 1)) {  // arithmetic: length is 2, 3 or 4
        const auto byte = static_cast<unsigned char>(c);
        valid = valid && byte >= low && byte <= high;
        low = 0x80;
        high = 0xbf;
      }
    }
    if (!valid) break;
    rest.remove_prefix(length);
  }
  return text.size() - rest.size();  // arithmetic: rest is a part of text
}

std::string json_quoted(std::string_view text) { return nlohmann::json(text).dump(); }

std::string printable(std::string_view name) {
  constexpr std::size_t kLongest = 120;
  std::string shown;
  for (const char c : name.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      shown.append(fmt::format("\\x{:02x}", byte));
    } else {
      shown.push_back(c);
    }
  }
  if (name.size() > kLongest) {
    shown.resize(valid_utf8_prefix(shown));  // a character cut in two
    shown.append("…");
  }
  return shown;
}

}  // namespace io_detail
}  // namespace blockpack::inline BLOCKPACK_ABI
