// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Monarch layers: every block of W has a rank of its own. in_blocks · out_blocks · rank · (p + q) parameters, blocks
/// of [q, p]. Fits and the layout of fly's checkpoints: structured/monarch_fit.hpp.
///
/// Source: "Monarch: Expressive Structured Matrices for Efficient and Accurate Training", arXiv:2204.00595.

#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/structured/block_factors.hpp"
#include "blockpack/structured/factor_format.hpp"
#include "blockpack/structured/output_order.hpp"
#include "blockpack/structured/roofline.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// W_kl = second_kl · first_lk: with v_l = x_l · first_lᵀ and z_k the values that the v_l hold for k,
/// y_k = z_k · second_kᵀ. p = ⌈in / in_blocks⌉, and output blocks have q = ⌈out / out_blocks⌉ features or, where the
/// blocks do not divide them, fewer; columns beyond the last input feature have no effect.
///
///     first   [in_blocks · out_blocks · rank, p]   row (l · out_blocks + k) · rank + ρ
///     second  [out, in_blocks · rank]              output block after output block, column l · rank + ρ
///
/// The interleaved order costs a pass over y.
class Monarch {
 public:
  struct Parameters {
    index_t in_blocks = 1;
    index_t out_blocks = 1;
    index_t rank = 1;  ///< of one block
    OutputOrder order = OutputOrder::blocked;
    FactorFormat factors;
  };

  /// ShapeError unless `first` and `second` are of the shapes above, ValueError for blocks or a rank below 1; errors of
  /// the format.
  static Monarch encode(MatrixShape shape, MatrixView<const float> first, MatrixView<const float> second,
                        const Parameters& parameters, const EncodeOptions& options = {}, PackPolicy policy = {}) {
    check(shape, parameters);
    detail::require_factor("Monarch", "first", first.shape(), first_shape(shape, parameters));
    detail::require_factor("Monarch", "second", second.shape(), second_shape(shape, parameters));
    return Monarch(shape, parameters, parameters.factors.encode(first, options),
                   parameters.factors.encode(second, options), policy);
  }

  static Monarch from_sections(MatrixShape shape, const Parameters& parameters, std::span<const Section> sections,
                               PackPolicy policy = {}) {
    check(shape, parameters);
    static constexpr std::string_view kParts[] = {"first.", "second."};
    detail::require_prefixes(sections, kParts);
    return Monarch(shape, parameters,
                   parameters.factors.open(first_shape(shape, parameters), detail::sections_of(sections, "first.")),
                   parameters.factors.open(second_shape(shape, parameters), detail::sections_of(sections, "second.")),
                   policy);
  }

  static MatrixShape first_shape(MatrixShape shape, const Parameters& p) {
    return {checked_mul(checked_mul(p.in_blocks, p.out_blocks, "Monarch"), p.rank, "Monarch"),
            ceil_div(shape.cols, p.in_blocks)};
  }
  static MatrixShape second_shape(MatrixShape shape, const Parameters& p) {
    return {shape.rows, checked_mul(p.in_blocks, p.rank, "Monarch")};
  }

  index_t out_features() const noexcept { return shape_.rows; }
  index_t in_features() const noexcept { return shape_.cols; }
  const Parameters& parameters() const noexcept { return parameters_; }
  const AnyLinear& first() const noexcept { return first_; }
  const AnyLinear& second() const noexcept { return second_; }
  /// With r the ranks of a row of blocks together; of layers with as many input as output blocks, blocked.
  std::string scheme() const {
    return "monarch-b" + std::to_string(parameters_.in_blocks) + "-r" +
           std::to_string(parameters_.rank * parameters_.in_blocks) + "-" + parameters_.factors.scheme;
  }
  std::vector<Section> sections() const {
    std::vector<Section> all;
    detail::append_sections(all, "first.", first_);
    detail::append_sections(all, "second.", second_);
    return all;
  }
  std::size_t storage_bytes() const { return first_.storage_bytes() + second_.storage_bytes(); }
  std::size_t packed_bytes() const { return factors_.packed_bytes(); }
  Activations activation_mode(index_t tokens, const ApplyOptions& how = {}) const {
    return factors_.activation_mode(tokens, how);
  }

  /// Operations, and bytes at `element` bytes a value, of n tokens.
  index_t flops(index_t n) const { return 2 * n * weights(); }
  index_t bytes(index_t n, Fusion fusion = Fusion::full, index_t element = 2) const {
    const index_t values = n * parameters_.in_blocks * parameters_.out_blocks * parameters_.rank;
    const bool permutes = parameters_.order == OutputOrder::interleaved && fusion != Fusion::full;
    return layer_bytes(n, in_features(), out_features(), weights(), monarch_passes(fusion) * values, permutes, element);
  }

  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    if (parameters_.order == OutputOrder::blocked) return factors_.apply(x, y, how);
    detail::check_apply_shapes("apply", shape_.rows, shape_.cols, x.shape(), y.shape(), how.epilogue);
    ApplyOptions inner = how;
    inner.epilogue = {};
    Values blocked = Values::uninitialized(checked_mul(x.rows(), blocked_rows(), "apply"));
    const MatrixView<float> z(blocked.data(), x.rows(), blocked_rows());
    factors_.apply(x, z, inner);
    parallel_for(how.execution, x.rows(), [&](index_t m) {
      for (index_t n = 0; n < shape_.rows; ++n)
        reference::store(y, m, n, reference::apply_epilogue(how.epilogue, m, n, z(m, blocked_row(n))));
    });
  }

  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    if (parameters_.order == OutputOrder::blocked) return factors_.apply_transpose(y, x, how);
    detail::check_apply_shapes("apply_transpose", shape_.cols, shape_.rows, y.shape(), x.shape(), {});
    Values blocked(checked_mul(y.rows(), blocked_rows(), "apply_transpose"));
    const MatrixView<float> z(blocked.data(), y.rows(), blocked_rows());
    for (index_t m = 0; m < y.rows(); ++m)
      for (index_t n = 0; n < shape_.rows; ++n) z(m, blocked_row(n)) = y(m, n);
    factors_.apply_transpose(z, x, how);
  }

  void decode_rows(std::span<const index_t> rows, MatrixView<float> w) const {
    detail::check_decode_rows("decode_rows", shape_, rows, w.shape());
    std::vector<index_t> blocked(rows.begin(), rows.end());
    if (parameters_.order == OutputOrder::interleaved)
      for (index_t& row : blocked) row = blocked_row(row);
    factors_.decode_rows(blocked, w);
  }

 private:
  using Values = AlignedBuffer<float>;

  Monarch(MatrixShape shape, Parameters parameters, AnyLinear first, AnyLinear second, PackPolicy policy)
      : shape_(shape),
        parameters_(std::move(parameters)),
        first_(std::move(first)),
        second_(std::move(second)),
        factors_(parts(shape_, parameters_, first_, second_), policy) {}

  static void check(MatrixShape shape, const Parameters& p) {
    if (p.in_blocks < 1 || p.out_blocks < 1)
      throw ValueError("Monarch: " + std::to_string(p.in_blocks) + " x " + std::to_string(p.out_blocks) +
                       " blocks, at least 1 x 1 needed");
    if (p.rank < 1) throw ValueError("Monarch: rank = " + std::to_string(p.rank) + ", at least 1 needed");
    if (shape.rows < 0 || shape.cols < 0) throw ShapeError("Monarch: the shape is negative");
  }

  static BlockFactors::Parts parts(MatrixShape shape, const Parameters& m, const AnyLinear& first,
                                   const AnyLinear& second) {
    BlockFactors::Parts p;
    p.in_block = ceil_div(shape.cols, m.in_blocks);
    p.out_block = ceil_div(shape.rows, m.out_blocks);
    const bool blocked = m.order == OutputOrder::blocked;
    p.shape = {blocked ? shape.rows : m.out_blocks * p.out_block, shape.cols};
    const index_t ranks = m.out_blocks * m.rank;
    index_t first_row = 0;
    for (index_t l = 0; l < m.in_blocks; ++l)
      p.right.push_back(first.row_range(l * ranks, ranks, m.factors.block_policy()));
    for (index_t k = 0; k < m.out_blocks; ++k) {
      const index_t rows = blocked ? std::clamp<index_t>(shape.rows - k * p.out_block, 0, p.out_block)
                                   : ceil_div(std::max<index_t>(shape.rows - k, 0), m.out_blocks);
      p.left.push_back(second.row_range(first_row, rows, m.factors.block_policy()));
      first_row += rows;
      for (index_t l = 0; l < m.in_blocks; ++l) p.runs.push_back({k, l, k * m.rank, m.rank});
    }
    return p;
  }

  index_t weights() const {
    return first_.out_features() * first_.in_features() + second_.out_features() * second_.in_features();
  }
  index_t blocked_rows() const noexcept { return factors_.shape().rows; }
  index_t blocked_row(index_t n) const noexcept {
    return n % parameters_.out_blocks * (blocked_rows() / parameters_.out_blocks) + n / parameters_.out_blocks;
  }

  MatrixShape shape_;
  Parameters parameters_;
  AnyLinear first_, second_;
  BlockFactors factors_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
