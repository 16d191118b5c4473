// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Helpers of the tests of rounding algorithms.

#include <vector>

#include "blockpack/quant/rounding.hpp"
#include "quant/synthetic_layer.hpp"

namespace blockpack::test {

/// Group integers whose scales stay in float32, as the reference has them.
class FloatScales final : public WeightGrids {
 public:
  FloatScales(const GroupInt& format, MatrixShape shape)
      : WeightGrids(shape, format.group_size == 0 ? shape.cols : format.group_size),
        parameters(static_cast<std::size_t>(shape.rows * groups())),
        format_(format) {}
  void fit(index_t row, index_t group, std::span<const float> values, std::span<const index_t>) override {
    parameters[at(row, group)] = format_.fit(values);
  }
  Grid grid(index_t row, index_t group) const override {
    const GroupParameters& p = parameters[at(row, group)];
    return {-p.zero_point, format_.max_code() - p.zero_point, p.scale};
  }
  bool set_scale(index_t row, index_t group, float scale) override {
    parameters[at(row, group)].scale = scale;
    return true;
  }
  std::size_t at(index_t row, index_t group) const { return static_cast<std::size_t>(row * groups() + group); }

  std::vector<GroupParameters> parameters;

 private:
  GroupInt format_;
};

/// For many small steps.
inline EncodeOptions one_thread() {
  EncodeOptions options;
  options.execution.threads = 1;
  return options;
}

/// The dense matrix of an operator.
template <class Op>
std::vector<float> decoded(const Op& op) {
  std::vector<float> values(static_cast<std::size_t>(op.out_features() * op.in_features()));
  for (index_t r = 0; r < op.out_features(); ++r)
    op.decode_rows(std::span(&r, 1), MatrixView<float>(values.data() + r * op.in_features(), 1, op.in_features()));
  return values;
}

/// The layer objective of a stored matrix.
template <class F>
double loss_of(const SyntheticLayer& layer, const QuantizedMatrix<F>& q) {
  const std::vector<float> values = decoded(q);
  return layer_loss(layer.w(), {values.data(), layer.shape.rows, layer.shape.cols}, layer.h);
}

/// A layer on the grids of a format that is fitted to it: at first the nearest values, for algorithms to improve on.
template <class F>
struct Rounded {
  const SyntheticLayer& layer;
  FormatGrids<F> grids;
  std::vector<float> chosen;

  Rounded(const SyntheticLayer& of, const F& format)
      : layer(of), grids(fitted(format, of.w(), one_thread()), of.shape), chosen(of.weights.size()) {
    nearest(of.w(), grids, q(), one_thread().execution);
  }
  MatrixView<float> q() { return {chosen.data(), layer.shape.rows, layer.shape.cols}; }
  double loss() { return layer_loss(layer.w(), q(), layer.h, one_thread().execution); }
  bool stores_what_it_chose() { return decoded(grids.store(MatrixView<const float>(q()))) == chosen; }
};

}  // namespace blockpack::test
