// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Low rank: W ≈ left · right. rank · (in + out) parameters. Fits: structured/low_rank_fit.hpp.

#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/compose.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/structured/factor_format.hpp"
#include "blockpack/structured/roofline.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// y = (x · rightᵀ) · leftᵀ, left [out, rank], right [rank, in]. Each factor is multiplied as an operator of its own
/// format; the [tokens, rank] values between them are float32.
class LowRank {
 public:
  struct Parameters {
    index_t rank = 1;
    FactorFormat factors;
  };

  /// ShapeError unless left [out, rank] and right [rank, in] fit; those of the format.
  static LowRank encode(MatrixView<const float> left, MatrixView<const float> right, const FactorFormat& factors,
                        const EncodeOptions& options = {}) {
    if (left.cols() != right.rows())
      throw ShapeError("LowRank: left is " + to_string(left.shape()) + ", right is " + to_string(right.shape()) +
                       "; the ranks differ");
    return LowRank({right.rows(), factors}, factors.encode(left, options), factors.encode(right, options));
  }

  static LowRank from_sections(MatrixShape shape, const Parameters& parameters, std::span<const Section> sections) {
    static constexpr std::string_view kParts[] = {"left.", "right."};
    detail::require_prefixes(sections, kParts);
    return LowRank(parameters,
                   parameters.factors.open({shape.rows, parameters.rank}, detail::sections_of(sections, "left.")),
                   parameters.factors.open({parameters.rank, shape.cols}, detail::sections_of(sections, "right.")));
  }

  index_t out_features() const { return product_.out_features(); }
  index_t in_features() const { return product_.in_features(); }
  const Parameters& parameters() const noexcept { return parameters_; }
  const AnyLinear& left() const noexcept { return product_.outer(); }
  const AnyLinear& right() const noexcept { return product_.inner(); }
  std::string scheme() const {
    return "lowrank-r" + std::to_string(parameters_.rank) + "-" + parameters_.factors.scheme;
  }
  std::vector<Section> sections() const {
    std::vector<Section> all;
    detail::append_sections(all, "left.", left());
    detail::append_sections(all, "right.", right());
    return all;
  }
  std::size_t storage_bytes() const { return product_.storage_bytes(); }
  std::size_t packed_bytes() const { return product_.packed_bytes(); }
  Activations activation_mode(index_t tokens, const ApplyOptions& how = {}) const {
    return right().activation_mode(tokens, how);
  }

  /// Operations, and bytes at `element` bytes a value, of n tokens.
  index_t flops(index_t n) const { return 2 * n * parameters_.rank * (in_features() + out_features()); }
  index_t bytes(index_t n, Fusion fusion = Fusion::full, index_t element = 2) const {
    const index_t r = parameters_.rank;
    return layer_bytes(n, in_features(), out_features(), r * (in_features() + out_features()),
                       low_rank_passes(fusion) * n * r, false, element);
  }

  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const { product_.apply(x, y, how); }
  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    product_.apply_transpose(y, x, how);
  }
  void decode_rows(std::span<const index_t> rows, MatrixView<float> w) const { product_.decode_rows(rows, w); }

 private:
  LowRank(Parameters parameters, AnyLinear left, AnyLinear right)
      : parameters_(std::move(parameters)), product_(std::move(left), std::move(right)) {}

  Parameters parameters_;
  Compose<AnyLinear, AnyLinear> product_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
