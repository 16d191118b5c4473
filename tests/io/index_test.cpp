// SPDX-License-Identifier: Apache-2.0
// The index of a sharded model is as hostile as any other file.
#include <fmt/format.h>

#include "blockpack/io/sharded.hpp"
#include "io/index_json.hpp"
#include "io/io_support.hpp"
#include "support/catch.hpp"

using namespace blockpack;
using namespace blockpack::test;

namespace {

std::string code_of(std::string_view text, const ReadLimits& limits = {}) {
  try {
    io_detail::parse_shard_index(text, limits, "index");
    return "";
  } catch (const FormatError& error) {
    return error.code();
  }
}
std::string one_entry(std::string_view shard) { return fmt::format(R"({{"weight_map":{{"a":"{}"}}}})", shard); }

std::string one_tensor(std::string_view name) {
  return image(fmt::format(R"({{"{}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}})", name), "x");
}

}  // namespace

TEST_CASE("an index maps tensors to files and may say more", "[io]") {
  const auto index = io_detail::parse_shard_index(
      R"({"metadata":{"total_size":12,"x":[1,{"y":2.5}],"who":"me"},"weight_map":{"b":"2.safetensors","a":"1"},)"
      R"("extra":{"weight_map":{"c":"../c"}}, "more":[[]]})",
      {}, "index");
  CHECK(index.entries == std::vector<std::pair<std::string, std::string>>{{"b", "2.safetensors"}, {"a", "1"}});
  CHECK(index.metadata == Metadata{{"who", "me"}});
  CHECK(code_of(R"({"weight_map":{}})") == "");
}

TEST_CASE("an index that is no index is refused", "[io]") {
  for (const char* text :
       {"{}", "[]", "1", "null", R"({"weight_map":[]})", R"({"weight_map":1})", R"({"weight_map":{"a":1}})",
        R"({"weight_map":{"a":{}}})", R"({"weight_map":{"a":["x"]}})", R"({"weight_map":{"a":null}})",
        R"({"metadata":[],"weight_map":{}})", R"({"metadata":1,"weight_map":{}})"}) {
    CAPTURE(text);
    CHECK(code_of(text) == "InvalidIndex");
  }
  CHECK(code_of("") == "InvalidHeaderDeserialization");
  CHECK(code_of(R"({"weight_map":{}} x)") == "InvalidHeaderDeserialization");
  CHECK(code_of(R"({"weight_map":{"a":"1","a":"2"}})") == "DuplicateKey");
  CHECK(code_of(R"({"weight_map":{},"weight_map":{}})") == "DuplicateKey");
  CHECK(code_of("{\"weight_map\":{\"\xff\":\"1\"}}") == "InvalidHeader");
}

TEST_CASE("a shard is a file beside the index and nowhere else", "[io]") {
  for (const char* shard :
       {"", ".", "..", "../m", "a/b", "/etc/passwd", "a\\\\b", "..\\\\m", "C:m", "a\\u0000b", "a\\nb", "./m"}) {
    CAPTURE(shard);
    CHECK(code_of(one_entry(shard)) == "UnsafeShardName");
  }
  for (const char* shard : {"model.safetensors", "..m", "a..b", "...", "m 1", "\u00fc"})
    CHECK(code_of(one_entry(shard)) == "");
}

TEST_CASE("the limits of an index", "[io]") {
  ReadLimits limits;
  limits.max_tensors = 1;
  CHECK(code_of(R"({"weight_map":{"a":"1","b":"1"}})", limits) == "LimitExceeded");
  limits = {};
  limits.max_name_bytes = 10;
  CHECK(code_of(R"({"weight_map":{"aaaaaaaaaaa":"1"}})", limits) == "LimitExceeded");
  CHECK(code_of(R"({"weight_map":{"a":"1234567890_"}})", limits) == "LimitExceeded");
  limits = {};
  limits.max_metadata_entries = 1;
  CHECK(code_of(R"({"metadata":{"a":"1","b":"1","c":"1"},"weight_map":{}})", limits) == "LimitExceeded");
  const TempFolder folder;
  spit(folder / "m.safetensors.index.json", one_entry("1.safetensors") + std::string(1000, ' '));
  limits = {};
  limits.max_header_bytes = 500;
  CHECK_THROWS_AS(TensorStore::open(folder.path(), limits), FormatError);
}

TEST_CASE("a tensor must be in the shard that the index names", "[io]") {
  const TempFolder folder;
  spit(folder / "1.safetensors", one_tensor("a"));
  spit(folder / "2.safetensors", one_tensor("c"));
  spit(folder / "m.safetensors.index.json",
       R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors","d":"missing"}})");
  const TensorStore store = TensorStore::open(folder.path());
  CHECK(store.names() == std::vector<std::string>{"a", "b", "d"});
  CHECK(store.tensor("a").data.bytes.size() == 1);  // the other shards are not opened for it
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      store.tensor("b");
      FAIL("accepted");
    } catch (const FormatError& error) {
      CHECK(error.code() == "MissingTensor");
      CHECK(error.tensor() == "b");
    }
    CHECK_THROWS_AS(store.tensor("d"), IoError);
  }
  spit(folder / "missing", one_tensor("d"));
  CHECK(store.tensor("d").data.bytes.size() == 1);  // a failed attempt is not remembered
}

TEST_CASE("a folder is a model when it is clear which one", "[io]") {
  const TempFolder folder;
  const auto opened = [&] {
    try {
      return TensorStore::open(folder.path()).files().at(0).filename().string();
    } catch (const IoError&) {
      return std::string("IoError");
    }
  };
  CHECK(opened() == "IoError");
  spit(folder / "model-00001-of-00002.safetensors", one_tensor("a"));
  CHECK(opened() == "IoError");
  spit(folder / ".hidden.safetensors", "nonsense");
  spit(folder / "weights.safetensors", one_tensor("a"));
  CHECK(opened() == "weights.safetensors");
  spit(folder / "more.safetensors", one_tensor("a"));
  CHECK(opened() == "IoError");
  spit(folder / "weights.safetensors.index.json", one_entry("more.safetensors"));
  CHECK(opened() == "more.safetensors");
  spit(folder / "other.safetensors.index.json", one_entry("weights.safetensors"));
  CHECK(opened() == "IoError");
  spit(folder / "model.safetensors.index.json", one_entry("weights.safetensors"));
  CHECK(opened() == "weights.safetensors");
  spit(folder / "model.safetensors", one_tensor("a"));
  CHECK(opened() == "model.safetensors");
}
