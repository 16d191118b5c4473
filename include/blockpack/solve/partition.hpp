// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Fixed blocks: every coordinate lies in one of them.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/solve/objective.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

enum class Partition : std::uint8_t {
  order,   ///< consecutive coordinates
  sort,    ///< by rising L_i: blocks of alike curvature, the best for greedy rules
  average  ///< the smallest L_i, the largest, the second smallest, …: blocks of alike mean curvature
};

namespace detail {

/// 0 … n - 1 by rising value, equal ones in order.
inline std::vector<index_t> rising_order(std::span<const double> values) {
  std::vector<index_t> order(values.size());
  std::iota(order.begin(), order.end(), index_t{0});
  std::stable_sort(order.begin(), order.end(), [&](index_t i, index_t j) {
    return values[static_cast<std::size_t>(i)] < values[static_cast<std::size_t>(j)];
  });
  return order;
}

/// Runs of block_size; the last may be shorter.
inline Blocks cut(std::span<const index_t> order, index_t block_size) {
  if (block_size < 1) throw ValueError("partition: block_size = " + std::to_string(block_size) + ", at least 1 needed");
  Blocks blocks;
  const auto step = static_cast<std::size_t>(block_size);
  for (std::size_t at = 0; at < order.size(); at += step)
    blocks.emplace_back(order.begin() + static_cast<index_t>(at),
                        order.begin() + static_cast<index_t>(std::min(at + step, order.size())));
  return blocks;
}

inline void shuffle(std::span<index_t> order, Random& random) {
  for (std::size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[random.below(static_cast<std::uint32_t>(i))]);
}

}  // namespace detail

/// Blocks of block_size coordinates, the last one shorter where it does not divide.
///
/// Shapes:  lipschitz [n].
/// Errors:  ValueError for a block_size below 1.
inline Blocks make_partition(Partition kind, std::span<const double> lipschitz, index_t block_size) {
  std::vector<index_t> order = detail::rising_order(lipschitz);
  if (kind == Partition::order) std::iota(order.begin(), order.end(), index_t{0});
  if (kind == Partition::average) {
    const std::vector<index_t> rising = order;
    for (std::size_t i = 0; i < order.size(); ++i)
      order[i] = i % 2 == 0 ? rising[i / 2] : rising[rising.size() - 1 - i / 2];
  }
  return detail::cut(order, block_size);
}

/// Blocks of coordinates in random order.
inline Blocks make_random_partition(index_t n, index_t block_size, Random& random) {
  std::vector<index_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), index_t{0});
  detail::shuffle(order, random);
  return detail::cut(order, block_size);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
