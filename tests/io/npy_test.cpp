// SPDX-License-Identifier: Apache-2.0
#include "blockpack/io/npy.hpp"

#include <fmt/format.h>

#include <numeric>
#include <sstream>

#include "io/io_support.hpp"
#include "support/catch.hpp"

using namespace blockpack;
using namespace blockpack::test;
using Shape = std::vector<index_t>;

namespace {

/// An npy image of version 1 (or another) around a literal.
std::string npy(std::string_view literal, std::string_view data, char major = 1) {
  std::string text = "\x93NUMPY";
  text.push_back(major);
  text.push_back('\0');
  for (int i = 0; i < (major == 1 ? 2 : 4); ++i) text.push_back(static_cast<char>(literal.size() >> (8 * i) & 0xff));
  return text.append(literal).append(data);
}
std::string described(std::string_view descr, std::string_view order, std::string_view shape) {
  return fmt::format("{{'descr': '{}', 'fortran_order': {}, 'shape': {}, }}", descr, order, shape);
}
NpyArray parse(std::string_view bytes, const NpyOptions& options = {}) {
  auto image = std::make_shared<const std::string>(bytes);
  return parse_npy(SharedBytes(bytes_of(*image), image), options);
}
std::string code_of(std::string_view bytes, const NpyOptions& options = {}) {
  try {
    parse(bytes, options);
    return "";
  } catch (const FormatError& error) {
    return error.code();
  }
}
template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace

TEST_CASE("npy values come back in row-major order and the byte order of the machine", "[io]") {
  const std::vector<std::int32_t> values = {1, -2, 3, 4, 5, 0x01020304};
  CHECK(parse(npy(described("<i4", "False", "(2, 3)"), raw(values))).values<std::int32_t>() == values);
  // Column-major [2, 3]: the file runs down the columns.
  const auto fortran = parse(npy(described("<i4", "True", "(2, 3)"), raw<std::int32_t>({1, 4, -2, 5, 3, 0x01020304})));
  CHECK(fortran.was_fortran_order);
  CHECK(fortran.values<std::int32_t>() == values);
  const auto big = parse(npy(described(">i4", "False", "(2,)"), std::string("\1\2\3\4\0\0\0\7", 8)));
  CHECK(big.was_big_endian);
  CHECK(big.values<std::int32_t>() == std::vector<std::int32_t>{0x01020304, 7});
  const auto complex = parse(npy(described(">c8", "False", "(1,)"), std::string("\x3f\x80\0\0\x40\0\0\0", 8)));
  float parts[2];
  std::memcpy(parts, complex.data.bytes.data(), 8);
  CHECK((parts[0] == 1.0f && parts[1] == 2.0f));
  CHECK_THROWS_AS(big.values<float>(), ShapeError);
  CHECK_THROWS_AS(big.values<std::uint32_t>(), ShapeError);
}

TEST_CASE("column-major arrays of any rank, empty ones too", "[io]") {
  for (const Shape& shape : {Shape{2, 3, 4}, Shape{1, 5, 1, 2}, Shape{3, 0, 2}, Shape{7}, Shape{}}) {
    index_t count = 1;
    std::string text = "(";
    for (const index_t d : shape) {
      count *= d;
      text += std::to_string(d) + ",";
    }
    std::vector<std::uint16_t> row_major(static_cast<std::size_t>(count)), column_major(row_major.size());
    std::iota(row_major.begin(), row_major.end(), std::uint16_t{0});
    for (index_t i = 0; i < count; ++i) {  // the coordinates of element i, last dimension fastest
      index_t rest = i, at = 0, stride = count;
      for (std::size_t d = shape.size(); d-- > 0;) {
        stride /= shape[d];
        at += rest % shape[d] * stride;
        rest /= shape[d];
      }
      column_major[static_cast<std::size_t>(at)] = row_major[static_cast<std::size_t>(i)];
    }
    const auto array = parse(npy(described("<u2", "True", text + ")"), raw(column_major)));
    CHECK(array.shape == shape);
    CHECK(array.values<std::uint16_t>() == row_major);
  }
}

TEST_CASE("a column-major array without elements has no strides that could overflow", "[io]") {
  const auto array = parse(npy(described("<f8", "True", "(2305843009213693951, 3, 0)"), ""));
  CHECK(array.shape == Shape{2305843009213693951, 3, 0});
  CHECK(array.values<double>().empty());
}

TEST_CASE("npy headers that are not exactly right are refused", "[io]") {
  const std::string data(4, '\0');
  const std::string good = described("<f4", "False", "(1,)");
  CHECK(code_of(npy(good, data)) == "");
  CHECK(code_of(npy(good + " \n", data)) == "");
  CHECK(code_of(npy("{'shape':(1,),'fortran_order':False,\"descr\":'<f4'}", data)) == "");
  CHECK(code_of(npy(described("<f4", "False", "(1L,)"), data)) == "");
  for (const char* literal : {"",
                              "{",
                              "{}",
                              "[]",
                              "{'descr': '<f4', 'fortran_order': False}",
                              "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'shape': (1,)}",
                              "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}",
                              "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}",
                              "{'descr': '<f4', 'fortran_order': false, 'shape': (1,)}",
                              "{'descr': '<f4', 'fortran_order': False, 'shape': (1)}",
                              "{'descr': '<f4', 'fortran_order': False, 'shape': 1}",
                              "{'descr': '<f4', 'fortran_order': False, 'shape': [1]}",
                              "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
                              "{'descr': '<f4', 'fortran_order': False, 'shape': (01,)}",
                              "{'descr': '<f4', 'fortran_order': False, 'shape': (1.0,)}",
                              "{'descr': '<f4', 'fortran_order': False, 'shape': (1 1)}",
                              "{'descr': '<f4', 'fortran_order': False, 'shape': (,)}",
                              "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)",
                              "{'descr': '<f4' 'fortran_order': False, 'shape': (1,)}",
                              "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x",
                              "{'descr: '<f4', 'fortran_order': False, 'shape': (1,)}",
                              "{'descr': '\\x3cf4', 'fortran_order': False, 'shape': (1,)}"}) {
    CAPTURE(literal);
    CHECK(code_of(npy(literal, data)) == "InvalidHeader");
  }
  for (const char* type : {"<f3", "|O", "<U4", "|S4", "|V4", "f16", "<c4", "", "<", ">>f4", "|f4", "<m8", "<M8[s]"}) {
    CAPTURE(type);
    CHECK(code_of(npy(described(type, "False", "(1,)"), std::string(16, '\0'))) == "UnsupportedType");
  }
  for (const char* type : {"?", "|b1", "|u1", "<u1", "=f4", "f4", ">f8", "<c16"})
    CHECK(code_of(npy(described(type, "False", "(1,)"), std::string(16, '\0'))) == "");
  CHECK(code_of(npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", data)) == "UnsupportedType");
  CHECK(code_of(npy(described("<f4", "False", "(9223372036854775808,)"), data)) == "ValidationOverflow");
  CHECK(code_of(npy(described("<f4", "False", "(4294967296, 4294967296)"), data)) == "ValidationOverflow");
  CHECK(code_of(npy(described("<f8", "False", "(2305843009213693952,)"), data)) == "ValidationOverflow");
  CHECK(code_of(npy(described("<f4", "False", "(1000000000000,)"), data)) == "TruncatedData");
  CHECK(code_of(npy(good + "\xff", data, 3)) == "InvalidHeader");
  CHECK(code_of(npy(good, data, 4)) == "UnsupportedVersion");
  CHECK(code_of(npy(good, data, 2)) == "");
  std::string many = "(";
  for (int i = 0; i < 65; ++i) many += "1,";
  CHECK(code_of(npy(described("<f4", "False", many + ")"), data)) == "LimitExceeded");
}

TEST_CASE("npy limits, strict mode and every cut", "[io]") {
  const std::string whole = npy(described("<f4", "False", "(2,)"), "12345678");
  for (std::size_t n = 0; n < whole.size(); ++n) {
    CAPTURE(n);
    REQUIRE(code_of(std::string_view(whole).substr(0, n)) != "");
    std::istringstream stream(whole.substr(0, n));
    REQUIRE_THROWS_AS(read_npy(stream), FormatError);
  }
  NpyOptions strict;
  strict.strict = true;
  CHECK(code_of(whole, strict) == "");
  CHECK(code_of(whole + "x") == "");
  CHECK(parse(whole + "x").trailing_bytes == 1);
  CHECK(code_of(whole + "x", strict) == "TrailingData");
  const std::string padded = described("<f4", "False", "(2,)") + std::string(10000, ' ');
  CHECK(code_of(npy(padded, "12345678")) == "HeaderTooLarge");
  NpyOptions larger;
  larger.max_header_bytes = 20000;
  CHECK(code_of(npy(padded, "12345678"), larger) == "");
}

TEST_CASE("arrays follow each other in a stream, and a false size costs no memory", "[io]") {
  std::stringstream stream;
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  write_npy(stream, {'f', 4}, {2, 3}, std::as_bytes(std::span(values)));
  write_npy(stream, {'b', 1}, {}, bytes_of(std::string_view("\1", 1)));
  write_npy(stream, {'f', 8}, {0}, {});
  CHECK(read_npy(stream).values<float>() == values);
  CHECK(read_npy(stream).values<bool>() == std::vector<bool>{true});
  CHECK(read_npy(stream).values<double>().empty());
  CHECK_THROWS_AS(read_npy(stream), FormatError);
  std::istringstream lying(npy(described("<f8", "False", "(100000000000,)"), "12345678"));
  CHECK_THROWS_AS(read_npy(lying), FormatError);
}

TEST_CASE("the npy writer gives the bytes of numpy.save", "[io]") {
  const TempFolder folder;
  const auto save = [&](const Shape& shape) {
    index_t count = 1;
    for (const index_t d : shape) count *= d;
    const std::vector<float> values(static_cast<std::size_t>(count), 1.5f);
    write_npy<float>(folder / "a.npy", shape, values);
    CHECK(read_npy(folder / "a.npy").values<float>() == values);
    const std::string bytes = slurp(folder / "a.npy");
    CHECK((bytes.size() - static_cast<std::size_t>(count) * 4) % 64 == 0);
    return bytes.substr(10, bytes.find('\n') - 10);
  };
  const auto trimmed = [&](const Shape& shape) {
    std::string text = save(shape);
    return text.erase(text.find_last_not_of(' ') + 1);
  };
  CHECK(trimmed({}) == "{'descr': '<f4', 'fortran_order': False, 'shape': (), }");
  CHECK(trimmed({3}) == "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }");
  CHECK(trimmed({2, 3}) == "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }");
  CHECK(trimmed({2, 0, 3}) == "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 0, 3), }");
  const std::uint8_t byte = 1;
  write_npy<std::uint8_t>(folder / "a.npy", {1}, std::span(&byte, 1));
  CHECK(slurp(folder / "a.npy").find("'|u1'") != std::string::npos);
  CHECK_THROWS_AS((write_npy<std::uint8_t>(folder / "a.npy", {2}, std::span(&byte, 1))), ShapeError);
  CHECK_THROWS_AS((write_npy<std::uint8_t>(folder / "a.npy", {-1}, std::span(&byte, 1))), ShapeError);
}
