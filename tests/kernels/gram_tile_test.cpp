// SPDX-License-Identifier: Apache-2.0
/// Tiles of XᵀX on every level against the reference of GramMatrix: the same bits.

#include <algorithm>
#include <cstring>
#include <vector>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/random.hpp"
#include "kernels/table.hpp"
#include "support/catch.hpp"
#include "support/guard_page.hpp"
#include "support/levels.hpp"

using namespace blockpack;
using namespace blockpack::test;

TEST_CASE("a tile of XᵀX has the bits of the reference on every level and reads no value beyond x",
          "[kernels][quant][smoke]") {
  const index_t tokens = GENERATE(1, 3, 4, 5, 63, 64, 65, 131), columns = GENERATE(1, 31, 32, 33, 71);
  Random random(static_cast<std::uint64_t>(100 * tokens + columns));
  GuardedArray<float> values(static_cast<std::size_t>(tokens * columns));
  for (float& v : values.span()) v = random.normal();
  values.span()[0] = 0x1p-149f;
  const MatrixView<const float> x(values.data(), tokens, columns);
  for (index_t left = 0; left < columns; left += detail::kGramTile)
    for (index_t right = 0; right <= left; right += detail::kGramTile) {
      constexpr index_t kTile = detail::kGramTile;
      std::vector<double> start(static_cast<std::size_t>(kTile * kTile), 0.0);
      const index_t rows = std::min(kTile, columns - left), cols = std::min(kTile, columns - right);
      for (index_t i = 0; i < rows; ++i)
        for (index_t j = 0; j < cols; ++j) start[static_cast<std::size_t>(i * kTile + j)] = random.normal();
      std::vector<double> expected = start;
      detail::add_gram_tile_reference(x, left, right, expected.data());
      for (const Isa level : levels_here()) {
        const auto& slot = kernels::table_for(level).quant.gram_tile;
        CAPTURE(tokens, columns, left, right, slot.isa);
        std::vector<double> sums = start;
        slot.fn({values.data() + left, values.data() + right, static_cast<std::size_t>(columns),
                 static_cast<std::size_t>(tokens), static_cast<std::size_t>(rows), static_cast<std::size_t>(cols),
                 sums.data()});
        REQUIRE(std::memcmp(expected.data(), sums.data(), sums.size() * sizeof(double)) == 0);
      }
    }
}
