// SPDX-License-Identifier: Apache-2.0
#pragma once

/// N:M sparsity as a row format: of every M neighbours in a row at most N are stored, with their places; the values of
/// a row are a row of any other format. `RowMatrix<NmFormat<DenseFormat<bf16>>>` is a 2:4 matrix in bf16.
///
///     const auto w24 = NmMatrix<DenseFormat<bf16>>::encode(w);  // w has at most two weights of four neighbours
///
/// Bits per weight: N / M of those of the values, and those of the places: 1 for 2:4, 1.6 for 4:8 (5 groups a word).
/// 2:4 and 1:4 have a packed form (WeightLayout::two_four, and packed codes for 2:4 of 4 bits), others are decoded row
/// by row. docs/formats/sparse.md has
/// the bytes. Source: the semi-structured conversion of PyTorch and Sparse-Marlin for 2:4
/// (order of bits, which places stand for missing weights); the general form is ours.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/code_spec.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/row_matrix.hpp"
#include "blockpack/sparse/row_values.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// N:M and how its places are stored: `bits()` each, ascending, the first group of a row in the lowest bits of its
/// first 64-bit word; groups do not straddle words. The last word of a row ends with its last whole byte in use.
struct NmLayout {
  index_t keep = 2;
  index_t of = 4;

  /// Of one place.
  constexpr int bits() const noexcept { return static_cast<int>(std::bit_width(static_cast<std::size_t>(of - 1))); }
  constexpr int group_bits() const noexcept { return static_cast<int>(keep) * bits(); }
  constexpr index_t groups(index_t cols) const noexcept { return ceil_div(cols, of); }
  constexpr index_t groups_per_word() const noexcept { return 64 / group_bits(); }
  /// Weights in group g, and how many of them are stored.
  constexpr index_t size_of(index_t g, index_t cols) const noexcept { return std::min(of, cols - g * of); }
  constexpr index_t kept_of(index_t g, index_t cols) const noexcept { return std::min(keep, size_of(g, cols)); }
  /// Stored values of a row.
  constexpr index_t kept(index_t cols) const noexcept { return cols / of * keep + std::min(keep, cols % of); }
  constexpr index_t index_bytes(index_t cols) const noexcept {
    const index_t whole = groups(cols) / groups_per_word(), rest = groups(cols) % groups_per_word();
    return whole * 8 + ceil_div(rest * group_bits(), 8);
  }
  /// The places of group g of a row, its first in the lowest bits.
  std::uint64_t read(const std::byte* row, index_t row_bytes, index_t g) const noexcept {
    const index_t at = g / groups_per_word() * 8;
    std::uint64_t word = 0;
    std::memcpy(&word, row + at, static_cast<std::size_t>(std::min<index_t>(8, row_bytes - at)));
    word >>= g % groups_per_word() * group_bits();
    return group_bits() == 64 ? word : word & ((std::uint64_t{1} << group_bits()) - 1);
  }
  /// Adds the places of group g to a row of zero bytes.
  void write(std::byte* row, index_t g, std::uint64_t places) const noexcept {
    const index_t bit = g % groups_per_word() * group_bits();
    row += g / groups_per_word() * 8;
    // The group alone, shifted within its bytes: a group of 64 bits starts its word.
    places <<= bit % 8;
    for (row += bit / 8; places != 0; ++row, places >>= 8) *row |= static_cast<std::byte>(places);
  }

  friend bool operator==(const NmLayout&, const NmLayout&) = default;
};

/// The row format N:M over values in format V, 1 <= N <= M and 2 <= M <= 16 (ValueError). Sections: those of V for N /
/// M of the columns under `values.`, then `indices`. Columns that are no multiple of M end in a shorter group that
/// keeps at most N. Encoding refuses rows with more than N weights in a group that are not 0 (ValueError); -0 is stored
/// as 0.
template <RowFormat V>
class NmFormat {
 public:
  using Values = V;

  NmFormat() : NmFormat(NmLayout{}) {}
  explicit NmFormat(NmLayout layout, V values = V{}) : layout_(layout), values_(std::move(values)) {
    if (layout.keep < 1 || layout.of < 2 || layout.of > 16 || layout.keep > layout.of)
      throw ValueError("NmFormat: " + std::to_string(layout.keep) + ":" + std::to_string(layout.of) +
                       ", 1 <= N <= M and 2 <= M <= 16 needed");
  }

  const NmLayout& layout() const noexcept { return layout_; }
  const V& values() const noexcept { return values_; }
  std::string scheme() const {
    return std::to_string(layout_.keep) + ":" + std::to_string(layout_.of) + "-" + std::string(values_.scheme());
  }
  std::vector<SectionSpec> sections(index_t cols) const {
    std::vector<SectionSpec> specs = detail::value_sections(values_.sections(layout_.kept(cols)));
    specs.push_back({"indices", layout_.index_bytes(cols)});
    return specs;
  }
  /// Stored bits of a weight that is kept, its place aside: what says how coarse values are.
  double bits_per_value(index_t cols) const { return bits_per_weight(values_, layout_.kept(cols)); }
  bool can_store_nan() const noexcept { return values_.can_store_nan(); }
  bool exact_in_bf16() const noexcept { return values_.exact_in_bf16(); }
  /// Whether two of four neighbours are kept at most: how matrices are packed.
  bool two_four() const noexcept { return layout_.of == 4 && layout_.keep <= 2; }

  /// ValueError for a group with more than N weights.
  void check_pattern(const EncodeRow& row) const {
    const auto cols = static_cast<index_t>(row.weights.size());
    for (index_t first = 0; first < cols; first += layout_.of) {
      const auto group = row.weights.subspan(static_cast<std::size_t>(first),
                                             static_cast<std::size_t>(std::min(layout_.of, cols - first)));
      if (std::count_if(group.begin(), group.end(), [](float v) { return !(v == 0.0f); }) > layout_.keep)
        throw ValueError("encode_rows: w keeps more than " + std::to_string(layout_.keep) + " of " +
                         std::to_string(layout_.of) + " at row " + std::to_string(row.row) + ", columns from " +
                         std::to_string(first) + "; prune it first");
    }
  }
  void check_row(const EncodeRow& row) const requires CheckedFormat<V> {
    values_.check_row(Kept(*this, row, nullptr).row(row));
  }
  void encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const {
    const Kept kept(*this, row, dst.back());
    values_.encode_row(kept.row(row), dst.first(dst.size() - 1));
  }
  /// Of values for one place the last counts; a place beyond the group is ignored.
  void decode_row(std::span<const std::byte* const> src, index_t cols, index_t col, std::span<float> dst) const {
    std::fill(dst.begin(), dst.end(), 0.0f);
    const auto end = col + static_cast<index_t>(dst.size());
    const index_t row_bytes = layout_.index_bytes(cols);
    detail::RowValues<V> values(values_, src.first(src.size() - 1), layout_.kept(cols));
    for (index_t g = col / layout_.of; g * layout_.of < end; ++g) {
      std::uint64_t places = layout_.read(src.back(), row_bytes, g);
      for (index_t i = 0; i < layout_.kept_of(g, cols); ++i, places >>= layout_.bits()) {
        const float value = values[g * layout_.keep + i];
        const auto place = static_cast<index_t>(places & ((std::uint64_t{1} << layout_.bits()) - 1));
        const index_t j = g * layout_.of + place;
        if (place < layout_.size_of(g, cols) && j >= col && j < end) dst[static_cast<std::size_t>(j - col)] = value;
      }
    }
  }
  void decode_row_bf16(std::span<const std::byte* const> src, index_t cols, index_t col, std::span<bf16> dst) const {
    detail::decode_as_bf16(col, dst, [&](index_t c, std::span<float> part) { decode_row(src, cols, c, part); });
  }

  /// The codes of 2:4 values of 4 bits, one of which must mean 0: what stands for a value that is missing.
  std::optional<CodeSpec> code_spec(index_t cols, std::span<const std::byte* const> src) const requires CodeFormat<V> {
    if (layout_ != NmLayout{2, 4}) return std::nullopt;
    std::optional<CodeSpec> spec = values_.code_spec(layout_.kept(cols), src.first(src.size() - 1));
    if (!spec || spec->bits != 4 || spec->minimums || !(spec->zeros ? identity_levels(*spec) : zero_code(*spec) < 16))
      return std::nullopt;
    spec->two_four = true;
    return spec;
  }
  /// Places of a group differ: one that repeats is of a value that does not count.
  void read_codes(std::span<const std::byte* const> src, index_t cols,
                  const CodeRow& dst) const requires CodeFormat<V> {
    const auto values = src.first(src.size() - 1);
    const index_t kept = layout_.kept(cols), row_bytes = layout_.index_bytes(cols);
    values_.read_codes(values, kept,
                       {dst.codes.first(static_cast<std::size_t>(kept)), dst.scales, dst.minimums, dst.zeros});
    const CodeSpec spec = *code_spec(cols, src);
    const unsigned zero = spec.zeros ? 0 : zero_code(spec);
    for (index_t g = 0; g < layout_.groups(cols); ++g) {
      std::uint8_t* pair = dst.codes.data() + 2 * g;
      const auto places = static_cast<unsigned>(layout_.read(src.back(), row_bytes, g));
      const unsigned none = spec.zeros ? dst.zeros[static_cast<std::size_t>(2 * g / spec.group)] : zero;
      unsigned first = places & 3u, second = places >> 2 & 3u;
      if (layout_.kept_of(g, cols) < 2) {  // a group of one weight: the others lie beyond the row
        pair[1] = static_cast<std::uint8_t>(none);
        second = first == 3 ? 2 : 3;
      } else if (first == second) {
        pair[0] = static_cast<std::uint8_t>(none);
        first = second == 0 ? 1 : 0;
      }
      pair[0] = static_cast<std::uint8_t>((pair[0] & 15u) | first << 4);
      pair[1] = static_cast<std::uint8_t>((pair[1] & 15u) | second << 4);
    }
  }

  // Where V has parameters of the whole matrix: those of the weights that can be stored.
  bool fits_tensor() const noexcept requires TensorFormat<V> { return values_.fits_tensor(); }
  NmFormat fitted_to(TensorStatistics statistics) const requires TensorFormat<V> {
    if (statistics.rows > 0) statistics.count = statistics.rows * layout_.kept(statistics.count / statistics.rows);
    return NmFormat(layout_, values_.fitted_to(statistics));
  }
  void encode_tensor(std::span<std::byte* const> dst) const requires TensorFormat<V> {
    values_.encode_tensor(dst.first(dst.size() - 1));
  }

  friend bool operator==(const NmFormat&, const NmFormat&) = default;

 private:
  /// The stored values of one row, and their importance; writes their places unless `indices` is null. Missing weights
  /// are zeros at the first free places from M - N on.
  class Kept {
   public:
    Kept(const NmFormat& f, const EncodeRow& row, std::byte* indices) {
      const auto cols = static_cast<index_t>(row.weights.size());
      const NmLayout& n_m = f.layout_;
      weights_.resize(static_cast<std::size_t>(n_m.kept(cols)));
      if (!row.importance.empty()) importance_.resize(weights_.size());
      std::size_t at = 0;
      if (indices != nullptr) std::memset(indices, 0, static_cast<std::size_t>(n_m.index_bytes(cols)));
      for (index_t g = 0; g < n_m.groups(cols); ++g) {
        const index_t size = n_m.size_of(g, cols), wanted = n_m.kept_of(g, cols);
        const float* group = row.weights.data() + g * n_m.of;
        unsigned taken = 0;
        index_t count = 0;
        for (index_t j = 0; j < size && count < wanted; ++j)
          if (!(group[j] == 0.0f)) {
            taken |= 1u << j;
            ++count;
          }
        for (index_t j = size - wanted; count < wanted; ++j)
          if ((taken >> j & 1) == 0) {
            taken |= 1u << j;
            ++count;
          }
        std::uint64_t places = 0;
        for (int shift = 0; taken != 0; shift += n_m.bits(), taken &= taken - 1, ++at) {
          const auto j = static_cast<index_t>(std::countr_zero(taken));
          places |= static_cast<std::uint64_t>(j) << shift;
          weights_[at] = group[j] == 0.0f ? 0.0f : group[j];
          if (!row.importance.empty()) importance_[at] = row.importance[static_cast<std::size_t>(g * n_m.of + j)];
        }
        if (indices != nullptr) n_m.write(indices, g, places);
      }
    }
    EncodeRow row(const EncodeRow& of) const { return {weights_, importance_, of.row, of.non_finite}; }

   private:
    std::vector<float> weights_, importance_;
  };

  static bool identity_levels(const CodeSpec& spec) { return spec.levels == CodeSpec::integers(0); }
  /// The first code that means 0, of all groups; 16 if there is none.
  static unsigned zero_code(const CodeSpec& spec) {
    unsigned c = 0;
    while (c < 16 && (spec.element == CodeElement::integer ? spec.levels[c] != spec.zero : !(spec.values[c] == 0.0f)))
      ++c;
    return c;
  }

  NmLayout layout_;
  V values_;
};

/// W [out, in] with at most N weights of M neighbours.
template <RowFormat V>
using NmMatrix = RowMatrix<NmFormat<V>>;

}  // namespace blockpack::inline BLOCKPACK_ABI
