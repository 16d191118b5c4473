// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "blockpack/core/isa.hpp"
#include "blockpack/core/scalar.hpp"

float rounded_elsewhere(float v);

int main() {
  using namespace blockpack;
  if (static_cast<float>(bf16(1.001f)) != rounded_elsewhere(1.001f)) return std::puts("two answers"), 1;
  return active_isa() == Isa::scalar ? 0 : 1;
}
