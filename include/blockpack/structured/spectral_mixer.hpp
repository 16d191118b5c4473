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
/// a slab [positions, channels], and the complex layer is the real one of [Xr Xi] with [[Wr, Wi], [-Wi, Wr]], both on
/// the library's engine. Long transforms go through Eigen's kissfft.
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
struct DftMatrix {
  AlignedBuffer<float> values;
  index_t rows = 0, cols = 0;
  DftMatrix(index_t r, index_t c) : values(checked_mul(r, c, "SpectralMixer")), rows(r), cols(c) {}
  float& operator()(index_t i, index_t j) noexcept { return values[i * cols + j]; }
  MatrixView<const float> view() const noexcept { return {values.data(), rows, cols}; }
};

/// cos and sin of 2π j / n, scaled by 1/√n, in double. Multiples of n come out exact.
class Waves {
 public:
  explicit Waves(index_t n) : n_(n) {
    for (index_t j = 0; j < n; ++j) {
      const double angle = 2.0 * std::numbers::pi * static_cast<double>(j) / static_cast<double>(n);
      const double scale = 1.0 / std::sqrt(static_cast<double>(n));
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

/// Rows of floats at equal distances, `dst` = `matrix` · `src`, on the calling thread.
inline void multiply_rows(const DftMatrix& matrix, MatrixView<const float> src, MatrixView<float> dst,
                          const ApplyOptions& how) {
  RowSource rows;
  rows.rows = src.rows();
  rows.cols = src.cols();
  rows.self = &src;
  rows.decode_f32 = [](const void* self, index_t row, index_t col, index_t count, float* out) {
    std::copy_n(static_cast<const MatrixView<const float>*>(self)->row_data(row) + col, count, out);
  };
  rows.dense = src.data();
  rows.dense_type = WeightType::f32;
  rows.dense_row_stride = src.row_stride();
  matmul_transpose(matrix.view(), rows, dst, how);
}

/// Orthonormal transforms of the rows of a slab [n, channels] along its n rows. A half spectrum has the rows
/// Re 0, Im 0, Re 1, Im 1, … of the first `kept` frequencies; a whole one has all real parts, then all imaginary ones.
class RowTransforms {
 public:
  RowTransforms(index_t n, index_t kept, bool complex, index_t longest_product)
      : n_(n),
        kept_(kept),
        by_product_(n <= longest_product),
        forward_(by_product_ ? (complex ? 2 * n : 2 * kept) : 0, by_product_ ? (complex ? 2 * n : n) : 0),
        inverse_(by_product_ ? (complex ? 2 * n : n) : 0, by_product_ ? (complex ? 2 * n : 2 * kept) : 0) {
    if (!by_product_) return;
    const Waves waves(n);
    if (complex) {
      for (index_t k = 0; k < n; ++k) {
        for (index_t j = 0; j < n; ++j) {
          const auto c = static_cast<float>(waves.cosine(j, k)), s = static_cast<float>(waves.sine(j, k));
          forward_(k, j) = inverse_(k, j) = c;
          forward_(n + k, n + j) = inverse_(n + k, n + j) = c;
          forward_(k, n + j) = inverse_(n + k, j) = s;
          forward_(n + k, j) = inverse_(k, n + j) = -s;
        }
      }
      return;
    }
    for (index_t k = 0; k < kept; ++k) {
      const bool alone = k == 0 || 2 * k == n;  // its imaginary part must vanish, and is ignored on the way back
      for (index_t j = 0; j < n; ++j) {
        const double c = waves.cosine(j, k), s = waves.sine(j, k);
        forward_(2 * k, j) = static_cast<float>(c);
        forward_(2 * k + 1, j) = static_cast<float>(-s);
        inverse_(j, 2 * k) = static_cast<float>(alone ? c : 2.0 * c);
        inverse_(j, 2 * k + 1) = static_cast<float>(alone ? 0.0 : -2.0 * s);
      }
    }
  }

  /// Half spectrum [2 kept, channels] of src [n, channels].
  void real_forward(MatrixView<const float> src, MatrixView<float> dst, const ApplyOptions& how) const {
    if (by_product_) return multiply_rows(forward_, src, dst, how);
    pairs_of_channels(
        src.cols(), false,
        [&](index_t c, index_t tile, Complex* z) {
          for (index_t j = 0; j < n_; ++j) z[j] = {src(j, c), tile > 1 ? src(j, c + 1) : 0.0f};
        },
        [&](index_t c, index_t tile, const Complex* z) {
          for (index_t k = 0; k < kept_; ++k) {
            // Two real channels in one transform: a = (Z[k] + conj Z[-k]) / 2, b = (Z[k] - conj Z[-k]) / 2i.
            const Complex p = z[k] * half_scale(), q = std::conj(z[k == 0 ? 0 : n_ - k]) * half_scale();
            const Complex a = p + q, b = p - q;
            dst(2 * k, c) = a.real();
            dst(2 * k + 1, c) = a.imag();
            if (tile < 2) continue;
            dst(2 * k, c + 1) = b.imag();
            dst(2 * k + 1, c + 1) = -b.real();
          }
        });
  }

  /// The inverse; imaginary parts of frequency 0 and n / 2 are ignored, as irfft does.
  void real_inverse(MatrixView<const float> src, MatrixView<float> dst, const ApplyOptions& how) const {
    if (by_product_) return multiply_rows(inverse_, src, dst, how);
    pairs_of_channels(
        src.cols(), true,
        [&](index_t c, index_t tile, Complex* z) {
          std::fill_n(z, n_, Complex());
          for (index_t k = 0; k < kept_; ++k) {
            const bool alone = k == 0 || 2 * k == n_;
            const Complex a(src(2 * k, c), alone ? 0.0f : src(2 * k + 1, c));
            const Complex b = tile < 2 ? Complex() : Complex(src(2 * k, c + 1), alone ? 0.0f : src(2 * k + 1, c + 1));
            z[k] = {a.real() - b.imag(), a.imag() + b.real()};
            if (!alone) z[n_ - k] = {a.real() + b.imag(), b.real() - a.imag()};
          }
        },
        [&](index_t c, index_t tile, const Complex* z) {
          for (index_t j = 0; j < n_; ++j) {
            dst(j, c) = z[j].real() * scale();
            if (tile > 1) dst(j, c + 1) = z[j].imag() * scale();
          }
        });
  }

  /// Whole spectrum to whole spectrum [2 n, channels].
  void whole(MatrixView<const float> src, MatrixView<float> dst, bool inverse, const ApplyOptions& how) const {
    if (by_product_) return multiply_rows(inverse ? inverse_ : forward_, src, dst, how);
    Fft fft = plan();
    std::vector<Complex> in(static_cast<std::size_t>(n_)), out(in.size());
    for (index_t c = 0; c < src.cols(); ++c) {
      for (index_t j = 0; j < n_; ++j) in[static_cast<std::size_t>(j)] = {src(j, c), src(n_ + j, c)};
      run(fft, out.data(), in.data(), inverse);
      for (index_t j = 0; j < n_; ++j) {
        dst(j, c) = out[static_cast<std::size_t>(j)].real() * scale();
        dst(n_ + j, c) = out[static_cast<std::size_t>(j)].imag() * scale();
      }
    }
  }

 private:
  using Complex = std::complex<float>;
  using Fft = Eigen::FFT<float>;

  static Fft plan() {
    Fft fft;
    fft.SetFlag(Fft::Unscaled);
    return fft;
  }
  void run(Fft& fft, Complex* dst, const Complex* src, bool inverse) const {
    if (inverse) {
      fft.inv(dst, src, n_);
    } else {
      fft.fwd(dst, src, n_);
    }
  }
  float scale() const noexcept { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(n_))); }
  float half_scale() const noexcept { return 0.5f * scale(); }

  template <class Load, class Store>
  void pairs_of_channels(index_t channels, bool inverse, const Load& load, const Store& store) const {
    Fft fft = plan();
    std::vector<Complex> in(static_cast<std::size_t>(n_)), out(in.size());
    for (index_t c = 0; c < channels; c += 2) {
      const index_t tile = std::min<index_t>(2, channels - c);
      load(c, tile, in.data());
      run(fft, out.data(), in.data(), inverse);
      store(c, tile, out.data());
    }
  }

  index_t n_;
  index_t kept_;
  bool by_product_;
  DftMatrix forward_;
  DftMatrix inverse_;
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
    const detail::RowTransforms along_w(width, kept.columns, false, options_.longest_product);
    const detail::RowTransforms along_h(height, height, true, options_.longest_product);

    const index_t plane = checked_mul(height, c, "SpectralMixer::apply");
    const index_t item = checked_mul(2 * kept.columns, plane, "SpectralMixer::apply");
    constexpr index_t kSpectrum = index_t{1} << 24;  // floats of a spectrum that is kept at a time
    const index_t items = std::clamp<index_t>(kSpectrum / std::max<index_t>(1, item), 1, batch);
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
          const MatrixView<float> s(spectrum.data() + b * item + h * c + col, 2 * kept.columns, cols,
                                    kept.columns > 0 ? plane : cols);
          f(MatrixView<const float>(x + at, width, cols, c), MatrixView<float>(y + at, width, cols, c), s);
        });
      };
      if (kept.columns > 0) {
        each_slab([&](MatrixView<const float> from, MatrixView<float>, MatrixView<float> s) {
          along_w.real_forward(from, s, inner);
        });
        parallel_for(how.execution, count * column_tasks, [&](index_t task) {
          const index_t column = task % column_tasks * columns_per_task;
          mix_columns(spectrum.data() + task / column_tasks * item + 2 * column * plane,
                      std::min(columns_per_task, kept.columns - column), height, kept, along_h, inner);
        });
      }
      each_slab([&](MatrixView<const float> from, MatrixView<float> to, MatrixView<float> s) {
        auto memory = AlignedBuffer<float>::uninitialized(width * from.cols());
        const MatrixView<float> back(memory.data(), width, from.cols());
        if (kept.columns > 0) {
          along_w.real_inverse(s, back, inner);
        } else {
          std::fill_n(memory.data(), memory.size(), 0.0f);
        }
        for (index_t w = 0; w < width; ++w) {
          const float* residual = from.row_data(w);
          const float* mixed = back.row_data(w);
          float* dst = to.row_data(w);
          for (index_t i = 0; i < from.cols(); ++i) dst[i] = mixed[i] + residual[i];
        }
      });
    }
  }

  /// The complex layer at `columns` column frequencies, s [columns][Re, Im][height][channels], in place.
  void mix_columns(float* s, index_t columns, index_t height, const detail::KeptModes& kept,
                   const detail::RowTransforms& along_h, const ApplyOptions& how) const {
    const index_t c = channels(), plane = height * c;
    auto memory = AlignedBuffer<float>::uninitialized(2 * columns * plane);
    float* t = memory.data();
    const auto slab = [&](float* data, index_t column) {
      return MatrixView<float>(data + 2 * column * plane, 2 * height, c);
    };
    if (height > 1) {
      for (index_t w = 0; w < columns; ++w) along_h.whole(slab(s, w), slab(t, w), false, how);
    } else {
      std::copy_n(s, 2 * columns * plane, t);
    }
    if (!kept.all(height)) {
      for (index_t w = 0; w < columns; ++w)
        for (index_t h = 0; h < height; ++h)
          if (!((h >= kept.begin[0] && h < kept.end[0]) || (h >= kept.begin[1] && h < kept.end[1])))
            for (const index_t part : {0, 1}) std::fill_n(t + (2 * w + part) * plane + h * c, c, 0.0f);
    }
    layers(t, columns, height, kept, how);
    if (height > 1) {
      for (index_t w = 0; w < columns; ++w) along_h.whole(slab(t, w), slab(s, w), true, how);
    } else {
      std::copy_n(t, 2 * columns * plane, s);
    }
  }

  /// Block by block: [Xr Xi] of all kept rows gathered, multiplied, shrunk and put back.
  void layers(float* t, index_t columns, index_t height, const detail::KeptModes& kept, const ApplyOptions& how) const {
    const index_t c = channels(), plane = height * c;
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
