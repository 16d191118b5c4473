// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Factors of structured matrices for the rows of the suite, and the dense matrix they stand for.

#include <string>

#include "large_buffer.hpp"
#include "product.hpp"

namespace bench {

/// Factors of a scheme such as monarch-b16-r1024-bf16 that look like trained weights. They come from no fit: a product
/// takes as long whatever they hold, and fits take minutes. So no error against a matrix that was compressed exists.
class StructuredWeights {
 public:
  StructuredWeights(const std::string& scheme, index_t n, index_t k, std::uint64_t seed);

  const Factors& factors() const noexcept { return factors_; }
  const LargeBuffer<float>& product() const noexcept { return product_; }

 private:
  /// Throws unless some elements of the product agree with sums in double.
  void check(index_t n, index_t k) const;

  Factors factors_;
  LargeBuffer<float> left_, right_, coupling_, product_;
};

}  // namespace bench
