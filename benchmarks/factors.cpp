// SPDX-License-Identifier: Apache-2.0
#include "factors.hpp"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <stdexcept>

#include "blockpack/core/dense.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/core/scalar.hpp"

namespace bench {
namespace {

using blockpack::MatrixView;
using Kind = Factors::Kind;

/// Kind, blocks and rank of a scheme.
Factors parse(const std::string& scheme) {
  Factors f;
  std::istringstream text(scheme);
  std::string part;
  std::getline(text, part, '-');
  f.kind = part == "lowrank"   ? Kind::low_rank
           : part == "monarch" ? Kind::monarch
           : part == "blast"   ? Kind::blast
                               : Kind::block_diagonal;
  while (std::getline(text, part, '-')) {
    if (part[0] == 'r') f.rank = std::stol(part.substr(1));
    if (part[0] == 'b' && part != "bf16") f.blocks = std::stol(part.substr(1));
  }
  if (f.kind == Kind::monarch) f.rank /= f.blocks;
  return f;
}

LargeBuffer<float> filled(index_t rows, index_t cols, std::uint64_t seed, float scale) {
  LargeBuffer<float> values(rows * cols);
  blockpack::fill_weights(MatrixView<float>(values.data(), rows, cols), seed);
  for (float& v : values) v = static_cast<float>(blockpack::bf16(v * scale));
  return values;
}

/// dst = left · right.
void multiply(MatrixView<const float> left, MatrixView<const float> right, MatrixView<float> dst) {
  blockpack::RowMatrix<blockpack::DenseFormat<float>>::encode(right, {}).apply_transpose(left, dst);
}

}  // namespace

StructuredWeights::StructuredWeights(const std::string& scheme, index_t n, index_t k, std::uint64_t seed)
    : factors_(parse(scheme)), product_(n * k) {
  const index_t b = factors_.blocks, r = factors_.rank;
  if (n % b != 0 || k % b != 0) throw std::runtime_error(scheme + ": the blocks do not divide the shape");
  const index_t p = k / b, q = n / b;
  // Elements of the product are as wide as weights: sums of `ranks` products of 0.02 and left, times 1 or a coupling.
  const auto sized = [&](index_t rows, index_t cols, index_t ranks) {
    return filled(rows, cols, seed + 1, 50.0f / std::sqrt(static_cast<float>(ranks)));
  };
  const MatrixView<float> w(product_.data(), n, k);
  switch (factors_.kind) {
    case Kind::low_rank:
      right_ = filled(r, k, seed, 1.0f);
      left_ = sized(n, r, r);
      multiply({left_.data(), n, r}, {right_.data(), r, k}, w);
      break;
    case Kind::monarch:
      right_ = filled(b * b * r, p, seed, 1.0f);
      left_ = sized(n, b * r, r);
      for (index_t i = 0; i < b; ++i)
        for (index_t j = 0; j < b; ++j)
          multiply({left_.data() + i * q * b * r + j * r, q, r, b * r}, {right_.data() + (j * b + i) * r * p, r, p},
                   w.block(i * q, j * p, q, p));
      break;
    case Kind::blast:
      right_ = filled(b * r, p, seed, 1.0f);
      left_ = sized(n, r, r);
      coupling_ = filled(b * b, r, seed + 2, 50.0f);
      for (index_t i = 0; i < b; ++i)
        for (index_t j = 0; j < b; ++j) {
          LargeBuffer<float> scaled(q * r);
          for (index_t a = 0; a < q; ++a)
            for (index_t c = 0; c < r; ++c)
              scaled[a * r + c] = left_[(i * q + a) * r + c] * coupling_[(i * b + j) * r + c];
          multiply({scaled.data(), q, r}, {right_.data() + j * r * p, r, p}, w.block(i * q, j * p, q, p));
        }
      break;
    case Kind::block_diagonal:
      left_ = filled(n, p, seed, 1.0f);
      std::fill(product_.begin(), product_.end(), 0.0f);
      for (index_t i = 0; i < n; ++i) std::copy_n(left_.data() + i * p, p, w.row_data(i) + i / q * p);
      break;
  }
  factors_.left = left_.data();
  factors_.right = right_.data();
  factors_.coupling = coupling_.data();
  check(n, k);
}

void StructuredWeights::check(index_t n, index_t k) const {
  const index_t b = factors_.blocks, r = factors_.rank, p = k / b, q = n / b;
  double error = 0, norm = 0;
  for (index_t t = 0; t < 4096; ++t) {
    const index_t i = t * 7919 % n, j = t * 104729 % k;
    double sum = 0;
    for (index_t c = 0; c < r; ++c) {
      const bool monarch = factors_.kind == Kind::monarch;
      const double u = static_cast<double>(left_[monarch ? i * b * r + j / p * r + c : i * r + c]);
      const double v = static_cast<double>(right_[((monarch ? j / p * b + i / q : j / p) * r + c) * p + j % p]);
      sum += u * v * (factors_.kind == Kind::blast ? static_cast<double>(coupling_[(i / q * b + j / p) * r + c]) : 1.0);
    }
    if (factors_.kind == Kind::block_diagonal && i / q == j / p) sum = static_cast<double>(left_[i * p + j % p]);
    const double got = static_cast<double>(product_[i * k + j]);
    error += (got - sum) * (got - sum);
    norm += sum * sum;
  }
  if (!(std::sqrt(error / norm) < 1e-5)) throw std::runtime_error("the product of the factors is wrong");
}

}  // namespace bench
