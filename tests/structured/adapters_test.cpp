// SPDX-License-Identifier: Apache-2.0

/// Properties of the adapters: adjoints, merging, ranks, shards, banks, and what is refused.

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/quant/mx.hpp"
#include "blockpack/quant/quantized_matrix.hpp"
#include "blockpack/structured/adapter_bank.hpp"
#include "blockpack/structured/bone.hpp"
#include "blockpack/structured/lora.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/levels.hpp"
#include "support/product_check.hpp"
#include "support/random.hpp"

namespace blockpack::test {
namespace {

/// A matrix with its values.
struct Matrix {
  index_t rows, cols;
  std::vector<float> values;
  Matrix(index_t r, index_t c, std::uint64_t seed, float sigma = 1.0f)
      : rows(r), cols(c), values(random_normal(r * c, seed, sigma)) {}
  MatrixView<const float> view() const { return {values.data(), rows, cols}; }
  MatrixView<float> view() { return {values.data(), rows, cols}; }
};

std::vector<float> decode(const AnyLinear& op) {
  std::vector<float> w(static_cast<std::size_t>(op.out_features() * op.in_features()));
  std::vector<index_t> rows(static_cast<std::size_t>(op.out_features()));
  std::iota(rows.begin(), rows.end(), index_t{0});
  op.decode_rows(rows, MatrixView<float>(w.data(), op.out_features(), op.in_features()));
  return w;
}

std::vector<float> apply(const AnyLinear& op, const Matrix& x, const ApplyOptions& how = {}) {
  std::vector<float> y(static_cast<std::size_t>(x.rows * op.out_features()));
  op.apply(x.view(), MatrixView<float>(y.data(), x.rows, op.out_features()), how);
  return y;
}

/// The message of the error `f` throws.
template <class F>
std::string refusal(const F& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing was thrown";
}
bool names(const std::string& message, const char* what) { return message.find(what) != std::string::npos; }

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

/// One adapter of every kind for a layer [12, 20], its parameters from `seed`.
std::vector<std::pair<const char*, AnyLinear>> updates(std::uint64_t seed) {
  const index_t out = 12, in = 20;
  return {
      {"lora", lora_update(Matrix(3, in, seed).view(), Matrix(out, 3, seed + 1).view(), 0.5f)},
      {"column parallel", column_parallel_update(Matrix(8, in, seed).view(), Matrix(out, 2, seed + 1).view(), 4, 2.0f)},
      {"row parallel", row_parallel_update(Matrix(8, in / 4, seed).view(), Matrix(out, 8, seed + 1).view(), 4)},
      {"bone", bone_update(Matrix(5, out, seed).view(), in)},
      {"bone with a short shard", bone_update(Matrix(7, out, seed).view(), in)},
      {"mini", mini_update(Matrix(4, 3, seed).view(), {out, in})}};
}

TEST_CASE("the transposed product of an adapted layer is its adjoint", "[structured]") {
  const Matrix w(12, 20, 1), x(4, 20, 2), y(4, 12, 3);
  const auto base = RowMatrix<Mx>::encode(w.view());
  for (const auto& [name, update] : updates(5)) {
    CAPTURE(name);
    const Adapted<RowMatrix<Mx>, AnyLinear> op(base, update);
    const std::vector<float> forward = apply(op, x);
    Matrix back(4, 20, 0);
    op.apply_transpose(y.view(), back.view());
    const double left = dot(forward, y.values), right = dot(x.values, back.values);
    CHECK(std::abs(left - right) <= 1e-4 * std::sqrt(dot(forward, forward) * dot(y.values, y.values)));
  }
}

TEST_CASE("an adapted layer is its base and its update", "[structured][kernels]") {
  const Matrix w(12, 20, 1), x(9, 20, 2);
  const AnyLinear bases[] = {Dense<float>::encode(w.view()), Dense<bf16>::encode(w.view()),
                             QuantizedMatrix<Mx>::encode(w.view())};
  for (const AnyLinear& base : bases) {
    for (const auto& [name, update] : updates(7)) {
      const Adapted op(base, update);
      CAPTURE(name, base.scheme());
      for (const Isa isa : levels_here()) {
        ApplyOptions how;
        how.execution.isa = isa;
        how.activations = Activations::f32;
        const std::vector<float> y = apply(op, x, how), b = apply(base, x, how), u = apply(update, x, how);
        for (std::size_t i = 0; i < y.size(); ++i) REQUIRE(y[i] == b[i] + u[i]);
      }
      const std::vector<float> y = decode(op), b = decode(base), u = decode(update);
      for (std::size_t i = 0; i < y.size(); ++i) REQUIRE(y[i] == b[i] + u[i]);
    }
  }
}

TEST_CASE("what is merged can be unmerged", "[structured]") {
  for (const auto& [name, update] : updates(11)) {
    CAPTURE(name);
    const Matrix w(12, 20, 1);
    Matrix merged = w;
    merge(merged.view(), update);
    const std::vector<float> delta = decode(update), op = decode(Adapted(Dense<float>::encode(w.view()), update));
    for (std::size_t i = 0; i < delta.size(); ++i) CHECK(merged.values[i] == op[i]);
    Matrix again = merged;
    unmerge(again.view(), update);
    for (std::size_t i = 0; i < delta.size(); ++i)
      CHECK(std::abs(again.values[i] - w.values[i]) <= 0x1p-23f * (std::abs(merged.values[i]) + std::abs(w.values[i])));
    Matrix wrong(11, 20, 1);
    CHECK_THROWS_AS(merge(wrong.view(), update), ShapeError);
  }
}

TEST_CASE("merging does not depend on the threads", "[structured]") {
  const index_t out = budget(300, 130), in = 70;
  const auto update = lora_update(Matrix(5, in, 1).view(), Matrix(out, 5, 2).view());
  Matrix one(out, in, 3), four = one;
  Execution threads;
  threads.threads = 1;
  merge(one.view(), update, threads);
  threads.threads = 4;
  merge(four.view(), update, threads);
  CHECK(one.values == four.values);
}

TEST_CASE("bone merges as the operator decodes", "[structured]") {
  const index_t out = 12, in = 22;
  const Matrix d(5, out, 1), m(5, 4, 2);
  Matrix w(out, in, 3), merged = w;
  merge_bone(merged.view(), d.view());
  CHECK(merged.values == decode(Bone<Dense<float>>(Dense<float>::encode(w.view()), bone_update(d.view(), in))));
  merged = w;
  merge_bone(merged.view(), m.view());
  CHECK(merged.values ==
        decode(MiniBone<Dense<float>>(Dense<float>::encode(w.view()), mini_update(m.view(), {out, in}))));
}

TEST_CASE("the rank of a bone update is at most r", "[structured]") {
  // Columns c and c + r of the update are the same column of Dᵀ.
  const index_t r = 5, out = 12, in = 22;
  const std::vector<float> w = decode(bone_update(Matrix(r, out, 1).view(), in));
  for (index_t o = 0; o < out; ++o)
    for (index_t c = r; c < in; ++c)
      CHECK(w[static_cast<std::size_t>(o * in + c)] == w[static_cast<std::size_t>(o * in + c % r)]);
}

TEST_CASE("a short last shard is one filled up with zeros", "[structured]") {
  const index_t r = 4, in = 10, padded = 12, out = 6, tokens = 3;
  const Matrix d(r, out, 1), x(tokens, in, 2);
  Matrix wide(tokens, padded, 0, 0.0f);
  for (index_t m = 0; m < tokens; ++m) std::copy_n(x.view().row_data(m), in, wide.view().row_data(m));
  CHECK(apply(bone_update(d.view(), in), x) == apply(bone_update(d.view(), padded), wide));
  // A rank above the inputs uses the first rows of D alone.
  const Matrix tall(in + 3, out, 3);
  const AnyLinear update = bone_update(tall.view(), in);
  const std::vector<float> w = decode(update);
  for (index_t o = 0; o < out; ++o)
    for (index_t c = 0; c < in; ++c) CHECK(w[static_cast<std::size_t>(o * in + c)] == tall.view()(c, o));
}

TEST_CASE("bat is inverted in the precision of the weights", "[structured]") {
  const index_t r = 8, out = 24, in = 40;
  const Matrix b(out, r, 1, 0.1f);
  Matrix w(out, in, 2);
  const Matrix before = w;
  merge_bat(w.view(), b.view());
  unmerge_bat(w.view(), b.view());
  for (std::size_t i = 0; i < w.values.size(); ++i) CHECK(std::abs(w.values[i] - before.values[i]) <= 2e-5f);

  std::vector<double> w64(before.values.begin(), before.values.end()), b64(b.values.begin(), b.values.end());
  const std::vector<double> start = w64;
  const MatrixView<double> view(w64.data(), out, in);
  Execution two;
  two.threads = 2;
  merge_bat(view, MatrixView<const double>(b64.data(), out, r), two);
  unmerge_bat(view, MatrixView<const double>(b64.data(), out, r), two);
  for (std::size_t i = 0; i < w64.size(); ++i) CHECK(std::abs(w64[i] - start[i]) <= 1e-13);

  SECTION("a block whose affine map is singular is named, and w stays") {
    Matrix singular = b;
    for (index_t j = 0; j < r; ++j) singular.view()(r + 3, j) = j == 3 ? -1.0f : 0.0f;  // a row of zeros in I + b[1]
    const Matrix kept = w;
    CHECK(names(refusal([&] { unmerge_bat(w.view(), singular.view()); }), "b[1] is singular"));
    CHECK(w.values == kept.values);
  }
  SECTION("both sides must be multiples of r") {
    Matrix wrong(out, in + 1, 1);
    CHECK_THROWS_AS(merge_bat(wrong.view(), b.view()), ShapeError);
    Matrix fewer(out - r, in, 1);
    CHECK_THROWS_AS(merge_bat(fewer.view(), b.view()), ShapeError);
    CHECK_THROWS_AS(merge_bat(w.view(), MatrixView<const float>(b.values.data(), out, 0)), ValueError);
    CHECK_THROWS_AS(bat_layer(Dense<float>::encode(wrong.view()), b.view()), ShapeError);
  }
}

TEST_CASE("the shards of a block-diagonal LoRA are the whole", "[structured]") {
  const index_t out = 24, in = 32, shards = 4, rank = 8, tokens = 5;
  const ShardedSide side = GENERATE(ShardedSide::output, ShardedSide::input);
  const bool output = side == ShardedSide::output;
  const Matrix a(rank, output ? in : in / shards, 1), b(out, output ? rank / shards : rank, 2), x(tokens, in, 3);
  const AnyLinear whole = output ? AnyLinear(column_parallel_update(a.view(), b.view(), shards, 0.5f))
                                 : AnyLinear(row_parallel_update(a.view(), b.view(), shards, 0.5f));
  const std::vector<float> expected = apply(whole, x);
  Matrix sum(tokens, out, 0, 0.0f);
  index_t parameters = 0;
  for (index_t g = 0; g < shards; ++g) {
    const LoraShard s = lora_shard(side, a.view(), b.view(), shards, g);
    parameters += s.a.rows() * s.a.cols() + s.b.rows() * s.b.cols();
    const LoraUpdate mine = lora_update(s.a, s.b, 0.5f);
    ApplyOptions how;
    const MatrixView<float> y = sum.view().block(0, s.out_first, tokens, s.b.rows());
    how.epilogue.residual = y;
    mine.apply(x.view().block(0, s.in_first, tokens, s.a.cols()), y, how);
  }
  CHECK(parameters == lora_parameters({out, in}, rank, side, shards));
  CHECK(parameters * 4 == static_cast<index_t>(whole.storage_bytes()));
  for (std::size_t i = 0; i < expected.size(); ++i)
    CHECK(std::abs(sum.values[i] - expected[i]) <= 1e-5f * (1.0f + std::abs(expected[i])));
}

TEST_CASE("factors that do not fit the shards are refused", "[structured]") {
  const Matrix a(8, 20, 1), b(12, 2, 2);
  CHECK_THROWS_AS(column_parallel_update(a.view(), b.view(), 3), ShapeError);                 // 3 does not divide r
  CHECK_THROWS_AS(column_parallel_update(a.view(), Matrix(10, 2, 1).view(), 4), ShapeError);  // nor 4 out
  CHECK_THROWS_AS(column_parallel_update(a.view(), Matrix(12, 8, 1).view(), 4), ShapeError);  // b of a LoRA
  CHECK_THROWS_AS(row_parallel_update(a.view(), b.view(), 4), ShapeError);                    // b has not r columns
  CHECK_THROWS_AS(row_parallel_update(a.view(), Matrix(12, 8, 1).view(), 0), ShapeError);
  CHECK_THROWS_AS(lora_shard(ShardedSide::output, a.view(), b.view(), 4, 4), ShapeError);
  CHECK_THROWS_AS(lora_shard(ShardedSide::output, a.view(), b.view(), 4, -1), ShapeError);
  CHECK_THROWS_AS(StackedBlocks<>::encode(a.view(), 3), ShapeError);
}

TEST_CASE("a block-diagonal LoRA of equal parameters has the larger rank", "[structured]") {
  // r (d + h) / (d + h / N): for d = h and N = 8 that is 1.78 r, cut to a multiple of 8.
  const MatrixShape w{4096, 4096};
  CHECK(equal_parameter_rank(w, 64, ShardedSide::output, 8) == 112);
  CHECK(equal_parameter_rank(w, 64, ShardedSide::input, 8) == 112);
  CHECK(equal_parameter_rank(w, 64, ShardedSide::output, 1) == 64);
  const MatrixShape up{11008, 4096};
  for (const index_t rank : {16, 37, 128}) {
    const index_t r = equal_parameter_rank(up, rank, ShardedSide::output, 4);
    CHECK(r % 4 == 0);
    CHECK(lora_parameters(up, r, ShardedSide::output, 4) <= lora_parameters(up, rank));
    CHECK(lora_parameters(up, r + 4, ShardedSide::output, 4) > lora_parameters(up, rank));
  }
  CHECK_THROWS_AS(equal_parameter_rank(w, 1, ShardedSide::output, 8), ValueError);
  CHECK_THROWS_AS(equal_parameter_rank({4095, 4096}, 64, ShardedSide::output, 8), ShapeError);
}

TEST_CASE("foreign ranks and shapes are refused", "[structured]") {
  const Matrix a(3, 20, 1), b(12, 4, 2), d(5, 7, 3);
  CHECK_THROWS_AS(lora_update(a.view(), b.view()), ShapeError);
  CHECK_THROWS_AS(lora_update(Matrix(0, 20, 1).view(), Matrix(12, 0, 1).view()), ValueError);
  CHECK_THROWS_AS(lora_update(a.view(), Matrix(12, 3, 2).view(), INFINITY), ValueError);
  CHECK_THROWS_AS(bone_update(Matrix(0, 12, 1).view(), 20), ValueError);
  CHECK_THROWS_AS(mini_update(d.view(), {12, 20}), ShapeError);  // 7 does not divide 12
  const auto base = Dense<float>::encode(Matrix(12, 21, 1).view());
  CHECK_THROWS_AS(Lora<Dense<float>>(base, lora_update(a.view(), Matrix(12, 3, 2).view())), ShapeError);
  const std::string text = refusal([&] { Bone<Dense<float>>(base, bone_update(Matrix(4, 12, 1).view(), 20)); });
  CHECK(names(text, to_string(MatrixShape{12, 21}).c_str()));
  CHECK(names(text, to_string(MatrixShape{12, 20}).c_str()));
}

TEST_CASE("factors may be of any form", "[structured]") {
  const Matrix w(12, 64, 1), a(4, 64, 2), b(12, 4, 3), x(3, 64, 4);
  const AdapterUpdate<Dense<bf16>, QuantizedMatrix<Mx>> update(Dense<bf16>::encode(a.view()),
                                                               QuantizedMatrix<Mx>::encode(b.view()), 2.0f);
  const Adapted op(QuantizedMatrix<Mx>::encode(w.view()), update);
  ApplyOptions how;
  how.activations = Activations::f32;
  const std::vector<float> y = apply(op, x, how), dense = decode(op);
  for (index_t m = 0; m < 3; ++m)
    for (index_t n = 0; n < 12; ++n) {
      const double expected = dot(std::span(x.values).subspan(static_cast<std::size_t>(m * 64), 64),
                                  std::span(dense).subspan(static_cast<std::size_t>(n * 64), 64));
      CHECK(std::abs(y[static_cast<std::size_t>(m * 12 + n)] - expected) <= 1e-4);
    }
  const auto again =
      AdapterUpdate<Dense<bf16>, QuantizedMatrix<Mx>>::from_sections({12, 64}, update.parameters(), update.sections());
  CHECK(decode(again) == decode(update));
  CHECK_THROWS_AS((AdapterUpdate<Dense<bf16>, QuantizedMatrix<Mx>>::from_sections(
                      {12, 64}, update.parameters(), std::vector<Section>{{"other.values", {}}})),
                  FormatError);
}

TEST_CASE("an epilogue may read and write the same memory", "[structured]") {
  const Matrix w(12, 20, 1), x(5, 20, 2), r(5, 12, 3);
  const auto op = Adapted(Dense<float>::encode(w.view()), updates(4)[0].second);
  for (const EpilogueFunction function : {EpilogueFunction::none, EpilogueFunction::silu}) {
    ApplyOptions how;
    how.epilogue.function = function;
    how.epilogue.residual = r.view();
    const std::vector<float> expected = apply(op, x, how);
    Matrix y = r;
    how.epilogue.residual = y.view();
    op.apply(x.view(), y.view(), how);
    CHECK(y.values == expected);
  }
}

/// A bank with an adapter of every kind and a few LoRAs of other ranks.
AdapterBank bank() {
  AdapterBank b({12, 20});
  for (auto& [name, update] : updates(21)) b.add(update);
  for (const index_t rank : {1, 2, 16, 33}) b.add(Matrix(rank, 20, 30).view(), Matrix(12, rank, 31).view(), 1.5f);
  return b;
}

TEST_CASE("a batch over many adapters gives each token its own", "[structured][kernels]") {
  const AdapterBank b = bank();
  const index_t tokens = 61;
  const Matrix x(tokens, 20, 1), w(12, 20, 2);
  std::vector<index_t> ids;
  for (index_t m = 0; m < tokens; ++m) ids.push_back((m * m + m / 7) % (b.size() + 2) - 2);  // -2 and -1: none
  const auto base = QuantizedMatrix<Mx>::encode(w.view());
  for (const Isa isa : levels_here()) {
    ApplyOptions how;
    how.execution.isa = isa;
    how.execution.batch_invariant = true;
    Matrix y(tokens, 12, 3);
    b.apply(base, x.view(), ids, y.view(), how);
    for (index_t m = 0; m < tokens; ++m) {
      CAPTURE(m, ids[static_cast<std::size_t>(m)], to_string(isa));
      const index_t id = ids[static_cast<std::size_t>(m)];
      Matrix alone(1, 12, 4);
      if (id < 0) {
        base.apply(x.view().rows_from(m, 1), alone.view(), how);
      } else {
        Adapted(base, b.update(id)).apply(x.view().rows_from(m, 1), alone.view(), how);
      }
      for (index_t n = 0; n < 12; ++n) REQUIRE(y.view()(m, n) == alone.view()(0, n));
    }
  }
}

TEST_CASE("a shuffled batch has the same bits", "[structured][kernels]") {
  const AdapterBank b = bank();
  const index_t tokens = 96;
  const Matrix x(tokens, 20, 1);
  const auto base = Dense<bf16>::encode(Matrix(12, 20, 2).view());
  std::vector<index_t> ids;
  for (index_t m = 0; m < tokens; ++m) ids.push_back(m < 70 ? 2 : m % b.size());  // one with many tokens
  for (const Isa isa : levels_here()) {
    for (const Activations mode : {Activations::automatic, Activations::bf16, Activations::int8}) {
      ApplyOptions how;
      how.execution.isa = isa;
      how.execution.batch_invariant = true;
      how.execution.threads = 1;
      how.activations = mode;
      Matrix y(tokens, 12, 3);
      b.apply(base, x.view(), ids, y.view(), how);
      for (const std::uint64_t seed : {1u, 2u, 3u}) {
        std::vector<index_t> order(static_cast<std::size_t>(tokens));
        std::iota(order.begin(), order.end(), index_t{0});
        Random random(seed);
        for (std::size_t i = order.size(); i > 1; --i)
          std::swap(order[i - 1], order[random.below(static_cast<std::uint32_t>(i))]);
        order.resize(order.size() - 11 * seed);  // and not all of it
        const auto count = static_cast<index_t>(order.size());
        Matrix mixed(count, 20, 0), z(count, 12, 0);
        std::vector<index_t> mixed_ids;
        for (index_t m = 0; m < count; ++m) {
          std::copy_n(x.view().row_data(order[static_cast<std::size_t>(m)]), 20, mixed.view().row_data(m));
          mixed_ids.push_back(ids[static_cast<std::size_t>(order[static_cast<std::size_t>(m)])]);
        }
        how.execution.threads = static_cast<int>(seed);
        b.apply(base, mixed.view(), mixed_ids, z.view(), how);
        CAPTURE(to_string(isa), to_string(mode), seed);
        for (index_t m = 0; m < count; ++m)
          REQUIRE(std::memcmp(z.view().row_data(m), y.view().row_data(order[static_cast<std::size_t>(m)]), 48) == 0);
      }
    }
  }
}

TEST_CASE("a bank takes bf16 and an epilogue", "[structured]") {
  const AdapterBank b = bank();
  const index_t tokens = 10;
  const auto base = Dense<float>::encode(Matrix(12, 20, 2).view());
  Matrix x(tokens, 20, 1);
  std::vector<bf16> x16;
  for (float& v : x.values) {
    x16.emplace_back(v);
    v = static_cast<float>(x16.back());
  }
  const std::vector<index_t> ids = {3, 0, 3, -1, 1, 1, 7, 3, 0, -2};
  const std::vector<float> bias = random_normal(12, 5);
  ApplyOptions how;
  how.activations = Activations::f32;
  how.epilogue.bias = bias;
  how.epilogue.function = EpilogueFunction::relu;
  Matrix y(tokens, 12, 3), sum(tokens, 12, 4);
  b.apply(base, x.view(), ids, y.view(), how);
  ApplyOptions plain;
  plain.activations = Activations::f32;
  base.apply(x.view(), sum.view(), plain);
  b.add_to(x.view(), ids, sum.view(), plain);
  for (std::size_t i = 0; i < y.values.size(); ++i) CHECK(y.values[i] == std::max(0.0f, sum.values[i] + bias[i % 12]));
  std::vector<bf16> y16(y.values.size());
  b.apply(base, MatrixView<const bf16>(x16.data(), tokens, 20), ids, MatrixView<bf16>(y16.data(), tokens, 12), how);
  for (std::size_t i = 0; i < y.values.size(); ++i) CHECK(y16[i].bits == bf16(y.values[i]).bits);
}

TEST_CASE("a bank refuses foreign ids and shapes before it writes", "[structured]") {
  AdapterBank b = bank();
  const Matrix x(3, 20, 1);
  Matrix y(3, 12, 2);
  const Matrix before = y;
  const std::array<index_t, 3> good = {0, 1, -1}, high = {0, b.size(), 1};
  CHECK(names(refusal([&] { b.add_to(x.view(), high, y.view()); }), "ids[1] = 10"));
  CHECK_THROWS_AS(b.add_to(x.view(), std::span(good).first(2), y.view()), ShapeError);
  CHECK_THROWS_AS(b.add_to(x.view().block(0, 0, 3, 19), good, y.view()), ShapeError);
  CHECK_THROWS_AS(b.add_to(x.view(), good, y.view().block(0, 0, 3, 11)), ShapeError);
  ApplyOptions how;
  how.epilogue.function = EpilogueFunction::relu;
  CHECK_THROWS_AS(b.add_to(x.view(), good, y.view(), how), ValueError);
  CHECK_THROWS_AS(b.apply(Dense<float>::encode(Matrix(12, 21, 1).view()), x.view(), good, y.view()), ShapeError);
  CHECK_THROWS_AS(b.add(Matrix(3, 21, 1).view(), Matrix(12, 3, 1).view()), ShapeError);
  CHECK_THROWS_AS(b.add(Matrix(3, 20, 1).view(), Matrix(12, 4, 1).view()), ShapeError);
  CHECK_THROWS_AS(b.update(b.size()), ShapeError);
  CHECK_THROWS_AS(b.update(-1), ShapeError);
  CHECK(b.size() == 10);
  CHECK(y.values == before.values);
}

TEST_CASE("no token and no adapter are fine", "[structured]") {
  const AdapterBank b = bank(), empty({12, 20});
  const auto base = Dense<float>::encode(Matrix(12, 20, 2).view());
  Matrix none(0, 20, 1), y(0, 12, 1);
  b.apply(base, none.view(), {}, y.view());
  for (const auto& [name, update] : updates(3)) CHECK(apply(Adapted(base, update), none).empty());
  const Matrix x(2, 20, 1);
  Matrix z(2, 12, 1);
  const std::array<index_t, 2> ids = {-1, -1};
  empty.apply(base, x.view(), ids, z.view());
  CHECK(z.values == apply(base, x));
}

}  // namespace
}  // namespace blockpack::test
