// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "blockpack/io/checked.hpp"
#include "blockpack/io/gguf.hpp"
#include "io/gguf_format.hpp"
#include "io/strict_json.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

using io_detail::printable;

constexpr const char* kGgufFile = "GgufFile";
constexpr std::uint64_t kLeastEntryBytes = 14;   // a length, one byte of key, a type and one byte of value
constexpr std::uint64_t kLeastTensorBytes = 24;  // a length, a rank, a type and an offset
constexpr std::uint64_t kPieceBytes = 65'536;

/// The header, read once from its begin to its end. A mapped file is read by copy, a piece at a time: what becomes of
/// the file meanwhile can neither give one byte two meanings nor raise a signal.
class HeaderReader {
 public:
  HeaderReader(std::span<const std::byte> bytes, const MappedFile* mapping, std::string_view what,
               const ReadLimits& limits)
      : limits_(limits), mapping_(mapping), what_(what), file_bytes_(bytes.size()) {
    readable_ = std::min(file_bytes_, limits.max_header_bytes);
    if (mapping == nullptr)
      window_ = slice(bytes, 0, readable_, kGgufFile);
    else
      piece_ = AlignedBuffer<std::byte>::uninitialized(size_cast<index_t>(std::min(readable_, kPieceBytes), kGgufFile));
  }

  /// Bytes of the file that are read.
  std::uint64_t at() const noexcept { return at_; }

  [[noreturn]] void fail(const char* code, const std::string& message, const std::string& tensor = {}) const {
    throw FormatError(fmt::format("{}: {} (byte {})", what_, message, at_), code,
                      size_cast<std::int64_t>(at_, kGgufFile), tensor);
  }

  template <class T>
  T number() {
    require(sizeof(T));
    T value = {};
    take(std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }

  bool boolean() {
    const auto byte = number<std::uint8_t>();
    if (byte > 1) fail("InvalidBool", fmt::format("a bool is stored as {}, 0 or 1 needed", byte));
    return byte == 1;
  }

  std::string string() {
    const auto length = number<std::uint64_t>();
    items(length, 1);
    std::string text(static_cast<std::size_t>(length), '\0');
    take(std::as_writable_bytes(std::span(text.data(), text.size())));
    return text;
  }

  /// A key or a tensor name: NUL would end it for readers that keep C strings, so two names would be one.
  std::string name(std::string_view kind, std::uint64_t most) {
    std::string text = string();
    if (text.size() > most)
      fail(most == io_detail::kGgufMaxNameBytes ? "InvalidName" : "LimitExceeded",
           fmt::format("a {} has {} bytes, at most {} are read", kind, text.size(), most));
    if (io_detail::valid_utf8_prefix(text) != text.size() || text.find('\0') != std::string::npos)
      fail("InvalidName", fmt::format("the {} '{}' is not UTF-8 without NUL", kind, printable(text)));
    return text;
  }

  /// How many tensors or entries follow, each at least `least` bytes long.
  std::uint64_t count(std::string_view kind, std::uint64_t least, std::uint64_t most) {
    const auto n = number<std::int64_t>();
    const auto bytes = n < 0 ? std::nullopt : try_mul(static_cast<std::uint64_t>(n), least);
    if (!bytes || *bytes > size_sub(file_bytes_, at_, kGgufFile))
      fail("InvalidCount", fmt::format("the header says it has {} {}, more than fit into the file", n, kind));
    if (std::cmp_greater(n, most))
      fail("LimitExceeded", fmt::format("the header says it has {} {}, at most {} are read", n, kind, most));
    return static_cast<std::uint64_t>(n);
  }

  /// Refuses n items of at least `least` bytes where the file ends before.
  void items(std::uint64_t n, std::uint64_t least) {
    const auto bytes = try_mul(n, least);
    if (!bytes || *bytes > size_sub(file_bytes_, at_, kGgufFile))
      fail("UnexpectedEnd", fmt::format("{} items of at least {} bytes do not fit into the file", n, least));
    if (n > io_detail::kGgufMaxItems)
      fail("LimitExceeded", fmt::format("{} items, at most {} are read", n, io_detail::kGgufMaxItems));
    require(*bytes);
  }

  GgufValue value() {
    const auto type = number<std::uint32_t>();
    GgufValue result;
    const bool scalar =
        io_detail::with_gguf_type(type, [&]<class T>(std::type_identity<T>) { result.emplace<T>(item<T>()); });
    if (!scalar && type != io_detail::kGgufArray)
      fail("InvalidValueType", fmt::format("there is no value type {}", type));
    if (!scalar) result = array();
    return result;
  }

 private:
  void require(std::uint64_t bytes) const {
    if (bytes <= size_sub(readable_, at_, kGgufFile)) return;
    if (readable_ == file_bytes_) fail("UnexpectedEnd", "the file ends inside the header");
    fail("LimitExceeded", fmt::format("the header has more than {} bytes", limits_.max_header_bytes));
  }

  /// The next bytes, which are there.
  void take(std::span<std::byte> dst) {
    while (!dst.empty()) {
      if (window_.empty()) refill();
      const std::size_t n = std::min(dst.size(), window_.size());
      std::copy_n(window_.begin(), n, dst.begin());
      window_ = window_.subspan(n);
      dst = dst.subspan(n);
      at_ = size_add(at_, n, kGgufFile);
    }
  }

  void refill() {
    const std::uint64_t rest = size_sub(readable_, at_, kGgufFile);
    const auto piece =
        piece_.span().first(static_cast<std::size_t>(std::min<std::uint64_t>(rest, piece_.span().size())));
    mapping_->read(at_, piece);
    window_ = piece;
  }

  template <class T>
  T item() {
    if constexpr (std::same_as<T, bool>)
      return boolean();
    else if constexpr (std::same_as<T, std::string>)
      return string();
    else
      return number<T>();
  }

  GgufArray array() {
    const auto type = number<std::uint32_t>();
    const auto n = number<std::uint64_t>();
    GgufArray result;
    const bool known = io_detail::with_gguf_type(type, [&]<class T>(std::type_identity<T>) {
      constexpr bool kString = std::same_as<T, std::string>;
      items(n, kString ? sizeof(std::uint64_t) : sizeof(T));
      auto& values = result.emplace<std::vector<T>>();
      if constexpr (kString || std::same_as<T, bool>) {
        values.reserve(static_cast<std::size_t>(n));
        for (std::uint64_t i = 0; i < n; ++i) values.push_back(item<T>());
      } else {
        values.resize(static_cast<std::size_t>(n));
        take(std::as_writable_bytes(std::span(values)));
      }
    });
    if (!known)
      fail("InvalidValueType", type == io_detail::kGgufArray ? "an array of arrays is not read"
                                                             : fmt::format("there is no item type {}", type));
    return result;
  }

  const ReadLimits& limits_;
  const MappedFile* mapping_;
  std::string_view what_;
  std::uint64_t file_bytes_;
  std::uint64_t readable_ = 0;         // file_bytes_, or the longest header that is read
  std::uint64_t at_ = 0;               // read so far
  std::span<const std::byte> window_;  // the bytes behind at_
  AlignedBuffer<std::byte> piece_;     // of a mapped file
};

std::uint32_t read_version(HeaderReader& in) {
  std::string magic;
  for (std::size_t i = 0; i < io_detail::kGgufMagic.size(); ++i) magic.push_back(in.number<char>());
  if (magic != io_detail::kGgufMagic) in.fail("InvalidMagic", "the file does not start with GGUF");
  const auto version = in.number<std::uint32_t>();
  if (version == 2 || version == io_detail::kGgufVersion) return version;
  if (version != 0 && (version & 0xffffu) == 0)
    in.fail("InvalidVersion", "the file is big-endian; only little-endian ones are read");
  in.fail("InvalidVersion", fmt::format("the file has version {}, 2 and 3 are read", version));
}

/// A tensor as the header states it, with its bytes; where they lie is not checked yet.
struct TensorRecord {
  GgufTensorSpec spec;
  std::uint64_t bytes = 0;
  std::uint64_t begin = 0;  // in the data
};

TensorRecord read_record(HeaderReader& in) {
  TensorRecord record;
  record.spec.name = in.name("tensor name", io_detail::kGgufMaxNameBytes);
  const std::string& name = record.spec.name;
  const auto fail = [&](const char* code, const std::string& message) {
    in.fail(code, fmt::format("tensor '{}' {}", printable(name), message), name);
  };
  const auto rank = in.number<std::uint32_t>();
  if (rank > io_detail::kGgufMaxRank)
    fail("InvalidShape", fmt::format("has {} dimensions, at most {} are read", rank, io_detail::kGgufMaxRank));
  for (std::uint32_t i = 0; i < rank; ++i) {
    const auto dimension = in.number<std::int64_t>();
    if (dimension < 0) fail("InvalidShape", fmt::format("has the dimension {}", dimension));
    record.spec.shape.push_back(dimension);
  }
  std::reverse(record.spec.shape.begin(), record.spec.shape.end());
  const auto type = in.number<std::uint32_t>();
  const auto types = gguf_tensor_types();
  const auto known = std::find_if(types.begin(), types.end(), [&](const GgufTensorTypeInfo& info) {
    return static_cast<std::uint32_t>(info.type) == type;
  });
  if (known == types.end()) fail("InvalidTensorType", fmt::format("has the unknown or removed type {}", type));
  record.spec.type = known->type;
  if (!record.spec.shape.empty() && record.spec.shape.back() % known->block != 0)
    fail("MisalignedRow", fmt::format("of type {} has rows of {} elements, a multiple of {} needed", known->name,
                                      record.spec.shape.back(), known->block));
  if (record.spec.shape.empty() && known->block != 1)
    fail("MisalignedRow",
         fmt::format("of type {} has no dimension, rows of {} elements needed", known->name, known->block));
  try {
    record.bytes = tensor_bytes(record.spec);
  } catch (const ShapeError& error) {
    fail("ValidationOverflow", fmt::format("is too large: {}", error.what()));
  }
  record.begin = in.number<std::uint64_t>();
  return record;
}

/// Positions of `items` ascending by name; FormatError when two have the same.
template <class T, class Name>
std::vector<std::size_t> order_by_name(const HeaderReader& in, const std::vector<T>& items, std::string_view kind,
                                       const Name& name) {
  std::vector<std::size_t> order(items.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return name(items[a]) < name(items[b]); });
  const auto twice = std::adjacent_find(order.begin(), order.end(),
                                        [&](std::size_t a, std::size_t b) { return name(items[a]) == name(items[b]); });
  if (twice != order.end())
    in.fail("DuplicateKey", fmt::format("the {} '{}' is used twice", kind, printable(name(items[*twice]))));
  return order;
}

GgufMetadata read_metadata(HeaderReader& in, std::uint64_t entries, const ReadLimits& limits) {
  GgufMetadata metadata;
  for (std::uint64_t i = 0; i < entries; ++i) {
    std::string key = in.name("key", limits.max_name_bytes);
    if (key.empty()) in.fail("InvalidName", "a key is empty");
    metadata.push_back({std::move(key), in.value()});
  }
  static_cast<void>(order_by_name(in, metadata, "key", [](const GgufEntry& e) -> const std::string& { return e.key; }));
  return metadata;
}

/// Strict: bytes that belong to no tensor are zero.
void require_zeros(const HeaderReader& in, std::span<const std::byte> file, std::uint64_t begin, std::uint64_t end) {
  const std::span<const std::byte> part = slice(file, begin, size_sub(end, begin, kGgufFile), kGgufFile);
  if (std::any_of(part.begin(), part.end(), [](std::byte b) { return b != std::byte{0}; }))
    in.fail("UnownedBytes", fmt::format("bytes of [{}, {}) belong to no tensor and are not zero", begin, end));
}

}  // namespace

GgufFile GgufFile::parse(SharedBytes bytes, const ReadLimits& limits) {
  return parse_file(std::move(bytes), nullptr, kGgufFile, limits);
}

GgufFile GgufFile::open(const std::filesystem::path& path, const ReadLimits& limits) {
  std::shared_ptr<const MappedFile> mapping = MappedFile::open(path);
  const SharedBytes bytes(mapping->bytes(), mapping);
  return parse_file(bytes, std::move(mapping), fmt::format("{} '{}'", kGgufFile, path.string()), limits);
}

GgufFile GgufFile::parse_file(SharedBytes file, std::shared_ptr<const MappedFile> mapping, std::string_view what,
                              const ReadLimits& limits) {
  const std::uint64_t file_bytes = file.bytes.size();
  HeaderReader in(file.bytes, mapping.get(), what, limits);
  GgufFile result;
  result.version_ = read_version(in);
  const std::uint64_t tensors = in.count("tensors", kLeastTensorBytes, limits.max_tensors);
  const std::uint64_t entries = in.count("metadata entries", kLeastEntryBytes, limits.max_metadata_entries);
  result.metadata_ = read_metadata(in, entries, limits);
  const auto alignment = io_detail::gguf_alignment(result.metadata_);
  if (!alignment) in.fail("InvalidAlignment", fmt::format("{} is not a u32 power of two", kGgufAlignmentKey));
  result.alignment_ = *alignment;

  std::vector<TensorRecord> records;
  for (std::uint64_t i = 0; i < tensors; ++i) records.push_back(read_record(in));
  result.by_name_ = order_by_name(in, records, "tensor name",
                                  [](const TensorRecord& r) -> const std::string& { return r.spec.name; });
  const std::uint64_t header_end = in.at();
  const auto data_offset = records.empty() ? header_end : size_round_up(header_end, *alignment, kGgufFile);
  result.data_offset_ = data_offset;
  std::uint64_t next = 0;          // where the next tensor must begin
  std::uint64_t end = header_end;  // of what has an owner, in the file
  for (TensorRecord& record : records) {
    const std::string& name = record.spec.name;
    const auto fail = [&](const char* code, const std::string& message) {
      in.fail(code, fmt::format("tensor '{}' {}", printable(name), message), name);
    };
    if (record.begin != next)
      fail("InvalidOffset",
           fmt::format("has the offset {}, {} needed: tensors follow each other without gap or overlap", record.begin,
                       next));
    const auto begin = try_add(data_offset, record.begin);
    const auto stop = begin ? try_add(*begin, record.bytes) : begin;
    if (record.bytes != 0 && (!stop || *stop > file_bytes))
      fail("MissingData", fmt::format("has {} bytes from {} on, the file ends at {}", record.bytes,
                                      begin.value_or(record.begin), file_bytes));
    GgufTensor tensor;
    tensor.name = name;
    tensor.type = record.spec.type;
    tensor.shape = std::move(record.spec.shape);
    tensor.mapping = mapping;
    if (record.bytes != 0) {
      if (limits.strict) require_zeros(in, file.bytes, end, *begin);
      tensor.data = SharedBytes(slice(file.bytes, *begin, record.bytes, kGgufFile), file.owner);
      end = *stop;
    }
    result.tensors_.push_back(std::move(tensor));
    next = size_round_up(size_add(next, record.bytes, kGgufFile), *alignment, kGgufFile);
  }
  if (limits.strict) {
    if (file_bytes > size_round_up(end, *alignment, kGgufFile))
      in.fail("UnownedBytes", fmt::format("the file has {} bytes, the last tensor ends at {}", file_bytes, end));
    require_zeros(in, file.bytes, end, file_bytes);
  }
  return result;
}

const GgufTensor* GgufFile::find(std::string_view name) const noexcept {
  const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                   [&](std::size_t i, std::string_view n) { return tensors_[i].name < n; });
  return at != by_name_.end() && tensors_[*at].name == name ? &tensors_[*at] : nullptr;
}

const GgufTensor& GgufFile::tensor(std::string_view name) const {
  const GgufTensor* found = find(name);
  if (found == nullptr)
    throw ValueError(fmt::format("GgufFile::tensor: there is no tensor '{}'; the file has {} others", printable(name),
                                 tensors_.size()));
  return *found;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
