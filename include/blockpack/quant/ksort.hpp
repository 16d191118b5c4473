// SPDX-License-Identifier: Apache-2.0
#pragma once

/// K-sort: an order of the channels of queries and keys in which channels of like size share a block. The product q · k
/// does not change when both are permuted alike, and permuted projections cost nothing at run time; a few channels of a
/// key are always much larger, and sorted they spoil one block instead of every block.
///
/// Source: "Accurate Block Quantization in LLMs with Outliers", arXiv:2403.20137. The order within each head and the
/// Euclidean norm are our reading of it; the modes beside rotary embeddings are ours.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/error.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// What the order has to respect.
enum class KSortMode : std::uint8_t {
  none,      ///< no rotary embedding: any order of the channels of a head
  pairs,     ///< pairs of the rotary embedding stay pairs; the frequency table of a head follows its pairs
  post_rope  ///< any order, applied to queries and keys after the embedding (a gather); the weights stay
};

/// Which channels a rotary embedding turns together, d the head dimension.
enum class RopeLayout : std::uint8_t {
  half_split,  ///< (i, i + d / 2)
  interleaved  ///< (2 i, 2 i + 1)
};

/// Channel order of every key head: channel j of the sorted head h is channel perm[h * head_dim + j] of the head as it
/// was. With `pairs`, pair p of the sorted head is pair pair_perm[h * head_dim / 2 + p]: the order of its inverse
/// frequencies.
struct KSortOrder {
  KSortMode mode = KSortMode::none;
  index_t head_dim = 0;
  std::vector<index_t> perm;
  std::vector<index_t> pair_perm;  ///< of `pairs` only

  index_t heads() const noexcept { return head_dim == 0 ? 0 : static_cast<index_t>(perm.size()) / head_dim; }
};

/// Sizes of the channels of keys from the rows of W_k: the norm of each row, with its bias beside it, times its gain
/// where keys are normalised per channel (QK-norm).
///
/// Shapes:  wk [heads * head_dim, in]; bias and gain [heads * head_dim] or empty. Errors: ShapeError.
inline std::vector<double> ksort_statistic(MatrixView<const float> wk, std::span<const float> bias = {},
                                           std::span<const float> gain = {}) {
  for (const auto& part : {bias, gain})
    if (!part.empty() && static_cast<index_t>(part.size()) != wk.rows())
      throw ShapeError("ksort_statistic: bias or gain has " + std::to_string(part.size()) + " values, " +
                       std::to_string(wk.rows()) + " needed");
  std::vector<double> sizes(static_cast<std::size_t>(wk.rows()));
  for (std::size_t r = 0; r < sizes.size(); ++r) {
    double sum = bias.empty() ? 0.0 : static_cast<double>(bias[r]) * static_cast<double>(bias[r]);
    for (const float v : wk.row(static_cast<index_t>(r))) sum += static_cast<double>(v) * static_cast<double>(v);
    sizes[r] = std::sqrt(sum) * (gain.empty() ? 1.0 : std::fabs(static_cast<double>(gain[r])));
  }
  return sizes;
}

/// Sizes from calibration keys [tokens, heads * head_dim], before or after the rotary embedding as they will be stored:
/// the largest magnitude of each channel, a better statistic than the weights where keys are at hand.
inline std::vector<double> ksort_statistic_of_keys(MatrixView<const float> keys) {
  std::vector<double> sizes(static_cast<std::size_t>(keys.cols()), 0.0);
  for (index_t t = 0; t < keys.rows(); ++t)
    for (std::size_t c = 0; c < sizes.size(); ++c)
      sizes[c] = std::max(sizes[c], std::fabs(static_cast<double>(keys(t, static_cast<index_t>(c)))));
  return sizes;
}

/// The order by falling size within each head; equal ones stay in their order.
///
/// `pairs` sorts the pairs by sqrt(a² + b²), a and b the sizes of their channels. In the half-split layout partners lie
/// at matching places of the two halves, so that both halves have the same order, and blocks of half a head or more
/// gain nothing. Errors: ShapeError when head_dim does not divide the sizes, or is odd with `pairs`; ValueError for
/// NaN.
inline KSortOrder ksort_order(std::span<const double> sizes, index_t head_dim, KSortMode mode,
                              RopeLayout layout = RopeLayout::half_split) {
  if (head_dim <= 0 || static_cast<index_t>(sizes.size()) % head_dim != 0 ||
      (mode == KSortMode::pairs && head_dim % 2 != 0))
    throw ShapeError("ksort_order: head_dim = " + std::to_string(head_dim) + " for " + std::to_string(sizes.size()) +
                     " channels, a divisor" + (mode == KSortMode::pairs ? " that is even" : "") + " needed");
  for (std::size_t c = 0; c < sizes.size(); ++c)
    if (std::isnan(sizes[c])) throw ValueError("ksort_order: the size of channel " + std::to_string(c) + " is NaN");
  KSortOrder order;
  order.mode = mode;
  order.head_dim = head_dim;
  const index_t half = head_dim / 2, units = mode == KSortMode::pairs ? half : head_dim;
  const auto first_of = [&](index_t p) { return layout == RopeLayout::half_split ? p : 2 * p; };
  const auto second_of = [&](index_t p) { return layout == RopeLayout::half_split ? p + half : 2 * p + 1; };
  for (index_t base = 0; base < static_cast<index_t>(sizes.size()); base += head_dim) {
    const auto size_of = [&](index_t unit) {
      const auto channel = [&](index_t c) { return sizes[static_cast<std::size_t>(base + c)]; };
      return mode == KSortMode::pairs ? std::hypot(channel(first_of(unit)), channel(second_of(unit))) : channel(unit);
    };
    std::vector<index_t> units_in_order(static_cast<std::size_t>(units));
    std::iota(units_in_order.begin(), units_in_order.end(), index_t{0});
    std::stable_sort(units_in_order.begin(), units_in_order.end(),
                     [&](index_t a, index_t b) { return size_of(a) > size_of(b); });
    if (mode != KSortMode::pairs) {
      order.perm.insert(order.perm.end(), units_in_order.begin(), units_in_order.end());
      continue;
    }
    order.pair_perm.insert(order.pair_perm.end(), units_in_order.begin(), units_in_order.end());
    std::vector<index_t> channels(static_cast<std::size_t>(head_dim));
    for (index_t p = 0; p < half; ++p) {
      const index_t from = units_in_order[static_cast<std::size_t>(p)];
      channels[static_cast<std::size_t>(first_of(p))] = first_of(from);
      channels[static_cast<std::size_t>(second_of(p))] = second_of(from);
    }
    order.perm.insert(order.perm.end(), channels.begin(), channels.end());
  }
  return order;
}

namespace detail {

/// Heads of a query or key tensor of `channels` channels, and how many of them share a key head.
inline index_t ksort_group(const char* function, const KSortOrder& order, index_t channels) {
  const index_t heads = order.head_dim == 0 ? 0 : channels / order.head_dim;
  if (order.head_dim == 0 || channels % order.head_dim != 0 || order.heads() == 0 || heads % order.heads() != 0)
    throw ShapeError(std::string(function) + ": " + std::to_string(channels) + " channels, a multiple of " +
                     std::to_string(order.perm.size()) + " needed");
  return heads / order.heads();
}

inline index_t ksort_source(const KSortOrder& order, index_t group, index_t channel) noexcept {
  const index_t head = channel / order.head_dim;
  return head * order.head_dim +
         order.perm[static_cast<std::size_t>(head / group * order.head_dim + channel % order.head_dim)];
}

}  // namespace detail

/// The rows of W_q or W_k in the order, for deployment: dst[i, :] = w[source of i, :]. Query head g takes the order of
/// key head g / (query heads / key heads). W_v and W_o stay as they are.
///
/// Shapes:  w and dst [heads * head_dim, in], heads a multiple of the order's; they may not overlap. A bias or a gain
/// is
///          permuted as a matrix of one column.
/// Errors:  ShapeError; ValueError for an order of the mode post_rope, whose weights stay.
inline void ksort_rows(const KSortOrder& order, MatrixView<const float> w, MatrixView<float> dst) {
  if (order.mode == KSortMode::post_rope)
    throw ValueError("ksort_rows: the weights stay where the order is applied after the rotary embedding");
  const index_t group = detail::ksort_group("ksort_rows", order, w.rows());
  if (dst.shape() != w.shape())
    throw ShapeError("ksort_rows: dst is " + to_string(dst.shape()) + ", " + to_string(w.shape()) + " needed");
  for (index_t i = 0; i < w.rows(); ++i) {
    const std::span<const float> source = w.row(detail::ksort_source(order, group, i));
    std::copy(source.begin(), source.end(), dst.row_data(i));
  }
}

/// The channels of queries or keys [tokens, heads * head_dim] in the order: what `post_rope` does at run time, and what
/// permuted weights give in the other modes. Errors: ShapeError.
inline void ksort_gather(const KSortOrder& order, MatrixView<const float> x, MatrixView<float> dst) {
  const index_t group = detail::ksort_group("ksort_gather", order, x.cols());
  if (dst.shape() != x.shape())
    throw ShapeError("ksort_gather: dst is " + to_string(dst.shape()) + ", " + to_string(x.shape()) + " needed");
  for (index_t c = 0; c < x.cols(); ++c) {
    const index_t source = detail::ksort_source(order, group, c);
    for (index_t t = 0; t < x.rows(); ++t) dst(t, c) = x(t, source);
  }
}

/// The inverse frequencies of a rotary embedding [head_dim / 2] as each key head needs them after `pairs`:
/// dst [heads, head_dim / 2]. Errors: ShapeError; ValueError for another mode.
inline void ksort_frequencies(const KSortOrder& order, std::span<const float> frequencies, MatrixView<float> dst) {
  if (order.mode != KSortMode::pairs) throw ValueError("ksort_frequencies: only `pairs` moves the frequencies");
  const index_t half = order.head_dim / 2;
  if (static_cast<index_t>(frequencies.size()) != half || dst.shape() != MatrixShape{order.heads(), half})
    throw ShapeError("ksort_frequencies: " + std::to_string(frequencies.size()) + " frequencies and dst " +
                     to_string(dst.shape()) + ", " + std::to_string(half) + " and " +
                     to_string(MatrixShape{order.heads(), half}) + " needed");
  for (index_t h = 0; h < order.heads(); ++h)
    for (index_t p = 0; p < half; ++p)
      dst(h, p) = frequencies[static_cast<std::size_t>(order.pair_perm[static_cast<std::size_t>(h * half + p)])];
}

}  // namespace blockpack::inline BLOCKPACK_ABI
