// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Views of Eigen matrices, in place: `view(m)` for row-major matrices, vectors, maps and references,
/// `transposed_view(m)` for column-major ones, whose memory is that of the transposed row-major matrix.
///
///     Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> w(4096, 1024);
///     op.apply(view(x), view(y), how);
///
/// Nothing is copied behind the caller's back: a column-major matrix and a temporary do not compile. A view of a block
/// is `view(m).block(row, col, rows, cols)`. Views are const where the matrix is; a map is like a pointer, its own
/// constness does not matter.

#include <Eigen/Core>
#include <type_traits>

#include "blockpack/core/config.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

namespace detail {

template <class M>
inline constexpr bool kViewable = bool(M::IsRowMajor) || bool(M::IsVectorAtCompileTime);

template <class M>
constexpr void check_inner_stride() {
  static_assert(M::InnerStrideAtCompileTime == 1,
                "blockpack: the elements of a row must be adjacent; this map has an inner stride");
}

/// `data` and the extents of a matrix whose rows are its vectors.
template <class T, class M>
MatrixView<T> view_rows(T* data, const M& m) {
  static_assert(kViewable<M>,
                "blockpack: view() takes row-major matrices and this one is column-major; use transposed_view(), which "
                "views its transpose in place, or declare it with Eigen::RowMajor");
  check_inner_stride<M>();
  const index_t stride = bool(M::IsRowMajor) ? m.outerStride() : m.innerStride();
  return MatrixView<T>(data, m.rows(), m.cols(), m.rows() > 1 ? stride : m.cols());
}

template <class T, class M>
MatrixView<T> view_columns(T* data, const M& m) {
  static_assert(!bool(M::IsRowMajor) || bool(M::IsVectorAtCompileTime),
                "blockpack: transposed_view() takes column-major matrices and this one is row-major; use view()");
  check_inner_stride<M>();
  const index_t stride = bool(M::IsRowMajor) ? m.innerStride() : m.outerStride();
  return MatrixView<T>(data, m.cols(), m.rows(), m.cols() > 1 ? stride : m.rows());
}

}  // namespace detail

/// A row-major matrix, or a vector: a column vector of n values is [n, 1], a row vector [1, n].
/// The view is valid until the matrix is resized or dies.
template <class Derived>
MatrixView<const typename Derived::Scalar> view(const Eigen::PlainObjectBase<Derived>& m) {
  return detail::view_rows(m.data(), m.derived());
}
template <class Derived>
MatrixView<typename Derived::Scalar> view(Eigen::PlainObjectBase<Derived>& m) {
  return detail::view_rows(m.data(), m.derived());
}
/// A temporary matrix dies before its view is used.
template <class Derived>
void view(const Eigen::PlainObjectBase<Derived>&& m) = delete;

/// Memory that a map adopts. ShapeError when its rows overlap or run backwards.
template <class Plain, int Options, class Stride>
auto view(Eigen::Map<Plain, Options, Stride> m) {
  using T = std::remove_pointer_t<decltype(m.data())>;
  return detail::view_rows<T>(m.data(), m);
}

/// What an Eigen::Ref refers to.
template <class Plain, int Options, class Stride>
MatrixView<const typename Plain::Scalar> view(const Eigen::Ref<Plain, Options, Stride>& m) {
  return detail::view_rows(m.data(), m);
}
template <class Plain, int Options, class Stride>
requires(!std::is_const_v<Plain>) MatrixView<typename Plain::Scalar> view(Eigen::Ref<Plain, Options, Stride>& m) {
  return detail::view_rows(m.data(), m);
}
/// An Eigen::Ref to const may own a copy, which dies with it.
template <class Plain, int Options, class Stride>
void view(const Eigen::Ref<Plain, Options, Stride>&& m) = delete;

/// The transpose of a column-major matrix, [cols, rows].
template <class Derived>
MatrixView<const typename Derived::Scalar> transposed_view(const Eigen::PlainObjectBase<Derived>& m) {
  return detail::view_columns(m.data(), m.derived());
}
template <class Derived>
MatrixView<typename Derived::Scalar> transposed_view(Eigen::PlainObjectBase<Derived>& m) {
  return detail::view_columns(m.data(), m.derived());
}
template <class Derived>
void transposed_view(const Eigen::PlainObjectBase<Derived>&& m) = delete;

template <class Plain, int Options, class Stride>
auto transposed_view(Eigen::Map<Plain, Options, Stride> m) {
  using T = std::remove_pointer_t<decltype(m.data())>;
  return detail::view_columns<T>(m.data(), m);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
