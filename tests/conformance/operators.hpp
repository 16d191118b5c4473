// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The operators the conformance suite runs over: how to make one from seeded weights, how to open another one
/// over its sections, and how far a product may be from the decoded one.

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "support/product_check.hpp"

namespace blockpack::test::conformance {

struct Operator {
  std::string name;
  std::function<AnyLinear(MatrixShape shape, std::uint64_t seed)> make;
  /// Over sections that hold the bytes of those of `op`, wherever they lie.
  std::function<AnyLinear(const AnyLinear& op, MatrixShape shape, std::span<const Section> sections)> reopen;
  /// The check of y[m, n], given row m of x, row n of the decoded matrix, and n.
  using Check = std::function<ProductCheck(std::span<const float> x, std::span<const float> w, index_t n, Activations)>;
  std::function<Check(const AnyLinear& op)> checker;
  /// The check of x[m, k] of the transposed product, given row m of y, column k of the decoded matrix, and k.
  using TransposeCheck = std::function<ProductCheck(std::span<const float> y, std::span<const float> w, index_t k)>;
  std::function<TransposeCheck(const AnyLinear& op)> transpose_checker;
};

/// Every form of the library.
const std::vector<Operator>& operators();

}  // namespace blockpack::test::conformance
