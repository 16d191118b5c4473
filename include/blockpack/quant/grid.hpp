// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Grids: the numbers the weights of one group can become once the parameters of the group are fixed. What a rounding
/// algorithm needs to know of a format is here, and nothing else: the neighbours of a number, how parameters are
/// fitted, and how chosen values are stored under given parameters.
///
/// A new scalar format takes part by specializing `GridTraits`.
///
/// Source: the interface advised by DiscQuant, arXiv:2501.06417 (a weight has a neighbour below and one above), for
/// grids that need not be uniform.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <concepts>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/strict.hpp"
#include "blockpack/quant/bfp.hpp"
#include "blockpack/quant/group_int.hpp"
#include "blockpack/quant/mx.hpp"
#include "blockpack/quant/nf4.hpp"
#include "blockpack/quant/nvfp4.hpp"
#include "blockpack/quant/ofq.hpp"
#include "blockpack/quant/ternary.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Numbers in ascending order, at least one, and the boundaries between them. Made once per kind of grid.
struct GridTable {
  std::vector<float> units;
  std::vector<float> thresholds;  ///< u >= thresholds[i] is nearer to units[i + 1], or a tie that goes there

  /// `upper_on_tie(i)` says where the midpoint of units i and i + 1 goes.
  template <class UpperOnTie>
  static GridTable make(std::vector<float> ascending, const UpperOnTie& upper_on_tie) {
    GridTable table{std::move(ascending), {}};
    for (std::size_t i = 0; i + 1 < table.units.size(); ++i) {
      const float middle = 0.5f * (table.units[i] + table.units[i + 1]);
      table.thresholds.push_back(upper_on_tie(i) ? middle
                                                 : std::nextafter(middle, std::numeric_limits<float>::infinity()));
    }
    return table;
  }
};

/// The values scale * u + offset of one group, for units u in an integer range or in a table. A small value; a table
/// must outlive it. A negative scale turns the order around; scale 0 leaves the single value `offset`.
class Grid {
 public:
  /// For the integers u in [low, high], low <= high, |u| <= 2^23; ties go to the even integer.
  Grid(std::int32_t low, std::int32_t high, float scale, float offset = 0.0f) noexcept
      : scale_(scale), offset_(offset), low_(static_cast<float>(low)), high_(static_cast<float>(high)) {}
  /// scale * u for the units of a table.
  Grid(const GridTable& table, float scale) noexcept
      : table_(&table), scale_(scale), low_(table.units.front()), high_(table.units.back()) {}
  /// u * scale * second, for encoders that look up w * multiplier instead of dividing.
  Grid(const GridTable& table, float scale, float second, float multiplier) noexcept : Grid(table, scale) {
    second_ = second;
    multiplier_ = multiplier;
  }

  /// The distance of units that are 1 apart.
  float scale() const noexcept { return scale_ * second_; }
  float first_scale() const noexcept { return scale_; }
  float second_scale() const noexcept { return second_; }
  /// What weights are multiplied by to get units; 0: they are divided by first_scale().
  float multiplier() const noexcept { return multiplier_; }
  /// Which value unit 0 stands for.
  float offset() const noexcept { return offset_; }
  /// Null for a grid of integers.
  const GridTable* table() const noexcept { return table_; }
  float lowest_unit() const noexcept { return low_; }
  float highest_unit() const noexcept { return high_; }

  /// The value of a unit, as the format decodes it.
  float value(float unit) const noexcept { return strict_mul(scale_ * unit, second_) + offset_; }
  /// w in units: what the encoder looks up. The scale must not be 0.
  float in_units(float w) const noexcept {
    return multiplier_ != 0.0f ? (w - offset_) * multiplier_ : (w - offset_) / scale_;
  }

  /// The unit nearest to u; the first or the last one beyond the ends.
  float nearest_unit(float u) const noexcept {
    if (table_ != nullptr) return table_->units[index_of(u)];
    // Half to even without branches: what a rounding algorithm does with every weight.
    const float inside = std::clamp(u, low_ - 1.0f, high_ + 1.0f);
    const auto integer = static_cast<std::int32_t>(inside);
    const float fraction = inside - static_cast<float>(integer);  // exact
    const int odd = integer & 1;
    const int up = static_cast<int>(fraction > 0.5f) | (static_cast<int>(fraction == 0.5f) & odd);
    const int down = static_cast<int>(fraction < -0.5f) | (static_cast<int>(fraction == -0.5f) & odd);
    return std::clamp(static_cast<float>(integer + up - down), low_, high_);
  }
  /// The unit `steps` places further up, at most the last one (down for negative steps).
  float neighbour_unit(float unit, int steps) const noexcept {
    if (table_ == nullptr) return std::clamp(unit + static_cast<float>(steps), low_, high_);
    const auto last = static_cast<std::ptrdiff_t>(table_->units.size()) - 1;
    const auto at = static_cast<std::ptrdiff_t>(index_of(unit)) + steps;
    return table_->units[static_cast<std::size_t>(std::clamp<std::ptrdiff_t>(at, 0, last))];
  }

  /// The value nearest to w: what the format's own encoder takes.
  float nearest(float w) const noexcept { return scale_ == 0.0f ? offset_ : value(nearest_unit(in_units(w))); }
  /// The largest value that is not above w, or the smallest value of all.
  float down(float w) const noexcept { return neighbour(w, -1); }
  /// The smallest value that is not below w, or the largest value of all.
  float up(float w) const noexcept { return neighbour(w, 1); }

 private:
  std::size_t index_of(float u) const noexcept {
    const std::vector<float>& t = table_->thresholds;
    return static_cast<std::size_t>(std::upper_bound(t.begin(), t.end(), u) - t.begin());
  }
  float neighbour(float w, int direction) const noexcept {
    if (scale_ == 0.0f) return offset_;
    const float unit = nearest_unit(in_units(w));
    const float near = value(unit);
    if (direction < 0 ? near <= w : near >= w) return near;
    return value(neighbour_unit(unit, scale_ > 0.0f ? direction : -direction));
  }

  const GridTable* table_ = nullptr;
  float scale_;
  float second_ = 1.0f;
  float multiplier_ = 0.0f;  ///< 0: divide by the scale
  float offset_ = 0.0f;
  float low_, high_;
};

/// What a format tells the rounding algorithms. A specialization has
///
/// - `Parameters`, the type of a group's parameters as they are stored;
/// - `group_size(format, cols)`, the weights that share parameters (the last group may be short);
/// - optionally `groups_per_fit(format)`, the groups that are fitted together (K-quants: those of a super-block);
/// - `fit(format, row, parameters)`, the parameters of the groups fitted together, whose weights are `row`;
/// - `grid(format, parameters)`, its values;
/// - `set_scale(format, parameters, scale)`, which takes the nearest storable scale; false: scales are fixed;
/// - `store_row(format, all parameters, values, dst)`, the bytes of encode_row for values on the grids,
///
/// where decoding gives back grid(parameters)'s values bit for bit.
template <class F>
struct GridTraits;

/// A format whose weights are rounded one by one under parameters of their group.
template <class F>
concept GridFormat = RowFormat<F> &&
    requires(const F& f, const EncodeRow& row, typename GridTraits<F>::Parameters& p,
             std::span<typename GridTraits<F>::Parameters> fitted,
             std::span<const typename GridTraits<F>::Parameters> all, std::span<std::byte* const> dst) {
  { GridTraits<F>::group_size(f, index_t{}) } -> std::same_as<index_t>;
  GridTraits<F>::fit(f, row, fitted);
  { GridTraits<F>::grid(f, p) } -> std::same_as<Grid>;
  { GridTraits<F>::set_scale(f, p, 1.0f) } -> std::same_as<bool>;
  GridTraits<F>::store_row(f, all, row.weights, dst);
};

template <>
struct GridTraits<GroupInt> {
  using Parameters = GroupParameters;

  static index_t group_size(const GroupInt& f, index_t cols) {
    return f.group_size == 0 ? std::max<index_t>(cols, 1) : f.group_size;
  }
  static void fit(const GroupInt& f, const EncodeRow& row, std::span<Parameters> to) {
    to[0] = detail::checked_group(f, f.fit(row.weights, row.importance), row, 0);
  }
  static Grid grid(const GroupInt& f, const Parameters& p) {
    const std::int32_t lowest = f.grid == GroupGrid::max_abs ? 1 : 0;
    return {lowest - p.zero_point, f.max_code() - p.zero_point, p.scale};
  }
  static bool set_scale(const GroupInt&, Parameters& p, float scale) {
    const float stored = static_cast<float>(fp16(scale));
    if (std::isfinite(stored) && stored != 0.0f) p.scale = stored;
    return true;
  }
  static void store_row(const GroupInt& f, std::span<const Parameters> groups, std::span<const float> values,
                        std::span<std::byte* const> dst) {
    const auto size = static_cast<std::size_t>(group_size(f, static_cast<index_t>(values.size())));
    std::uint8_t* scales = detail::bytes(dst[0]);
    std::uint8_t* codes = detail::bytes(dst[dst.size() - 1]);
    if (f.grid == GroupGrid::asymmetric)
      std::fill_n(detail::bytes(dst[1]), detail::packed_code_bytes(static_cast<index_t>(groups.size()), f.bits),
                  std::uint8_t{0});
    std::vector<float> padded(size);
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const Parameters& p = groups[g];
      const std::span<const float> group = values.subspan(g * size, std::min(size, values.size() - g * size));
      std::fill(std::copy(group.begin(), group.end(), padded.begin()), padded.end(), 0.0f);
      const std::uint16_t scale = fp16(p.scale).bits;
      scales[2 * g] = static_cast<std::uint8_t>(scale);
      scales[2 * g + 1] = static_cast<std::uint8_t>(scale >> 8);
      if (f.grid == GroupGrid::asymmetric)
        detail::store_zero_point(detail::bytes(dst[1]), static_cast<index_t>(g), f.bits, p.zero_point);
      detail::encode_group_reference(f, padded, p, codes);
      codes += f.code_bytes(static_cast<index_t>(size));
    }
  }
};

namespace detail {

/// The walk over the blocks of a row that Mx and Bfp share: one byte of parameters a block, then the codes.
template <class Format>
void store_block_row(const Format& f, std::span<const std::uint8_t> parameters, std::span<const float> values,
                     std::span<std::byte* const> dst) {
  const auto block = static_cast<std::size_t>(f.block);
  std::array<float, kMaxBlock> padded;
  std::array<std::int32_t, kMaxBlock> codes;
  for (std::size_t b = 0; b < parameters.size(); ++b) {
    const std::span<const float> part = values.subspan(b * block, std::min(block, values.size() - b * block));
    std::fill(std::copy(part.begin(), part.end(), padded.begin()), padded.end(), 0.0f);
    f.encode(std::span<const float>(padded.data(), block), parameters[b], std::span(codes.data(), block));
    f.pack(std::span<const std::int32_t>(codes.data(), block),
           bytes(dst[1]) + static_cast<index_t>(b) * f.code_bytes());
    bytes(dst[0])[b] = parameters[b];
  }
}

/// The codes of a row of 4-bit table codes, the first of two in the low nibble.
template <class Format, class Parameters>
void store_table_row(const Format& f, index_t block, std::span<const Parameters> parameters,
                     std::span<const float> values, std::byte* dst) {
  std::array<float, kMaxBlock> padded;
  std::array<std::int32_t, kMaxBlock> codes;
  const auto size = static_cast<std::size_t>(block);
  for (std::size_t b = 0; b < parameters.size(); ++b) {
    const std::span<const float> part = part_of(values, static_cast<index_t>(b) * block, block);
    std::fill(std::copy(part.begin(), part.end(), padded.begin()), padded.end(), 0.0f);
    f.encode(std::span<const float>(padded.data(), size), parameters[b], std::span(codes.data(), size));
    pack_codes(std::span<const std::int32_t>(codes.data(), size), 4, bytes(dst) + b * size / 2);
  }
}

/// The finite values of an MX element.
inline const GridTable& mx_table(MxElement element) {
  static const std::array<GridTable, Mx::kElements.size()> tables = [] {
    std::array<GridTable, Mx::kElements.size()> all;
    for (const MxElement e : Mx::kElements) {
      const Mx format{e};
      const auto top = static_cast<std::int32_t>(format.spec().max_code);
      if (format.spec().exponent_bits == 0) continue;  // integers need no table
      std::vector<float> units;
      for (std::int32_t code = -top; code <= top; ++code)
        units.push_back(code < 0 ? -format.element_value(-code) : format.element_value(code));
      // Magnitude codes run from top down to 0 and up again; a tie goes to the even one.
      all[static_cast<std::size_t>(e)] = GridTable::make(
          std::move(units), [top](std::size_t i) { return (static_cast<std::int32_t>(i) + 1 - top) % 2 == 0; });
    }
    return all;
  }();
  return tables[static_cast<std::size_t>(element)];
}

}  // namespace detail

template <>
struct GridTraits<Mx> {
  using Parameters = std::uint8_t;

  static index_t group_size(const Mx& f, index_t) { return f.block; }
  static void fit(const Mx& f, const EncodeRow& row, std::span<Parameters> to) {
    to[0] =
        f.fit(row.weights, row.importance, row.non_finite == NonFinite::propagate ? NonFinite::reject : row.non_finite);
  }
  static Grid grid(const Mx& f, const Parameters& scale) {
    const float factor = static_cast<float>(e8m0::from_bits(scale));
    if (f.spec().exponent_bits != 0) return {detail::mx_table(f.element), factor};
    const auto top = static_cast<std::int32_t>(f.spec().max_code);
    return {-top, top, factor * exp2i(-f.spec().mantissa_bits)};
  }
  static bool set_scale(const Mx&, Parameters&, float) { return false; }
  static void store_row(const Mx& f, std::span<const Parameters> scales, std::span<const float> values,
                        std::span<std::byte* const> dst) {
    detail::store_block_row(f, scales, values, dst);
  }
};

template <>
struct GridTraits<Bfp> {
  using Parameters = std::uint8_t;

  static index_t group_size(const Bfp& f, index_t) { return f.block; }
  static void fit(const Bfp& f, const EncodeRow& row, std::span<Parameters> to) {
    to[0] = f.fit(row.weights, row.importance);
  }
  static Grid grid(const Bfp& f, const Parameters& exponent) {
    const std::int32_t top = (std::int32_t{1} << (f.mantissa_bits - 1)) - 1;
    return {f.asymmetric && exponent < 254 ? -top - 1 : -top, top, f.step_value(exponent)};
  }
  static bool set_scale(const Bfp&, Parameters&, float) { return false; }
  static void store_row(const Bfp& f, std::span<const Parameters> exponents, std::span<const float> values,
                        std::span<std::byte* const> dst) {
    Bfp exact = f;  // the values are multiples of the step: only their mode must not be a floor or a random one
    exact.rounding = Rounding::half_even;
    detail::store_block_row(exact, exponents, values, dst);
  }
};

template <>
struct GridTraits<Nf4> {
  using Parameters = float;  ///< an fp16 value

  static index_t group_size(const Nf4& f, index_t) { return f.block; }
  static void fit(const Nf4& f, const EncodeRow& row, std::span<Parameters> to) {
    if (row.non_finite == NonFinite::reject) f.check_row(row);
    to[0] = f.stored(f.fit(row.weights, row.importance), 65504.0f);
  }
  static Grid grid(const Nf4&, const Parameters& scale) {
    static const GridTable table =
        GridTable::make({std::begin(Nf4::kLevels), std::end(Nf4::kLevels)}, [](std::size_t) { return false; });
    return {table, scale, 1.0f, scale == 0.0f ? 0.0f : 1.0f / scale};
  }
  static bool set_scale(const Nf4&, Parameters& p, float scale) {
    const float stored = static_cast<float>(fp16(scale));
    if (std::isfinite(stored) && stored > 0.0f) p = stored;
    return true;
  }
  static void store_row(const Nf4& f, std::span<const Parameters> scales, std::span<const float> values,
                        std::span<std::byte* const> dst) {
    detail::store_table_row(f, index_t{f.block}, scales, values, dst[1]);
    for (std::size_t b = 0; b < scales.size(); ++b) detail::store_fp16(scales[b], dst[0] + 2 * b);
  }
};

/// Of a format that was fitted to its tensor.
template <>
struct GridTraits<Nvfp4> {
  using Parameters = std::uint8_t;

  static index_t group_size(const Nvfp4&, index_t) { return Nvfp4::kBlock; }
  static void fit(const Nvfp4& f, const EncodeRow& row, std::span<Parameters> to) {
    to[0] = f.fit(row.weights, row.importance);
  }
  static Grid grid(const Nvfp4& f, const Parameters& scale) {
    const float s = static_cast<float>(fp8_e4m3::from_bits(scale));
    const float multiplier = s == 0.0f ? 0.0f : std::min(f.encode_scale() / s, std::numeric_limits<float>::max());
    return {detail::mx_table(MxElement::e2m1), s, 1.0f / f.encode_scale(), multiplier};
  }
  static bool set_scale(const Nvfp4&, Parameters&, float) { return false; }
  static void store_row(const Nvfp4& f, std::span<const Parameters> scales, std::span<const float> values,
                        std::span<std::byte* const> dst) {
    detail::store_table_row(f, Nvfp4::kBlock, scales, values, dst[1]);
    for (std::size_t b = 0; b < scales.size(); ++b) dst[0][b] = static_cast<std::byte>(scales[b]);
  }
};

/// The three values under a stored scale: `nearest` takes the nearest of them, where the encoder has its rule. A format
/// with one scale for the matrix must be fitted to it.
template <>
struct GridTraits<Ternary> {
  using Parameters = float;  ///< the scale as it is stored

  static index_t group_size(const Ternary& f, index_t cols) {
    return f.group_size > 0 ? f.group_size : std::max<index_t>(cols, 1);
  }
  static void fit(const Ternary& f, const EncodeRow& row, std::span<Parameters> to) {
    to[0] =
        f.group_size == Ternary::kTensor ? f.tensor_mean : f.checked_scale(f.fit(row.weights, row.importance), row, 0);
  }
  static Grid grid(const Ternary&, const Parameters& scale) { return {-1, 1, scale}; }
  static bool set_scale(const Ternary& f, Parameters& p, float scale) {
    if (f.group_size == Ternary::kTensor) return false;
    const float stored = static_cast<float>(fp16(scale));
    if (std::isfinite(stored) && stored > 0.0f) p = stored;
    return true;
  }
  static void store_row(const Ternary& f, std::span<const Parameters> scales, std::span<const float> values,
                        std::span<std::byte* const> dst) {
    const auto cols = static_cast<index_t>(values.size());
    const index_t size = group_size(f, cols), stored = f.group_size > 0 ? size : cols;
    std::uint8_t* codes = detail::bytes(dst[1]);
    std::vector<std::int32_t> digits(static_cast<std::size_t>(stored));
    for (std::size_t g = 0; g < scales.size(); ++g, codes += f.code_bytes(stored)) {
      if (f.group_size != Ternary::kTensor) detail::store_fp16(scales[g], dst[0] + 2 * g);
      std::fill(digits.begin(), digits.end(), 1);
      const std::span<const float> part = detail::part_of(values, static_cast<index_t>(g) * size, size);
      for (std::size_t i = 0; i < part.size(); ++i) digits[i] = 1 + (part[i] > 0.0f ? 1 : 0) - (part[i] < 0.0f ? 1 : 0);
      f.pack(digits, codes);
    }
  }
};

template <>
struct GridTraits<StatsQ> {
  using Parameters = float;  ///< an fp16 value

  static index_t group_size(const StatsQ&, index_t cols) { return std::max<index_t>(cols, 1); }
  static void fit(const StatsQ& f, const EncodeRow& row, std::span<Parameters> to) { to[0] = f.checked_scale(row); }
  static Grid grid(const StatsQ& f, const Parameters& scale) {
    static const std::array<GridTable, 3> tables = [] {  // of 2, 3 and 4 bits
      std::array<GridTable, 3> all;
      for (int bits = 2; bits <= 4; ++bits) {
        const std::int32_t n = StatsQ{.bits = bits}.half_levels();
        std::vector<float> units;
        for (std::int32_t k = -n; k < n; ++k) units.push_back((static_cast<float>(k) + 0.5f) / static_cast<float>(n));
        all[static_cast<std::size_t>(bits - 2)] =
            GridTable::make(std::move(units), [](std::size_t i) { return i % 2 == 1; });  // n is even
      }
      return all;
    }();
    return {tables[static_cast<std::size_t>(f.bits - 2)], scale};
  }
  static bool set_scale(const StatsQ&, Parameters& p, float scale) {
    const float stored = static_cast<float>(fp16(scale));
    if (std::isfinite(stored) && stored > 0.0f) p = stored;
    return true;
  }
  static void store_row(const StatsQ& f, std::span<const Parameters> scales, std::span<const float> values,
                        std::span<std::byte* const> dst) {
    if (scales.empty()) return;
    detail::store_fp16(scales[0], dst[0]);
    std::vector<std::int32_t> codes(values.size());
    f.encode(values, scales[0], codes);
    for (std::int32_t& k : codes) k += f.half_levels();
    f.packing().pack(codes, f.half_levels(), detail::bytes(dst[1]));
  }
};

}  // namespace blockpack::inline BLOCKPACK_ABI
