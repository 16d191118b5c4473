// SPDX-License-Identifier: Apache-2.0

/// Which kernels a program linked with blockpack will use on this machine: the first thing to look at when something
/// is slower than expected.

#include <blockpack/core/isa.hpp>
#include <cstdio>

int main() {
  std::fputs(blockpack::kernel_report().c_str(), stdout);
  return 0;
}
