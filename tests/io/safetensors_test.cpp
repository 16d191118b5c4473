// SPDX-License-Identifier: Apache-2.0
// The reader against hostile headers, limits and damage; its errors say what and where.
#include "blockpack/io/safetensors.hpp"

#include <fmt/format.h>
#include <ctime>

#include "blockpack/core/random.hpp"
#include "blockpack/io.hpp"
#include "io/io_support.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"

using namespace blockpack;
using namespace blockpack::test;

namespace {

/// The code of the error, "" when the image is accepted.
std::string code_of(std::string_view bytes, const ReadLimits& limits = {}) {
  try {
    SafetensorsFile::parse(bytes_of(bytes), limits);
    return "";
  } catch (const FormatError& error) {
    return error.code();
  }
}

/// A one-byte tensor whose record has these further fields.
std::string with_fields(std::string_view fields) {
  return image(fmt::format(R"({{"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]{}}}}})", fields), "x");
}

constexpr const char* kRecord = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";

}  // namespace

TEST_CASE("a key used twice is refused at every level", "[io]") {
  const std::string one = kRecord;
  const std::string two = R"({"dtype":"U8","shape":[1],"data_offsets":[1,2]})";
  CHECK(code_of(image(R"({"a":)" + one + R"(,"b":)" + two + "}", "xy")) == "");
  CHECK(code_of(image(R"({"a":)" + one + R"(,"a":)" + two + "}", "xy")) == "DuplicateKey");
  CHECK(code_of(image(R"({"a":)" + one + R"(,"\u0061":)" + two + "}", "xy")) == "DuplicateKey");
  CHECK(code_of(image(R"({"__metadata__":{},"__metadata__":{}})")) == "DuplicateKey");
  CHECK(code_of(image(R"({"__metadata__":{"k":"v","l":"v","k":"v"}})")) == "DuplicateKey");
  CHECK(code_of(with_fields(R"(,"dtype":"U8")")) == "DuplicateKey");
  CHECK(code_of(with_fields(R"(,"shape":[1])")) == "DuplicateKey");
  CHECK(code_of(with_fields(R"(,"data_offsets":[0,1])")) == "DuplicateKey");
  CHECK(code_of(with_fields(R"(,"x":1,"x":1)")) == "DuplicateKey");
  CHECK(code_of(with_fields(R"(,"x":{"y":[{"z":1,"z":2}]})")) == "DuplicateKey");
  CHECK(code_of(with_fields(R"(,"x":{"z":{"z":{"z":1}}},"z":[{"z":1},{"z":1}])")) == "");
}

TEST_CASE("fields that are not known are ignored whatever they hold", "[io]") {
  for (const char* value : {"null", "true", "-1", "1.5", "1e3", R"("s")", "[]", "{}", R"([1,[2,{"a":[]}],"x"])",
                            R"({"dtype":"F32","shape":[-1],"data_offsets":"no"})"}) {
    CAPTURE(value);
    CHECK(code_of(with_fields(fmt::format(R"(,"extra":{})", value))) == "");
  }
}

TEST_CASE("sizes are plain integers that fit", "[io]") {
  const auto shape = [](std::string_view text) {
    return code_of(image(fmt::format(R"({{"a":{{"dtype":"U8","shape":{},"data_offsets":[0,1]}}}})", text), "x"));
  };
  CHECK(shape("[1]") == "");
  CHECK(shape("[1,1,1]") == "");
  CHECK(shape("[]") == "");
  for (const char* text : {"[1.0]",
                           "[1e0]",
                           "[\"1\"]",
                           "[-1]",
                           "[-0]",
                           "[01]",
                           "[+1]",
                           "[0x1]",
                           "[1,]",
                           "[[1]]",
                           "[null]",
                           "[true]",
                           "1",
                           "{}",
                           "null",
                           "\"1\"",
                           "[18446744073709551616]",
                           "[1e400]",
                           "[NaN]",
                           "[Infinity]"}) {
    CAPTURE(text);
    CHECK(shape(text) == "InvalidHeaderDeserialization");
  }
  CHECK(shape("[18446744073709551615]") == "ValidationOverflow");
  CHECK(shape("[0,9223372036854775808]") == "ValidationOverflow");
  CHECK(shape("[4294967296,4294967296]") == "ValidationOverflow");
  CHECK(shape("[4611686018427387904]") == "ValidationOverflow");
  CHECK(shape("[2]") == "TensorInvalidInfo");
}

TEST_CASE("NUL bytes, byte-order marks, comments and bytes that are no UTF-8 are refused", "[io]") {
  const std::string body = fmt::format(R"("a":{}}})", kRecord);
  using namespace std::string_literals;
  CHECK(code_of(image("{" + body, "x")) == "");
  CHECK(code_of(image("{" + body + "\0"s, "x")) == "InvalidHeaderDeserialization");
  CHECK(code_of(image("\0{"s + body, "x")) == "InvalidHeaderDeserialization");
  CHECK(code_of(image("{\"\0\":"s + kRecord + "}", "x")) == "InvalidHeaderDeserialization");
  CHECK(code_of(image("{\"\\u0000\":"s + kRecord + "}", "x")) == "");  // an escape is a legal name
  CHECK(code_of(image("\xef\xbb\xbf{" + body, "x")) == "InvalidHeaderDeserialization");
  CHECK(code_of(image("{/* */" + body, "x")) == "InvalidHeaderDeserialization");
  CHECK(code_of(image("{" + body + "//", "x")) == "InvalidHeaderDeserialization");
  CHECK(code_of(image("{" + body + "{}", "x")) == "InvalidHeaderDeserialization");
  CHECK(code_of(image("{\"\t\":"s + kRecord + "}", "x")) == "InvalidHeaderDeserialization");
  CHECK(code_of(image("{\"\\ud800\":"s + kRecord + "}", "x")) == "InvalidHeaderDeserialization");
  for (const char* bad : {"\x80", "\xc0\xaf", "\xc1\xbf", "\xe0\x80\xaf", "\xed\xa0\x80", "\xf0\x80\x80\xaf",
                          "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xc3", "\xe2\x82", "\xf0\x9f\x98"}) {
    CHECK(code_of(image(fmt::format("{{\"{}\":{}}}", bad, kRecord), "x")) == "InvalidHeader");
    CHECK(code_of(image(bad)) == "InvalidHeader");
  }
  for (const char* good :
       {"\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"})
    CHECK(code_of(image(fmt::format("{{\"{}\":{}}}", good, kRecord), "x")) == "");
}

TEST_CASE("nesting is read to 128 levels", "[io]") {
  const auto nested = [](std::size_t levels) {  // two levels are the document and the record
    return with_fields(",\"x\":" + std::string(levels - 2, '[') + std::string(levels - 2, ']'));
  };
  CHECK(code_of(nested(128)) == "");
  CHECK(code_of(nested(129)) == "InvalidHeaderDeserialization");
  CHECK(code_of(nested(1000000)) == "InvalidHeaderDeserialization");
}

TEST_CASE("limits stop a reader before it spends memory", "[io]") {
  const std::string two = fmt::format(R"({{"long":{},"b":{{"dtype":"U8","shape":[1,1],"data_offsets":[1,2]}},)"
                                      R"("__metadata__":{{"k":"","l":""}}}})",
                                      kRecord);
  const std::string bytes = image(two, "xy");
  const auto limited = [&](auto member, std::uint64_t value) {
    ReadLimits limits;
    limits.*member = value;
    return code_of(bytes, limits);
  };
  CHECK(code_of(bytes) == "");
  CHECK(limited(&ReadLimits::max_tensors, 2) == "");
  CHECK(limited(&ReadLimits::max_tensors, 1) == "LimitExceeded");
  CHECK(limited(&ReadLimits::max_metadata_entries, 2) == "");
  CHECK(limited(&ReadLimits::max_metadata_entries, 1) == "LimitExceeded");
  CHECK(limited(&ReadLimits::max_name_bytes, 12) == "");
  CHECK(limited(&ReadLimits::max_name_bytes, 3) == "LimitExceeded");
  CHECK(limited(&ReadLimits::max_rank, 2) == "");
  CHECK(limited(&ReadLimits::max_rank, 1) == "LimitExceeded");
  CHECK(limited(&ReadLimits::max_header_bytes, two.size()) == "");
  CHECK(limited(&ReadLimits::max_header_bytes, two.size() - 1) == "HeaderTooLarge");
  CHECK(code_of(image(fmt::format(R"({{"{}":{}}})", std::string(65537, 'n'), kRecord), "x")) == "LimitExceeded");
}

TEST_CASE("an error names the file, the tensor and the byte", "[io]") {
  const TempFolder folder;
  const std::string header = R"({"good":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("bad\none":{"dtype":"F32","shape":[2],"data_offsets":[1,5]}})";
  spit(folder / "m.safetensors", image(header, "12345"));
  try {
    SafetensorsFile::open(folder / "m.safetensors");
    FAIL("accepted");
  } catch (const FormatError& error) {
    CHECK(error.code() == "TensorInvalidInfo");
    CHECK(error.tensor() == "bad\none");
    CHECK(error.byte_offset() == static_cast<std::int64_t>(8 + header.find("bad") + 9));
    CHECK_THAT(error.what(), Catch::Contains("m.safetensors") && Catch::Contains("bad\\x0aone") &&
                                 Catch::Contains("4 bytes") && Catch::Contains("need 8"));
  }
  const std::string syntax = image(R"({"a":{"dtype":"U8" "shape":[1],"data_offsets":[0,1]}})", "x");
  try {
    SafetensorsFile::parse(bytes_of(syntax));
    FAIL("accepted");
  } catch (const FormatError& error) {
    CHECK(error.byte_offset() > 8 + 18);
    CHECK(error.byte_offset() < 8 + 30);
  }
}

TEST_CASE("a file cut at any byte, or longer by one, is refused", "[io]") {
  const std::string whole = image(
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}})",
      "123456789");
  REQUIRE(code_of(whole) == "");
  for (std::size_t n = 0; n < whole.size(); ++n) {
    CAPTURE(n);
    REQUIRE(code_of(std::string_view(whole).substr(0, n)) != "");
  }
  CHECK(code_of(whole + "x") == "MetadataIncompleteBuffer");
  const TempFolder folder;
  for (const std::size_t n : {std::size_t{0}, std::size_t{7}, std::size_t{8}, std::size_t{60}, whole.size() - 1}) {
    spit(folder / "cut", std::string_view(whole).substr(0, n));
    CHECK_THROWS_AS(SafetensorsFile::open(folder / "cut"), FormatError);
  }
}

TEST_CASE("a damaged file is refused, or its tensors still lie inside it", "[io]") {
  const std::string whole = image(R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                  R"("b":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}})",
                                  "123456789");
  Random random(3);
  int accepted = 0, refused = 0;
  const auto look = [&](const std::string& bytes) {
    try {
      const auto file = SafetensorsFile::parse(bytes_of(bytes));
      ++accepted;
      for (const Tensor& tensor : file.tensors()) {
        REQUIRE(tensor_bytes(tensor.spec()) == tensor.data.bytes.size());
        const auto* const begin = reinterpret_cast<const std::byte*>(bytes.data());
        REQUIRE(tensor.data.bytes.data() >= begin);
        REQUIRE(tensor.data.bytes.data() + tensor.data.bytes.size() <= begin + bytes.size());
        REQUIRE(file.find(tensor.name) == &tensor);
      }
    } catch (const FormatError&) {
      ++refused;
    }
  };
  for (std::size_t i = 0; i < whole.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      std::string bytes = whole;
      bytes[i] = static_cast<char>(bytes[i] ^ (1 << bit));
      look(bytes);
    }
  for (int i = 0; i < 3000; ++i) {
    std::string bytes = whole;
    for (int k = 0; k < 3; ++k)
      bytes[random.below(static_cast<std::uint32_t>(bytes.size()))] = "\"{}[],:09"[random.below(9)];
    look(bytes);
  }
  CHECK(accepted > 100);
  CHECK(refused > 1000);
}

TEST_CASE("tensors keep the bytes of the file alive", "[io]") {
  AlignedBuffer<std::byte> buffer(16 + 56);
  const std::string bytes = image(fmt::format(R"({{"a":{}}})", kRecord), "x");
  buffer = AlignedBuffer<std::byte>(static_cast<index_t>(bytes.size()));
  std::memcpy(buffer.data(), bytes.data(), bytes.size());
  Tensor tensor;
  {
    const auto file = SafetensorsFile::parse(SharedBytes(std::move(buffer)));
    tensor = file.tensor("a");
  }
  CHECK(tensor.data.bytes[0] == std::byte{'x'});
  const TempFolder folder;
  spit(folder / "m.safetensors", bytes);
  tensor = SafetensorsFile::open(folder / "m.safetensors").tensor("a");
  spit(folder / "other", bytes);
  std::filesystem::rename(folder / "other", folder / "m.safetensors");  // as every writer here replaces
  CHECK(tensor.data.bytes[0] == std::byte{'x'});
  CHECK_THROWS_AS(SafetensorsFile::parse(bytes_of(bytes)).tensor("b"), ValueError);
}

TEST_CASE("the time to open grows linearly with the header, to 200,000 tensors", "[io]") {
  const auto header_of = [](int tensors) {
    std::string text = "{";
    for (int i = 0; i < tensors; ++i)
      text += fmt::format(
          R"({}"model.layers.{}.mlp.experts.{}.weight":{{"dtype":"U8","shape":[1],"data_offsets":[{},{}]}})",
          i == 0 ? "" : ",", i / 1000, i % 1000, i, i + 1);
    return image(text + "}", std::string(static_cast<std::size_t>(tensors), 'x'));
  };
  const auto cpu_seconds = [](const std::string& bytes, int tensors) {
    double best = 1e9;
    for (int i = 0; i < 3; ++i) {
      const std::clock_t start = std::clock();  // of the processor: the machine may be busy with other things
      const auto file = SafetensorsFile::parse(bytes_of(bytes));
      best = std::min(best, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
      REQUIRE(file.tensors().size() == static_cast<std::size_t>(tensors));
    }
    return best;
  };
  const int large = budget(200000, 40000), small = large / 64;
  const double ratio = cpu_seconds(header_of(large), large) / cpu_seconds(header_of(small), small);
  CAPTURE(ratio);
  // 64 when linear, 4096 when quadratic; memory beyond the caches and a busy machine lie between.
  CHECK(ratio < 8 * 64);
}
