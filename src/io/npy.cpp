// SPDX-License-Identifier: Apache-2.0
#include "blockpack/io/npy.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <istream>
#include <optional>
#include <ostream>
#include <string_view>
#include <utility>

#include "blockpack/io/atomic_file.hpp"
#include "blockpack/io/checked.hpp"
#include "blockpack/io/mapped_file.hpp"
#include "io/strict_json.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

using io_detail::printable;

constexpr const char* kNpy = "npy";
constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::uint64_t kAlignment = 64;  // of the data in the file

[[noreturn]] void fail(const char* code, const std::string& message, std::uint64_t offset) {
  throw FormatError(fmt::format("{}: {} (byte {})", kNpy, message, offset), code,
                    size_cast<std::int64_t>(offset, kNpy));
}

struct Header {
  NpyType type;
  bool big_endian = false;
  bool fortran_order = false;
  std::vector<index_t> shape;
  std::uint64_t data_bytes = 0;
};

/// The literal of the header: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }.
class LiteralParser {
 public:
  LiteralParser(std::string_view text, std::uint64_t first_offset, const NpyOptions& options)
      : text_(text), rest_(text), first_offset_(first_offset), options_(options) {}

  Header parse() {
    Header header;
    bool has_descr = false, has_order = false, has_shape = false;
    expect('{');
    while (!take('}')) {
      const std::string_view key = string();
      expect(':');
      if (key == "descr" && !has_descr) {
        descr(header);
        has_descr = true;
      } else if (key == "fortran_order" && !has_order) {
        header.fortran_order = boolean();
        has_order = true;
      } else if (key == "shape" && !has_shape) {
        header.shape = shape();
        has_shape = true;
      } else {
        refuse(fmt::format("the key '{}' is unknown or appears twice", printable(key)));
      }
      if (take('}')) break;
      expect(',');
    }
    skip_space();
    if (!rest_.empty()) refuse("text follows the literal");
    if (!has_descr || !has_order || !has_shape) refuse("descr, fortran_order and shape are needed");
    return header;
  }

 private:
  [[noreturn]] void refuse(const std::string& message) const { fail("InvalidHeader", message, at()); }
  std::uint64_t at() const { return size_add(first_offset_, size_sub(text_.size(), rest_.size(), kNpy), kNpy); }
  void skip_space() {
    while (!rest_.empty() && std::string_view(" \t\r\n").find(rest_.front()) != std::string_view::npos)
      rest_.remove_prefix(1);
  }
  bool take(char c) {
    skip_space();
    if (!rest_.starts_with(c)) return false;
    rest_.remove_prefix(1);
    return true;
  }
  void expect(char c) {
    if (!take(c)) refuse(fmt::format("'{}' is needed", c));
  }
  std::string_view string() {
    skip_space();
    const char quote = rest_.empty() ? '\0' : rest_.front();
    if (quote != '\'' && quote != '"') refuse("a string is needed");
    rest_.remove_prefix(1);
    const std::size_t length = rest_.find(quote);
    const std::string_view text = rest_.substr(0, length);
    if (length == std::string_view::npos || text.find_first_of("\\\n") != std::string_view::npos)
      refuse("a string has no end or an escape");
    rest_.remove_prefix(length);
    rest_.remove_prefix(1);
    return text;
  }
  bool word(std::string_view w) {
    skip_space();
    if (!rest_.starts_with(w)) return false;
    rest_.remove_prefix(w.size());
    return true;
  }
  bool boolean() {
    if (word("True")) return true;
    if (!word("False")) refuse("True or False is needed");
    return false;
  }
  index_t integer() {
    skip_space();
    const std::size_t digits = std::min(rest_.find_first_not_of("0123456789"), rest_.size());
    if (digits == 0) refuse("a size is needed");
    if (digits > 1 && rest_.front() == '0') refuse("a size starts with 0");
    std::uint64_t value = 0;
    for (const char c : rest_.substr(0, digits)) {
      const auto tens = try_mul(value, 10);
      const auto next = tens ? try_add(*tens, static_cast<std::uint64_t>(c - '0')) : tens;  // arithmetic: a digit
      if (!next || !std::in_range<index_t>(*next)) fail("ValidationOverflow", "a size needs more than 63 bits", at());
      value = *next;
    }
    rest_.remove_prefix(digits);
    if (rest_.starts_with('L')) rest_.remove_prefix(1);  // Python 2 wrote long integers so
    return static_cast<index_t>(value);
  }
  std::vector<index_t> shape() {
    std::vector<index_t> dimensions;
    expect('(');
    while (!take(')')) {
      if (dimensions.size() >= options_.max_rank)
        fail("LimitExceeded", fmt::format("more than {} dimensions", options_.max_rank), at());
      dimensions.push_back(integer());
      if (take(',')) continue;
      expect(')');
      if (dimensions.size() == 1) refuse("(3) is a number, (3,) a shape");
      break;
    }
    return dimensions;
  }
  void descr(Header& header) {
    skip_space();
    if (rest_.starts_with('[')) fail("UnsupportedType", "structured arrays are not read", at());
    const std::string_view text = string();
    const auto unsupported = [&]() {
      fail("UnsupportedType",
           fmt::format("the type '{}' is not read; b1, i1 to i8, u1 to u8, f2 to f8, c8 and c16 are", printable(text)),
           at());
    };
    std::string_view rest = text;
    char order = '=';
    if (!rest.empty() && std::string_view("<>=|").find(rest.front()) != std::string_view::npos) {
      order = rest.front();
      rest.remove_prefix(1);
    }
    static constexpr std::string_view kNames[] = {"?",  "?1", "b1", "i1", "i2", "i4", "i8", "u1",
                                                  "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"};
    static constexpr NpyType kTypes[] = {{'b', 1}, {'b', 1}, {'b', 1}, {'i', 1}, {'i', 2}, {'i', 4},
                                         {'i', 8}, {'u', 1}, {'u', 2}, {'u', 4}, {'u', 8}, {'f', 2},
                                         {'f', 4}, {'f', 8}, {'c', 8}, {'c', 16}};
    const auto* const found = std::find(std::begin(kNames), std::end(kNames), rest);
    if (found == std::end(kNames)) unsupported();
    header.type = kTypes[std::distance(std::begin(kNames), found)];
    if (order == '|' && header.type.bytes != 1) unsupported();
    header.big_endian = order == '>' && header.type.bytes != 1;
  }

  std::string_view text_;
  std::string_view rest_;
  std::uint64_t first_offset_;
  const NpyOptions& options_;
};

/// Size of the preamble before the literal, and of the literal. `prefix` is at least 12 bytes or all there is.
struct Preamble {
  std::uint64_t literal_offset;
  std::uint64_t literal_bytes;
  bool utf8;
};
constexpr std::size_t kLongestPreamble = 12;

Preamble parse_preamble(std::span<const std::byte> prefix, const NpyOptions& options) {
  const std::string_view text(reinterpret_cast<const char*>(prefix.data()), prefix.size());
  if (!text.starts_with(kMagic)) fail("BadMagic", "this is not an npy file", 0);
  if (prefix.size() < 8) fail("TruncatedHeader", "the file ends in its version", prefix.size());
  const auto major = std::to_integer<int>(prefix[6]);
  const auto minor = std::to_integer<int>(prefix[7]);
  if (major < 1 || major > 3 || minor != 0)
    fail("UnsupportedVersion", fmt::format("version {}.{} is not known", major, minor), 6);
  Preamble preamble{major == 1 ? 10u : 12u, 0, major == 3};
  if (prefix.size() < preamble.literal_offset)
    fail("TruncatedHeader", "the file ends in the length of its header", prefix.size());
  preamble.literal_bytes = major == 1 ? load_element<std::uint16_t>(prefix.subspan(8), 0)
                                      : load_element<std::uint32_t>(prefix.subspan(8), 0);
  if (preamble.literal_bytes > options.max_header_bytes)
    fail("HeaderTooLarge",
         fmt::format("the header says it is {} bytes long, at most {} are read", preamble.literal_bytes,
                     options.max_header_bytes),
         8);
  return preamble;
}

Header parse_header(std::span<const std::byte> literal, const Preamble& preamble, const NpyOptions& options) {
  const std::string_view text(reinterpret_cast<const char*>(literal.data()), literal.size());
  const std::size_t valid = io_detail::valid_utf8_prefix(text);
  if (preamble.utf8 && valid != text.size())
    fail("InvalidHeader", "not UTF-8", size_add(preamble.literal_offset, valid, kNpy));
  Header header = LiteralParser(text, preamble.literal_offset, options).parse();
  std::uint64_t elements = 1;
  for (const index_t dimension : header.shape) {
    const auto product = try_mul(elements, static_cast<std::uint64_t>(dimension));
    if (!product || !std::in_range<index_t>(*product))
      fail("ValidationOverflow", "the shape has more elements than 63 bits count", preamble.literal_offset);
    elements = *product;
  }
  const auto bytes = try_mul(elements, static_cast<std::uint64_t>(header.type.bytes));
  if (!bytes || !std::in_range<index_t>(*bytes))
    fail("ValidationOverflow", "the array has more bytes than 63 bits count", preamble.literal_offset);
  header.data_bytes = *bytes;
  return header;
}

/// Reverses the bytes of every number; a complex number is two.
void swap_bytes(std::span<std::byte> data, NpyType type) {
  const auto unit = static_cast<std::size_t>(type.kind == 'c' ? type.bytes / 2 : type.bytes);
  for (; data.size() >= unit; data = data.subspan(unit)) {
    const std::span<std::byte> number = data.first(unit);
    std::reverse(number.begin(), number.end());
  }
}

/// Column-major to row-major: walks the destination in order and the source by strides, like an odometer.
AlignedBuffer<std::byte> row_major_copy(std::span<const std::byte> src, const Header& header) {
  auto dst = AlignedBuffer<std::byte>::uninitialized(size_cast<index_t>(src.size(), kNpy));
  if (src.empty()) return dst;  // the strides of an array without elements may overflow
  const auto item = static_cast<std::size_t>(header.type.bytes);
  const std::size_t rank = header.shape.size();
  std::vector<std::uint64_t> strides(rank), at(rank, 0);
  std::uint64_t stride = item;
  for (std::size_t d = 0; d < rank; ++d) {
    strides[d] = stride;
    stride = size_mul(stride, static_cast<std::uint64_t>(header.shape[d]), kNpy);
  }
  std::uint64_t offset = 0;
  for (std::span<std::byte> out = dst.span(); !out.empty(); out = out.subspan(item)) {
    const auto element = slice(src, offset, item, kNpy);
    std::copy(element.begin(), element.end(), out.begin());
    for (std::size_t d = rank; d-- > 0;) {
      offset = size_add(offset, strides[d], kNpy);
      if (++at[d] < static_cast<std::uint64_t>(header.shape[d])) break;
      offset = size_sub(offset, size_mul(strides[d], at[d], kNpy), kNpy);
      at[d] = 0;
    }
  }
  return dst;
}

/// The array of `data`, converted where it must be.
NpyArray finish(Header header, SharedBytes data) {
  NpyArray array;
  array.type = header.type;
  array.was_big_endian = header.big_endian;
  array.was_fortran_order = header.fortran_order && header.shape.size() > 1;
  if (array.was_fortran_order || header.big_endian) {
    AlignedBuffer<std::byte> copy;
    if (array.was_fortran_order) {
      copy = row_major_copy(data.bytes, header);
    } else {
      copy = AlignedBuffer<std::byte>::uninitialized(size_cast<index_t>(data.bytes.size(), kNpy));
      std::copy(data.bytes.begin(), data.bytes.end(), copy.begin());
    }
    if (header.big_endian) swap_bytes(copy.span(), header.type);
    data = SharedBytes(std::move(copy));
  }
  array.shape = std::move(header.shape);
  array.data = std::move(data);
  return array;
}

/// The preamble and literal numpy.save writes for this array.
std::string header_text(NpyType type, const std::vector<index_t>& shape, std::uint64_t data_bytes) {
  std::uint64_t elements = 1;
  std::string dimensions;
  for (const index_t dimension : shape) {
    elements = size_mul(elements, size_cast<std::uint64_t>(dimension, "write_npy"), "write_npy");
    fmt::format_to(std::back_inserter(dimensions), "{}{}", dimensions.empty() ? "" : ", ", dimension);
  }
  if (shape.size() == 1) dimensions.push_back(',');
  const std::uint64_t needed = size_mul(elements, static_cast<std::uint64_t>(type.bytes), "write_npy");
  if (needed != data_bytes)
    throw ShapeError(fmt::format("write_npy: data has {} bytes, ({}) of {} needs {}", data_bytes, dimensions,
                                 to_string(type), needed));
  std::string literal = fmt::format("{{'descr': '{}{}', 'fortran_order': False, 'shape': ({}), }}",
                                    type.bytes == 1 ? '|' : '<', to_string(type), dimensions);
  constexpr std::uint64_t kPreamble = 10;
  const std::uint64_t used = size_add(size_add(kPreamble, literal.size(), "write_npy"), 1, "write_npy");
  const std::uint64_t total = size_round_up(used, kAlignment, "write_npy");
  literal.append(size_sub(total, used, "write_npy"), ' ').push_back('\n');
  if (literal.size() > 0xffff) throw ShapeError("write_npy: the shape is too long for a header");
  std::string text(kMagic);
  text.push_back('\1');
  text.push_back('\0');
  text.push_back(static_cast<char>(literal.size() & 0xff));
  text.push_back(static_cast<char>(literal.size() >> 8));
  text.append(literal);
  return text;
}

}  // namespace

std::string to_string(NpyType type) { return fmt::format("{}{}", type.kind, type.bytes); }

NpyArray parse_npy(SharedBytes bytes, const NpyOptions& options) {
  const std::span<const std::byte> all = bytes.bytes;
  const Preamble preamble = parse_preamble(all.first(std::min(all.size(), kLongestPreamble)), options);
  const auto data_offset = size_add(preamble.literal_offset, preamble.literal_bytes, kNpy);
  if (data_offset > all.size()) fail("TruncatedHeader", "the file ends in its header", all.size());
  Header header = parse_header(slice(all, preamble.literal_offset, preamble.literal_bytes, kNpy), preamble, options);
  const std::uint64_t rest = size_sub(all.size(), data_offset, kNpy);
  if (rest < header.data_bytes)
    fail("TruncatedData", fmt::format("the array needs {} bytes, {} are there", header.data_bytes, rest), all.size());
  const std::uint64_t trailing = size_sub(rest, header.data_bytes, kNpy);
  if (options.strict && trailing != 0)
    fail("TrailingData", fmt::format("{} bytes follow the array", trailing),
         size_add(data_offset, header.data_bytes, kNpy));
  const std::uint64_t count = header.data_bytes;
  NpyArray array = finish(std::move(header), SharedBytes(slice(all, data_offset, count, kNpy), std::move(bytes.owner)));
  array.trailing_bytes = trailing;
  return array;
}

NpyArray read_npy(const std::filesystem::path& path, const NpyOptions& options) {
  const auto mapping = MappedFile::open(path);
  try {
    return parse_npy(SharedBytes(mapping->bytes(), mapping), options);
  } catch (const FormatError& error) {
    throw FormatError(fmt::format("'{}': {}", path.string(), error.what()), error.code(), error.byte_offset());
  }
}

NpyArray read_npy(std::istream& stream, const NpyOptions& options) {
  // Up to `count` bytes more, in steps, so that a false count costs no memory.
  const auto read_more = [&stream](std::string& into, std::uint64_t count) {
    constexpr std::uint64_t kStep = std::uint64_t{1} << 22;  // arithmetic: a constant
    while (count != 0) {
      const std::size_t before = into.size();
      const auto step = static_cast<std::size_t>(std::min(count, kStep));
      into.resize(size_add(before, step, kNpy));
      stream.read(&into[before], static_cast<std::streamsize>(step));
      const auto got = static_cast<std::size_t>(stream.gcount());
      into.resize(size_add(before, got, kNpy));
      if (got != step) return;
      count = size_sub(count, got, kNpy);
    }
  };
  const auto bytes_of = [](const std::string& text) { return std::as_bytes(std::span(text.data(), text.size())); };
  std::string head;
  read_more(head, 10);
  if (head.size() == 10 && head[6] > 1) read_more(head, 2);  // versions 2 and 3 have a longer length field
  const Preamble preamble = parse_preamble(bytes_of(head), options);
  std::string literal;
  read_more(literal, preamble.literal_bytes);
  if (literal.size() != preamble.literal_bytes)
    fail("TruncatedHeader", "the stream ends in the header", size_add(head.size(), literal.size(), kNpy));
  Header header = parse_header(bytes_of(literal), preamble, options);
  auto data = std::make_shared<std::string>();
  read_more(*data, header.data_bytes);
  if (data->size() != header.data_bytes)
    fail("TruncatedData", fmt::format("the array needs {} bytes, {} arrived", header.data_bytes, data->size()),
         size_add(size_add(head.size(), literal.size(), kNpy), data->size(), kNpy));
  const std::span<const std::byte> bytes = bytes_of(*data);
  return finish(std::move(header), SharedBytes(bytes, std::move(data)));
}

void write_npy(const std::filesystem::path& path, NpyType type, const std::vector<index_t>& shape,
               std::span<const std::byte> data) {
  const std::string head = header_text(type, shape, data.size());
  AtomicFile file(path);
  file.resize(size_add(head.size(), data.size(), "write_npy"));
  file.write(0, head);
  file.write(head.size(), data);
  file.commit();
}

void write_npy(std::ostream& stream, NpyType type, const std::vector<index_t>& shape, std::span<const std::byte> data) {
  const std::string head = header_text(type, shape, data.size());
  stream.write(head.data(), static_cast<std::streamsize>(head.size()));
  stream.write(reinterpret_cast<const char*>(data.data()), size_cast<std::streamsize>(data.size(), "write_npy"));
  stream.flush();
  if (!stream) throw IoError("write_npy: the stream takes no more bytes; is the disk full?", EIO);
}

namespace detail {

std::size_t npy_count(const NpyArray& array, NpyType wanted) {
  if (!(array.type == wanted))
    throw ShapeError(
        fmt::format("NpyArray::values: the elements are {}, not {}", to_string(array.type), to_string(wanted)));
  return array.data.bytes.size() / static_cast<std::size_t>(wanted.bytes);
}

}  // namespace detail

}  // namespace blockpack::inline BLOCKPACK_ABI
