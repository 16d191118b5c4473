// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Composition: `Compose<Outer, Inner>` is the operator W = W_outer · W_inner, applied as outer(inner(x)).

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/parts.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

namespace detail {
template <class Op>
struct ParametersOf {
  struct type {};
};
template <class Op>
requires requires(const Op& op) { op.parameters(); }
struct ParametersOf<Op> {
  using type = std::remove_cvref_t<decltype(std::declval<const Op&>().parameters())>;
};
}  // namespace detail

template <LinearOperator Outer, TransposableOperator Inner>
class Compose {
 public:
  /// ShapeError unless outer.in_features() == inner.out_features().
  Compose(Outer outer, Inner inner) : outer_(std::move(outer)), inner_(std::move(inner)) {
    if (outer_.in_features() != inner_.out_features())
      throw ShapeError("Compose: outer has in_features " + std::to_string(outer_.in_features()) +
                       ", inner has out_features " + std::to_string(inner_.out_features()));
  }

  /// What from_sections needs beside the sections.
  struct Parameters {
    index_t middle = 0;  ///< inner.out_features() = outer.in_features()
    typename detail::ParametersOf<Outer>::type outer;
    typename detail::ParametersOf<Inner>::type inner;
  };
  Parameters parameters() const { return {inner_.out_features(), outer_.parameters(), inner_.parameters()}; }

  /// The operator whose `sections()` are these. FormatError for a section of neither part; errors of the parts.
  static Compose from_sections(MatrixShape shape, const Parameters& parameters, std::span<const Section> sections) {
    static constexpr std::string_view kParts[] = {"outer.", "inner."};
    detail::require_prefixes(sections, kParts);
    return {Outer::from_sections({shape.rows, parameters.middle}, parameters.outer,
                                 detail::sections_of(sections, "outer.")),
            Inner::from_sections({parameters.middle, shape.cols}, parameters.inner,
                                 detail::sections_of(sections, "inner."))};
  }

  index_t out_features() const { return outer_.out_features(); }
  index_t in_features() const { return inner_.in_features(); }
  const Outer& outer() const noexcept { return outer_; }
  const Inner& inner() const noexcept { return inner_; }

  /// The sections of both parts, named `outer.…` and `inner.…`.
  std::vector<Section> sections() const {
    std::vector<Section> all;
    detail::append_sections(all, "outer.", outer_);
    detail::append_sections(all, "inner.", inner_);
    return all;
  }
  std::size_t storage_bytes() const { return outer_.storage_bytes() + inner_.storage_bytes(); }
  /// Of the parts that have a packed form.
  std::size_t packed_bytes() const { return detail::packed_bytes_of(outer_) + detail::packed_bytes_of(inner_); }

  /// Both parts under the same options; the epilogue belongs to the outer one. The intermediate [tokens, inner.out] is
  /// float32 and lives for the call.
  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    detail::check_apply_shapes("apply", out_features(), in_features(), x.shape(), y.shape(), how.epilogue);
    detail::CallMatrix middle(x.rows(), inner_.out_features());
    ApplyOptions first = how;
    first.epilogue = {};
    inner_.apply(x, middle.view(), first);
    outer_.apply(MatrixView<const float>(middle.view()), y, how);
  }

  void apply_transpose(MatrixView<const float> y, MatrixView<float> x,
                       const ApplyOptions& how = {}) const requires TransposableOperator<Outer> {
    detail::check_apply_shapes("apply_transpose", in_features(), out_features(), y.shape(), x.shape(), {});
    detail::CallMatrix middle(y.rows(), inner_.out_features());
    outer_.apply_transpose(y, middle.view(), how);
    inner_.apply_transpose(middle.view(), x, how);
  }

  /// Rows of the product: rows of the outer part through the transposed inner one.
  void decode_rows(std::span<const index_t> rows, MatrixView<float> y) const {
    detail::check_decode_rows("decode_rows", {out_features(), in_features()}, rows, y.shape());
    detail::CallMatrix middle(y.rows(), inner_.out_features());
    outer_.decode_rows(rows, middle.view());
    inner_.apply_transpose(middle.view(), y, ApplyOptions{});
  }

 private:
  Outer outer_;
  Inner inner_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
