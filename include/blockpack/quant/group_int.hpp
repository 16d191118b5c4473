// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Group-wise integers: weights of 2, 3, 4 or 8 bits with one fp16 scale per group along `in`, on four grids.
/// Bytes: docs/formats/group_int.md.
///
/// Source: `half_step` and `asymmetric` are the grids of GPTQ, arXiv:2210.17323 (code as in jerry-chee/DiscQuant);
/// `signed_max` is the grid of ggml's Q4_0.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/code_spec.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/quant/block_code.hpp"
#include "blockpack/quant/block_rows.hpp"
#include "blockpack/quant/scheme_fields.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Where the levels of a group lie. Levels are scale * (q - zero) for codes q in [0, 2^b - 1]; zero is 2^(b-1) for the
/// symmetric grids.
enum class GroupGrid : std::uint8_t {
  signed_max,  ///< scale = m / -2^(b-1), m the weight of largest magnitude with its sign (the first one of equals)
  half_step,   ///< scale = 2 * absmax / (2^b - 1), absmax / (2^b - 1) when no weight is negative
  max_abs,     ///< scale = absmax / (2^(b-1) - 1), codes 2^(b-1) ± (2^(b-1) - 1)
  asymmetric   ///< scale = (hi - lo) / (2^b - 1), zero = round(-lo / scale), [lo, hi] the range with 0 in it
};

/// What a group's codes mean.
struct GroupParameters {
  float scale = 0.0f;
  std::int32_t zero_point = 0;
  float low = 0.0f;  ///< min(0, smallest weight): the zero point is taken again from it when the scale is rounded
};

/// INT<bits> with groups of `group_size` along `in`.
///
///     q = clip(round_half_even(w / scale) + zero_point, 0, 2^b - 1);  decoded = scale * (q - zero_point)
///
/// The scale is rounded to fp16 first and the rounded one divides (a true division, no inverse is formed).
/// A group of zeros decodes to zeros: scale 2 / (2^b - 1) on the half_step and asymmetric grids, as the reference has
/// it, 0 on the other two, and codes = zero point. A scale that rounds to 0 stores the codes of 0. A scale that rounds
/// to infinity is a ValueError under `reject`; under `saturate` it becomes 65504 and the codes follow.
/// Under `saturate` infinity counts as the largest float.
///
/// `search` shrinks the range of a group to 100, 99, … 25 % and keeps the one of least squared error, weighted by
/// importance; without it importance has no effect.
struct GroupInt {
  int bits = 4;         ///< 2, 3, 4 or 8
  int group_size = 32;  ///< 32, 64 or 128; 0 = one group a row
  GroupGrid grid = GroupGrid::signed_max;
  bool search = false;  ///< of the range; 76 times the work of an encoder

  friend bool operator==(const GroupInt&, const GroupInt&) = default;

  /// "int4-g32", "int8-row"; then "-half", "-maxabs" or "-asym"; then "-search".
  std::string scheme() const {
    constexpr const char* kGrids[] = {"", "-half", "-maxabs", "-asym"};
    return "int" + std::to_string(bits) + (group_size == 0 ? "-row" : "-g" + std::to_string(group_size)) +
           kGrids[static_cast<std::size_t>(grid)] + (search ? "-search" : "");
  }

  /// The format of a scheme split at its dashes, or nothing when the name is not `int<b>`. ValueError for a field it
  /// does not know, one given twice, or a width or group that is not offered.
  static std::optional<GroupInt> from_fields(std::string_view name, std::span<const std::string_view> fields) {
    const std::optional<int> width = detail::number_after("int", name);
    if (!width) return std::nullopt;
    GroupInt format;
    format.bits = *width;
    detail::FieldReader reader(name, fields);
    for (const std::string_view field : fields) {
      if (const auto group = detail::number_after("g", field)) {
        reader.set("group", format.group_size, *group);
      } else if (field == "row") {
        reader.set("group", format.group_size, 0);
      } else if (field == "half") {
        reader.set("grid", format.grid, GroupGrid::half_step);
      } else if (field == "maxabs") {
        reader.set("grid", format.grid, GroupGrid::max_abs);
      } else if (field == "asym") {
        reader.set("grid", format.grid, GroupGrid::asymmetric);
      } else if (field == "search") {
        reader.set("search", format.search, true);
      } else {
        reader.unknown(field);
      }
    }
    format.validate();
    return format;
  }

  /// ValueError that names the parameter.
  void validate() const {
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
      throw ValueError("GroupInt: bits = " + std::to_string(bits) + ", 2, 3, 4 or 8 needed");
    if (group_size != 0 && group_size != 32 && group_size != 64 && group_size != 128)
      throw ValueError("GroupInt: group_size = " + std::to_string(group_size) + ", 32, 64, 128 or 0 (a row) needed");
  }

  bool can_store_nan() const noexcept { return false; }
  bool exact_in_bf16() const noexcept { return false; }
  std::int32_t max_code() const noexcept { return (std::int32_t{1} << bits) - 1; }

  index_t groups(index_t cols) const noexcept {
    return group_size == 0 ? (cols > 0 ? 1 : 0) : ceil_div(cols, index_t{group_size});
  }

  /// `scales`: fp16 per group; `zeros` (asymmetric only): b bits per group, a little-endian bit stream per row;
  /// `codes`: see pack(). A short last group is stored whole; with one group a row the codes end at a full byte
  /// (3 bits: at 32 codes).
  std::vector<SectionSpec> sections(index_t cols) const {
    validate();
    std::vector<SectionSpec> specs = {{"scales", checked_mul(groups(cols), 2, "GroupInt::sections")}};
    if (grid == GroupGrid::asymmetric) specs.push_back({"zeros", detail::packed_code_bytes(groups(cols), bits)});
    const index_t stored = group_size == 0 ? cols : checked_mul(groups(cols), group_size, "GroupInt::sections");
    checked_mul(stored, 8, "GroupInt::sections");
    specs.push_back({"codes", code_bytes(stored)});
    return specs;
  }

  /// Bytes of `count` codes.
  index_t code_bytes(index_t count) const noexcept {
    return bits == 3 ? ceil_div(count, 32) * 12 : detail::packed_code_bytes(count, bits);
  }

  /// Scale and zero point in float32, before the scale is rounded to fp16. A range beyond float32 gives an infinite
  /// scale. `importance` (empty, or one weight per value) counts under `search` only.
  GroupParameters fit(std::span<const float> values, std::span<const float> importance = {}) const noexcept {
    float low, high;
    range_of(values, low, high);
    const GroupParameters whole = fit_range(values, low, high);
    return search ? best_range(values, importance, low, high, whole) : whole;
  }

  /// Of the ranges p * [low, high], p = 1, 0.99, … 0.25: the parameters of least squared error with the scale as it is
  /// stored, the first of equals; `whole` where no scale fits fp16. Errors are summed in float32 in element order.
  GroupParameters best_range(std::span<const float> values, std::span<const float> importance, float low, float high,
                             const GroupParameters& whole) const noexcept {
    if (low == 0.0f && high == 0.0f) return whole;
    GroupParameters best = whole;
    float least = std::numeric_limits<float>::infinity();
    for (int i = 0; i <= 75; ++i) {
      const float share = static_cast<float>(100 - i) / 100.0f;
      GroupParameters p = whole;
      if (grid == GroupGrid::asymmetric)
        p = fit_range(values, low * share, high * share);
      else
        p.scale = whole.scale * share;
      const GroupParameters rounded = stored(p);
      if (!std::isfinite(rounded.scale)) continue;
      const float error = squared_error(values, importance, rounded);
      if (error < least) {
        least = error;
        best = p;
      }
    }
    return best;
  }

  /// Sum of importance * (w - decoded)² over the values, in float32 in element order. Importance that is shorter than
  /// the values ends where the row does.
  float squared_error(std::span<const float> values, std::span<const float> importance,
                      const GroupParameters& p) const noexcept {
    float sum = 0.0f;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float error = values[i] - strict_mul(p.scale, static_cast<float>(code_of(values[i], p) - p.zero_point));
      const float square = strict_mul(error, error);
      if (importance.empty())
        sum += square;
      else if (i < importance.size())
        sum += strict_mul(square, importance[i]);
    }
    return sum;
  }

  /// The parameters as they are stored: scale rounded to fp16 half to even, the asymmetric zero point taken again from
  /// it. A scale beyond fp16 becomes `overflow`, infinity (the caller refuses it) or 65504; the zero point then stays.
  GroupParameters stored(GroupParameters p, float overflow = std::numeric_limits<float>::infinity()) const noexcept {
    const float scale = static_cast<float>(fp16(p.scale));
    if (!std::isfinite(scale)) {
      p.scale = scale < 0.0f ? -overflow : overflow;
      return p;
    }
    p.scale = scale == 0.0f ? 0.0f : scale;  // no -0: the codes of 0 decode to +0
    if (grid == GroupGrid::asymmetric) p.zero_point = zero_of(p.low, scale);
    return p;
  }

  /// Codes for given parameters.
  void encode(std::span<const float> values, const GroupParameters& p, std::span<std::int32_t> codes) const noexcept {
    for (std::size_t i = 0; i < values.size(); ++i) codes[i] = code_of(values[i], p);
  }
  std::int32_t code_of(float value, const GroupParameters& p) const noexcept {
    const float zero = static_cast<float>(p.zero_point);
    const float low = grid == GroupGrid::max_abs ? 1.0f : 0.0f;
    const float high = static_cast<float>(max_code());
    const float q = p.scale == 0.0f ? zero : round_half_even(value / p.scale) + zero;
    return static_cast<std::int32_t>(q < low ? low : (q > high ? high : q));
  }

  /// scale * (q - zero_point): one product, exact for a scale that is an fp16 value.
  void decode(std::span<const std::int32_t> codes, const GroupParameters& p, std::span<float> dst) const noexcept {
    for (std::size_t i = 0; i < dst.size(); ++i) dst[i] = p.scale * static_cast<float>(codes[i] - p.zero_point);
  }

  /// Codes of 2, 4 and 8 bits as a little-endian bit stream; codes of 3 bits 32 at a time in three 32-bit words, bit j
  /// of word p = bit p of code j. Missing codes of the last byte or word are `fill`.
  void pack(std::span<const std::int32_t> codes, std::int32_t fill, std::uint8_t* dst) const noexcept;
  void unpack(const std::uint8_t* src, std::span<std::int32_t> codes) const noexcept;

  /// ValueError with row and column of the first group whose scale is beyond fp16. Cost: fits the row.
  void check_row(const EncodeRow& row) const;
  void encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const;
  void decode_row(std::span<const std::byte* const> src, index_t cols, index_t col, std::span<float> dst) const;

  /// All widths. The scale of a whole row is kept as a float, one line of a panel.
  std::optional<CodeSpec> code_spec(index_t cols, std::span<const std::byte* const> src) const;
  void read_codes(std::span<const std::byte* const> src, index_t cols, const CodeRow& dst) const;

  /// min(0, smallest) and max(0, largest) of the values.
  static void range_of(std::span<const float> values, float& low, float& high) noexcept {
    low = 0.0f;
    high = 0.0f;
    for (const float v : values) {
      low = v < low ? v : low;
      high = v > high ? v : high;
    }
  }

  /// The scale and zero point of a group from its range with 0 in it; `values` settles equal magnitudes of both signs.
  GroupParameters fit_range(std::span<const float> values, float low, float high) const noexcept {
    const auto levels = static_cast<float>(max_code());
    const std::int32_t half = std::int32_t{1} << (bits - 1);
    const float magnitude = -low > high ? -low : high;
    GroupParameters p{0.0f, half, low};
    switch (grid) {
      case GroupGrid::signed_max: {
        bool negative = -low > high;
        if (-low == high && low < 0.0f) negative = first_is_negative(values, high);
        p.scale = (negative ? magnitude : -magnitude) / static_cast<float>(half);
        return p;
      }
      case GroupGrid::max_abs:
        p.scale = magnitude / static_cast<float>(half - 1);
        return p;
      case GroupGrid::half_step:
        if (magnitude == 0.0f) break;
        p.scale = (low < 0.0f ? magnitude + magnitude : magnitude) / levels;
        return p;
      case GroupGrid::asymmetric:
        if (magnitude == 0.0f) break;
        p.scale = (high - low) / levels;
        p.zero_point = std::isfinite(p.scale) ? zero_of(low, p.scale) : zero_of_wide_range(low, high);
        return p;
    }
    p.scale = 2.0f / levels;  // the reference takes the range [-1, 1] for a group of zeros
    if (grid == GroupGrid::asymmetric) {
      p.low = -1.0f;
      p.zero_point = zero_of(p.low, p.scale);
    }
    return p;
  }

 private:
  std::int32_t zero_of(float low, float scale) const noexcept {
    if (scale == 0.0f) return 0;
    const float zero = round_half_even(-low / scale);
    return static_cast<std::int32_t>(zero < static_cast<float>(max_code()) ? zero : static_cast<float>(max_code()));
  }
  /// hi - lo overflows float32 (or an end is infinite).
  std::int32_t zero_of_wide_range(float low, float high) const noexcept {
    constexpr float kLargest = std::numeric_limits<float>::max();
    const double lo = low < -kLargest ? -kLargest : low;
    const double hi = high > kLargest ? kLargest : high;
    return static_cast<std::int32_t>(round_half_even(static_cast<float>(max_code() * (-lo / (hi - lo)))));
  }
  static bool first_is_negative(std::span<const float> values, float magnitude) noexcept {
    for (const float v : values)
      if (v == magnitude || v == -magnitude) return v < 0.0f;
    return false;
  }
};

inline void GroupInt::pack(std::span<const std::int32_t> codes, std::int32_t fill, std::uint8_t* dst) const noexcept {
  if (bits != 3) {
    pack_codes(codes, bits, dst);
    const int used = static_cast<int>(codes.size() * static_cast<std::size_t>(bits) % 8);
    if (used == 0) return;
    std::uint8_t& last = dst[codes.size() * static_cast<std::size_t>(bits) / 8];
    for (int at = used; at < 8; at += bits) last = static_cast<std::uint8_t>(last | (fill << at));
    return;
  }
  for (std::size_t first = 0; first < codes.size(); first += 32, dst += 12) {
    std::uint32_t planes[3] = {};
    for (std::size_t j = 0; j < 32; ++j) {
      const std::int32_t code = first + j < codes.size() ? codes[first + j] : fill;
      for (int p = 0; p < 3; ++p) planes[p] |= ((static_cast<std::uint32_t>(code) >> p) & 1u) << j;
    }
    for (std::size_t byte = 0; byte < 12; ++byte)
      dst[byte] = static_cast<std::uint8_t>(planes[byte / 4] >> (8 * (byte % 4)));
  }
}

inline void GroupInt::unpack(const std::uint8_t* src, std::span<std::int32_t> codes) const noexcept {
  if (bits != 3) return unpack_codes(src, bits, codes);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const std::uint8_t* planes = src + i / 32 * 12 + i % 32 / 8;
    std::int32_t code = 0;
    for (int p = 0; p < 3; ++p) code |= ((planes[4 * p] >> (i % 8)) & 1) << p;
    codes[i] = code;
  }
}

namespace detail {

/// Zero point of group g in a row's `zeros` section, a bit stream of b-bit numbers.
inline std::int32_t load_zero_point(const std::uint8_t* zeros, index_t g, int bits) noexcept {
  const index_t at = g * bits;
  std::uint32_t pair = zeros[at / 8];
  if (at % 8 + bits > 8) pair |= static_cast<std::uint32_t>(zeros[at / 8 + 1]) << 8;
  return static_cast<std::int32_t>((pair >> (at % 8)) & ((1u << bits) - 1));
}
/// ORs it into a section that was cleared.
inline void store_zero_point(std::uint8_t* zeros, index_t g, int bits, std::int32_t zero) noexcept {
  const index_t at = g * bits;
  const std::uint32_t pair = static_cast<std::uint32_t>(zero) << (at % 8);
  zeros[at / 8] = static_cast<std::uint8_t>(zeros[at / 8] | pair);
  if (at % 8 + bits > 8) zeros[at / 8 + 1] = static_cast<std::uint8_t>(zeros[at / 8 + 1] | (pair >> 8));
}

/// The stored parameters of a group, with the policy for scales beyond fp16.
inline GroupParameters checked_group(const GroupInt& f, const GroupParameters& p, const EncodeRow& row, index_t col) {
  const bool saturate = row.non_finite == NonFinite::saturate;
  const GroupParameters stored = f.stored(p, saturate ? 65504.0f : std::numeric_limits<float>::infinity());
  if (!std::isfinite(stored.scale))
    throw ValueError("encode " + f.scheme() + ": the scale of the group at row " + std::to_string(row.row) +
                     ", column " + std::to_string(col) +
                     " is beyond fp16 (65504); pass NonFinite::saturate to clamp it");
  return stored;
}

/// The three loops over the weights of a group; the walk over the groups of a row is the same on every level.
struct GroupOps {
  const void* kernels;  ///< whatever the functions need
  /// min(0, smallest) and max(0, largest) of the values.
  void (*range)(const void* kernels, std::span<const float> values, float& low, float& high);
  /// Codes of `values`, packed; missing codes of the last byte or word are the zero point.
  void (*encode)(const void* kernels, const GroupInt& f, std::span<const float> values, const GroupParameters& p,
                 std::uint8_t* codes);
  /// Values of the first dst.size() codes.
  void (*decode)(const void* kernels, const GroupInt& f, const std::uint8_t* codes, const GroupParameters& p,
                 std::span<float> dst);
};

inline constexpr std::size_t kGroupChunk = 128;  ///< codes in flight; a multiple of 32

inline void encode_group_reference(const GroupInt& f, std::span<const float> values, const GroupParameters& p,
                                   std::uint8_t* codes) noexcept {
  std::int32_t q[kGroupChunk];
  for (std::size_t first = 0; first < values.size(); first += kGroupChunk) {
    const std::size_t count = std::min(kGroupChunk, values.size() - first);
    f.encode(values.subspan(first, count), p, std::span<std::int32_t>(q, count));
    f.pack(std::span<const std::int32_t>(q, count), p.zero_point, codes);
    codes += f.code_bytes(static_cast<index_t>(count));
  }
}

inline void decode_group_reference(const GroupInt& f, const std::uint8_t* codes, const GroupParameters& p,
                                   std::span<float> dst) noexcept {
  std::int32_t q[kGroupChunk];
  for (std::size_t first = 0; first < dst.size(); first += kGroupChunk) {
    const std::size_t count = std::min(kGroupChunk, dst.size() - first);
    f.unpack(codes, std::span<std::int32_t>(q, count));
    f.decode(std::span<const std::int32_t>(q, count), p, dst.subspan(first, count));
    codes += f.code_bytes(static_cast<index_t>(count));
  }
}

inline constexpr GroupOps kGroupReference = {
    nullptr,
    [](const void*, std::span<const float> values, float& low, float& high) { GroupInt::range_of(values, low, high); },
    [](const void*, const GroupInt& f, std::span<const float> values, const GroupParameters& p, std::uint8_t* codes) {
      encode_group_reference(f, values, p, codes);
    },
    [](const void*, const GroupInt& f, const std::uint8_t* codes, const GroupParameters& p, std::span<float> dst) {
      decode_group_reference(f, codes, p, dst);
    }};

/// dst: the row's sections. check_row came first: under `reject` no scale is beyond fp16.
inline void encode_group_row(const GroupInt& f, const EncodeRow& row, std::span<std::byte* const> dst,
                             const GroupOps& ops) {
  const auto cols = static_cast<index_t>(row.weights.size());
  const index_t size = f.group_size == 0 ? cols : f.group_size;
  const bool has_zeros = f.grid == GroupGrid::asymmetric;
  std::uint8_t* scales = bytes(dst[0]);
  std::uint8_t* codes = bytes(dst[dst.size() - 1]);
  if (has_zeros) std::fill_n(bytes(dst[1]), packed_code_bytes(f.groups(cols), f.bits), std::uint8_t{0});
  std::array<float, kMaxBlock> padded;
  for (index_t g = 0; g < f.groups(cols); ++g) {
    const index_t first = g * size;
    const index_t count = std::min(size, cols - first);
    std::span<const float> values =
        row.weights.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    if (count < size) {  // zeros change neither the range nor the other codes
      std::fill(std::copy(values.begin(), values.end(), padded.begin()), padded.end(), 0.0f);
      values = std::span<const float>(padded.data(), static_cast<std::size_t>(size));
    }
    float low, high;
    ops.range(ops.kernels, values, low, high);
    GroupParameters fit = f.fit_range(values, low, high);
    if (f.search) fit = f.best_range(values, part_of(row.importance, first, size), low, high, fit);
    const GroupParameters p = checked_group(f, fit, row, first);
    const std::uint16_t scale = fp16(p.scale).bits;
    scales[2 * g] = static_cast<std::uint8_t>(scale);
    scales[2 * g + 1] = static_cast<std::uint8_t>(scale >> 8);
    if (has_zeros) store_zero_point(bytes(dst[1]), g, f.bits, p.zero_point);
    ops.encode(ops.kernels, f, values, p, codes);
    codes += f.code_bytes(size);
  }
}

inline void decode_group_row(const GroupInt& f, std::span<const std::byte* const> src, index_t cols, index_t col,
                             std::span<float> dst, const GroupOps& ops) {
  const index_t size = f.group_size == 0 ? cols : f.group_size;
  const std::uint8_t* scales = bytes(src[0]);
  const std::uint8_t* codes = bytes(src[src.size() - 1]) + f.code_bytes(col);
  for (index_t done = 0; done < static_cast<index_t>(dst.size());) {
    const index_t g = (col + done) / size;
    const index_t count = std::min((g + 1) * size - (col + done), static_cast<index_t>(dst.size()) - done);
    GroupParameters p;
    p.scale = static_cast<float>(fp16::from_bits(static_cast<std::uint16_t>(scales[2 * g] | (scales[2 * g + 1] << 8))));
    p.zero_point = f.grid == GroupGrid::asymmetric ? load_zero_point(bytes(src[1]), g, f.bits) : 1 << (f.bits - 1);
    ops.decode(ops.kernels, f, codes, p, dst.subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count)));
    codes += f.code_bytes(count);
    done += count;
  }
}

#if defined(BLOCKPACK_HEADERS_ONLY)
inline GroupOps group_ops() noexcept { return kGroupReference; }
#else
/// The compiled kernels of the active level.
BLOCKPACK_API GroupOps group_ops();
#endif

}  // namespace detail

inline std::optional<CodeSpec> GroupInt::code_spec(index_t cols, std::span<const std::byte* const> /*src*/) const {
  CodeSpec spec;
  spec.bits = bits;
  spec.zeros = grid == GroupGrid::asymmetric;
  spec.zero = spec.zeros ? 0 : 1 << (bits - 1);
  spec.scale = group_size == 0 ? CodeScale::f32 : CodeScale::fp16;
  spec.group = group_size == 0 ? round_up(std::max<index_t>(cols, 1), 32) : group_size;
  return spec;
}
inline void GroupInt::read_codes(std::span<const std::byte* const> src, index_t cols, const CodeRow& dst) const {
  const std::byte* codes = src[src.size() - 1];
  for (index_t col = 0; col < cols; col += index_t{detail::kGroupChunk}) {
    std::int32_t q[detail::kGroupChunk];
    const auto count = static_cast<std::size_t>(std::min(index_t{detail::kGroupChunk}, cols - col));
    unpack(detail::bytes(codes + code_bytes(col)), std::span<std::int32_t>(q, count));
    for (std::size_t i = 0; i < count; ++i)
      dst.codes[static_cast<std::size_t>(col) + i] = static_cast<std::uint8_t>(q[i]);
  }
  for (std::size_t g = 0; g < dst.scales.size(); ++g) {
    const std::uint8_t* at = detail::bytes(src[0]) + 2 * g;
    const auto scale = static_cast<std::uint16_t>(at[0] | (at[1] << 8));
    const float value = static_cast<float>(fp16::from_bits(scale));
    dst.scales[g] = group_size == 0 ? std::bit_cast<std::uint32_t>(value) : scale;
    if (!dst.zeros.empty())
      dst.zeros[g] =
          static_cast<std::uint8_t>(detail::load_zero_point(detail::bytes(src[1]), static_cast<index_t>(g), bits));
  }
}

inline void GroupInt::check_row(const EncodeRow& row) const {
  const auto cols = static_cast<index_t>(row.weights.size());
  const index_t size = group_size == 0 ? cols : group_size;
  for (index_t first = 0; first < cols; first += size)
    detail::checked_group(*this,
                          fit(detail::part_of(row.weights, first, size), detail::part_of(row.importance, first, size)),
                          row, first);
}
inline void GroupInt::encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const {
  detail::encode_group_row(*this, row, dst, detail::group_ops());
}
inline void GroupInt::decode_row(std::span<const std::byte* const> src, index_t cols, index_t col,
                                 std::span<float> dst) const {
  detail::decode_group_row(*this, src, cols, col, dst, detail::group_ops());
}

}  // namespace blockpack::inline BLOCKPACK_ABI
