// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Views of two-dimensional xtensor containers and adaptors, in place and row-major: `view(a)` for xt::xtensor,
/// xt::xarray and what xt::adapt() gives. xtensor moved its headers in 0.26; both places are known here.
///
/// A column-major container does not compile, a temporary neither. A container of dynamic layout or rank is checked
/// when it is viewed.

#if __has_include(<xtensor/containers/xcontainer.hpp>)
#include <xtensor/containers/xcontainer.hpp>
#else
#include <xtensor/xcontainer.hpp>
#endif

#include <string>
#include <type_traits>

#include "blockpack/core/config.hpp"
#include "blockpack/core/error.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

namespace detail {

template <class T, class Container>
MatrixView<T> view_xtensor(T* data, const Container& a) {
  static_assert(Container::static_layout != xt::layout_type::column_major,
                "blockpack: view() takes row-major arrays and this one is column-major; use transposed_view(), which "
                "views its transpose in place, or declare it with xt::layout_type::row_major");
  if (a.dimension() != 2)
    throw ShapeError("view: the array has " + std::to_string(a.dimension()) + " dimensions, 2 needed");
  const auto rows = static_cast<index_t>(a.shape(0));
  const auto cols = static_cast<index_t>(a.shape(1));
  // xtensor gives dimensions of one element the stride 0.
  if (cols > 1 && a.strides()[1] != 1)
    throw ShapeError("view: the elements of a row must be adjacent, their stride is " + std::to_string(a.strides()[1]));
  return MatrixView<T>(data, rows, cols, rows > 1 ? static_cast<index_t>(a.strides()[0]) : cols);
}

template <class T, class Container>
MatrixView<T> transposed_view_xtensor(T* data, const Container& a) {
  static_assert(Container::static_layout != xt::layout_type::row_major,
                "blockpack: transposed_view() takes column-major arrays and this one is row-major; use view()");
  if (a.dimension() != 2)
    throw ShapeError("transposed_view: the array has " + std::to_string(a.dimension()) + " dimensions, 2 needed");
  const auto rows = static_cast<index_t>(a.shape(0));
  const auto cols = static_cast<index_t>(a.shape(1));
  if (rows > 1 && a.strides()[0] != 1)
    throw ShapeError("transposed_view: the elements of a column must be adjacent, their stride is " +
                     std::to_string(a.strides()[0]));
  return MatrixView<T>(data, cols, rows, cols > 1 ? static_cast<index_t>(a.strides()[1]) : rows);
}

}  // namespace detail

/// The view is valid until the container is resized or dies. ShapeError if it has not two dimensions or, with a dynamic
/// layout, is not row-major.
template <class Derived>
auto view(const xt::xstrided_container<Derived>& a) {
  const auto& container = static_cast<const Derived&>(a);
  return detail::view_xtensor(container.data(), container);
}
template <class Derived>
auto view(xt::xstrided_container<Derived>& a) {
  auto& container = static_cast<Derived&>(a);
  return detail::view_xtensor(container.data(), container);
}
template <class Derived>
void view(const xt::xstrided_container<Derived>&& a) = delete;

/// The transpose of a column-major container, [cols, rows].
template <class Derived>
auto transposed_view(const xt::xstrided_container<Derived>& a) {
  const auto& container = static_cast<const Derived&>(a);
  return detail::transposed_view_xtensor(container.data(), container);
}
template <class Derived>
auto transposed_view(xt::xstrided_container<Derived>& a) {
  auto& container = static_cast<Derived&>(a);
  return detail::transposed_view_xtensor(container.data(), container);
}
template <class Derived>
void transposed_view(const xt::xstrided_container<Derived>&& a) = delete;

}  // namespace blockpack::inline BLOCKPACK_ABI
