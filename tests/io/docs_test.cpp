// SPDX-License-Identifier: Apache-2.0
// The program of docs/io.md, and the check that the page shows what is compiled here.
#include <algorithm>
#include <cmath>

#include "blockpack/io.hpp"
#include "io/io_support.hpp"
#include "support/catch.hpp"
#include "support/synthetic_model.hpp"

using namespace blockpack;

TEST_CASE("the program of the page on io copies a sharded model into one file", "[io]") {
  const test::TempFolder folder;
  const auto in = folder / "in", out = folder / "out.safetensors";
  test::SyntheticModel synthetic;
  synthetic.bytes = 3 << 20;
  synthetic.largest_bytes = synthetic.layer_bytes = 1 << 20;
  synthetic.cols = 1000;
  synthetic.max_shard_bytes = 1 << 20;
  test::write_synthetic_model(in, synthetic);
  // clang-format off
  const TensorStore model = TensorStore::open(in);  // a file, an index of shards, or a folder with one of them
  std::vector<TensorSpec> specs;
  for (const std::string& name : model.names()) specs.push_back(model.tensor(name).spec());
  SafetensorsWriter writer(out, specs, {{"format", "pt"}});
  std::vector<float> panel;
  double sum = 0;
  for (const std::string& name : model.names()) {
    const Tensor tensor = model.tensor(name);
    const auto [rows, cols] = matrix_shape(tensor.shape);
    const index_t step = 64;
    for (index_t row = 0; row < rows; row += step) {
      const index_t n = std::min(step, rows - row);
      const auto bytes = row_bytes(tensor, row, n);  // as stored, without a copy
      writer.write(name, static_cast<std::uint64_t>(row) * (bytes.size() / n), bytes);
      panel.resize(static_cast<std::size_t>(n * cols));
      read_rows_f32(tensor, row, {panel.data(), n, cols}, Pages::release);  // as floats; the pages are given back
      for (const float w : panel) sum += std::abs(w);
    }
  }
  writer.commit();  // until here `out` has not been touched
  // clang-format on
  CHECK(sum > 1000);
  CHECK(model.files().size() > 1);
  synthetic.max_shard_bytes = 0;
  test::write_synthetic_model(folder / "one.safetensors", synthetic);
  CHECK((test::slurp(folder / "one.safetensors") == test::slurp(out)));
}

TEST_CASE("the page on io shows the program that is compiled", "[io]") {
  const std::string source_folder = BLOCKPACK_SOURCE_DIR;
  const std::string page = test::slurp(source_folder + "/docs/io.md");
  const std::string source = test::slurp(source_folder + "/tests/io/docs_test.cpp");
  const std::size_t begin = page.find("```cpp\n") + 7;
  REQUIRE(begin != std::string::npos + 7);
  const std::string shown = page.substr(begin, page.find("```", begin) - begin);
  CHECK(shown.size() > 100);
  CHECK(source.find(shown) != std::string::npos);
}
