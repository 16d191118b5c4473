// SPDX-License-Identifier: Apache-2.0
// GGUF: what is written comes back, whatever its type; hostile headers are refused for the right reason.
#include "blockpack/io/gguf.hpp"

#include <fmt/format.h>

#include <cstring>
#include <ctime>

#include "blockpack/core/random.hpp"
#include "blockpack/io.hpp"
#include "io/io_support.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"

using namespace blockpack;
using namespace blockpack::test;

namespace {

/// A file by hand: every field is what the test says, right or wrong.
struct Image {
  std::string bytes;

  template <class T>
  Image& number(T value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    bytes.append(raw, sizeof(T));
    return *this;
  }
  Image& u32(std::uint32_t value) { return number(value); }
  Image& u64(std::uint64_t value) { return number(value); }
  Image& string(std::string_view text) { return u64(text.size()), bytes.append(text), *this; }
  Image& start(std::uint64_t tensors, std::uint64_t entries) {
    bytes.append("GGUF");
    return u32(3).u64(tensors).u64(entries);
  }
  Image& tensor(std::string_view name, const std::vector<std::uint64_t>& dimensions, std::uint32_t type,
                std::uint64_t offset) {
    string(name).u32(static_cast<std::uint32_t>(dimensions.size()));
    for (const std::uint64_t d : dimensions) u64(d);
    return u32(type).u64(offset);
  }
  Image& data(std::size_t size) {
    bytes.resize((bytes.size() + 31) / 32 * 32, '\0');
    bytes.append(size, 'd');
    return *this;
  }
};

/// The code of the error, "" when the image is accepted.
std::string code_of(std::string_view bytes, const ReadLimits& limits = {}) {
  try {
    GgufFile::parse(bytes_of(bytes), limits);
    return "";
  } catch (const FormatError& error) {
    return error.code();
  }
}
std::string code_of(const Image& image, const ReadLimits& limits = {}) { return code_of(image.bytes, limits); }

/// One tensor of the dimensions in file order and this much data.
std::string code_of_shape(const std::vector<std::uint64_t>& dimensions, std::uint32_t type = 0,
                          std::size_t data_bytes = 64) {
  return code_of(Image().start(1, 0).tensor("a", dimensions, type, 0).data(data_bytes));
}

/// Metadata with a value of every type.
GgufMetadata every_type() {
  using namespace std::string_literals;
  return {{"u8", std::uint8_t{255}},
          {"i8", std::int8_t{-128}},
          {"u16", std::uint16_t{65535}},
          {"i16", std::int16_t{-32768}},
          {"u32", std::uint32_t{4294967295}},
          {"i32", std::int32_t{-5}},
          {"f32", 1.5f},
          {"bool", true},
          {"string", "ünï\0\xff"s},
          {"u64", ~std::uint64_t{0}},
          {"i64", std::int64_t{-6}},
          {"f64", 0.1},
          {"array.u8", GgufArray(std::vector<std::uint8_t>{1, 2, 3})},
          {"array.i8", GgufArray(std::vector<std::int8_t>{-1})},
          {"array.u16", GgufArray(std::vector<std::uint16_t>{1, 2})},
          {"array.i16", GgufArray(std::vector<std::int16_t>{-1, 2})},
          {"array.u32", GgufArray(std::vector<std::uint32_t>{7, 8, 9})},
          {"array.i32", GgufArray(std::vector<std::int32_t>{-7, 8})},
          {"array.f32", GgufArray(std::vector<float>{0.25f, -1.0f})},
          {"array.bool", GgufArray(std::vector<bool>{true, false, true})},
          {"array.string", GgufArray(std::vector<std::string>{"", "a", std::string(100, 'x')})},
          {"array.u64", GgufArray(std::vector<std::uint64_t>{~std::uint64_t{0}})},
          {"array.i64", GgufArray(std::vector<std::int64_t>{})},
          {"array.f64", GgufArray(std::vector<double>{1e300})}};
}

struct RandomModel {
  std::vector<GgufTensorSpec> specs;
  std::vector<std::string> bytes;
  GgufMetadata metadata;
};

RandomModel random_model(std::uint64_t seed) {
  Random random(seed);
  RandomModel model;
  const auto types = gguf_tensor_types();
  const std::uint32_t count = random.below(7);
  for (std::uint32_t t = 0; t < count; ++t) {
    const GgufTensorTypeInfo& type = types[random.below(static_cast<std::uint32_t>(types.size()))];
    GgufTensorSpec spec{fmt::format("blk.{}.weight", t), type.type, {}};
    const std::uint32_t rank = (type.block > 1 ? 1 : 0) + random.below(4);
    for (std::uint32_t i = 0; i < rank; ++i) spec.shape.push_back(random.below(5));
    if (rank > 0) spec.shape.back() = type.block * static_cast<index_t>(1 + random.below(3));
    std::string bytes(static_cast<std::size_t>(tensor_bytes(spec)), '\0');
    for (char& c : bytes) c = static_cast<char>(random.below(256));
    model.specs.push_back(std::move(spec));
    model.bytes.push_back(std::move(bytes));
  }
  if (random.below(2) == 1)
    model.metadata.push_back({std::string(kGgufAlignmentKey), std::uint32_t{1} << random.below(9)});
  for (const GgufEntry& entry : every_type())
    if (random.below(3) == 0) model.metadata.push_back(entry);
  return model;
}

void write(const std::filesystem::path& path, const RandomModel& model, std::uint64_t seed) {
  GgufWriter writer(path, model.specs, model.metadata);
  Random random(seed);
  for (std::size_t left = model.specs.size(); left-- > 0;) {  // backwards and in pieces
    const std::string_view bytes = model.bytes[left];
    const std::size_t cut = bytes.empty() ? 0 : random.below(static_cast<std::uint32_t>(bytes.size()));
    writer.write(model.specs[left].name, cut, bytes_of(bytes.substr(cut)));
    writer.write(model.specs[left].name, 0, bytes_of(bytes.substr(0, cut)));
  }
  writer.commit();
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

TEST_CASE("values of every type come back from a GGUF file", "[io][gguf]") {
  const TempFolder folder;
  GgufWriter(folder / "m.gguf", {}, every_type()).commit();
  const auto file = GgufFile::open(folder / "m.gguf");
  REQUIRE(file.metadata() == every_type());
  for (const GgufEntry& entry : file.metadata()) {
    CAPTURE(entry.key);
    REQUIRE(find_value(file.metadata(), entry.key) == &entry.value);
    // The position in the variant is the number of the type in the file.
    CHECK((entry.value.index() == 9) == entry.key.starts_with("array."));
  }
  CHECK(std::get<std::string>(*find_value(file.metadata(), "string")).size() == 7);
  CHECK(find_value(file.metadata(), "none") == nullptr);
}

TEST_CASE("random GGUF models come back as they were written, and writing them again gives the same bytes",
          "[io][gguf]") {
  const TempFolder folder;
  const auto path = folder / "m.gguf";
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    RandomModel model = random_model(seed);
    write(path, model, seed);
    const std::string once = slurp(path);
    ReadLimits strict;
    strict.strict = true;
    const auto file = GgufFile::open(path, strict);
    REQUIRE(file.tensors().size() == model.specs.size());
    REQUIRE(file.metadata() == model.metadata);
    for (std::size_t t = 0; t < model.specs.size(); ++t) {
      const GgufTensor& tensor = file.tensors()[t];
      REQUIRE(tensor.name == model.specs[t].name);
      REQUIRE(tensor.type == model.specs[t].type);
      REQUIRE(tensor.shape == model.specs[t].shape);
      REQUIRE(text_of(tensor.data.bytes) == model.bytes[t]);
      REQUIRE(file.find(tensor.name) == &tensor);
      if (!tensor.data.bytes.empty()) {
        const auto offset = static_cast<std::uint64_t>(tensor.data.bytes.data() - tensor.mapping->bytes().data());
        REQUIRE(offset % file.alignment() == 0);
        REQUIRE(offset >= file.data_offset());
      }
      REQUIRE(tensor_bytes(tensor.stored().spec()) == tensor.data.bytes.size());
    }
    write(path, model, seed + 1000);
    REQUIRE(slurp(path) == once);
  }
}

TEST_CASE("dimensions are row-major here and reversed in the file", "[io][gguf]") {
  const TempFolder folder;
  GgufWriter writer(folder / "m.gguf", {{"w", GgufTensorType::q8_0, {3, 64}}, {"b", GgufTensorType::bf16, {5}}});
  writer.write("w", 0, bytes_of(std::string(3 * 2 * 34, 'q')));
  writer.write("b", 0, bytes_of("0123456789"));
  writer.commit();
  Image expected = Image().start(2, 0).tensor("w", {64, 3}, 8, 0).tensor("b", {5}, 30, 224);
  expected.data(0).bytes.append(204, 'q').append(20, '\0').append("0123456789").append(22, '\0');
  CHECK(slurp(folder / "m.gguf") == expected.bytes);
  const auto file = GgufFile::open(folder / "m.gguf");
  CHECK(file.tensor("w").shape == std::vector<index_t>{3, 64});
  CHECK(file.tensor("w").stored().dtype == Dtype::u8);
  CHECK(file.tensor("w").stored().shape == std::vector<index_t>{3, 68});
  CHECK(file.tensor("b").stored().dtype == Dtype::bf16);
  CHECK_THROWS_AS(file.tensor("c"), ValueError);
}

TEST_CASE("the table of ggml types has every number once and the dtypes of plain types", "[io][gguf]") {
  std::uint32_t previous = 0;
  for (const GgufTensorTypeInfo& type : gguf_tensor_types()) {
    CAPTURE(type.name);
    CHECK(&gguf_tensor_type_info(type.type) == &type);
    CHECK((type.type == GgufTensorType::f32 || static_cast<std::uint32_t>(type.type) > previous));
    previous = static_cast<std::uint32_t>(type.type);
    if (!type.dtype) continue;
    CHECK(type.block == 1);
    CHECK(type.bytes * 8 == dtype_bits(*type.dtype));
    CHECK(to_string(*type.dtype) == type.name);
    CHECK(gguf_tensor_type_of(*type.dtype) == type.type);
  }
  CHECK(previous == 42);
  CHECK(gguf_tensor_types().size() == 35);
  CHECK_FALSE(gguf_tensor_type_of(Dtype::f8_e4m3));
  CHECK_FALSE(gguf_tensor_type_of(Dtype::u8));
}

TEST_CASE("hostile counts and lengths of GGUF are refused before anything is sized by them", "[io][gguf]") {
  const std::uint64_t huge[] = {std::uint64_t{1} << 31, std::uint64_t{1} << 40, (std::uint64_t{1} << 61) + 1,
                                std::uint64_t{1} << 62, std::uint64_t{1} << 63, ~std::uint64_t{0}};
  for (const std::uint64_t n : huge) {
    CAPTURE(n);
    CHECK(code_of(Image().start(n, 0).data(64)) == "InvalidCount");
    CHECK(code_of(Image().start(0, n).data(64)) == "InvalidCount");
    CHECK(code_of(Image().start(0, 1).u64(n).data(64)) == "UnexpectedEnd");                     // a key
    CHECK(code_of(Image().start(0, 1).string("k").u32(8).u64(n).data(64)) == "UnexpectedEnd");  // a string
    CHECK(code_of(Image().start(1, 0).u64(n).data(64)) == "UnexpectedEnd");                     // a name
    for (const std::uint32_t type : {0u, 1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u, 10u, 11u, 12u})        // an array
      CHECK(code_of(Image().start(0, 1).string("k").u32(9).u32(type).u64(n).data(64)) == "UnexpectedEnd");
    CHECK(code_of(Image().start(0, 1).string("k").u32(9).u32(8).u64(2).string("x").u64(n).data(64)) == "UnexpectedEnd");
    CHECK(code_of_shape({n}) != "");
    CHECK(code_of_shape({32, n}, 2) != "");
  }
  CHECK(code_of(Image().start(0, 1).string("k").u32(9).u32(9).u64(0).data(64)) == "InvalidValueType");
  CHECK(code_of(Image().start(0, 1).string("k").u32(9).u32(13).u64(0).data(64)) == "InvalidValueType");
  CHECK(code_of(Image().start(0, 1).string("k").u32(~0u).u64(0).data(64)) == "InvalidValueType");
  CHECK(code_of(Image().start(0, 1).string("k").u32(9).u32(7).u64(2).number('\1').number('\2').data(64)) ==
        "InvalidBool");
}

TEST_CASE("element counts of GGUF that wrap around are refused, at zero too", "[io][gguf]") {
  const auto power = [](int n) { return std::uint64_t{1} << n; };
  CHECK(code_of_shape({16}) == "");
  CHECK(code_of_shape({4, 2, 2, 1}) == "");
  CHECK(code_of_shape({}) == "");  // one element
  CHECK(code_of_shape({0}) == "");
  CHECK(code_of_shape({16, 0, 4}) == "");
  CHECK(code_of_shape({power(40), power(40)}) == "ValidationOverflow");  // wraps to 0: the reference lets it pass
  CHECK(code_of_shape({power(32), power(32)}) == "ValidationOverflow");
  CHECK(code_of_shape({power(16), power(16), power(16), power(16)}) == "ValidationOverflow");
  CHECK(code_of_shape({power(32), power(31)}) == "ValidationOverflow");      // 2^63
  CHECK(code_of_shape({power(33), power(31) + 1}) == "ValidationOverflow");  // wraps to 2^33
  CHECK(code_of_shape({power(31), power(31)}) == "ValidationOverflow");      // 2^62 elements of 4 bytes
  CHECK(code_of_shape({power(40), power(20)}, 2) == "MissingData");          // 2^60 elements of 18 / 32 bytes
  CHECK(code_of_shape({power(62)}, 24) == "MissingData");                    // 2^62 bytes
  CHECK(code_of_shape({power(63)}) == "InvalidShape");
  CHECK(code_of_shape({~std::uint64_t{0}}) == "InvalidShape");
  CHECK(code_of_shape({1, 1, 1, 1, 1}) == "InvalidShape");
  CHECK(code_of_shape({31}, 2) == "MisalignedRow");
  CHECK(code_of_shape({}, 2) == "MisalignedRow");
  CHECK(code_of_shape({31, 32}, 2) == "MisalignedRow");  // the first dimension of the file is the row
  CHECK(code_of_shape({32, 1}, 2) == "");
  CHECK(code_of_shape({32, 1}, 43) == "InvalidTensorType");
  for (const std::uint32_t removed : {4u, 5u, 31u, 32u, 33u, 36u, 37u, 38u})
    CHECK(code_of_shape({256}, removed, 1024) == "InvalidTensorType");
}

TEST_CASE("names and keys of GGUF mean the same to every reader", "[io][gguf]") {
  using namespace std::string_view_literals;
  const auto tensor = [](std::string_view name) {
    return code_of(Image().start(1, 0).tensor(name, {16}, 0, 0).data(64));
  };
  const auto key = [](std::string_view name) { return code_of(Image().start(0, 1).string(name).u32(10).u64(1)); };
  CHECK(tensor("ünï") == "");
  CHECK(tensor("") == "");
  CHECK(tensor("a\0b"sv) == "InvalidName");
  CHECK(tensor("\xff") == "InvalidName");
  CHECK(tensor(std::string(63, 'n')) == "");
  CHECK(tensor(std::string(64, 'n')) == "InvalidName");
  CHECK(key("k") == "");
  CHECK(key("") == "InvalidName");
  CHECK(key("k\0l"sv) == "InvalidName");
  CHECK(key("\xc0\x80") == "InvalidName");
  ReadLimits limits;
  limits.max_name_bytes = 10;
  CHECK(code_of(Image().start(0, 1).string("a key of 18 bytes.").u32(0).number('\1'), limits) == "LimitExceeded");
}

TEST_CASE("limits of GGUF files", "[io][gguf]") {
  const Image two = Image().start(2, 0).tensor("a", {0}, 0, 0).tensor("b", {0}, 0, 0);
  const Image entries = Image().start(0, 2).string("a").u32(0).number('\0').string("b").u32(0).number('\0');
  ReadLimits limits;
  limits.max_tensors = limits.max_metadata_entries = 2;
  CHECK(code_of(two, limits) == "");
  CHECK(code_of(entries, limits) == "");
  limits.max_tensors = limits.max_metadata_entries = 1;
  CHECK(code_of(two, limits) == "LimitExceeded");
  CHECK(code_of(entries, limits) == "LimitExceeded");
  limits = {};
  limits.max_header_bytes = entries.bytes.size() - 1;
  CHECK(code_of(entries, limits) == "LimitExceeded");
  Image array = Image().start(0, 1).string("k").u32(9).u32(0).u64(1000);
  array.bytes.append(1000, 'x');
  limits.max_header_bytes = 500;
  CHECK(code_of(array, limits) == "LimitExceeded");
  limits.max_header_bytes = array.bytes.size();
  CHECK(code_of(array, limits) == "");
}

TEST_CASE("strict reading of GGUF refuses bytes that belong to no tensor", "[io][gguf]") {
  ReadLimits strict;
  strict.strict = true;
  const Image whole = Image().start(2, 0).tensor("a", {8}, 24, 0).tensor("b", {9}, 24, 32).data(8);
  const std::string good = whole.bytes + std::string(24, '\0') + std::string(9, 'b');
  CHECK(code_of(good, strict) == "");
  CHECK(code_of(good + std::string(23, '\0'), strict) == "");  // padded, as writers do
  CHECK(code_of(good + std::string(24, '\0'), strict) == "UnownedBytes");
  CHECK(code_of(good + "x", strict) == "UnownedBytes");
  CHECK(code_of(good + "x") == "");
  CHECK(code_of(whole.bytes + std::string(24, 'x') + std::string(9, 'b'), strict) == "UnownedBytes");
  std::string header = good;
  header[GgufFile::parse(bytes_of(good)).data_offset() - 1] = 'x';
  CHECK(code_of(header, strict) == "UnownedBytes");
  CHECK(code_of(header) == "");
  CHECK(code_of(good.substr(0, good.size() - 1)) == "MissingData");
}

TEST_CASE("any cut and any damage of a GGUF file is refused or leaves every tensor inside", "[io][gguf]") {
  const TempFolder folder;
  RandomModel model{
      {{"a", GgufTensorType::f32, {2, 3}}, {"b", GgufTensorType::q4_k, {1, 256}}, {"c", GgufTensorType::f16, {}}},
      {std::string(24, 'a'), std::string(144, 'b'), "cc"},
      every_type()};
  write(folder / "m.gguf", model, 1);
  const std::string whole = slurp(folder / "m.gguf");
  int accepted = 0, refused = 0;
  const auto look = [&](const std::string& bytes) {
    try {
      const auto file = GgufFile::parse(bytes_of(bytes));
      ++accepted;
      for (const GgufTensor& tensor : file.tensors()) {
        REQUIRE(tensor_bytes(tensor.spec()) == tensor.data.bytes.size());
        if (tensor.data.bytes.empty()) continue;
        const auto* const begin = reinterpret_cast<const std::byte*>(bytes.data());
        REQUIRE(tensor.data.bytes.data() >= begin + file.data_offset());
        REQUIRE(tensor.data.bytes.data() + tensor.data.bytes.size() <= begin + bytes.size());
      }
    } catch (const FormatError& error) {
      REQUIRE_FALSE(error.code().empty());
      ++refused;
    }
  };
  const std::size_t data_end = whole.size() - 30;  // of "cc"; the rest is padding
  for (std::size_t n = 0; n < data_end; ++n) REQUIRE(code_of(whole.substr(0, n)) != "");
  CHECK(code_of(whole.substr(0, data_end)) == "");
  const std::size_t header = GgufFile::parse(bytes_of(whole)).data_offset();
  for (std::size_t i = 0; i < header; ++i)
    for (int bit = 0; bit < 8; ++bit) {
      std::string bytes = whole;
      bytes[i] = static_cast<char>(bytes[i] ^ (1 << bit));
      look(bytes);
    }
  Random random(3);
  for (int i = 0; i < 3000; ++i) {
    std::string bytes = whole;
    for (int k = 0; k < 3; ++k)
      bytes[random.below(static_cast<std::uint32_t>(header))] = "\0\1\2\x7f\x80\xff\x20\x08\x09"[random.below(9)];
    look(bytes);
  }
  CHECK(accepted > 100);
  CHECK(refused > 1000);
}

TEST_CASE("the GGUF writer refuses what would not be a valid file, before the target is touched", "[io][gguf]") {
  using namespace std::string_literals;
  const TempFolder folder;
  const auto path = folder / "m.gguf";
  spit(path, "old");
  const auto make = [&](std::vector<GgufTensorSpec> specs, GgufMetadata metadata = {}) {
    GgufWriter(path, std::move(specs), std::move(metadata));
  };
  const auto named = [&](const std::string& name) { make({{name, GgufTensorType::f32, {1}}}); };
  CHECK_THROWS_AS(named(""), ValueError);
  CHECK_THROWS_AS(named(std::string(64, 'n')), ValueError);
  CHECK_THROWS_AS(named("\xff"), ValueError);
  CHECK_THROWS_AS(named("a\0b"s), ValueError);
  CHECK_THROWS_AS(make({{"a", GgufTensorType::f32, {1}}, {"a", GgufTensorType::f16, {1}}}), ValueError);
  CHECK_THROWS_AS(make({{"a", GgufTensorType::f32, {1, 1, 1, 1, 1}}}), ShapeError);
  CHECK_THROWS_AS(make({{"a", GgufTensorType::f32, {-1}}}), ShapeError);
  CHECK_THROWS_AS(make({{"a", GgufTensorType::f32, {index_t{1} << 40, index_t{1} << 40}}}), ShapeError);
  CHECK_THROWS_WITH(
      make({{"w", GgufTensorType::q4_k, {256, 100}}}),
      Catch::Contains("'w'") && Catch::Contains("Q4_K") && Catch::Contains("100 columns") && Catch::Contains("256"));
  CHECK_THROWS_AS(make({}, {{"", true}}), ValueError);
  CHECK_THROWS_AS(make({}, {{"\xff", true}}), ValueError);
  CHECK_THROWS_AS(make({}, {{"k", true}, {"k", 1.0f}}), ValueError);
  CHECK_THROWS_AS(make({}, {{"k", GgufArray(GgufNestedArray{})}}), ValueError);
  CHECK_THROWS_AS(make({}, {{std::string(kGgufAlignmentKey), std::uint64_t{32}}}), ValueError);
  CHECK_THROWS_AS(make({}, {{std::string(kGgufAlignmentKey), std::uint32_t{24}}}), ValueError);
  {
    GgufWriter writer(path, {{"a", GgufTensorType::i8, {10}}, {"b", GgufTensorType::i8, {0}}},
                      {{"hash", std::string(64, '0')}});
    CHECK_THROWS_AS(writer.write("c", 0, bytes_of("x")), ValueError);
    CHECK_THROWS_AS(writer.write("a", 10, bytes_of("x")), ShapeError);
    CHECK_THROWS_AS(writer.write("a", ~std::uint64_t{0}, bytes_of("xy")), ShapeError);
    writer.write("a", 0, bytes_of("01234567"));
    CHECK_THROWS_WITH(writer.commit(), Catch::Contains("'a' from 8 on"));
    writer.write("a", 8, bytes_of("89"));
    CHECK_THROWS_AS(writer.commit({{"hash", std::string(640, 'f')}}), ValueError);  // the data would move
    CHECK_THROWS_AS(writer.commit({{std::string(kGgufAlignmentKey), std::uint32_t{1}}}), ValueError);
    CHECK(slurp(path) == "old");
    writer.commit({{"hash", std::string(64, 'f')}});
  }
  const auto file = GgufFile::open(path);
  CHECK(std::get<std::string>(*find_value(file.metadata(), "hash")) == std::string(64, 'f'));
  CHECK(text_of(file.tensor("a").data.bytes) == "0123456789");
  CHECK(folder.list() == std::vector<std::string>{"m.gguf"});
}

TEST_CASE("the time to open a GGUF file grows linearly with its header", "[io][gguf]") {
  const auto image_of = [](int tensors) {
    Image image;
    image.start(static_cast<std::uint64_t>(tensors), static_cast<std::uint64_t>(tensors));
    for (int i = 0; i < tensors; ++i) image.string(fmt::format("key.{}", i)).u32(8).string("value");
    for (int i = 0; i < tensors; ++i) image.tensor(fmt::format("blk.{}.ffn.weight", i), {0}, 0, 0);
    return image.bytes;
  };
  const auto cpu_seconds = [](const std::string& bytes) {
    double best = 1e9;
    for (int i = 0; i < 3; ++i) {
      const std::clock_t start = std::clock();
      GgufFile::parse(bytes_of(bytes));
      best = std::min(best, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
    }
    return best;
  };
  const int large = budget(100000, 20000), small = large / 64;
  const double ratio = cpu_seconds(image_of(large)) / cpu_seconds(image_of(small));
  CAPTURE(ratio);
  // 64 when linear, 4096 when quadratic; memory beyond the caches and a busy machine lie between.
  CHECK(ratio < 8 * 64);
}
