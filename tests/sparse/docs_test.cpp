// SPDX-License-Identifier: Apache-2.0
/// The programs of docs/sparsity.md, and the check that the page shows what is compiled here.

#include <string>
#include <vector>

#include "blockpack/core/dense.hpp"
#include "blockpack/sparse.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/random.hpp"

using namespace blockpack;

TEST_CASE("the program of the page on sparsity runs and is what the page shows", "[sparse]") {
  const index_t in = 32;
  const std::vector<float> w_values = test::random_weights(8, in, 1), x_values = test::random_normal(64 * in, 2);
  std::vector<float> q_values = w_values;
  const MatrixView<const float> w(w_values.data(), 8, in), x(x_values.data(), 64, in);
  const MatrixView<float> q(q_values.data(), 8, in);
  // clang-format off
  GramMatrix h(in);  // XᵀX of the layer's inputs, batch by batch
  h.add(x);
  const Mask mask = prune_mask(w, wanda(h), MaskPattern::nm(2, 4));  // keep 2 of 4
  mask.apply(q);                                                     // q holds w
  const RefitReport refitted = refit(w, h, mask, q);                 // the least squares of what is kept
  const SparseGptReport chosen = sparsegpt(w, h, MaskPattern::nm(2, 4), q);
  const auto [factors, fitted] = armor(w, h.diagonal(), {.block = {8, 8}, .iterations = 100});  // W ≈ A (X ∘ M) B
  // clang-format on
  CHECK(refitted.loss_after < refitted.loss_before);
  CHECK(chosen.mask.is_nm(2, 4));
  CHECK(factors.mask.is_nm(2, 4));
  CHECK(fitted.best() < fitted.start());
}

TEST_CASE("the stored forms of the page on sparsity", "[sparse]") {
  std::vector<float> values = test::random_weights(64, 64, 1);
  const MatrixView<float> w(values.data(), 64, 64);
  // clang-format off
  prune_mask(w, magnitude(), MaskPattern::nm(2, 4)).apply(w);
  const auto two_four = NmMatrix<DenseFormat<bf16>>::encode(w);
  prune_mask(w, magnitude(), MaskPattern::blocks({32, 32}, 0.2)).apply(w);
  const auto blocks = BlockSparse<DenseFormat<bf16>>::encode(w, {32, 32});
  const Bsr bsr = blocks.to_bsr();
  // clang-format on
  CHECK(two_four.storage_bytes() == 64 * 64 / 2 * 2 + 64 * 64 / 8);
  CHECK(bsr.indices.size() == 1);
}

TEST_CASE("the page on sparsity shows what is compiled here", "[sparse]") {
  const std::string page = test::read_file(std::string(BLOCKPACK_SOURCE_DIR) + "/docs/sparsity.md");
  const std::string source = test::read_file(std::string(BLOCKPACK_SOURCE_DIR) + "/tests/sparse/docs_test.cpp");
  int programs = 0;
  for (std::size_t at = page.find("```cpp\n"); at != std::string::npos; at = page.find("```cpp\n", at), ++programs) {
    at += 7;
    const std::size_t end = page.find("```", at);
    CHECK(source.find(page.substr(at, end - at)) != std::string::npos);
    at = end + 3;
  }
  CHECK(programs == 2);
}
