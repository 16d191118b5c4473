// SPDX-License-Identifier: Apache-2.0
#pragma once

/// `AnyLinear` holds any linear operator behind one type, for models that keep a list of layers. Copies share the
/// operator.

#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/pack_policy.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

class AnyLinear {
 public:
  AnyLinear() = default;

  /// Takes the operator over. Cost: one allocation; a call through AnyLinear costs one indirect call.
  template <class Op>
  requires(!std::is_same_v<std::remove_cvref_t<Op>, AnyLinear> && LinearOperator<std::remove_cvref_t<Op>>)
      AnyLinear(Op&& op)  // NOLINT(google-explicit-constructor)
      : self_(std::make_shared<const Model<std::remove_cvref_t<Op>>>(std::forward<Op>(op))) {}

  bool empty() const noexcept { return self_ == nullptr; }

  index_t out_features() const { return self().out_features(); }
  index_t in_features() const { return self().in_features(); }
  MatrixShape shape() const { return {out_features(), in_features()}; }
  std::vector<Section> sections() const { return self().sections(); }
  std::size_t storage_bytes() const { return self().storage_bytes(); }
  std::size_t packed_bytes() const { return self().packed_bytes(); }
  /// Bytes packing takes at the active level (RowMatrix::packed_bytes_needed), 0 for operators that do not say.
  std::size_t packed_bytes_needed() const { return self().packed_bytes_needed(); }
  /// The canonical scheme string, empty for operators that have none.
  std::string scheme() const { return self().scheme(); }

  /// The mode an apply with that many tokens computes in; `automatic` for operators that do not say.
  Activations activation_mode(index_t tokens, const ApplyOptions& how = {}) const {
    return self().activation_mode(tokens, how);
  }

  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const { self().apply(x, y, how); }
  /// y = epilogue(x · Wᵀ) whose gate is x · gateᵀ: one pass over x where both are row matrices of one format
  /// (RowMatrix::apply_gated, whose errors it has), two products otherwise.
  void apply_gated(const AnyLinear& gate, ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    detail::check_gated_shapes("apply_gated", shape(), gate.shape(), x.shape(), y.shape(), how.epilogue);
    self().apply_gated(gate, x, y, how);
  }
  /// UnsupportedError when the operator has no transposed product.
  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    self().apply_transpose(y, x, how);
  }
  void decode_rows(std::span<const index_t> rows, MatrixView<float> y) const { self().decode_rows(rows, y); }

  /// Rows [first, first + count) as an operator of their own, the stored bytes shared. UnsupportedError for operators
  /// that are not stored row by row; otherwise the errors of RowMatrix::row_range.
  AnyLinear row_range(index_t first, index_t count, PackPolicy policy = {}) const {
    return self().row_range(first, count, policy);
  }

  /// Holds from now on an operator that computes from its packed form alone; copies made before keep theirs.
  /// UnsupportedError for operators that cannot (RowMatrix::release_stored).
  void release_stored() { *this = self().released(); }

  /// The operator inside, or null when it is of another type.
  template <class Op>
  const Op* get_if() const noexcept {
    const auto* model = dynamic_cast<const Model<Op>*>(self_.get());
    return model == nullptr ? nullptr : &model->op;
  }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual index_t out_features() const = 0;
    virtual index_t in_features() const = 0;
    virtual std::vector<Section> sections() const = 0;
    virtual std::size_t storage_bytes() const = 0;
    virtual std::size_t packed_bytes() const = 0;
    virtual std::size_t packed_bytes_needed() const = 0;
    virtual std::string scheme() const = 0;
    virtual Activations activation_mode(index_t tokens, const ApplyOptions& how) const = 0;
    virtual void apply(ActivationView x, ResultView y, const ApplyOptions& how) const = 0;
    virtual void apply_gated(const AnyLinear& gate, ActivationView x, ResultView y, const ApplyOptions& how) const = 0;
    virtual void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how) const = 0;
    virtual void decode_rows(std::span<const index_t> rows, MatrixView<float> y) const = 0;
    virtual AnyLinear row_range(index_t first, index_t count, PackPolicy policy) const = 0;
    virtual AnyLinear released() const = 0;
  };

  template <class Op>
  struct Model final : Interface {
    template <class Arg>
    explicit Model(Arg&& arg) : op(std::forward<Arg>(arg)) {}
    index_t out_features() const override { return op.out_features(); }
    index_t in_features() const override { return op.in_features(); }
    std::vector<Section> sections() const override { return op.sections(); }
    std::size_t storage_bytes() const override { return op.storage_bytes(); }
    std::size_t packed_bytes() const override {
      if constexpr (requires { op.packed_bytes(); }) return op.packed_bytes();
      return 0;
    }
    std::size_t packed_bytes_needed() const override {
      if constexpr (requires { op.packed_bytes_needed(); }) return op.packed_bytes_needed();
      return 0;
    }
    std::string scheme() const override {
      if constexpr (requires { op.scheme(); }) return op.scheme();
      return {};
    }
    Activations activation_mode([[maybe_unused]] index_t tokens, const ApplyOptions& how) const override {
      if constexpr (requires { op.activation_mode(tokens, how); }) return op.activation_mode(tokens, how);
      return how.activations;
    }
    void apply(ActivationView x, ResultView y, const ApplyOptions& how) const override { op.apply(x, y, how); }
    void apply_gated(const AnyLinear& gate, ActivationView x, ResultView y, const ApplyOptions& how) const override {
      if constexpr (requires { op.apply_gated(op, x, y, how); })
        if (const Op* same = gate.get_if<Op>()) return op.apply_gated(*same, x, y, how);
      detail::apply_gated_apart(op, gate, x, y, how);
    }
    void apply_transpose([[maybe_unused]] MatrixView<const float> y, [[maybe_unused]] MatrixView<float> x,
                         [[maybe_unused]] const ApplyOptions& how) const override {
      if constexpr (TransposableOperator<Op>) {
        op.apply_transpose(y, x, how);
      } else {
        throw UnsupportedError("apply_transpose: this operator has no transposed product");
      }
    }
    void decode_rows(std::span<const index_t> rows, MatrixView<float> y) const override { op.decode_rows(rows, y); }
    AnyLinear row_range([[maybe_unused]] index_t first, [[maybe_unused]] index_t count,
                        [[maybe_unused]] PackPolicy policy) const override {
      if constexpr (requires { op.row_range(first, count, policy); }) {
        return op.row_range(first, count, policy);
      } else {
        throw UnsupportedError("row_range: this operator is not stored row by row");
      }
    }
    AnyLinear released() const override {
      if constexpr (requires(Op copy) { copy.release_stored(); }) {
        Op copy = op;
        copy.release_stored();
        return copy;
      } else {
        throw UnsupportedError("release_stored: this operator computes from its stored form");
      }
    }
    Op op;
  };

  const Interface& self() const {
    if (self_ == nullptr) throw ValueError("AnyLinear: no operator inside");
    return *self_;
  }

  std::shared_ptr<const Interface> self_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
