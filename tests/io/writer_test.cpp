// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "blockpack/core/random.hpp"
#include "blockpack/io.hpp"
#include "io/io_support.hpp"
#include "support/catch.hpp"

using namespace blockpack;
using namespace blockpack::test;

TEST_CASE("what the writer writes is what the reader reads", "[io]") {
  const TempFolder folder;
  const auto path = folder / "model.safetensors";
  {
    SafetensorsWriter writer(path, {{"b", Dtype::u8, {3}}, {"a", Dtype::f32, {2, 1}}, {"none", Dtype::bf16, {0, 7}}},
                             {{"format", "pt"}});
    writer.write("a", 4, bytes_of("EFGH"));
    writer.write("b", 0, bytes_of("xyz"));
    writer.write("a", 0, bytes_of("ABCD"));
    writer.commit();
  }
  CHECK(folder.list() == std::vector<std::string>{"model.safetensors"});
  const auto file = SafetensorsFile::open(path);
  REQUIRE(file.tensors().size() == 3);
  CHECK(file.metadata() == Metadata{{"format", "pt"}});
  CHECK(file.tensors()[0].name == "a");
  CHECK(file.data_offset() % 8 == 0);
  const auto text = [&](std::string_view name) {
    const auto bytes = file.tensor(name).data.bytes;
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  CHECK(text("a") == "ABCDEFGH");
  CHECK(text("b") == "xyz");
  CHECK(text("none") == "");
}

namespace {

/// Random tensors and their bytes.
struct RandomModel {
  std::vector<TensorSpec> specs;
  std::vector<std::string> bytes;
};
RandomModel random_model(std::uint64_t seed) {
  Random random(seed);
  RandomModel model;
  const std::uint32_t count = random.below(12);
  for (std::uint32_t t = 0; t < count; ++t) {
    TensorSpec spec;
    spec.name = "t" + std::to_string(random.below(1000)) + "/" + std::to_string(t);
    spec.dtype = static_cast<Dtype>(random.below(kDtypeCount));
    for (std::uint32_t d = random.below(4); d > 0; --d) spec.shape.push_back(random.below(6));
    if (!spec.shape.empty()) spec.shape.back() *= 4;  // whole bytes for the small types
    if (spec.shape.empty() && dtype_bits(spec.dtype) % 8 != 0) spec.dtype = Dtype::bf16;
    std::string bytes(tensor_bytes(spec), '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    model.specs.push_back(std::move(spec));
    model.bytes.push_back(std::move(bytes));
  }
  return model;
}

/// Writes all tensors in pieces of random sizes, in random order.
template <class Writer>
void write_in_pieces(Writer& writer, const RandomModel& model, std::uint64_t seed) {
  struct Piece {
    std::size_t tensor, begin, count;
  };
  Random random(seed);
  std::vector<Piece> pieces;
  for (std::size_t t = 0; t < model.specs.size(); ++t)
    for (std::size_t at = 0; at < model.bytes[t].size();) {
      const std::size_t count = std::min<std::size_t>(model.bytes[t].size() - at, 1 + random.below(40));
      pieces.push_back({t, at, count});
      at += count;
    }
  for (std::size_t i = pieces.size(); i > 1; --i)
    std::swap(pieces[i - 1], pieces[random.below(static_cast<std::uint32_t>(i))]);
  for (const Piece& p : pieces)
    writer.write(model.specs[p.tensor].name, p.begin,
                 bytes_of(std::string_view(model.bytes[p.tensor]).substr(p.begin, p.count)));
}

void check_same(const Tensor& tensor, const TensorSpec& spec, std::string_view bytes) {
  REQUIRE(tensor.dtype == spec.dtype);
  REQUIRE(tensor.shape == spec.shape);
  REQUIRE(tensor.data.bytes.size() == bytes.size());
  REQUIRE((bytes.empty() || std::memcmp(tensor.data.bytes.data(), bytes.data(), bytes.size()) == 0));
}

}  // namespace

TEST_CASE("random models come back as they were written, in pieces of any order", "[io]") {
  const TempFolder folder;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    const RandomModel model = random_model(seed);
    const auto path = folder / "m.safetensors";
    SafetensorsWriter writer(path, model.specs, {{"seed", std::to_string(seed)}});
    write_in_pieces(writer, model, seed);
    writer.commit();
    ReadLimits strict;
    strict.strict = true;
    const auto file = SafetensorsFile::open(path, strict);
    REQUIRE(file.tensors().size() == model.specs.size());
    for (std::size_t t = 0; t < model.specs.size(); ++t)
      check_same(file.tensor(model.specs[t].name), model.specs[t], model.bytes[t]);
    for (std::size_t t = 1; t < file.tensors().size(); ++t) {  // alignment rank descending, then name
      const Tensor &a = file.tensors()[t - 1], &b = file.tensors()[t];
      if (a.data.bytes.empty() || b.data.bytes.empty()) continue;  // share an offset, so their order is not stored
      REQUIRE((a.dtype > b.dtype || (a.dtype == b.dtype && a.name < b.name)));
    }
    // The same input in another order gives the same bytes.
    const std::string once = slurp(path);
    RandomModel reversed = model;
    std::reverse(reversed.specs.begin(), reversed.specs.end());
    std::reverse(reversed.bytes.begin(), reversed.bytes.end());
    SafetensorsWriter again(path, reversed.specs, {{"seed", std::to_string(seed)}});
    write_in_pieces(again, reversed, seed + 1000);
    again.commit();
    REQUIRE(slurp(path) == once);
  }
}

TEST_CASE("the writer gives the bytes of the reference", "[io]") {
  const TempFolder folder;
  const auto path = folder / "m.safetensors";
  SafetensorsWriter writer(path, {{"b", Dtype::u8, {2}}, {"a", Dtype::f32, {1, 1}}}, {{"k", "v"}});
  writer.write("a", 0, bytes_of("AAAA"));
  writer.write("b", 0, bytes_of("BB"));
  writer.commit();
  std::string header = R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},)"
                       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  CHECK(slurp(path) == image(header, "AAAABB"));
}

TEST_CASE("names and metadata with any characters survive", "[io]") {
  const TempFolder folder;
  const auto path = folder / "m.safetensors";
  using namespace std::string_literals;
  const std::vector<std::string> names = {"\"quoted\\\"",   "tab\tline\n", "nul\0byte"s,
                                          "ünï → 🙂", "\x7f",        "a/b.c:d"};
  std::vector<TensorSpec> specs;
  Metadata metadata;
  for (const std::string& name : names) {
    specs.push_back({name, Dtype::u8, {0}});
    metadata[name] = name;
  }
  SafetensorsWriter(path, specs, metadata).commit();
  const auto file = SafetensorsFile::open(path);
  CHECK(file.metadata() == metadata);
  for (const std::string& name : names) CHECK(file.find(name) != nullptr);
}

TEST_CASE("metadata may come at the end into room that was set aside", "[io]") {
  const TempFolder folder;
  const auto path = folder / "m.safetensors";
  const std::vector<TensorSpec> specs = {{"w", Dtype::u8, {4}}};
  const Metadata final_metadata = {{"hash", std::string(64, 'f')}};
  SafetensorsWriter writer(path, specs, {}, SafetensorsWriter::header_bytes(specs, final_metadata));
  writer.write("w", 0, bytes_of("abcd"));
  CHECK_THROWS_AS(writer.commit({{"hash", std::string(100, 'f')}}), ValueError);  // too long: the writer goes on
  CHECK_FALSE(std::filesystem::exists(path));
  writer.commit(final_metadata);
  const auto file = SafetensorsFile::open(path);
  CHECK(file.metadata() == final_metadata);
  CHECK(file.data_offset() % 8 == 0);
  SafetensorsWriter roomy(path, specs, {}, 1000);
  roomy.write("w", 0, bytes_of("abcd"));
  roomy.commit({});
  CHECK(SafetensorsFile::open(path).data_offset() == 8 + 1000);
}

TEST_CASE("the writer refuses what would not be a valid file", "[io]") {
  const TempFolder folder;
  const auto path = folder / "m.safetensors";
  const auto make = [&](std::vector<TensorSpec> specs, Metadata metadata = {}) {
    SafetensorsWriter(path, std::move(specs), std::move(metadata));
  };
  CHECK_THROWS_AS(make({{"a", Dtype::u8, {1}}, {"a", Dtype::f32, {1}}}), ValueError);
  CHECK_THROWS_AS(make({{"", Dtype::u8, {1}}}), ValueError);
  CHECK_THROWS_AS(make({{"__metadata__", Dtype::u8, {1}}}), ValueError);
  CHECK_THROWS_AS(make({{"\xff", Dtype::u8, {1}}}), ValueError);
  CHECK_THROWS_AS(make({{std::string(65537, 'n'), Dtype::u8, {1}}}), ValueError);
  CHECK_THROWS_AS(make({}, {{"\xff", "v"}}), ValueError);
  CHECK_THROWS_AS(make({}, {{"k", "\xff"}}), ValueError);
  CHECK_THROWS_AS(make({{"a", Dtype::f4, {3}}}), ShapeError);
  CHECK_THROWS_AS(make({{"a", Dtype::u8, {-1}}}), ShapeError);
  CHECK_THROWS_AS(make({{"a", Dtype::u8, {index_t{1} << 62}}, {"b", Dtype::u8, {index_t{1} << 62}}}), Error);
  {
    SafetensorsWriter writer(path, {{"a", Dtype::u8, {10}}, {"b", Dtype::u8, {0}}});
    CHECK_THROWS_AS(writer.write("c", 0, bytes_of("x")), ValueError);
    CHECK_THROWS_AS(writer.write("a", 10, bytes_of("x")), ShapeError);
    CHECK_THROWS_AS(writer.write("a", ~std::uint64_t{0}, bytes_of("xy")), ShapeError);
    writer.write("a", 10, {});
    writer.write("a", 0, bytes_of("012"));
    writer.write("a", 5, bytes_of("56789"));
    CHECK_THROWS_WITH(writer.commit(), Catch::Contains("'a' from 3 on"));
    writer.write("a", 2, bytes_of("234"));  // over a byte already there, up to the next range
    writer.commit();
  }
  CHECK(SafetensorsFile::open(path).tensor("a").data.bytes.back() == std::byte{'9'});
  CHECK(folder.list() == std::vector<std::string>{"m.safetensors"});
}

TEST_CASE("shards come back as one model, lazily and by name", "[io]") {
  const TempFolder folder;
  for (std::uint64_t seed = 100; seed < 115; ++seed) {
    CAPTURE(seed);
    const RandomModel model = random_model(seed);
    const auto path = folder / std::to_string(seed);
    ShardedWriter writer(path, model.specs, {{"format", "pt"}}, 150);
    write_in_pieces(writer, model, seed);
    CHECK_THROWS_AS(TensorStore::open(path), IoError);  // nothing there yet
    writer.commit();
    const TensorStore store = TensorStore::open(path);
    CHECK(store.files().size() == writer.shard_count());
    CHECK(store.metadata().at("format") == "pt");
    REQUIRE(store.names().size() == model.specs.size());
    CHECK(std::is_sorted(store.names().begin(), store.names().end()));
    for (std::size_t t = 0; t < model.specs.size(); ++t) {
      REQUIRE(store.contains(model.specs[t].name));
      check_same(store.tensor(model.specs[t].name), model.specs[t], model.bytes[t]);
    }
    if (writer.shard_count() > 1)
      CHECK(TensorStore::open(path / "model.safetensors.index.json").names() == store.names());
    CHECK_FALSE(store.contains("no such tensor"));
    CHECK_THROWS_AS(store.tensor("no such tensor"), ValueError);
  }
}

TEST_CASE("a folder with a model is not written over shard by shard", "[io]") {
  const TempFolder folder;
  const std::vector<TensorSpec> specs = {{"a", Dtype::u8, {4}}, {"b", Dtype::u8, {4}}};
  const auto write = [&](std::uint64_t max_shard_bytes) {
    ShardedWriter writer(folder.path(), specs, {}, max_shard_bytes);
    writer.write("a", 0, bytes_of("aaaa"));
    writer.write("b", 0, bytes_of("bbbb"));
    writer.commit();
  };
  write(4);
  CHECK(folder.list() == std::vector<std::string>{"model-00001-of-00002.safetensors",
                                                  "model-00002-of-00002.safetensors", "model.safetensors.index.json"});
  CHECK_THROWS_AS(write(4), IoError);
  CHECK_THROWS_AS(write(100), IoError);
  CHECK(folder.list().size() == 3);
  std::filesystem::remove(folder / "model.safetensors.index.json");  // shards without an index are no model
  CHECK_THROWS_AS(TensorStore::open(folder.path()), IoError);
  write(4);
  CHECK(TensorStore::open(folder.path()).names().size() == 2);
  std::filesystem::remove(folder / "model.safetensors.index.json");
  write(100);
  write(100);  // one file is replaced in one step
  CHECK(TensorStore::open(folder.path()).files().size() == 1);
  CHECK_THROWS_AS(write(4), IoError);
  CHECK_THROWS_AS(ShardedWriter(folder / "x", {{"a", Dtype::u8, {1}}, {"a", Dtype::u8, {1}}}), ValueError);
}
