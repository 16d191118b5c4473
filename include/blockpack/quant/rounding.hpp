// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Rounding algorithms: which value of its grid each weight takes, given calibration data. All of them work on any
/// scalar format (quant/grid.hpp) and share one statistic, H = XᵀX of the layer's inputs (core/calibration.hpp).
///
///     GramMatrix h(in);  h.add(x);  …
///     const QuantizedMatrix<GroupInt> q = round_gptq(GroupInt{.bits = 4}, w, h);
///
/// The layer objective is L(Q) = tr((W - Q) H (W - Q)ᵀ); rows of W are independent given H.
///
/// The chosen codes do not depend on the number of threads. Sums run in float32 through the dense engine, so two SIMD
/// levels may choose another code where two are equally good to the last bits.
///
/// Every function takes `Execution` with progress and cancellation. Errors common to all: ShapeError for shapes that
/// disagree, ValueError for weights that are NaN or infinite (grids are fitted to the weights as they are).

#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/quant/weight_grids.hpp"

#if !defined( \
    BLOCKPACK_HEADERS_ONLY)  // the algorithms are compiled: they are long, and their sums must not be contracted

namespace blockpack::inline BLOCKPACK_ABI {

/// tr((w - q) H (w - q)ᵀ), the squared error of the layer's outputs summed over the tokens H has seen.
/// Cost: out · in² multiply-adds through the engine; one float32 copy of H and of q.
BLOCKPACK_API double layer_loss(MatrixView<const float> w, MatrixView<const float> q, const GramMatrix& h,
                                const Execution& how = {});

/// Fits every group to w and takes the nearest values: plain rounding, the start and the baseline of the others.
BLOCKPACK_API void nearest(MatrixView<const float> w, WeightGrids& grids, MatrixView<float> q,
                           const Execution& how = {});

struct GptqOptions {
  index_t block = 128;    ///< without static groups: columns after which the rest sees their errors
  double damping = 0.01;  ///< times mean(diag H), added to the diagonal
  /// How often the damping grows tenfold (from 1e-5 at least) when H is not positive definite in float32.
  int damping_retries = 4;
  bool act_order = true;  ///< columns by falling diagonal of H
  /// Groups are fitted to the weights as given. Otherwise each is fitted to the updated weights when its first column
  /// is reached; with act_order its columns are then runs of that order, which a row format cannot store.
  bool static_groups = true;
  std::string layer;  ///< named in errors
};

/// What a run did.
struct GptqReport {
  double loss = 0;             ///< sum of (w - q)² / U_jj² with the damped H: the layer objective in exact arithmetic
  double damping = 0;          ///< relative damping that was used
  std::vector<index_t> order;  ///< order[p] = column that was rounded p-th
};

/// GPTQ: rounds column after column and moves the error of each to the columns not yet rounded.
///
/// With H + damping = UᵀU's inverse, U upper triangular in the order of the columns: e = (w_j - q_j) / U_jj and
/// w_k -= e · U_jk for the columns k after j. U comes from one Cholesky factorization and one triangular inverse, and
/// all three go by halves: nearly all of it is large products. Columns whose diagonal is 0 are rounded from 0.
///
/// Shapes:  w, q [out, in], the grids' shape; H [in, in]. q may be w.
/// Errors:  ValueError that names the layer when H stays singular under the last damping.
/// Cost:    (2/3) in³ + out · in² multiply-adds ·2; memory: two matrices [in, in] at first, then one and one
///          [out, in], all float32; sixteen bytes a group; without static groups a panel of block + group_size columns.
/// Source:  "GPTQ", arXiv:2210.17323; stale group fits within a block as in the public code.
BLOCKPACK_API GptqReport gptq(MatrixView<const float> w, const GramMatrix& h, WeightGrids& grids, MatrixView<float> q,
                              const GptqOptions& options = {}, const Execution& how = {});

struct DescentOptions {
  int sweeps = 4;  ///< at most; fewer when nothing changes any more
};

/// Coordinate descent after any method: column after column, each weight moves to the grid value where its row's
/// objective is lowest, given the others, until nothing changes. Grids stay as they are; the objective never grows.
/// Returns the number of moves.
///
/// Cost: out · in² multiply-adds through the engine for the gradient, then in of them for each move; memory: two
/// float32 matrices [in, in] and 1024 rows.
BLOCKPACK_API index_t descend(MatrixView<const float> w, const GramMatrix& h, const WeightGrids& grids,
                              MatrixView<float> q, const DescentOptions& options = {}, const Execution& how = {});

/// FlexRound's view of one group of a row: with s1 the scale of the grid,
///
///     u = w / (s1 · exp(log_s2 + log_s3));   ŵ = s1 · nearest_unit(u)
///
/// so that log_s2 = 0, log_s3 = 0 is plain rounding. s2 has one entry a weight, s3 one a row.
struct FlexRoundGroup {
  Grid grid;
  std::span<const float> w;
  std::span<const float> log_s2;  ///< as long as w
  float log_s3 = 0.0f;

  BLOCKPACK_API void forward(std::span<float> w_hat) const;
  /// Straight-through gradients for g = dLoss/dŵ: dLoss/dlog_s2 of each weight is written; those of log s1 and log_s3
  /// are added to. Weights that u puts beyond the grid have no gradient but that of s1.
  BLOCKPACK_API void backward(std::span<const float> g, std::span<float> g_log_s2, double& g_log_s1,
                              double& g_log_s3) const;
};

struct FlexRoundOptions {
  int iterations = 800;
  double learning_rate = 3e-3;  ///< of Adam, falling to 0 along a cosine
  bool learn_scales = true;     ///< where the format can store other scales
};

/// FlexRound, layer form: learns by how much each weight is divided before it is rounded (and the scales), by Adam on
/// the layer objective; keeps the best values of each row by true objective. Fits the grids to w first.
///
/// Cost: `iterations` times out · in² multiply-adds; memory: two float32 matrices [in, in] and five of 512 rows.
/// Source: "FlexRound", arXiv:2306.00317; gradients as in robotseye/FlexRound_LRQ.
BLOCKPACK_API void flexround(MatrixView<const float> w, const GramMatrix& h, WeightGrids& grids, MatrixView<float> q,
                             const FlexRoundOptions& options = {}, const Execution& how = {});

/// The asymmetric grid FlexRound's code starts from: scale and zero point of `values` from their range (`search` false)
/// or, of the ranges [-z, 2^b - 1 - z] · p/100 · (max - min) / (2^b - 1) for p in 1..100 and every zero point z, that
/// of least mean |w - ŵ|^2.4.
BLOCKPACK_API GroupParameters flexround_range(std::span<const float> values, int bits, bool search);

/// Loss of a model whose quantized layers have these weights, and dLoss/dw of every layer, written to `gradients`.
using LayerGradients = std::function<double(std::span<const MatrixView<const float>> weights,
                                            std::span<const MatrixView<float>> gradients)>;

struct DiscQuantOptions {
  int steps = 1024;
  int warmup = 128;            ///< steps until the learning rate is reached; then it falls to 0 along a cosine
  double learning_rate = 0.1;  ///< of AdamW with betas 0.9 and 0.999
  double weight_decay = 0.01;
  double rho = 200.0;          ///< weight of the loss
  double clamp = 1.0;          ///< of rho · gradient
  double linear = 1.0;         ///< weight of the linear term at the start …
  double linear_growth = 1.0;  ///< … and by how much it has grown at the end, geometrically
  bool random_start = true;    ///< x uniform in [0, 1), otherwise where it gives back the weights
  std::uint64_t seed = 0;
};

/// DiscQuant: every weight is (1 - x)·down + x·up between its two neighbours on a grid that never changes, x in [0, 1].
/// A step lowers rho · Loss / delta² - (2y - 1)·x, y being the x of the original weight: the linear term drives x into
/// a corner, the loss says which.
///
///     DiscQuant d(layers, options);
///     while (!d.done()) d.step(gradients);   // end-to-end gradients: KL of the model's outputs
///     d.round(0, q);
///
/// The weights and grids of the layers must outlive it. Memory: six float32 matrices a layer.
/// Source: "DiscQuant", arXiv:2501.06417; settings of jerry-chee/DiscQuant.
class BLOCKPACK_API DiscQuant {
 public:
  struct Layer {
    MatrixView<const float> w;
    WeightGrids* grids = nullptr;  ///< fitted to w by the constructor
  };

  DiscQuant(std::span<const Layer> layers, const DiscQuantOptions& options, const Execution& how = {});

  bool done() const noexcept { return step_ >= options_.steps; }
  int steps_done() const noexcept { return step_; }
  /// 12 · mean squared error of plain rounding, averaged over the layers: what the loss is divided by.
  double delta2() const noexcept { return delta2_; }
  /// x of a layer; may be set before a step.
  MatrixView<float> x(std::size_t layer);
  MatrixView<const float> down(std::size_t layer) const;
  MatrixView<const float> up(std::size_t layer) const;
  /// What the optimizer saw in the last step.
  MatrixView<const float> gradient(std::size_t layer) const;
  /// y, the x that gives back a weight; 0.5 where both neighbours are one.
  float interpolation(std::size_t layer, index_t row, index_t col) const;

  /// One step; the loss of the weights it began with. CancelledError.
  double step(const LayerGradients& gradients, const Execution& how = {});

  /// up where x > 1/2, down elsewhere.
  void round(std::size_t layer, MatrixView<float> q) const;

 private:
  struct State {
    MatrixView<const float> w;
    AlignedBuffer<float> down, up, x, gradient, first_moment, second_moment;
    MatrixView<float> view(AlignedBuffer<float>& b) const { return {b.data(), w.rows(), w.cols()}; }
    MatrixView<const float> view(const AlignedBuffer<float>& b) const { return {b.data(), w.rows(), w.cols()}; }
  };
  std::vector<State> layers_;
  DiscQuantOptions options_;
  double delta2_ = 0.0;
  int step_ = 0;
};

/// The layer form as gradients for one layer: |(w' - w) Xᵀ|² / |w Xᵀ|². w must outlive it; H is copied.
BLOCKPACK_API LayerGradients layer_gradients(MatrixView<const float> w, const GramMatrix& h, const Execution& how = {});

/// What serves the layer form: a linear term that grows from 0.01 to 100.
inline DiscQuantOptions layer_form_options() {
  DiscQuantOptions options;
  options.steps = 512;
  options.warmup = 16;
  options.random_start = false;
  options.linear = 0.01;
  options.linear_growth = 1e4;
  return options;
}

/// DiscQuant with the layer's own objective. Clearly worse than GPTQ (the published gains come from end-to-end
/// gradients): for comparison, and best followed by `descend`.
BLOCKPACK_API void discquant(MatrixView<const float> w, const GramMatrix& h, WeightGrids& grids, MatrixView<float> q,
                             const DiscQuantOptions& options = layer_form_options(), const Execution& how = {});

namespace detail {

/// Scratch for the chosen values, then the stored matrix.
template <GridFormat F, class Choose>
QuantizedMatrix<F> round_with(const F& format, MatrixView<const float> w, const EncodeOptions& encode,
                              Choose&& choose) {
  FormatGrids<F> grids(fitted(format, w, encode), w.shape(), encode);
  auto chosen = AlignedBuffer<float>::uninitialized(checked_mul(w.rows(), w.cols(), "round"));
  const MatrixView<float> q(chosen.data(), w.rows(), w.cols());
  choose(grids, q);
  return grids.store(MatrixView<const float>(q), encode.execution);
}

/// `how` for a part of a call: its progress goes from `begin` to `end`. `how` must outlive it.
inline Execution part_of(const Execution& how, double begin, double end) {
  Execution part = how;
  if (how.progress)
    part.progress = [&how, begin, end](double fraction) { how.report(begin + (end - begin) * fraction); };
  return part;
}

/// start(how), then coordinate descent if `descent.sweeps` > 0, which has the last fifth of the progress.
template <class Start>
void start_and_descend(MatrixView<const float> w, const GramMatrix& h, const WeightGrids& grids, MatrixView<float> q,
                       const DescentOptions& descent, const Execution& how, Start&& start) {
  if (descent.sweeps <= 0) {
    start(how);
    return;
  }
  start(part_of(how, 0.0, 0.8));
  descend(w, h, grids, q, descent, part_of(how, 0.8, 1.0));
}

}  // namespace detail

/// Plain rounding followed by coordinate descent: `descent.sweeps` = 0 gives what the format's encoder gives.
template <GridFormat F>
QuantizedMatrix<F> round_nearest(const F& format, MatrixView<const float> w, const GramMatrix& h,
                                 const DescentOptions& descent = {}, const EncodeOptions& encode = {}) {
  return detail::round_with(format, w, encode, [&](FormatGrids<F>& grids, MatrixView<float> q) {
    nearest(w, grids, q, encode.execution);
    descend(w, h, grids, q, descent, encode.execution);
  });
}

/// GPTQ, then coordinate descent if `descent.sweeps` > 0. act_order implies static_groups here.
template <GridFormat F>
QuantizedMatrix<F> round_gptq(const F& format, MatrixView<const float> w, const GramMatrix& h, GptqOptions options = {},
                              const DescentOptions& descent = {0}, const EncodeOptions& encode = {}) {
  options.static_groups = options.static_groups || options.act_order;
  return detail::round_with(format, w, encode, [&](FormatGrids<F>& grids, MatrixView<float> q) {
    detail::start_and_descend(w, h, grids, q, descent, encode.execution,
                              [&](const Execution& how) { gptq(w, h, grids, q, options, how); });
  });
}

/// FlexRound in its layer form, then coordinate descent if `descent.sweeps` > 0.
template <GridFormat F>
QuantizedMatrix<F> round_flexround(const F& format, MatrixView<const float> w, const GramMatrix& h,
                                   const FlexRoundOptions& options = {}, const DescentOptions& descent = {0},
                                   const EncodeOptions& encode = {}) {
  return detail::round_with(format, w, encode, [&](FormatGrids<F>& grids, MatrixView<float> q) {
    detail::start_and_descend(w, h, grids, q, descent, encode.execution,
                              [&](const Execution& how) { flexround(w, h, grids, q, options, how); });
  });
}

/// DiscQuant in its layer form, then coordinate descent. For end-to-end gradients: DiscQuant over FormatGrids.
template <GridFormat F>
QuantizedMatrix<F> round_discquant(const F& format, MatrixView<const float> w, const GramMatrix& h,
                                   const DiscQuantOptions& options = layer_form_options(),
                                   const DescentOptions& descent = {4}, const EncodeOptions& encode = {}) {
  return detail::round_with(format, w, encode, [&](FormatGrids<F>& grids, MatrixView<float> q) {
    detail::start_and_descend(w, h, grids, q, descent, encode.execution,
                              [&](const Execution& how) { discquant(w, h, grids, q, options, how); });
  });
}

}  // namespace blockpack::inline BLOCKPACK_ABI

#endif
