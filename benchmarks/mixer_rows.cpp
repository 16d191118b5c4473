// SPDX-License-Identifier: Apache-2.0
// mixer/afno/…: the spectral mixer of 64 x 64 tokens with 768 channels in 8 blocks beside the same mixer written with
// Eigen alone (peers/eigen_mixer.cpp). mixer/afno-transforms/…: its transforms alone, along W, along H
// and back: what is left of a row above is the complex layer.
#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "blockpack/core/random.hpp"
#include "blockpack/structured/spectral_mixer.hpp"
#include "peers/eigen_mixer.hpp"
#include "stopwatch.hpp"
#include "suite.hpp"
#if __has_include(<xtensor/containers/xadapt.hpp>)
#include <xtensor/containers/xadapt.hpp>
#else
#include <xtensor/xadapt.hpp>
#endif

namespace bench {
namespace {

using blockpack::MatrixView;

constexpr index_t kHeight = kMixerSide, kWidth = kMixerSide, kTokens = kMixerTokens, kChannels = kMixerChannels;
constexpr index_t kBlocks = kMixerBlocks, kSize = kMixerSize, kColumns = kWidth / 2 + 1;

std::vector<float> normal(index_t n, std::uint64_t seed, float scale) {
  std::vector<float> values(static_cast<std::size_t>(n));
  blockpack::fill_normal(values, seed);
  for (float& v : values) v *= scale;
  return values;
}

struct Case {
  explicit Case(std::uint64_t seed)
      : w1(normal(2 * kChannels * kSize, seed, 0.02f)),
        b1(normal(2 * kChannels, seed + 1, 0.02f)),
        w2(normal(2 * kChannels * kSize, seed + 2, 0.02f)),
        b2(normal(2 * kChannels, seed + 3, 0.02f)),
        x(normal(kTokens * kChannels, seed + 4, 1.0f)),
        y(x.size()) {}
  MixerWeights weights() const { return {w1.data(), b1.data(), w2.data(), b2.data()}; }
  std::vector<float> w1, b1, w2, b2, x, y;
};

/// The transforms of the mixer: along W, along H and back, along W and back.
class Transforms {
 public:
  Transforms() : s_(static_cast<std::size_t>(2 * kColumns * kPlane)), t_(static_cast<std::size_t>(2 * kPlane)) {}
  void apply(const Case& c, float* y, const blockpack::ApplyOptions& how) {
    constexpr index_t kSlab = kWidth * kChannels;
    const auto slab = [](const float* at) { return MatrixView<const float>(at, kWidth, kChannels); };
    for (index_t h = 0; h < kHeight; ++h) along_w_.forward(slab(c.x.data() + h * kSlab), row(h), how);
    for (index_t k = 0; k < kColumns; ++k) {
      const Spectrum column = plane(s_.data() + 2 * k * kPlane), work = plane(t_.data());
      along_h_.whole(readable(column), work, false, how);
      along_h_.whole(readable(work), column, true, how);
    }
    for (index_t h = 0; h < kHeight; ++h)
      along_w_.backward(readable(row(h)), slab(c.x.data() + h * kSlab),
                        MatrixView<float>(y + h * kSlab, kWidth, kChannels), how);
  }

 private:
  using Spectrum = blockpack::detail::RowTransforms::Spectrum<float>;
  static constexpr index_t kPlane = kHeight * kChannels + 16;

  static blockpack::detail::RowTransforms::Spectrum<const float> readable(const Spectrum& s) { return {s.re, s.im}; }
  Spectrum row(index_t h) {
    float* at = s_.data() + h * kChannels;
    return {{at, kColumns, kChannels, 2 * kPlane}, {at + kPlane, kColumns, kChannels, 2 * kPlane}};
  }
  static Spectrum plane(float* at) { return {{at, kHeight, kChannels}, {at + kPlane, kHeight, kChannels}}; }

  blockpack::detail::RowTransforms along_w_{kWidth, kColumns, false, 128}, along_h_{kHeight, kHeight, true, 128};
  std::vector<float> s_, t_;
};

void check(const std::vector<float>& y, const std::vector<float>& expected) {
  for (std::size_t i = 0; i < y.size(); ++i)
    if (!(std::fabs(y[i] - expected[i]) < 1e-5f)) throw std::runtime_error("the result is not that of Eigen's mixer");
}

void mixer_row(benchmark::State& state, bool whole, bool eigen, int threads, std::uint64_t seed) {
  try {
    Case c(seed);
    blockpack::ApplyOptions how;
    how.execution.threads = threads;
    const PinThreads pin(threads);
    std::vector<float> expected(c.y.size());
    const MixerWeights mlp = c.weights();
    const auto other = [&] { bench_eigen_mixer(whole ? &mlp : nullptr, c.x.data(), expected.data()); };
    if (eigen) {
      time_calls(state, threads, 1, other);
      return;
    }
    other();
    if (!whole) {
      Transforms transforms;
      time_calls(state, threads, 1, [&] { transforms.apply(c, c.y.data(), how); });
      return check(c.y, expected);
    }
    const auto tensor = [](const std::vector<float>& v, const auto& shape) {
      return xt::adapt(v.data(), v.size(), xt::no_ownership(), shape);
    };
    const std::array<std::size_t, 4> weights = {2, kBlocks, kSize, kSize};
    const std::array<std::size_t, 3> bias = {2, kBlocks, kSize}, tokens = {1, kTokens, kChannels};
    const auto mixer = blockpack::SpectralMixer::afno(tensor(c.w1, weights), tensor(c.b1, bias), tensor(c.w2, weights),
                                                      tensor(c.b2, bias));
    const auto x = tensor(c.x, tokens);
    auto y = xt::adapt(c.y.data(), c.y.size(), xt::no_ownership(), tokens);
    time_calls(state, threads, 1, [&] { mixer.apply(x, y, how); });
    check(c.y, expected);
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

}  // namespace

void add_mixer_rows(Suite& suite, const Options& options) {
  for (int threads = 1; threads <= options.max_threads; ++threads)
    for (const bool whole : {true, false})
      for (const bool eigen : {false, true})
        if (!eigen || threads == 1)
          suite.add(std::string("mixer/afno") + (whole ? "" : "-transforms") + (eigen ? "/eigen" : "/blockpack") +
                        "/M:4096/N:768/K:768/threads:" + std::to_string(threads),
                    "mixer/afno",
                    [=, seed = options.seed](benchmark::State& s) { mixer_row(s, whole, eigen, threads, seed); });
}

}  // namespace bench
