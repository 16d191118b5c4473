// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "blockpack/io/checked.hpp"
#include "blockpack/io/safetensors.hpp"
#include "io/safetensors_format.hpp"
#include "io/strict_json.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

using io_detail::JsonScalar;
using io_detail::kBadJson;
using io_detail::kLimitExceeded;
using io_detail::printable;

constexpr const char* kSafetensorsFile = "SafetensorsFile";

/// A record as the header states it; nothing about sizes is checked yet.
struct Record {
  std::string name;
  std::size_t position = 0;  // of its name in the header
  Dtype dtype = Dtype::f32;
  std::vector<index_t> shape;  // above 63 bits: negative
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// Collects records and metadata. Duplicate keys are the parser's business.
class HeaderEvents final : public io_detail::JsonEvents {
 public:
  HeaderEvents(const ReadLimits& limits, std::string_view what) : limits_(limits), what_(what) {}

  std::vector<Record> records;
  Metadata metadata;

  void start_object() override {
    switch (state_) {
      case State::document:
        state_ = State::names;
        return;
      case State::metadata_value:
        state_ = State::metadata;
        return;
      case State::record_value:
        state_ = State::record;
        has_dtype_ = has_shape_ = has_offsets_ = false;
        return;
      case State::unknown_value:
        ++skip_depth_;
        return;
      default:
        unexpected("an object");
    }
  }
  void end_object() override {
    switch (state_) {
      case State::unknown_value:
        leave_unknown();
        return;
      case State::record:
        if (!has_dtype_) fail(kBadJson, "has no dtype");
        if (!has_shape_) fail(kBadJson, "has no shape");
        if (!has_offsets_) fail(kBadJson, "has no data_offsets");
        state_ = State::names;
        return;
      case State::metadata:
        state_ = State::names;
        return;
      default:
        return;  // the document
    }
  }
  void key(std::string& text) override {
    if (state_ == State::unknown_value) return;
    if (text.size() > limits_.max_name_bytes)
      fail(kLimitExceeded,
           fmt::format("a name has {} bytes, at most {} are read", text.size(), limits_.max_name_bytes));
    if (state_ == State::names) {
      if (text == "__metadata__") {
        state_ = State::metadata_value;
        return;
      }
      if (records.size() >= limits_.max_tensors)
        fail(kLimitExceeded, fmt::format("more than {} tensors", limits_.max_tensors));
      records.emplace_back();
      records.back().name = std::move(text);
      records.back().position = at();
      state_ = State::record_value;
    } else if (state_ == State::metadata) {
      if (metadata.size() >= limits_.max_metadata_entries)
        fail(kLimitExceeded, fmt::format("more than {} metadata entries", limits_.max_metadata_entries));
      metadata_key_ = std::move(text);
    } else if (text == "dtype") {
      state_ = State::dtype_value;
    } else if (text == "shape") {
      state_ = State::shape_value;
    } else if (text == "data_offsets") {
      state_ = State::offsets_value;
    } else {
      state_ = State::unknown_value;
    }
  }
  void start_array() override {
    switch (state_) {
      case State::shape_value:
        state_ = State::shape;
        return;
      case State::offsets_value:
        state_ = State::offsets;
        offsets_seen_ = 0;
        return;
      case State::unknown_value:
        ++skip_depth_;
        return;
      default:
        unexpected("an array");
    }
  }
  void end_array() override {
    switch (state_) {
      case State::unknown_value:
        leave_unknown();
        return;
      case State::shape:
        has_shape_ = true;
        state_ = State::record;
        return;
      default:  // offsets
        if (offsets_seen_ != 2) fail(kBadJson, "needs exactly two data_offsets");
        has_offsets_ = true;
        state_ = State::record;
        return;
    }
  }
  void string(std::string& text) override {
    switch (state_) {
      case State::dtype_value: {
        const auto dtype = dtype_from_name(text);
        if (!dtype) fail(kBadJson, fmt::format("has the unknown dtype '{}'", printable(text)));
        records.back().dtype = *dtype;
        has_dtype_ = true;
        state_ = State::record;
        return;
      }
      case State::metadata:
        metadata.insert_or_assign(std::move(metadata_key_), std::move(text));
        return;
      case State::unknown_value:
        after_unknown();
        return;
      default:
        unexpected("a string");
    }
  }
  void number(std::uint64_t value) override {
    switch (state_) {
      case State::shape:
        if (records.back().shape.size() >= limits_.max_rank)
          fail(kLimitExceeded, fmt::format("has more than {} dimensions", limits_.max_rank));
        records.back().shape.push_back(static_cast<index_t>(value));
        return;
      case State::offsets:
        if (offsets_seen_ == 2) fail(kBadJson, "needs exactly two data_offsets");
        (offsets_seen_ == 0 ? records.back().begin : records.back().end) = value;
        ++offsets_seen_;
        return;
      case State::unknown_value:
        after_unknown();
        return;
      default:
        unexpected("a number");
    }
  }
  void other(JsonScalar kind) override {
    if (state_ == State::unknown_value) return after_unknown();
    if (state_ == State::metadata_value && kind == JsonScalar::null) {
      state_ = State::names;  // the same as no metadata
      return;
    }
    constexpr std::string_view kNames[] = {"null", "a boolean", "a negative number",
                                           "a number with a fraction, exponent "
                                           "or more than 64 bits"};
    unexpected(kNames[static_cast<std::size_t>(kind)]);
  }

 private:
  enum class State : std::uint8_t {
    document,        // before the outermost object
    names,           // in it
    metadata_value,  // after "__metadata__"
    metadata,        // in it
    record_value,    // after the name of a tensor
    record,          // in its object
    dtype_value,
    shape_value,
    shape,
    offsets_value,
    offsets,
    unknown_value  // the value of a field that is ignored, at any depth
  };

  void after_unknown() {
    if (skip_depth_ == 0) state_ = State::record;
  }
  void leave_unknown() {
    --skip_depth_;
    after_unknown();
  }
  [[noreturn]] void unexpected(std::string_view found) {
    constexpr std::string_view kExpected[] = {"an object at the top",
                                              "a name",
                                              "an object of strings as __metadata__",
                                              "a string in __metadata__",
                                              "an object",
                                              "a field",
                                              "a string as dtype",
                                              "an array as shape",
                                              "a size in shape",
                                              "an array as data_offsets",
                                              "a byte offset in data_offsets",
                                              ""};
    fail(kBadJson, fmt::format("needs {}, not {}", kExpected[static_cast<std::size_t>(state_)], found));
  }
  [[noreturn]] void fail(const char* code, const std::string& message) {
    const bool in_record = state_ >= State::record_value && !records.empty();
    const std::string tensor = in_record ? records.back().name : std::string();
    const std::uint64_t offset = size_add(io_detail::kSafetensorsPrefixBytes, at(), "an offset");
    throw FormatError(in_record ? fmt::format("{}: tensor '{}' {} (byte {})", what_, printable(tensor), message, offset)
                                : fmt::format("{}: the header {} (byte {})", what_, message, offset),
                      code, static_cast<std::int64_t>(offset), tensor);
  }

  const ReadLimits& limits_;
  std::string_view what_;
  State state_ = State::document;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  int offsets_seen_ = 0;
  std::uint64_t skip_depth_ = 0;
  std::string metadata_key_;
};

/// N, the length of the header, checked against the limit and the file.
std::uint64_t header_length(std::span<const std::byte> prefix, std::uint64_t file_bytes, const ReadLimits& limits,
                            std::string_view what) {
  if (file_bytes < io_detail::kSafetensorsPrefixBytes)
    throw FormatError(fmt::format("{}: {} bytes are too short for a safetensors file", what, file_bytes),
                      "HeaderTooSmall", 0);
  const auto length = load_element<std::uint64_t>(prefix, 0);
  if (length > limits.max_header_bytes)
    throw FormatError(fmt::format("{}: the header says it is {} bytes long, at most {} are read", what, length,
                                  limits.max_header_bytes),
                      "HeaderTooLarge", 0);
  const auto data = try_add(io_detail::kSafetensorsPrefixBytes, length);
  if (!data || *data > file_bytes)
    throw FormatError(fmt::format("{}: the header says it is {} bytes long, the file has {}", what, length, file_bytes),
                      "InvalidHeaderLength", 0);
  return length;
}

/// Offsets, sizes and overflows of one record; the reference's order of checks. `previous_end` is where it must start.
void check_record(const Record& record, std::uint64_t previous_end, std::string_view what) {
  const auto fail = [&](const char* code, const std::string& message) {
    const std::uint64_t offset = size_add(io_detail::kSafetensorsPrefixBytes, record.position, "an offset");
    throw FormatError(fmt::format("{}: tensor '{}' {} (byte {})", what, printable(record.name), message, offset), code,
                      static_cast<std::int64_t>(offset), record.name);
  };
  if (record.begin != previous_end || record.end < record.begin)
    fail("InvalidOffset", fmt::format("has data_offsets [{}, {}), the data before it end at {}", record.begin,
                                      record.end, previous_end));
  std::uint64_t elements = 1;
  for (const index_t dimension : record.shape) {
    const auto product = try_mul(elements, static_cast<std::uint64_t>(dimension));
    if (dimension < 0 || !product || !std::in_range<index_t>(*product))
      fail("ValidationOverflow", "has more elements than 63 bits count");
    elements = *product;
  }
  const auto bits = try_mul(elements, static_cast<std::uint64_t>(dtype_bits(record.dtype)));
  if (!bits) fail("ValidationOverflow", "has more bits than 64 bits count");
  if (*bits % 8 != 0) fail("MisalignedSlice", "is not a whole number of bytes");
  const std::uint64_t stored = size_sub(record.end, record.begin, "data_offsets");
  if (stored != *bits / 8)
    fail("TensorInvalidInfo", fmt::format("has {} bytes, its dtype and shape need {}", stored, *bits / 8));
}

}  // namespace

SafetensorsFile SafetensorsFile::parse(SharedBytes bytes, const ReadLimits& limits) {
  const std::span<const std::byte> prefix = bytes.bytes;
  return parse_parts(prefix, {}, std::move(bytes), nullptr, kSafetensorsFile, limits);
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path, const ReadLimits& limits) {
  std::shared_ptr<const MappedFile> mapping = MappedFile::open(path);
  const std::string what = fmt::format("{} '{}'", kSafetensorsFile, path.string());
  // The header is copied: it is read more than once, and must say the same each time.
  std::array<std::byte, io_detail::kSafetensorsPrefixBytes> prefix{};
  const std::uint64_t file_bytes = mapping->bytes().size();
  if (file_bytes >= io_detail::kSafetensorsPrefixBytes) mapping->read(0, prefix);
  AlignedBuffer<std::byte> header = AlignedBuffer<std::byte>::uninitialized(
      size_cast<index_t>(header_length(prefix, file_bytes, limits, what), kSafetensorsFile));
  mapping->read(io_detail::kSafetensorsPrefixBytes, header.span());
  return parse_parts(prefix, header.span(), SharedBytes(mapping->bytes(), mapping), mapping, what, limits);
}

SafetensorsFile SafetensorsFile::parse_parts(std::span<const std::byte> prefix, std::span<const std::byte> header,
                                             SharedBytes file, std::shared_ptr<const MappedFile> mapping,
                                             std::string_view what, const ReadLimits& limits) {
  const std::uint64_t file_bytes = file.bytes.size();
  const std::uint64_t length = header_length(prefix, file_bytes, limits, what);
  if (header.empty()) header = slice(file.bytes, io_detail::kSafetensorsPrefixBytes, length, kSafetensorsFile);
  const std::string_view text(reinterpret_cast<const char*>(header.data()), header.size());

  HeaderEvents events(limits, what);
  io_detail::parse_strict_json(text, events, what, io_detail::kSafetensorsPrefixBytes);
  if (limits.strict && !text.starts_with('{'))
    throw FormatError(fmt::format("{}: the header does not start with '{{'", what), "InvalidHeaderStart",
                      io_detail::kSafetensorsPrefixBytes);

  std::vector<Record>& records = events.records;
  std::stable_sort(records.begin(), records.end(), [](const Record& a, const Record& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t end = 0;
  for (const Record& record : records) {
    check_record(record, end, what);
    end = record.end;
  }
  const std::uint64_t data_offset = size_add(io_detail::kSafetensorsPrefixBytes, length, kSafetensorsFile);
  const auto needed = try_add(data_offset, end);
  if (needed != file_bytes)
    throw FormatError(
        fmt::format("{}: the tensors need {} data bytes, the file has {}; it is cut short or has bytes nobody owns",
                    what, end, size_sub(file_bytes, data_offset, kSafetensorsFile)),
        "MetadataIncompleteBuffer", static_cast<std::int64_t>(data_offset));

  SafetensorsFile result;
  result.data_offset_ = data_offset;
  result.metadata_ = std::move(events.metadata);
  result.tensors_.reserve(records.size());
  const std::span<const std::byte> data = slice(file.bytes, data_offset, end, kSafetensorsFile);
  for (Record& record : records) {
    Tensor tensor;
    tensor.name = std::move(record.name);
    tensor.dtype = record.dtype;
    tensor.shape = std::move(record.shape);
    const std::uint64_t count = size_sub(record.end, record.begin, kSafetensorsFile);
    tensor.data = SharedBytes(slice(data, record.begin, count, kSafetensorsFile), file.owner);
    tensor.mapping = mapping;
    result.tensors_.push_back(std::move(tensor));
  }
  result.by_name_.resize(result.tensors_.size());
  std::iota(result.by_name_.begin(), result.by_name_.end(), std::size_t{0});
  std::sort(result.by_name_.begin(), result.by_name_.end(),
            [&](std::size_t a, std::size_t b) { return result.tensors_[a].name < result.tensors_[b].name; });
  return result;
}

const Tensor* SafetensorsFile::find(std::string_view name) const noexcept {
  const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                   [&](std::size_t i, std::string_view n) { return tensors_[i].name < n; });
  return at != by_name_.end() && tensors_[*at].name == name ? &tensors_[*at] : nullptr;
}

const Tensor& SafetensorsFile::tensor(std::string_view name) const {
  const Tensor* found = find(name);
  if (found == nullptr)
    throw ValueError(fmt::format("SafetensorsFile::tensor: there is no tensor '{}'; the file has {} others",
                                 printable(name), tensors_.size()));
  return *found;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
