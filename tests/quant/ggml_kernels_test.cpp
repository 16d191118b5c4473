// SPDX-License-Identifier: Apache-2.0
/// The ggml kernels of every level against the reference, byte for byte: every type with and without importance,
/// weights on ties, tiny ones and blocks of zeros, row ends at a protected page; and decoding of random bytes.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "blockpack/core/random.hpp"
#include "kernels/table.hpp"
#include "quant/ggml_row.hpp"
#include "quant/weights.hpp"
#include "support/catch.hpp"
#include "support/guard_page.hpp"
#include "support/levels.hpp"

namespace {

using namespace blockpack;
using kernels::GgmlKernels;
using test::GuardedArray;

/// Importance of every sort: ordinary, mostly zero, all zero, and so large that its sums leave float32.
std::vector<float> importance_of(int kind, std::size_t n) {
  Random random(static_cast<std::uint64_t>(kind) + 5);
  std::vector<float> importance(n);
  for (float& v : importance) {
    v = static_cast<float>(random.below(1000)) * 0.01f;
    if (kind == 1 && random.below(3) != 0) v = 0.0f;
    if (kind == 2) v = 0.0f;
    if (kind == 3) v *= 1e37f;
  }
  return importance;
}

void check_encode(const Ggml& format, const GgmlKernels& k, const std::vector<float>& w,
                  const std::vector<float>& importance) {
  const auto block = static_cast<std::size_t>(format.spec().block);
  const std::size_t bytes = (w.size() + block - 1) / block * static_cast<std::size_t>(format.spec().block_bytes);
  std::vector<std::uint8_t> expected(bytes);
  detail::encode_ggml_reference(format, w, importance, detail::ggml_row_mean_square(format, w, !importance.empty()),
                                expected.data());
  GuardedArray<float> guarded(w.size());
  std::copy(w.begin(), w.end(), guarded.begin());
  GuardedArray<std::uint8_t> got(bytes);
  kernels::encode_ggml_row(k, format, guarded.span(), importance, got.data());
  REQUIRE(std::equal(expected.begin(), expected.end(), got.begin()));
}

}  // namespace

TEST_CASE("ggml kernels of every level give the bytes of the reference", "[quant][kernels]") {
  for (const Isa level : test::levels_here()) {
    const GgmlKernels& k = kernels::table_for(level).ggml;
    CAPTURE(to_string(level), k.encode.isa);
    for (const GgmlType type : Ggml::kTypes) {
      const Ggml format{type};
      for (const test::Weights kind : {test::Weights::heavy_tailed, test::Weights::ties, test::Weights::tiny,
                                       test::Weights::zeros, test::Weights::sparse}) {
        for (const float scale : {1.0f, 1e-7f}) {  // the second one has scales on both sides of fp16's smallest
          // One block of Q4_K beside a batch of two, and a short end.
          std::vector<float> w = test::make_weights(kind, 3 * 256 + 37, 17);
          for (float& v : w) v = std::clamp(v * scale, -4096.0f, 4096.0f);
          CAPTURE(format.scheme(), test::to_string(kind), scale);
          check_encode(format, k, w, {});
          if (kind == test::Weights::heavy_tailed || kind == test::Weights::sparse)
            for (const int sort : {0, 1, 2, 3}) check_encode(format, k, w, importance_of(sort, w.size()));
        }
      }
      check_encode(format, k, {}, {});
    }
  }
}

TEST_CASE("ggml kernels of every level decode random bytes as the reference does", "[quant][kernels]") {
  for (const Isa level : test::levels_here()) {
    const GgmlKernels& k = kernels::table_for(level).ggml;
    CAPTURE(to_string(level), k.decode.isa);
    for (const GgmlType type : Ggml::kTypes) {
      const Ggml format{type};
      CAPTURE(format.scheme());
      Random random(9);
      for (const std::size_t n : {std::size_t{0}, std::size_t{5}, std::size_t{256}, std::size_t{4 * 256 + 100}}) {
        const auto block = static_cast<std::size_t>(format.spec().block);
        GuardedArray<std::uint8_t> src((n + block - 1) / block * static_cast<std::size_t>(format.spec().block_bytes));
        for (std::uint8_t& b : src.span()) b = static_cast<std::uint8_t>(random.below(256));
        std::vector<float> expected(n);
        detail::decode_ggml_reference(format, src.data(), expected);
        GuardedArray<float> got(n);
        kernels::decode_ggml_row(k, format, src.data(), got.span());
        for (std::size_t i = 0; i < n; ++i) {
          CAPTURE(i, expected[i], got.span()[i]);
          REQUIRE((std::memcmp(&expected[i], &got.span()[i], sizeof(float)) == 0 ||
                   (std::isnan(expected[i]) && std::isnan(got.span()[i]))));
        }
      }
    }
  }
}
