// SPDX-License-Identifier: Apache-2.0
/// The program of docs/core.md, and the check that the page shows what is compiled here.

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "blockpack/core.hpp"
#include "blockpack/core/eigen.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;

TEST_CASE("the program of the page on core runs", "[core]") {
  const std::vector<float> up = test::random_normal(64 * 96, 1), down = test::random_normal(32 * 64, 2);
  const std::vector<float> bias(32, 0.5f);
  // clang-format off
  // Eigen's default is column-major: the 96 x 4 matrix x is the view [4 tokens, 96] of its transpose, in place.
  const Eigen::MatrixXf x = Eigen::MatrixXf::Random(96, 4);
  Eigen::MatrixXf y(32, 4);

  const MatrixView<const float> w(up.data(), 64, 96);             // raw memory
  const auto inner = Dense<bf16>::encode(w);
  const auto outer = Dense<float>::encode(MatrixView<const float>(down.data(), 32, 64));
  const std::vector<AnyLinear> layers = {Compose(outer, inner)};  // copies share the stored bytes

  ApplyOptions how;
  how.execution.threads = 2;                                      // or .executor, your own threads
  how.activations = Activations::f32;                             // x stays float32
  how.epilogue.bias = bias;
  layers[0].apply(transposed_view(x), transposed_view(y), how);   // y = x · innerᵀ · outerᵀ + bias

  std::vector<float> row(96), back(4 * 64);
  const index_t which = 7;
  layers[0].decode_rows({&which, 1}, MatrixView<float>(row.data(), 1, 96));    // row 7 of the dense outer · inner
  outer.apply_transpose(transposed_view(y), MatrixView<float>(back.data(), 4, 64));  // y · outer, as training needs it

  auto resident = Dense<bf16>::encode(w, {}, {}, PackPolicy::ahead());  // packed now, not at the first apply
  resident.release_stored();                                            // and computes from that alone
  // clang-format on
  double expected = 0.5;
  for (index_t j = 0; j < 96; ++j) expected += static_cast<double>(row[static_cast<std::size_t>(j)]) * double{x(j, 2)};
  CHECK(double{y(which, 2)} == Approx(expected).margin(1e-3));
  double first = 0.0;
  for (index_t i = 0; i < 32; ++i) first += double{y(i, 0)} * double{down[static_cast<std::size_t>(i * 64)]};
  CHECK(double{back[0]} == Approx(first).margin(1e-3));
  std::vector<float> hidden(4 * 64);
  resident.apply(transposed_view(x), MatrixView<float>(hidden.data(), 4, 64));
  CHECK(resident.storage_bytes() == 0);
}

TEST_CASE("the page on core shows the program that is compiled", "[core]") {
  const auto read = [](const std::string& name) {
    std::ifstream file(std::string(BLOCKPACK_SOURCE_DIR) + name, std::ios::binary);
    REQUIRE(file);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  const std::string page = read("/docs/core.md"), source = read("/tests/core/docs_test.cpp");
  const std::size_t begin = page.find("```cpp\n") + 7;
  REQUIRE(begin != std::string::npos + 7);
  const std::string shown = page.substr(begin, page.find("```", begin) - begin);
  CHECK(shown.size() > 100);
  CHECK(source.find(shown) != std::string::npos);
}
