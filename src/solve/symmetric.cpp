// SPDX-License-Identifier: Apache-2.0
#include "blockpack/solve/symmetric.hpp"

#include "blockpack/solve/symmetric_eigen.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace detail {

double largest_eigenvalue(MatrixView<const double> h) { return solve_detail::largest_eigenvalue(h); }
void pseudoinverse(MatrixView<const double> h, MatrixView<double> inverse) { solve_detail::pseudoinverse(h, inverse); }

}  // namespace detail
}  // namespace blockpack::inline BLOCKPACK_ABI
