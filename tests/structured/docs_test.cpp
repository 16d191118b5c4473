// SPDX-License-Identifier: Apache-2.0
/// The programs of docs/adapters.md, docs/structured.md and docs/spectral_mixer.md, and the check that the pages show
/// what is compiled here.

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "blockpack/quant/mx.hpp"
#include "blockpack/quant/quantized_matrix.hpp"
#include "blockpack/structured/adapter_bank.hpp"
#include "blockpack/structured/bone.hpp"
#include "blockpack/structured/lora.hpp"
#include "blockpack/structured/spectral_mixer.hpp"
#include "structured/fit_instances.hpp"
#include "structured/tensors.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;

TEST_CASE("the programs of the page on adapters run", "[structured]") {
  std::vector<float> w_values = test::random_normal(8 * 32, 1), y_values(4 * 8);
  const std::vector<float> a_values = test::random_normal(2 * 32, 2), b_values = test::random_normal(8 * 2, 3);
  const std::vector<float> d_values = test::random_normal(4 * 8, 4), x_values = test::random_normal(4 * 32, 5);
  const MatrixView<float> w(w_values.data(), 8, 32), y(y_values.data(), 4, 8);
  const MatrixView<const float> a(a_values.data(), 2, 32), b(b_values.data(), 8, 2), d(d_values.data(), 4, 8);
  const MatrixView<const float> x(x_values.data(), 4, 32);
  // clang-format off
  const auto base = QuantizedMatrix<Mx>::encode(w);              // w [out, in]
  const Adapted layer(base, lora_update(a, b, 0.5f));            // a [r, in], b [out, r]
  layer.apply(x, y);                                             // y = W x + 0.5 B (A x)
  const Adapted bone(base, bone_update(d, base.in_features()));  // d [r, out]
  merge(w, lora_update(a, b, 0.5f));                             // w += 0.5 B A, and unmerge takes it out
  // clang-format on
  const std::vector<float> first = y_values;
  bone.apply(x, y);
  const std::vector<float> second = y_values;
  // clang-format off
  AdapterBank bank(base.shape());
  const index_t chat = bank.add(a, b, 0.5f), code = bank.add(bone_update(d, base.in_features()));
  const std::vector<index_t> ids = {chat, code, -1, chat};  // one a token; negative: none
  bank.apply(base, x, ids, y);                              // or bank.add_to(x, ids, y)
  // clang-format on
  for (std::size_t n = 0; n < 8; ++n) {
    CHECK(std::abs(y_values[n] - first[n]) < 1e-4f);
    CHECK(std::abs(y_values[8 + n] - second[8 + n]) < 1e-4f);
  }
}

TEST_CASE("the program of the page on the spectral mixer runs", "[structured]") {
  const auto weights = test::random_normal(2 * 2 * 4 * 4, 1);
  xt::xtensor<float, 4> w1({2, 2, 4, 4}), w2({2, 2, 4, 4});
  xt::xtensor<float, 3> b1({2, 2, 4}), b2({2, 2, 4}), x({1, 192, 8}), y({1, 192, 8});
  std::copy(weights.begin(), weights.end(), w1.data());
  std::copy(weights.begin(), weights.end(), w2.data());
  fill_normal({x.data(), x.size()}, 2);
  b1.fill(0.1f);
  b2.fill(0.1f);
  // clang-format off
  SpectralMixerOptions options;
  options.sparsity_threshold = 0.01f;
  const auto mixer = SpectralMixer::afno(w1, b1, w2, b2, options);  // w (2, blocks, inputs, outputs), b (2, blocks, outputs)
  mixer.apply(x, y, TokenGrid{12, 16});                             // x, y (B, 192, C), row by row; y may be x
  mixer.apply_1d(x, y);                                             // AFNO1D
  // clang-format on
  CHECK(std::isfinite(y(0, 191, 7)));
}

TEST_CASE("the program of the page on structured layers compiles", "[structured]") {
  // Not run: its ranks are those of large layers.
  const auto program = [](MatrixView<const float> w, const GramMatrix& gram) {
    // clang-format off
  LowRankOptions whitened{.scale = ScaleMode::cholesky, .gram = &gram};                       // gram: XᵀX of a calibration run
  LowRankFactors<float> low = low_rank_fit<float>(w, low_rank_for_ratio(w.shape(), 0.5), whitened);
  MonarchFactors<float> monarch = monarch_project<float>(w, {.in_blocks = 16, .out_blocks = 16, .rank = 64});
  BlastFit<float> blast = blast_factorize<float>(w, {.blocks = 16, .rank = 1024, .gram = &gram});
  BlockLowRankFactors<float> tiles = block_low_rank_fit<float>(w, {.tau = 0.05});
    // clang-format on
  };
  static_cast<void>(program);
}

TEST_CASE("the pages on structured layers show the programs that are compiled", "[structured]") {
  const auto read = [](const std::string& name) {
    std::ifstream file(std::string(BLOCKPACK_SOURCE_DIR) + name, std::ios::binary);
    REQUIRE(file);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  const std::string source = read("/tests/structured/docs_test.cpp");
  int count = 0;
  for (const char* name : {"/docs/adapters.md", "/docs/spectral_mixer.md", "/docs/structured.md"}) {
    const std::string page = read(name), fence = "```cpp\n";
    for (std::size_t at = page.find(fence); at != std::string::npos; at = page.find(fence, at)) {
      at += fence.size();
      const std::string shown = page.substr(at, page.find("```", at) - at);
      CAPTURE(name, shown);
      CHECK(source.find(shown) != std::string::npos);
      ++count;
    }
  }
  CHECK(count == 4);
}
