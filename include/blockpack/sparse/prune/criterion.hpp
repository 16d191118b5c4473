// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Pruning criteria: how much a weight matters. Every one-shot criterion here is
///
///     score_ij = |w_ij| · row_i · column_j
///
/// with factors of the rows and columns of W [out, in], so each serves every pattern of sparse/mask.hpp: `magnitude`,
/// `wanda` (sparse/prune/wanda.hpp), `nowag` (sparse/prune/nowag.hpp), `second_order` (sparse/prune/sparsegpt.hpp). A
/// block's score is Σ score² (for `magnitude` the squared norm of the block, for the others an estimate of the
/// output error of removing it) or Σ score.

#include <concepts>
#include <string>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/sparse/mask.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// The factors of a score; an empty vector stands for ones.
struct Criterion {
  std::vector<double> row, column;
};

/// |w|.
inline Criterion magnitude() { return {}; }

namespace detail {

/// Rows of scores in T, |w| · column · row in this order. ShapeError for factors of another number.
template <class T>
class ScoreRows {
 public:
  ScoreRows(const char* function, MatrixView<const T> w, const Criterion& criterion)
      : w_(w),
        row_(criterion.row.begin(), criterion.row.end()),
        column_(criterion.column.begin(), criterion.column.end()) {
    const auto check = [function](const char* what, std::size_t n, index_t needed) {
      if (n != 0 && n != static_cast<std::size_t>(needed))
        throw ShapeError(std::string(function) + ": criterion." + what + " has " + std::to_string(n) + " entries, " +
                         std::to_string(needed) + " needed");
    };
    check("row", row_.size(), w.rows());
    check("column", column_.size(), w.cols());
  }
  /// Writes row i; whether one of its scores is NaN.
  bool operator()(index_t i, std::span<T> dst) const {
    return weigh(w_.row_data(i), factors(), factor(i), w_.cols(), dst.data());
  }
#if !defined(BLOCKPACK_HEADERS_ONLY)
  /// The largest of every group of row i, if that can be had in one pass.
  bool keep_in_groups(index_t i, index_t keep, index_t of, std::uint64_t* words) const requires std::same_as<T, float> {
    return keep_weighed_in_groups(w_.row_data(i), factors(), factor(i), w_.cols(), keep, of, words);
  }
#endif

 private:
  const T* factors() const { return column_.empty() ? nullptr : column_.data(); }
  T factor(index_t i) const { return row_.empty() ? T{1} : row_[static_cast<std::size_t>(i)]; }

  MatrixView<const T> w_;
  std::vector<T> row_, column_;
};

}  // namespace detail

/// The mask a pattern and a criterion give; where two scores are equal, the one of the lower index is kept. The weights
/// stay as they are: Mask::apply prunes them.
///
/// Shapes:  w [out, in], float or double; criterion.row [out] or empty, criterion.column [in] or empty.
/// Errors:  ShapeError for factors of another number; ValueError naming row and column of a NaN score; those of
///          MaskPattern.
/// Cost:    group and row scopes read w once and keep a row of scores; the others keep all scores.
template <class T>
Mask prune_mask(MatrixView<const T> w, const Criterion& criterion, const MaskPattern& pattern,
                const Execution& how = {}) {
  return detail::select_rows<T>("prune_mask", w.shape(), pattern, how,
                                detail::ScoreRows<T>("prune_mask", w, criterion));
}
/// Of float weights, writable ones among them.
inline Mask prune_mask(MatrixView<const float> w, const Criterion& criterion, const MaskPattern& pattern,
                       const Execution& how = {}) {
  return prune_mask<float>(w, criterion, pattern, how);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
