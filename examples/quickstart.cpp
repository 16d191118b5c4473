// SPDX-License-Identifier: Apache-2.0

/// The program of the README: weights to MXFP4, a product from the 4-bit form, and what both cost.

// [readme]
#include <blockpack/blockpack.hpp>
#include <cstdio>
#include <vector>

int main() {
  using namespace blockpack;
  const index_t out = 1024, in = 1024, tokens = 4;
  std::vector<float> w(out * in), x(tokens * in), y(tokens * out);
  fill_weights(MatrixView<float>(w.data(), out, in), /*seed=*/1);  // any row-major memory will do
  fill_normal(x, /*seed=*/2);

  const MatrixView<const float> weights(w.data(), out, in);
  const auto op = QuantizedMatrix<Mx>::encode(weights, Mx{.element = MxElement::e2m1});
  op.apply(MatrixView<const float>(x.data(), tokens, in), MatrixView<float>(y.data(), tokens, out));

  std::printf("%s: %.2f bits per weight, y[0][0] = %f\n", op.scheme().c_str(),
              8.0 * static_cast<double>(op.storage_bytes()) / (out * in), static_cast<double>(y[0]));
}
// [readme]
