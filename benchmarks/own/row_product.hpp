// SPDX-License-Identifier: Apache-2.0
#pragma once

/// blockpack behind the suite's interface, through the public API: an operator with stored values of one format.
/// Included once with the compiled backend and once with the headers alone.

#include <memory>
#include <utility>
#include <vector>

#include "blockpack/core/dense.hpp"
#include "product.hpp"

namespace bench {
namespace {

template <class Operator>
class RowProduct final : public Product {
 public:
  /// `policy`: of the copies.
  explicit RowProduct(Operator op, blockpack::Activations mode = blockpack::Activations::automatic,
                      blockpack::PackPolicy policy = blockpack::PackPolicy::ahead())
      : first_(std::make_shared<Operator>(std::move(op))), op_(*first_), policy_(policy) {
    how_.activations = mode;
  }

  void run(const Tokens& x, float* y, int threads) override {
    how_.execution.threads = threads;
    const blockpack::MatrixView<float> result(y, x.m, op_.out_features());
    if (x.bf16 != nullptr)
      op_.apply(blockpack::MatrixView<const blockpack::bf16>(reinterpret_cast<const blockpack::bf16*>(x.bf16), x.m,
                                                             op_.in_features()),
                result, how_);
    else
      op_.apply(blockpack::MatrixView<const float>(x.f32, x.m, op_.in_features()), result, how_);
  }

  std::unique_ptr<Product> copy() const override {
    std::vector<blockpack::Section> sections = first_->sections();
    for (blockpack::Section& s : sections) {
      auto bytes = blockpack::AlignedBuffer<std::byte>::uninitialized(static_cast<index_t>(s.data.bytes.size()));
      std::copy(s.data.bytes.begin(), s.data.bytes.end(), bytes.begin());
      s.data = blockpack::SharedBytes(std::move(bytes));
    }
    auto op = Operator::from_sections(first_->shape(), first_->parameters(), sections, policy_);
    if constexpr (requires { op.release_stored(); })
      if (op.packed_bytes() != 0) op.release_stored();  // memory: only the packed form is read
    return std::unique_ptr<Product>(new RowProduct(*this, std::move(op)));
  }

  double multiplies() const override {
    if constexpr (requires { op_.density(); })
      return op_.density() * static_cast<double>(op_.out_features() * op_.in_features());
    return 0;
  }
  double weight_bytes() const override { return static_cast<double>(first_->storage_bytes()); }
  void decode_row(index_t row, float* dst) const override {
    first_->decode_rows(std::span(&row, 1), blockpack::MatrixView<float>(dst, 1, op_.in_features()));
  }
  Arithmetic arithmetic() const override {
    switch (op_.activation_mode(1, how_)) {
      case blockpack::Activations::int8:
      case blockpack::Activations::int8_token:
        return Arithmetic::int8;
      case blockpack::Activations::bf16:
        return Arithmetic::bf16;
      default:
        return Arithmetic::f32;
    }
  }

 private:
  RowProduct(const RowProduct& of, Operator op)
      : first_(of.first_), op_(std::move(op)), policy_(of.policy_), how_(of.how_) {}

  std::shared_ptr<const Operator> first_;  // holds the stored form for decode_row
  Operator op_;
  blockpack::PackPolicy policy_;
  blockpack::ApplyOptions how_;
};

template <class F>
std::unique_ptr<Product> make_row_product(const Request& r) {
  using Operator = blockpack::RowMatrix<F>;
  const blockpack::MatrixView<const float> w(r.weights.data, r.weights.n, r.weights.k);
  return std::make_unique<RowProduct<Operator>>(Operator::encode(w, F{}, {}, blockpack::PackPolicy::ahead()));
}

}  // namespace
}  // namespace bench
