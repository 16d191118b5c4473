// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Grids of ggml's blocks: of each group of weights that share a scale and a minimum, as the block stores them. What
/// the encoder of the type has fitted stays; algorithms choose the codes.

#include <algorithm>
#include <array>
#include <cstring>

#include "blockpack/core/config.hpp"
#include "blockpack/quant/ggml.hpp"
#include "blockpack/quant/grid.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

namespace detail {

/// What the groups of a type have in common.
struct GgmlGroups {
  CodeSpec spec;
  std::int32_t low = 0, high = 0;    ///< units, for codes that are integers
  const GridTable* table = nullptr;  ///< for others

  static const GgmlGroups& of(GgmlType type) {
    static const std::array<GgmlGroups, std::size(Ggml::kTypes)> all = [] {
      std::array<GgmlGroups, std::size(Ggml::kTypes)> groups;
      for (const GgmlType t : Ggml::kTypes) groups[static_cast<std::size_t>(t)] = make(t);
      return groups;
    }();
    return all[static_cast<std::size_t>(type)];
  }

 private:
  static GgmlGroups make(GgmlType type) {
    // A tie goes up, or to the smaller magnitude.
    static const GridTable iq4 =
        GridTable::make({std::begin(ggml::kIq4Levels), std::end(ggml::kIq4Levels)}, [](std::size_t) { return true; });
    static const GridTable e2m1 =
        GridTable::make({-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12}, [](std::size_t i) { return i < 7; });
    GgmlGroups g{ggml::code_spec(type)};
    switch (type) {
      case GgmlType::iq4_nl:
      case GgmlType::iq4_xs:
        g.table = &iq4;
        break;
      case GgmlType::mxfp4:
      case GgmlType::nvfp4:
        g.table = &e2m1;
        break;
      case GgmlType::tq1_0:
      case GgmlType::tq2_0:
      case GgmlType::q8_0:
      case GgmlType::q8_k:  // the lowest code is not used
        g.high = g.spec.bits == 2 ? 1 : 127;
        g.low = -g.high;
        break;
      default:
        g.low = -g.spec.zero;
        g.high = (1 << g.spec.bits) - 1 - g.spec.zero;
    }
    return g;
  }
};

/// The scale or the minimum of a group from what CodeRow has of it.
inline float code_scale_value(CodeScale kind, std::uint32_t bits) noexcept {
  switch (kind) {
    case CodeScale::e8m0:
      return static_cast<float>(e8m0::from_bits(static_cast<std::uint8_t>(bits)));
    case CodeScale::e4m3:
      return static_cast<float>(fp8_e4m3::from_bits(static_cast<std::uint8_t>(bits)));
    case CodeScale::f32:
      return std::bit_cast<float>(bits);
    default:
      break;
  }
  const float step = static_cast<float>(fp16::from_bits(static_cast<std::uint16_t>(bits)));
  return kind == CodeScale::fp16 ? step : step * static_cast<float>(ggml::multiple_of(bits));
}

}  // namespace detail

template <>
struct GridTraits<Ggml> {
  /// As CodeRow has them.
  struct Parameters {
    std::uint32_t scale = 0, minimum = 0;
  };

  static index_t group_size(const Ggml& f, index_t) { return detail::GgmlGroups::of(f.type).spec.group; }
  /// Those of a block.
  static index_t groups_per_fit(const Ggml& f) { return f.spec().block / group_size(f, 0); }
  /// The encoder of one block as a row of its own: with importance Q4_0 to Q5_1 take sums over the block for sums over
  /// the row.
  static void fit(const Ggml& f, const EncodeRow& row, std::span<Parameters> to) {
    std::array<std::byte, sizeof(ggml::Q8K)> stored;
    std::byte* dst = stored.data();
    f.encode_row(row, std::span(&dst, 1));
    std::uint8_t codes[detail::kMaxGgmlBlock];
    std::uint32_t scales[detail::kMaxGgmlBlock / 16], minimums[detail::kMaxGgmlBlock / 16] = {};
    detail::with_ggml_block(f.type, [&](auto block) {
      std::memcpy(&block, stored.data(), sizeof block);
      ggml::read_codes(block, ggml::CodeBlock{codes, scales, minimums});
    });
    for (std::size_t g = 0; g < to.size(); ++g) to[g] = {scales[g], minimums[g]};
  }
  static Grid grid(const Ggml& f, const Parameters& p) {
    const detail::GgmlGroups& groups = detail::GgmlGroups::of(f.type);
    const CodeSpec& spec = groups.spec;
    const float scale = spec.multiplier * detail::code_scale_value(spec.scale, p.scale);
    if (groups.table != nullptr) return {*groups.table, scale};
    return {groups.low, groups.high, scale, spec.minimums ? detail::code_scale_value(spec.scale, p.minimum) : 0.0f};
  }
  /// Scales that are a float or an fp16 of their own change, minimums never.
  static bool set_scale(const Ggml& f, Parameters& p, float scale) {
    const CodeScale kind = detail::GgmlGroups::of(f.type).spec.scale;
    if (kind != CodeScale::fp16 && kind != CodeScale::f32) return false;
    const float stored = kind == CodeScale::fp16 ? static_cast<float>(fp16(scale)) : scale;
    if (std::isfinite(stored) && stored != 0.0f)
      p.scale = kind == CodeScale::fp16 ? std::uint32_t{fp16(stored).bits} : std::bit_cast<std::uint32_t>(stored);
    return true;
  }
  static void store_row(const Ggml& f, std::span<const Parameters> all, std::span<const float> values,
                        std::span<std::byte* const> dst) {
    const detail::GgmlGroups& groups = detail::GgmlGroups::of(f.type);
    const auto size = static_cast<std::size_t>(groups.spec.group);
    const auto count = static_cast<std::size_t>(groups_per_fit(f));
    std::byte* to = dst[0];
    for (std::size_t first = 0; first < all.size(); first += count, to += f.spec().block_bytes) {
      std::uint8_t codes[detail::kMaxGgmlBlock];
      std::uint32_t scales[detail::kMaxGgmlBlock / 16], minimums[detail::kMaxGgmlBlock / 16];
      for (std::size_t g = 0; g < count; ++g) {
        // Of groups behind the end of the row: the part the block shares, times 0.
        const bool there = first + g < all.size();
        const Parameters p =
            there ? all[first + g] : Parameters{all[first].scale & 0xffffu, all[first].minimum & 0xffffu};
        scales[g] = p.scale;
        minimums[g] = p.minimum;
        const Grid grid = GridTraits::grid(f, p);
        const std::span<const float> part =
            there ? detail::part_of(values, static_cast<index_t>((first + g) * size), groups.spec.group)
                  : std::span<const float>();
        for (std::size_t i = 0; i < size; ++i) {
          const float w = i < part.size() ? part[i] : 0.0f;
          const float unit = grid.nearest_unit(grid.scale() == 0.0f ? 0.0f : grid.in_units(w));
          codes[g * size + i] = code_of(groups, unit);
        }
      }
      detail::with_ggml_block(f.type, [&](auto block) {
        ggml::write_codes(ggml::CodeBlock{codes, scales, minimums}, block);
        std::memcpy(to, &block, sizeof block);
      });
    }
  }

 private:
  static std::uint8_t code_of(const detail::GgmlGroups& groups, float unit) {
    const auto integer = static_cast<std::int32_t>(unit);
    if (groups.table == nullptr) return static_cast<std::uint8_t>(integer + groups.spec.zero);
    return static_cast<std::uint8_t>(
        std::find(groups.spec.levels.begin(), groups.spec.levels.end(), static_cast<std::int8_t>(integer)) -
        groups.spec.levels.begin());
  }
};

}  // namespace blockpack::inline BLOCKPACK_ABI
