// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Formats whose weights are small integers, or floats of few bits, with a scale per group: how they say so. The engine
/// then keeps the codes packed and multiplies them as they are (core/engine.hpp, PackedCodes) instead of decoding rows
/// first.

#include <array>
#include <concepts>
#include <cstdint>
#include <optional>
#include <span>

#include "blockpack/core/config.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// How the scale of a group is stored.
enum class CodeScale : std::uint8_t {
  e8m0,   ///< a byte b: 2^(b - 127), 255 is NaN
  e4m3,   ///< a byte, FP8 E4M3
  fp16,   ///< IEEE binary16
  f32,    ///< float32
  super,  ///< an int8 times a binary16 that 256 weights share
  super4  ///< the same with 4 bits, 0 to 15
};
/// Whether 256 weights share a part of it.
constexpr bool has_two_levels(CodeScale scale) noexcept {
  return scale == CodeScale::super || scale == CodeScale::super4;
}
/// Bits of one, the shared part aside.
constexpr index_t scale_bits(CodeScale scale) noexcept {
  return scale == CodeScale::f32 ? 32 : scale == CodeScale::fp16 ? 16 : scale == CodeScale::super4 ? 4 : 8;
}

/// What one code is: an integer, one of 16 floats (4 bits), or a small float itself (6 and 8 bits). What is no integer
/// is multiplied as a float in every mode.
enum class CodeElement : std::uint8_t { integer, table, e2m3, e3m2, e4m3, e5m2 };

/// What the codes of a matrix mean:
///
///     weight = scale[group] * multiplier * (value(code) - zero[group]) + minimum[group]
///     value(code) = levels[code] for integers of 4 bits, code for all others; values[code] for a table
///
/// Elements that are no integers have neither zeros nor minimums. Where a matrix keeps two of every four neighbours,
/// there are codes of 4 bits for these alone, with the place among the four in the bits above, and no minimums.
struct CodeSpec {
  /// levels[c] = c + first.
  static constexpr std::array<std::int8_t, 16> integers(int first) noexcept {
    std::array<std::int8_t, 16> levels{};
    for (int c = 0; c < 16; ++c) levels[static_cast<std::size_t>(c)] = static_cast<std::int8_t>(c + first);
    return levels;
  }
  /// The narrowest width codes of that many bits can be packed at.
  static constexpr int packed_width(int bits) noexcept { return bits < 2 ? 2 : bits == 7 ? 8 : bits; }

  int bits = 4;  ///< 2, 3, 4, 5, 6 or 8, the width codes are packed at (two_four: 4)
  std::array<std::int8_t, 16> levels = integers(0);  ///< of 4-bit codes
  CodeElement element = CodeElement::integer;
  std::array<float, 16> values = {};  ///< of a table
  index_t group = 32;                 ///< weights along `in` that share a scale: 16 or a multiple of 32
  CodeScale scale = CodeScale::e8m0;
  float multiplier = 1.0f;  ///< of every scale
  int zero = 0;             ///< of every group, where `zeros` is false
  bool zeros = false;       ///< every group has a zero of its own, 0 to 255; scale * zero must be exact in float32
  bool minimums = false;    ///< every group has a minimum, stored as scales are; otherwise it is 0
  bool two_four = false;    ///< two codes for every four weights, each `code | place << 4`; groups are of codes

  /// Bits of what is packed for a code.
  int packed_bits() const noexcept { return bits + (two_four ? 2 : 0); }
  /// Codes of a row of that many weights, and the groups they make.
  index_t codes(index_t cols) const noexcept { return two_four ? 2 * ceil_div(cols, 4) : cols; }
  index_t groups(index_t cols) const noexcept { return ceil_div(codes(cols), group); }
};

/// The codes of one row: CodeSpec::codes() of them; per group the bits of its scale as CodeSpec::scale stores it (for
/// two levels the binary16 in the low half, the int8 in the byte above), its minimum and its zero where the spec has
/// them.
struct CodeRow {
  std::span<std::uint8_t> codes;
  std::span<std::uint32_t> scales;
  std::span<std::uint32_t> minimums;
  std::span<std::uint8_t> zeros;
};

/// A row format that can hand out codes. `code_spec(cols, src)` gives nothing for parameters whose values are no such
/// integers; its src points to the sections of row 0, for formats with a scale of the whole tensor.
template <class F>
concept CodeFormat = requires(const F& f, index_t cols, std::span<const std::byte* const> src, const CodeRow& dst) {
  { f.code_spec(cols, src) } -> std::same_as<std::optional<CodeSpec>>;
  f.read_codes(src, cols, dst);  // (sections of the row, cols of W, whole row)
};

/// Rows of codes on demand, as plain pointers (core/row_source.hpp does the same for values). `read_row` is called from
/// several threads at once.
struct CodeSource {
  index_t rows = 0;
  index_t cols = 0;
  CodeSpec spec;
  const void* self = nullptr;
  void (*read_row)(const void* self, index_t row, const CodeRow& dst) = nullptr;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
