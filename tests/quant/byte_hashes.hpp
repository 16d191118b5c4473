// SPDX-License-Identifier: Apache-2.0
#pragma once

/// One hash per scheme (formats of rows, PTQ1.61, rotated ones) over the stored bytes of weights that are hard to
/// quantize. The expected hashes lie in tests/golden/quantization/bytes.txt; every level, compiler, set of flags and
/// architecture must give them.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>

#include "blockpack/quant.hpp"
#include "quant/rows.hpp"
#include "quant/weights.hpp"

namespace blockpack::test {

/// visit(format) for a selection of every family: all elements, grids, rules and roundings, odd and even widths.
template <class Visitor>
void for_each_format(const Visitor& visit) {
  for (const MxElement element : Mx::kElements)
    for (const int block : {16, 32})
      for (const MxScaleRule rule : {MxScaleRule::ocp_floor, MxScaleRule::ceil_fit, MxScaleRule::mse})
        for (const Rounding rounding : {Rounding::half_even, Rounding::half_away, Rounding::toward_zero})
          visit(Mx{element, block, rule, rounding});
  for (const int bits : {2, 3, 4, 6, 8, 9, 16, 24})
    for (const int block : {32, 128})
      for (const bool asymmetric : {false, true})
        for (const Rounding rounding :
             {Rounding::half_even, Rounding::half_away, Rounding::toward_zero, Rounding::down, Rounding::stochastic})
          visit(Bfp{bits, block, asymmetric, rounding, 1});
  for (const int bits : {2, 3, 4, 8})
    for (const int group : {32, 128, 0})
      for (const GroupGrid grid :
           {GroupGrid::signed_max, GroupGrid::half_step, GroupGrid::max_abs, GroupGrid::asymmetric})
        visit(GroupInt{bits, group, grid});
  for (const int bits : {2, 4})
    for (const GroupGrid grid :
         {GroupGrid::signed_max, GroupGrid::half_step, GroupGrid::max_abs, GroupGrid::asymmetric})
      visit(GroupInt{bits, 32, grid, true});
  for (const int bits : {2, 3, 4}) visit(StatsQ{bits});
  visit(Nvfp4{});
  visit(Nvfp4{true});
  for (const int block : {32, 64, 128}) visit(Nf4{block});
  for (const TernaryPacking packing : {TernaryPacking::two_bits, TernaryPacking::base3}) {
    for (const int group : {64, 256, Ternary::kRow})
      for (const TernaryRule rule : {TernaryRule::threshold, TernaryRule::mean}) visit(Ternary{group, rule, packing});
    visit(Ternary{Ternary::kTensor, TernaryRule::mean, packing});
  }
  for (const GgmlType type : Ggml::kTypes) visit(Ggml{type});
}

/// FNV-1a of what encode(w, options, add) adds for a 3 x 509 matrix of every kind of weights, with importance or
/// without.
template <class Encode>
std::uint64_t byte_hash(bool weighted, const Encode& encode) {
  constexpr index_t kRows = 3;
  constexpr index_t kCols = 509;
  std::uint64_t hash = 0xcbf29ce484222325u;
  std::vector<float> importance(static_cast<std::size_t>(kCols));
  for (std::size_t i = 0; i < importance.size(); ++i) importance[i] = static_cast<float>(i * 37 % 101) * 0.125f;
  EncodeOptions options;
  options.non_finite = NonFinite::saturate;
  if (weighted) options.importance = MatrixView<const float>(importance.data(), 1, kCols);
  for (const Weights kind : kAllWeights) {
    const std::vector<float> w = make_weights(kind, static_cast<std::size_t>(kRows * kCols), 42);
    encode(MatrixView<const float>(w.data(), kRows, kCols), options, [&](std::span<const std::byte> section) {
      for (const std::byte b : section) hash = (hash ^ std::to_integer<std::uint64_t>(b)) * 0x100000001b3u;
    });
  }
  return hash;
}

/// Calls visit("mxfp4 0123456789abcdef") for every format; those that search with importance only have two lines.
template <class Visit>
void for_each_hash_line(const Visit& visit) {
  const auto line = [&](const std::string& name, std::uint64_t hash) {
    char hex[17];
    std::snprintf(hex, sizeof hex, "%016llx", static_cast<unsigned long long>(hash));
    visit(name + " " + hex);
  };
  for_each_format([&]<class Format>(const Format& format) {
    const auto encode = [&](MatrixView<const float> w, EncodeOptions options, const auto& add) {
      for (const auto& section : encode_matrix(format, w, options)) add(section);
      if constexpr (std::is_same_v<Format, Ggml>) {  // whose encoders without importance are others
        options.importance = {};
        for (const auto& section : encode_matrix(format, w, options)) add(section);
      }
    };
    constexpr bool searches =
        std::is_same_v<Format, Bfp> || std::is_same_v<Format, Nf4> || std::is_same_v<Format, StatsQ>;
    line(format.scheme(), byte_hash(!searches, encode));
    if (searches) line(format.scheme() + "+importance", byte_hash(true, encode));
  });
  line("ptq1.61", byte_hash(false, [](MatrixView<const float> w, const EncodeOptions& options, const auto& add) {
         std::vector<float> largest(static_cast<std::size_t>(w.cols()), 0.0f);
         for (index_t r = 0; r < w.rows(); ++r)
           for (std::size_t c = 0; c < largest.size(); ++c) largest[c] = std::max(largest[c], std::fabs(w.row(r)[c]));
         for (const Section& s : Ptq161Matrix::encode(w, largest, options).sections()) add(s.data.bytes);
       }));
  const auto rotated = [&](const auto& format, index_t block) {
    line(BlockHadamard(0, block).scheme() + "-" + format.scheme(),
         byte_hash(false, [&](MatrixView<const float> w, const EncodeOptions& options, const auto& add) {
           if (find_non_finite(w).rows >= 0) return;
           for (const Section& s : encode_rotated(w, format, block, options).sections()) add(s.data.bytes);
         }));
  };
  rotated(Mx{.element = MxElement::e2m1}, 32);
  rotated(Nvfp4{}, 16);
  rotated(GroupInt{.bits = 4, .group_size = 64}, 64);
}

}  // namespace blockpack::test
