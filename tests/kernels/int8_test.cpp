// SPDX-License-Identifier: Apache-2.0
/// Products of int8_token activations with packed 8-bit codes: every level, kind of group, awkward shapes, the longest
/// integer sums, and the promises about bits, threads and memory.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "blockpack/core/random.hpp"
#include "blockpack/core/reference.hpp"
#include "blockpack/core/row_matrix.hpp"
#include "blockpack/quant/group_int.hpp"
#include "kernels/guarded_product.hpp"
#include "kernels/table.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/guard_page.hpp"
#include "support/levels.hpp"
#include "support/product_check.hpp"
#include "support/random.hpp"

using namespace blockpack;
using namespace blockpack::test;

namespace {

/// Random 8-bit codes, 0 and 255 often; scales are powers of two, so that decoded weights are exact.
struct Bytes {
  Bytes(MatrixShape s, index_t group, bool with_zeros, std::uint64_t seed) : shape(s) {
    spec.bits = 8;
    spec.group = group == 0 ? round_up(std::max<index_t>(s.cols, 1), 32) : group;
    spec.scale = group == 0 ? CodeScale::f32 : CodeScale::fp16;
    spec.zeros = with_zeros;
    spec.zero = with_zeros ? 0 : 128;
    Random random(seed);
    for (index_t i = 0; i < s.rows * s.cols; ++i) {
      const auto draw = static_cast<std::uint32_t>(random());
      codes.push_back(static_cast<std::uint8_t>(draw % 5 == 0 ? 0 : draw % 5 == 1 ? 255 : draw >> 24));
    }
    for (index_t g = 0; g < s.rows * spec.groups(s.cols); ++g) {
      const auto draw = static_cast<std::uint32_t>(random());
      scales.push_back(exp2i(static_cast<int>(draw % 12) - 8));
      zeros.push_back(with_zeros ? static_cast<std::uint8_t>(draw >> 24) : 0);
    }
  }

  CodeSource source() const {
    return {shape.rows, shape.cols, spec, this, [](const void* self, index_t row, const CodeRow& dst) {
              const auto& b = *static_cast<const Bytes*>(self);
              std::copy_n(b.codes.data() + row * b.shape.cols, b.shape.cols, dst.codes.data());
              const index_t groups = b.spec.groups(b.shape.cols);
              for (std::size_t g = 0; g < dst.scales.size(); ++g) {
                const float scale = b.scales[static_cast<std::size_t>(row * groups) + g];
                dst.scales[g] = b.spec.scale == CodeScale::f32 ? std::bit_cast<std::uint32_t>(scale) : fp16(scale).bits;
                if (b.spec.zeros) dst.zeros[g] = b.zeros[static_cast<std::size_t>(row * groups) + g];
              }
            }};
  }
  std::vector<float> values() const {
    std::vector<float> w;
    for (index_t i = 0; i < shape.rows * shape.cols; ++i) {
      const index_t row = i / shape.cols, group = row * spec.groups(shape.cols) + i % shape.cols / spec.group;
      const int zero = spec.zeros ? zeros[static_cast<std::size_t>(group)] : spec.zero;
      w.push_back(scales[static_cast<std::size_t>(group)] *
                  static_cast<float>(codes[static_cast<std::size_t>(i)] - zero));
    }
    return w;
  }

  MatrixShape shape;
  CodeSpec spec;
  std::vector<std::uint8_t> codes, zeros;
  std::vector<float> scales;
};

ApplyOptions options(Isa isa, int threads = 1) {
  ApplyOptions how;
  how.execution.isa = isa;
  how.execution.threads = threads;
  how.activations = Activations::int8_token;
  return how;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

std::vector<Isa> levels_of_codes() {
  std::vector<Isa> levels;
  for (const Isa isa : levels_here())
    if (multiplies_codes(isa)) levels.push_back(isa);
  return levels;
}

/// What y may be: sums in double of x rounded as the reference rounds it, where only the sums may differ, and of x as
/// it is, within the bound of the mode.
struct Expected {
  Expected(const Bytes& w, const std::vector<float>& x, index_t tokens) {
    const std::vector<float> values = w.values();
    const auto k = static_cast<std::size_t>(w.shape.cols);
    for (index_t m = 0; m < tokens; ++m) {
      const std::span<const float> given(x.data() + m * w.shape.cols, k);
      std::vector<float> row(given.begin(), given.end());
      reference::round_activations(row, Activations::int8_token);
      for (index_t n = 0; n < w.shape.rows; ++n) {
        const std::span<const float> weights(values.data() + n * w.shape.cols, k);
        tight.push_back(check_product(row, weights, Activations::f32, true));
        promised.push_back(check_product(given, weights, Activations::int8_token, true));
      }
    }
  }
  /// Of the first tokens.
  void check(const std::vector<float>& y) const {
    for (std::size_t i = 0; i < y.size(); ++i) {
      for (const ProductCheck& c : {tight[i], promised[i]}) {
        if (std::abs(y[i] - c.value) <= c.bound) continue;
        CAPTURE(i, y[i], c.value, c.bound);
        REQUIRE(std::abs(y[i] - c.value) <= c.bound);
      }
    }
  }
  std::vector<ProductCheck> tight, promised;
};

TEST_CASE("int8_token products with 8-bit codes are within their bound on every level", "[kernels][int8]") {
  struct Form {
    index_t group;
    bool zeros;
  };
  const Form form = GENERATE(Form{0, false}, Form{0, true}, Form{128, false}, Form{128, true}, Form{192, false},
                             Form{1088, false}, Form{2048, false}, Form{32, false});
  for (const MatrixShape shape : {MatrixShape{3, 0}, MatrixShape{1, 1}, MatrixShape{17, 33}, MatrixShape{33, 64},
                                  MatrixShape{50, 97}, MatrixShape{37, 417}, MatrixShape{17, 2341}}) {
    if (small_budget() && shape.cols > 500) continue;
    const Bytes w(shape, form.group, form.zeros, 7);
    GuardedArray<std::byte> memory(PackedCodes::bytes_needed(shape, w.spec));
    const PackedCodes packed = PackedCodes::pack(w.source(), {}, memory.span());
    const index_t tokens = shape.cols > 500 ? 35 : 50;
    const std::vector<float> x = random_weights(tokens, shape.cols, 3);
    const Expected expected(w, x, tokens);
    for (const Isa isa : levels_of_codes()) {
      CAPTURE(form.group, form.zeros, to_string(shape), to_string(isa));
      if (!multiplies_int8(w.spec, shape.cols, isa)) {  // x is rounded and multiplied as floats
        expected.check(multiply(packed, x, 9, options(isa)));
        continue;
      }
      const std::vector<float> all = multiply(packed, x, tokens, options(isa));
      expected.check(all);
      // A token has the same bits in every batch, and for every number of threads.
      for (const index_t some : {0, 1, 2, 8, 9, 15, 16, 17, 31, 33}) {
        const std::vector<float> y = multiply(packed, x, some, options(isa, static_cast<int>(some % 3) + 1));
        REQUIRE(same_bits(y, {all.begin(), all.begin() + some * shape.rows}));
      }
    }
  }
}

TEST_CASE("integer sums longer than an int32 holds are taken in parts", "[kernels][int8]") {
  // 255 * 127 * 66311 is the last product of extremes below 2^31; the engine converts after 65536 k.
  const index_t k = 70000;
  Bytes w({17, k}, 0, false, 1);
  w.spec.zero = 0;
  std::fill(w.codes.begin(), w.codes.end(), std::uint8_t{255});
  std::fill(w.scales.begin(), w.scales.end(), 1.0f);
  const PackedCodes packed = PackedCodes::pack(w.source(), {});
  for (const float sign : {-1.0f, 1.0f}) {
    const std::vector<float> x(static_cast<std::size_t>(k * 3), 127.0f * sign);  // a = 1
    const double expected = 255.0 * 127.0 * static_cast<double>(k) * static_cast<double>(sign);
    for (const Isa isa : levels_of_codes()) {
      if (!multiplies_int8(w.spec, k, isa)) continue;
      for (const float got : multiply(packed, x, 3, options(isa)))
        REQUIRE(std::abs(got - expected) <= gamma_bound(4) * std::abs(expected));
    }
  }
}

TEST_CASE("tokens of zeros, of the smallest and largest floats, and with NaN or infinity", "[kernels][int8]") {
  const MatrixShape shape{20, 200};
  const Bytes w(shape, 0, false, 5);
  const PackedCodes packed = PackedCodes::pack(w.source(), {});
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const Isa isa : levels_of_codes()) {
    for (const float unit : {0.0f, 0x1p-149f, 0x1p-146f, 0x1p-130f, 0x1p-70f, 0x1p100f}) {
      std::vector<float> x = random_normal(2 * shape.cols, 3);
      for (float& v : x) v *= unit;
      CAPTURE(to_string(isa), unit);
      Expected(w, x, 2).check(multiply(packed, x, 2, options(isa)));
    }
    if (!multiplies_int8(w.spec, shape.cols, isa)) continue;
    for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
      std::vector<float> x = random_normal(3 * shape.cols, 3);
      x[static_cast<std::size_t>(shape.cols) + 130] = bad;
      const std::vector<float> y = multiply(packed, x, 3, options(isa));
      for (std::size_t i = 0; i < y.size(); ++i) REQUIRE(std::isnan(y[i]) == (i / 20 == 1));
    }
  }
}

TEST_CASE("int8_token products take every epilogue, bf16 x and y, and write large y themselves", "[kernels][int8]") {
  const index_t tokens = budget<index_t>(197, 33), k = 150;
  for (const index_t n : {budget<index_t>(1408, 64), index_t{45}}) {
    const Bytes w({n, k}, 128, false, 9);
    const PackedCodes packed = PackedCodes::pack(w.source(), {});
    std::vector<float> x = random_normal(tokens * k, 3);
    std::vector<bf16> x16;
    for (float& v : x) {
      x16.emplace_back(v);
      v = static_cast<float>(x16.back());
    }
    const std::vector<float> bias = random_normal(n, 4), scales = random_normal(tokens, 5);
    const std::vector<float> residual = random_normal(tokens * n, 6);
    for (const Isa isa : levels_of_codes()) {
      if (n > 45 && !multiplies_int8(w.spec, k, isa)) continue;
      CAPTURE(to_string(isa), n);
      const std::vector<float> plain = multiply(packed, x, tokens, options(isa));
      ApplyOptions how = options(isa, 2);
      how.epilogue.bias = bias;
      const std::vector<float> biased = multiply(packed, x, tokens, how);
      how.epilogue.function = EpilogueFunction::relu;
      how.epilogue.token_scales = scales;
      how.epilogue.residual = MatrixView<const float>(residual.data(), tokens, n);
      const std::vector<float> full = multiply(packed, x, tokens, how);
      std::vector<float> wide(plain.size());
      std::vector<bf16> y16(plain.size());
      // Rows of y that start on no line: no streaming stores.
      GuardedArray<float> strided(static_cast<std::size_t>((tokens - 1) * (n + 3) + n));
      std::fill(strided.begin(), strided.end(), 7.0f);
      const MatrixView<const bf16> narrow(x16.data(), tokens, k);
      matmul(narrow, packed, MatrixView<float>(wide.data(), tokens, n), Activations::int8_token, options(isa));
      matmul(narrow, packed, MatrixView<bf16>(y16.data(), tokens, n), Activations::int8_token, options(isa));
      matmul(narrow, packed, MatrixView<float>(strided.data(), tokens, n, n + 3), Activations::int8_token,
             options(isa));
      REQUIRE(same_bits(wide, plain));
      index_t wrong = 0;
      for (index_t m = 0; m < tokens; ++m) {
        for (index_t j = 0; j < n; ++j) {
          const auto i = static_cast<std::size_t>(m * n + j);
          const float b = bias[static_cast<std::size_t>(j)], s = scales[static_cast<std::size_t>(m)];
          wrong += biased[i] != plain[i] + b;
          const volatile float scaled = plain[i] * s;  // two roundings: Arm compilers would fuse the sum
          wrong += full[i] != std::max(scaled + b, 0.0f) + residual[i];
          wrong += y16[i].bits != bf16(plain[i]).bits;
          wrong += strided[static_cast<std::size_t>(m * (n + 3) + j)] != plain[i];
        }
        for (index_t j = n; j < n + 3 && m + 1 < tokens; ++j)
          wrong += strided[static_cast<std::size_t>(m * (n + 3) + j)] != 7.0f;
      }
      REQUIRE(wrong == 0);
    }
  }
}

TEST_CASE("large int8_token products cross every blocking boundary, with the same bits for any number of threads",
          "[kernels][int8][long]") {
  struct Shape {
    index_t m, n, k;
  };
  for (const Shape& s : {Shape{300, 130, 2200}, Shape{530, 96, 1100}, Shape{70, 1100, 1030}, Shape{2100, 40, 70}}) {
    if (small_budget()) continue;
    for (const index_t group : {0, 128, 1088}) {
      const Bytes w({s.n, s.k}, group, false, 11);
      const PackedCodes packed = PackedCodes::pack(w.source(), {});
      const std::vector<float> x = random_weights(s.m, s.k, 3);
      for (const Isa isa : levels_of_codes()) {
        if (!multiplies_int8(w.spec, s.k, isa)) continue;
        CAPTURE(s.m, s.n, s.k, group, to_string(isa));
        const std::vector<float> y = multiply(packed, x, s.m, options(isa));
        for (const int threads : {2, 3}) REQUIRE(same_bits(y, multiply(packed, x, s.m, options(isa, threads))));
        // Some tokens: the reference in double is slow.
        for (const index_t m : {index_t{0}, s.m / 2, s.m - 1}) {
          const auto row = [](const std::vector<float>& v, index_t i, index_t width) {
            return std::vector<float>(v.begin() + i * width, v.begin() + (i + 1) * width);
          };
          Expected(w, row(x, m, s.k), 1).check(row(y, m, s.n));
        }
      }
    }
  }
  SUCCEED();
}

TEST_CASE("an operator multiplies in int8_token by its packed codes where the level can", "[kernels][int8]") {
  const index_t n = 40, k = 300, tokens = 12;
  const std::vector<float> w = random_weights(n, k, 1), x = random_normal(tokens * k, 2);
  const auto op = RowMatrix<GroupInt>::encode(MatrixView<const float>(w.data(), n, k), {.bits = 8, .group_size = 0});
  std::vector<float> y(static_cast<std::size_t>(tokens * n));
  ApplyOptions how;
  how.activations = Activations::int8_token;
  op.apply(MatrixView<const float>(x.data(), tokens, k), MatrixView<float>(y.data(), tokens, n), how);
  if (kernels::active().int8.multiply.fn != nullptr) CHECK(op.packed_bytes() > 0);
  CHECK(op.activation_mode(tokens, how) == Activations::int8_token);
  CHECK(op.activation_mode(tokens) != Activations::int8_token);
}

}  // namespace
