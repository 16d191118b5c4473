// SPDX-License-Identifier: Apache-2.0
/// The dense engine: every level, path, shape and layout against the double-precision reference within the bound of the
/// activation mode (docs/numerics.md), and the promises about bits, threads and memory.

#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "blockpack/core/engine.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/core/reference.hpp"
#include "dispatch.hpp"
#include "kernels/table.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/guard_page.hpp"
#include "support/levels.hpp"

using namespace blockpack;
using blockpack::test::budget;
using blockpack::test::Guard;
using blockpack::test::GuardedArray;
using blockpack::test::levels_here;

namespace {

/// A dense W in guarded memory of either type, or hidden behind decode functions.
struct Weights {
  Weights(index_t rows, index_t cols, WeightType weight_type, index_t row_stride, std::uint64_t seed)
      : type(weight_type),
        stride(row_stride),
        f32(static_cast<std::size_t>(type == WeightType::f32 && rows > 0 ? (rows - 1) * row_stride + cols : 0)),
        half(static_cast<std::size_t>(type == WeightType::bf16 && rows > 0 ? (rows - 1) * row_stride + cols : 0)) {
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    fill_weights({values.data(), rows, cols}, seed);
    source.rows = rows;
    source.cols = cols;
    source.self = this;
    source.decode_f32 = [](const void* self, index_t row, index_t col, index_t count, float* dst) {
      const auto& w = *static_cast<const Weights*>(self);
      for (index_t k = 0; k < count; ++k) dst[k] = w.at(row, col + k);
    };
    if (type == WeightType::bf16) {
      source.decode_bf16 = [](const void* self, index_t row, index_t col, index_t count, bf16* dst) {
        const auto& w = *static_cast<const Weights*>(self);
        for (index_t k = 0; k < count; ++k) dst[k] = w.half.data()[static_cast<std::size_t>(row * w.stride + col + k)];
      };
    }
    for (index_t n = 0; n < rows; ++n) {
      for (index_t k = 0; k < cols; ++k) {
        const float v = values[static_cast<std::size_t>(n * cols + k)];
        const auto place = static_cast<std::size_t>(n * stride + k);
        if (type == WeightType::f32) {
          f32[place] = v;
        } else {
          half[place] = bf16(v);
        }
      }
    }
  }
  float at(index_t n, index_t k) const {
    const auto place = static_cast<std::size_t>(n * stride + k);
    return type == WeightType::f32 ? f32.data()[place] : static_cast<float>(half.data()[place]);
  }
  RowSource in_place() const {
    RowSource w = source;
    w.dense = type == WeightType::f32 ? static_cast<const void*>(f32.data()) : half.data();
    w.dense_type = type;
    w.dense_row_stride = stride;
    return w;
  }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  WeightType type;
  index_t stride;
  GuardedArray<float> f32;
  GuardedArray<bf16> half;
  RowSource source;
};

/// x and y in guarded memory, f32 or bf16, with a row stride.
struct Batch {
  Batch(index_t rows, index_t cols, bool narrow, index_t row_stride)
      : m(rows),
        n(cols),
        stride(row_stride),
        is_bf16(narrow),
        f32(static_cast<std::size_t>(!narrow && rows > 0 ? (rows - 1) * row_stride + cols : 0)),
        half(static_cast<std::size_t>(narrow && rows > 0 ? (rows - 1) * row_stride + cols : 0)) {}
  void fill(std::uint64_t seed) {
    Random random(seed);
    for (index_t i = 0; i < m; ++i)
      for (index_t k = 0; k < n; ++k) {
        const float v = random.normal();
        if (is_bf16) {
          half[static_cast<std::size_t>(i * stride + k)] = bf16(v);
        } else {
          f32[static_cast<std::size_t>(i * stride + k)] = v;
        }
      }
  }
  float at(index_t i, index_t k) const {
    const auto place = static_cast<std::size_t>(i * stride + k);
    return is_bf16 ? static_cast<float>(half.data()[place]) : f32.data()[place];
  }
  ActivationView x() const {
    if (is_bf16) return MatrixView<const bf16>(half.data(), m, n, stride);
    return MatrixView<const float>(f32.data(), m, n, stride);
  }
  ResultView y() {
    if (is_bf16) return MatrixView<bf16>(half.data(), m, n, stride);
    return MatrixView<float>(f32.data(), m, n, stride);
  }

  index_t m, n, stride;
  bool is_bf16;
  GuardedArray<float> f32;
  GuardedArray<bf16> half;
};

double gamma_bound(double roundings) {
  const double u = std::ldexp(1.0, -24);
  return roundings * u / (1.0 - roundings * u);
}

/// y without an epilogue within the bound of the mode: style of docs/numerics.md, r = k additions, k products and the
/// rounding of x in the worst order.
void check_against_double(const Batch& x, const Weights& w, const Batch& y, Activations mode) {
  const index_t k_total = w.source.cols;
  const double roundings = static_cast<double>(k_total) + 4;
  double worst = 0;
  for (index_t m = 0; m < x.m; ++m) {
    for (index_t n = 0; n < w.source.rows; ++n) {
      double exact = 0;
      double magnitude = 0;
      double int8_error = 0;
      for (index_t group = 0; group < k_total; group += 32) {
        float absmax = 0;
        double weight_sum = 0;
        for (index_t k = group; k < std::min(group + 32, k_total); ++k) {
          const double product = static_cast<double>(x.at(m, k)) * w.at(n, k);
          exact += product;
          magnitude += std::fabs(product);
          weight_sum += std::fabs(w.at(n, k));
          absmax = std::max(absmax, std::fabs(x.at(m, k)));
        }
        int8_error += static_cast<double>(absmax) / 127.0 / 2.0 * weight_sum;
      }
      double bound = gamma_bound(roundings) * magnitude;
      if (mode == Activations::bf16)
        bound += (std::ldexp(1.0, -8) + std::ldexp(1.0, -16)) * magnitude +
                 static_cast<double>(k_total) * std::ldexp(1.0, -126);
      if (mode == Activations::int8) bound += int8_error * (1.0 + gamma_bound(roundings));
      if (y.is_bf16) bound += (std::fabs(exact) + bound) * std::ldexp(1.0, -8) + std::ldexp(1.0, -133);
      const double error = std::fabs(y.at(m, n) - exact);
      if (!(error <= bound)) {
        CAPTURE(m, n, exact, y.at(m, n), bound);
        REQUIRE(error <= bound);
      }
      worst = std::max(worst, bound > 0 ? error / bound : 0.0);
    }
  }
  REQUIRE(worst <= 1.0);
}

std::vector<std::uint32_t> bits_of(const Batch& y) {
  std::vector<std::uint32_t> bits;
  for (index_t m = 0; m < y.m; ++m)
    for (index_t n = 0; n < y.n; ++n) {
      std::uint32_t u;
      const float v = y.at(m, n);
      std::memcpy(&u, &v, sizeof(u));
      bits.push_back(u);
    }
  return bits;
}

struct Shape {
  index_t m, n, k;
};

/// Every way from x and W to y.
enum class Way { packed, in_place, decoded };

void run(const Batch& x, const Weights& w, Batch& y, Way way, Activations mode, const ApplyOptions& how) {
  if (way == Way::packed) {
    matmul(x.x(), PackedWeights::pack(w.in_place(), w.type, how.execution), y.y(), mode, how);
  } else {
    matmul(x.x(), way == Way::in_place ? w.in_place() : w.source, y.y(), mode, how);
  }
}

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all = {
      {1, 1, 1},    {1, 33, 31},    {2, 32, 32},  {3, 31, 33},   {4, 65, 257},   {5, 7, 513},  {8, 64, 512},
      {9, 37, 67},  {13, 100, 40},  {15, 33, 64}, {16, 32, 256}, {17, 129, 255}, {31, 97, 96}, {33, 40, 515},
      {67, 70, 33}, {130, 161, 37}, {0, 5, 7},    {3, 0, 7},     {3, 5, 0},      {1, 600, 40},
  };
  return all;
}

}  // namespace

TEST_CASE("every level, way and mode stays within the bound of its mode on awkward shapes", "[kernels][dense]") {
  const Isa isa = GENERATE(from_range(levels_here()));
  const auto type = GENERATE(WeightType::f32, WeightType::bf16);
  const auto way = GENERATE(Way::packed, Way::in_place, Way::decoded);
  const auto mode = GENERATE(Activations::f32, Activations::bf16, Activations::int8);
  for (const Shape& s : shapes()) {
    for (const bool narrow : {false, true}) {
      CAPTURE(to_string(isa), static_cast<int>(type), static_cast<int>(way), to_string(mode), s.m, s.n, s.k, narrow);
      const Weights w(s.n, s.k, type, s.k + (narrow ? 3 : 0), 11);
      Batch x(s.m, s.k, narrow, s.k + 1);
      x.fill(5);
      Batch y(s.m, s.n, narrow, s.n + 2);
      ApplyOptions how;
      how.execution.isa = isa;
      how.execution.threads = 1;
      run(x, w, y, way, mode, how);
      check_against_double(x, w, y, mode);
    }
  }
}

TEST_CASE("larger products cross every blocking boundary within the bound", "[kernels][dense]") {
  const Isa isa = GENERATE(from_range(levels_here()));
  const auto type = GENERATE(WeightType::f32, WeightType::bf16);
  const auto way = GENERATE(Way::packed, Way::decoded);
  const std::vector<Shape> large = {{300, 96, 1100}, {530, 70, 600}, {20, 1100, 1030}, {40, 1100, 530}, {2100, 40, 70}};
  const std::vector<Shape> small = {{20, 70, 1100}, {270, 40, 60}};
  for (const Shape& s : budget(large, small)) {
    CAPTURE(to_string(isa), static_cast<int>(type), static_cast<int>(way), s.m, s.n, s.k);
    const Weights w(s.n, s.k, type, s.k, 3);
    Batch x(s.m, s.k, false, s.k);
    x.fill(8);
    Batch y(s.m, s.n, false, s.n);
    ApplyOptions how;
    how.execution.isa = isa;
    how.execution.threads = 2;
    const Activations mode = resolve(Activations::automatic, type == WeightType::f32 ? 32 : 16, isa);
    run(x, w, y, way, mode, how);
    check_against_double(x, w, y, mode);
  }
}

TEST_CASE("large results are the same wherever rows of y start and end", "[kernels][dense]") {
  const Isa isa = GENERATE(from_range(levels_here()));
  const auto type = GENERATE(WeightType::f32, WeightType::bf16);
  const index_t m = budget<index_t>(190, 40);
  const index_t n = budget<index_t>(1400, 70);  // 1 MB of y: written past the caches
  const index_t k = 100;
  const Weights w(n, k, type, k, 31);
  Batch x(m, k, false, k);
  x.fill(32);
  const Activations mode = type == WeightType::f32 ? Activations::f32 : Activations::bf16;
  ApplyOptions how;
  how.execution.isa = isa;
  GuardedArray<float> bias(static_cast<std::size_t>(n));
  fill_normal(bias.span(), 33);
  how.epilogue.bias = bias.span();
  const PackedWeights packed = PackedWeights::pack(w.in_place(), type, how.execution);
  std::vector<float> expected;
  for (const index_t stride : {n, n + 8, n + 1}) {
    for (const std::size_t shift : {0u, 4u, 16u, 60u}) {
      const auto size = static_cast<std::size_t>((m - 1) * stride + n);
      GuardedArray<float> memory(size, Guard::after, shift);
      for (float& v : memory) v = 7.0f;  // between the rows it must stay
      matmul(x.x(), packed, MatrixView<float>(memory.data(), m, n, stride), mode, how);
      std::vector<float> bits(static_cast<std::size_t>(m * n));
      for (index_t i = 0; i < m; ++i) {
        std::memcpy(bits.data() + i * n, memory.data() + i * stride, static_cast<std::size_t>(n) * sizeof(float));
        for (index_t j = n; j < stride && i + 1 < m; ++j)
          if (memory[static_cast<std::size_t>(i * stride + j)] != 7.0f) FAIL("row " << i << " was overrun");
      }
      if (expected.empty()) {
        expected = bits;
        Batch sums(m, n, false, n);
        ApplyOptions plain = how;
        plain.epilogue.bias = {};
        matmul(x.x(), w.in_place(), sums.y(), mode, plain);
        index_t wrong = 0;
        for (index_t i = 0; i < m; ++i)
          for (index_t j = 0; j < n; ++j)
            wrong +=
                memory[static_cast<std::size_t>(i * stride + j)] != sums.at(i, j) + bias[static_cast<std::size_t>(j)];
        REQUIRE(wrong == 0);
      }
      CAPTURE(to_string(isa), stride, shift);
      REQUIRE(std::memcmp(bits.data(), expected.data(), bits.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("the bits of a product do not depend on the threads or the executor", "[kernels][dense]") {
  const Isa isa = GENERATE(from_range(levels_here()));
  const auto way = GENERATE(Way::packed, Way::in_place, Way::decoded);
  const auto type = GENERATE(WeightType::f32, WeightType::bf16);
  for (const Shape& s : {Shape{1, 777, 300}, Shape{7, 300, 700}, Shape{50, 300, 600}, Shape{290, 200, 530}}) {
    const Weights w(s.n, s.k, type, s.k, 1);
    Batch x(s.m, s.k, false, s.k);
    x.fill(2);
    ApplyOptions how;
    how.execution.isa = isa;
    const Activations mode = type == WeightType::f32 ? Activations::f32 : Activations::bf16;
    std::vector<std::uint32_t> expected;
    for (const int threads : {1, 2, 3}) {
      how.execution.threads = threads;
      if (threads == 3) {
        how.execution.executor = [](index_t n, const std::function<void(index_t)>& f) {
          std::thread other([&] {
            for (index_t i = n - 1; i >= 0; i -= 2) f(i);
          });
          for (index_t i = n - 2; i >= 0; i -= 2) f(i);
          other.join();
        };
      }
      Batch y(s.m, s.n, false, s.n);
      run(x, w, y, way, mode, how);
      if (expected.empty()) expected = bits_of(y);
      CAPTURE(to_string(isa), s.m, s.n, s.k, threads);
      REQUIRE(bits_of(y) == expected);
    }
  }
}

TEST_CASE("batch invariance: a row has the same bits alone and in every batch", "[kernels][dense]") {
  const Isa isa = GENERATE(from_range(levels_here()));
  const auto way = GENERATE(Way::packed, Way::in_place, Way::decoded);
  const auto type = GENERATE(WeightType::f32, WeightType::bf16);
  const auto mode = GENERATE(Activations::f32, Activations::bf16, Activations::int8);
  const index_t n = 150;
  const index_t k = 700;
  const Weights w(n, k, type, k, 21);
  Batch x(budget<index_t>(300, 40), k, false, k);
  x.fill(22);
  ApplyOptions how;
  how.execution.isa = isa;
  how.execution.threads = 1;
  how.execution.batch_invariant = true;
  Batch whole(x.m, n, false, n);
  run(x, w, whole, way, mode, how);
  for (const index_t m : {1, 2, 3, 4, 5, 8, 9, 17, 33}) {
    Batch part(m, k, false, k);
    for (index_t i = 0; i < m * k; ++i) part.f32[static_cast<std::size_t>(i)] = x.f32[static_cast<std::size_t>(i)];
    Batch y(m, n, false, n);
    run(part, w, y, way, mode, how);
    CAPTURE(to_string(isa), static_cast<int>(way), static_cast<int>(type), to_string(mode), m);
    const std::vector<std::uint32_t> all = bits_of(whole);
    REQUIRE(bits_of(y) == std::vector<std::uint32_t>(all.begin(), all.begin() + m * n));
  }
}

TEST_CASE("blocks of bf16: the bits of a sum depend on neither the tiles, nor the panels, nor the cuts of K",
          "[kernels][dense]") {
  constexpr index_t kDepth = 19 * kernels::kBf16Step, kPanels = 3, kColumns = kPanels * kernels::kPanelColumns;
  GuardedArray<std::uint16_t> w(static_cast<std::size_t>(kPanels * kDepth * kernels::kPanelColumns));
  Random random(7);
  for (auto& v : w) v = bf16(random.normal()).bits;
  const auto weight = [&](index_t n, index_t k) {
    const index_t place = k / 32 * 1024 + n % 32 / 16 * 512 + k % 32 / 2 * 32 + n % 16 * 2 + k % 2;
    return static_cast<double>(
        static_cast<float>(bf16::from_bits(w[static_cast<std::size_t>(n / 32 * kDepth * 32 + place)])));
  };
  const Isa isa = GENERATE(from_range(levels_here()));
  for (const kernels::Features features : kernels::feature_sets(isa)) {
    const kernels::BlockKernel kernel = kernels::make_table(isa, features).dense.block_bf16;
    if (kernel.multiply.fn == nullptr) continue;
    const index_t most = 3 * kernel.max_tile_rows - 1;
    std::vector<std::uint16_t> x(static_cast<std::size_t>(most * kDepth));
    for (auto& v : x) v = bf16(random.normal()).bits;
    // Tokens [first, first + tokens) in tiles of so many rows.
    const auto product = [&](index_t first, index_t tokens, index_t tile_rows, const std::vector<index_t>& cuts,
                             bool hints) {
      const index_t tiles = (tokens + tile_rows - 1) / tile_rows, rows = tiles * tile_rows;
      std::vector<float> sums(static_cast<std::size_t>(rows * kColumns), 3.0f);
      index_t k0 = 0;
      for (const index_t depth : cuts) {
        GuardedArray<std::uint16_t> packed(static_cast<std::size_t>(rows * depth));
        for (auto& v : packed) v = 0;
        for (index_t m = 0; m < tokens; ++m)
          for (index_t k = 0; k < depth; ++k)
            packed[static_cast<std::size_t>(m / tile_rows * tile_rows * depth + k / 32 * tile_rows * 32 +
                                            m % tile_rows * 32 + k % 32)] =
                x[static_cast<std::size_t>((first + m) * kDepth + k0 + k)];
        kernels::BlockProduct b{};
        b.x = packed.data();
        b.x_tile_bytes = tile_rows * depth * 2;
        b.tiles = tiles;
        b.tile_rows = tile_rows;
        b.rows = tokens;
        b.w = w.data() + k0 * kernels::kPanelColumns;
        b.w_panel_bytes = kDepth * kernels::kPanelColumns * 2;
        b.panels = kPanels;
        b.depth = depth;
        b.sums = sums.data();
        b.sums_panel = rows * kernels::kPanelColumns;
        b.accumulate = k0 > 0;
        if (hints) {
          b.next_w = w.data();
          b.next_x = packed.data();
          b.next_x_bytes = rows * depth * 2;
        }
        kernel.multiply.fn(b);
        k0 += depth;
      }
      std::vector<float> y(static_cast<std::size_t>(tokens * kColumns));
      for (index_t m = 0; m < tokens; ++m)
        for (index_t n = 0; n < kColumns; ++n)
          y[static_cast<std::size_t>(m * kColumns + n)] =
              sums[static_cast<std::size_t>(n / 32 * rows * 32 + m * 32 + n % 32)];
      return y;
    };
    CAPTURE(to_string(isa), kernels::feature_names(features), kernel.multiply.isa);
    const std::vector<float> all = product(0, most, kernel.max_tile_rows, {kDepth}, false);
    for (index_t m = 0; m < most; m += most - 1)
      for (index_t n = 0; n < kColumns; ++n) {
        double exact = 0, magnitude = 0;
        for (index_t k = 0; k < kDepth; ++k) {
          const double value =
              static_cast<float>(bf16::from_bits(x[static_cast<std::size_t>(m * kDepth + k)])) * weight(n, k);
          exact += value;
          magnitude += std::fabs(value);
        }
        REQUIRE(std::fabs(all[static_cast<std::size_t>(m * kColumns + n)] - exact) <=
                (gamma_bound(kDepth) + std::ldexp(1.0, -16)) * magnitude);
      }
    for (index_t tile_rows = 1; tile_rows <= kernel.max_tile_rows; ++tile_rows)
      for (const index_t tokens : {tile_rows, 2 * tile_rows - 1, 3 * tile_rows - 1})
        for (const std::vector<index_t>& cuts : {std::vector<index_t>{kDepth}, {512, 96}, {256, 320, 32}})
          for (const bool hints : {false, true}) {
            const index_t first = most - tokens;
            CAPTURE(tile_rows, tokens, cuts.size(), hints);
            REQUIRE(std::memcmp(product(first, tokens, tile_rows, cuts, hints).data(), all.data() + first * kColumns,
                                static_cast<std::size_t>(tokens * kColumns) * sizeof(float)) == 0);
          }
  }
}

TEST_CASE("the epilogue scales the tokens, adds the bias, applies the function, gates and adds the residual",
          "[kernels][dense]") {
  const Isa isa = GENERATE(from_range(levels_here()));
  const auto function =
      GENERATE(EpilogueFunction::none, EpilogueFunction::relu, EpilogueFunction::gelu, EpilogueFunction::silu);
  const auto narrow = GENERATE(false, true);
  for (const Shape& s : {Shape{1, 75, 64}, Shape{6, 75, 64}, Shape{40, 131, 96}}) {
    const Weights w(s.n, s.k, WeightType::f32, s.k, 4);
    Batch x(s.m, s.k, false, s.k);
    x.fill(6);
    for (index_t i = 0; i < s.m * s.k; ++i) x.f32[static_cast<std::size_t>(i)] *= 20.0f;  // sums reach the tails
    GuardedArray<float> bias(static_cast<std::size_t>(s.n));
    fill_normal(bias.span(), 7);
    Batch gate(s.m, s.n, false, s.n + 3);
    gate.fill(8);
    Batch residual(s.m, s.n, false, s.n + 1);
    residual.fill(9);
    GuardedArray<float> scales(static_cast<std::size_t>(s.m));
    fill_normal(scales.span(), 10);
    for (const int parts : {0, 1, 2, 4, 7, 8, 15}) {
      ApplyOptions how;
      how.execution.isa = isa;
      how.epilogue.function = function;
      if (parts & 1) how.epilogue.bias = bias.span();
      if (parts & 2) how.epilogue.gate = gate.x().f32();
      if (parts & 4) how.epilogue.residual = residual.x().f32();
      if (parts & 8) how.epilogue.token_scales = scales.span();
      Batch y(s.m, s.n, narrow, s.n);
      run(x, w, y, Way::packed, Activations::f32, how);
      Batch sums(s.m, s.n, false, s.n);
      ApplyOptions plain;
      plain.execution.isa = isa;
      run(x, w, sums, Way::packed, Activations::f32, plain);
      const double u = std::ldexp(1.0, -24);
      for (index_t m = 0; m < s.m; ++m)
        for (index_t n = 0; n < s.n; ++n) {
          // From the float32 sum on, everything in double. Scale and bias cost one rounding each, which gelu and silu
          // (slope at most 1.13) pass on; the functions are good to 8 u of |v|; gate and residual one rounding each.
          double v = sums.at(m, n);
          double bound = 0;
          if (parts & 8) {
            v *= double{scales[static_cast<std::size_t>(m)]};
            bound += 1.13 * std::fabs(v) * u;
          }
          if (parts & 1) v += bias[static_cast<std::size_t>(n)];
          bound += 1.13 * std::fabs(v) * u;
          const double argument = v;
          v = reference::apply_function(function, v);
          if (function != EpilogueFunction::none) bound += 8 * u * std::fabs(argument);
          const double g = parts & 2 ? gate.at(m, n) : 1.0;
          v *= g;
          bound = bound * std::fabs(g) + std::fabs(v) * u;
          if (parts & 4) v += residual.at(m, n);
          bound += std::fabs(v) * u + 1e-36;
          if (narrow) bound += (std::fabs(v) + bound) * std::ldexp(1.0, -8);
          if (!(std::fabs(y.at(m, n) - v) <= bound)) {
            CAPTURE(to_string(isa), static_cast<int>(function), parts, m, n, sums.at(m, n), v, y.at(m, n), bound);
            REQUIRE(std::fabs(y.at(m, n) - v) <= bound);
          }
        }
    }
  }
  SUCCEED();
}

TEST_CASE("the residual may be y itself", "[kernels][dense]") {
  const Isa isa = GENERATE(from_range(levels_here()));
  for (const index_t m : {1, 20}) {
    const Weights w(70, 50, WeightType::f32, 50, 4);
    Batch x(m, 50, false, 50);
    x.fill(1);
    Batch y(m, 70, false, 70);
    y.fill(2);
    Batch before(m, 70, false, 70);
    before.fill(2);
    Batch expected(m, 70, false, 70);
    ApplyOptions how;
    how.execution.isa = isa;
    how.epilogue.residual = before.x().f32();
    run(x, w, expected, Way::packed, Activations::f32, how);
    how.epilogue.residual = y.x().f32();
    run(x, w, y, Way::packed, Activations::f32, how);
    REQUIRE(bits_of(y) == bits_of(expected));
  }
}

TEST_CASE("the transposed product agrees with the double reference", "[kernels][dense]") {
  const Isa isa = GENERATE(from_range(levels_here()));
  const auto type = GENERATE(WeightType::f32, WeightType::bf16);
  for (const Shape& s : {Shape{1, 3, 2}, Shape{3, 300, 1100}, Shape{40, 33, 513}, Shape{2, 5, 0}, Shape{2, 0, 5}}) {
    const Weights w(s.n, s.k, type, s.k + 1, 17);
    Batch y(s.m, s.n, false, s.n);
    y.fill(18);
    Batch x(s.m, s.k, false, s.k + 1);
    ApplyOptions how;
    how.execution.isa = isa;
    matmul_transpose(y.x().f32(), w.in_place(), x.y().f32(), how);
    for (index_t m = 0; m < s.m; ++m)
      for (index_t k = 0; k < s.k; ++k) {
        double exact = 0;
        double magnitude = 0;
        for (index_t n = 0; n < s.n; ++n) {
          const double product = static_cast<double>(y.at(m, n)) * w.at(n, k);
          exact += product;
          magnitude += std::fabs(product);
        }
        REQUIRE(std::fabs(x.at(m, k) - exact) <= gamma_bound(static_cast<double>(s.n) + 2) * magnitude);
      }
  }
}

TEST_CASE("packing refuses memory that is too small or unaligned and takes the caller's otherwise",
          "[kernels][dense]") {
  const Weights w(40, 50, WeightType::bf16, 50, 1);
  const Execution how;
  const std::size_t bytes = PackedWeights::bytes_needed({40, 50}, WeightType::bf16, how.level());
  AlignedBuffer<std::byte> memory(static_cast<index_t>(bytes + 64));
  REQUIRE_THROWS_AS(PackedWeights::pack(w.source, WeightType::bf16, how, memory.span().first(bytes - 1)), ShapeError);
  REQUIRE_THROWS_AS(PackedWeights::pack(w.source, WeightType::bf16, how, memory.span().subspan(1, bytes)), ShapeError);
  const PackedWeights packed = PackedWeights::pack(w.source, WeightType::bf16, how, memory.span().first(bytes));
  REQUIRE(packed.data() == memory.data());
  REQUIRE(packed.bytes() == bytes);
  // Dense rows read in place and decoded rows pack to the same bytes.
  const PackedWeights other = PackedWeights::pack(w.in_place(), WeightType::bf16, how);
  REQUIRE(std::memcmp(packed.data(), other.data(), bytes) == 0);
}

TEST_CASE("automatic activations are bf16 where the level multiplies bf16 and the weights are narrow",
          "[kernels][dense]") {
  for (const Isa isa : levels_here()) {
    const bool dots = kernels::table_for(isa).dense.few_f32_bf16_bf16.fn != nullptr;
    REQUIRE(resolve(Activations::automatic, 32, isa) == Activations::f32);
    REQUIRE(resolve(Activations::automatic, 16, isa) == (dots ? Activations::bf16 : Activations::f32));
    REQUIRE(resolve(Activations::int8, 16, isa) == Activations::int8);
  }
}

TEST_CASE("kernels that move numbers agree with the scalar ones bit for bit", "[kernels][dense][smoke]") {
  const Isa isa = GENERATE(from_range(levels_here()));
  const auto& scalar = kernels::table_for(Isa::scalar).dense;
  const auto& level = kernels::table_for(isa).dense;
  Random random(99);
  for (const std::size_t n : {1u, 7u, 16u, 31u, 32u, 33u, 64u, 100u, 515u}) {
    GuardedArray<float> x(n);
    for (float& v : x) {
      const auto bits = static_cast<std::uint32_t>(random());  // every kind of float, NaN and subnormals among them
      std::memcpy(&v, &bits, sizeof(v));
    }
    const auto size = static_cast<index_t>(n);
    const std::size_t padded = (n + 31) / 32 * 32;
    GuardedArray<std::uint16_t> a(padded), b(padded);
    scalar.pack_bf16_f32.fn(x.data(), size, a.data(), 32);
    level.pack_bf16_f32.fn(x.data(), size, b.data(), 32);
    REQUIRE(std::memcmp(a.data(), b.data(), padded * 2) == 0);
    for (std::size_t i = 0; i < n; ++i) REQUIRE(a[i] == bf16(x[i]).bits);
    GuardedArray<std::uint16_t> narrow(n);
    std::memcpy(narrow.data(), a.data(), n * 2);
    level.pack_bf16_bf16.fn(narrow.data(), size, b.data(), 32);
    REQUIRE(std::memcmp(a.data(), b.data(), padded * 2) == 0);
    GuardedArray<float> wide(n);
    level.widen.fn(narrow.data(), size, wide.data());
    for (std::size_t i = 0; i < n; ++i) {
      const float v = static_cast<float>(bf16::from_bits(narrow[i]));
      REQUIRE(std::memcmp(&wide[i], &v, sizeof(v)) == 0);
    }
    GuardedArray<float> rounded(n);
    std::memcpy(rounded.data(), x.data(), n * 4);
    level.round_bf16.fn(rounded.data(), size);
    REQUIRE(std::memcmp(rounded.data(), wide.data(), n * 4) == 0);
    GuardedArray<float> grid(n);
    fill_normal(grid.span(), n);
    std::vector<float> expected(grid.begin(), grid.end());
    reference::round_activations(expected, Activations::int8);
    level.round_int8.fn(grid.data(), size);
    for (std::size_t i = 0; i < n; ++i) REQUIRE(grid[i] == expected[i]);
  }
  for (const std::ptrdiff_t words : {16, 48}) {
    GuardedArray<std::uint32_t> src(static_cast<std::size_t>(15 * 50 + words));
    for (auto& v : src) v = static_cast<std::uint32_t>(random());
    std::vector<std::uint32_t> a(static_cast<std::size_t>(words * 32)), b(a);
    scalar.transpose16.fn(src.data(), 50, words, a.data(), 32, 512);
    level.transpose16.fn(src.data(), 50, words, b.data(), 32, 512);
    REQUIRE(a == b);
  }
  std::vector<std::uint16_t> panel(96 * 32);
  for (auto& v : panel) v = static_cast<std::uint16_t>(random());
  std::vector<float> a(96 * 32), b(a);
  scalar.widen_panel.fn(panel.data(), 96, a.data());
  level.widen_panel.fn(panel.data(), 96, b.data());
  REQUIRE(std::memcmp(a.data(), b.data(), a.size() * 4) == 0);
}

TEST_CASE("the float reference agrees with the double reference", "[kernels][dense][smoke]") {
  const Weights w(20, 70, WeightType::bf16, 70, 2);
  Batch x(3, 70, false, 70);
  x.fill(3);
  const auto mode = GENERATE(Activations::f32, Activations::bf16, Activations::int8);
  Batch y(3, 20, false, 20);
  reference::matmul(x.x(), w.source, y.y(), mode, {});
  check_against_double(x, w, y, mode);
  Batch back(3, 70, false, 70);
  reference::matmul_transpose(y.x().f32(), w.source, back.y().f32(), {});
  Batch engine(3, 70, false, 70);
  matmul_transpose(y.x().f32(), w.source, engine.y().f32(), {});
  for (index_t m = 0; m < 3; ++m)
    for (index_t k = 0; k < 70; ++k) {
      double magnitude = 0;
      for (index_t n = 0; n < 20; ++n) magnitude += std::fabs(double(y.at(m, n)) * w.at(n, k));
      REQUIRE(std::fabs(back.at(m, k) - engine.at(m, k)) <= 2 * gamma_bound(22) * magnitude);
    }
}
