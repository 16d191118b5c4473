// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Weights that are hard to quantize, from a seed.

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "blockpack/core/random.hpp"

namespace blockpack::test {

enum class Weights {
  heavy_tailed,   ///< like a trained matrix
  all_exponents,  ///< random bits: every exponent, subnormals, no infinity or NaN
  ties,           ///< small multiples of 1/16 of a power of two: many exact ties
  tiny,           ///< subnormals and a few values just above
  huge,           ///< close to the largest float
  zeros,          ///< 0 and -0
  sparse,         ///< blocks of zeros beside others
  with_infinity   ///< heavy tails with a few infinities
};
inline constexpr Weights kAllWeights[] = {Weights::heavy_tailed, Weights::all_exponents, Weights::ties,
                                          Weights::tiny,         Weights::huge,          Weights::zeros,
                                          Weights::sparse,       Weights::with_infinity};

inline const char* to_string(Weights kind) {
  constexpr const char* kNames[] = {"heavy_tailed", "all_exponents", "ties",   "tiny",
                                    "huge",         "zeros",         "sparse", "with_infinity"};
  return kNames[static_cast<int>(kind)];
}

inline std::vector<float> make_weights(Weights kind, std::size_t n, std::uint64_t seed) {
  Random random(seed, static_cast<std::uint64_t>(kind));
  std::vector<float> w(n);
  const auto sign = [&] { return random.below(2) == 0 ? 1.0f : -1.0f; };
  const auto heavy = [&] {
    const float a = static_cast<float>(random.below(1u << 24)) * 0x1p-24f - 0.5f;
    return a / (0.02f + static_cast<float>(random.below(1u << 24)) * 0x1p-24f);
  };
  for (std::size_t i = 0; i < n; ++i) {
    switch (kind) {
      case Weights::heavy_tailed:
        w[i] = heavy();
        break;
      case Weights::all_exponents: {
        const auto bits = static_cast<std::uint32_t>(random());
        w[i] = std::bit_cast<float>((bits & 0x7f800000u) == 0x7f800000u ? bits ^ 0x40000000u : bits);
        break;
      }
      case Weights::ties:
        w[i] = sign() * static_cast<float>(random.below(256)) * (i % 64 < 32 ? 0x1p-4f : 0x1p-12f);
        break;
      case Weights::tiny:
        w[i] = sign() * std::bit_cast<float>(random.below(i % 97 == 0 ? 0x02000000u : 0x00900000u));
        break;
      case Weights::huge:
        w[i] = sign() * std::bit_cast<float>(0x7f7fffffu - random.below(0x01800000u));
        break;
      case Weights::zeros:
        w[i] = 0.0f * sign();
        break;
      case Weights::sparse:
        w[i] = i / 32 % 2 == 0 ? 0.0f : heavy();
        break;
      case Weights::with_infinity:
        w[i] = random.below(40) == 0 ? sign() * std::numeric_limits<float>::infinity() : heavy();
        break;
    }
  }
  return w;
}

}  // namespace blockpack::test
