// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <vector>

#include "blockpack/core/dense.hpp"
#include "blockpack/core/isa.hpp"

std::vector<float> product_elsewhere();

int main() {
  using namespace blockpack;
  const std::vector<float> w = {1, 2, 3, 4, 5, 6}, x = {1, 0, -1};
  std::vector<float> y(2);
  const auto op = Dense<float>::encode(MatrixView<const float>(w.data(), 2, 3));
  op.apply(MatrixView<const float>(x.data(), 1, 3), MatrixView<float>(y.data(), 1, 2));
  if (y != std::vector<float>{-2, -2} || y != product_elsewhere()) return std::puts("wrong product"), 1;
  if (active_isa() != Isa::scalar) return std::puts("headers alone must be scalar"), 1;
  std::printf("%s", kernel_report().c_str());
  return 0;
}
