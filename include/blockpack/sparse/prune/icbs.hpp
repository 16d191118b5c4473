// SPDX-License-Identifier: Apache-2.0
#pragma once

/// iCBS: which weights are pruned, found by exchanges that lower a local model of the loss itself. Weights are set to 0
/// or given back as they were, never adjusted, and every layer keeps its density.
///
/// A step takes a block of weights, some pruned and some kept. With w0 the originals, dw = w - w0, and x_i = 1 for
/// weight i pruned, the change d = -(dw + x ∘ w0) has, by the gradient g and the Hessian H of the loss at w,
///
///     α gᵀd + 1/2 dᵀHd + ρ |d|² = xᵀQx + const,
///     Q = diag(w0 ∘ (H dw)) + 1/2 (w0 w0ᵀ) ∘ H - α diag(w0 ∘ g) + ρ diag(w0 ∘ (2 dw + w0))
///
/// which is minimized with as many pruned as there are (solve/qcbo.hpp). No change costs 0, so no step raises the
/// model.
///
/// Source: "Scalable iterative pruning of large language and vision models using block coordinate descent",
/// arXiv:2411.17796; amazon-science/icbs; N:M groups are ours. That code drops every Q_ij <= 1e-12, all negative ones,
/// where |Q_ij| <= 1e-12 is meant (`compat` does as it does), and accepts every pass.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/solve/qcbo.hpp"
#include "blockpack/sparse/mask.hpp"

#if !defined(BLOCKPACK_HEADERS_ONLY)

namespace blockpack::inline BLOCKPACK_ABI {

/// What ranks weights, always by the originals.
enum class IcbsScore : std::uint8_t {
  random,
  magnitude,  ///< |w0|
  gradient,   ///< |w0 g|, g the mean gradient at the weights as they are
  wanda       ///< |w0| |x_j|₂
};

struct IcbsOptions {
  /// Of the start. N:M groups are kept: weights are exchanged inside them alone. Layers keep their density, rows and
  /// columns do not. Blocks: ValueError.
  MaskPattern pattern = MaskPattern::layer(0.5);
  IcbsScore start = IcbsScore::magnitude;
  IcbsScore choice = IcbsScore::gradient;  ///< of the weights of a block
  index_t block = 1024;                    ///< n
  index_t pruned = 512;           ///< of them the pruned weights of highest score; the rest the lowest kept ones
  double gradient = 0.75;         ///< α
  double ridge = 1e-3;            ///< ρ
  double tabu = 0.4;              ///< a weight rests while this share of the weights in the game had its turn after it
  double fix_pruned = 0.42;       ///< share of the pruned weights, the lowest scores, that are never given back
  double fix_kept = 0.35;         ///< share of the kept weights, the highest scores, that are never pruned
  bool remove_zero_rows = false;  ///< weights whose row of Q is 0 without the ridge are pruned without being asked
  bool compat = false;            ///< drop negative Q_ij, as the published code
  index_t passes = 10, steps = 300, min_steps = 10;  ///< steps of a pass, of each layer at least
  QcboAnnealing annealing;                           ///< blocks of up to 16 are enumerated
  std::uint64_t seed = 0;
};

struct IcbsLayer {
  MatrixView<float> w;               ///< [out, in]: the originals at first, then what the models are to be asked at
  std::vector<double> column_norms;  ///< |x_j|₂ [in], for IcbsScore::wanda
};

/// The loss, asked at the weights that stand in the layers. Coordinates of a layer are row · in + column.
struct IcbsModel {
  /// Gradient and Hessian of a block: g [block], h [block, block], symmetric.
  std::function<void(std::size_t layer, Coordinates block, std::span<double> g, MatrixView<double> h)> local;
  /// Gradient of all weights of a layer, for IcbsScore::gradient.
  std::function<void(std::size_t layer, MatrixView<float> g)> gradient = {};
  /// Called before every step, and before the start; may be empty.
  std::function<void()> next_batch = {};
  /// Of samples held out. A pass that does not lower it is taken back; every pass is accepted where it is empty.
  std::function<double()> loss = {};
};

/// Empirical Fisher matrix: g the mean of the gradients of samples [samples, n], h = Σ g_s g_sᵀ / samples. Sum the loss
/// of a sample over its tokens: the mean makes h too small by their number. ShapeError for g, h of another size.
BLOCKPACK_API void empirical_fisher(MatrixView<const float> samples, std::span<double> g, MatrixView<double> h);

/// The output error of one layer, tr((w - w0) XᵀX (w - w0)ᵀ), rows independent, as the model of layer 0. `w` is the
/// view given as the layer and holds w0 now. Memory: in² doubles and w0. ShapeError for another number of inputs.
BLOCKPACK_API IcbsModel icbs_layer_model(MatrixView<const float> w, const GramMatrix& x);

/// xᵀQx · unit + constant of a block: Q over its mean |Q_ij| of those not 0, what is within 1e-12 of 0 dropped.
struct IcbsQuadratic {
  std::vector<double> q;  ///< [n, n]
  double unit = 1.0, constant = 0.0;
};
/// Shapes: original, current, g [n]; h [n, n]. ShapeError for others. `options`: gradient, ridge, compat.
BLOCKPACK_API IcbsQuadratic icbs_quadratic(std::span<const double> original, std::span<const double> current,
                                           std::span<const double> g, MatrixView<const double> h,
                                           const IcbsOptions& options);

/// Layers of the steps of a pass in random order: steps in proportion to log10(weights), `min_steps` at least, the
/// surplus taken from the layers with most, what is missing given to those with fewest. ValueError when `steps` are
/// fewer than the least of all layers.
BLOCKPACK_API std::vector<std::size_t> icbs_schedule(std::span<const index_t> sizes, index_t steps, index_t min_steps,
                                                     Random& random);

struct IcbsStep {
  std::vector<index_t> block;        ///< pruned ones first
  std::vector<std::uint8_t> pruned;  ///< of the block, afterwards
  IcbsQuadratic quadratic;
  double change = 0.0;  ///< of the model without the ridge, α gᵀd + 1/2 dᵀHd; at most 0 but under `compat`
};

struct IcbsReport {
  std::vector<double> losses;   ///< held out, at the start and after every pass; empty without IcbsModel::loss
  std::vector<bool> accepted;   ///< of every pass
  std::vector<double> changes;  ///< what the models of the steps of a pass promised, in sum
};

class BLOCKPACK_API Icbs {
 public:
  /// Prunes the layers to their start.
  ///
  /// Errors: ValueError for options out of range, weights that are not finite, callbacks that are missing; ShapeError
  ///         for column norms of another number; those of MaskPattern.
  Icbs(std::vector<IcbsLayer> layers, IcbsModel model, const IcbsOptions& options = {}, const Execution& how = {});
  Icbs(Icbs&&) noexcept;
  ~Icbs();

  /// One block of a layer. ValueError, the layer as it was, when the model gives what is not finite or a Hessian that
  /// is not symmetric.
  /// Cost: the model's, n² for Q, the solver's (qcbo_anneal), two passes over the layer.
  IcbsStep step(std::size_t layer, const Execution& how = {});
  /// options.passes passes. CancelledError between two steps, after which the layers hold what those done have left.
  IcbsReport run(const Execution& how = {});

  /// What is kept.
  Mask mask(std::size_t layer) const;

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI

#endif
