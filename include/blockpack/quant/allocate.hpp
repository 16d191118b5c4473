// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Mixed precision: which scheme each tensor of a model gets within a budget of bits, given how much each tensor
/// matters.
///
/// Source: ActQuant, arXiv:2605.24011, repository arashakb/ActQuant.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <queue>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/error.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// A scheme that may be chosen.
struct MenuEntry {
  std::string name;
  double bits_per_weight = 0;
  double noise = 0;  ///< squared error relative to the weights', measured or noise_of_bits
};

/// 2^(-2 bits): six decibels a bit.
inline double noise_of_bits(double bits_per_weight) { return std::exp2(-2.0 * bits_per_weight); }

/// A tensor of the model. Tensors of one layer disturb the same outputs: their noise adds before it is squared.
struct AllocationTensor {
  std::string name;
  index_t layer = 0;
  index_t weights = 0;
  double score = 0;  ///< how much its noise matters; negative counts as 0
};

struct AllocationOptions {
  /// True: as the public code has it. A tensor's priority is the value its upgrade had when the tensor reached its
  /// level, even after upgrades of other tensors of its layer have made it smaller. False: always the value now (3 to 6
  /// percent lower objective).
  bool lazy_stale = false;
};

struct Allocation {
  std::vector<std::size_t> choice;  ///< menu index of every tensor
  double bits_per_weight = 0;       ///< achieved
  double objective = 0;             ///< sum over layers of (sum over tensors of score · noise)²
};

/// Greedy upgrades from the first entry of the menu, each time the one that lowers the objective most per bit. An
/// upgrade that would exceed the budget ends the way of its tensor.
///
/// Ties are settled by the order in which upgrades were entered, tensors in lexicographic order of their names first.
///
/// Errors:  ValueError for an empty menu, one that is not sorted by rising bits per weight, a noise or a score that is
///          not finite, a budget below the first entry; ShapeError for a negative size.
/// Cost:    O(tensors · menu · (log + tensors of a layer)).
inline Allocation allocate_bits(std::span<const AllocationTensor> tensors, std::span<const MenuEntry> menu,
                                double target_bits_per_weight, const AllocationOptions& options = {}) {
  if (menu.empty()) throw ValueError("allocate_bits: the menu is empty");
  for (std::size_t i = 0; i < menu.size(); ++i) {
    if (!std::isfinite(menu[i].noise) || !(menu[i].noise >= 0.0) || !(menu[i].bits_per_weight > 0.0))
      throw ValueError("allocate_bits: bits or noise of " + menu[i].name + " are not positive numbers");
    if (i > 0 && !(menu[i].bits_per_weight > menu[i - 1].bits_per_weight))
      throw ValueError("allocate_bits: " + menu[i].name + " has not more bits per weight than " + menu[i - 1].name +
                       " before it in the menu");
  }
  double total = 0.0;
  for (const AllocationTensor& t : tensors) {
    if (t.weights < 0) throw ShapeError("allocate_bits: " + t.name + " has a negative number of weights");
    if (!std::isfinite(t.score)) throw ValueError("allocate_bits: the score of " + t.name + " is not finite");
    total += static_cast<double>(t.weights);
  }
  if (!(target_bits_per_weight >= menu[0].bits_per_weight))
    throw ValueError("allocate_bits: a target of " + std::to_string(target_bits_per_weight) +
                     " bits per weight is below the smallest scheme, " + menu[0].name + " with " +
                     std::to_string(menu[0].bits_per_weight));

  std::vector<index_t> layers;
  for (const AllocationTensor& t : tensors) layers.push_back(t.layer);
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  std::vector<std::vector<std::size_t>> members(layers.size());
  std::vector<std::size_t> layer_of;
  std::vector<double> noise(layers.size(), 0.0);  // E_l
  Allocation result;
  result.choice.assign(tensors.size(), 0);
  const auto weight = [&](std::size_t t) { return std::max(tensors[t].score, 0.0); };
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    layer_of.push_back(
        static_cast<std::size_t>(std::lower_bound(layers.begin(), layers.end(), tensors[t].layer) - layers.begin()));
    members[layer_of[t]].push_back(t);
    noise[layer_of[t]] += weight(t) * menu[0].noise;
  }
  const auto bits_added = [&](std::size_t t) {
    const std::size_t level = result.choice[t];
    return static_cast<double>(tensors[t].weights) * (menu[level + 1].bits_per_weight - menu[level].bits_per_weight);
  };
  const auto value = [&](std::size_t t) {
    const std::size_t level = result.choice[t];
    const double before = noise[layer_of[t]];
    const double after = before - weight(t) * (menu[level].noise - menu[level + 1].noise);
    return (before * before - after * after) / bits_added(t);
  };

  struct Upgrade {
    double value;
    std::uint64_t entered;
    std::size_t tensor, level;
    bool operator<(const Upgrade& other) const {  // the queue gives the largest
      return value != other.value ? value < other.value : entered > other.entered;
    }
  };
  std::priority_queue<Upgrade> queue;
  std::uint64_t entered = 0;
  std::vector<bool> closed(tensors.size(), false);
  const auto enter = [&](std::size_t t) {
    if (!closed[t] && result.choice[t] + 1 < menu.size() && tensors[t].weights > 0)
      queue.push({value(t), entered++, t, result.choice[t]});
  };
  std::vector<std::size_t> by_name(tensors.size());
  for (std::size_t t = 0; t < by_name.size(); ++t) by_name[t] = t;
  std::stable_sort(by_name.begin(), by_name.end(),
                   [&](std::size_t a, std::size_t b) { return tensors[a].name < tensors[b].name; });
  for (const std::size_t t : by_name) enter(t);

  const double budget = target_bits_per_weight * total;
  double bits = menu[0].bits_per_weight * total;
  while (!queue.empty()) {
    const Upgrade top = queue.top();
    queue.pop();
    const std::size_t t = top.tensor;
    if (closed[t] || result.choice[t] != top.level) continue;
    if (!options.lazy_stale && value(t) < top.value) {  // entered anew when its layer changed
      queue.push({value(t), top.entered, t, top.level});
      continue;
    }
    const double added = bits_added(t);
    if (bits + added > budget) {
      closed[t] = !options.lazy_stale;
      continue;
    }
    noise[layer_of[t]] -= weight(t) * (menu[top.level].noise - menu[top.level + 1].noise);
    bits += added;
    ++result.choice[t];
    enter(t);
    if (options.lazy_stale)
      for (const std::size_t other : members[layer_of[t]])
        if (other != t) enter(other);
  }
  result.bits_per_weight = total > 0.0 ? bits / total : 0.0;
  for (const double e : noise) result.objective += e * e;
  return result;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
