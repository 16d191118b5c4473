// SPDX-License-Identifier: Apache-2.0

/// Structured operators at the edges of what they take: one block, a block for each feature, parameters that make no
/// sense, and how low rank packs its factors and keeps what lies between them.

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/quant/mx.hpp"
#include "blockpack/structured/blast.hpp"
#include "blockpack/structured/block_diagonal.hpp"
#include "blockpack/structured/block_low_rank.hpp"
#include "blockpack/structured/low_rank.hpp"
#include "blockpack/structured/monarch.hpp"
#include "support/catch.hpp"
#include "support/guard_page.hpp"
#include "support/levels.hpp"
#include "support/random.hpp"

namespace blockpack::test {
namespace {

struct Factor {
  Factor(index_t r, index_t c, std::uint64_t seed) : rows(r), cols(c), values(random_normal(r * c, seed)) {}
  explicit Factor(MatrixShape shape, std::uint64_t seed = 1) : Factor(shape.rows, shape.cols, seed) {}
  MatrixView<const float> view() const { return {values.data(), rows, cols}; }
  double at(index_t r, index_t c) const { return static_cast<double>(values[static_cast<std::size_t>(r * cols + c)]); }
  index_t rows, cols;
  std::vector<float> values;
};

/// `op` multiplies by the matrix that w(row, column) gives, few tokens and many.
template <class W>
void check_product(const AnyLinear& op, const W& w) {
  const index_t out = op.out_features(), in = op.in_features();
  for (const index_t tokens : {1, 20}) {
    const Factor x(tokens, in, 9);
    std::vector<float> y(static_cast<std::size_t>(tokens * out));
    ApplyOptions how;
    how.activations = Activations::f32;
    op.apply(x.view(), MatrixView<float>(y.data(), tokens, out), how);
    for (index_t m = 0; m < tokens; ++m)
      for (index_t n = 0; n < out; ++n) {
        double sum = 0;
        for (index_t k = 0; k < in; ++k) sum += w(n, k) * x.at(m, k);
        CAPTURE(op.scheme(), tokens, m, n);
        REQUIRE(static_cast<double>(y[static_cast<std::size_t>(m * out + n)]) == Approx(sum).margin(1e-4));
      }
  }
}

/// The message of the error that `call` throws; empty when it throws none of type E.
template <class E, class F>
std::string message_of(const F& call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  }
  return {};
}
bool says(const std::string& message, const char* part) { return message.find(part) != std::string::npos; }

TEST_CASE("one block, and a block for each feature", "[structured]") {
  constexpr index_t kSide = 6;
  const MatrixShape shape{kSide, kSide};
  const FactorFormat f32 = FactorFormat::f32();
  for (const index_t b : {index_t{1}, kSide}) {
    const index_t p = kSide / b;
    const Factor blocks(BlockDiagonal::stack_shape(shape, b));
    check_product(BlockDiagonal::encode(shape, blocks.view(), {b, f32}),
                  [&](index_t n, index_t k) { return n / p == k / p ? blocks.at(n, k % p) : 0.0; });

    for (const OutputOrder order : {OutputOrder::blocked, OutputOrder::interleaved}) {
      const Monarch::Parameters parameters{b, b, 1, order, f32};
      const Factor first(Monarch::first_shape(shape, parameters), 2),
          second(Monarch::second_shape(shape, parameters), 3);
      check_product(Monarch::encode(shape, first.view(), second.view(), parameters), [&](index_t n, index_t k) {
        // Output n is row s of block o; `second` is in the order of the outputs or of the blocks, as one they are here.
        const index_t o = order == OutputOrder::blocked ? n / p : n % b;
        return second.at(order == OutputOrder::blocked ? n : o * p + n / b, k / p) * first.at(k / p * b + o, k % p);
      });
    }

    const Blast::Parameters parameters{b, 2, f32};
    const Factor left(Blast::left_shape(shape, parameters), 4), right(Blast::right_shape(shape, parameters), 5),
        coupling(Blast::coupling_shape(parameters), 6);
    check_product(Blast::encode(shape, left.view(), right.view(), coupling.view(), parameters),
                  [&](index_t n, index_t k) {
                    double sum = 0;
                    for (index_t r = 0; r < 2; ++r)
                      sum += left.at(n, r) * coupling.at(n / p * b + k / p, r) * right.at(k / p * 2 + r, k % p);
                    return sum;
                  });

    const BlockLowRank::Parameters tiles{p, p, f32};
    const std::vector<std::int32_t> ranks(static_cast<std::size_t>(b * b), 1);
    const Factor columns(b * b, p, 7), rows(b * b, p, 8), none(0, p, 1);
    check_product(
        BlockLowRank::encode(shape, ranks, columns.view(), rows.view(), none.view(), tiles),
        [&](index_t n, index_t k) { return columns.at(n / p * b + k / p, n % p) * rows.at(k / p * b + n / p, k % p); });
  }
}

TEST_CASE("structured operators refuse what makes no sense and say why", "[structured]") {
  const MatrixShape shape{8, 12};
  const FactorFormat f32 = FactorFormat::f32();
  const auto monarch = [&](Monarch::Parameters p, index_t more_rows = 0) {
    const MatrixShape first = p.in_blocks > 0 && p.out_blocks > 0 ? Monarch::first_shape(shape, p) : MatrixShape{};
    const MatrixShape second = p.in_blocks > 0 && p.out_blocks > 0 ? Monarch::second_shape(shape, p) : MatrixShape{};
    const Factor a(std::max<index_t>(0, first.rows) + more_rows, std::max<index_t>(0, first.cols), 1),
        b(std::max<index_t>(0, second.rows), std::max<index_t>(0, second.cols), 2);
    Monarch::encode(shape, a.view(), b.view(), p);
  };
  CHECK(says(message_of<ValueError>([&] { monarch({2, 2, 0, OutputOrder::blocked, f32}); }), "rank = 0"));
  CHECK(says(message_of<ValueError>([&] { monarch({0, 2, 1, OutputOrder::blocked, f32}); }), "at least 1 x 1"));
  CHECK(says(message_of<ValueError>([&] { monarch({2, -1, 1, OutputOrder::blocked, f32}); }), "at least 1 x 1"));
  CHECK(says(message_of<ShapeError>([&] { monarch({2, 2, 1, OutputOrder::blocked, f32}, 1); }), "first is 5x6"));

  const auto blast = [&](index_t blocks, index_t rank, index_t more_cols) {
    const Blast::Parameters p{blocks, rank, f32};
    const bool fine = blocks > 0 && rank > 0;
    const Factor left(fine ? Blast::left_shape(shape, p) : MatrixShape{}, 1),
        right(fine ? Blast::right_shape(shape, p) : MatrixShape{}, 2),
        coupling(fine ? blocks * blocks : 0, fine ? rank + more_cols : 0, 3);
    Blast::encode(shape, left.view(), right.view(), coupling.view(), p);
  };
  CHECK(says(message_of<ValueError>([&] { blast(2, 0, 0); }), "rank = 0"));
  CHECK(says(message_of<ValueError>([&] { blast(0, 2, 0); }), "blocks = 0"));
  CHECK(says(message_of<ShapeError>([&] { blast(2, 3, 1); }), "coupling is 4x4"));

  const Factor w(8, 6, 1);
  CHECK(says(message_of<ValueError>([&] { BlockDiagonal::encode(shape, w.view(), {0, f32}); }), "blocks"));
  CHECK(says(message_of<ShapeError>([&] { BlockDiagonal::encode(shape, w.view(), {3, f32}); }), "8x4 needed"));

  const Factor left(8, 3, 1), right(2, 12, 2);
  CHECK(says(message_of<ShapeError>([&] { LowRank::encode(left.view(), right.view(), f32); }), "the ranks differ"));
  const Factor no_left(8, 0, 1), no_right(0, 12, 2);
  CHECK(says(message_of<ValueError>([&] { LowRank::encode(no_left.view(), no_right.view(), f32); }), "rank = 0"));
  CHECK(LowRank::encode({nullptr, 0, 0}, no_right.view(), f32).out_features() == 0);

  const std::vector<std::int32_t> ranks = {1, -2, 1, 1};
  const Factor columns(3, 4, 1), rows(3, 6, 2), none(0, 6, 3);
  const auto tiles = [&](std::span<const std::int32_t> given, index_t tile_rows) {
    BlockLowRank::encode(shape, given, columns.view(), rows.view(), none.view(), {tile_rows, 6, f32});
  };
  CHECK(!message_of<ValueError>([&] { tiles(ranks, 4); }).empty());
  CHECK(!message_of<ValueError>([&] { tiles(ranks, 0); }).empty());
  CHECK(says(message_of<ShapeError>([&] { tiles(std::span(ranks).first(3), 4); }), "ranks has 3 values"));
}

TEST_CASE("low rank packs its factors as it is told", "[structured]") {
  const Factor left(40, 24, 1), right(24, 70, 2), x(33, 70, 3);
  const auto make = [&](PackPolicy policy) {
    return LowRank::encode(left.view(), right.view(), FactorFormat::bf16(), {}, policy);
  };
  const auto product = [&](const LowRank& op) {
    std::vector<float> y(33 * 40);
    op.apply(x.view(), MatrixView<float>(y.data(), 33, 40));
    return y;
  };
  const LowRank later = make(PackPolicy::on_first_use());
  CHECK(later.packed_bytes() == 0);
  const std::vector<float> expected = product(later);
  const LowRank ahead = make(PackPolicy::ahead());
  CHECK(ahead.packed_bytes() == later.packed_bytes());
  CHECK(product(ahead) == expected);
  const LowRank none = make(PackPolicy::none());
  CHECK(product(none).size() == expected.size());
  CHECK(none.packed_bytes() == 0);
  const std::size_t bytes = none.packed_bytes_needed();
  if (bytes == 0) return;  // nothing is packed at this level
  GuardedArray<std::byte> memory((bytes + 63) / 64 * 64);
  const LowRank into = make(PackPolicy::into(memory.span()));
  CHECK(product(into) == expected);
  CHECK(std::any_of(memory.begin(), memory.end(), [](std::byte b) { return b != std::byte{0}; }));
  CHECK(says(message_of<ShapeError>([&] { make(PackPolicy::into(memory.span().first(bytes - 64))); }), "needed"));
  const LowRank again = LowRank::from_sections({40, 70}, into.parameters(), into.sections(), PackPolicy::ahead());
  CHECK(again.packed_bytes() > 0);
  CHECK(product(again) == expected);
}

TEST_CASE("what lies between the factors of low rank is rounded once", "[structured]") {
  for (const FactorFormat& format :
       {FactorFormat::f32(), FactorFormat::bf16(), FactorFormat::of(Mx{.element = MxElement::e4m3})}) {
    const Factor left(37, 45, 1), right(45, 70, 2);
    const LowRank op = LowRank::encode(left.view(), right.view(), format);
    for (const Isa isa : levels_here())
      for (const Activations mode : {Activations::automatic, Activations::f32, Activations::bf16, Activations::int8})
        for (const index_t tokens : {1, 5, 40}) {
          CAPTURE(format.scheme, to_string(isa), to_string(mode), tokens);
          const Factor x(tokens, 70, 3);
          ApplyOptions how;
          how.execution.isa = isa;
          how.activations = mode;
          std::vector<float> middle(static_cast<std::size_t>(tokens * 45)),
              expected(static_cast<std::size_t>(tokens * 37)), y = expected;
          op.right().apply(x.view(), MatrixView<float>(middle.data(), tokens, 45), how);
          op.left().apply(MatrixView<const float>(middle.data(), tokens, 45),
                          MatrixView<float>(expected.data(), tokens, 37), how);
          op.apply(x.view(), MatrixView<float>(y.data(), tokens, 37), how);
          REQUIRE(std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) == 0);
        }
  }
}

}  // namespace
}  // namespace blockpack::test
