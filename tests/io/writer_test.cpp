// SPDX-License-Identifier: Apache-2.0
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
