// SPDX-License-Identifier: Apache-2.0
// A temporary dies before its view is used.
// message: (use of deleted function|call to deleted function)
#include "blockpack/core/eigen.hpp"

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
Matrix make();

float first(const Matrix& kept) {
#if defined(WRONG)
  return blockpack::view(make())(0, 0) + kept(0, 0);
#else
  return blockpack::view(kept)(0, 0);
#endif
}
