// SPDX-License-Identifier: Apache-2.0
// mixer/afno/…: the spectral mixer of 64 x 64 tokens with 768 channels in 8 blocks beside the same mixer written with
// Eigen alone, kissfft a channel and Eigen's products. mixer/afno-transforms/…: its transforms alone, along W, along H
// and back: what is left of a row above is the complex layer.
#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "blockpack/core/random.hpp"
#include "blockpack/structured/spectral_mixer.hpp"
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

constexpr index_t kHeight = 64, kWidth = 64, kTokens = kHeight * kWidth, kChannels = 768;
constexpr index_t kBlocks = 8, kSize = kChannels / kBlocks, kColumns = kWidth / 2 + 1;
constexpr float kThreshold = 0.01f;  // afno's

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
  std::vector<float> w1, b1, w2, b2, x, y;
};

class EigenMixer {
 public:
  explicit EigenMixer(const Case& c) : c_(c), spectrum_(static_cast<std::size_t>(kHeight * kColumns * kChannels)) {
    fft_.SetFlag(Eigen::FFT<float>::HalfSpectrum);
    fft_.SetFlag(Eigen::FFT<float>::Unscaled);
  }
  void apply(float* y) {
    forward(c_.x.data());
    layer();
    backward(c_.x.data(), y);
  }
  void transforms(float* y) {
    forward(c_.x.data());
    backward(c_.x.data(), y);
  }

 private:
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Complex = std::complex<float>;

  Complex& at(index_t h, index_t k, index_t c) {
    return spectrum_[static_cast<std::size_t>((h * kColumns + k) * kChannels + c)];
  }

  void forward(const float* x) {
    for (index_t c = 0; c < kChannels; ++c) {
      for (index_t h = 0; h < kHeight; ++h) {
        for (index_t i = 0; i < kWidth; ++i) row_[i] = x[(h * kWidth + i) * kChannels + c];
        fft_.fwd(half_.data(), row_.data(), kWidth);
        for (index_t k = 0; k < kColumns; ++k) at(h, k, c) = half_[k];
      }
      for (index_t k = 0; k < kColumns; ++k) {
        for (index_t h = 0; h < kHeight; ++h) column_[h] = at(h, k, c);
        fft_.fwd(other_.data(), column_.data(), kHeight);
        for (index_t h = 0; h < kHeight; ++h) at(h, k, c) = other_[h] * norm_;
      }
    }
  }

  void layer() {
    constexpr index_t kModes = kHeight * kColumns;
    Eigen::Map<Eigen::Matrix<Complex, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>> all(spectrum_.data(), kModes,
                                                                                            kChannels);
    const auto weights = [](const std::vector<float>& v, index_t part, index_t g) {
      return Eigen::Map<const Matrix>(v.data() + (part * kBlocks + g) * kSize * kSize, kSize, kSize);
    };
    const auto bias = [](const std::vector<float>& v, index_t part, index_t g) {
      return Eigen::Map<const Eigen::RowVectorXf>(v.data() + (part * kBlocks + g) * kSize, kSize);
    };
    for (index_t g = 0; g < kBlocks; ++g) {
      auto block = all.middleCols(g * kSize, kSize);
      const Matrix xr = block.real(), xi = block.imag();
      Matrix hr(kModes, kSize), hi(kModes, kSize), yr(kModes, kSize), yi(kModes, kSize);
      const auto product = [&](const Matrix& re, const Matrix& im, const std::vector<float>& v,
                               const std::vector<float>& b, Matrix& out_re, Matrix& out_im) {
        out_re.noalias() = re * weights(v, 0, g);
        out_re.noalias() -= im * weights(v, 1, g);
        out_re.rowwise() += bias(b, 0, g);
        out_im.noalias() = im * weights(v, 0, g);
        out_im.noalias() += re * weights(v, 1, g);
        out_im.rowwise() += bias(b, 1, g);
      };
      product(xr, xi, c_.w1, c_.b1, hr, hi);
      hr = hr.cwiseMax(0.0f);
      hi = hi.cwiseMax(0.0f);
      product(hr, hi, c_.w2, c_.b2, yr, yi);
      for (Matrix* m : {&yr, &yi}) *m -= m->cwiseMax(-kThreshold).cwiseMin(kThreshold).eval();
      block.real() = yr;
      block.imag() = yi;
    }
  }

  void backward(const float* x, float* y) {
    for (index_t c = 0; c < kChannels; ++c) {
      for (index_t k = 0; k < kColumns; ++k) {
        for (index_t h = 0; h < kHeight; ++h) column_[h] = at(h, k, c);
        fft_.inv(other_.data(), column_.data(), kHeight);
        for (index_t h = 0; h < kHeight; ++h) at(h, k, c) = other_[h];
      }
      for (index_t h = 0; h < kHeight; ++h) {
        for (index_t k = 0; k < kColumns; ++k) half_[k] = at(h, k, c);
        half_.front().imag(0.0f);
        half_[kColumns - 1].imag(0.0f);
        fft_.inv(row_.data(), half_.data(), kWidth);
        for (index_t i = 0; i < kWidth; ++i) {
          const index_t n = (h * kWidth + i) * kChannels + c;
          y[n] = row_[i] * norm_ + x[n];
        }
      }
    }
  }

  const Case& c_;
  std::vector<Complex> spectrum_;
  Eigen::FFT<float> fft_;
  std::array<float, kWidth> row_;
  std::array<Complex, kWidth> half_;
  std::array<Complex, kHeight> column_, other_;
  float norm_ = 1.0f / std::sqrt(static_cast<float>(kTokens));
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
    EigenMixer other(c);
    if (eigen) {
      time_calls(state, threads, 1, [&] { whole ? other.apply(c.y.data()) : other.transforms(c.y.data()); });
      return;
    }
    std::vector<float> expected(c.y.size());
    whole ? other.apply(expected.data()) : other.transforms(expected.data());
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
