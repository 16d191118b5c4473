// SPDX-License-Identifier: Apache-2.0

/// One suite over every linear operator. A new form joins by one line in `operators()`.

#include <array>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/dense.hpp"
#include "conformance/operators.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/guard_page.hpp"
#include "support/levels.hpp"
#include "support/product_check.hpp"
#include "support/random.hpp"

namespace blockpack::test {
namespace {

using conformance::Operator;
using conformance::operators;

constexpr std::array kShapes = {MatrixShape{0, 5},    MatrixShape{5, 0},    MatrixShape{1, 1},   MatrixShape{1, 33},
                                MatrixShape{33, 1},   MatrixShape{7, 13},   MatrixShape{32, 64}, MatrixShape{65, 97},
                                MatrixShape{17, 513}, MatrixShape{130, 257}};
constexpr std::array<index_t, 12> kTokens = {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 128};
/// Whether a number of tokens is one for all shapes, or for the small ones that a check in double is quick for.
bool takes(MatrixShape shape, index_t tokens) {
  for (const index_t always : {0, 1, 3, 8, 17, 33})
    if (tokens == always) return true;
  return tokens * shape.rows * shape.cols <= budget<index_t>(300000, 20000);
}
constexpr std::array kModes = {Activations::f32, Activations::bf16, Activations::int8};

std::vector<float> decoded(const AnyLinear& op) {
  std::vector<float> w(static_cast<std::size_t>(op.out_features() * op.in_features()));
  std::vector<index_t> rows(static_cast<std::size_t>(op.out_features()));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<index_t>(i);
  op.decode_rows(rows, MatrixView<float>(w.data(), op.out_features(), op.in_features()));
  return w;
}

std::vector<float> apply(const AnyLinear& op, const std::vector<float>& x, index_t tokens, const ApplyOptions& how) {
  std::vector<float> y(static_cast<std::size_t>(tokens * op.out_features()), -1.0f);
  op.apply(MatrixView<const float>(x.data(), tokens, op.in_features()),
           MatrixView<float>(y.data(), tokens, op.out_features()), how);
  return y;
}

ApplyOptions options(Isa isa, Activations mode, int threads = 1) {
  ApplyOptions how;
  how.execution.isa = isa;
  how.execution.threads = threads;
  how.activations = mode;
  return how;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

TEST_CASE("apply equals the decoded dense product within the bound of its mode, on every level",
          "[conformance][kernels][smoke]") {
  const Operator& form = GENERATE(from_range(operators()));
  CAPTURE(form.name);
  for (const MatrixShape shape : kShapes) {
    if (small_budget() && shape.rows * shape.cols > 7000) continue;
    const auto in = static_cast<std::size_t>(shape.cols);
    for (const Isa isa : levels_here()) {
      const auto op = form.make(shape, 11);  // a new one: the first use packs for this level
      const std::vector<float> w = decoded(op);
      const auto check = form.checker(op);
      for (const Activations mode : {kModes[0], kModes[1], kModes[2], Activations::int8_token}) {
        for (const index_t tokens : kTokens) {
          if (!takes(shape, tokens) || (mode == Activations::int8_token && tokens != 3 && tokens != 17)) continue;
          const std::vector<float> x = random_normal(tokens * shape.cols, 5);
          const std::vector<float> y = apply(op, x, tokens, options(isa, mode));
          for (index_t m = 0; m < tokens; ++m) {
            for (index_t n = 0; n < shape.rows; ++n) {
              const std::span<const float> row_x(x.data() + m * shape.cols, in);
              const std::span<const float> row_w(w.data() + n * shape.cols, in);
              const ProductCheck expected = check(row_x, row_w, n, mode);
              const double got = y[static_cast<std::size_t>(m * shape.rows + n)];
              if (std::abs(got - expected.value) <= expected.bound) continue;
              CAPTURE(to_string(isa), to_string(mode), to_string(shape), tokens, m, n, got);
              CAPTURE(expected.value, expected.bound);
              REQUIRE(std::abs(got - expected.value) <= expected.bound);
            }
          }
        }
      }
    }
  }
  SUCCEED();
}

TEST_CASE("storage_bytes is what the sections hold", "[conformance]") {
  const Operator& form = GENERATE(from_range(operators()));
  CAPTURE(form.name);
  for (const MatrixShape shape : kShapes) {
    const auto op = form.make(shape, 3);
    CHECK(op.storage_bytes() == section_bytes(op.sections()));
    CHECK(op.out_features() == shape.rows);
    CHECK(op.in_features() == shape.cols);
  }
}

TEST_CASE("an operator read back from its sections is the same bit for bit", "[conformance]") {
  const Operator& form = GENERATE(from_range(operators()));
  CAPTURE(form.name);
  for (const MatrixShape shape : kShapes) {
    const auto op = form.make(shape, 7);
    const std::vector<Section> before = op.sections();
    const auto again = form.reopen(op, shape, before);
    const std::vector<Section> after = again.sections();
    REQUIRE(before.size() == after.size());
    for (std::size_t s = 0; s < before.size(); ++s) {
      CHECK(before[s].name == after[s].name);
      REQUIRE(before[s].data.bytes.size() == after[s].data.bytes.size());
      if (!before[s].data.bytes.empty())
        CHECK(std::memcmp(before[s].data.bytes.data(), after[s].data.bytes.data(), before[s].data.bytes.size()) == 0);
    }
    CHECK(same_bits(decoded(op), decoded(again)));
    const std::vector<float> x = random_normal(3 * shape.cols, 2);
    CHECK(same_bits(apply(op, x, 3, {}), apply(again, x, 3, {})));
  }
}

TEST_CASE("sections that lie unaligned and end at a protected page serve as well", "[conformance][kernels]") {
  const Operator& form = GENERATE(from_range(operators()));
  CAPTURE(form.name);
  const MatrixShape shape{19, 47};
  for (const Isa isa : levels_here()) {
    const auto op = form.make(shape, 83);
    const std::vector<float> w = decoded(op);
    for (const std::size_t shift : {0u, 1u}) {  // bytes between the end and the page: with 1, pairs of bytes lie odd
      std::vector<GuardedArray<std::byte>> memory;
      std::vector<Section> sections = op.sections();
      for (Section& section : sections) {
        memory.emplace_back(section.data.bytes.size(), Guard::after, shift);
        std::copy(section.data.bytes.begin(), section.data.bytes.end(), memory.back().begin());
        section.data = SharedBytes(memory.back().span(), nullptr);
      }
      const auto moved = form.reopen(op, shape, sections);
      CAPTURE(to_string(isa), shift);
      REQUIRE(same_bits(w, decoded(moved)));
      for (const Activations mode : kModes) {
        for (const index_t tokens : {1, 17}) {
          CAPTURE(to_string(mode), tokens);
          const std::vector<float> x = random_normal(tokens * shape.cols, 89);
          const std::vector<float> y = apply(moved, x, tokens, options(isa, mode));
          REQUIRE(same_bits(apply(op, x, tokens, options(isa, mode)), y));
        }
      }
      ApplyOptions how;
      how.execution.isa = isa;
      const std::vector<float> y = random_normal(shape.rows, 97);
      std::vector<float> x(static_cast<std::size_t>(shape.cols)), expected(x.size());
      const MatrixView<const float> y_view(y.data(), 1, shape.rows);
      op.apply_transpose(y_view, MatrixView<float>(expected.data(), 1, shape.cols), how);
      moved.apply_transpose(y_view, MatrixView<float>(x.data(), 1, shape.cols), how);
      REQUIRE(same_bits(x, expected));
    }
  }
}

/// Dense weights packed into memory of the caller against those of the pack policy `ahead`.
template <class T>
void check_caller_memory(MatrixShape shape) {
  const std::vector<float> w = random_weights(shape.rows, shape.cols, 101);
  const auto encode = [&](PackPolicy policy) {
    return Dense<T>::encode(MatrixView<const float>(w.data(), shape.rows, shape.cols), {}, {}, policy);
  };
  const AnyLinear expected = encode(PackPolicy::ahead());
  const std::size_t bytes = encode(PackPolicy::ahead()).packed_bytes();
  GuardedArray<std::byte> memory(round_up(static_cast<index_t>(bytes), 64));  // ends at a protected page
  Dense<T> op = encode(PackPolicy::into(memory.span()));
  CHECK(op.packed_bytes() == bytes);
  for (const bool released : {false, true}) {
    if (released) {
      op.release_stored();
      CHECK(op.storage_bytes() == 0);
      if (shape.rows * shape.cols > 0) CHECK_THROWS_AS(op.sections(), UnsupportedError);
    }
    for (const index_t tokens : kTokens) {
      CAPTURE(to_string(shape), released, tokens);
      const std::vector<float> x = random_normal(tokens * shape.cols, 103);
      REQUIRE(same_bits(apply(op, x, tokens, {}), apply(expected, x, tokens, {})));
    }
  }
}

TEST_CASE("dense weights compute from memory of the caller, and from it alone", "[conformance]") {
  for (const MatrixShape shape : kShapes) {
    check_caller_memory<float>(shape);
    check_caller_memory<bf16>(shape);
  }
}

TEST_CASE("sections of another size, name or number are refused", "[conformance]") {
  const Operator& form = GENERATE(from_range(operators()));
  CAPTURE(form.name);
  const MatrixShape shape{7, 45};
  const auto op = form.make(shape, 7);
  CHECK_THROWS_AS(form.reopen(op, MatrixShape{70, 45}, op.sections()),
                  Error);  // more rows than a tile of any form holds
  CHECK_THROWS_AS(form.reopen(op, MatrixShape{7, 4500}, op.sections()), Error);
}

TEST_CASE("the bits of y do not depend on the number of threads", "[conformance][kernels]") {
  const Operator& form = GENERATE(from_range(operators()));
  CAPTURE(form.name);
  const MatrixShape shape = budget(MatrixShape{517, 515}, MatrixShape{70, 97});
  for (const Isa isa : levels_here()) {
    const auto op = form.make(shape, 13);
    for (const Activations mode : kModes) {
      for (const index_t tokens : {1, 5, 40}) {
        const std::vector<float> x = random_normal(tokens * shape.cols, 17);
        const std::vector<float> one = apply(op, x, tokens, options(isa, mode, 1));
        for (const int threads : {2, 3, 4}) {
          CAPTURE(to_string(isa), to_string(mode), tokens, threads);
          CHECK(same_bits(one, apply(op, x, tokens, options(isa, mode, threads))));
        }
        ApplyOptions own = options(isa, mode);
        own.execution.executor = [](index_t n, const std::function<void(index_t)>& f) {
          std::vector<std::thread> pool;
          for (index_t t = 0; t < 3; ++t)
            pool.emplace_back([&, t] {
              for (index_t i = n - 1 - t; i >= 0; i -= 3) f(i);
            });
          for (std::thread& t : pool) t.join();
        };
        CHECK(same_bits(one, apply(op, x, tokens, own)));
      }
    }
  }
}

TEST_CASE("batch_invariant gives a token the same bits in every batch", "[conformance][kernels]") {
  const Operator& form = GENERATE(from_range(operators()));
  CAPTURE(form.name);
  const MatrixShape shape{70, 97};
  const index_t tokens = 37;
  const std::vector<float> x = random_normal(tokens * shape.cols, 23);
  for (const Isa isa : levels_here()) {
    const auto op = form.make(shape, 19);
    for (const Activations mode : kModes) {
      ApplyOptions how = options(isa, mode);
      how.execution.batch_invariant = true;
      const std::vector<float> all = apply(op, x, tokens, how);
      for (const index_t batch : {1, 2, 8, 9, 16}) {
        for (index_t first = 0; first + batch <= tokens; first += batch) {
          const std::vector<float> part(x.begin() + first * shape.cols, x.begin() + (first + batch) * shape.cols);
          const std::vector<float> expected(all.begin() + first * shape.rows,
                                            all.begin() + (first + batch) * shape.rows);
          CAPTURE(to_string(isa), to_string(mode), batch, first);
          REQUIRE(same_bits(apply(op, part, batch, how), expected));
        }
      }
    }
  }
}

TEST_CASE("strided and page-end x and y are read and written exactly", "[conformance][kernels]") {
  const Operator& form = GENERATE(from_range(operators()));
  CAPTURE(form.name);
  const MatrixShape shape{19, 47};
  for (const Isa isa : levels_here()) {
    const auto op = form.make(shape, 29);
    for (const index_t tokens : {1, 2, 9, 17}) {
      for (const std::size_t shift : {0u, 4u, 20u}) {
        const index_t x_stride = shape.cols + 3, y_stride = shape.rows + 5;
        const auto x_size = static_cast<std::size_t>((tokens - 1) * x_stride + shape.cols);
        const auto y_size = static_cast<std::size_t>((tokens - 1) * y_stride + shape.rows);
        GuardedArray<float> x(x_size, shift == 0 ? Guard::after : Guard::before, shift);
        GuardedArray<float> y(y_size, shift == 0 ? Guard::after : Guard::before, shift);
        const std::vector<float> values = random_normal(static_cast<index_t>(x_size), 31);
        std::copy(values.begin(), values.end(), x.data());
        std::fill(y.begin(), y.end(), 77.0f);
        const ApplyOptions how = options(isa, Activations::f32);
        op.apply(MatrixView<const float>(x.data(), tokens, shape.cols, x_stride),
                 MatrixView<float>(y.data(), tokens, shape.rows, y_stride), how);
        std::vector<float> packed_x;
        for (index_t m = 0; m < tokens; ++m)
          packed_x.insert(packed_x.end(), x.data() + m * x_stride, x.data() + m * x_stride + shape.cols);
        const std::vector<float> expected = apply(op, packed_x, tokens, how);
        for (index_t m = 0; m < tokens; ++m) {
          CAPTURE(to_string(isa), tokens, shift, m);
          REQUIRE(std::memcmp(y.data() + m * y_stride, expected.data() + m * shape.rows,
                              static_cast<std::size_t>(shape.rows) * sizeof(float)) == 0);
          for (index_t gap = shape.rows; gap < y_stride && m + 1 < tokens; ++gap)
            REQUIRE(y[static_cast<std::size_t>(m * y_stride + gap)] == 77.0f);
        }
      }
    }
  }
}

TEST_CASE("the epilogue is function(scale x W + bias) * gate + residual", "[conformance][kernels][smoke]") {
  const Operator& form = GENERATE(from_range(operators()));
  CAPTURE(form.name);
  const MatrixShape shape{37, 65};
  for (const Isa isa : levels_here()) {
    const auto op = form.make(shape, 37);
    for (const index_t tokens : {1, 7, 33}) {
      const std::vector<float> x = random_normal(tokens * shape.cols, 41);
      const std::vector<float> bias = random_normal(shape.rows, 43);
      const std::vector<float> gate = random_normal(tokens * shape.rows, 47);
      const std::vector<float> residual = random_normal(tokens * shape.rows, 53);
      const std::vector<float> scales = random_normal(tokens, 57);
      const std::vector<float> z = apply(op, x, tokens, options(isa, Activations::f32));
      for (const EpilogueFunction function :
           {EpilogueFunction::none, EpilogueFunction::relu, EpilogueFunction::gelu, EpilogueFunction::silu}) {
        ApplyOptions how = options(isa, Activations::f32);
        how.epilogue.bias = bias;
        how.epilogue.function = function;
        how.epilogue.gate = MatrixView<const float>(gate.data(), tokens, shape.rows);
        how.epilogue.residual = MatrixView<const float>(residual.data(), tokens, shape.rows);
        if (function != EpilogueFunction::silu) how.epilogue.token_scales = scales;
        const std::vector<float> y = apply(op, x, tokens, how);
        for (std::size_t i = 0; i < y.size(); ++i) {
          const double scale = how.epilogue.token_scales.empty() ? 1.0 : double{scales[i / bias.size()]};
          const double scaled = static_cast<double>(z[i]) * scale;
          const double v = scaled + static_cast<double>(bias[i % bias.size()]);
          double f = v;
          if (function == EpilogueFunction::relu) f = std::max(v, 0.0);
          if (function == EpilogueFunction::gelu) f = v / 2 * (1 + std::erf(v / std::sqrt(2.0)));
          if (function == EpilogueFunction::silu) f = v / (1 + std::exp(-v));
          const double expected = f * gate[i] + residual[i];
          // The scale, the bias sum, the function (a few ulp of its argument), the product and the last sum each round
          // once.
          const double bound =
              0x1p-24 * (12.0 * (std::abs(scaled) + std::abs(bias[i % bias.size()])) * std::abs(gate[i]) +
                         4.0 * std::abs(f * gate[i]) + 2.0 * std::abs(expected));
          CAPTURE(to_string(isa), tokens, i, static_cast<int>(function));
          REQUIRE(std::abs(y[i] - expected) <= bound);
        }
      }
    }
  }
}

TEST_CASE("a product that another one gates is both of them, bit for bit and for any number of threads",
          "[conformance][kernels]") {
  const Operator& form = GENERATE(from_range(operators()));
  CAPTURE(form.name);
  const MatrixShape shape{70, 97};
  for (const Isa isa : levels_here()) {
    const auto op = form.make(shape, 37), gate = form.make(shape, 38);
    for (const Activations mode : {Activations::f32, Activations::bf16, Activations::int8, Activations::automatic}) {
      for (const index_t tokens : {1, 9, 33}) {
        CAPTURE(to_string(isa), to_string(mode), tokens);
        const std::vector<float> x = random_normal(tokens * shape.cols, 41);
        const MatrixView<const float> rows(x.data(), tokens, shape.cols);
        const std::vector<float> scales = random_normal(tokens, 43), residual = random_normal(tokens * shape.rows, 47);
        ApplyOptions how = options(isa, mode);
        how.epilogue.token_scales = scales;
        const std::vector<float> values = apply(gate, x, tokens, how);
        how.epilogue.function = EpilogueFunction::silu;
        how.epilogue.residual = MatrixView<const float>(residual.data(), tokens, shape.rows);
        ApplyOptions apart = how;
        apart.epilogue.gate = MatrixView<const float>(values.data(), tokens, shape.rows);
        const std::vector<float> expected = apply(op, x, tokens, apart);
        std::vector<float> y(expected.size());
        how.execution.threads = 3;
        op.apply_gated(gate, rows, MatrixView<float>(y.data(), tokens, shape.rows), how);
        CHECK(same_bits(y, expected));
        y = residual;  // added where the result goes
        how.epilogue.residual = MatrixView<const float>(y.data(), tokens, shape.rows);
        op.apply_gated(gate, rows, MatrixView<float>(y.data(), tokens, shape.rows), how);
        CHECK(same_bits(y, expected));
        how.epilogue.residual = MatrixView<const float>(residual.data(), tokens, shape.rows);
        std::vector<bf16> y16(y.size());
        op.apply_gated(gate, rows, MatrixView<bf16>(y16.data(), tokens, shape.rows), how);
        for (std::size_t i = 0; i < y.size(); ++i) REQUIRE(y16[i].bits == bf16(expected[i]).bits);
      }
    }
  }
}

TEST_CASE("x and y may be bf16", "[conformance][kernels]") {
  const Operator& form = GENERATE(from_range(operators()));
  CAPTURE(form.name);
  const MatrixShape shape{41, 70};
  for (const Isa isa : levels_here()) {
    const auto op = form.make(shape, 59);
    for (const Activations mode : {Activations::f32, Activations::bf16}) {
      for (const index_t tokens : {1, 5, 18}) {
        std::vector<float> x = random_normal(tokens * shape.cols, 61);
        std::vector<bf16> x16;
        for (float& v : x) {
          x16.emplace_back(v);
          v = static_cast<float>(x16.back());
        }
        const ApplyOptions how = options(isa, mode);
        const std::vector<float> wide = apply(op, x, tokens, how);
        std::vector<float> y(wide.size());
        op.apply(MatrixView<const bf16>(x16.data(), tokens, shape.cols),
                 MatrixView<float>(y.data(), tokens, shape.rows), how);
        CAPTURE(to_string(isa), to_string(mode), tokens);
        CHECK(same_bits(y, wide));
        std::vector<bf16> y16(wide.size());
        op.apply(MatrixView<const float>(x.data(), tokens, shape.cols),
                 MatrixView<bf16>(y16.data(), tokens, shape.rows), how);
        for (std::size_t i = 0; i < wide.size(); ++i) REQUIRE(y16[i].bits == bf16(wide[i]).bits);
      }
    }
  }
}

TEST_CASE("every wrong shape throws a ShapeError", "[conformance]") {
  const Operator& form = GENERATE(from_range(operators()));
  CAPTURE(form.name);
  const auto op = form.make({6, 9}, 1);
  std::vector<float> memory(400);
  const auto view = [&](index_t rows, index_t cols) { return MatrixView<float>(memory.data(), rows, cols); };
  CHECK_THROWS_AS(op.apply(view(2, 8), view(2, 6), ApplyOptions{}), ShapeError);
  CHECK_THROWS_AS(op.apply(view(2, 9), view(2, 7), ApplyOptions{}), ShapeError);
  CHECK_THROWS_AS(op.apply(view(2, 9), view(3, 6), ApplyOptions{}), ShapeError);
  ApplyOptions how;
  how.epilogue.bias = std::span<const float>(memory.data(), 5);
  CHECK_THROWS_AS(op.apply(view(2, 9), view(2, 6), how), ShapeError);
  how = {};
  how.epilogue.token_scales = std::span<const float>(memory.data(), 3);
  CHECK_THROWS_AS(op.apply(view(2, 9), view(2, 6), how), ShapeError);
  how = {};
  how.epilogue.gate = view(2, 5);
  CHECK_THROWS_AS(op.apply(view(2, 9), view(2, 6), how), ShapeError);
  how = {};
  how.epilogue.residual = view(1, 6);
  CHECK_THROWS_AS(op.apply(view(2, 9), view(2, 6), how), ShapeError);
  how = {};
  CHECK_THROWS_AS(op.apply_gated(form.make({7, 9}, 1), view(2, 9), view(2, 6), how), ShapeError);
  CHECK_THROWS_AS(op.apply_gated(op, view(2, 8), view(2, 6), how), ShapeError);
  how.epilogue.gate = view(2, 6);
  CHECK_THROWS_AS(op.apply_gated(op, view(2, 9), view(2, 6), how), ValueError);
  const std::array<index_t, 1> good = {5}, high = {6}, negative = {-1};
  CHECK_THROWS_AS(op.decode_rows(good, view(1, 8)), ShapeError);
  CHECK_THROWS_AS(op.decode_rows(good, view(2, 9)), ShapeError);
  CHECK_THROWS_AS(op.decode_rows(high, view(1, 9)), ShapeError);
  CHECK_THROWS_AS(op.decode_rows(negative, view(1, 9)), ShapeError);
}

TEST_CASE("the transposed product is y times the decoded matrix", "[conformance][kernels]") {
  const Operator& form = GENERATE(from_range(operators()));
  CAPTURE(form.name);
  for (const MatrixShape shape : {MatrixShape{33, 70}, MatrixShape{1, 1}, MatrixShape{5, 0}, MatrixShape{0, 5}}) {
    for (const Isa isa : levels_here()) {
      const auto op = form.make(shape, 67);
      const std::vector<float> w = decoded(op);
      const auto check = form.transpose_checker(op);
      for (const index_t tokens : {1, 4}) {
        const std::vector<float> y = random_normal(tokens * shape.rows, 71);
        std::vector<float> x(static_cast<std::size_t>(tokens * shape.cols));
        ApplyOptions how;
        how.execution.isa = isa;
        op.apply_transpose(MatrixView<const float>(y.data(), tokens, shape.rows),
                           MatrixView<float>(x.data(), tokens, shape.cols), how);
        std::vector<float> column(static_cast<std::size_t>(shape.rows));
        for (index_t m = 0; m < tokens; ++m) {
          for (index_t k = 0; k < shape.cols; ++k) {
            for (index_t n = 0; n < shape.rows; ++n)
              column[static_cast<std::size_t>(n)] = w[static_cast<std::size_t>(n * shape.cols + k)];
            const std::span<const float> row_y(y.data() + m * shape.rows, column.size());
            const ProductCheck expected = check(row_y, column, k);
            CAPTURE(to_string(isa), to_string(shape), m, k);
            REQUIRE(std::abs(x[static_cast<std::size_t>(m * shape.cols + k)] - expected.value) <= expected.bound);
          }
        }
      }
    }
  }
}

TEST_CASE("an operator serves many threads at once", "[conformance]") {
  const Operator& form = GENERATE(from_range(operators()));
  CAPTURE(form.name);
  const MatrixShape shape{33, 65};
  const auto op = form.make(shape, 73);
  const std::vector<float> x = random_normal(4 * shape.cols, 79);
  const std::vector<float> expected = apply(form.make(shape, 73), x, 4, {});
  std::array<std::vector<float>, 4> results;
  std::vector<std::thread> threads;
  for (auto& result : results)
    threads.emplace_back([&] { result = apply(op, x, 4, options(active_isa(), Activations::automatic)); });
  for (std::thread& t : threads) t.join();
  for (const auto& result : results) CHECK(same_bits(result, expected));
}

}  // namespace
}  // namespace blockpack::test
