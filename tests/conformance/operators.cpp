// SPDX-License-Identifier: Apache-2.0
#include "conformance/operators.hpp"

#include <cmath>

#include "blockpack/core/compose.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/quant.hpp"
#include "blockpack/quant/input_transforms.hpp"
#include "support/budget.hpp"
#include "support/random.hpp"

namespace blockpack::test::conformance {
namespace {

/// A row matrix in the given format.
template <RowFormat Format>
Operator rows(const Format& format, PackPolicy policy = {}) {
  using Matrix = RowMatrix<Format>;
  Operator form;
  form.name = format.scheme();
  form.make = [format, policy](MatrixShape shape, std::uint64_t seed) -> AnyLinear {
    const std::vector<float> w = random_weights(shape.rows, shape.cols, seed);
    return Matrix::encode(MatrixView<const float>(w.data(), shape.rows, shape.cols), format, {}, policy);
  };
  form.reopen = [format, policy](const AnyLinear& op, MatrixShape shape) -> AnyLinear {
    const std::vector<Section> sections = op.sections();
    return Matrix::from_sections(shape, format, sections, policy);
  };
  form.checker = [format](const AnyLinear&) -> Operator::Check {
    return [exact = format.exact_in_bf16()](std::span<const float> x, std::span<const float> w, index_t,
                                            Activations mode) { return check_product(x, w, mode, exact); };
  };
  form.transpose_checker = [](const AnyLinear&) -> Operator::TransposeCheck {
    return [](std::span<const float> y, std::span<const float> w, index_t) {
      return check_product(y, w, Activations::f32, false);
    };
  };
  return form;
}

/// PTQ1.61 without a fit; its channels are chosen by the weights themselves.
Operator ptq161() {
  Operator form = rows(Nf4{});  // the checks of a decoded matrix
  form.name = "ptq1.61";
  form.make = [](MatrixShape shape, std::uint64_t seed) -> AnyLinear {
    const std::vector<float> w = random_weights(shape.rows, shape.cols, seed);
    std::vector<float> statistic(static_cast<std::size_t>(shape.cols), 1.0f);
    for (std::size_t i = 0; i < std::min(w.size(), statistic.size()); ++i) statistic[i] = std::abs(w[i]);
    return Ptq161Matrix::encode(MatrixView<const float>(w.data(), shape.rows, shape.cols), statistic);
  };
  form.reopen = [](const AnyLinear& op, MatrixShape shape) -> AnyLinear {
    return Ptq161Matrix::from_sections(shape, {}, op.sections());
  };
  return form;
}

std::vector<float> decode(const auto& op) {
  std::vector<float> w(static_cast<std::size_t>(op.out_features() * op.in_features()));
  for (index_t i = 0; i < op.out_features(); ++i)
    op.decode_rows(std::span(&i, 1), MatrixView<float>(w.data() + i * op.in_features(), 1, op.in_features()));
  return w;
}

/// Σ_j weights[j] · (x · first(j)), where each inner product carries its own error: |weights| times that, plus the
/// error of the second product on operands as large as the first one can make them.
template <class First>
ProductCheck through(std::span<const float> x, First&& first, const std::vector<float>& weights, Activations mode) {
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

/// A composition through a few features. Both its product and its decoded matrix round in two places, so a result is
/// compared with the exact product of the decoded parts.
Operator composed() {
  using Op = Compose<Dense<float>, Dense<bf16>>;
  static const index_t kMiddle = budget(24, 5);
  Operator form;
  form.name = "compose(f32, bf16)";
  form.make = [](MatrixShape shape, std::uint64_t seed) -> AnyLinear {
    const std::vector<float> outer = random_weights(shape.rows, kMiddle, seed);
    const std::vector<float> inner = random_weights(kMiddle, shape.cols, seed + 1);
    return Op(Dense<float>::encode(MatrixView<const float>(outer.data(), shape.rows, kMiddle)),
              Dense<bf16>::encode(MatrixView<const float>(inner.data(), kMiddle, shape.cols)));
  };
  form.reopen = [](const AnyLinear& op, MatrixShape shape) -> AnyLinear {
    const std::vector<Section> sections = op.sections();
    return Op::from_sections(shape, op.get_if<Op>()->parameters(), sections);
  };
  form.checker = [](const AnyLinear& any) -> Operator::Check {
    const Op& op = *any.get_if<Op>();
    return [outer = decode(op.outer()), inner = decode(op.inner())](std::span<const float> x, std::span<const float>,
                                                                    index_t n, Activations mode) {
      const std::vector<float> weights(outer.begin() + n * kMiddle, outer.begin() + (n + 1) * kMiddle);
      return through(
          x, [&](std::size_t j) { return std::span(inner).subspan(j * x.size(), x.size()); }, weights, mode);
    };
  };
  form.transpose_checker = [](const AnyLinear& any) -> Operator::TransposeCheck {
    const Op& op = *any.get_if<Op>();
    const std::vector<float> rows = decode(op.outer());  // [out, middle] to [middle, out]
    const auto out = static_cast<std::size_t>(op.out_features()), middle = static_cast<std::size_t>(kMiddle);
    std::vector<float> outer(rows.size());
    for (std::size_t n = 0; n < out; ++n)
      for (std::size_t j = 0; j < middle; ++j) outer[j * out + n] = rows[n * middle + j];
    return [outer, inner = decode(op.inner()), in = op.in_features()](std::span<const float> y, std::span<const float>,
                                                                      index_t k) {
      std::vector<float> weights;
      for (index_t j = 0; j < kMiddle; ++j) weights.push_back(inner[static_cast<std::size_t>(j * in + k)]);
      return through(
          y, [&](std::size_t j) { return std::span(outer).subspan(j * y.size(), y.size()); }, weights,
          Activations::f32);
    };
  };
  return form;
}

/// A quantized matrix behind a transform of its input: a rotation or a scale of every feature.
template <class Inner, class MakeInner>
Operator transformed(const char* name, const MakeInner& make_inner) {
  using Op = Compose<RowMatrix<Mx>, Inner>;
  Operator form;
  form.name = name;
  form.make = [make_inner](MatrixShape shape, std::uint64_t seed) -> AnyLinear {
    const std::vector<float> w = random_weights(shape.rows, shape.cols, seed);
    return Op(RowMatrix<Mx>::encode(MatrixView<const float>(w.data(), shape.rows, shape.cols)), make_inner(shape.cols));
  };
  form.reopen = [](const AnyLinear& op, MatrixShape shape) -> AnyLinear {
    const std::vector<Section> sections = op.sections();
    return Op::from_sections(shape, op.get_if<Op>()->parameters(), sections);
  };
  // The inner product runs in float32 whatever the mode: each middle value has at most 8 roundings of its sum of
  // magnitudes, and is then an operand of the outer product.
  form.checker = [](const AnyLinear& any) -> Operator::Check {
    const Op& op = *any.get_if<Op>();
    return [outer = decode(op.outer()), inner = decode(op.inner())](std::span<const float> x, std::span<const float>,
                                                                    index_t n, Activations mode) {
      const std::size_t in = x.size();
      const std::span<const float> weights = std::span(outer).subspan(static_cast<std::size_t>(n) * in, in);
      ProductCheck check;
      std::vector<float> largest;
      for (std::size_t j = 0; j < in; ++j) {
        double middle = 0, magnitude = 0;
        for (std::size_t i = j / 64 * 64; i < std::min(in, j / 64 * 64 + 64); ++i) {  // no block is wider
          const double p = static_cast<double>(x[i]) * static_cast<double>(inner[j * in + i]);
          middle += p;
          magnitude += std::abs(p);
        }
        const double error = gamma_bound(8) * magnitude;
        check.value += static_cast<double>(weights[j]) * middle;
        check.bound += std::abs(static_cast<double>(weights[j])) * error;
        largest.push_back(static_cast<float>((std::abs(middle) + error) * (1 + 0x1p-23)));
      }
      check.bound += check_product(largest, weights, mode, false).bound;
      return check;
    };
  };
  form.transpose_checker = [](const AnyLinear& any) -> Operator::TransposeCheck {
    const Op& op = *any.get_if<Op>();
    return [outer = decode(op.outer()), inner = decode(op.inner()), in = static_cast<std::size_t>(op.in_features())](
               std::span<const float> y, std::span<const float>, index_t k) {
      std::vector<float> weights;
      std::vector<std::size_t> middle;
      for (std::size_t j = 0; j < in; ++j)
        if (inner[j * in + static_cast<std::size_t>(k)] != 0.0f) {
          weights.push_back(inner[j * in + static_cast<std::size_t>(k)]);
          middle.push_back(j);
        }
      std::vector<float> column(y.size());
      return through(
          y,
          [&](std::size_t j) {
            for (std::size_t n = 0; n < y.size(); ++n) column[n] = outer[n * in + middle[j]];
            return std::span<const float>(column);
          },
          weights, Activations::f32);
    };
  };
  return form;
}

}  // namespace

const std::vector<Operator>& operators() {
  static const std::vector<Operator> all = {
      rows(DenseFormat<float>{}),
      rows(DenseFormat<float>{}, PackPolicy::ahead()),
      rows(DenseFormat<float>{}, PackPolicy::none()),
      rows(DenseFormat<bf16>{}),
      rows(DenseFormat<bf16>{}, PackPolicy::none()),
      rows(DenseFormat<fp16>{}),
      composed(),
      transformed<BlockHadamard>("hadamard-b32", [](index_t features) { return BlockHadamard(features, 32); }),
      transformed<ChannelScale>("channel-scale",
                                [](index_t features) {
                                  std::vector<float> scales(static_cast<std::size_t>(features));
                                  for (std::size_t j = 0; j < scales.size(); ++j)
                                    scales[j] = 0.25f + 0.125f * static_cast<float>(j % 13);
                                  return ChannelScale(scales);
                                }),
      rows(Bfp{.mantissa_bits = 4, .block = 32}),
      rows(Bfp{.mantissa_bits = 11, .block = 16}),
      rows(Mx{.element = MxElement::e4m3}),
      rows(Mx{.element = MxElement::e5m2}),
      rows(Mx{.element = MxElement::e2m3}),
      rows(Mx{.element = MxElement::e3m2}),
      rows(Mx{.element = MxElement::e2m1}),
      rows(Mx{.element = MxElement::int8}),
      rows(GroupInt{.bits = 4, .group_size = 32}),
      rows(GroupInt{.bits = 4, .group_size = 32, .grid = GroupGrid::asymmetric}),
      rows(GroupInt{.bits = 8, .group_size = 128}),
      rows(GroupInt{.bits = 3, .group_size = 0}),
      rows(Nvfp4{}),
      rows(Nf4{}),
      rows(Ternary{}),
      rows(StatsQ{.bits = 3}),
      ptq161(),
      rows(Ternary{Ternary::kTensor, TernaryRule::mean, TernaryPacking::base3}),
      rows(Ggml{GgmlType::q4_0}),
      rows(Ggml{GgmlType::q4_1}),
      rows(Ggml{GgmlType::q5_0}),
      rows(Ggml{GgmlType::q5_1}),
      rows(Ggml{GgmlType::q8_0}),
      rows(Ggml{GgmlType::q2_k}),
      rows(Ggml{GgmlType::q3_k}),
      rows(Ggml{GgmlType::q4_k}),
      rows(Ggml{GgmlType::q5_k}),
      rows(Ggml{GgmlType::q6_k}),
      rows(Ggml{GgmlType::q8_k}),
      rows(Ggml{GgmlType::iq4_nl}),
      rows(Ggml{GgmlType::iq4_xs}),
      rows(Ggml{GgmlType::tq1_0}),
      rows(Ggml{GgmlType::tq2_0}),
      rows(Ggml{GgmlType::mxfp4}),
      rows(Ggml{GgmlType::nvfp4}),
  };
  return all;
}

}  // namespace blockpack::test::conformance
