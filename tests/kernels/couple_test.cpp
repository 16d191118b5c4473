// SPDX-License-Identifier: Apache-2.0
/// The coupling of BLAST on every level against its definition in double, in buffers that end at protected pages.

#include <cmath>
#include <vector>

#include "blockpack/core/random.hpp"
#include "kernels/table.hpp"
#include "support/catch.hpp"
#include "support/guard_page.hpp"
#include "support/levels.hpp"

using namespace blockpack;
using namespace blockpack::test;

namespace {

constexpr index_t kPanel = 32;

/// Values [blocks][tokens][32] with distances of their own between blocks and rows, nothing behind the last value.
struct Panel {
  Panel(index_t block_count, index_t token_count, index_t row_gap, index_t block_gap, Guard guard, std::size_t shift)
      : row(kPanel + row_gap),
        block(token_count * row + block_gap),
        values(block_count * token_count == 0
                   ? 0
                   : static_cast<std::size_t>((block_count - 1) * block + (token_count - 1) * row + kPanel),
               guard, shift) {}
  float* at(index_t b, index_t token) { return values.data() + b * block + token * row; }

  index_t row, block;
  GuardedArray<float> values;
};

}  // namespace

TEST_CASE("couplings are sums over the input blocks on every level", "[kernels][structured]") {
  struct Size {
    index_t inputs, outputs, tokens;
  };
  for (const Size size : {Size{1, 1, 1}, Size{1, 3, 2}, Size{2, 1, 7}, Size{3, 5, 4}, Size{16, 16, 9}, Size{5, 4, 65},
                          Size{7, 1, 0}, Size{4, 0, 3}, Size{0, 2, 3}})
    for (const Guard guard : {Guard::after, Guard::before})
      for (const std::size_t shift : {std::size_t{0}, std::size_t{4}, std::size_t{36}}) {
        Panel v(size.inputs, size.tokens, 3, 5, guard, shift);
        GuardedArray<float> s(static_cast<std::size_t>(size.inputs * size.outputs * kPanel), guard, shift);
        fill_normal(v.values.span(), 1);
        fill_normal(s.span(), 2);
        for (const Isa isa : levels_here()) {
          CAPTURE(to_string(isa), size.inputs, size.outputs, size.tokens, shift);
          Panel z(size.outputs, size.tokens, 2, 1, guard, shift);
          for (float& value : z.values) value = 9.0f;
          kernels::Couple c{};
          c.v = v.values.data();
          c.v_block = v.block;
          c.v_row = v.row;
          c.s = s.data();
          c.in_blocks = size.inputs;
          c.out_blocks = size.outputs;
          c.tokens = size.tokens;
          c.z = z.values.data();
          c.z_block = z.block;
          c.z_row = z.row;
          kernels::table_for(isa).couple.couple.fn(c);
          const double roundings = static_cast<double>(size.inputs) + 1;
          const double gamma = roundings * std::ldexp(1.0, -24) / (1 - roundings * std::ldexp(1.0, -24));
          for (index_t k = 0; k < size.outputs; ++k)
            for (index_t t = 0; t < size.tokens; ++t) {
              for (index_t r = 0; r < kPanel; ++r) {
                double exact = 0, magnitude = 0;
                for (index_t l = 0; l < size.inputs; ++l) {
                  const double product =
                      static_cast<double>(s.data()[(k * size.inputs + l) * kPanel + r]) * v.at(l, t)[r];
                  exact += product;
                  magnitude += std::fabs(product);
                }
                const double error = std::fabs(static_cast<double>(z.at(k, t)[r]) - exact);
                if (!(error <= gamma * magnitude)) {
                  CAPTURE(k, t, r, exact);
                  REQUIRE(error <= gamma * magnitude);
                }
              }
              // What lies between rows stays as it was.
              const float* behind = z.at(k, t) + kPanel;
              if (behind < z.values.data() + z.values.size()) REQUIRE(*behind == 9.0f);
            }
        }
      }
}

TEST_CASE("a token's coupling has the same bits alone and among others", "[kernels][structured]") {
  constexpr index_t kInputs = 6, kOutputs = 3, kTokens = 11;
  std::vector<float> v(kInputs * kTokens * kPanel), s(kInputs * kOutputs * kPanel);
  fill_normal(v, 3);
  fill_normal(s, 4);
  for (const Isa isa : levels_here()) {
    CAPTURE(to_string(isa));
    const auto run = [&](index_t first, index_t tokens) {
      std::vector<float> z(static_cast<std::size_t>(kOutputs * tokens * kPanel));
      kernels::Couple c{};
      c.v = v.data() + first * kPanel;
      c.v_block = kTokens * kPanel;
      c.v_row = kPanel;
      c.s = s.data();
      c.in_blocks = kInputs;
      c.out_blocks = kOutputs;
      c.tokens = tokens;
      c.z = z.data();
      c.z_block = tokens * kPanel;
      c.z_row = kPanel;
      kernels::table_for(isa).couple.couple.fn(c);
      return z;
    };
    const std::vector<float> all = run(0, kTokens);
    for (index_t t = 0; t < kTokens; ++t) {
      const std::vector<float> one = run(t, 1);
      for (index_t k = 0; k < kOutputs; ++k)
        REQUIRE(std::equal(one.begin() + k * kPanel, one.begin() + (k + 1) * kPanel,
                           all.begin() + (k * kTokens + t) * kPanel));
    }
  }
}
