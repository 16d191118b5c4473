// SPDX-License-Identifier: Apache-2.0
// The elements of a row are adjacent.
// message: the elements of a row must be adjacent
#include "blockpack/core/eigen.hpp"

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
#if defined(WRONG)
using Stride = Eigen::Stride<Eigen::Dynamic, 2>;
#else
using Stride = Eigen::OuterStride<>;
#endif
auto rows(const Eigen::Map<Matrix, 0, Stride>& m) { return blockpack::view(m); }
