// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Masks: which weights of a matrix [out, in] are kept. `Mask` holds one bit a weight; `MaskPattern` says what a mask
/// must look like; `select_mask` chooses the largest scores a pattern allows. Pruning criteria are in sparse/prune/.
///
///     const Mask mask = select_mask(scores, MaskPattern::nm(2, 4));   // 2:4: of four neighbours in a row two are kept
///     mask.apply(w);                                             // the others become 0
///
/// Densities are fractions kept; a pattern that keeps a fraction d of n weights keeps d·n of them, half rounded up.
/// Source: the selection rules of locuslab/wanda (per row, N:M) and NoWag (per layer), with ties and NaN defined.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/strict.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Where the weights compete with each other.
enum class MaskScope : std::uint8_t {
  layer,   ///< one ranking of the whole matrix
  row,     ///< every output row keeps the same number
  column,  ///< every input column keeps the same number
  group,   ///< N:M: of every `of` neighbours in a row, `keep`
  block    ///< whole blocks of block_rows x block_cols
};

/// What an N:M mask does with the last columns when their number is not a multiple of M.
enum class Tail : std::uint8_t {
  reject,      ///< ShapeError
  short_group  ///< they are a group of their own, of which at most `keep` are kept
};

/// What a mask must look like. ValueError by `select_mask` for a density outside [0, 1], keep outside [0, of] or of
/// < 1.
struct MaskPattern {
  MaskScope scope = MaskScope::layer;
  double density = 0.5;            ///< fraction of the weights kept, of the blocks for MaskScope::block
  index_t keep = 0, of = 0;        ///< MaskScope::group
  Tail tail = Tail::reject;        ///< MaskScope::group
  MatrixShape block{1, 1};         ///< MaskScope::block; blocks at the right and lower edge may be smaller
  bool per_block_row = false;      ///< MaskScope::block: every row of blocks keeps the same number
  bool sum_of_magnitudes = false;  ///< MaskScope::block: a block's score is Σ|score|; otherwise Σ score²

  static MaskPattern layer(double density) { return {MaskScope::layer, density}; }
  static MaskPattern rows(double density) { return {MaskScope::row, density}; }
  static MaskPattern columns(double density) { return {MaskScope::column, density}; }
  static MaskPattern nm(index_t keep, index_t of, Tail tail = Tail::reject) {
    return {MaskScope::group, of > 0 ? static_cast<double>(keep) / static_cast<double>(of) : 0.0, keep, of, tail};
  }
  static MaskPattern blocks(MatrixShape block, double density, bool per_block_row = false) {
    return {MaskScope::block, density, 0, 0, Tail::reject, block, per_block_row};
  }

  /// How many of n compete successfully: density · n, half rounded up.
  index_t kept_of(index_t n) const noexcept {
    return std::clamp(static_cast<index_t>(std::floor(density * static_cast<double>(n) + 0.5)), index_t{0}, n);
  }
};

namespace detail {

/// Throws what the comment of MaskPattern says, and ShapeError for a pattern that a matrix cannot have: columns that
/// are no multiple of `of` under Tail::reject, blocks larger than the matrix. An empty matrix has every pattern.
inline void check_pattern(const char* function, MatrixShape shape, const MaskPattern& p) {
  const std::string name(function);
  if (p.scope == MaskScope::group) {
    if (p.of < 1 || p.keep < 0 || p.keep > p.of)
      throw ValueError(name + ": keep = " + std::to_string(p.keep) + " of = " + std::to_string(p.of) +
                       ", 0 <= keep <= of and of >= 1 needed");
    if (p.tail == Tail::reject && shape.cols % p.of != 0)
      throw ShapeError(name + ": " + std::to_string(shape.cols) + " columns are not a multiple of " +
                       std::to_string(p.of) + "; Tail::short_group takes the rest as a shorter group");
    return;
  }
  if (!(p.density >= 0.0 && p.density <= 1.0))
    throw ValueError(name + ": density = " + std::to_string(p.density) + ", 0 to 1 needed");
  if (p.scope != MaskScope::block) return;
  if (p.block.rows < 1 || p.block.cols < 1)
    throw ShapeError(name + ": blocks of " + to_string(p.block) + ", at least 1x1 needed");
  if (shape.rows > 0 && shape.cols > 0 && (p.block.rows > shape.rows || p.block.cols > shape.cols))
    throw ShapeError(name + ": blocks of " + to_string(p.block) + " are larger than the matrix, " + to_string(shape));
}

}  // namespace detail

/// One bit a weight, 1 = kept, row-major: every row starts a 64-bit word, bit j % 64 of word j / 64 is column j.
class Mask {
 public:
  static constexpr index_t kWordBits = 64;

  Mask() = default;
  /// Everything kept or everything pruned.
  explicit Mask(MatrixShape shape, bool kept = false)
      : shape_(shape),
        words_per_row_(ceil_div(shape.cols, kWordBits)),
        words_(static_cast<std::size_t>(checked_mul(shape.rows, words_per_row_, "Mask")),
               kept ? ~std::uint64_t{0} : 0) {
    clear_padding();
  }
  /// What is not 0: NaN and infinity are kept, -0 is not.
  template <class T>
  static Mask of_nonzeros(MatrixView<const T> w) {
    Mask mask(w.shape());
    for (index_t i = 0; i < w.rows(); ++i)
      for (index_t j = 0; j < w.cols(); ++j)
        if (!(w(i, j) == T{0})) mask.set(i, j);
    return mask;
  }
  static Mask of_nonzeros(MatrixView<const float> w) { return of_nonzeros<float>(w); }

  MatrixShape shape() const noexcept { return shape_; }
  index_t rows() const noexcept { return shape_.rows; }
  index_t cols() const noexcept { return shape_.cols; }
  bool operator()(index_t i, index_t j) const noexcept { return (row_words(i)[word(j)] >> (j % kWordBits) & 1) != 0; }
  void set(index_t i, index_t j, bool kept = true) noexcept {
    const std::uint64_t bit = std::uint64_t{1} << (j % kWordBits);
    std::uint64_t& w = row_words(i)[word(j)];
    w = kept ? w | bit : w & ~bit;
  }
  /// The words of a row; bits past the last column are 0 and must stay so. Rows may be written at once.
  std::span<const std::uint64_t> row_words(index_t i) const noexcept {
    return std::span(words_).subspan(static_cast<std::size_t>(i * words_per_row_),
                                     static_cast<std::size_t>(words_per_row_));
  }
  std::span<std::uint64_t> row_words(index_t i) noexcept {
    return std::span(words_).subspan(static_cast<std::size_t>(i * words_per_row_),
                                     static_cast<std::size_t>(words_per_row_));
  }
  /// Also keeps the columns first + k of a row whose bit k is set, for k < n; bits[k / 64] holds bit k.
  void keep_columns(index_t row, index_t first, index_t n, const std::uint64_t* bits) noexcept {
    std::uint64_t* to = row_words(row).data() + first / kWordBits;
    const index_t shift = first % kWordBits;
    for (index_t k = 0; k < n; k += kWordBits, ++bits, ++to) {
      const std::uint64_t word = n - k < kWordBits ? *bits & ((std::uint64_t{1} << (n - k)) - 1) : *bits;
      to[0] |= word << shift;
      if (shift > 0 && (word >> (kWordBits - shift)) != 0) to[1] |= word >> (kWordBits - shift);
    }
  }
  /// The bits of 64 columns from `first` on, 0 for those past the last one.
  std::uint64_t columns_from(index_t row, index_t first) const noexcept {
    const std::span<const std::uint64_t> from = row_words(row);
    const auto w = static_cast<std::size_t>(first / kWordBits);
    const index_t shift = first % kWordBits;
    const std::uint64_t low = from[w] >> shift;
    return shift == 0 || w + 1 == from.size() ? low : low | from[w + 1] << (kWordBits - shift);
  }
  std::size_t memory_bytes() const noexcept { return words_.size() * sizeof(std::uint64_t); }

  // Statistics.

  index_t count() const noexcept { return ones(words_); }  ///< weights kept
  index_t row_count(index_t i) const noexcept { return ones(row_words(i)); }
  std::vector<index_t> row_counts() const {
    std::vector<index_t> counts;
    for (index_t i = 0; i < rows(); ++i) counts.push_back(row_count(i));
    return counts;
  }
  std::vector<index_t> column_counts() const {
    std::vector<index_t> counts(static_cast<std::size_t>(cols()));
    for (index_t i = 0; i < rows(); ++i)
      for (index_t j = 0; j < cols(); ++j) counts[static_cast<std::size_t>(j)] += (*this)(i, j) ? 1 : 0;
    return counts;
  }
  /// Fraction kept; 1 for an empty matrix.
  double density() const noexcept {
    return words_.empty() ? 1.0 : static_cast<double>(count()) / static_cast<double>(rows() * cols());
  }
  double sparsity() const noexcept { return 1.0 - density(); }

  /// Row and first column of the first group of `of` neighbours with more than `keep` kept, {-1, -1} if there is none.
  /// The last group of a row may be short.
  MatrixShape find_nm_violation(index_t keep, index_t of) const noexcept {
    for (index_t i = 0; i < rows(); ++i)
      for (index_t j = 0; j < cols(); j += of) {
        index_t kept = 0;
        for (index_t k = j; k < std::min(cols(), j + of); ++k) kept += (*this)(i, k) ? 1 : 0;
        if (kept > keep) return {i, j};
      }
    return {-1, -1};
  }
  bool is_nm(index_t keep, index_t of) const noexcept { return find_nm_violation(keep, of).rows < 0; }
  /// What an N:M encoder requires. ValueError naming the first group that keeps more.
  void require_nm(const char* function, index_t keep, index_t of) const {
    const MatrixShape at = find_nm_violation(keep, of);
    if (at.rows >= 0)
      throw ValueError(std::string(function) + ": more than " + std::to_string(keep) + " of " + std::to_string(of) +
                       " weights are kept in row " + std::to_string(at.rows) + " from column " +
                       std::to_string(at.cols));
  }
  /// Whether every block is kept or pruned as a whole.
  bool is_blocks(MatrixShape block) const {
    const Mask any = any_of_blocks(block);
    for (index_t i = 0; i < rows(); ++i)
      for (index_t j = 0; j < cols(); ++j)
        if ((*this)(i, j) != any(i / block.rows, j / block.cols)) return false;
    return true;
  }
  /// Of every block [block.rows, block.cols], whether any weight is kept: the non-zero blocks of a block-sparse matrix.
  Mask any_of_blocks(MatrixShape block) const {
    if (block.rows < 1 || block.cols < 1)
      throw ShapeError("Mask::any_of_blocks: blocks of " + to_string(block) + ", at least 1x1 needed");
    Mask any({ceil_div(rows(), block.rows), ceil_div(cols(), block.cols)});
    for (index_t i = 0; i < rows(); ++i)
      for (index_t j = 0; j < cols(); ++j)
        if ((*this)(i, j)) any.set(i / block.rows, j / block.cols);
    return any;
  }

  // Composition. ShapeError for masks of another shape.

  Mask& operator&=(const Mask& other) { return combine(other, std::bit_and<>()); }
  Mask& operator|=(const Mask& other) { return combine(other, std::bit_or<>()); }
  friend Mask operator&(Mask a, const Mask& b) { return std::move(a &= b); }
  friend Mask operator|(Mask a, const Mask& b) { return std::move(a |= b); }
  friend Mask operator~(Mask a) {
    for (std::uint64_t& w : a.words_) w = ~w;
    a.clear_padding();
    return a;
  }
  friend bool operator==(const Mask&, const Mask&) = default;

  /// Pruned weights become +0. ShapeError for another shape.
  template <class T>
  void apply(MatrixView<T> w) const {
    if (w.shape() != shape_)
      throw ShapeError("Mask::apply: w is " + to_string(w.shape()) + ", the mask " + to_string(shape_));
    for (index_t i = 0; i < rows(); ++i) {
      T* row = w.row_data(i);
      index_t first = 0;
      for (const std::uint64_t word : row_words(i)) {
        std::uint64_t pruned = ~word;
        if (cols() - first < kWordBits) pruned &= (std::uint64_t{1} << (cols() - first)) - 1;
        for (; pruned != 0; pruned &= pruned - 1) row[first + std::countr_zero(pruned)] = T{0};
        first += kWordBits;
      }
    }
  }

 private:
  static std::size_t word(index_t j) noexcept { return static_cast<std::size_t>(j / kWordBits); }
  static index_t ones(std::span<const std::uint64_t> words) noexcept {
    index_t sum = 0;
    for (const std::uint64_t w : words) sum += std::popcount(w);
    return sum;
  }
  void clear_padding() noexcept {
    if (cols() % kWordBits == 0) return;
    for (index_t i = 0; i < rows(); ++i) row_words(i).back() &= (std::uint64_t{1} << (cols() % kWordBits)) - 1;
  }
  template <class Op>
  Mask& combine(const Mask& other, const Op& op) {
    if (other.shape_ != shape_)
      throw ShapeError("Mask: one is " + to_string(shape_) + ", the other " + to_string(other.shape_));
    for (std::size_t k = 0; k < words_.size(); ++k) words_[k] = op(words_[k], other.words_[k]);
    return *this;
  }

  MatrixShape shape_;
  index_t words_per_row_ = 0;
  std::vector<std::uint64_t> words_;
};

namespace detail {

inline void set_bit(std::uint64_t* words, index_t j) noexcept { words[j / 64] |= std::uint64_t{1} << (j % 64); }

/// Sets the bits of the `count` largest of n scores, the lower index first where they are equal. No NaN; the words are
/// 0 before.
template <class T>
void keep_largest_reference(const T* scores, index_t n, index_t count, std::uint64_t* words) {
  if (count <= 0) return;
  T threshold = -std::numeric_limits<T>::infinity();
  if (count < n) {
    std::vector<T> sorted(scores, scores + n);
    std::nth_element(sorted.begin(), sorted.begin() + (count - 1), sorted.end(), std::greater<>());
    threshold = sorted[static_cast<std::size_t>(count - 1)];
  }
  for (index_t j = 0; j < n; ++j)
    if (scores[j] > threshold) {
      set_bit(words, j);
      --count;
    }
  for (index_t j = 0; j < n && count > 0; ++j)
    if (scores[j] == threshold) {
      set_bit(words, j);
      --count;
    }
}

/// The same in every group of `of` scores from `first` on; the last group may be short.
template <class T>
void keep_in_groups_reference(const T* scores, index_t first, index_t n, index_t keep, index_t of,
                              std::uint64_t* words) noexcept {
  for (index_t g = first; g < n; g += of) {
    const index_t end = std::min(n, g + of);
    for (index_t j = g; j < end; ++j) {
      index_t better = 0;
      for (index_t k = g; k < end; ++k) better += scores[k] > scores[j] || (scores[k] == scores[j] && k < j) ? 1 : 0;
      if (better < keep) set_bit(words, j);
    }
  }
}

/// dst[j] = |w[j]| · column[j] · row, in this order; no column: 1. Whether one of them is NaN.
template <class T>
bool weigh_reference(const T* w, const T* column, T row, index_t n, T* dst) noexcept {
  bool nan = false;
  for (index_t j = 0; j < n; ++j) {
    dst[j] = std::fabs(w[j]) * (column != nullptr ? column[j] : T{1}) * row;
    nan |= dst[j] != dst[j];
  }
  return nan;
}

template <class T>
void keep_largest(const T* scores, index_t n, index_t count, std::uint64_t* words) {
  keep_largest_reference(scores, n, count, words);
}
template <class T>
void keep_in_groups(const T* scores, index_t n, index_t keep, index_t of, std::uint64_t* words) {
  keep_in_groups_reference(scores, 0, n, keep, of, words);
}
template <class T>
bool weigh(const T* w, const T* column, T row, index_t n, T* dst) {
  return weigh_reference(w, column, row, n, dst);
}
#if !defined(BLOCKPACK_HEADERS_ONLY)
/// The same through the kernels of the active level.
BLOCKPACK_API void keep_largest(const float* scores, index_t n, index_t count, std::uint64_t* words);
BLOCKPACK_API void keep_in_groups(const float* scores, index_t n, index_t keep, index_t of, std::uint64_t* words);
BLOCKPACK_API bool weigh(const float* w, const float* column, float row, index_t n, float* dst);
/// The largest of every group weighed, without memory for scores; the words are 0 before. False, and the words are 0,
/// for groups of a size that no kernel takes and where a score may be NaN.
BLOCKPACK_API bool keep_weighed_in_groups(const float* w, const float* column, float row, index_t n, index_t keep,
                                          index_t of, std::uint64_t* words);
#endif

[[noreturn]] inline void throw_nan_score(const char* function, index_t row, index_t col) {
  throw ValueError(std::string(function) + ": the score is NaN at row " + std::to_string(row) + ", column " +
                   std::to_string(col));
}

/// Calls row_scores(i, dst), which writes the scores of row i and says whether one of them is NaN, then throws for it.
template <class T, class RowScores>
void checked_scores(const char* function, const RowScores& row_scores, index_t i, std::span<T> dst) {
  if (!row_scores(i, dst)) return;
  for (std::size_t j = 0; j < dst.size(); ++j)
    if (dst[j] != dst[j]) throw_nan_score(function, i, static_cast<index_t>(j));
}

/// Rows of scores that are there already.
template <class T>
struct StoredScores {
  MatrixView<const T> scores;

  bool operator()(index_t i, std::span<T> dst) const noexcept {
    bool nan = false;
    for (std::size_t j = 0; j < dst.size(); ++j) {
      dst[j] = scores.row(i)[j];
      nan |= dst[j] != dst[j];
    }
    return nan;
  }
};

/// The mask of a pattern whose scores come row by row. Group and row scopes read each row once and keep none; the
/// others hold all scores, blocks theirs.
template <class T, class RowScores>
Mask select_rows(const char* function, MatrixShape shape, const MaskPattern& pattern, const Execution& how,
                 const RowScores& row_scores) {
  check_pattern(function, shape, pattern);
  Mask mask(shape);
  if (shape.rows == 0 || shape.cols == 0) return mask;
  constexpr index_t kRows = 16;
  const auto for_rows = [&](index_t rows, const auto& body) {
    parallel_for(how, ceil_div(rows, kRows),
                 [&](index_t task) { body(task * kRows, std::min(rows, (task + 1) * kRows)); });
  };
  const auto cols = static_cast<std::size_t>(shape.cols);
  if (pattern.scope == MaskScope::group || pattern.scope == MaskScope::row) {
    const bool groups = pattern.scope == MaskScope::group;
    for_rows(shape.rows, [&](index_t begin, index_t end) {
      std::vector<T> scores(cols);
      for (index_t i = begin; i < end; ++i) {
        std::uint64_t* words = mask.row_words(i).data();
        if constexpr (requires { row_scores.keep_in_groups(i, pattern.keep, pattern.of, words); })
          if (groups && row_scores.keep_in_groups(i, pattern.keep, pattern.of, words)) continue;
        checked_scores<T>(function, row_scores, i, scores);
        if (groups)
          keep_in_groups(scores.data(), shape.cols, pattern.keep, pattern.of, words);
        else
          keep_largest(scores.data(), shape.cols, pattern.kept_of(shape.cols), words);
      }
    });
    return mask;
  }
  if (pattern.scope == MaskScope::block) {
    const MatrixShape blocks{ceil_div(shape.rows, pattern.block.rows), ceil_div(shape.cols, pattern.block.cols)};
    std::vector<double> sums(static_cast<std::size_t>(checked_mul(blocks.rows, blocks.cols, function)));
    parallel_for(how, blocks.rows, [&](index_t block_row) {
      std::vector<T> scores(cols);
      double* sum = sums.data() + block_row * blocks.cols;
      for (index_t i = block_row * pattern.block.rows; i < std::min(shape.rows, (block_row + 1) * pattern.block.rows);
           ++i) {
        checked_scores<T>(function, row_scores, i, scores);
        for (index_t b = 0; b < blocks.cols; ++b)
          for (index_t j = b * pattern.block.cols; j < std::min(shape.cols, (b + 1) * pattern.block.cols); ++j) {
            const double score = std::fabs(static_cast<double>(scores[static_cast<std::size_t>(j)]));
            sum[b] += pattern.sum_of_magnitudes ? score : strict_mul(score, score);
          }
      }
    });
    MaskPattern of_blocks = pattern;
    of_blocks.scope = pattern.per_block_row ? MaskScope::row : MaskScope::layer;
    const MatrixView<const double> block_scores(sums.data(), blocks.rows, blocks.cols);
    const Mask kept = select_rows<double>(function, blocks, of_blocks, how, StoredScores<double>{block_scores});
    parallel_for(how, blocks.rows, [&](index_t block_row) {
      const index_t first = block_row * pattern.block.rows;
      const std::span<std::uint64_t> words = mask.row_words(first);
      for (index_t j = 0; j < shape.cols; ++j)
        if (kept(block_row, j / pattern.block.cols)) set_bit(words.data(), j);
      for (index_t i = first + 1; i < std::min(shape.rows, first + pattern.block.rows); ++i)
        std::copy(words.begin(), words.end(), mask.row_words(i).begin());
    });
    return mask;
  }
  const bool by_column = pattern.scope == MaskScope::column;
  std::vector<T> scores(static_cast<std::size_t>(checked_mul(shape.rows, shape.cols, function)));
  for_rows(shape.rows, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i)
      checked_scores<T>(function, row_scores, i, std::span(scores).subspan(static_cast<std::size_t>(i) * cols, cols));
  });
  if (by_column) {  // columns of the matrix are rows of bits, turned around afterwards
    Mask turned({shape.cols, shape.rows});
    for_rows(shape.cols, [&](index_t begin, index_t end) {
      std::vector<T> column(static_cast<std::size_t>(shape.rows));
      for (index_t j = begin; j < end; ++j) {
        for (index_t i = 0; i < shape.rows; ++i)
          column[static_cast<std::size_t>(i)] = scores[static_cast<std::size_t>(i * shape.cols + j)];
        keep_largest(column.data(), shape.rows, pattern.kept_of(shape.rows), turned.row_words(j).data());
      }
    });
    for (index_t i = 0; i < shape.rows; ++i)
      for (index_t j = 0; j < shape.cols; ++j)
        if (turned(j, i)) mask.set(i, j);
    return mask;
  }
  Mask flat({1, shape.rows * shape.cols});  // the matrix as one row
  keep_largest(scores.data(), flat.cols(), pattern.kept_of(flat.cols()), flat.row_words(0).data());
  for (index_t i = 0; i < shape.rows; ++i)
    for (index_t j = 0; j < shape.cols; j += Mask::kWordBits) {
      const std::uint64_t bits = flat.columns_from(0, i * shape.cols + j);
      mask.keep_columns(i, j, std::min(Mask::kWordBits, shape.cols - j), &bits);
    }
  return mask;
}

}  // namespace detail

/// The mask of the largest scores a pattern allows; where two are equal, the one of the lower index is kept. Scores may
/// have any sign and be infinite (blocks compare sums of their squares or magnitudes).
///
/// Shapes:  score [out, in], float or double.
/// Errors:  ValueError naming row and column of a NaN score; those of MaskPattern.
/// Cost:    group and row scopes read the scores once and keep a row of them; the others copy them.
template <class T>
Mask select_mask(MatrixView<const T> score, const MaskPattern& pattern, const Execution& how = {}) {
  return detail::select_rows<T>("select_mask", score.shape(), pattern, how, detail::StoredScores<T>{score});
}

/// N:M: of every `of` neighbours in a row, the `keep` of largest score.
template <class T>
Mask select_nm(MatrixView<const T> score, index_t keep, index_t of, Tail tail = Tail::reject,
               const Execution& how = {}) {
  return select_mask(score, MaskPattern::nm(keep, of, tail), how);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
