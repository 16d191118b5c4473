// SPDX-License-Identifier: Apache-2.0
#pragma once

/// BLAST layers: every block row of W shares a left factor, every block column a right one, and each block has a
/// diagonal coupling of its own. rank · (in + out + blocks²) parameters. Fits: structured/blast_fit.hpp.
///
/// Source: "BLAST: Block-Level Adaptive Structured Matrices for Efficient Deep Neural Network Inference",
/// arXiv:2410.21262.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/structured/block_factors.hpp"
#include "blockpack/structured/factor_format.hpp"
#include "blockpack/structured/roofline.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// W_ij = left_i · diag(coupling_ij) · right_j: v_j = x_j · right_jᵀ, z_i = Σ_j coupling_ij ∘ v_j, y_i = z_i · left_iᵀ.
///
///     left      [out, rank]                     row i · ⌈out / blocks⌉ + a
///     right     [blocks · rank, ⌈in / blocks⌉]  row j · rank + ρ
///     coupling  [blocks · blocks, rank]         row i · blocks + j
///
/// The last output block may have fewer rows; columns beyond the last input feature have no effect. The coupling is
/// under 4 % of the parameters and an error in it hits a whole block: it is stored as float32 beside factors of
/// float32, as bf16 beside all others.
class Blast {
 public:
  struct Parameters {
    index_t blocks = 1;
    index_t rank = 1;
    FactorFormat factors;
  };

  /// ShapeError unless the factors are of the shapes above, ValueError for blocks or a rank below 1; errors of the
  /// format.
  static Blast encode(MatrixShape shape, MatrixView<const float> left, MatrixView<const float> right,
                      MatrixView<const float> coupling, const Parameters& parameters, const EncodeOptions& options = {},
                      PackPolicy policy = {}) {
    check(shape, parameters);
    detail::require_factor("Blast", "left", left.shape(), left_shape(shape, parameters));
    detail::require_factor("Blast", "right", right.shape(), right_shape(shape, parameters));
    detail::require_factor("Blast", "coupling", coupling.shape(), coupling_shape(parameters));
    return Blast(shape, parameters, parameters.factors.encode(left, options), parameters.factors.encode(right, options),
                 coupling_format(parameters).encode(coupling, options), policy);
  }

  static Blast from_sections(MatrixShape shape, const Parameters& parameters, std::span<const Section> sections,
                             PackPolicy policy = {}) {
    check(shape, parameters);
    static constexpr std::string_view kParts[] = {"left.", "right.", "coupling."};
    detail::require_prefixes(sections, kParts);
    return Blast(
        shape, parameters,
        parameters.factors.open(left_shape(shape, parameters), detail::sections_of(sections, "left.")),
        parameters.factors.open(right_shape(shape, parameters), detail::sections_of(sections, "right.")),
        coupling_format(parameters).open(coupling_shape(parameters), detail::sections_of(sections, "coupling.")),
        policy);
  }

  static MatrixShape left_shape(MatrixShape shape, const Parameters& p) { return {shape.rows, p.rank}; }
  static MatrixShape right_shape(MatrixShape shape, const Parameters& p) {
    return {checked_mul(p.blocks, p.rank, "Blast"), ceil_div(shape.cols, p.blocks)};
  }
  static MatrixShape coupling_shape(const Parameters& p) { return {checked_mul(p.blocks, p.blocks, "Blast"), p.rank}; }
  static FactorFormat coupling_format(const Parameters& p) {
    return p.factors.scheme == "f32" ? FactorFormat::f32() : FactorFormat::bf16();
  }

  index_t out_features() const noexcept { return factors_.shape().rows; }
  index_t in_features() const noexcept { return factors_.shape().cols; }
  const Parameters& parameters() const noexcept { return parameters_; }
  const AnyLinear& left() const noexcept { return left_; }
  const AnyLinear& right() const noexcept { return right_; }
  const AnyLinear& coupling() const noexcept { return coupling_; }
  std::string scheme() const {
    return "blast-b" + std::to_string(parameters_.blocks) + "-r" + std::to_string(parameters_.rank) + "-" +
           parameters_.factors.scheme;
  }
  std::vector<Section> sections() const {
    std::vector<Section> all;
    detail::append_sections(all, "left.", left_);
    detail::append_sections(all, "right.", right_);
    detail::append_sections(all, "coupling.", coupling_);
    return all;
  }
  std::size_t storage_bytes() const {
    return left_.storage_bytes() + right_.storage_bytes() + coupling_.storage_bytes();
  }
  std::size_t packed_bytes() const { return factors_.packed_bytes(); }
  Activations activation_mode(index_t tokens, const ApplyOptions& how = {}) const {
    return factors_.activation_mode(tokens, how);
  }

  /// Operations, and bytes at `element` bytes a value, of n tokens.
  index_t flops(index_t n) const { return 2 * n * weights(); }
  index_t bytes(index_t n, Fusion fusion = Fusion::full, index_t element = 2) const {
    const index_t values = n * parameters_.blocks * parameters_.rank;
    return layer_bytes(n, in_features(), out_features(), weights(), blast_passes(fusion) * values, false, element);
  }

  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const { factors_.apply(x, y, how); }
  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    factors_.apply_transpose(y, x, how);
  }
  void decode_rows(std::span<const index_t> rows, MatrixView<float> w) const { factors_.decode_rows(rows, w); }

 private:
  Blast(MatrixShape shape, Parameters parameters, AnyLinear left, AnyLinear right, AnyLinear coupling,
        PackPolicy policy)
      : parameters_(std::move(parameters)),
        left_(std::move(left)),
        right_(std::move(right)),
        coupling_(std::move(coupling)),
        factors_(parts(shape, parameters_, left_, right_, coupling_), policy) {}

  static void check(MatrixShape shape, const Parameters& p) {
    if (p.blocks < 1) throw ValueError("Blast: blocks = " + std::to_string(p.blocks) + ", at least 1 needed");
    if (p.rank < 1) throw ValueError("Blast: rank = " + std::to_string(p.rank) + ", at least 1 needed");
    if (shape.rows < 0 || shape.cols < 0) throw ShapeError("Blast: the shape is negative");
  }

  static BlockFactors::Parts parts(MatrixShape shape, const Parameters& b, const AnyLinear& left,
                                   const AnyLinear& right, const AnyLinear& coupling) {
    BlockFactors::Parts p;
    p.shape = shape;
    p.in_block = ceil_div(shape.cols, b.blocks);
    p.out_block = ceil_div(shape.rows, b.blocks);
    for (index_t j = 0; j < b.blocks; ++j)
      p.right.push_back(right.row_range(j * b.rank, b.rank, b.factors.block_policy()));
    for (index_t i = 0; i < b.blocks; ++i) {
      const index_t rows = std::clamp<index_t>(shape.rows - i * p.out_block, 0, p.out_block);
      p.left.push_back(left.row_range(std::min(i * p.out_block, left.out_features()), rows, b.factors.block_policy()));
    }
    p.coupling = std::make_shared<const AlignedBuffer<float>>(detail::decode_all(coupling));
    return p;
  }

  index_t weights() const {
    return left_.out_features() * left_.in_features() + right_.out_features() * right_.in_features() +
           coupling_.out_features() * coupling_.in_features();
  }

  Parameters parameters_;
  AnyLinear left_, right_, coupling_;
  BlockFactors factors_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
