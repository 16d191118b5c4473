// SPDX-License-Identifier: Apache-2.0

/// Eigen matrices as operands, without a copy: `view(m)` for row-major matrices, `transposed_view(m)` for Eigen's
/// default, column-major ones. Blocks and strides work too.

#include <Eigen/Dense>
#include <cstdio>
#include <cstdlib>

#include "blockpack/core/dense.hpp"
#include "blockpack/core/eigen.hpp"

int main() {
  using namespace blockpack;
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Eigen::Index out = 300, in = 200, tokens = 7;
  std::srand(1);
  const RowMajor w = RowMajor::Random(out, in);
  const RowMajor x = RowMajor::Random(tokens, in);
  const RowMajor expected = x * w.transpose();

  // Weights are read where they lie; the result is written into an Eigen matrix.
  const auto op = dense_view(view(w));
  RowMajor y(tokens, out);
  ApplyOptions how;
  how.activations = Activations::f32;
  op.apply(view(x), view(y), how);
  std::printf("row-major weights in place:      largest difference to Eigen %.2e\n",
              static_cast<double>((y - expected).cwiseAbs().maxCoeff()));

  // A column-major [in, out] matrix is the row-major [out, in] one.
  const Eigen::MatrixXf wt = w.transpose();
  RowMajor y2(tokens, out);
  dense_view(transposed_view(wt)).apply(view(x), view(y2), how);
  std::printf("column-major weights transposed: same bits: %s\n", y2 == y ? "yes" : "no");

  // A slice of a wider result: columns 100 to 399 of a [tokens, 1000] matrix.
  RowMajor wide = RowMajor::Zero(tokens, 1000);
  op.apply(view(x), view(wide).block(0, 100, tokens, out), how);
  const float outside = wide.leftCols(100).cwiseAbs().sum() + wide.rightCols(600).cwiseAbs().sum();
  std::printf("into a slice of a wider matrix:  same bits: %s, written outside: %g\n",
              wide.middleCols(100, out) == y ? "yes" : "no", static_cast<double>(outside));

  // bf16 weights take half the memory and give about 2^-9 relative error.
  const auto half = Dense<bf16>::encode(view(w));
  RowMajor y3(tokens, out);
  half.apply(view(x), view(y3), how);
  std::printf("bf16 weights, %zu KiB for %zu:    relative error %.2e\n", half.storage_bytes() / 1024,
              op.storage_bytes() / 1024, static_cast<double>((y3 - expected).norm() / expected.norm()));
  const bool right = (y - expected).cwiseAbs().maxCoeff() < 1e-4f && y2 == y && wide.middleCols(100, out) == y;
  return right && outside == 0 ? 0 : 1;
}
