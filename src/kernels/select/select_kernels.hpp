// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The slots of the select family: scores of weights and the bits of the largest of them (sparse/mask.hpp). The same
/// bits on every level.
///
/// A row of scores stays in the first-level cache, those of 2:4 stay in registers, so that a pass over a matrix reads
/// its weights once. Limit: reading the weights for groups, or on AVX2 the minima, maxima and comparisons, three
/// registers of scores in 12 cycles; for the largest of a row the passes that count how many scores reach a threshold,
/// about 20.

#include "kernels/slot.hpp"

namespace blockpack::kernels {

struct SelectKernels {
  /// dst[j] = |w[j]| * column[j] * row, in this order; no column: 1. Whether one is NaN.
  Slot<bool (*)(const float* w, const float* column, float row, std::size_t n, float* dst) noexcept> weigh;
  /// How many of n scores are >= threshold.
  Slot<std::size_t (*)(const float* scores, std::size_t n, float threshold) noexcept> count_reaching;
  /// Bit j of words is set for scores[j] >= threshold; all ceil(n / 64) words are written.
  Slot<void (*)(const float* scores, std::size_t n, float threshold, std::uint64_t* words) noexcept> reaching;
  /// Bits of the `keep` largest of every `of` = 2, 4, 8 or 16 scores, none of them NaN, the lower index first where
  /// they are equal; writes `blocks` words for 64 scores each.
  Slot<void (*)(const float* scores, std::size_t blocks, std::size_t keep, std::size_t of,
                std::uint64_t* words) noexcept>
      groups;
  /// weigh() and groups() of 64 * blocks weights in one pass. Whether a score may be NaN: also where there are infinite
  /// ones of both signs.
  Slot<bool (*)(const float* w, const float* column, float row, std::size_t blocks, std::size_t keep, std::size_t of,
                std::uint64_t* words) noexcept>
      weighed_groups;
};

/// Calls visit("name", slot) for every slot of the family: kernel_report() and the tests walk the table with it.
template <class Visitor>
void visit_slots(const SelectKernels& k, Visitor&& visit) {
  visit("weigh", k.weigh);
  visit("count_reaching", k.count_reaching);
  visit("reaching", k.reaching);
  visit("groups", k.groups);
  visit("weighed_groups", k.weighed_groups);
}

void install_select_scalar(SelectKernels& table, Features features) noexcept;
void install_select_avx2(SelectKernels& table, Features features) noexcept;
void install_select_avx512(SelectKernels& table, Features features) noexcept;

}  // namespace blockpack::kernels
