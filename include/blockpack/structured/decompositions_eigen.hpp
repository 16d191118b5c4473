// SPDX-License-Identifier: Apache-2.0
#pragma once

/// decompositions.hpp by Eigen.

#include <Eigen/Cholesky>
#include <Eigen/QR>
#include <Eigen/SVD>
#include <type_traits>

#include "blockpack/core/error.hpp"
#include "blockpack/structured/decompositions.hpp"
#include "blockpack/structured/eigen_map.hpp"

#if defined(BLOCKPACK_HEADERS_ONLY)
namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI {
#else
namespace blockpack::inline BLOCKPACK_ABI {
#endif
namespace decompositions {

template <class T>
void multiply(Product kind, MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> c) {
  using fit_detail::eigen_map;
  auto target = eigen_map(c);
  switch (kind) {
    case Product::plain:
      target.noalias() = eigen_map(a) * eigen_map(b);
      break;
    case Product::transposed:
      target.noalias() = eigen_map(a) * eigen_map(b).transpose();
      break;
    case Product::transposed_added:
      target.noalias() += eigen_map(a) * eigen_map(b).transpose();
      break;
  }
}

/// By divide and conquer, which a bad case may defeat; complex matrices, and what it fails on, by Jacobi rotations.
template <class T>
void thin_svd(MatrixView<const T> a, MatrixView<T> u, std::span<double> sigma, MatrixView<T> v) {
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
  constexpr unsigned kParts = Eigen::ComputeThinU | Eigen::ComputeThinV;
  // Scaled so that squares neither overflow nor vanish.
  const double largest = fit_detail::eigen_map(a).cwiseAbs().maxCoeff();
  const double unit = largest > 0.0 ? largest : 1.0;
  const Matrix scaled = fit_detail::eigen_map(a) / unit;
  const auto take = [&](const auto& svd) {
    if (svd.info() != Eigen::Success || !svd.matrixU().allFinite() || !svd.matrixV().allFinite()) return false;
    fit_detail::eigen_map(u) = svd.matrixU();
    fit_detail::eigen_map(v) = svd.matrixV();
    for (std::size_t i = 0; i < sigma.size(); ++i) sigma[i] = svd.singularValues()(static_cast<index_t>(i)) * unit;
    return true;
  };
  if constexpr (std::is_floating_point_v<T>)
    if (take(Eigen::BDCSVD<Matrix>(scaled, kParts))) return;
  if (!take(Eigen::JacobiSVD<Matrix>(scaled, kParts)))
    throw ValueError("the singular value decomposition did not converge");
}

template <class T>
void householder_basis(MatrixView<T> y) {
  const Eigen::HouseholderQR<Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>> qr(fit_detail::eigen_map(y));
  fit_detail::eigen_map(y) = qr.householderQ() * RowMajorMatrix<T>::Identity(y.rows(), y.cols());
}

template <class T>
void pivoted_qr(MatrixView<const T> a, MatrixView<T> q, MatrixView<T> r, std::span<index_t> order) {
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
  const Eigen::ColPivHouseholderQR<Matrix> qr(fit_detail::eigen_map(a));
  fit_detail::eigen_map(q) = qr.householderQ() * Matrix::Identity(q.rows(), q.cols());
  fit_detail::eigen_map(r) = qr.matrixR().topRows(r.rows()).template triangularView<Eigen::Upper>();
  for (std::size_t j = 0; j < order.size(); ++j) order[j] = qr.colsPermutation().indices()(static_cast<index_t>(j));
}

template <class T>
bool cholesky(MatrixView<T> a) {
  auto map = fit_detail::eigen_map(a);
  Eigen::Ref<RowMajorMatrix<T>, 0, Eigen::OuterStride<>> ref(map);
  const Eigen::LLT<decltype(ref), Eigen::Lower> llt(ref);
  return llt.info() == Eigen::Success && map.diagonal().allFinite();
}

template <class T>
void divide_by_transposed(MatrixView<T> x, MatrixView<const T> l) {
  auto map = fit_detail::eigen_map(x);
  const auto upper = fit_detail::eigen_map(l).transpose();
  upper.template triangularView<Eigen::Upper>().template solveInPlace<Eigen::OnTheRight>(map);
}

template <class T>
void divide(MatrixView<T> x, MatrixView<const T> l) {
  auto map = fit_detail::eigen_map(x);
  fit_detail::eigen_map(l).template triangularView<Eigen::Lower>().template solveInPlace<Eigen::OnTheRight>(map);
}

}  // namespace decompositions
}  // namespace blockpack::inline BLOCKPACK_ABI
