// SPDX-License-Identifier: Apache-2.0
// Structured operators behind the suite's interface, and the same products unfused: our dense operators of the parts
// one after the other, every intermediate in memory.
#include <algorithm>
#include <utility>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/structured/blast.hpp"
#include "blockpack/structured/block_diagonal.hpp"
#include "blockpack/structured/low_rank.hpp"
#include "blockpack/structured/monarch.hpp"
#include "large_buffer.hpp"
#include "product.hpp"

namespace bench {
namespace {

using blockpack::MatrixView;
using Kind = Factors::Kind;
using Dense = blockpack::RowMatrix<blockpack::DenseFormat<blockpack::bf16>>;
using ConstView = MatrixView<const float>;

/// Rows of the right and the left factor, columns of the left.
struct Sizes {
  explicit Sizes(const Request& r)
      : n(r.weights.n),
        k(r.weights.k),
        blocks(r.factors->blocks),
        in_block(k / blocks),
        out_block(n / blocks),
        rank(r.factors->rank),
        ranks(r.factors->kind == Kind::monarch ? blocks * rank : rank) {}
  index_t n, k, blocks, in_block, out_block;
  index_t rank;
  index_t ranks;  ///< of one input block, of one output block
};

/// What both ways share: the factors, and what a row of the suite is told.
class Base : public Product {
 public:
  explicit Base(const Request& r) : request_(r), f_(*r.factors), s_(r) {}

  double weight_bytes() const override {
    const double coupling = f_.kind == Kind::blast ? static_cast<double>(s_.blocks * s_.blocks * s_.rank) : 0.0;
    return 2 * (matrices() + coupling);
  }
  double multiplies() const override { return weight_bytes() / 2; }
  void decode_row(index_t row, float* dst) const override {
    std::copy_n(request_.weights.data + row * s_.k, s_.k, dst);
  }
  Arithmetic arithmetic() const override {
    return blockpack::resolve(blockpack::Activations::automatic, 16.0, blockpack::active_isa()) ==
                   blockpack::Activations::bf16
               ? Arithmetic::bf16
               : Arithmetic::f32;
  }

 protected:
  double matrices() const {
    if (f_.kind == Kind::block_diagonal) return static_cast<double>(s_.n * s_.in_block);
    return static_cast<double>(s_.ranks) * static_cast<double>(s_.k + s_.n);
  }
  ConstView x_of(const Tokens& x) const { return {x.f32, x.m, s_.k}; }

  Request request_;
  const Factors& f_;
  Sizes s_;
  blockpack::ApplyOptions how_;
};

class StructuredProduct final : public Base {
 public:
  explicit StructuredProduct(const Request& r) : Base(r), op_(make()) {}

  void run(const Tokens& x, float* y, int threads) override {
    how_.execution.threads = threads;
    op_.apply(x_of(x), MatrixView<float>(y, x.m, s_.n), how_);
  }
  std::unique_ptr<Product> copy() const override { return std::make_unique<StructuredProduct>(request_); }

 private:
  blockpack::AnyLinear make() const {
    const auto format = blockpack::FactorFormat::bf16();
    const blockpack::MatrixShape shape{s_.n, s_.k};
    const auto ahead = blockpack::PackPolicy::ahead();
    const ConstView left(f_.left, s_.n, s_.ranks), right(f_.right, s_.blocks * s_.ranks, s_.in_block);
    switch (f_.kind) {
      case Kind::low_rank:
        return blockpack::LowRank::encode(left, right, format);
      case Kind::monarch:
        return blockpack::Monarch::encode(
            shape, right, left, {s_.blocks, s_.blocks, s_.rank, blockpack::OutputOrder::blocked, format}, {}, ahead);
      case Kind::blast:
        return blockpack::Blast::encode(shape, left, right, {f_.coupling, s_.blocks * s_.blocks, s_.rank},
                                        {s_.blocks, s_.rank, format}, {}, ahead);
      default:
        return blockpack::BlockDiagonal::encode(shape, {f_.left, s_.n, s_.in_block}, {s_.blocks, format}, {}, ahead);
    }
  }

  blockpack::AnyLinear op_;
};

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define BENCH_EVERY_LEVEL __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BENCH_EVERY_LEVEL
#endif

/// z (+)= s ∘ v.
BENCH_EVERY_LEVEL void scale_into(const float* s, const float* v, index_t count, bool add, float* z) {
  if (add) {
    for (index_t i = 0; i < count; ++i) z[i] += s[i] * v[i];
  } else {
    for (index_t i = 0; i < count; ++i) z[i] = s[i] * v[i];
  }
}

class UnfusedProduct final : public Base {
 public:
  explicit UnfusedProduct(const Request& r)
      : Base(r),
        v_(r.m * s_.blocks * s_.ranks),
        z_(f_.kind == Kind::monarch || f_.kind == Kind::blast ? v_.size() : 0) {
    const auto part = [](const float* w, index_t rows, index_t cols) {
      Dense op = Dense::encode(ConstView(w, rows, cols), {}, {}, blockpack::PackPolicy::ahead());
      if (op.packed_bytes() != 0) op.release_stored();  // memory: only the packed form is read
      return op;
    };
    for (index_t i = 0; i < s_.blocks; ++i) {
      if (f_.kind == Kind::block_diagonal) {
        left_.push_back(part(f_.left + i * s_.out_block * s_.in_block, s_.out_block, s_.in_block));
        continue;
      }
      right_.push_back(part(f_.right + i * s_.ranks * s_.in_block, s_.ranks, s_.in_block));
      left_.push_back(part(f_.left + i * s_.out_block * s_.ranks, s_.out_block, s_.ranks));
    }
  }

  void run(const Tokens& x, float* y, int threads) override {
    how_.execution.threads = threads;
    const index_t m = x.m, ranks = s_.ranks;
    const ConstView all = x_of(x);
    const MatrixView<float> result(y, m, s_.n);
    for (std::size_t l = 0; l < right_.size(); ++l)
      right_[l].apply(input(all, l), MatrixView<float>(v_.data() + at(l, 0, m), m, ranks), how_);
    // Values of the input blocks to values of the output blocks, token after token.
    if (z_.size() > 0) blockpack::parallel_for(how_.execution, m, [&](index_t t) { exchange(t, m); });
    const float* z = z_.size() > 0 ? z_.data() : v_.data();
    for (std::size_t k = 0; k < left_.size(); ++k) {
      const ConstView from = f_.kind == Kind::block_diagonal ? input(all, k) : ConstView(z + at(k, 0, m), m, ranks);
      left_[k].apply(from, result.block(0, static_cast<index_t>(k) * s_.out_block, m, s_.out_block), how_);
    }
  }
  std::unique_ptr<Product> copy() const override { return std::make_unique<UnfusedProduct>(request_); }

 private:
  ConstView input(ConstView x, std::size_t l) const {
    return x.block(0, static_cast<index_t>(l) * s_.in_block, x.rows(), s_.in_block);
  }
  index_t at(std::size_t block, index_t token, index_t m) const {
    return (static_cast<index_t>(block) * m + token) * s_.ranks;
  }
  void exchange(index_t t, index_t m) {
    const auto blocks = static_cast<std::size_t>(s_.blocks);
    for (std::size_t k = 0; k < blocks; ++k)
      for (std::size_t l = 0; l < blocks; ++l) {
        float* z = z_.data() + at(k, t, m);
        const float* v = v_.data() + at(l, t, m);
        const auto out = static_cast<index_t>(k), in = static_cast<index_t>(l);
        if (f_.kind == Kind::monarch) {
          std::copy_n(v + out * s_.rank, s_.rank, z + in * s_.rank);
        } else {
          scale_into(f_.coupling + (out * s_.blocks + in) * s_.rank, v, s_.rank, l > 0, z);
        }
      }
  }

  std::vector<Dense> right_, left_;
  LargeBuffer<float> v_, z_;
};

}  // namespace

void add_structured(Contestants& all) {
  const auto serves = [](const std::string& scheme, index_t, index_t, index_t, bool) { return structured(scheme); };
  all.implementations.push_back({"blockpack", serves, [](const Request& r) -> std::unique_ptr<Product> {
                                   return std::make_unique<StructuredProduct>(r);
                                 }});
  all.implementations.push_back({"unfused", serves, [](const Request& r) -> std::unique_ptr<Product> {
                                   return std::make_unique<UnfusedProduct>(r);
                                 }});
}

}  // namespace bench
