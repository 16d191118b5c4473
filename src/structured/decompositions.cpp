// SPDX-License-Identifier: Apache-2.0
#include <complex>

#include "blockpack/structured/decompositions_eigen.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace decompositions {

#define BLOCKPACK_MULTIPLY(T) \
  template BLOCKPACK_API void multiply(Product, MatrixView<const T>, MatrixView<const T>, MatrixView<T>);
BLOCKPACK_MULTIPLY(float)
BLOCKPACK_MULTIPLY(double)
BLOCKPACK_MULTIPLY(std::complex<float>)
BLOCKPACK_MULTIPLY(std::complex<double>)

#define BLOCKPACK_SVD(T) \
  template BLOCKPACK_API void thin_svd(MatrixView<const T>, MatrixView<T>, std::span<double>, MatrixView<T>);
BLOCKPACK_SVD(double)
BLOCKPACK_SVD(std::complex<double>)

template BLOCKPACK_API void pivoted_qr(MatrixView<const double>, MatrixView<double>, MatrixView<double>,
                                       std::span<index_t>);

#define BLOCKPACK_SOLVERS(T)                                                            \
  template BLOCKPACK_API void householder_basis(MatrixView<T>);                         \
  template BLOCKPACK_API bool cholesky(MatrixView<T>);                                  \
  template BLOCKPACK_API void divide_by_transposed(MatrixView<T>, MatrixView<const T>); \
  template BLOCKPACK_API void divide(MatrixView<T>, MatrixView<const T>);
BLOCKPACK_SOLVERS(float)
BLOCKPACK_SOLVERS(double)

}  // namespace decompositions
}  // namespace blockpack::inline BLOCKPACK_ABI
