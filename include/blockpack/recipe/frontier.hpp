// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Which form stores a matrix best: any list of schemes, each encoded and measured, and the ones that no other beats in
/// both bytes and error. Structured forms have a menu of their own for a share of the parameters.

#include <span>
#include <string>
#include <vector>

#include "blockpack/core/calibration.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/quant/allocate.hpp"
#include "blockpack/recipe/registry.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// One scheme on one matrix.
struct FrontierPoint {
  std::string scheme;  ///< canonical; without calibration algorithms where there was no calibration
  index_t bytes = 0;   ///< stored
  double error = 0;    ///< ||(W - Ŵ) Xᵀ|| / ||W Xᵀ||, without XᵀX ||W - Ŵ|| / ||W||, Frobenius norms
  bool best = false;   ///< no other point has as few bytes and less error, or as little error and fewer bytes
};

struct FrontierOptions {
  const GramMatrix* gram = nullptr;  ///< XᵀX of the inputs, for algorithms that need it and for the error
  Execution execution;               ///< progress counts schemes
};

/// Every scheme on w, by bytes, then by error. A scheme that needs calibration which is not given is replaced by its
/// format.
///
/// Errors: FormatError of a scheme; those of the encoders. Cost: encodes w once a scheme; with XᵀX 2 · out · in²
/// operations for each. Memory: one encoded form, two copies of w in float32, and XᵀX in float32.
BLOCKPACK_API std::vector<FrontierPoint> scheme_frontier(MatrixView<const float> w,
                                                         std::span<const std::string> schemes,
                                                         const FrontierOptions& options = {},
                                                         const Registry& registry = Registry::standard());

/// The error of a form of w as FrontierPoint has it. ShapeError for a gram of another size. Cost: decodes the form
/// once; with XᵀX 4 · out · in² operations.
BLOCKPACK_API double relative_error(MatrixView<const float> w, const AnyLinear& form, const GramMatrix* gram = nullptr,
                                    const Execution& how = {});

/// The point of least error within a number of bytes, or of fewest bytes within an error; null when there is none.
BLOCKPACK_API const FrontierPoint* best_within_bytes(std::span<const FrontierPoint> points, index_t bytes);
BLOCKPACK_API const FrontierPoint* best_within_error(std::span<const FrontierPoint> points, double error);

/// The menu of allocate_bits with the noise that the schemes leave on w: those of the frontier that no other beats, by
/// rising bits, noise = error². Errors and cost of scheme_frontier.
BLOCKPACK_API std::vector<MenuEntry> measured_menu(MatrixView<const float> w, std::span<const std::string> schemes,
                                                   const FrontierOptions& options = {},
                                                   const Registry& registry = Registry::standard());

/// Low rank, Monarch, BLAST and block low rank for a matrix of that shape with at most `share` of its parameters each:
/// one scheme a form, ranks as large as fit. Monarch and BLAST have 4 blocks a side, tiles are a quarter of the smaller
/// side and at most 256. `factors` is the format of the factors, `algorithms` what follows (as "+whiten"), for the
/// forms that take it. Forms of which not even rank 1 fits are left out.
BLOCKPACK_API std::vector<std::string> structured_menu(MatrixShape shape, double share,
                                                       const std::string& factors = "bf16",
                                                       const std::string& algorithms = "");

}  // namespace blockpack::inline BLOCKPACK_ABI
