// SPDX-License-Identifier: Apache-2.0
/// Products with packed 2:4 weights: every level, set of features, type and number of tokens against sums in double,
/// and the promises about bits, threads and memory.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "blockpack/core/any_row_format.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/quant/group_int.hpp"
#include "blockpack/sparse/n_m.hpp"
#include "cpu.hpp"
#include "dispatch.hpp"
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

/// Random rows of which every four neighbours keep two at random places, or fewer.
std::vector<float> two_of_four(MatrixShape shape, WeightType type, std::uint64_t seed) {
  std::vector<float> w = random_normal(shape.rows * shape.cols, seed);
  Random random(seed + 1);
  for (index_t row = 0; row < shape.rows; ++row)
    for (index_t first = 0; first < shape.cols; first += 4) {
      const std::uint64_t draw = random();
      const auto a = static_cast<index_t>(draw % 4), b = static_cast<index_t>(draw / 4 % 4);  // equal: one weight
      for (index_t k = first; k < std::min(shape.cols, first + 4); ++k) {
        float& v = w[static_cast<std::size_t>(row * shape.cols + k)];
        if ((k - first != a && k - first != b) || draw / 16 % 16 == 0) v = 0.0f;
        if (type == WeightType::bf16) v = static_cast<float>(bf16(v));
      }
    }
  return w;
}

PackedWeights pack(const std::vector<float>& w, MatrixShape shape, WeightType type, const Execution& how,
                   std::span<std::byte> memory = {}) {
  const MatrixView<const float> view(w.data(), shape.rows, shape.cols);
  return PackedWeights::pack(rows_of(view), type, how, memory, WeightLayout::two_four);
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

TEST_CASE("products with 2:4 weights are within the bound of their mode on every level", "[kernels][two_four][smoke]") {
  const auto type = GENERATE(WeightType::bf16, WeightType::f32);
  const bool bf16_weights = type == WeightType::bf16;
  for (const MatrixShape shape : {MatrixShape{3, 0}, MatrixShape{1, 1}, MatrixShape{17, 6}, MatrixShape{33, 40},
                                  MatrixShape{83, 515}, MatrixShape{530, 36}}) {
    if (small_budget() && shape.rows > 33) continue;
    const std::vector<float> w = two_of_four(shape, type, 7);
    const index_t most = small_budget() ? 10 : 131;
    const std::vector<float> x = random_normal(most * shape.cols, 3);
    for (const Isa isa : levels_here()) {
      ApplyOptions how;
      how.execution.isa = isa;
      how.execution.threads = 1;
      const std::size_t bytes = PackedWeights::bytes_needed(shape, type, isa, WeightLayout::two_four);
      GuardedArray<std::byte> memory(bytes);
      const PackedWeights packed = pack(w, shape, type, how.execution, memory.span());
      REQUIRE(packed.bytes() == bytes);
      for (const Activations mode : {Activations::f32, Activations::bf16, Activations::int8}) {
        how.activations = mode;
        const auto check = [&](const std::vector<float>& y, index_t tokens) {
          for (index_t m = 0; m<tokens; m += tokens> 8 ? 5 : 1)
            for (index_t n = 0; n < shape.rows; ++n) {
              const std::span<const float> row(x.data() + m * shape.cols, static_cast<std::size_t>(shape.cols));
              const ProductCheck c = check_product(row, {w.data() + n * shape.cols, row.size()}, mode, bf16_weights);
              const double got = y[static_cast<std::size_t>(m * shape.rows + n)];
              CAPTURE(to_string(isa), to_string(mode), to_string(shape), tokens, m, n, got, c.value, c.bound);
              if (!(std::abs(got - c.value) <= c.bound)) REQUIRE(std::abs(got - c.value) <= c.bound);
            }
        };
        const std::vector<float> eight = multiply(packed, x, 8, how), all = multiply(packed, x, most, how);
        check(eight, 8);
        check(all, most);
        // A token has the same bits in every batch, of bf16 in every batch of few, and for every number of threads.
        how.execution.threads = 3;
        if (mode == Activations::f32) REQUIRE(same_bits(eight, std::span(all).first(eight.size())));
        for (const index_t tokens : {1, 2, 3, 5, 8}) {
          const std::vector<float> some = multiply(packed, x, tokens, how);
          REQUIRE(same_bits(some, std::span(eight).first(some.size())));
        }
        REQUIRE(same_bits(multiply(packed, x, most, how), all));
        how.execution.threads = 1;
      }
    }
  }
}

TEST_CASE("the kernels of every set of features stay within their bounds and their memory", "[kernels][two_four]") {
  constexpr index_t kPanels = 3, kSteps = 5, kRows = kPanels * 32, kDepth = kSteps * kernels::kTwoFourStep;
  const Isa isa = GENERATE(from_range(levels_here()));
  const auto type = GENERATE(WeightType::bf16, WeightType::f32);
  const bool bf16_weights = type == WeightType::bf16;
  std::vector<float> w = two_of_four({kRows, kDepth}, type, 5);
  // Every value a bf16 can have far from the others: the largest, subnormals, infinity and NaN.
  const float extreme[] = {0x1.fep127f,
                           -0x1.fep127f,
                           0x1p-126f,
                           0x1p-133f,
                           std::numeric_limits<float>::infinity(),
                           std::numeric_limits<float>::quiet_NaN()};
  std::size_t next = 0;
  std::vector<float> odd = w;
  for (float& v : odd)
    if (v != 0.0f) v = extreme[next++ % std::size(extreme)];
  const std::vector<float> x = random_normal(8 * kDepth, 9);
  for (const kernels::Features features : kernels::feature_sets(isa)) {
    const kernels::TwoFourKernels k = kernels::make_table(isa, features).two_four;
    CAPTURE(to_string(isa), features, bf16_weights);
    // Expansion moves bits.
    for (const std::vector<float>* weights : {&w, &odd}) {
      if (!bf16_weights) break;
      const PackedWeights packed = pack(*weights, {kRows, kDepth}, type, {});
      GuardedArray<unsigned char> memory(packed.bytes());
      std::memcpy(memory.data(), packed.data(), packed.bytes());
      GuardedArray<std::uint16_t> dense(static_cast<std::size_t>(kRows * kDepth));
      for (index_t p = 0; p < kPanels; ++p)
        k.expand_bf16_bf16.fn(memory.data() + p * packed.bytes() / kPanels, 2 * kSteps, 0,
                              dense.data() + p * 32 * kDepth);
      for (index_t n = 0; n < kRows; ++n)
        for (index_t i = 0; i < kDepth; ++i) {
          const index_t place =
              n / 32 * 32 * kDepth + i / 32 * 1024 + n % 32 / 16 * 512 + i % 32 / 2 * 32 + n % 16 * 2 + i % 2;
          const bf16 expected((*weights)[static_cast<std::size_t>(n * kDepth + i)]);
          if (dense[static_cast<std::size_t>(place)] != expected.bits)
            REQUIRE(dense[static_cast<std::size_t>(place)] == expected.bits);
        }
    }
    // Products, weights and sums at protected pages.
    const PackedWeights packed = pack(w, {kRows, kDepth}, type, {});
    GuardedArray<unsigned char> memory(packed.bytes());
    std::memcpy(memory.data(), packed.data(), packed.bytes());
    for (const int tokens : {1, 2, 4, 8}) {
      const auto run = [&](const auto& slot, auto element, Activations mode) {
        using X = decltype(element);
        GuardedArray<X> rows(static_cast<std::size_t>(tokens * kDepth));
        for (index_t m = 0; m < tokens; ++m)
          for (index_t i = 0; i < kDepth; ++i) {
            const float v = x[static_cast<std::size_t>(m * kDepth + i)];
            X& dst = rows[static_cast<std::size_t>((i / 32 * tokens + m) * 32 + i % 32)];
            if constexpr (sizeof(X) == 2) {
              dst = bf16(v).bits;
            } else {
              dst = v;
            }
          }
        GuardedArray<float> sums(static_cast<std::size_t>(tokens * kRows));
        slot.fn({rows.data(), tokens, memory.data(), kPanels, kSteps, sums.data(), kRows});
        for (index_t m = 0; m < tokens; ++m)
          for (index_t n = 0; n < kRows; ++n) {
            const std::size_t size = kDepth;
            const ProductCheck c =
                check_product({x.data() + m * kDepth, size}, {w.data() + n * kDepth, size}, mode, bf16_weights);
            const double got = sums[static_cast<std::size_t>(m * kRows + n)];
            CAPTURE(tokens, m, n, got, c.value, c.bound);
            if (!(std::abs(got - c.value) <= c.bound)) REQUIRE(std::abs(got - c.value) <= c.bound);
          }
      };
      run(bf16_weights ? k.few_f32_f32_bf16 : k.few_f32_f32_f32, 0.0f, Activations::f32);
      if (bf16_weights && k.few_f32_bf16_bf16.fn != nullptr)
        run(k.few_f32_bf16_bf16, std::uint16_t{}, Activations::bf16);
    }
  }
}

TEST_CASE("places that no encoder writes mean what decoding says", "[kernels][two_four]") {
  // Twice the same place, places in falling order and, in the short last group, beyond the row.
  const NmFormat<DenseFormat<bf16>> format;
  constexpr index_t kCols = 10;
  std::vector<bf16> values;
  for (const float v : {1.0f, 2.0f, 3.0f, 5.0f, 7.0f, 11.0f}) values.emplace_back(v);
  const std::vector<std::byte> places = {std::byte{0b0001'0101}, std::byte{0b0000'1101}};  // (1, 1) (1, 0) (1, 3)
  const std::vector<Section> sections = {{"values.values", SharedBytes(std::as_bytes(std::span(values)), nullptr)},
                                         {"indices", SharedBytes(places, nullptr)}};
  const auto op = NmMatrix<DenseFormat<bf16>>::from_sections({1, kCols}, format, sections);
  const std::vector<float> expected = {0, 2, 0, 0, 5, 3, 0, 0, 0, 7};
  std::vector<float> w(kCols);
  const index_t row = 0;
  op.decode_rows(std::span(&row, 1), MatrixView<float>(w.data(), 1, kCols));
  CHECK(w == expected);
  std::vector<float> identity(kCols * kCols);
  for (index_t i = 0; i < kCols; ++i) identity[static_cast<std::size_t>(i * kCols + i)] = 1.0f;
  for (const Isa isa : levels_here())
    for (const index_t tokens : {index_t{1}, kCols}) {
      ApplyOptions how;
      how.execution.isa = isa;
      std::vector<float> y(static_cast<std::size_t>(tokens));
      const index_t first = kCols - tokens;
      op.apply(MatrixView<const float>(identity.data() + first * kCols, tokens, kCols),
               MatrixView<float>(y.data(), tokens, 1), how);
      CHECK(same_bits(y, std::span(expected).subspan(static_cast<std::size_t>(first))));
    }
}

TEST_CASE("2:4 matrices have a packed form under every policy and compute from it alone", "[kernels][two_four]") {
  const MatrixShape shape{70, 97};
  const std::vector<float> w = two_of_four(shape, WeightType::f32, 13), x = random_normal(9 * shape.cols, 2);
  const MatrixView<const float> view(w.data(), shape.rows, shape.cols);
  const auto check = [&](auto values, bool packs, NmLayout layout = {}) {
    using Format = NmFormat<decltype(values)>;
    using Matrix = NmMatrix<decltype(values)>;
    const Format format(layout, values);
    const Matrix plain = Matrix::encode(view, format, {}, PackPolicy::none());
    const Matrix ahead = Matrix::encode(view, format, {}, PackPolicy::ahead());
    const std::size_t bytes = plain.packed_bytes_needed();
    CHECK(plain.packed_bytes() == 0);
    CHECK(ahead.packed_bytes() == bytes);
    CHECK((bytes > 0) == packs);
    if (!packs) return;
    GuardedArray<std::byte> memory(bytes);
    Matrix into = Matrix::encode(view, format, {}, PackPolicy::into(memory.span()));
    into.release_stored();
    CHECK(into.storage_bytes() == 0);
    CHECK_THROWS_AS(into.sections(), UnsupportedError);
    Matrix released = ahead;
    released.release_stored();
    for (const index_t tokens : {1, 9}) {
      std::vector<float> a(static_cast<std::size_t>(tokens * shape.rows)), b(a.size());
      const MatrixView<const float> rows(x.data(), tokens, shape.cols);
      into.apply(rows, MatrixView<float>(b.data(), tokens, shape.rows));
      released.apply(rows, MatrixView<float>(a.data(), tokens, shape.rows));
      CHECK(same_bits(a, b));
      if (tokens > kCodeTokens) continue;  // levels with tiles of bf16 decode what is stored for so many
      ahead.apply(rows, MatrixView<float>(a.data(), tokens, shape.rows));
      CHECK(same_bits(a, b));
    }
  };
  check(DenseFormat<bf16>{}, true);
  check(DenseFormat<float>{}, true);
  check(GroupInt{.bits = 4, .group_size = 32}, true);
  check(AnyRowFormat(GroupInt{.bits = 4, .group_size = 32}), true);
  check(GroupInt{.bits = 3, .group_size = 32}, true);  // as floats
  check(DenseFormat<bf16>{}, false, {4, 8});
}

TEST_CASE("2:4 values of 4 bits are multiplied as codes that decode to what is stored, hostile places included",
          "[kernels][two_four]") {
  const GroupGrid grid = GENERATE(GroupGrid::half_step, GroupGrid::asymmetric);
  const NmFormat<GroupInt> format({2, 4}, GroupInt{.bits = 4, .group_size = 32, .grid = grid});
  for (const index_t cols : {1, 2, 3, 6, 64, 96, 161, 256}) {
    const MatrixShape shape{19, cols};
    const std::vector<float> w = two_of_four(shape, WeightType::f32, 13);
    const auto encoded = NmMatrix<GroupInt>::encode(MatrixView<const float>(w.data(), 19, cols), format);
    if (cols == 256 && grid == GroupGrid::half_step)
      CHECK(encoded.packed_bytes_needed() == static_cast<std::size_t>(2 * 16 * cols * 13 / 32));  // 3.25 bits a weight
    // Any places at all.
    std::vector<Section> sections = encoded.sections();
    AlignedBuffer<std::byte> places(static_cast<index_t>(sections.back().data.bytes.size()));
    Random random(5);
    for (std::byte& b : places) b = static_cast<std::byte>(random() % 256);
    sections.back().data = SharedBytes(std::move(places));
    const auto hostile = NmMatrix<GroupInt>::from_sections(shape, format, sections);
    for (const auto* op : {&encoded, &hostile}) {
      std::vector<index_t> rows;
      for (index_t i = 0; i < 19; ++i) rows.push_back(i);
      std::vector<float> decoded(w.size()), identity(static_cast<std::size_t>(cols * cols));
      op->decode_rows(rows, MatrixView<float>(decoded.data(), 19, cols));
      for (index_t i = 0; i < cols; ++i) identity[static_cast<std::size_t>(i * cols + i)] = 1.0f;
      for (const Isa isa : levels_here())
        for (const Activations mode : {Activations::f32, Activations::bf16, Activations::int8, Activations::automatic})
          for (const bool invariant : {false, true})
            for (const index_t tokens : {index_t{1}, cols}) {
              ApplyOptions how;
              how.execution.isa = isa;
              how.execution.batch_invariant = invariant;
              how.activations = mode;
              const index_t first = cols - tokens;
              std::vector<float> y(static_cast<std::size_t>(tokens * 19));
              op->apply(MatrixView<const float>(identity.data() + first * cols, tokens, cols),
                        MatrixView<float>(y.data(), tokens, 19), how);
              index_t wrong = 0;
              for (index_t m = 0; m < tokens; ++m)
                for (index_t n = 0; n < 19; ++n) {
                  const float expected = decoded[static_cast<std::size_t>(n * cols + first + m)];
                  // One weight: 127 / 127 of it, or rounded to bf16 on the way.
                  const float bound = std::abs(expected) * 0x1p-8f;
                  wrong += !(std::abs(y[static_cast<std::size_t>(m * 19 + n)] - expected) <= bound);
                }
              CAPTURE(to_string(isa), to_string(mode), cols, tokens, invariant, op == &hostile);
              REQUIRE(wrong == 0);
            }
    }
  }
}

TEST_CASE("memory for packed 2:4 weights is checked", "[kernels][two_four]") {
  const MatrixShape shape{40, 50};
  const std::vector<float> w = two_of_four(shape, WeightType::bf16, 1);
  const std::size_t bytes = PackedWeights::bytes_needed(shape, WeightType::bf16, active_isa(), WeightLayout::two_four);
  CHECK(bytes == 2 * 2 * 2 * 576);
  AlignedBuffer<std::byte> memory(static_cast<index_t>(bytes + 64));
  CHECK_THROWS_AS(pack(w, shape, WeightType::bf16, {}, memory.span().first(bytes - 1)), ShapeError);
  CHECK_THROWS_AS(pack(w, shape, WeightType::bf16, {}, memory.span().subspan(1, bytes)), ShapeError);
}

}  // namespace
