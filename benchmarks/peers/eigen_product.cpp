// SPDX-License-Identifier: Apache-2.0
// Eigen's product, in a shared library of its own: it is compiled for the machine that builds it, as a user of Eigen
// would, and its inline functions must not become those of the rest of the program.
#include <Eigen/Core>

#include "peers/eigen_product.hpp"

extern "C" BENCH_EXPORT void bench_eigen_product(const float* x, const float* w, float* y, std::ptrdiff_t m,
                                                 std::ptrdiff_t n, std::ptrdiff_t k, int threads) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Eigen::setNbThreads(threads);
  const Eigen::Map<const Matrix> weights(w, n, k);
  if (m == 1) {
    Eigen::Map<Eigen::VectorXf>(y, n).noalias() = weights * Eigen::Map<const Eigen::VectorXf>(x, k);
  } else {
    Eigen::Map<Matrix>(y, m, n).noalias() = Eigen::Map<const Matrix>(x, m, k) * weights.transpose();
  }
}

extern "C" BENCH_EXPORT const char* bench_eigen_simd() { return Eigen::SimdInstructionSetsInUse(); }
