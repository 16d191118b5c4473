// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What `"auto:3.0bpw"` and `"structured:50%"` in a recipe mean: every tensor gets the scheme of a menu that makes the
/// loss of the whole model least within a budget of stored bits. The loss of each tensor under each scheme is measured,
/// one tensor changed at a time, and taken to add up; the choice is then exact, by dynamic programming.
///
/// Source of the idea: ActQuant, arXiv:2605.24011 (quant/allocate.hpp has its own allocator, for a noise per scheme and
/// a score per tensor); the table of measured losses and the exact choice are ours.

#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/recipe/calibration.hpp"
#include "blockpack/recipe/recipe.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// A choice of the menu for one tensor.
struct PlanEntry {
  double bits = 0;  ///< stored, all of the tensor
  double loss = 0;
};

/// For each tensor the index of its entry, so that the sum of losses is least and the sum of bits at most `budget`.
///
/// Exact up to the grain of the table, budget / 16384 bits: bits are rounded up to it, so the budget is never exceeded.
/// Errors:  ValueError when even the smallest entries exceed the budget, for a tensor without entries, and for bits or
///          losses that are negative or not finite.
/// Cost:    tensors · entries · 16384.
BLOCKPACK_API std::vector<std::size_t> choose_entries(std::span<const std::vector<PlanEntry>> tensors, double budget);

struct AutoPlanOptions {
  /// Schemes that `auto:` chooses from; empty: integers of 2 to 8 bits with groups of 32, 64 and 128. A scheme that
  /// needs calibration which a tensor does not have is replaced by its format with plain rounding.
  std::vector<std::string> menu;
  CalibrationLookup calibration;
  /// What the model loses when this tensor alone is stored as `candidate`, in any unit: best measured on the model's
  /// output. Empty: for `structured:` ||(W - Ŵ) Xᵀ||², without XᵀX ||W - Ŵ||²; for `auto:` Σ importance · (w - ŵ)²
  /// where calibration has the importance, else Σ (w - ŵ)².
  std::function<double(std::string_view tensor, const AnyLinear& candidate)> loss;
  Execution execution;  ///< progress counts tensors
};

/// Whether a recipe holds a target that `resolve_auto` replaces.
BLOCKPACK_API bool has_auto(const Recipe& recipe);

/// The recipe with every `auto:` or `structured:` target replaced by one rule per tensor; each target is a budget over
/// the tensors that it stands for. The model is at `in` as compress_model takes it.
///
/// Errors:  those of compress_model for the model, the recipe and the weights; ValueError for a target below what the
///          menu can reach.
/// Cost:    encodes every tensor under every scheme of the menu; memory: one tensor in float32 and one encoded.
BLOCKPACK_API Recipe resolve_auto(const std::filesystem::path& in, const Recipe& recipe,
                                  const AutoPlanOptions& options = {}, const Registry& registry = Registry::standard());

}  // namespace blockpack::inline BLOCKPACK_ABI
