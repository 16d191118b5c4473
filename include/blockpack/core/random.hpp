// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A small random generator whose numbers are the same with every compiler, library and CPU, and synthetic matrices
/// that look like trained weights: for tests, benchmarks and anyone who wants inputs that can be reproduced from a
/// seed. (The distributions of the standard library differ between vendors.) Not for cryptography.
///
/// Source: xoshiro256** and splitmix64, D. Blackman and S. Vigna, "Scrambled Linear Pseudorandom Number Generators",
/// ACM Trans. Math. Softw. 47 (2021).

#include <bit>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/strict.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// xoshiro256**. Models std::uniform_random_bit_generator. Copies continue independently with the same numbers.
class Random {
 public:
  using result_type = std::uint64_t;

  /// Different (seed, stream) pairs give unrelated sequences: rows of a matrix can be made in any order.
  explicit constexpr Random(std::uint64_t seed, std::uint64_t stream = 0) noexcept {
    std::uint64_t x = seed;
    const std::uint64_t mixed = splitmix(x) ^ stream;
    x = mixed;
    for (std::uint64_t& s : state_) s = splitmix(x);
  }

  static constexpr result_type min() noexcept { return 0; }
  static constexpr result_type max() noexcept { return std::numeric_limits<result_type>::max(); }

  /// 64 uniform bits.
  constexpr std::uint64_t operator()() noexcept {
    const std::uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
    const std::uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

  /// Uniform in [0, n), n > 0. The bias is below n / 2^32.
  constexpr std::uint32_t below(std::uint32_t n) noexcept {
    return static_cast<std::uint32_t>(((*this)() >> 32) * n >> 32);
  }

  /// Uniform in [0, 1), a multiple of 2^-24.
  constexpr float uniform() noexcept { return static_cast<float>((*this)() >> 40) * 0x1p-24f; }

  /// Uniform in [low, high); high itself may come out by rounding.
  float uniform(float low, float high) noexcept { return low + strict_mul(high - low, uniform()); }

  /// Mean 0, variance 1: the sum of twelve uniforms, so |value| <= 6. Exact integer arithmetic and one rounding.
  constexpr float normal() noexcept {
    constexpr std::uint64_t kMask = (1u << 21) - 1;
    std::int64_t sum = 0;
    for (int i = 0; i < 4; ++i) {
      const std::uint64_t b = (*this)();
      sum += static_cast<std::int64_t>((b & kMask) + ((b >> 21) & kMask) + ((b >> 42) & kMask));
    }
    return static_cast<float>(static_cast<double>(sum - 6 * static_cast<std::int64_t>(kMask)) * 0x1p-21);
  }

 private:
  static constexpr std::uint64_t splitmix(std::uint64_t& x) noexcept {
    x += 0x9e3779b97f4a7c15u;
    std::uint64_t z = x;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  std::uint64_t state_[4] = {};
};

/// How `fill_weights` departs from a plain normal matrix. The defaults resemble linear layers of language models:
/// excess kurtosis about 5 within a column, and some columns several times larger than the others.
struct WeightLook {
  float sigma = 0.02f;               ///< standard deviation of the narrow part
  float tail_probability = 0.0625f;  ///< share of weights drawn `tail_gain` times wider
  float tail_gain = 3.0f;
  float outlier_columns = 0.0078125f;  ///< share of columns that are `outlier_gain` times wider
  float outlier_gain = 8.0f;
};

/// Fills w with heavy-tailed values and outlier columns. Row i depends on the seed, on first_row + i, on the look and
/// on the number of columns alone: panels of a large matrix may be made one by one, in any order.
///
/// Shapes:  w [rows, cols], any row_stride. Cost: about 10 ns per weight, one float per column of scratch memory.
inline void fill_weights(MatrixView<float> w, std::uint64_t seed, index_t first_row = 0, const WeightLook& look = {}) {
  std::vector<float> gain(static_cast<std::size_t>(w.cols()));
  Random columns(seed, ~std::uint64_t{0});
  for (float& g : gain) g = columns.uniform() < look.outlier_columns ? look.sigma * look.outlier_gain : look.sigma;
  for (index_t i = 0; i < w.rows(); ++i) {
    Random random(seed, static_cast<std::uint64_t>(first_row + i));
    const std::span<float> row = w.row(i);
    for (std::size_t j = 0; j < row.size(); ++j) {
      const float tail = random.uniform() < look.tail_probability ? look.tail_gain : 1.0f;
      row[j] = random.normal() * tail * gain[j];
    }
  }
}

/// Fills x with mean 0, standard deviation sigma.
inline void fill_normal(std::span<float> x, std::uint64_t seed, float sigma = 1.0f) {
  Random random(seed);
  for (float& v : x) v = random.normal() * sigma;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
