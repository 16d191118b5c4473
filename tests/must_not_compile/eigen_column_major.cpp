// SPDX-License-Identifier: Apache-2.0
// A column-major matrix is not copied behind the caller's back; the message says what to write instead.
// message: transposed_view\(\)
#include "blockpack/core/eigen.hpp"

#if defined(WRONG)
auto rows(const Eigen::MatrixXf& m) { return blockpack::view(m); }
#else
auto rows(const Eigen::MatrixXf& m) { return blockpack::transposed_view(m); }
#endif
