// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Low rank: W ≈ left · right. rank · (in + out) parameters. Fits: structured/low_rank_fit.hpp.

#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/pack_policy.hpp"
#include "blockpack/core/parts.hpp"
#include "blockpack/structured/factor_format.hpp"
#include "blockpack/structured/roofline.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// y = (x · rightᵀ) · leftᵀ, left [out, rank], right [rank, in]. Each factor is multiplied as an operator of its own
/// format; the [tokens, rank] values between them are bf16 where `left` rounds its activations to bf16 anyway, which
/// changes no bit, and float32 otherwise.
class LowRank {
 public:
  struct Parameters {
    index_t rank = 1;
    FactorFormat factors;
  };

  /// ShapeError unless left [out, rank] and right [rank, in] fit, ValueError for rank 0 of a matrix that has weights;
  /// those of the format. `policy` is that of both
  /// factors; memory is shared out between them (packed_bytes_needed), ShapeError when it is too small.
  static LowRank encode(MatrixView<const float> left, MatrixView<const float> right, const FactorFormat& factors,
                        const EncodeOptions& options = {}, PackPolicy policy = {}) {
    if (left.cols() != right.rows())
      throw ShapeError("LowRank: left is " + to_string(left.shape()) + ", right is " + to_string(right.shape()) +
                       "; the ranks differ");
    const PackPolicy each = policy_of_factors(policy);
    return LowRank({right.rows(), factors}, factors.encode(left, options, each), factors.encode(right, options, each),
                   policy);
  }

  static LowRank from_sections(MatrixShape shape, const Parameters& parameters, std::span<const Section> sections,
                               PackPolicy policy = {}) {
    static constexpr std::string_view kParts[] = {"left.", "right."};
    detail::require_prefixes(sections, kParts);
    const PackPolicy each = policy_of_factors(policy);
    return LowRank(
        parameters,
        parameters.factors.open({shape.rows, parameters.rank}, detail::sections_of(sections, "left."), each),
        parameters.factors.open({parameters.rank, shape.cols}, detail::sections_of(sections, "right."), each), policy);
  }

  index_t out_features() const { return left_.out_features(); }
  index_t in_features() const { return right_.in_features(); }
  const Parameters& parameters() const noexcept { return parameters_; }
  const AnyLinear& left() const noexcept { return left_; }
  const AnyLinear& right() const noexcept { return right_; }
  std::string scheme() const {
    return "lowrank-r" + std::to_string(parameters_.rank) + "-" + parameters_.factors.scheme;
  }
  std::vector<Section> sections() const {
    std::vector<Section> all;
    detail::append_sections(all, "left.", left_);
    detail::append_sections(all, "right.", right_);
    return all;
  }
  std::size_t storage_bytes() const { return left_.storage_bytes() + right_.storage_bytes(); }
  std::size_t packed_bytes() const { return left_.packed_bytes() + right_.packed_bytes(); }
  /// What PackPolicy::into takes at the active level.
  std::size_t packed_bytes_needed() const { return left_bytes(left_) + right_.packed_bytes_needed(); }
  Activations activation_mode(index_t tokens, const ApplyOptions& how = {}) const {
    return right_.activation_mode(tokens, how);
  }

  /// Operations, and bytes at `element` bytes a value, of n tokens.
  index_t flops(index_t n) const { return 2 * n * parameters_.rank * (in_features() + out_features()); }
  index_t bytes(index_t n, Fusion fusion = Fusion::full, index_t element = 2) const {
    const index_t r = parameters_.rank;
    return layer_bytes(n, in_features(), out_features(), r * (in_features() + out_features()),
                       low_rank_passes(fusion) * n * r, false, element);
  }

  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    detail::check_apply_shapes("apply", out_features(), in_features(), x.shape(), y.shape(), how.epilogue);
    ApplyOptions first = how;
    first.epilogue = {};
    if (left_.activation_mode(x.rows(), how) == Activations::bf16) {
      const index_t stride = round_up(parameters_.rank, 2);
      detail::CallMatrix memory(x.rows(), stride / 2);
      const MatrixView<bf16> middle(reinterpret_cast<bf16*>(memory.view().data()), x.rows(), parameters_.rank, stride);
      right_.apply(x, middle, first);
      return left_.apply(middle, y, how);
    }
    detail::CallMatrix middle(x.rows(), parameters_.rank);
    right_.apply(x, middle.view(), first);
    left_.apply(middle.view(), y, how);
  }
  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    detail::check_apply_shapes("apply_transpose", in_features(), out_features(), y.shape(), x.shape(), {});
    detail::CallMatrix middle(y.rows(), parameters_.rank);
    left_.apply_transpose(y, middle.view(), how);
    right_.apply_transpose(middle.view(), x, how);
  }
  void decode_rows(std::span<const index_t> rows, MatrixView<float> w) const {
    detail::check_decode_rows("decode_rows", {out_features(), in_features()}, rows, w.shape());
    detail::CallMatrix middle(w.rows(), parameters_.rank);
    left_.decode_rows(rows, middle.view());
    right_.apply_transpose(middle.view(), w, ApplyOptions{});
  }

 private:
  static constexpr std::size_t kAlignment = 64;

  LowRank(Parameters parameters, AnyLinear left, AnyLinear right, PackPolicy policy)
      : parameters_(std::move(parameters)), left_(std::move(left)), right_(std::move(right)) {
    if (parameters_.rank < 1 && out_features() > 0 && in_features() > 0)
      throw ValueError("LowRank: rank = " + std::to_string(parameters_.rank) + ", at least 1 needed");
    if (policy.kind != PackPolicy::Kind::into) return;
    if (policy.memory.size() < packed_bytes_needed())
      throw ShapeError("LowRank: memory for the packed form has " + std::to_string(policy.memory.size()) + " bytes, " +
                       std::to_string(packed_bytes_needed()) + " needed");
    const std::size_t half = left_bytes(left_);
    left_ = left_.row_range(0, left_.out_features(), PackPolicy::into(policy.memory.first(half)));
    right_ = right_.row_range(0, right_.out_features(), PackPolicy::into(policy.memory.subspan(half)));
  }

  /// Given memory is shared out once the factors say what they need.
  static PackPolicy policy_of_factors(PackPolicy policy) {
    return policy.kind == PackPolicy::Kind::into ? PackPolicy::none() : policy;
  }
  static std::size_t left_bytes(const AnyLinear& left) {
    return round_up(static_cast<index_t>(left.packed_bytes_needed()), static_cast<index_t>(kAlignment));
  }

  Parameters parameters_;
  AnyLinear left_, right_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
