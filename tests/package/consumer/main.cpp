// SPDX-License-Identifier: Apache-2.0
// A user's program: includes the library, computes through the compiled backend, catches what it throws.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "blockpack/core/dense.hpp"
#include "blockpack/core/isa.hpp"
#include "blockpack/core/random.hpp"

int main() {
  using namespace blockpack;

  // An exception of the compiled library is caught by its type here.
  ::setenv("BLOCKPACK_ISA", "no-such-level", 1);
  bool caught = false;
  try {
    static_cast<void>(active_isa());
  } catch (const UnsupportedError& error) {
    caught = true;
  }
  ::unsetenv("BLOCKPACK_ISA");
  if (!caught) return std::puts("UnsupportedError was not caught"), 1;

  constexpr index_t kOut = 37, kIn = 129, kTokens = 3;
  std::vector<float> w(kOut * kIn), x(kTokens * kIn), y(kTokens * kOut);
  fill_weights(MatrixView<float>(w.data(), kOut, kIn), 1);
  fill_normal(x, 2);
  const auto op = Dense<float>::encode(MatrixView<const float>(w.data(), kOut, kIn));
  op.apply(MatrixView<const float>(x.data(), kTokens, kIn), MatrixView<float>(y.data(), kTokens, kOut));
  for (index_t t = 0; t < kTokens; ++t) {
    for (index_t n = 0; n < kOut; ++n) {
      double sum = 0, size = 0;
      for (index_t k = 0; k < kIn; ++k) {
        const double p = static_cast<double>(x[t * kIn + k]) * static_cast<double>(w[n * kIn + k]);
        sum += p;
        size += std::fabs(p);
      }
      // gamma(r) * S with r = kIn + 1 roundings of u = 2^-24
      const double bound = static_cast<double>(kIn + 1) * 0x1p-24 / (1 - static_cast<double>(kIn + 1) * 0x1p-24) * size;
      if (!(std::fabs(static_cast<double>(y[t * kOut + n]) - sum) <= bound)) return std::puts("wrong product"), 1;
    }
  }
  std::printf("%s", kernel_report().c_str());
  return 0;
}
