// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "blockpack/core/dense.hpp"

std::vector<float> product_elsewhere() {
  using namespace blockpack;
  const std::vector<float> w = {1, 2, 3, 4, 5, 6}, x = {1, 0, -1};
  std::vector<float> y(2);
  const auto op = Dense<float>::encode(MatrixView<const float>(w.data(), 2, 3));
  op.apply(MatrixView<const float>(x.data(), 1, 3), MatrixView<float>(y.data(), 1, 2));
  return y;
}
