// SPDX-License-Identifier: Apache-2.0
#pragma once

/// How many bits the parts of 16-bit floats carry: sign, exponent, mantissa, the whole pattern, and its two bytes. The
/// sum over the fields bounds what a coder with one table per field can reach, the joint figure what one over whole
/// patterns can. Trained bf16 weights: sign about 1 bit, exponent 2.5 to 3.2 of 8, mantissa 6.97 of 7.
///
/// Joint figures are biased low when n is not far above 65,536: compare tensors of similar size.

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/entropy/estimators.hpp"
#include "blockpack/entropy/value_counts.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Plug-in entropies in bits.
struct FieldEntropies {
  double sign = 0;
  double exponent = 0;
  double mantissa = 0;
  double joint = 0;      ///< of the 16-bit pattern
  double high_byte = 0;  ///< bits 15 to 8
  double low_byte = 0;   ///< bits 7 to 0
  std::array<std::uint64_t, 256> exponent_counts{};
  int distinct_exponents = 0;

  double field_sum() const noexcept { return sign + exponent + mantissa; }

  /// Share of the values whose exponent is among the k most frequent ones; 1 for no values.
  double exponent_coverage(int k) const {
    std::array<std::uint64_t, 256> sorted = exponent_counts;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    std::uint64_t covered = 0, all = 0;
    for (std::size_t e = 0; e < sorted.size(); ++e) {
      all += sorted[e];
      if (static_cast<int>(e) < k) covered += sorted[e];
    }
    return all == 0 ? 1.0 : static_cast<double>(covered) / static_cast<double>(all);
  }
};

/// From 65,536 counts of bit patterns (`code_counts`). ShapeError for another size, ValueError for f32.
inline FieldEntropies field_entropies(std::span<const std::uint64_t> counts, StoredType type) {
  if (counts.size() != kHistogramBins)
    throw ShapeError("field_entropies: counts has " + std::to_string(counts.size()) + " entries, 65536 needed");
  if (type == StoredType::f32) throw ValueError("field_entropies: type is f32, bf16 or fp16 needed");
  const unsigned mantissa_bits = type == StoredType::bf16 ? 7 : 10;
  const auto marginal = [&](unsigned shift, unsigned bits) {
    std::vector<std::uint64_t> sums(std::size_t{1} << bits);
    for (std::size_t c = 0; c < counts.size(); ++c) sums[(c >> shift) & (sums.size() - 1)] += counts[c];
    return sums;
  };
  FieldEntropies h;
  const std::vector<std::uint64_t> exponents = marginal(mantissa_bits, 15 - mantissa_bits);
  for (std::size_t e = 0; e < exponents.size(); ++e) {
    h.exponent_counts[e] = exponents[e];
    if (exponents[e] != 0) ++h.distinct_exponents;
  }
  h.sign = discrete_entropy(marginal(15, 1)).bits();
  h.exponent = discrete_entropy(exponents).bits();
  h.mantissa = discrete_entropy(marginal(0, mantissa_bits)).bits();
  h.joint = discrete_entropy(counts).bits();
  h.high_byte = discrete_entropy(marginal(8, 8)).bits();
  h.low_byte = discrete_entropy(marginal(0, 8)).bits();
  return h;
}

/// Of a block whose matrices all have one 16-bit type; ValueError otherwise. Cost: one pass.
inline FieldEntropies field_entropies(const WeightBlock& block, const Execution& how = {}) {
  const StoredType type = block.matrices.empty() ? StoredType::bf16 : block.matrices.front().type();
  return field_entropies(code_counts(block, type, how), type);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
