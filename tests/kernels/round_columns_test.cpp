// SPDX-License-Identifier: Apache-2.0
/// Columns rounded one after the other, on every level, against Grid::nearest and the sums written out: the same bits.

#include <cstring>
#include <string>
#include <vector>

#include "blockpack/core/random.hpp"
#include "blockpack/quant/grid.hpp"
#include "quant/block_code.hpp"
#include "support/catch.hpp"
#include "support/levels.hpp"

using namespace blockpack;
using namespace blockpack::test;
using kernels::kRoundColumns;
using kernels::kRoundRows;

namespace {

/// `count` units around 0, unevenly spaced; every other tie goes up.
GridTable table_of(int count) {
  std::vector<float> units;
  for (int i = 0; i < count; ++i) {
    const auto u = static_cast<float>(i - count / 2);
    units.push_back(u * (1.0f + 0.125f * std::abs(u)));
  }
  return GridTable::make(std::move(units), [](std::size_t i) { return i % 2 == 0; });
}

/// A grid for every row, with zero, subnormal, negative and ordinary scales; every other one of integers has an offset.
std::vector<Grid> row_grids(const GridTable* table, bool multiplier, Random& random) {
  std::vector<Grid> grids;
  for (std::size_t r = 0; r < kRoundRows; ++r) {
    float scale = 0.01f + random.uniform();
    if (r == 3) scale = 0.0f;
    if (r == 5) scale = 1e-40f;
    if (r == 7) scale = -scale;
    if (table == nullptr) {
      grids.emplace_back(-4 - static_cast<int>(r % 3), 3, scale, r % 2 == 0 ? 0.0f : random.normal());
    } else if (multiplier) {
      grids.emplace_back(*table, scale, 0.75f, scale == 0.0f ? 0.0f : 1.0f / (scale + 0.01f));
    } else {
      grids.emplace_back(*table, scale);
    }
  }
  return grids;
}

/// What a kernel reads of those grids.
kernels::RowGrids kernel_grids(const std::vector<Grid>& grids) {
  kernels::RowGrids k{};
  for (std::size_t r = 0; r < kRoundRows; ++r) kernels::set_row_grid(k, r, grids[r]);
  return k;
}

}  // namespace

TEST_CASE("columns are rounded as Grid::nearest rounds and carry their errors on, the same on every level",
          "[kernels][quant]") {
  const int units = GENERATE(0, 1, 2, 16, 33, 34, 255);  // 0: integers
  const bool multiplier = units > 0 && GENERATE(false, true);
  const std::size_t rows = GENERATE(std::size_t{1}, 5, 16), columns = GENERATE(std::size_t{1}, 3, 17, 64);
  Random random(static_cast<std::uint64_t>(units) * 64 + rows * 8 + columns);
  const GridTable table = table_of(std::max(units, 1));
  const std::vector<Grid> even = row_grids(units > 0 ? &table : nullptr, multiplier, random);
  const std::vector<Grid> odd = row_grids(units > 0 ? &table : nullptr, multiplier, random);
  const kernels::RowGrids even_kernel = kernel_grids(even), odd_kernel = kernel_grids(odd);
  const std::size_t stride = columns + 3;

  std::vector<float> weights(rows * stride), updates(kRoundColumns * kRoundColumns);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    weights[i] = 3.0f * random.normal();
    const Grid& grid = even[i / stride];
    if (i % 5 == 0 && grid.scale() > 0.1f) weights[i] = 0.5f * grid.scale() * std::round(weights[i]);  // ties
    if (i % 11 == 0) weights[i] = 0.0f;
  }
  for (float& u : updates) u = 0.2f * random.normal();
  for (std::size_t s = 0; s < kRoundColumns; ++s) updates[s * kRoundColumns + s] = 0.5f + random.uniform();

  std::vector<float> errors = weights, chosen(weights.size(), 7.0f);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t s = columns; s-- > 0;) {
      const float* update = &updates[s * kRoundColumns];
      float* row = &errors[r * stride];
      const float value = (s % 2 == 0 ? even : odd)[r].nearest(row[s]);
      const float error = (value - row[s]) / update[s];
      chosen[r * stride + s] = value;
      row[s] = error;
      for (std::size_t t = 0; t < s; ++t) {
        volatile float product = error * update[t];  // not contracted
        row[t] += product;
      }
    }

  for (const Isa isa : levels_here()) {
    CAPTURE(to_string(isa), units, multiplier, rows, columns);
    std::vector<float> got = weights, got_chosen(weights.size(), 7.0f);
    const kernels::RowGrids* grids[kRoundColumns];
    for (std::size_t s = 0; s < columns; ++s) grids[s] = s % 2 == 0 ? &even_kernel : &odd_kernel;
    kernels::RoundColumns p{};
    p.values = got.data();
    p.chosen = got_chosen.data();
    p.values_stride = p.chosen_stride = stride;
    p.rows = rows;
    p.columns = columns;
    p.updates = updates.data();
    p.grids = grids;
    if (units > 0) {
      p.units = table.units.data();
      p.thresholds = table.thresholds.data();
      p.thresholds_count = table.thresholds.size();
    }
    kernels::table_for(isa).quant.round_columns.fn(p);
    CHECK(got_chosen == chosen);
    CHECK(got == errors);
  }
}

TEST_CASE("columns are kept as told, or the best of each group in its turn, the same on every level",
          "[kernels][sparse]") {
  const std::size_t keep = GENERATE(std::size_t{0}, 1, 2), of = GENERATE(std::size_t{0}, 2, 4, 7);  // 0: as told
  const std::size_t rows = GENERATE(std::size_t{3}, 16), columns = of == 0 ? 17 : 63 / of * of - of + 1;
  const bool rounded = GENERATE(false, true);
  Random random(100 * of + 10 * keep + rows);
  const std::vector<Grid> grids = row_grids(nullptr, false, random);
  const kernels::RowGrids kernel = kernel_grids(grids);
  std::vector<float> weights(rows * columns), updates(kRoundColumns * kRoundColumns);
  for (float& w : weights) w = std::round(8.0f * random.normal()) / 4.0f;  // ties among them
  for (float& u : updates) u = 0.2f * random.normal();
  for (std::size_t s = 0; s < kRoundColumns; ++s) updates[s * kRoundColumns + s] = 0.5f;
  std::vector<std::uint64_t> told(rows);
  for (std::uint64_t& bits : told) bits = random() & ((std::uint64_t{1} << columns) - 1);

  std::vector<float> errors = weights, chosen(weights.size());
  std::vector<std::uint64_t> kept = told;
  for (std::size_t r = 0; r < rows; ++r) {
    float* row = &errors[r * columns];
    if (of > 0) kept[r] = 0;
    for (std::size_t s = columns; s-- > 0;) {
      const float* update = &updates[s * kRoundColumns];
      if (of > 0 && (columns - 1 - s) % of == 0)
        for (std::size_t t = s + 1; t-- > (s + 1 < of ? 0 : s + 1 - of);) {
          std::size_t better = 0;
          for (std::size_t u = s + 1; u-- > (s + 1 < of ? 0 : s + 1 - of);)
            better += std::abs(row[u]) > std::abs(row[t]) || (std::abs(row[u]) == std::abs(row[t]) && u > t) ? 1 : 0;
          kept[r] |= static_cast<std::uint64_t>(better < keep) << t;
        }
      float value = rounded ? grids[r].nearest(row[s]) : row[s];
      if ((kept[r] >> s & 1) == 0) value = 0.0f;
      const float error = (value - row[s]) / update[s];
      chosen[r * columns + s] = value;
      row[s] = error;
      for (std::size_t t = 0; t < s; ++t) {
        volatile float product = error * update[t];  // not contracted
        row[t] += product;
      }
    }
  }
  for (const Isa isa : levels_here()) {
    CAPTURE(to_string(isa), keep, of, rows, columns, rounded);
    std::vector<float> got = weights, got_chosen(weights.size());
    std::vector<std::uint64_t> got_kept = told;
    std::vector<const kernels::RowGrids*> column_grids(columns, &kernel);
    kernels::RoundColumns p{};
    p.values = got.data();
    p.chosen = got_chosen.data();
    p.values_stride = p.chosen_stride = p.columns = columns;
    p.rows = rows;
    p.updates = updates.data();
    p.grids = rounded ? column_grids.data() : nullptr;
    p.kept = got_kept.data();
    p.keep = keep;
    p.of = of;
    kernels::table_for(isa).quant.round_columns.fn(p);
    CHECK(got_kept == kept);
    CHECK(got_chosen == chosen);
    CHECK(got == errors);
  }
}
