// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What symmetric.hpp takes from Eigen, apart from it so that programs that link the compiled library compile none of
/// Eigen for it.

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>
#include <limits>

#include "blockpack/core/config.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI {
namespace solve_detail {

/// A symmetric matrix is its own transpose: row-major memory as a column-major matrix.
inline Eigen::MatrixXd copy_symmetric(MatrixView<const double> h) {
  Eigen::MatrixXd m(h.rows(), h.rows());
  for (index_t i = 0; i < h.rows(); ++i)
    for (index_t j = 0; j < h.rows(); ++j) m(i, j) = h(i, j);
  return m;
}

inline double largest_eigenvalue(MatrixView<const double> h) {
  if (h.rows() == 1) return h(0, 0);
  return Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(copy_symmetric(h), Eigen::EigenvaluesOnly)
      .eigenvalues()
      .maxCoeff();
}

inline void pseudoinverse(MatrixView<const double> h, MatrixView<double> inverse) {
  const index_t n = h.rows();
  if (n == 0) return;
  const Eigen::MatrixXd m = copy_symmetric(h);
  Eigen::MatrixXd result;
  const Eigen::LLT<Eigen::MatrixXd> cholesky(m);
  if (cholesky.info() == Eigen::Success && cholesky.rcond() > 1e-10) {
    result = cholesky.solve(Eigen::MatrixXd::Identity(n, n));
  } else {
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(m);
    const double least =
        static_cast<double>(n) * std::numeric_limits<double>::epsilon() * eigen.eigenvalues().cwiseAbs().maxCoeff();
    result = eigen.eigenvectors();
    for (index_t k = 0; k < n; ++k)
      result.col(k) *= eigen.eigenvalues()(k) > least ? 1.0 / eigen.eigenvalues()(k) : 0.0;
    result *= eigen.eigenvectors().transpose();
  }
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < n; ++j) inverse(i, j) = result(i, j);
}

}  // namespace solve_detail
}  // namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI
