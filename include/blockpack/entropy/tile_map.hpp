// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Score maps: one figure for each tile of a matrix, to see where its information and its magnitude lie.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/sum.hpp"
#include "blockpack/entropy/value_counts.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

enum class TileScore : std::uint8_t {
  entropy,       ///< plug-in entropy of the values on the grid, nats
  miller_madow,  ///< the same with its bias corrected: use it where tiles at the edge are smaller
  efficiency,    ///< entropy / log n
  abs_mean,      ///< mean |w|
  abs_max,       ///< max |w|
  l2             ///< sqrt(Σ w²)
};

/// Values [rows, cols] of the tiles; the last row and column of tiles may cover less than a whole tile.
struct TileMap {
  index_t tile_rows = 0;
  index_t tile_cols = 0;
  index_t rows = 0;  ///< number of tiles along the rows of the matrix
  index_t cols = 0;
  std::vector<double> values;
  ValueGrid grid;  ///< what the entropies were counted on

  double operator()(index_t i, index_t j) const noexcept { return values[static_cast<std::size_t>(i * cols + j)]; }
};

namespace detail {

/// Entropy of the values of small tiles: codes are counted in a table that is cleared by walking the tile again.
class TileCounter {
 public:
  explicit TileCounter(const ValueGrid& grid)
      : codec_(grid),
        nan_code_(codec_.encode(std::numeric_limits<float>::quiet_NaN())),
        as_stored_(grid.kind == ValueGrid::Kind::as_stored) {}

  template <class T>
  DiscreteEntropy count(MatrixView<const T> tile) {
    EntropyOfCounts h;
    if (as_stored_ && std::is_same_v<T, float>) {
      symbols_.clear();
      for (index_t i = 0; i < tile.rows(); ++i)
        for (const T v : tile.row(i)) symbols_.push_back(symbol_of(static_cast<float>(v)));
      std::sort(symbols_.begin(), symbols_.end());
      for_each_symbol_count(symbols_, [&](std::uint32_t, std::uint64_t c) { h.add(c); });
      return h.result();
    }
    counts_.resize(kHistogramBins);
    codes_.resize(static_cast<std::size_t>(tile.rows() * tile.cols()));
    for (index_t i = 0; i < tile.rows(); ++i) take_codes(tile.row(i), codes_.data() + i * tile.cols());
    std::uint32_t* const counts = counts_.data();
    const std::size_t n = codes_.size();
    if (n > kHistogramBins) {
      for (const std::uint16_t c : codes_) ++counts[c];
      for (std::uint32_t& c : counts_) h.add(std::exchange(c, 0u));
      return h.result();
    }
    // How many counters went beyond k is known from their steps; no second look at them is needed.
    beyond_.resize(kLanes * (n + 1));
    std::uint32_t* const beyond = beyond_.data();
    for (std::size_t i = 0; i < n; ++i) ++beyond[kLanes * counts[codes_[i]]++ + i % kLanes];
    for (const std::uint16_t c : codes_) counts[c] = 0;
    index_t symbols = take_beyond(0);
    for (std::size_t k = 1; symbols > 0; ++k) {
      const index_t more = take_beyond(k);
      h.add(k, symbols - more);
      symbols = more;
    }
    return h.result();
  }

 private:
  /// Codes of a row of a tile; equal values have equal ones. The row of the next tile is fetched meanwhile: the rows of
  /// a tile lie far apart, and no hardware guesses them.
  template <class T>
  void take_codes(std::span<const T> row, std::uint16_t* dst) const noexcept {
#if defined(__GNUC__)
    const auto next = reinterpret_cast<std::uintptr_t>(row.data() + row.size());
    for (std::size_t j = 0; j < row.size() * sizeof(T); j += 64)
      __builtin_prefetch(reinterpret_cast<const void*>(next + j), 0, 2);
#endif
    if constexpr (!std::is_same_v<T, float>) {
      if (as_stored_) {  // in 16-bit arithmetic, which vectorizes
        constexpr std::uint16_t kInfinity = std::is_same_v<T, bf16> ? 0x7f80u : 0x7c00u;
        for (std::size_t j = 0; j < row.size(); ++j) {
          const std::uint16_t magnitude = row[j].bits & 0x7fffu;
          const std::uint16_t one_nan = magnitude > kInfinity ? std::uint16_t{0x7fffu} : row[j].bits;
          dst[j] = magnitude == 0 ? std::uint16_t{0} : one_nan;
        }
        return;
      }
    }
    for (std::size_t j = 0; j < row.size(); ++j) {
      const std::uint16_t c = codec_.encode(static_cast<float>(row[j]));
      const std::uint32_t symbol = codec_.symbol(c);
      dst[j] = symbol == 0 ? std::uint16_t{0} : (symbol == kNanSymbol ? nan_code_ : c);
    }
  }

  /// How many symbols occur more than k times; forgets it.
  index_t take_beyond(std::size_t k) noexcept {
    index_t symbols = 0;
    for (std::size_t lane = 0; lane < kLanes; ++lane) symbols += std::exchange(beyond_[kLanes * k + lane], 0u);
    return symbols;
  }

  static constexpr std::size_t kLanes = 4;  // consecutive increments of one counter would wait for each other

  GridCodec codec_;
  std::uint16_t nan_code_;
  bool as_stored_;
  std::vector<std::uint32_t> counts_, symbols_, beyond_;
  std::vector<std::uint16_t> codes_;
};

}  // namespace detail

/// Scores every tile of a matrix.
///
/// `grid` matters for the entropies only; absmax of an integer grid is that of the whole matrix.
/// Errors: ValueError for tiles of fewer than 1 row or column, or a bad grid. NaN in a tile makes its abs_mean, abs_max
///         and l2 NaN; for the entropies all NaN are one symbol.
/// Cost:   one pass; rows of tiles in parallel, the values do not depend on the threads.
inline TileMap tile_map(const WeightView& w, TileScore score, index_t tile_rows = 64, index_t tile_cols = 64,
                        const ValueGrid& grid = {}, const Execution& how = {}) {
  if (tile_rows < 1 || tile_cols < 1)
    throw ValueError("tile_map: tiles are " + to_string(MatrixShape{tile_rows, tile_cols}) + ", at least 1x1 needed");
  const WeightBlock block(w);
  TileMap map;
  map.tile_rows = tile_rows;
  map.tile_cols = tile_cols;
  map.rows = ceil_div(w.rows(), tile_rows);
  map.cols = ceil_div(w.cols(), tile_cols);
  map.grid = detail::resolve("tile_map", grid, {&block, 1});
  map.values.resize(static_cast<std::size_t>(checked_mul(map.rows, map.cols, "tile_map")));
  parallel_for(how, map.rows, [&](index_t i) {
    detail::TileCounter counter(map.grid);
    const index_t rows = std::min(tile_rows, w.rows() - i * tile_rows);
    for (index_t j = 0; j < map.cols; ++j) {
      const WeightView tile =
          w.block(i * tile_rows, j * tile_cols, rows, std::min(tile_cols, w.cols() - j * tile_cols));
      map.values[static_cast<std::size_t>(i * map.cols + j)] = tile.visit([&](auto t) {
        if (score <= TileScore::efficiency) {
          const DiscreteEntropy h = counter.count(t);
          if (score == TileScore::efficiency) return h.efficiency();
          return score == TileScore::entropy ? h.plug_in : h.miller_madow;
        }
        CompensatedSum sum;
        double largest = 0;
        for (index_t r = 0; r < t.rows(); ++r) {
          double row = 0;
          for (const auto v : t.row(r)) {
            const double m = std::fabs(static_cast<double>(static_cast<float>(v)));
            row += score == TileScore::l2 ? m * m : m;
            largest = m > largest ? m : largest;
          }
          sum += row;
        }
        if (sum.value() != sum.value()) return sum.value();
        if (score == TileScore::abs_max) return largest;
        return score == TileScore::l2 ? std::sqrt(sum.value()) : sum.value() / static_cast<double>(t.rows() * t.cols());
      });
    }
  });
  return map;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
