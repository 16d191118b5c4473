// SPDX-License-Identifier: Apache-2.0
#include "io/index_json.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "blockpack/io/checked.hpp"
#include "io/strict_json.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace io_detail {
namespace {

/// A file beside the index and nothing else; no separator, drive or control character.
bool is_safe_file_name(std::string_view name) noexcept {
  const auto unsafe = [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < 0x20 || byte == 0x7f || c == '/' || c == '\\' || c == ':';
  };
  return !name.empty() && name != "." && name != ".." && std::none_of(name.begin(), name.end(), unsafe);
}

class IndexEvents final : public JsonEvents {
 public:
  IndexEvents(ShardIndex& index, const ReadLimits& limits, std::string_view what)
      : index_(index), limits_(limits), what_(what) {}

  void start_object() override {
    if (state_ == State::document) {
      state_ = State::top;
    } else if (state_ == State::map_value) {
      state_ = State::map;
    } else if (state_ == State::metadata_value) {
      state_ = State::metadata;
    } else if (state_ == State::metadata_entry || state_ == State::unknown || state_ == State::skipping) {
      begin_unknown();
    } else {
      fail("an object is not expected here");
    }
  }
  void end_object() override {
    if (state_ == State::skipping) return end_unknown();
    if (state_ == State::top) {
      if (!has_map_) fail("there is no weight_map");
      return;
    }
    state_ = State::top;
  }
  void start_array() override {
    if (state_ == State::metadata_entry || state_ == State::unknown || state_ == State::skipping) {
      begin_unknown();
    } else {
      fail("an array is not expected here");
    }
  }
  void end_array() override { end_unknown(); }
  void key(std::string& text) override {
    if (state_ == State::skipping) return;
    if (text.size() > limits_.max_name_bytes)
      limit(fmt::format("a name has {} bytes, at most {} are read", text.size(), limits_.max_name_bytes));
    if (state_ == State::map) {
      if (index_.entries.size() >= limits_.max_tensors) limit(fmt::format("more than {} tensors", limits_.max_tensors));
      name_ = std::move(text);
      state_ = State::shard_value;
    } else if (state_ == State::metadata) {
      if (index_.metadata.size() >= limits_.max_metadata_entries)
        limit(fmt::format("more than {} metadata entries", limits_.max_metadata_entries));
      name_ = std::move(text);
      state_ = State::metadata_entry;
    } else if (text == "weight_map") {
      has_map_ = true;
      state_ = State::map_value;
    } else if (text == "metadata") {
      state_ = State::metadata_value;
    } else {
      state_ = State::unknown;
    }
  }
  void string(std::string& text) override {
    if (state_ == State::shard_value) {
      if (!is_safe_file_name(text))
        throw FormatError(fmt::format("{}: tensor '{}' lies in '{}', which is not the name of a file beside the index "
                                      "(byte {})",
                                      what_, printable(name_), printable(text), at()),
                          "UnsafeShardName", static_cast<std::int64_t>(at()), name_);
      if (text.size() > limits_.max_name_bytes) limit("the name of a file is too long");
      index_.entries.emplace_back(std::move(name_), std::move(text));
      state_ = State::map;
    } else if (state_ == State::metadata_entry) {
      index_.metadata.insert_or_assign(std::move(name_), std::move(text));
      state_ = State::metadata;
    } else {
      scalar("a string");
    }
  }
  void number(std::uint64_t) override { scalar("a number"); }
  void other(JsonScalar) override { scalar("null, a boolean or a number"); }

 private:
  enum class State : std::uint8_t {
    document,
    top,
    map_value,
    map,
    shard_value,
    metadata_value,
    metadata,
    metadata_entry,
    unknown,  // the value of a key that is ignored
    skipping  // inside it
  };

  void scalar(const char* found) {
    if (state_ == State::skipping) return;
    if (state_ == State::unknown) {
      state_ = State::top;
    } else if (state_ == State::metadata_entry) {
      state_ = State::metadata;
    } else {
      fail(fmt::format("{} is not expected here", found));
    }
  }
  void begin_unknown() {
    if (state_ != State::skipping) {
      after_skip_ = state_ == State::unknown ? State::top : State::metadata;
      state_ = State::skipping;
    }
    ++depth_;
  }
  void end_unknown() {
    if (--depth_ == 0) state_ = after_skip_;
  }
  [[noreturn]] void fail(const std::string& message) const { fail("InvalidIndex", message); }
  [[noreturn]] void limit(const std::string& message) const { fail(kLimitExceeded, message); }
  [[noreturn]] void fail(const char* code, const std::string& message) const {
    throw FormatError(
        fmt::format("{}: {} (byte {}); an index holds {{\"weight_map\": {{tensor: file}}}}", what_, message, at()),
        code, static_cast<std::int64_t>(at()));
  }

  ShardIndex& index_;
  const ReadLimits& limits_;
  std::string_view what_;
  State state_ = State::document;
  State after_skip_ = State::top;
  std::uint64_t depth_ = 0;
  bool has_map_ = false;
  std::string name_;
};

}  // namespace

ShardIndex parse_shard_index(std::string_view text, const ReadLimits& limits, std::string_view what) {
  ShardIndex index;
  IndexEvents events(index, limits, what);
  parse_strict_json(text, events, what, 0);
  return index;
}

}  // namespace io_detail
}  // namespace blockpack::inline BLOCKPACK_ABI
