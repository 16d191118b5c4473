// SPDX-License-Identifier: Apache-2.0

/// How fast the spectral mixer is beside the same mixer written with Eigen alone. Hidden; `blockpack_test_structured
/// "[speed]"` prints the times of one thread.

#include <fmt/format.h>
#include <cstdlib>

#include <Eigen/Core>
#include <algorithm>
#include <chrono>
#include <complex>
#include <vector>

#include "blockpack/structured/spectral_mixer.hpp"
#include "structured/tensors.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace blockpack::test {
namespace {

using Clock = std::chrono::steady_clock;
double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}
double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

constexpr index_t kHeight = 64, kWidth = 64, kChannels = 768, kBlocks = 8, kSize = kChannels / kBlocks;
constexpr index_t kColumns = kWidth / 2 + 1;
constexpr float kThreshold = 0.01f;

struct Weights {
  std::vector<float> w1 = random_normal(2 * kBlocks * kSize * kSize, 1, 0.02f),
                     b1 = random_normal(2 * kChannels, 2, 0.02f);
  std::vector<float> w2 = random_normal(2 * kBlocks * kSize * kSize, 3, 0.02f),
                     b2 = random_normal(2 * kChannels, 4, 0.02f);
};

/// kissfft along W and H a channel, Eigen's products for the complex layer.
class EigenMixer {
 public:
  double transforms_ms = 0, layers_ms = 0;

  void apply(const Weights& w, const float* x, float* y) {
    using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    using Complex = std::complex<float>;
    const float norm = 1.0f / std::sqrt(static_cast<float>(kHeight * kWidth));
    std::vector<Complex> spectrum(static_cast<std::size_t>(kHeight * kColumns * kChannels));
    const auto at = [&](index_t h, index_t k, index_t c) -> Complex& {
      return spectrum[static_cast<std::size_t>((h * kColumns + k) * kChannels + c)];
    };
    Eigen::FFT<float> fft;
    fft.SetFlag(Eigen::FFT<float>::HalfSpectrum);
    fft.SetFlag(Eigen::FFT<float>::Unscaled);
    std::vector<float> row(kWidth);
    std::vector<Complex> half(kWidth), column(kHeight), other(kHeight);

    auto start = Clock::now();
    for (index_t c = 0; c < kChannels; ++c) {
      for (index_t h = 0; h < kHeight; ++h) {
        for (index_t i = 0; i < kWidth; ++i) row[static_cast<std::size_t>(i)] = x[(h * kWidth + i) * kChannels + c];
        fft.fwd(half.data(), row.data(), kWidth);
        for (index_t k = 0; k < kColumns; ++k) at(h, k, c) = half[static_cast<std::size_t>(k)];
      }
      for (index_t k = 0; k < kColumns; ++k) {
        for (index_t h = 0; h < kHeight; ++h) column[static_cast<std::size_t>(h)] = at(h, k, c);
        fft.fwd(other.data(), column.data(), kHeight);
        for (index_t h = 0; h < kHeight; ++h) at(h, k, c) = other[static_cast<std::size_t>(h)] * norm;
      }
    }
    transforms_ms = ms_since(start);

    start = Clock::now();
    constexpr index_t kModes = kHeight * kColumns;
    Eigen::Map<Eigen::Matrix<Complex, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>> all(spectrum.data(), kModes,
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
      product(xr, xi, w.w1, w.b1, hr, hi);
      hr = hr.cwiseMax(0.0f);
      hi = hi.cwiseMax(0.0f);
      product(hr, hi, w.w2, w.b2, yr, yi);
      for (Matrix* m : {&yr, &yi}) *m -= m->cwiseMax(-kThreshold).cwiseMin(kThreshold).eval();
      block.real() = yr;
      block.imag() = yi;
    }
    layers_ms = ms_since(start);

    start = Clock::now();
    for (index_t c = 0; c < kChannels; ++c) {
      for (index_t k = 0; k < kColumns; ++k) {
        for (index_t h = 0; h < kHeight; ++h) column[static_cast<std::size_t>(h)] = at(h, k, c);
        fft.inv(other.data(), column.data(), kHeight);
        for (index_t h = 0; h < kHeight; ++h) at(h, k, c) = other[static_cast<std::size_t>(h)];
      }
      for (index_t h = 0; h < kHeight; ++h) {
        for (index_t k = 0; k < kColumns; ++k) half[static_cast<std::size_t>(k)] = at(h, k, c);
        half.front().imag(0.0f);
        half[kColumns - 1].imag(0.0f);
        fft.inv(row.data(), half.data(), kWidth);
        for (index_t i = 0; i < kWidth; ++i) {
          const index_t n = (h * kWidth + i) * kChannels + c;
          y[n] = row[static_cast<std::size_t>(i)] * norm + x[n];
        }
      }
    }
    transforms_ms += ms_since(start);
  }
};

/// The transforms of the mixer alone: along W, along H and back, along W and back.
double transforms_alone(const std::vector<float>& x) {
  using Spectrum = detail::RowTransforms::Spectrum<float>;
  const detail::RowTransforms along_w(kWidth, kColumns, false, 128), along_h(kHeight, kHeight, true, 128);
  const index_t plane = kHeight * kChannels + 16;
  std::vector<float> s(static_cast<std::size_t>(2 * kColumns * plane)), t(static_cast<std::size_t>(2 * plane));
  std::vector<float> y(x.size());
  ApplyOptions how;
  how.execution.threads = 1;
  const auto row = [&](index_t h) {
    float* at = s.data() + h * kChannels;
    return Spectrum{{at, kColumns, kChannels, 2 * plane}, {at + plane, kColumns, kChannels, 2 * plane}};
  };
  const auto slab = [&](float* at) { return Spectrum{{at, kHeight, kChannels}, {at + plane, kHeight, kChannels}}; };
  const auto readable = [](const Spectrum& v) { return detail::RowTransforms::Spectrum<const float>{v.re, v.im}; };
  const auto start = Clock::now();
  const index_t slab_size = kWidth * kChannels;
  for (index_t h = 0; h < kHeight; ++h)
    along_w.forward(MatrixView<const float>(x.data() + h * slab_size, kWidth, kChannels), row(h), how);
  for (index_t k = 0; k < kColumns; ++k) {
    along_h.whole(readable(slab(s.data() + 2 * k * plane)), slab(t.data()), false, how);
    along_h.whole(readable(slab(t.data())), slab(s.data() + 2 * k * plane), true, how);
  }
  for (index_t h = 0; h < kHeight; ++h)
    along_w.backward(readable(row(h)), MatrixView<const float>(x.data() + h * slab_size, kWidth, kChannels),
                     MatrixView<float>(y.data() + h * slab_size, kWidth, kChannels), how);
  return ms_since(start);
}

TEST_CASE("the spectral mixer beside one of Eigen alone", "[.][speed]") {
  if (std::getenv("BLOCKPACK_SPEED") == nullptr) return;  // a timing, not a test
  const Weights w;
  const std::vector<float> x = random_normal(kHeight * kWidth * kChannels, 5);
  const std::array<std::size_t, 4> weight_shape = {2, kBlocks, kSize, kSize};
  const std::array<std::size_t, 3> bias_shape = {2, kBlocks, kSize}, x_shape = {1, kHeight * kWidth, kChannels};
  const auto tensor = [](const std::vector<float>& v, const auto& shape) {
    return xt::adapt(v.data(), v.size(), xt::no_ownership(), shape);
  };
  const SpectralMixer mixer = SpectralMixer::afno(tensor(w.w1, weight_shape), tensor(w.b1, bias_shape),
                                                  tensor(w.w2, weight_shape), tensor(w.b2, bias_shape));
  const auto in = tensor(x, x_shape);
  xt::xtensor<float, 3> y(x_shape);
  ApplyOptions how;
  how.execution.threads = 1;
  EigenMixer eigen;
  std::vector<float> expected(x.size());
  std::vector<double> total, transforms, eigen_transforms, eigen_layers;
  for (int round = 0; round < 7; ++round) {  // all of them in every round: the machine may change its mind
    for (int i = 0; i < 3; ++i) {
      const auto start = Clock::now();
      mixer.apply(in, y, how);
      total.push_back(ms_since(start));
      transforms.push_back(transforms_alone(x));
    }
    eigen.apply(w, x.data(), expected.data());
    eigen_transforms.push_back(eigen.transforms_ms);
    eigen_layers.push_back(eigen.layers_ms);
  }
  double difference = 0;
  for (std::size_t i = 0; i < x.size(); ++i)
    difference = std::max(difference, static_cast<double>(std::abs(y.data()[i] - expected[i])));
  CHECK(difference < 1e-5);
  const double ours = median(total), ours_transforms = median(transforms), layers = ours - ours_transforms;
  const double theirs_transforms = median(eigen_transforms), theirs_layers = median(eigen_layers);
  fmt::print(
      "64 x 64 tokens, 768 channels, 8 blocks, one thread, medians in ms: transforms {:.1f} (Eigen {:.1f}, {:.1f}x), "
      "complex layer {:.1f} (Eigen {:.1f}, {:.1f}x), all {:.1f} (Eigen {:.1f}, {:.1f}x)\n",
      ours_transforms, theirs_transforms, theirs_transforms / ours_transforms, layers, theirs_layers,
      theirs_layers / layers, ours, theirs_transforms + theirs_layers, (theirs_transforms + theirs_layers) / ours);
}

}  // namespace
}  // namespace blockpack::test
