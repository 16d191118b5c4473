// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The operators the conformance suite runs over. Each entry makes one from seeded weights, reopens it from its
/// sections, and says how far a product may be from the decoded one.

#include <algorithm>
#include <cmath>
#include <span>
#include <string_view>
#include <tuple>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/compose.hpp"
#include "blockpack/core/dense.hpp"
#include "support/product_check.hpp"
#include "support/random.hpp"

namespace blockpack::test::conformance {

/// A row matrix of format F made by `Make`, a function object that returns the format.
template <class Make, PackPolicy::Kind kPolicy = PackPolicy::Kind::on_first_use>
struct Rows {
  using Format = decltype(Make{}());
  static constexpr std::string_view kName = Make::kName;

  static RowMatrix<Format> make(MatrixShape shape, std::uint64_t seed) {
    const std::vector<float> w = random_weights(shape.rows, shape.cols, seed);
    PackPolicy policy;
    policy.kind = kPolicy;
    return RowMatrix<Format>::encode(MatrixView<const float>(w.data(), shape.rows, shape.cols), Make{}(), {}, policy);
  }
  static RowMatrix<Format> reopen(const RowMatrix<Format>& op, MatrixShape shape) {
    const std::vector<Section> sections = op.sections();
    return RowMatrix<Format>::from_sections(shape, op.parameters(), sections);
  }
  /// The check of y[m, n] given row m of x and row n of the decoded matrix.
  static auto checker(const RowMatrix<Format>& op) {
    const bool exact = op.parameters().exact_in_bf16();
    return [exact](std::span<const float> x, std::span<const float> w, index_t /*n*/, Activations mode) {
      return check_product(x, w, mode, exact);
    };
  }
  static auto transpose_checker(const RowMatrix<Format>&) {
    return [](std::span<const float> y, std::span<const float> w, index_t /*k*/) {
      return check_product(y, w, Activations::f32, false);
    };
  }
};

struct MakeF32 {
  static constexpr std::string_view kName = "f32";
  DenseFormat<float> operator()() const { return {}; }
};
struct MakeBf16 {
  static constexpr std::string_view kName = "bf16";
  DenseFormat<bf16> operator()() const { return {}; }
};
struct MakeFp16 {
  static constexpr std::string_view kName = "fp16";
  DenseFormat<fp16> operator()() const { return {}; }
};

/// A composition through 24 features. Both its product and its decoded matrix round in two places, so a result is
/// compared with the exact product of the decoded parts.
template <class OuterCase, class InnerCase>
struct Composed {
  static constexpr std::string_view kName = "compose";
  static constexpr index_t kMiddle = 24;
  using Outer = decltype(OuterCase::make({}, 0));
  using Inner = decltype(InnerCase::make({}, 0));
  using Op = Compose<Outer, Inner>;

  static Op make(MatrixShape shape, std::uint64_t seed) {
    return {OuterCase::make({shape.rows, kMiddle}, seed), InnerCase::make({kMiddle, shape.cols}, seed + 1)};
  }
  static Op reopen(const Op& op, MatrixShape shape) {
    const std::vector<Section> sections = op.sections();
    return Op::from_sections(shape, op.parameters(), sections);
  }
  static auto checker(const Op& op) {
    return [outer = decode(op.outer()), inner = decode(op.inner())](std::span<const float> x, std::span<const float>,
                                                                    index_t n, Activations mode) {
      std::vector<float> weights(outer.begin() + n * kMiddle, outer.begin() + (n + 1) * kMiddle);
      return through(
          x, [&](std::size_t j) { return std::span(inner).subspan(j * x.size(), x.size()); }, weights, mode);
    };
  }
  static auto transpose_checker(const Op& op) {
    std::vector<float> columns = decode(op.outer());  // [out, middle] to [middle, out]
    const auto out = static_cast<std::size_t>(op.out_features()), middle = static_cast<std::size_t>(kMiddle);
    std::vector<float> outer(columns.size());
    for (std::size_t n = 0; n < out; ++n)
      for (std::size_t j = 0; j < middle; ++j) outer[j * out + n] = columns[n * middle + j];
    return [outer, inner = decode(op.inner()), in = op.in_features()](std::span<const float> y, std::span<const float>,
                                                                      index_t k) {
      std::vector<float> weights;
      for (index_t j = 0; j < kMiddle; ++j) weights.push_back(inner[static_cast<std::size_t>(j * in + k)]);
      return through(
          y, [&](std::size_t j) { return std::span(outer).subspan(j * y.size(), y.size()); }, weights,
          Activations::f32);
    };
  }

 private:
  template <class RowMatrixType>
  static std::vector<float> decode(const RowMatrixType& op) {
    std::vector<float> w(static_cast<std::size_t>(op.out_features() * op.in_features()));
    for (index_t i = 0; i < op.out_features(); ++i)
      op.decode_rows(std::span(&i, 1), MatrixView<float>(w.data() + i * op.in_features(), 1, op.in_features()));
    return w;
  }

  /// Σ_j weights[j] · (x · first(j)), where each inner product carries its own error: |weights| times that, plus the
  /// error of the second product on operands as large as the first one can make them.
  template <class First>
  static ProductCheck through(std::span<const float> x, First&& first, const std::vector<float>& weights,
                              Activations mode) {
    ProductCheck total;
    std::vector<float> largest;
    for (std::size_t j = 0; j < weights.size(); ++j) {
      const std::span<const float> w = first(j);
      const ProductCheck part = check_product(x, w, mode, false);
      double absolute = part.bound;
      for (std::size_t i = 0; i < x.size(); ++i) absolute += std::abs(double{x[i]} * double{w[i]});
      total.value += double{weights[j]} * part.value;
      total.bound += std::abs(double{weights[j]}) * part.bound;
      largest.push_back(static_cast<float>(absolute));
    }
    total.bound += check_product(largest, weights, mode, false).bound;
    return total;
  }
};

using Operators =
    std::tuple<Rows<MakeF32>, Rows<MakeF32, PackPolicy::Kind::ahead>, Rows<MakeF32, PackPolicy::Kind::none>,
               Rows<MakeBf16>, Rows<MakeBf16, PackPolicy::Kind::none>, Rows<MakeFp16>,
               Composed<Rows<MakeF32>, Rows<MakeBf16>>>;

}  // namespace blockpack::test::conformance
