// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Blocks whose graph (the non-zeros of H_bb) is a forest: solving them takes a step an edge, however many coordinates
/// they hold. Partitions into such blocks, and message passing on them.
///
/// Source: J. Nutini, I. Laradji, M. Schmidt, JMLR 23 (2022), section 5; Gaussian belief propagation: O. Shental et
/// al., "Gaussian belief propagation solver for systems of linear equations", ISIT 2008.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/solve/objective.hpp"
#include "blockpack/solve/partition.hpp"
#include "blockpack/solve/quadratic.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// A forest that grows one coordinate at a time.
class ForestBuilder {
 public:
  explicit ForestBuilder(const SparseSymmetric& a) : a_(&a), parent_(static_cast<std::size_t>(a.size()), -1) {}

  const std::vector<index_t>& block() const noexcept { return block_; }

  /// Adds coordinate i if it touches each tree there is at most once; false if it would close a cycle.
  bool add(index_t i) {
    trees_.clear();
    for (const auto& e : a_->row(i))
      if (e.col != i && parent_[static_cast<std::size_t>(e.col)] >= 0) trees_.push_back(root(e.col));
    std::sort(trees_.begin(), trees_.end());
    if (std::adjacent_find(trees_.begin(), trees_.end()) != trees_.end()) return false;
    parent_[static_cast<std::size_t>(i)] = i;
    for (const index_t tree : trees_) parent_[static_cast<std::size_t>(tree)] = i;
    block_.push_back(i);
    return true;
  }

 private:
  index_t root(index_t i) noexcept {
    for (index_t* up = &parent_[static_cast<std::size_t>(i)]; *up != i; up = &parent_[static_cast<std::size_t>(i)]) {
      *up = parent_[static_cast<std::size_t>(*up)];  // path halving
      i = *up;
    }
    return i;
  }

  const SparseSymmetric* a_;
  std::vector<index_t> parent_;  // -1: not in the block
  std::vector<index_t> block_, trees_;
};

namespace detail {
inline std::vector<index_t> falling_diagonal(const SparseSymmetric& a) {
  std::vector<double> key(static_cast<std::size_t>(a.size()));
  for (index_t i = 0; i < a.size(); ++i) key[static_cast<std::size_t>(i)] = -a.diagonal(i);
  return rising_order(key);
}
}  // namespace detail

/// Blocks without an edge within (diagonal H_bb), the least used colour that no neighbour has, coordinates by falling
/// diagonal.
inline Blocks color_partition(const SparseSymmetric& a) {
  std::vector<std::size_t> color(static_cast<std::size_t>(a.size()), static_cast<std::size_t>(a.size()));
  Blocks blocks;
  for (const index_t i : detail::falling_diagonal(a)) {
    std::vector<bool> taken(blocks.size());
    for (const auto& e : a.row(i))
      if (const std::size_t c = color[static_cast<std::size_t>(e.col)]; c < blocks.size()) taken[c] = true;
    std::size_t best = blocks.size();
    for (std::size_t c = 0; c < blocks.size(); ++c)
      if (!taken[c] && (best == blocks.size() || blocks[c].size() < blocks[best].size())) best = c;
    if (best == blocks.size()) blocks.emplace_back();
    blocks[best].push_back(i);
    color[static_cast<std::size_t>(i)] = best;
  }
  return blocks;
}

/// Blocks that are forests: each coordinate, by falling diagonal, joins the first that takes it.
inline Blocks forest_partition(const SparseSymmetric& a) {
  std::vector<ForestBuilder> forests;
  for (const index_t i : detail::falling_diagonal(a)) {
    const auto taker = std::find_if(forests.begin(), forests.end(), [&](ForestBuilder& f) { return f.add(i); });
    if (taker == forests.end()) forests.emplace_back(a).add(i);
  }
  Blocks blocks;
  for (const ForestBuilder& f : forests) blocks.push_back(f.block());
  return blocks;
}

/// A lattice of rows x cols nodes, node (r, c) being c · rows + r, in two blocks: red (r + c even) and black.
inline Blocks red_black_lattice(index_t rows, index_t cols) {
  Blocks blocks(2);
  for (index_t c = 0; c < cols; ++c)
    for (index_t r = 0; r < rows; ++r) blocks[static_cast<std::size_t>((r + c) % 2)].push_back(c * rows + r);
  return blocks;
}

/// The same lattice in two combs, which are trees: the last row with the odd columns, the first row with the even ones.
inline Blocks tree_lattice(index_t rows, index_t cols) {
  Blocks blocks(2);
  for (index_t c = 0; c < cols; ++c)
    for (index_t r = 0; r < rows; ++r) blocks[r == 0 || (r < rows - 1 && c % 2 == 0) ? 1 : 0].push_back(c * rows + r);
  return blocks;
}

/// Blocks of the nodes of `kept` alone (rising), numbered by their place in it.
inline Blocks restrict_blocks(const Blocks& blocks, Coordinates kept) {
  Blocks rest;
  for (const std::vector<index_t>& block : blocks) {
    rest.emplace_back();
    for (const index_t i : block) {
      const auto at = std::lower_bound(kept.begin(), kept.end(), i);
      if (at != kept.end() && *at == i) rest.back().push_back(at - kept.begin());
    }
  }
  return rest;
}

/// Solves H_bb d = r by messages along the edges within a block. Holds scratch memory of the size of the matrix.
class MessagePassing {
 public:
  /// Leaves to root and back, exact. ValueError where the graph of the block has a cycle, or H_bb is not positive
  /// definite.
  ///
  /// Shapes:  r, d [block]. Cost: the entries of the rows of the block.
  void solve_forest(const SparseSymmetric& a, Coordinates block, std::span<const double> r, std::span<double> d) {
    enter(a, block);
    // Breadth first from every root: a parent stands before its children.
    order_.clear();
    parent_.assign(block.size(), -1);
    edge_.assign(block.size(), 0.0);
    pivot_.assign(block.size(), 0.0);
    seen_.assign(block.size(), false);
    bool cycle = false;
    for (std::size_t start = 0; start < block.size(); ++start) {
      if (seen_[start]) continue;
      seen_[start] = true;
      order_.push_back(start);
      for (std::size_t at = order_.size() - 1; at < order_.size(); ++at) {
        const std::size_t i = order_[at];
        for (const auto& e : a.row(block[i])) {
          const index_t k = place_[static_cast<std::size_t>(e.col)];
          if (k < 0 || k == parent_[i]) continue;
          const auto j = static_cast<std::size_t>(k);
          if (j == i) {
            pivot_[i] = e.value;
            continue;
          }
          cycle = cycle || seen_[j];
          if (seen_[j]) continue;
          seen_[j] = true;
          parent_[j] = static_cast<index_t>(i);
          edge_[j] = e.value;
          order_.push_back(j);
        }
      }
    }
    leave(block);
    if (cycle) throw ValueError("solve_forest: the graph of the block has a cycle");
    std::copy(r.begin(), r.end(), d.begin());
    for (std::size_t at = order_.size(); at > 0; --at) {
      const std::size_t c = order_[at - 1];
      if (!(pivot_[c] > 0.0)) throw ValueError("solve_forest: the matrix of the block is not positive definite");
      if (parent_[c] < 0) continue;
      const auto p = static_cast<std::size_t>(parent_[c]);
      pivot_[p] -= edge_[c] * edge_[c] / pivot_[c];
      d[p] -= edge_[c] * d[c] / pivot_[c];
    }
    for (const std::size_t c : order_) {
      if (parent_[c] >= 0) d[c] -= edge_[c] * d[static_cast<std::size_t>(parent_[c])];
      d[c] /= pivot_[c];
    }
  }

  /// Gaussian belief propagation: rounds of messages until the sum of the squared changes of their means is below
  /// `tolerance`, at most `rounds`. Exact on forests, where the messages settle; elsewhere it converges if H_bb is
  /// diagonally dominant. Cost of a round: the entries of the rows of the block times their number in a row.
  void solve_belief(const SparseSymmetric& a, Coordinates block, std::span<const double> r, std::span<double> d,
                    double tolerance = 1e-8, int rounds = 100) {
    enter(a, block);
    struct Message {  // from `from` to `to`; `back` is the one from `to` to `from`
      std::size_t from, to, back;
      double entry, precision, mean;
    };
    std::vector<Message> messages;
    std::vector<std::size_t> starts = {0};
    std::vector<double> own(block.size());
    for (std::size_t i = 0; i < block.size(); ++i) {
      for (const auto& e : a.row(block[i])) {
        const index_t k = place_[static_cast<std::size_t>(e.col)];
        if (k < 0) continue;
        if (e.col == block[i]) {
          own[i] = e.value;
          continue;
        }
        messages.push_back({i, static_cast<std::size_t>(k), 0, e.value, 0.0, 0.0});
      }
      starts.push_back(messages.size());
    }
    leave(block);
    for (Message& m : messages)
      for (std::size_t back = starts[m.to]; back < starts[m.to + 1]; ++back)
        if (messages[back].to == m.from) m.back = back;
    // Precision and precision-weighted mean of a node from all messages but the one numbered `without`.
    const auto collect = [&](std::size_t node, std::size_t without) {
      double precision = own[node], weighted = r[node];
      for (std::size_t to = starts[node]; to < starts[node + 1]; ++to) {
        const Message& in = messages[messages[to].back];
        if (messages[to].back == without) continue;
        precision += in.precision;
        weighted += in.precision * in.mean;
      }
      return std::pair(precision, weighted);
    };
    for (int round = 0; round < rounds; ++round) {
      double change = 0.0;
      for (Message& m : messages) {
        const auto [precision, weighted] = collect(m.from, m.back);
        m.precision = -m.entry * m.entry / precision;
        const double mean = weighted / m.entry;  // -A_ij h_i\j / P_ij
        change += (mean - m.mean) * (mean - m.mean);
        m.mean = mean;
      }
      if (change < tolerance) break;
    }
    for (std::size_t i = 0; i < block.size(); ++i) {
      const auto [precision, weighted] = collect(i, messages.size());
      d[i] = weighted / precision;
    }
  }

 private:
  void enter(const SparseSymmetric& a, Coordinates block) {
    place_.resize(static_cast<std::size_t>(a.size()), -1);
    for (std::size_t k = 0; k < block.size(); ++k) place_[static_cast<std::size_t>(block[k])] = static_cast<index_t>(k);
  }
  void leave(Coordinates block) noexcept {
    for (const index_t i : block) place_[static_cast<std::size_t>(i)] = -1;
  }

  std::vector<index_t> place_;  // of a coordinate in the block, -1 outside
  std::vector<std::size_t> order_;
  std::vector<index_t> parent_;
  std::vector<double> edge_, pivot_;
  std::vector<bool> seen_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
