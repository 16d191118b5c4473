// SPDX-License-Identifier: Apache-2.0
// The spectral mixer as one writes it with Eigen alone, in the library of eigen_product.cpp for the reason it gives.
#include "peers/eigen_mixer.hpp"

#include <Eigen/Core>
#include <array>
#include <cmath>
#include <complex>
#include <unsupported/Eigen/FFT>
#include <vector>

namespace bench {
namespace {

constexpr std::ptrdiff_t kColumns = kMixerSide / 2 + 1;

class EigenMixer {
 public:
  EigenMixer() : spectrum_(static_cast<std::size_t>(kMixerSide * kColumns * kMixerChannels)) {
    fft_.SetFlag(Eigen::FFT<float>::HalfSpectrum);
    fft_.SetFlag(Eigen::FFT<float>::Unscaled);
  }
  void apply(const MixerWeights* weights, const float* x, float* y) {
    forward(x);
    if (weights != nullptr) layer(*weights);
    backward(x, y);
  }

 private:
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Complex = std::complex<float>;

  Complex& at(std::ptrdiff_t h, std::ptrdiff_t k, std::ptrdiff_t c) {
    return spectrum_[static_cast<std::size_t>((h * kColumns + k) * kMixerChannels + c)];
  }

  void forward(const float* x) {
    for (std::ptrdiff_t c = 0; c < kMixerChannels; ++c) {
      for (std::ptrdiff_t h = 0; h < kMixerSide; ++h) {
        for (std::ptrdiff_t i = 0; i < kMixerSide; ++i) row_[i] = x[(h * kMixerSide + i) * kMixerChannels + c];
        fft_.fwd(half_.data(), row_.data(), kMixerSide);
        for (std::ptrdiff_t k = 0; k < kColumns; ++k) at(h, k, c) = half_[k];
      }
      for (std::ptrdiff_t k = 0; k < kColumns; ++k) {
        for (std::ptrdiff_t h = 0; h < kMixerSide; ++h) column_[h] = at(h, k, c);
        fft_.fwd(other_.data(), column_.data(), kMixerSide);
        for (std::ptrdiff_t h = 0; h < kMixerSide; ++h) at(h, k, c) = other_[h] * norm_;
      }
    }
  }

  void layer(const MixerWeights& mlp) {
    constexpr std::ptrdiff_t kModes = kMixerSide * kColumns;
    Eigen::Map<Eigen::Matrix<Complex, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>> all(spectrum_.data(), kModes,
                                                                                            kMixerChannels);
    const auto weights = [](const float* v, std::ptrdiff_t part, std::ptrdiff_t g) {
      return Eigen::Map<const Matrix>(v + (part * kMixerBlocks + g) * kMixerSize * kMixerSize, kMixerSize, kMixerSize);
    };
    const auto bias = [](const float* v, std::ptrdiff_t part, std::ptrdiff_t g) {
      return Eigen::Map<const Eigen::RowVectorXf>(v + (part * kMixerBlocks + g) * kMixerSize, kMixerSize);
    };
    for (std::ptrdiff_t g = 0; g < kMixerBlocks; ++g) {
      auto block = all.middleCols(g * kMixerSize, kMixerSize);
      const Matrix xr = block.real(), xi = block.imag();
      Matrix hr(kModes, kMixerSize), hi(kModes, kMixerSize), yr(kModes, kMixerSize), yi(kModes, kMixerSize);
      const auto product = [&](const Matrix& re, const Matrix& im, const float* v, const float* b, Matrix& out_re,
                               Matrix& out_im) {
        out_re.noalias() = re * weights(v, 0, g);
        out_re.noalias() -= im * weights(v, 1, g);
        out_re.rowwise() += bias(b, 0, g);
        out_im.noalias() = im * weights(v, 0, g);
        out_im.noalias() += re * weights(v, 1, g);
        out_im.rowwise() += bias(b, 1, g);
      };
      product(xr, xi, mlp.w1, mlp.b1, hr, hi);
      hr = hr.cwiseMax(0.0f);
      hi = hi.cwiseMax(0.0f);
      product(hr, hi, mlp.w2, mlp.b2, yr, yi);
      for (Matrix* m : {&yr, &yi}) *m -= m->cwiseMax(-kMixerThreshold).cwiseMin(kMixerThreshold).eval();
      block.real() = yr;
      block.imag() = yi;
    }
  }

  void backward(const float* x, float* y) {
    for (std::ptrdiff_t c = 0; c < kMixerChannels; ++c) {
      for (std::ptrdiff_t k = 0; k < kColumns; ++k) {
        for (std::ptrdiff_t h = 0; h < kMixerSide; ++h) column_[h] = at(h, k, c);
        fft_.inv(other_.data(), column_.data(), kMixerSide);
        for (std::ptrdiff_t h = 0; h < kMixerSide; ++h) at(h, k, c) = other_[h];
      }
      for (std::ptrdiff_t h = 0; h < kMixerSide; ++h) {
        for (std::ptrdiff_t k = 0; k < kColumns; ++k) half_[k] = at(h, k, c);
        half_.front().imag(0.0f);
        half_[kColumns - 1].imag(0.0f);
        fft_.inv(row_.data(), half_.data(), kMixerSide);
        for (std::ptrdiff_t i = 0; i < kMixerSide; ++i) {
          const std::ptrdiff_t n = (h * kMixerSide + i) * kMixerChannels + c;
          y[n] = row_[i] * norm_ + x[n];
        }
      }
    }
  }

  std::vector<Complex> spectrum_;
  Eigen::FFT<float> fft_;
  std::array<float, kMixerSide> row_;
  std::array<Complex, kMixerSide> half_;
  std::array<Complex, kMixerSide> column_, other_;
  float norm_ = 1.0f / std::sqrt(static_cast<float>(kMixerTokens));
};

}  // namespace
}  // namespace bench

extern "C" BENCH_EXPORT void bench_eigen_mixer(const bench::MixerWeights* weights, const float* x, float* y) {
  static bench::EigenMixer mixer;
  mixer.apply(weights, x, y);
}
