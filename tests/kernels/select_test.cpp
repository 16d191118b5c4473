// SPDX-License-Identifier: Apache-2.0
/// Scores and masks on every level against the definitions: the same bits.

#include <cmath>
#include <limits>
#include <vector>

#include "blockpack/sparse/mask.hpp"
#include "kernels/table.hpp"
#include "support/catch.hpp"
#include "support/guard_page.hpp"
#include "support/levels.hpp"
#include "support/random.hpp"

using namespace blockpack;
using namespace blockpack::test;

TEST_CASE("scores are weighed and compared the same on every level", "[kernels][sparse]") {
  const std::size_t n = GENERATE(std::size_t{0}, 1, 7, 16, 31, 64, 65, 130, 1000);
  std::vector<float> w = random_normal(static_cast<index_t>(n), 1), column = random_normal(static_cast<index_t>(n), 2);
  for (std::size_t j = 0; j < n; ++j)
    if (j % 9 < 2 || j % 64 < 4) w[j] = column[j] = 1.0f;  // equal scores, side by side and beyond groups
  for (const Isa isa : levels_here()) {
    CAPTURE(to_string(isa), n);
    const kernels::SelectKernels& k = kernels::table_for(isa).select;
    for (const bool with_column : {false, true}) {
      std::vector<float> scores(n), expected(n);
      const float* factors = with_column ? column.data() : nullptr;
      CHECK(!k.weigh.fn(w.data(), factors, 0.3f, n, scores.data()));
      detail::weigh_reference(w.data(), factors, 0.3f, static_cast<index_t>(n), expected.data());
      CHECK(scores == expected);
      for (const float threshold : {-std::numeric_limits<float>::infinity(), 0.0f, 0.3f, 1.0f}) {
        std::size_t count = 0;
        std::vector<std::uint64_t> bits((n + 63) / 64, ~std::uint64_t{0}), words((n + 63) / 64);
        for (std::size_t j = 0; j < n; ++j)
          if (scores[j] >= threshold) {
            detail::set_bit(words.data(), static_cast<index_t>(j));
            ++count;
          }
        CHECK(k.count_reaching.fn(scores.data(), n, threshold) == count);
        k.reaching.fn(scores.data(), n, threshold, bits.data());
        CHECK(bits == words);
      }
      for (const std::size_t of : {2, 4, 8, 16})
        for (std::size_t keep = 0; keep <= of; ++keep) {
          std::vector<std::uint64_t> bits(n / 64, ~std::uint64_t{0}), words(n / 64);
          k.groups.fn(scores.data(), n / 64, keep, of, bits.data());
          detail::keep_in_groups_reference(scores.data(), 0, static_cast<index_t>(n / 64 * 64),
                                           static_cast<index_t>(keep), static_cast<index_t>(of), words.data());
          CHECK(bits == words);
          bits.assign(n / 64, ~std::uint64_t{0});
          CHECK(!k.weighed_groups.fn(w.data(), factors, 0.3f, n / 64, keep, of, bits.data()));
          CHECK(bits == words);
        }
    }
    if (n == 0) continue;
    for (const std::size_t at : {std::size_t{0}, n / 2, n - 1}) {
      std::vector<float> bad = w, scores(n);
      bad[at] = std::nanf("");
      CHECK(k.weigh.fn(bad.data(), nullptr, 1.0f, n, scores.data()));
      std::vector<std::uint64_t> bits(n / 64);
      for (const std::size_t of : {2, 4, 8, 16})
        CHECK(k.weighed_groups.fn(bad.data(), nullptr, 1.0f, n / 64, 2, of, bits.data()) == (at < n / 64 * 64));
    }
    // Nothing is said of columns that are not there.
    std::vector<float> scores(n);
    CHECK(!k.weigh.fn(w.data(), nullptr, std::numeric_limits<float>::infinity(), n, scores.data()));
  }
}
