// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "peers/eigen_product.hpp"

namespace bench {

/// A spectral mixer of 64 x 64 tokens, 768 channels in 8 blocks.
inline constexpr std::ptrdiff_t kMixerSide = 64, kMixerTokens = kMixerSide * kMixerSide, kMixerChannels = 768;
inline constexpr std::ptrdiff_t kMixerBlocks = 8, kMixerSize = kMixerChannels / kMixerBlocks;
inline constexpr float kMixerThreshold = 0.01f;  // afno's

/// Weights [real, imaginary][block][size][size] and biases [real, imaginary][block][size] of the two layers.
struct MixerWeights {
  const float *w1, *b1, *w2, *b2;
};

}  // namespace bench

/// y = the mixer of x, both [tokens][channels], by Eigen's FFT a channel and Eigen's products; without weights the
/// transforms alone. One thread.
extern "C" void bench_eigen_mixer(const bench::MixerWeights* weights, const float* x, float* y);
