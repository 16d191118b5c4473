// SPDX-License-Identifier: Apache-2.0

/// Properties of the spectral mixer: any grid, long transforms, masks, threads, the rest of the batch, and what is
/// refused.

#include "blockpack/structured/spectral_mixer.hpp"

#include <cmath>
#include <complex>
#include <cstring>
#include <numbers>
#include <thread>

#include "blockpack/quant/mx.hpp"
#include "blockpack/quant/quantized_matrix.hpp"
#include "structured/tensors.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/levels.hpp"
#include "support/random.hpp"

namespace blockpack::test {
namespace {

using Tensor3 = xt::xtensor<float, 3>;
using Tensor4 = xt::xtensor<float, 4>;

template <class Tensor, class... Size>
Tensor random_tensor(std::uint64_t seed, float sigma, Size... size) {
  Tensor t(typename Tensor::shape_type{static_cast<std::size_t>(size)...});
  fill_normal({t.data(), t.size()}, seed, sigma);
  return t;
}

struct Weights {
  Tensor4 w1, w2;
  Tensor3 b1, b2;
  Weights(index_t blocks, index_t size, index_t hidden)
      : w1(random_tensor<Tensor4>(1, 0.3f, 2, blocks, size, hidden)),
        w2(random_tensor<Tensor4>(2, 0.3f, 2, blocks, hidden, size)),
        b1(random_tensor<Tensor3>(3, 0.1f, 2, blocks, hidden)),
        b2(random_tensor<Tensor3>(4, 0.1f, 2, blocks, size)) {}
  SpectralMixer mixer(const SpectralMixerOptions& options = {}) const {
    return SpectralMixer::afno(w1, b1, w2, b2, options);
  }
};

Tensor3 mix(const SpectralMixer& mixer, const Tensor3& x, TokenGrid grid, const ApplyOptions& how = {}) {
  Tensor3 y(x.shape());
  mixer.apply(x, y, grid, how);
  return y;
}

/// The definition, in double and by sums over all positions, with `keep(row, column)` as the mask.
template <class Keep>
Tensor3 reference(const Weights& weights, const Tensor3& x, TokenGrid grid, float threshold, const Keep& keep) {
  using Complex = std::complex<double>;
  const index_t height = grid.height, width = grid.width, columns = width / 2 + 1;
  const auto c = static_cast<index_t>(x.shape(2)), blocks = static_cast<index_t>(weights.w1.shape(1)),
             size = c / blocks;
  const auto hidden = static_cast<index_t>(weights.w1.shape(3));
  const double norm = 1.0 / std::sqrt(static_cast<double>(height * width));
  const auto wave = [](index_t a, index_t n, double sign) {
    return std::polar(1.0, sign * 2.0 * std::numbers::pi * static_cast<double>(a % n) / static_cast<double>(n));
  };
  const auto weight = [](const Tensor4& w, index_t g, index_t i, index_t o) {
    return Complex(w(0, g, i, o), w(1, g, i, o));
  };
  const auto each_part = [](Complex v, const auto& f) { return Complex(f(v.real()), f(v.imag())); };
  Tensor3 y(x.shape());
  for (std::size_t b = 0; b < x.shape(0); ++b) {
    std::vector<Complex> spectrum(static_cast<std::size_t>(height * columns * c));
    const auto at = [&](index_t u, index_t v, index_t k) -> Complex& {
      return spectrum[static_cast<std::size_t>((u * columns + v) * c + k)];
    };
    for (index_t u = 0; u < height; ++u) {
      for (index_t v = 0; v < columns; ++v) {
        if (!keep(u, v)) continue;
        std::vector<Complex> in(static_cast<std::size_t>(c));
        for (index_t h = 0; h < height; ++h)
          for (index_t w = 0; w < width; ++w)
            for (index_t k = 0; k < c; ++k)
              in[static_cast<std::size_t>(k)] +=
                  static_cast<double>(x(b, h * width + w, k)) * norm * wave(h * u, height, -1) * wave(w * v, width, -1);
        for (index_t g = 0; g < blocks; ++g) {
          std::vector<Complex> u1(static_cast<std::size_t>(hidden));
          for (index_t o = 0; o < hidden; ++o) {
            Complex sum(weights.b1(0, g, o), weights.b1(1, g, o));
            for (index_t i = 0; i < size; ++i)
              sum += in[static_cast<std::size_t>(g * size + i)] * weight(weights.w1, g, i, o);
            u1[static_cast<std::size_t>(o)] = each_part(sum, [](double r) { return std::max(r, 0.0); });
          }
          for (index_t o = 0; o < size; ++o) {
            Complex sum(weights.b2(0, g, o), weights.b2(1, g, o));
            for (index_t i = 0; i < hidden; ++i) sum += u1[static_cast<std::size_t>(i)] * weight(weights.w2, g, i, o);
            at(u, v, g * size + o) = each_part(sum, [&](double r) {
              const double t = static_cast<double>(threshold);
              return r > t ? r - t : r < -t ? r + t : 0.0;
            });
          }
        }
      }
    }
    for (index_t h = 0; h < height; ++h)
      for (index_t w = 0; w < width; ++w)
        for (index_t k = 0; k < c; ++k) {
          double sum = 0;
          for (index_t v = 0; v < columns; ++v) {
            Complex column;
            for (index_t u = 0; u < height; ++u) column += at(u, v, k) * wave(h * u, height, 1);
            if (v == 0 || 2 * v == width) column.imag(0.0);
            sum += (v == 0 || 2 * v == width ? 1.0 : 2.0) * (column * wave(w * v, width, 1)).real();
          }
          y(b, h * width + w, k) = static_cast<float>(sum * norm) + x(b, h * width + w, k);
        }
  }
  return y;
}

void require_near(const Tensor3& a, const Tensor3& b, float tolerance) {
  REQUIRE(a.shape() == b.shape());
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::abs(a.data()[i] - b.data()[i]) <= tolerance) continue;
    CAPTURE(i, a.data()[i], b.data()[i]);
    REQUIRE(std::abs(a.data()[i] - b.data()[i]) <= tolerance);
  }
}

bool same_bits(const Tensor3& a, const Tensor3& b) {
  return a.shape() == b.shape() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_CASE("the mixer is its definition on any grid, at every level", "[structured][kernels]") {
  const Weights weights(2, 3, 5);
  for (const TokenGrid grid : {TokenGrid{1, 1}, {1, 2}, {2, 1}, {3, 1}, {1, 9}, {2, 2}, {5, 4}, {4, 7}, {6, 8}}) {
    const Tensor3 x = random_tensor<Tensor3>(7, 1.0f, 2, grid.height * grid.width, 6);
    const Tensor3 expected = reference(weights, x, grid, 0.01f, [](index_t, index_t) { return true; });
    for (const index_t longest : {128, 1}) {
      SpectralMixerOptions options;
      options.longest_product = longest;
      const SpectralMixer mixer = weights.mixer(options);
      for (const Isa isa : levels_here()) {
        CAPTURE(grid.height, grid.width, longest, to_string(isa));
        ApplyOptions how;
        how.execution.isa = isa;
        require_near(mix(mixer, x, grid, how), expected, 2e-5f);
      }
    }
  }
}

TEST_CASE("each mask keeps the frequencies it says", "[structured]") {
  const Weights weights(2, 3, 3);
  for (const TokenGrid grid : {TokenGrid{6, 8}, {5, 7}, {4, 11}, {9, 4}}) {
    const index_t rows = grid.height / 2 + 1, columns = grid.width / 2 + 1, tokens = grid.height * grid.width;
    const Tensor3 x = random_tensor<Tensor3>(8, 1.0f, 1, tokens, 6);
    for (const double h : {0.0, 0.1, 0.5, 0.8, 1.0}) {
      const auto part = [h](index_t total) { return static_cast<index_t>(static_cast<double>(total) * h); };
      for (const ModeMask mask : {ModeMask::nvlabs, ModeMask::physicsnemo, ModeMask::lowpass}) {
        SpectralMixerOptions options;
        options.kept_fraction = h;
        options.mask = mask;
        CAPTURE(grid.height, grid.width, h, static_cast<int>(mask));
        const Tensor3 expected = reference(weights, x, grid, 0.01f, [&](index_t u, index_t v) {
          if (mask == ModeMask::nvlabs) return v < part(tokens / 2 + 1);
          if (mask == ModeMask::physicsnemo) return u >= rows - part(rows) && u < rows + part(rows) && v < part(rows);
          return std::min(u, grid.height - u) < std::max<index_t>(1, part(rows)) && v < part(columns);
        });
        require_near(mix(weights.mixer(options), x, grid), expected, 2e-5f);
      }
    }
  }
}

TEST_CASE("long transforms are the products, primes included", "[structured]") {
  const Weights weights(1, 3, 3);
  for (const TokenGrid grid : {TokenGrid{3, 131}, {137, 2}, {1, 257}, {130, 135}}) {
    if (small_budget() && grid.height * grid.width > 1000) continue;
    const Tensor3 x = random_tensor<Tensor3>(9, 1.0f, 1, grid.height * grid.width, 3);
    SpectralMixerOptions products;
    products.longest_product = 1000;
    CAPTURE(grid.height, grid.width);
    require_near(mix(weights.mixer(), x, grid), mix(weights.mixer(products), x, grid), 2e-5f);
  }
}

TEST_CASE("no bit depends on threads or on the rest of the batch", "[structured]") {
  const Weights weights(2, 20, 20);
  const SpectralMixer mixer = weights.mixer();
  for (const TokenGrid grid : {TokenGrid{8, 12}, {1, 150}, {40, 6}}) {
    const index_t tokens = grid.height * grid.width;
    const Tensor3 x = random_tensor<Tensor3>(10, 1.0f, 3, tokens, 40);
    ApplyOptions how;
    how.execution.threads = 1;
    const Tensor3 one = mix(mixer, x, grid, how);
    for (const int threads : {2, 3, 5}) {
      how.execution.threads = threads;
      CHECK(same_bits(mix(mixer, x, grid, how), one));
    }
    how.execution.executor = [](index_t n, const std::function<void(index_t)>& f) {
      std::thread other([&] {
        for (index_t i = n - 1; i >= 0; i -= 2) f(i);
      });
      for (index_t i = n - 2; i >= 0; i -= 2) f(i);
      other.join();
    };
    CHECK(same_bits(mix(mixer, x, grid, how), one));
    for (index_t b = 0; b < 3; ++b) {
      Tensor3 alone({1, static_cast<std::size_t>(tokens), 40});
      std::copy_n(x.data() + b * tokens * 40, tokens * 40, alone.data());
      const Tensor3 y = mix(mixer, alone, grid);
      CHECK(std::memcmp(y.data(), one.data() + b * tokens * 40, y.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("x may be mixed in place, and adopted memory is mixed", "[structured]") {
  const Weights weights(2, 4, 4);
  const Tensor3 x = random_tensor<Tensor3>(11, 1.0f, 2, 35, 8);
  const Tensor3 y = mix(weights.mixer(), x, {5, 7});
  Tensor3 z = x;
  weights.mixer().apply(z, z, TokenGrid{5, 7});
  CHECK(same_bits(y, z));
  std::vector<float> memory(x.data(), x.data() + x.size());
  const std::vector<std::size_t> shape = {2, 35, 8};
  auto adopted = xt::adapt(memory.data(), memory.size(), xt::no_ownership(), shape);
  weights.mixer().apply(adopted, z, TokenGrid{5, 7});
  CHECK(same_bits(y, z));
}

TEST_CASE("a square grid and a line are what their names say", "[structured]") {
  const Weights weights(2, 4, 4);
  const Tensor3 x = random_tensor<Tensor3>(12, 1.0f, 2, 36, 8);
  Tensor3 y(x.shape());
  weights.mixer().apply(x, y);
  CHECK(same_bits(y, mix(weights.mixer(), x, {6, 6})));
  weights.mixer().apply_1d(x, y);
  CHECK(same_bits(y, mix(weights.mixer(), x, {1, 36})));
}

TEST_CASE("the linear mixer of the identity doubles x", "[structured]") {
  Tensor4 w({2, 3, 4, 4});
  w.fill(0.0f);
  for (std::size_t g = 0; g < 3; ++g)
    for (std::size_t i = 0; i < 4; ++i) w(0, g, i, i) = 1.0f;
  const Tensor3 x = random_tensor<Tensor3>(13, 1.0f, 2, 54, 12);
  Tensor3 twice = x;
  for (float& v : twice) v *= 2.0f;
  require_near(mix(SpectralMixer::bfno(w), x, {6, 9}), twice, 1e-5f);
  // Its nvlabs mask counts columns: the lowest column of a fraction of 1 / 5 is the mean over W.
  SpectralMixerOptions options;
  options.kept_fraction = 0.2;
  const Tensor3 y = mix(SpectralMixer::bfno(w, options), x, {6, 9});
  double mean = 0;
  for (std::size_t i = 0; i < 9; ++i) mean += static_cast<double>(x(1, 18 + i, 5)) / 9.0;
  CHECK(std::abs(static_cast<double>(y(1, 20, 5) - x(1, 20, 5)) - mean) <= 1e-5);
  CHECK(SpectralMixer::bfno(w).storage_bytes() == 3 * 8 * 8 * 4);
}

TEST_CASE("the blocks of the complex layer may be quantized", "[structured]") {
  const Weights weights(2, 32, 32);
  const auto mixer = SpectralMixer::afno(weights.w1, weights.b1, weights.w2, weights.b2, {},
                                         [](MatrixView<const float> w) -> AnyLinear {
                                           return QuantizedMatrix<Mx>::encode(w, Mx{.element = MxElement::int8});
                                         });
  const Tensor3 x = random_tensor<Tensor3>(14, 1.0f, 1, 36, 64);
  const Tensor3 y = mix(mixer, x, {6, 6}), exact = mix(weights.mixer(), x, {6, 6});
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    error += std::pow(y.data()[i] - exact.data()[i], 2);
    norm += std::pow(exact.data()[i] - x.data()[i], 2);
  }
  CHECK(error <= 0.02 * 0.02 * norm);
  CHECK(mixer.storage_bytes() < weights.mixer().storage_bytes() / 3);
}

TEST_CASE("no items, no tokens and no kept frequency are fine", "[structured]") {
  const Weights weights(2, 4, 4);
  CHECK(mix(weights.mixer(), Tensor3({0, 6, 8}), {2, 3}).size() == 0);
  CHECK(mix(weights.mixer(), Tensor3({2, 0, 8}), {0, 3}).size() == 0);
  SpectralMixerOptions options;
  options.kept_fraction = 0.0;
  const Tensor3 x = random_tensor<Tensor3>(15, 1.0f, 2, 6, 8);
  CHECK(same_bits(mix(weights.mixer(options), x, {2, 3}), x));
}

TEST_CASE("what does not fit the mixer is refused", "[structured]") {
  const Weights weights(2, 4, 4);
  const SpectralMixer mixer = weights.mixer();
  const Tensor3 x = random_tensor<Tensor3>(16, 1.0f, 2, 6, 8);
  Tensor3 y(x.shape()), other({2, 5, 8});
  CHECK_THROWS_AS(mixer.apply(x, y, TokenGrid{2, 2}), ShapeError);
  CHECK_THROWS_AS(mixer.apply(x, y, TokenGrid{-2, -3}), ShapeError);
  CHECK_THROWS_AS(mixer.apply(x, y), ShapeError);  // 6 is no square
  CHECK_THROWS_AS(mixer.apply(x, other, TokenGrid{2, 3}), ShapeError);
  const Tensor3 narrow({2, 6, 7});
  Tensor3 z(narrow.shape());
  CHECK_THROWS_AS(mixer.apply(narrow, z, TokenGrid{2, 3}), ShapeError);
  ApplyOptions how;
  how.epilogue.function = EpilogueFunction::relu;
  CHECK_THROWS_AS(mixer.apply(x, y, TokenGrid{2, 3}, how), ValueError);

  SpectralMixerOptions options;
  options.kept_fraction = 1.5;
  CHECK_THROWS_AS(weights.mixer(options), ValueError);
  options.kept_fraction = 1.0;
  options.sparsity_threshold = -1.0f;
  CHECK_THROWS_AS(weights.mixer(options), ValueError);
  const Weights wider(2, 4, 6);
  CHECK_THROWS_AS(SpectralMixer::afno(weights.w1, weights.b1, wider.w2, weights.b2), ShapeError);
  CHECK_THROWS_AS(SpectralMixer::afno(weights.w1, wider.b1, weights.w2, weights.b2), ShapeError);
  CHECK_THROWS_AS(SpectralMixer::bfno(wider.w1), ShapeError);
  const Tensor4 three({3, 2, 4, 4});
  CHECK_THROWS_AS(SpectralMixer::bfno(three), ShapeError);
  Tensor4 nan = weights.w1;
  nan(0, 0, 0, 0) = NAN;
  CHECK_THROWS_AS(SpectralMixer::afno(nan, weights.b1, weights.w2, weights.b2), ValueError);
}

}  // namespace
}  // namespace blockpack::test
