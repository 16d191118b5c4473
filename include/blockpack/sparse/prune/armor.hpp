// SPDX-License-Identifier: Apache-2.0
#pragma once

/// ARMOR: W ≈ A (X ∘ M) B, an N:M core between two block-diagonal factors. With Wn = W / (r2 r1ᵀ), h the importance of
/// the inputs and S = X ∘ M, it minimizes
///
///     L = Σ_ij h_j (Wn - A S B)_ij²,   relative: over Σ_ij h_j Wn_ij²
///
/// from A = B = I, S = Wn under the mask of NoWag-P. An iteration moves A, B and the kept values of S, then chooses
/// anew, exactly, which weights one group of every block keeps, and their values. diag(r2) A and B diag(r1) are what is
/// stored.
///
/// Source: "ARMOR", arXiv:2510.05528; LawrenceRLiu/ARMOR, which returns the last iterate and not the best.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/solve/adam.hpp"
#include "blockpack/sparse/mask.hpp"

#if !defined(BLOCKPACK_HEADERS_ONLY)

namespace blockpack::inline BLOCKPACK_ABI {

/// How A, B and S move.
enum class ArmorUpdate : std::uint8_t {
  adam,       ///< one joint step of Adam on the gradients of the relative loss, as released; L may rise
  sequential  ///< gradient steps of A, B, S one after the other, each by 1 / (a bound of its curvature); L never rises
};

/// Which group of a block is chosen anew.
enum class ArmorChoice : std::uint8_t {
  sampled,  ///< with probability proportional to the norm of its gradient
  greedy    ///< the one with the largest
};

/// The norm of the gradient of a group, pruned entries included.
enum class ArmorNorm : std::uint8_t { l1, l2, max };

struct ArmorOptions {
  MatrixShape block{128, 128};  ///< of A, [rows, rows], and of B, [cols, cols]
  index_t keep = 2, of = 4;     ///< of <= 16
  index_t iterations = 20000;   ///< at most
  double damping = 1e-9;  ///< of the core step's least squares, times mean(h); the released code leaves out mean(h)
  ArmorUpdate update = ArmorUpdate::adam;
  AdamOptions adam{.learning_rate = 1e-4};
  ArmorChoice choice = ArmorChoice::sampled;
  ArmorNorm norm = ArmorNorm::l1;
  std::uint64_t seed = 1;  ///< of ArmorChoice::sampled
  /// Ends after so many iterations in a row that lowered the relative loss by less than 1e-6 of it or less than 1e-8.
  index_t patience = 100;
};

/// A point: W ≈ A S B. Blocks of A and B stand one below the other, as BlockDiagonal::encode takes them.
template <class T>
struct ArmorFactors {
  MatrixShape shape;     ///< of W, [out, in]
  MatrixShape block;     ///< da, db
  std::vector<T> left;   ///< A [out, da]
  std::vector<T> core;   ///< S [out, in], 0 where pruned
  std::vector<T> right;  ///< B [in, db]
  Mask mask;             ///< M; a kept value of S may be 0

  MatrixView<const T> left_view() const { return {left.data(), shape.rows, block.rows}; }
  MatrixView<const T> core_view() const { return {core.data(), shape.rows, shape.cols}; }
  MatrixView<const T> right_view() const { return {right.data(), shape.cols, block.cols}; }
};

struct ArmorReport {
  std::vector<double> losses;  ///< relative, at the start and after every iteration
  index_t best_iteration = 0;  ///< after which the returned factors were met

  double start() const { return losses.front(); }  ///< NoWag-P's
  double best() const { return losses[static_cast<std::size_t>(best_iteration)]; }
  double last() const { return losses.back(); }
};

template <class T>
struct ArmorResult {
  ArmorFactors<T> factors;  ///< of W, the best iterate
  ArmorReport report;
};

/// The fit, whole or step by step (recorded choices are replayed by core_step). T is float or double.
template <class T>
class BLOCKPACK_API ArmorFit {
 public:
  /// Shapes:  w [out, in]; h [in], the mean (or sum) of x_j² over the tokens, cleaned as nowag_importance does.
  /// Errors:  ShapeError for h of another size or a shape that the blocks, or columns of a block that `of` does not
  ///          divide; ValueError for w that is not finite and options out of range.
  ArmorFit(MatrixView<const T> w, std::span<const double> h, const ArmorOptions& options = {},
           const Execution& how = {});
  ArmorFit(ArmorFit&&) noexcept;
  ~ArmorFit();

  /// Relative, at the point; 0 for W = 0.
  double loss() const noexcept;

  /// One step of options.update.
  void continuous_step(const Execution& how = {});
  /// One group of every block, blocks row after row: row · (db / of) + group in the row, counted in the block; -1 where
  /// the gradient is 0.
  std::vector<index_t> choose_groups(const Execution& how = {});
  /// The best mask and values of these groups, the others fixed: never raises the loss. ShapeError for another number
  /// of groups, ValueError for a group that is not there.
  void core_step(std::span<const index_t> groups, const Execution& how = {});

  /// The point, of Wn; W itself: diag(r2) A and B diag(r1).
  ArmorFactors<T> normalized() const;
  ArmorFactors<T> factors() const;
  /// Goes to a point of Wn. Moments of Adam stay. ShapeError for other shapes, ValueError for a mask that keeps more
  /// than `keep`, or values that are not finite.
  void set_normalized(const ArmorFactors<T>& point, const Execution& how = {});

  /// Iterates as the options say, from the point it is at. CancelledError between two iterations.
  ArmorResult<T> run(const Execution& how = {});

 private:
  class State;
  std::unique_ptr<State> state_;
};

/// ArmorFit::run: a continuous step and a core step an iteration. The best iterate is never worse than NoWag-P.
///
/// Shapes:  as ArmorFit.
/// Errors:  those of ArmorFit; CancelledError between two iterations.
/// Cost:    an iteration takes six products of out · in · d multiply-adds (sequential: fourteen), in float32 through
/// the
///          engine, and passes over six matrices [out, in]: the products are half of the time for blocks of 128, less
///          for smaller ones. In double, and for blocks below 8, plain loops. Cores of 8:16 try 12870 masks for each
///          block. Memory: ten matrices [out, in]. The result does not depend on the number of threads.
BLOCKPACK_API ArmorResult<float> armor(MatrixView<const float> w, std::span<const double> h,
                                       const ArmorOptions& options = {}, const Execution& how = {});
BLOCKPACK_API ArmorResult<double> armor(MatrixView<const double> w, std::span<const double> h,
                                        const ArmorOptions& options = {}, const Execution& how = {});

}  // namespace blockpack::inline BLOCKPACK_ABI

#endif
