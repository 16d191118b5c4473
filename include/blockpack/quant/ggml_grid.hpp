// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Grids of ggml's blocks with one scale and no minimum: Q4_0, Q5_0, Q8_0 and IQ4_NL.

#include <array>
#include <string>

#include "blockpack/core/config.hpp"
#include "blockpack/quant/ggml.hpp"
#include "blockpack/quant/grid.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// UnsupportedError for other types: their weights are not a scale times a fixed set of numbers.
template <>
struct GridTraits<Ggml> {
  using Parameters = fp16;  ///< d, the first two bytes of these blocks

  static index_t group_size(const Ggml& f, index_t) {
    switch (f.type) {
      case GgmlType::q4_0:
      case GgmlType::q5_0:
      case GgmlType::q8_0:
      case GgmlType::iq4_nl:
        return f.spec().block;
      default:
        throw UnsupportedError("rounding: " + f.scheme() +
                               " has no grid with one scale; q4_0, q5_0, q8_0 and iq4_nl have one");
    }
  }
  static Parameters fit(const Ggml& f, const EncodeRow& row, index_t first, index_t count) {
    // The encoder of one block as a row of its own: with importance Q4_0 and Q5_0 take sums over the block for sums
    // over the row.
    std::array<std::byte, 64> block;
    std::byte* dst = block.data();
    f.encode_row({detail::part_of(row.weights, first, count), detail::part_of(row.importance, first, count), row.row,
                  row.non_finite},
                 std::span(&dst, 1));
    return fp16::from_bits(
        static_cast<std::uint16_t>(std::to_integer<unsigned>(block[0]) | (std::to_integer<unsigned>(block[1]) << 8)));
  }
  static Grid grid(const Ggml& f, const Parameters& d) {
    const float scale = static_cast<float>(d);
    if (f.type == GgmlType::q8_0) return {-127, 127, scale};
    if (f.type == GgmlType::q5_0) return {-16, 15, scale};
    if (f.type == GgmlType::q4_0) return {-8, 7, scale};
    static const GridTable table =
        GridTable::make({std::begin(ggml::kIq4Levels), std::end(ggml::kIq4Levels)}, [](std::size_t) { return true; });
    return {table, scale};
  }
  static bool set_scale(const Ggml&, Parameters& p, float scale) {
    const fp16 stored(scale);
    const float value = static_cast<float>(stored);
    if (std::isfinite(value) && value != 0.0f) p = stored;
    return true;
  }
  static void store_row(const Ggml& f, std::span<const Parameters> scales, std::span<const float> values,
                        std::span<std::byte* const> dst) {
    std::uint8_t* block = detail::bytes(dst[0]);
    for (std::size_t b = 0; b < scales.size(); ++b, block += f.spec().block_bytes) {
      block[0] = static_cast<std::uint8_t>(scales[b].bits);
      block[1] = static_cast<std::uint8_t>(scales[b].bits >> 8);
      const Grid g = grid(f, scales[b]);
      const std::span<const float> part = detail::part_of(values, static_cast<index_t>(32 * b), 32);
      std::array<std::uint8_t, 32> codes;
      for (std::size_t i = 0; i < 32; ++i) {
        const float w = i < part.size() ? part[i] : 0.0f;
        const float unit = g.nearest_unit(g.scale() == 0.0f ? 0.0f : g.in_units(w));
        codes[i] = f.type == GgmlType::iq4_nl ? ggml::nearest_iq4(unit)
                                              : static_cast<std::uint8_t>(static_cast<std::int32_t>(
                                                    f.type == GgmlType::q8_0 ? unit : unit - g.lowest_unit()));
      }
      if (f.type == GgmlType::q8_0) {
        std::copy(codes.begin(), codes.end(), block + 2);
      } else if (f.type == GgmlType::q5_0) {
        ggml::pack_fifth_bits(codes.data(), block + 2);
        ggml::pack_nibbles(codes.data(), block + 6);
      } else {
        ggml::pack_nibbles(codes.data(), block + 2);
      }
    }
  }
};

}  // namespace blockpack::inline BLOCKPACK_ABI
