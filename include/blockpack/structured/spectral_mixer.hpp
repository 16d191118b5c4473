// SPDX-License-Identifier: Apache-2.0
#pragma once

/// AFNO token mixing: a Fourier transform over the tokens of an H x W grid, a small complex layer at every frequency,
/// and the way back,
///
///     X = rfft2(x),   c = (relu(X w1 + b1)) w2 + b2  where the frequency is kept, 0 elsewhere,
///     y = irfft2(softshrink(c)) + x,
///
/// with w1 and w2 block-diagonal over the channels and relu and softshrink on real and imaginary parts separately.
/// Everything is float32 and channels stay innermost: a transform along W or H is the product of a constant matrix with
/// a slab [positions, channels], folded into its even and odd part, and the complex layer is the real one of [Xr Xi]
/// with [[Wr, Wi], [-Wi, Wr]], both on the library's engine. Long transforms are FFTs on Eigen's kissfft.
///
/// Source: "Adaptive Fourier Neural Operators: Efficient Token Mixers for Transformers", arXiv:2111.13587; what is
/// computed is NVlabs/AFNO-transformer, afno/afno2d.py, afno1d.py and bfno2d.py. docs/spectral_mixer.md.

#if defined(EIGEN_FFTW_DEFAULT) || defined(EIGEN_MKL_DEFAULT)
#error "blockpack: EIGEN_FFTW_DEFAULT and EIGEN_MKL_DEFAULT replace the kissfft of Eigen's FFT module; FFTW is GPL"
#endif

#include <algorithm>
#include <cmath>
#include <complex>
#include <functional>
#include <numbers>
#include <span>
#include <string>
#include <unsupported/Eigen/FFT>
#include <utility>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/buffer.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/core/engine.hpp"
#include "blockpack/core/xtensor.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Which frequencies the complex layer sees; the others are 0. h is the kept fraction. Rows are frequencies along H in
/// the order of an FFT, columns those of the halved axis W.
enum class ModeMask : std::uint8_t {
  nvlabs,       ///< columns < int((H W / 2 + 1) h), every row. The bound counts tokens: it cuts only for small h
  physicsnemo,  ///< with t = H / 2 + 1, k = int(t h): columns < k, rows t - k … t + k, which lie around Nyquist
  lowpass       ///< columns < int((W / 2 + 1) h) and |row| < max(1, int((H / 2 + 1) h))
};

struct SpectralMixerOptions {
  float sparsity_threshold = 0.01f;  ///< lambda of the softshrink
  double kept_fraction = 1.0;        ///< hard_thresholding_fraction, in [0, 1]
  ModeMask mask = ModeMask::nvlabs;
  index_t longest_product = 128;  ///< transforms up to this length are products with a DFT matrix, longer ones FFTs
};

/// Height and width of the grid the tokens of a sequence lie on, row by row.
struct TokenGrid {
  index_t height = 0;
  index_t width = 0;
};

namespace detail {

/// Frequencies that are kept: columns [0, columns) and, of each, the rows in up to two ranges.
struct KeptModes {
  index_t columns = 0;
  index_t begin[2] = {0, 0};
  index_t end[2] = {0, 0};
  bool all(index_t height) const noexcept { return begin[0] == 0 && end[0] >= height; }
};

inline KeptModes kept_modes(TokenGrid grid, double h, ModeMask mask, bool one_layer) {
  const index_t columns = grid.width / 2 + 1, rows = grid.height / 2 + 1;
  const auto part = [h](index_t total) { return static_cast<index_t>(static_cast<double>(total) * h); };
  KeptModes kept;
  kept.end[0] = grid.height;
  if (mask == ModeMask::nvlabs) {
    kept.columns = part(one_layer ? columns : grid.height * grid.width / 2 + 1);
  } else if (mask == ModeMask::physicsnemo) {
    kept.columns = part(rows);
    kept.begin[0] = rows - part(rows);
    kept.end[0] = std::min(grid.height, rows + part(rows));
  } else {
    const index_t below = std::max<index_t>(1, part(rows));
    kept.columns = part(columns);
    kept.end[0] = std::min(grid.height, below);
    kept.begin[1] = std::max(kept.end[0], grid.height - (below - 1));
    kept.end[1] = grid.height;
  }
  kept.columns = std::min(kept.columns, columns);
  return kept;
}

/// A matrix that lives as long as a call, row-major.
struct WaveMatrix {
  AlignedBuffer<float> values;
  index_t rows = 0, cols = 0;

  WaveMatrix() = default;
  WaveMatrix(index_t r, index_t c) : values(checked_mul(r, c, "SpectralMixer")), rows(r), cols(c) {}
  float& operator()(index_t i, index_t j) noexcept { return values[i * cols + j]; }
  MatrixView<const float> view() const noexcept { return {values.data(), rows, cols}; }
};

/// cos and sin of 2π j / n, scaled by 1/√n, in double. Multiples of π come out exact.
class Waves {
 public:
  explicit Waves(index_t n) : n_(n) {
    const double scale = 1.0 / std::sqrt(static_cast<double>(n));
    for (index_t j = 0; j < n; ++j) {
      const double angle = 2.0 * std::numbers::pi * static_cast<double>(j) / static_cast<double>(n);
      cos_.push_back(2 * j == n ? -scale : std::cos(angle) * scale);
      sin_.push_back(2 * j == n ? 0.0 : std::sin(angle) * scale);
    }
  }
  /// At j · k.
  double cosine(index_t j, index_t k) const noexcept { return cos_[static_cast<std::size_t>(j * k % n_)]; }
  double sine(index_t j, index_t k) const noexcept { return sin_[static_cast<std::size_t>(j * k % n_)]; }

 private:
  index_t n_;
  std::vector<double> cos_, sin_;
};

/// The even or the odd part of the rows of a slab [n, channels], as the weights of a product: x[j] + x[n - j] for
/// j = 0 … n / 2 (j = 0 and j = n / 2 alone), or x[j] - x[n - j] for 0 < j < n / 2. A cosine matrix meets the even part
/// alone, a sine matrix the odd one: together a quarter of the products of the whole complex matrix.
struct FoldedRows {
  MatrixView<const float> src;
  bool odd = false;
  bool folded = true;  ///< false: the rows as they are

  static void decode(const void* self, index_t row, index_t col, index_t count, float* dst) {
    const auto& f = *static_cast<const FoldedRows*>(self);
    const index_t n = f.src.rows(), j = f.odd ? row + 1 : row;
    const float* a = f.src.row_data(j) + col;
    if (!f.folded || j == 0 || 2 * j == n) {
      std::copy_n(a, count, dst);
      return;
    }
    const float* b = f.src.row_data(n - j) + col;
    if (f.odd) {
      for (index_t i = 0; i < count; ++i) dst[i] = a[i] - b[i];
    } else {
      for (index_t i = 0; i < count; ++i) dst[i] = a[i] + b[i];
    }
  }
};

/// dst = waves · rows, on the calling thread.
inline void multiply_waves(const WaveMatrix& waves, const FoldedRows& rows, MatrixView<float> dst,
                           const ApplyOptions& how) {
  RowSource w;
  w.rows = waves.cols;
  w.cols = rows.src.cols();
  w.self = &rows;
  w.decode_f32 = FoldedRows::decode;
  matmul_transpose(waves.view(), w, dst, how);
}

/// Unscaled complex FFT of one length by kissfft. Lengths with a large prime factor, in which kissfft is quadratic, go
/// through a convolution of the next power of two (Bluestein). One object a thread.
class LongFft {
 public:
  using Complex = std::complex<float>;

  /// What all threads share: of Bluestein's way, the chirp exp(-iπ j² / n) and the transform of its conjugate.
  struct Chirp {
    std::vector<Complex> chirp, kernel;

    explicit Chirp(index_t n) {
      index_t largest = 1, rest = n, size = 1;
      for (index_t p = 2; p * p <= rest; ++p)
        for (; rest % p == 0; rest /= p) largest = p;
      if (std::max(largest, rest) <= 50) return;
      while (size < 2 * n - 1) size *= 2;
      std::vector<std::complex<double>> wide(static_cast<std::size_t>(size)), transformed(wide.size());
      for (index_t j = 0; j < n; ++j) {
        const auto angle = std::numbers::pi * static_cast<double>(j * j % (2 * n)) / static_cast<double>(n);
        const std::complex<double> c(std::cos(angle), std::sin(angle));
        chirp.emplace_back(static_cast<float>(c.real()), static_cast<float>(-c.imag()));
        wide[static_cast<std::size_t>(j)] = wide[static_cast<std::size_t>(j == 0 ? 0 : size - j)] = c;
      }
      Eigen::FFT<double> fft;
      fft.fwd(transformed.data(), wide.data(), size);
      for (const std::complex<double>& v : transformed) {
        const std::complex<double> scaled = v / static_cast<double>(size);
        kernel.emplace_back(static_cast<float>(scaled.real()), static_cast<float>(scaled.imag()));
      }
    }
  };

  LongFft(index_t n, const Chirp& chirp) : n_(n), chirp_(chirp), a_(chirp.kernel.size()), b_(chirp.kernel.size()) {
    fft_.SetFlag(Eigen::FFT<float>::Unscaled);
  }

  void run(Complex* dst, const Complex* src, bool inverse) {
    if (!chirp_.kernel.empty()) return convolve(dst, src, inverse);
    if (inverse) {
      fft_.inv(dst, src, n_);
    } else {
      fft_.fwd(dst, src, n_);
    }
  }

 private:
  /// X[k] = c[k] Σ_j (x[j] c[j]) conj(c[k - j]); the inverse is the conjugate of the transform of the conjugate.
  void convolve(Complex* dst, const Complex* src, bool inverse) {
    const auto n = static_cast<std::size_t>(n_);
    const auto turned = [inverse](Complex v) { return inverse ? std::conj(v) : v; };
    const auto times = [](Complex u, Complex v) {
      return Complex(u.real() * v.real() - u.imag() * v.imag(), u.real() * v.imag() + u.imag() * v.real());
    };
    for (std::size_t j = 0; j < n; ++j) a_[j] = times(turned(src[j]), chirp_.chirp[j]);
    std::fill(a_.begin() + n_, a_.end(), Complex());
    const auto size = static_cast<index_t>(a_.size());
    fft_.fwd(b_.data(), a_.data(), size);
    for (std::size_t j = 0; j < b_.size(); ++j) b_[j] = times(b_[j], chirp_.kernel[j]);
    fft_.inv(a_.data(), b_.data(), size);
    for (std::size_t k = 0; k < n; ++k) dst[k] = turned(times(a_[k], chirp_.chirp[k]));
  }

  index_t n_;
  const Chirp& chirp_;
  std::vector<Complex> a_, b_;
  Eigen::FFT<float> fft_;
};

/// Orthonormal transforms along the n rows of slabs [n, channels]: by products up to a length, by FFTs above.
class RowTransforms {
 public:
  /// A spectrum is two slabs, real and imaginary parts.
  template <class T>
  struct Spectrum {
    MatrixView<T> re, im;
  };

  /// `kept`: of the real transforms, the first so many frequencies are computed and the others are taken as 0.
  RowTransforms(index_t n, index_t kept, bool complex, index_t longest_product)
      : n_(n),
        kept_(kept),
        even_(n / 2 + 1),
        odd_((n - 1) / 2),
        by_product_(n <= longest_product),
        chirp_(by_product_ ? 1 : n) {
    if (!by_product_) return;
    const Waves waves(n);
    kept_odd_ = complex ? odd_ : std::clamp<index_t>(kept - 1, 0, odd_);
    cos_ = WaveMatrix(complex ? even_ : kept, even_);
    sin_ = WaveMatrix(kept_odd_, odd_);
    for (index_t k = 0; k < cos_.rows; ++k)
      for (index_t j = 0; j < even_; ++j) cos_(k, j) = static_cast<float>(waves.cosine(j, k));
    for (index_t k = 1; k <= kept_odd_; ++k)
      for (index_t j = 1; j <= odd_; ++j) sin_(k - 1, j - 1) = static_cast<float>(waves.sine(j, k));
    if (complex) return;
    // Back to real rows every frequency but 0 and n / 2 counts for its conjugate as well.
    cos_back_ = WaveMatrix(even_, kept);
    sin_back_ = WaveMatrix(odd_, kept_odd_);
    for (index_t j = 0; j < even_; ++j)
      for (index_t k = 0; k < kept; ++k)
        cos_back_(j, k) = static_cast<float>((k == 0 || 2 * k == n ? 1.0 : 2.0) * waves.cosine(j, k));
    for (index_t j = 1; j <= odd_; ++j)
      for (index_t k = 1; k <= kept_odd_; ++k) sin_back_(j - 1, k - 1) = static_cast<float>(2.0 * waves.sine(j, k));
  }

  /// The first `kept` frequencies of src [n, channels].
  void forward(MatrixView<const float> src, Spectrum<float> dst, const ApplyOptions& how) const {
    if (by_product_) {
      multiply_waves(cos_, {src, false}, dst.re, how);
      // Im = -Σ x sin. Frequency 0 has none, and n / 2 neither.
      for (index_t k = 0; k < kept_; ++k)
        if (k == 0 || k > kept_odd_) std::fill_n(dst.im.row_data(k), src.cols(), 0.0f);
      if (kept_odd_ == 0) return;
      const MatrixView<float> im = dst.im.rows_from(1, kept_odd_);
      multiply_waves(sin_, {src, true}, im, how);
      for (index_t k = 0; k < kept_odd_; ++k) negate(im.row(k));
      return;
    }
    // Two real channels in one transform: a = (Z[k] + conj Z[-k]) / 2, b = (Z[k] - conj Z[-k]) / 2i.
    const float half = 0.5f * scale();
    by_pairs(
        src.cols(), false,
        [&](index_t c, bool two, Complex* z) {
          for (index_t j = 0; j < n_; ++j) z[j] = {src(j, c), two ? src(j, c + 1) : 0.0f};
        },
        [&](index_t c, bool two, const Complex* z) {
          for (index_t k = 0; k < kept_; ++k) {
            const Complex p = z[k] * half, q = std::conj(z[k == 0 ? 0 : n_ - k]) * half;
            dst.re(k, c) = (p + q).real();
            dst.im(k, c) = (p + q).imag();
            if (!two) continue;
            dst.re(k, c + 1) = (p - q).imag();
            dst.im(k, c + 1) = -(p - q).real();
          }
        });
  }

  /// Back to dst = real rows + residual. Imaginary parts of frequency 0 and n / 2 are ignored, as irfft does.
  void backward(Spectrum<const float> src, MatrixView<const float> residual, MatrixView<float> dst,
                const ApplyOptions& how) const {
    const index_t channels = dst.cols();
    if (by_product_) {
      auto memory = AlignedBuffer<float>::uninitialized(n_ * channels);
      const MatrixView<float> p(memory.data(), even_, channels);
      const MatrixView<float> q(memory.data() + even_ * channels, odd_, channels);
      multiply_waves(cos_back_, {src.re, false, false}, p, how);
      if (odd_ > 0 && kept_odd_ > 0) multiply_waves(sin_back_, {src.im.rows_from(1, kept_odd_), false, false}, q, how);
      if (kept_odd_ == 0) std::fill_n(memory.data() + even_ * channels, odd_ * channels, 0.0f);
      for (index_t j = 0; j < even_; ++j) {
        const bool alone = j == 0 || 2 * j == n_;
        const float* even = p.row_data(j);
        if (alone) {
          add(dst.row_data(j), even, residual.row_data(j), channels);
        } else {
          const float* odd = q.row_data(j - 1);
          const float *r0 = residual.row_data(j), *r1 = residual.row_data(n_ - j);
          float *d0 = dst.row_data(j), *d1 = dst.row_data(n_ - j);
          for (index_t i = 0; i < channels; ++i) {
            d0[i] = even[i] - odd[i] + r0[i];
            d1[i] = even[i] + odd[i] + r1[i];
          }
        }
      }
      return;
    }
    by_pairs(
        channels, true,
        [&](index_t c, bool two, Complex* z) {
          std::fill_n(z, n_, Complex());
          for (index_t k = 0; k < kept_; ++k) {
            const bool alone = k == 0 || 2 * k == n_;
            const Complex a(src.re(k, c), alone ? 0.0f : src.im(k, c));
            const Complex b = two ? Complex(src.re(k, c + 1), alone ? 0.0f : src.im(k, c + 1)) : Complex();
            z[k] = {a.real() - b.imag(), a.imag() + b.real()};
            if (!alone) z[n_ - k] = {a.real() + b.imag(), b.real() - a.imag()};
          }
        },
        [&](index_t c, bool two, const Complex* z) {
          for (index_t j = 0; j < n_; ++j) {
            dst(j, c) = z[j].real() * scale() + residual(j, c);
            if (two) dst(j, c + 1) = z[j].imag() * scale() + residual(j, c + 1);
          }
        });
  }

  /// All n frequencies of complex rows, or back. dst may not overlap src.
  void whole(Spectrum<const float> src, Spectrum<float> dst, bool inverse, const ApplyOptions& how) const {
    const index_t channels = src.re.cols();
    if (by_product_) {
      // (C ∓ iS)(a + ib) = (C a ± S b) + i (C b ∓ S a), and row n - k has the sines of row k with the other sign.
      auto memory = AlignedBuffer<float>::uninitialized(n_ * channels);
      const MatrixView<float> p(memory.data(), even_, channels);
      const MatrixView<float> q(memory.data() + even_ * channels, odd_, channels);
      for (const bool imaginary : {false, true}) {
        const MatrixView<const float> a = imaginary ? src.im : src.re, b = imaginary ? src.re : src.im;
        const MatrixView<float> out = imaginary ? dst.im : dst.re;
        multiply_waves(cos_, {a, false}, p, how);
        if (odd_ > 0) multiply_waves(sin_, {b, true}, q, how);
        const bool minus = imaginary != inverse;
        for (index_t k = 0; k < even_; ++k) {
          if (k == 0 || 2 * k == n_) {
            std::copy_n(p.row_data(k), channels, out.row_data(k));
          } else {
            const float *even = p.row_data(k), *odd = q.row_data(k - 1);
            float* sum = out.row_data(minus ? n_ - k : k);
            float* difference = out.row_data(minus ? k : n_ - k);
            for (index_t i = 0; i < channels; ++i) {
              sum[i] = even[i] + odd[i];
              difference[i] = even[i] - odd[i];
            }
          }
        }
      }
      return;
    }
    LongFft fft(n_, chirp_);
    std::vector<Complex> in(static_cast<std::size_t>(n_)), out(in.size());
    for (index_t c = 0; c < channels; ++c) {
      for (index_t j = 0; j < n_; ++j) in[static_cast<std::size_t>(j)] = {src.re(j, c), src.im(j, c)};
      fft.run(out.data(), in.data(), inverse);
      for (index_t j = 0; j < n_; ++j) {
        dst.re(j, c) = out[static_cast<std::size_t>(j)].real() * scale();
        dst.im(j, c) = out[static_cast<std::size_t>(j)].imag() * scale();
      }
    }
  }

 private:
  using Complex = LongFft::Complex;

  float scale() const noexcept { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(n_))); }
  static void negate(std::span<float> v) noexcept {
    for (float& value : v) value = -value;
  }
  static void add(float* dst, const float* a, const float* b, index_t count) noexcept {
    for (index_t i = 0; i < count; ++i) dst[i] = a[i] + b[i];
  }

  template <class Load, class Store>
  void by_pairs(index_t channels, bool inverse, const Load& load, const Store& store) const {
    LongFft fft(n_, chirp_);
    std::vector<Complex> in(static_cast<std::size_t>(n_)), out(in.size());
    for (index_t c = 0; c < channels; c += 2) {
      load(c, c + 1 < channels, in.data());
      fft.run(out.data(), in.data(), inverse);
      store(c, c + 1 < channels, out.data());
    }
  }

  index_t n_;
  index_t kept_;
  index_t even_;          // rows of the even part
  index_t odd_;           // rows of the odd part
  index_t kept_odd_ = 0;  // kept frequencies that have an imaginary part
  bool by_product_;
  LongFft::Chirp chirp_;
  WaveMatrix cos_, sin_, cos_back_, sin_back_;
};

inline void soft_shrink(float* v, index_t count, float threshold) noexcept {
  for (index_t i = 0; i < count; ++i) v[i] -= std::min(std::max(v[i], -threshold), threshold);
}

/// Pointer to a row-major contiguous xtensor container, after checking its rank.
template <class Container>
auto tensor_data(const char* function, const char* name, Container& a, std::size_t rank) {
  const auto fail = [&](const std::string& text) { throw ShapeError(std::string(function) + ": " + name + text); };
  if (a.dimension() != rank)
    fail(" has " + std::to_string(a.dimension()) + " dimensions, " + std::to_string(rank) + " needed");
  std::ptrdiff_t stride = 1;
  if (a.size() == 0) return a.data();
  for (std::size_t d = rank; d-- > 0; stride *= static_cast<std::ptrdiff_t>(a.shape(d)))
    if (a.shape(d) > 1 && a.strides()[d] != stride) fail(" is not contiguous in row-major order");
  return a.data() + a.data_offset();
}
template <class Container>
std::vector<index_t> tensor_shape(const Container& a) {
  std::vector<index_t> shape;
  for (std::size_t d = 0; d < a.dimension(); ++d) shape.push_back(static_cast<index_t>(a.shape(d)));
  return shape;
}

}  // namespace detail

/// The mixing layer. Immutable; its const members may be called from any number of threads at once.
class SpectralMixer {
 public:
  /// How a block of a layer is kept, given its real form [2 outputs, 2 inputs]: Dense<float>::encode unless said
  /// otherwise; any format of the library does.
  using Store = std::function<AnyLinear(MatrixView<const float>)>;

  /// AFNO, a complex layer of two.
  ///
  /// Shapes:  w1 (2, blocks, s, s f), b1 (2, blocks, s f), w2 (2, blocks, s f, s), b2 (2, blocks, s), xtensor
  /// containers
  ///          or adaptors of float, contiguous and row-major; index 0 is the real part. s f need not be a multiple of
  ///          s.
  /// Errors:  ShapeError when they disagree; ValueError for a fraction outside [0, 1], a threshold that is negative or
  ///          NaN, or a weight that is not finite.
  template <class W1, class B1, class W2, class B2>
  static SpectralMixer afno(const W1& w1, const B1& b1, const W2& w2, const B2& b2,
                            const SpectralMixerOptions& options = {}, const Store& store = {}) {
    SpectralMixer mixer(options);
    const std::vector<index_t> shape = detail::tensor_shape(w1);
    mixer.first_ = layer("SpectralMixer::afno", detail::tensor_data("SpectralMixer::afno", "w1", w1, 4), shape,
                         detail::tensor_data("SpectralMixer::afno", "b1", b1, 3), detail::tensor_shape(b1), store);
    mixer.second_ =
        layer("SpectralMixer::afno", detail::tensor_data("SpectralMixer::afno", "w2", w2, 4), detail::tensor_shape(w2),
              detail::tensor_data("SpectralMixer::afno", "b2", b2, 3), detail::tensor_shape(b2), store);
    const std::vector<index_t> back = detail::tensor_shape(w2);
    if (back[1] != shape[1] || back[2] != shape[3] || back[3] != shape[2])
      throw ShapeError("SpectralMixer::afno: w2 does not lead back: it needs (2, " + std::to_string(shape[1]) + ", " +
                       std::to_string(shape[3]) + ", " + std::to_string(shape[2]) + ")");
    mixer.set_shape(shape);
    return mixer;
  }

  /// BFNO, one linear complex layer w (2, blocks, s, s): no bias, relu or softshrink; y = irfft2(rfft2(x) w) + x.
  /// Its nvlabs mask keeps columns < int((W / 2 + 1) h), as bfno2d.py does.
  template <class W>
  static SpectralMixer bfno(const W& w, const SpectralMixerOptions& options = {}, const Store& store = {}) {
    SpectralMixer mixer(options);
    const std::vector<index_t> shape = detail::tensor_shape(w);
    mixer.first_ =
        layer("SpectralMixer::bfno", detail::tensor_data("SpectralMixer::bfno", "w", w, 4), shape, nullptr, {}, store);
    if (shape[2] != shape[3]) throw ShapeError("SpectralMixer::bfno: the blocks of w are not square");
    mixer.set_shape(shape);
    return mixer;
  }

  index_t channels() const noexcept { return blocks_ * size_; }
  index_t blocks() const noexcept { return blocks_; }
  const SpectralMixerOptions& options() const noexcept { return options_; }
  /// Of the blocks of the complex layers, in their real form.
  std::size_t storage_bytes() const {
    std::size_t sum = 0;
    for (const std::vector<AnyLinear>* ops : {&first_.blocks, &second_.blocks})
      for (const AnyLinear& op : *ops) sum += op.storage_bytes();
    return sum;
  }

  /// y = x + mixed(x) over the tokens of a grid.
  ///
  /// Shapes:  x and y (B, N, C), N = height · width, xtensor containers or adaptors of float, contiguous and row-major;
  ///          y may be x.
  /// Errors:  ShapeError.
  /// Cost:    one spectrum of a few of the batch at a time (at most about 64 MB, or one item) beside x and y; no bits
  ///          depend on the threads or on the rest of the batch. `how.activations` is that of the complex layer
  ///          (float32 unless it or the stored form says otherwise); the epilogue must be empty (ValueError).
  template <class X, class Y>
  void apply(const X& x, Y& y, TokenGrid grid, const ApplyOptions& how = {}) const {
    const float* from = detail::tensor_data("SpectralMixer::apply", "x", x, 3);
    float* to = detail::tensor_data("SpectralMixer::apply", "y", y, 3);
    const std::vector<index_t> shape = detail::tensor_shape(x);
    if (detail::tensor_shape(y) != shape) throw ShapeError("SpectralMixer::apply: x and y have different shapes");
    mix(from, to, shape, grid, how);
  }
  /// The same over a square grid: N must be a square.
  template <class X, class Y>
  void apply(const X& x, Y& y, const ApplyOptions& how = {}) const {
    const auto tokens = x.dimension() == 3 ? static_cast<index_t>(x.shape(1)) : 0;
    auto side = static_cast<index_t>(std::sqrt(static_cast<double>(tokens)));
    apply(x, y, TokenGrid{side, side}, how);
  }
  /// AFNO1D: the tokens lie on a line; nvlabs keeps frequencies < int((N / 2 + 1) h).
  template <class X, class Y>
  void apply_1d(const X& x, Y& y, const ApplyOptions& how = {}) const {
    const auto tokens = x.dimension() == 3 ? static_cast<index_t>(x.shape(1)) : 0;
    apply(x, y, TokenGrid{1, tokens}, how);
  }

 private:
  /// A complex block-diagonal layer in its real form: one operator [2 outputs, 2 inputs] a block, and the bias of each.
  struct Layer {
    std::vector<AnyLinear> blocks;
    std::vector<float> bias;  // [blocks, 2 outputs], or empty
    index_t outputs = 0;      // of a block, complex
  };

  explicit SpectralMixer(const SpectralMixerOptions& options) : options_(options) {
    if (!(options.kept_fraction >= 0.0 && options.kept_fraction <= 1.0))
      throw ValueError("SpectralMixer: kept_fraction is not in [0, 1]");
    if (!(options.sparsity_threshold >= 0.0f)) throw ValueError("SpectralMixer: sparsity_threshold is negative or NaN");
  }

  void set_shape(const std::vector<index_t>& w1) {
    blocks_ = w1[1];
    size_ = w1[2];
  }

  /// [Xr Xi] · [[Wr, Wi], [-Wi, Wr]] as an operator: row n of Wᵀ is an output.
  static Layer layer(const char* function, const float* w, const std::vector<index_t>& shape, const float* b,
                     const std::vector<index_t>& bias_shape, const Store& store) {
    const index_t blocks = shape[1], in = shape[2], out = shape[3];
    if (shape[0] != 2 || blocks < 1 || in < 1 || out < 1)
      throw ShapeError(std::string(function) + ": weights must be (2, blocks, inputs, outputs), none of them 0");
    const bool biased = !bias_shape.empty();
    if (biased && bias_shape != std::vector<index_t>{2, blocks, out})
      throw ShapeError(std::string(function) + ": a bias must be (2, " + std::to_string(blocks) + ", " +
                       std::to_string(out) + ")");
    Layer result;
    result.outputs = out;
    AlignedBuffer<float> memory(checked_mul(4 * in, out, function));
    const MatrixView<float> real(memory.data(), 2 * out, 2 * in);
    for (index_t g = 0; g < blocks; ++g) {
      const float* re = w + g * in * out;
      const float* im = w + (blocks + g) * in * out;
      for (index_t i = 0; i < in; ++i) {
        for (index_t o = 0; o < out; ++o) {
          real(o, i) = real(out + o, in + i) = re[i * out + o];
          real(out + o, i) = im[i * out + o];
          real(o, in + i) = -im[i * out + o];
        }
      }
      result.blocks.push_back(store ? store(real) : AnyLinear(Dense<float>::encode(real)));
      if (result.blocks.back().shape() != real.shape())
        throw ShapeError(std::string(function) + ": a stored block has another shape");
      if (!biased) continue;
      for (const index_t part : {0, 1})
        result.bias.insert(result.bias.end(), b + (part * blocks + g) * out, b + (part * blocks + g + 1) * out);
    }
    return result;
  }

  using Spectrum = detail::RowTransforms::Spectrum<float>;

  static detail::RowTransforms::Spectrum<const float> readable(const Spectrum& s) { return {s.re, s.im}; }

  /// Slabs [W, C] along the rows of x to S, whose rows are [column frequency][Re, Im][row of the grid][channel]; then,
  /// a few columns at a time and in cache, along H and back with the complex layer between; then the way back along W.
  void mix(const float* x, float* y, const std::vector<index_t>& shape, TokenGrid grid, const ApplyOptions& how) const {
    const index_t batch = shape[0], tokens = shape[1], c = shape[2];
    if (!how.epilogue.empty()) throw ValueError("SpectralMixer::apply: an epilogue is not supported");
    if (c != channels())
      throw ShapeError("SpectralMixer::apply: x has " + std::to_string(c) + " channels, " + std::to_string(channels()) +
                       " needed");
    if (grid.height < 0 || grid.width < 0 || checked_mul(grid.height, grid.width, "SpectralMixer::apply") != tokens)
      throw ShapeError("SpectralMixer::apply: a grid of " + std::to_string(grid.height) + " x " +
                       std::to_string(grid.width) + ", x has " + std::to_string(tokens) + " tokens");
    if (batch == 0 || tokens == 0) return;
    const index_t height = grid.height, width = grid.width;
    const detail::KeptModes kept =
        detail::kept_modes(grid, options_.kept_fraction, options_.mask, second_.blocks.empty());
    if (kept.columns == 0) {
      if (x != y) std::copy_n(x, batch * tokens * c, y);
      return;
    }
    const detail::RowTransforms along_w(width, kept.columns, false, options_.longest_product);
    const detail::RowTransforms along_h(height, height, true, options_.longest_product);

    // A line more than the rows need, so that planes do not fall on the same sets of a cache.
    const index_t plane = round_up(checked_mul(height, c, "SpectralMixer::apply"), 16) + 16;
    const index_t item = checked_mul(2 * kept.columns, plane, "SpectralMixer::apply");
    constexpr index_t kSpectrum = index_t{1} << 24;  // floats of a spectrum that is kept at a time
    const index_t items = std::clamp<index_t>(kSpectrum / item, 1, batch);
    auto spectrum = AlignedBuffer<float>::uninitialized(checked_mul(items, item, "SpectralMixer::apply"));

    ApplyOptions inner;  // of products inside a task
    inner.execution.threads = 1;
    inner.execution.isa = how.execution.isa;
    inner.activations = how.activations;
    // Few rows: their channels are tasks as well. Even numbers of channels, for FFTs of two.
    const index_t part = items * height >= 16 ? c : std::max<index_t>(64, round_up(ceil_div(c, 8), 32));
    const index_t parts = ceil_div(c, part);
    const index_t columns_per_task = std::max<index_t>(1, 64 / height);
    const index_t column_tasks = ceil_div(kept.columns, columns_per_task);
    for (index_t first = 0; first < batch; first += items) {
      const index_t count = std::min(items, batch - first);
      const auto each_slab = [&](const auto& f) {
        parallel_for(how.execution, count * height * parts, [&](index_t task) {
          const index_t col = task % parts * part, h = task / parts % height, b = task / parts / height;
          const index_t cols = std::min(part, c - col);
          const index_t at = ((first + b) * height + h) * width * c + col;
          float* s = spectrum.data() + b * item + h * c + col;
          f(MatrixView<const float>(x + at, width, cols, c), MatrixView<float>(y + at, width, cols, c),
            Spectrum{{s, kept.columns, cols, 2 * plane}, {s + plane, kept.columns, cols, 2 * plane}});
        });
      };
      each_slab(
          [&](MatrixView<const float> from, MatrixView<float>, const Spectrum& s) { along_w.forward(from, s, inner); });
      parallel_for(how.execution, count * column_tasks, [&](index_t task) {
        const index_t column = task % column_tasks * columns_per_task;
        mix_columns(spectrum.data() + task / column_tasks * item + 2 * column * plane,
                    std::min(columns_per_task, kept.columns - column), plane, height, kept, along_h, inner);
      });
      each_slab([&](MatrixView<const float> from, MatrixView<float> to, const Spectrum& s) {
        along_w.backward(readable(s), from, to, inner);
      });
    }
  }

  /// The complex layer at `columns` column frequencies, s [columns][Re, Im][plane], in place.
  void mix_columns(float* s, index_t columns, index_t plane, index_t height, const detail::KeptModes& kept,
                   const detail::RowTransforms& along_h, const ApplyOptions& how) const {
    const index_t c = channels();
    if (height == 1) return layers(s, columns, plane, kept, how);
    auto memory = AlignedBuffer<float>::uninitialized(2 * columns * plane);
    float* t = memory.data();
    const auto slab = [&](float* data, index_t column) {
      float* re = data + 2 * column * plane;
      return Spectrum{{re, height, c}, {re + plane, height, c}};
    };
    for (index_t w = 0; w < columns; ++w) along_h.whole(readable(slab(s, w)), slab(t, w), false, how);
    if (!kept.all(height)) {
      for (index_t w = 0; w < columns; ++w)
        for (index_t h = 0; h < height; ++h)
          if (!((h >= kept.begin[0] && h < kept.end[0]) || (h >= kept.begin[1] && h < kept.end[1])))
            for (const index_t part : {0, 1}) std::fill_n(t + (2 * w + part) * plane + h * c, c, 0.0f);
    }
    layers(t, columns, plane, kept, how);
    for (index_t w = 0; w < columns; ++w) along_h.whole(readable(slab(t, w)), slab(s, w), true, how);
  }

  /// Block by block: [Xr Xi] of all kept rows gathered, multiplied, shrunk and put back.
  void layers(float* t, index_t columns, index_t plane, const detail::KeptModes& kept, const ApplyOptions& how) const {
    const index_t c = channels();
    const bool one_layer = second_.blocks.empty();
    const index_t kept_rows = kept.end[0] - kept.begin[0] + kept.end[1] - kept.begin[1];
    const index_t rows = columns * kept_rows;
    if (rows == 0) return;
    auto in = AlignedBuffer<float>::uninitialized(rows * 2 * size_);
    auto hidden = AlignedBuffer<float>::uninitialized(rows * 2 * first_.outputs);
    const MatrixView<float> x(in.data(), rows, 2 * size_), u(hidden.data(), rows, 2 * first_.outputs);
    /// f(row of x, its real parts in t, its imaginary parts in t)
    const auto each_row = [&](index_t g, const auto& f) {
      index_t m = 0;
      for (index_t w = 0; w < columns; ++w)
        for (const index_t range : {0, 1})
          for (index_t h = kept.begin[range]; h < kept.end[range]; ++h) {
            float* re = t + 2 * w * plane + h * c + g * size_;
            f(x.row_data(m), re, re + plane, m);
            ++m;
          }
    };
    for (index_t g = 0; g < blocks_; ++g) {
      const auto block = static_cast<std::size_t>(g);
      each_row(g, [&](float* row, const float* re, const float* im, index_t) {
        std::copy_n(re, size_, row);
        std::copy_n(im, size_, row + size_);
      });
      ApplyOptions options = how;
      if (!first_.bias.empty()) {
        const auto n = static_cast<std::size_t>(2 * first_.outputs);
        options.epilogue.bias = std::span<const float>(first_.bias).subspan(block * n, n);
        options.epilogue.function = EpilogueFunction::relu;
      }
      first_.blocks[block].apply(MatrixView<const float>(x), u, options);
      if (!one_layer) {
        const auto n = static_cast<std::size_t>(2 * size_);
        options.epilogue.bias = std::span<const float>(second_.bias).subspan(block * n, n);
        options.epilogue.function = EpilogueFunction::none;
        second_.blocks[block].apply(MatrixView<const float>(u), x, options);
        detail::soft_shrink(x.data(), rows * 2 * size_, options_.sparsity_threshold);
      }
      const MatrixView<float> y = one_layer ? u : x;
      each_row(g, [&](const float*, float* re, float* im, index_t m) {
        std::copy_n(y.row_data(m), size_, re);
        std::copy_n(y.row_data(m) + size_, size_, im);
      });
    }
  }

  SpectralMixerOptions options_;
  index_t blocks_ = 0;
  index_t size_ = 0;  // of a block
  Layer first_;
  Layer second_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
