// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Bone, now MiSS: an adapter of one block that the shards of the input share. In the order of the paper's modes:
///
///     bone  W'[o, c] = W[o, c] + D[c mod r, o]             D [r, out]
///     mini  W'[o, c] = W[o, c] + D[c mod r, o mod m]       D [r, m], m divides out
///     bat   W'_tile = W_tile (I + b[a]) + b[a]             b [out / r, r, r], tile = rows a r …, columns c r …
///
/// The first two are updates like LoRA whose down-projection has no parameters: s[ρ] = Σ_g x[g r + ρ], a last partial
/// shard filled up with zeros; the update costs `in` additions and 2 r out operations a token, its rank is at most
/// min(r, out). The input of bat differs for every tile row, so it has no cheap form beside W: merge it once.
///
/// Source: "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure" (first "Bone:
/// Block-Affine Adaptation"), arXiv:2409.15371; huggingface/peft, tuners/miss/layer.py. docs/adapters.md.

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/reference.hpp"
#include "blockpack/structured/adapter.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// The sum over shards of r inputs: W [r, in] with W[ρ, c] = 1 where c mod r = ρ. Stores nothing. Sums are float32 in
/// the order of the shards, whatever the activation mode.
class ShardSum {
 public:
  /// ValueError for r = 0.
  explicit ShardSum(index_t rank = 1, index_t in = 0) : rank_(rank), in_(in) {
    if (rank < 1) throw ValueError("ShardSum: rank = " + std::to_string(rank) + ", 1 or more needed");
    if (in < 0) throw ShapeError("ShardSum: the number of features is negative");
  }

  struct Parameters {};
  Parameters parameters() const noexcept { return {}; }
  /// FormatError for any section.
  static ShardSum from_sections(MatrixShape shape, const Parameters&, std::span<const Section> sections) {
    if (!sections.empty()) throw FormatError("from_sections: section " + sections[0].name + ", none needed");
    return ShardSum(shape.rows, shape.cols);
  }

  index_t out_features() const noexcept { return rank_; }
  index_t in_features() const noexcept { return in_; }
  std::vector<Section> sections() const { return {}; }
  std::size_t storage_bytes() const noexcept { return 0; }

  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    detail::check_apply_shapes("apply", rank_, in_, x.shape(), y.shape(), how.epilogue);
    const auto width = static_cast<std::size_t>(rank_);
    parallel_for(how.execution, ceil_div(x.rows(), detail::kAdapterRowsPerTask), [&](index_t task) {
      std::vector<float> sums(width), wide(x.is_bf16() ? static_cast<std::size_t>(in_) : 0);
      const index_t end = std::min(x.rows(), (task + 1) * detail::kAdapterRowsPerTask);
      for (index_t m = task * detail::kAdapterRowsPerTask; m < end; ++m) {
        if (x.is_bf16()) reference::load_row(x, m, wide);
        const float* row = x.is_bf16() ? wide.data() : x.f32().row_data(m);
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (index_t c = 0; c < in_; c += rank_) add(sums.data(), row + c, std::min(rank_, in_ - c));
        for (index_t n = 0; n < rank_; ++n)
          reference::store(y, m, n, reference::apply_epilogue(how.epilogue, m, n, sums[static_cast<std::size_t>(n)]));
      }
    });
  }
  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    if (!how.epilogue.empty()) throw ValueError("apply_transpose: an epilogue is not supported");
    detail::check_apply_shapes("apply_transpose", in_, rank_, y.shape(), x.shape(), {});
    for (index_t m = 0; m < x.rows(); ++m)
      for (index_t c = 0; c < in_; c += rank_) std::copy_n(y.row_data(m), std::min(rank_, in_ - c), x.row_data(m) + c);
  }
  void decode_rows(std::span<const index_t> rows, MatrixView<float> y) const {
    detail::check_decode_rows("decode_rows", {rank_, in_}, rows, y.shape());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::span<float> row = y.row(static_cast<index_t>(i));
      std::fill(row.begin(), row.end(), 0.0f);
      for (index_t c = rows[i]; c < in_; c += rank_) row[static_cast<std::size_t>(c)] = 1.0f;
    }
  }

 private:
  static void add(float* sums, const float* x, index_t count) noexcept {
    for (index_t n = 0; n < count; ++n) sums[n] += x[n];
  }

  index_t rank_;
  index_t in_;
};

/// The rows of an operator repeated until there are `out` of them: row o is row o mod m of the inner one [m, in].
template <TransposableOperator Inner = Dense<float>>
class RepeatedRows {
 public:
  /// ShapeError unless m >= 1 divides `out`.
  RepeatedRows(Inner inner, index_t out) : inner_(std::move(inner)), out_(out) {
    const index_t m = inner_.out_features();
    if (m < 1 || out < 0 || out % m != 0)
      throw ShapeError("RepeatedRows: " + std::to_string(out) + " rows are no multiple of " + std::to_string(m));
  }

  struct Parameters {
    index_t rows = 1;  ///< of the inner operator
    typename detail::ParametersOf<Inner>::type inner;
  };
  Parameters parameters() const requires detail::Reopenable<Inner> {
    return {inner_.out_features(), inner_.parameters()};
  }
  static RepeatedRows from_sections(MatrixShape shape, const Parameters& parameters,
                                    std::span<const Section> sections) requires detail::Reopenable<Inner> {
    return {Inner::from_sections({parameters.rows, shape.cols}, parameters.inner, sections), shape.rows};
  }

  index_t out_features() const noexcept { return out_; }
  index_t in_features() const { return inner_.in_features(); }
  const Inner& inner() const noexcept { return inner_; }
  std::vector<Section> sections() const { return inner_.sections(); }
  std::size_t storage_bytes() const { return inner_.storage_bytes(); }
  std::size_t packed_bytes() const { return detail::packed_bytes_of(inner_); }

  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    detail::check_apply_shapes("apply", out_, in_features(), x.shape(), y.shape(), how.epilogue);
    detail::CallMatrix once(x.rows(), inner_.out_features());
    const MatrixView<float> t = once.view();
    ApplyOptions plain = how;
    plain.epilogue = {};
    inner_.apply(x, t, plain);
    for (index_t m = 0; m < y.rows(); ++m)
      for (index_t n = 0; n < out_; n += t.cols())
        for (index_t j = 0; j < t.cols(); ++j)
          reference::store(y, m, n + j, reference::apply_epilogue(how.epilogue, m, n + j, t(m, j)));
  }
  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    if (!how.epilogue.empty()) throw ValueError("apply_transpose: an epilogue is not supported");
    detail::check_apply_shapes("apply_transpose", in_features(), out_, y.shape(), x.shape(), {});
    detail::CallMatrix once(y.rows(), inner_.out_features());
    ShardSum(inner_.out_features(), out_).apply(y, once.view(), how);
    inner_.apply_transpose(once.view(), x, how);
  }
  void decode_rows(std::span<const index_t> rows, MatrixView<float> y) const {
    detail::check_decode_rows("decode_rows", {out_, in_features()}, rows, y.shape());
    std::vector<index_t> inner(rows.begin(), rows.end());
    for (index_t& r : inner) r %= inner_.out_features();
    inner_.decode_rows(inner, y);
  }

 private:
  Inner inner_;
  index_t out_;
};

using BoneUpdate = AdapterUpdate<ShardSum, Dense<float>>;
using MiniUpdate = AdapterUpdate<ShardSum, RepeatedRows<>>;

template <LinearOperator Base>
using Bone = Adapted<Base, BoneUpdate>;
template <LinearOperator Base>
using MiniBone = Adapted<Base, MiniUpdate>;

namespace detail {
/// Dᵀ, encoded as float32: ValueError for what is not finite.
inline Dense<float> encode_transposed(MatrixView<const float> d) {
  CallMatrix copy(d.cols(), d.rows());
  const MatrixView<float> t = copy.view();
  for (index_t i = 0; i < d.rows(); ++i)
    for (index_t j = 0; j < d.cols(); ++j) t(j, i) = d(i, j);
  return Dense<float>::encode(t);
}
}  // namespace detail

/// The update of mode bone: W[o, c] = D[c mod r, o], D [r, out]. `up` is Dᵀ, so its stored rows are the columns of D.
/// ValueError for r = 0 or a D that is not finite.
inline BoneUpdate bone_update(MatrixView<const float> d, index_t in) {
  return {ShardSum(d.rows(), in), detail::encode_transposed(d)};
}

/// The update of mode mini: W[o, c] = D[c mod r, o mod m], D [r, m]. ShapeError unless m >= 1 divides `out`.
inline MiniUpdate mini_update(MatrixView<const float> d, MatrixShape w) {
  return {ShardSum(d.rows(), w.cols), RepeatedRows<>(detail::encode_transposed(d), w.rows)};
}

namespace detail {

template <class T>
void add_bone(const char* function, MatrixView<T> w, MatrixView<const std::type_identity_t<T>> d, T sign) {
  if (d.rows() < 1) throw ValueError(std::string(function) + ": d has no rows, the rank must be 1 or more");
  if (d.cols() < 1 || w.rows() % d.cols() != 0)
    throw ShapeError(std::string(function) + ": d has " + std::to_string(d.cols()) + " columns, a divisor of the " +
                     std::to_string(w.rows()) + " rows of w needed");
  for (index_t o = 0; o < w.rows(); ++o)
    for (index_t c = 0; c < w.cols(); ++c) w(o, c) += sign * d(c % d.rows(), o % d.cols());
}

/// M = I + b factored as P M = L U, to solve x M = v for rows x. ValueError when M is singular to working precision.
template <class T>
class AffineInverse {
 public:
  AffineInverse(MatrixView<const T> b, index_t block) : size_(b.rows()), lu_(static_cast<std::size_t>(size_ * size_)) {
    T largest = 0;
    for (index_t i = 0; i < size_; ++i) {
      order_.push_back(i);
      for (index_t j = 0; j < size_; ++j) {
        at(i, j) = b(i, j) + (i == j ? T(1) : T(0));
        largest = std::max(largest, std::abs(at(i, j)));
      }
    }
    const T tiny = largest * std::numeric_limits<T>::epsilon() * static_cast<T>(size_);
    for (index_t k = 0; k < size_; ++k) {
      index_t pivot = k;
      for (index_t i = k + 1; i < size_; ++i)
        if (std::abs(at(i, k)) > std::abs(at(pivot, k))) pivot = i;
      if (!(std::abs(at(pivot, k)) > tiny) || !std::isfinite(at(pivot, k)))
        throw ValueError("unmerge_bat: I + b[" + std::to_string(block) + "] is singular to working precision");
      if (pivot != k) {
        std::swap(order_[static_cast<std::size_t>(k)], order_[static_cast<std::size_t>(pivot)]);
        for (index_t j = 0; j < size_; ++j) std::swap(at(k, j), at(pivot, j));
      }
      for (index_t i = k + 1; i < size_; ++i) {
        const T factor = at(i, k) / at(k, k);
        at(i, k) = factor;
        for (index_t j = k + 1; j < size_; ++j) at(i, j) -= factor * at(k, j);
      }
    }
  }

  /// x = v M⁻¹, from Mᵀ xᵀ = vᵀ: forward through Uᵀ, back through Lᵀ, then the row order. v is used up.
  void solve(std::span<T> v, T* x) noexcept {
    for (index_t j = 0; j < size_; ++j) {
      T& z = v[static_cast<std::size_t>(j)];
      z /= at(j, j);
      for (index_t k = j + 1; k < size_; ++k) v[static_cast<std::size_t>(k)] -= z * at(j, k);
    }
    for (index_t j = size_ - 1; j >= 0; --j)
      for (index_t k = 0; k < j; ++k) v[static_cast<std::size_t>(k)] -= v[static_cast<std::size_t>(j)] * at(j, k);
    for (index_t j = 0; j < size_; ++j) x[order_[static_cast<std::size_t>(j)]] = v[static_cast<std::size_t>(j)];
  }

 private:
  T& at(index_t i, index_t j) noexcept { return lu_[static_cast<std::size_t>(i * size_ + j)]; }
  index_t size_;
  std::vector<T> lu_;
  std::vector<index_t> order_;
};

template <class T>
void check_bat(const char* function, MatrixView<T> w, MatrixView<const std::type_identity_t<T>> b) {
  const index_t r = b.cols();
  if (r < 1) throw ValueError(std::string(function) + ": b has no columns, the rank must be 1 or more");
  if (w.rows() % r != 0 || w.cols() % r != 0)
    throw ShapeError(std::string(function) + ": w is " + to_string(w.shape()) + ", both sides must be multiples of " +
                     std::to_string(r));
  if (b.rows() != w.rows())
    throw ShapeError(std::string(function) + ": b has " + std::to_string(b.rows()) + " rows, the " +
                     std::to_string(w.rows()) + " of w needed");
}

}  // namespace detail

/// W' of modes bone (D [r, out]) and mini (D [r, m], m divides out), in place, one addition an element.
///
/// Errors:  ShapeError unless the columns of d divide the rows of w, ValueError for r = 0. T is float or double.
template <class T>
void merge_bone(MatrixView<T> w, MatrixView<const std::type_identity_t<T>> d) {
  detail::add_bone("merge_bone", w, d, T(1));
}
/// The same taken out again, to one rounding of the merged weight.
template <class T>
void unmerge_bone(MatrixView<T> w, MatrixView<const std::type_identity_t<T>> d) {
  detail::add_bone("unmerge_bone", w, d, T(-1));
}

/// W' of mode bat, in place: W'_tile = W_tile (I + b[a]) + b[a].
///
/// Shapes:  w [out, in]; b [out, r]: b[a] is rows a r … of it, that is the tensor [out / r, r, r].
/// Errors:  ShapeError unless r divides both sides of w; ValueError for r = 0.
/// Cost:    2 r operations an element of w; tile rows in parallel. T is float or double.
template <class T>
void merge_bat(MatrixView<T> w, MatrixView<const std::type_identity_t<T>> b, const Execution& how = {}) {
  detail::check_bat("merge_bat", w, b);
  const index_t r = b.cols();
  parallel_for(how, w.rows() / r, [&](index_t a) {
    std::vector<T> sums(static_cast<std::size_t>(r));
    for (index_t i = a * r; i < (a + 1) * r; ++i) {
      for (index_t c = 0; c < w.cols(); c += r) {
        T* tile = w.row_data(i) + c;
        for (index_t j = 0; j < r; ++j) sums[static_cast<std::size_t>(j)] = tile[j] + b(i, j);
        for (index_t k = 0; k < r; ++k)
          for (index_t j = 0; j < r; ++j) sums[static_cast<std::size_t>(j)] += tile[k] * b(a * r + k, j);
        std::copy(sums.begin(), sums.end(), tile);
      }
    }
  });
}

/// The inverse, W_tile = (W'_tile - b[a]) (I + b[a])⁻¹, by LU with row pivots in T; exact to the condition of I + b[a].
///
/// Errors:  as merge_bat; ValueError that names the block when an I + b[a] is singular, before w is written.
template <class T>
void unmerge_bat(MatrixView<T> w, MatrixView<const std::type_identity_t<T>> b, const Execution& how = {}) {
  detail::check_bat("unmerge_bat", w, b);
  const index_t r = b.cols();
  std::vector<detail::AffineInverse<T>> inverses;
  for (index_t a = 0; a < w.rows() / r; ++a) inverses.emplace_back(b.rows_from(a * r, r), a);
  parallel_for(how, w.rows() / r, [&](index_t a) {
    std::vector<T> v(static_cast<std::size_t>(r));
    for (index_t i = a * r; i < (a + 1) * r; ++i) {
      for (index_t c = 0; c < w.cols(); c += r) {
        T* tile = w.row_data(i) + c;
        for (index_t j = 0; j < r; ++j) v[static_cast<std::size_t>(j)] = tile[j] - b(i, j);
        inverses[static_cast<std::size_t>(a)].solve(v, tile);
      }
    }
  });
}

/// The layer of mode bat over any base, merged once: the base decoded, adapted, kept as float32. Shapes and errors as
/// merge_bat.
template <LinearOperator Base>
Dense<float> bat_layer(const Base& base, MatrixView<const float> b, const Execution& how = {}) {
  detail::CallMatrix w(base.out_features(), base.in_features());
  detail::check_bat("bat_layer", w.view(), b);
  std::vector<index_t> rows;
  for (index_t i = 0; i < base.out_features(); ++i) rows.push_back(i);
  base.decode_rows(rows, w.view());
  merge_bat(w.view(), b, how);
  return Dense<float>::encode(w.view());
}

}  // namespace blockpack::inline BLOCKPACK_ABI
