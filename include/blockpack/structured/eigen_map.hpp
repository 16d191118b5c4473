// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The matrices of fits, and views as such matrices.

#include <Eigen/Core>
#include <type_traits>

#include "blockpack/core/config.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI {

template <class T>
using RowMajorMatrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace fit_detail {

/// A view as an Eigen matrix, in place.
template <class T>
auto eigen_map(MatrixView<T> m) {
  using Value = std::remove_const_t<T>;
  using Plain = std::conditional_t<std::is_const_v<T>, const RowMajorMatrix<Value>, RowMajorMatrix<Value>>;
  return Eigen::Map<Plain, Eigen::Unaligned, Eigen::OuterStride<>>(m.data(), m.rows(), m.cols(),
                                                                   Eigen::OuterStride<>(m.row_stride()));
}

}  // namespace fit_detail
}  // namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI
