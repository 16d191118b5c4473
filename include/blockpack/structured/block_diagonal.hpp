// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Block-diagonal layers: input block g goes to output block g and nowhere else. in · out / blocks parameters.

#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/structured/block_factors.hpp"
#include "blockpack/structured/factor_format.hpp"
#include "blockpack/structured/roofline.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// y[g·q + a] = Σ_c w[g, a, c] · x[g·p + c], p = ⌈in / blocks⌉, q = ⌈out / blocks⌉; the last blocks may have fewer
/// rows, and columns beyond the last input feature have no effect.
class BlockDiagonal {
 public:
  struct Parameters {
    index_t blocks = 1;
    FactorFormat factors;
  };

  /// Shapes: w [out, p], the blocks one below the other. Errors: ShapeError for another shape, ValueError for
  /// blocks < 1; those of the format.
  static BlockDiagonal encode(MatrixShape shape, MatrixView<const float> w, const Parameters& parameters,
                              const EncodeOptions& options = {}, PackPolicy policy = {}) {
    check(shape, parameters.blocks);
    const MatrixShape stack = stack_shape(shape, parameters.blocks);
    if (w.shape() != stack)
      throw ShapeError("BlockDiagonal: w is " + to_string(w.shape()) + ", " + to_string(stack) + " needed for " +
                       to_string(shape) + " in " + std::to_string(parameters.blocks) + " blocks");
    return BlockDiagonal(shape, parameters, parameters.factors.encode(w, options), policy);
  }

  /// The diagonal blocks of a dense w [out, in].
  static BlockDiagonal project(MatrixView<const float> w, const Parameters& parameters,
                               const EncodeOptions& options = {}, PackPolicy policy = {}) {
    check(w.shape(), parameters.blocks);
    const MatrixShape stack = stack_shape(w.shape(), parameters.blocks);
    const index_t p = stack.cols, q = ceil_div(stack.rows, parameters.blocks);
    AlignedBuffer<float> values(checked_mul(stack.rows, p, "BlockDiagonal"));
    for (index_t n = 0; n < w.rows(); ++n) {
      const index_t first = std::min(n / q * p, w.cols());
      std::copy_n(w.row_data(n) + first, std::min(p, w.cols() - first), values.data() + n * p);
    }
    return encode(w.shape(), MatrixView<const float>(values.data(), stack.rows, p), parameters, options, policy);
  }

  static BlockDiagonal from_sections(MatrixShape shape, const Parameters& parameters, std::span<const Section> sections,
                                     PackPolicy policy = {}) {
    check(shape, parameters.blocks);
    static constexpr std::string_view kParts[] = {"blocks."};
    detail::require_prefixes(sections, kParts);
    return BlockDiagonal(
        shape, parameters,
        parameters.factors.open(stack_shape(shape, parameters.blocks), detail::sections_of(sections, "blocks.")),
        policy);
  }

  /// Of the stored blocks.
  static MatrixShape stack_shape(MatrixShape shape, index_t blocks) {
    return {shape.rows, ceil_div(shape.cols, blocks)};
  }

  index_t out_features() const noexcept { return factors_.shape().rows; }
  index_t in_features() const noexcept { return factors_.shape().cols; }
  const Parameters& parameters() const noexcept { return parameters_; }
  const AnyLinear& stack() const noexcept { return stack_; }
  std::string scheme() const {
    return "blockdiag-b" + std::to_string(parameters_.blocks) + "-" + parameters_.factors.scheme;
  }
  std::vector<Section> sections() const {
    std::vector<Section> all;
    detail::append_sections(all, "blocks.", stack_);
    return all;
  }
  std::size_t storage_bytes() const { return stack_.storage_bytes(); }
  std::size_t packed_bytes() const { return factors_.packed_bytes(); }
  Activations activation_mode(index_t tokens, const ApplyOptions& how = {}) const {
    return factors_.activation_mode(tokens, how);
  }

  /// Operations, and bytes at `element` bytes a value, of n tokens.
  index_t flops(index_t n) const noexcept { return 2 * n * stack_.out_features() * stack_.in_features(); }
  index_t bytes(index_t n, Fusion = Fusion::full, index_t element = 2) const noexcept {
    return layer_bytes(n, in_features(), out_features(), stack_.out_features() * stack_.in_features(), 0, false,
                       element);
  }

  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const { factors_.apply(x, y, how); }
  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    factors_.apply_transpose(y, x, how);
  }
  void decode_rows(std::span<const index_t> rows, MatrixView<float> w) const { factors_.decode_rows(rows, w); }

 private:
  BlockDiagonal(MatrixShape shape, Parameters parameters, AnyLinear stack, PackPolicy policy)
      : parameters_(std::move(parameters)),
        stack_(std::move(stack)),
        factors_(parts(shape, parameters_, stack_), policy) {}

  static void check(MatrixShape shape, index_t blocks) {
    if (blocks < 1) throw ValueError("BlockDiagonal: blocks = " + std::to_string(blocks) + ", at least 1 needed");
    if (shape.rows < 0 || shape.cols < 0) throw ShapeError("BlockDiagonal: the shape is negative");
  }

  static BlockFactors::Parts parts(MatrixShape shape, const Parameters& parameters, const AnyLinear& stack) {
    const index_t blocks = parameters.blocks;
    BlockFactors::Parts p;
    p.shape = shape;
    p.in_block = ceil_div(shape.cols, blocks);
    p.out_block = ceil_div(shape.rows, blocks);
    p.right.resize(static_cast<std::size_t>(blocks));
    p.left.resize(static_cast<std::size_t>(blocks));
    for (index_t g = 0; g < blocks; ++g) {
      const index_t rows = std::clamp<index_t>(shape.rows - g * p.out_block, 0, p.out_block);
      if (rows > 0)
        p.tiles.push_back({g, g, stack.row_range(g * p.out_block, rows, parameters.factors.block_policy())});
    }
    return p;
  }

  Parameters parameters_;
  AnyLinear stack_;
  BlockFactors factors_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
