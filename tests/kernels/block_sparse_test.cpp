// SPDX-License-Identifier: Apache-2.0
/// Products with packed weights without their blocks of zeros: the kernels of every level and set of features, and the
/// engine around them.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "blockpack/core/dense.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/quant/group_int.hpp"
#include "blockpack/sparse/block_sparse.hpp"
#include "dispatch.hpp"
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

using kernels::kSparseColumns;
using kernels::kSparseStep;
using kernels::kSparseUnit;

/// Lists of some half-panels, an empty and a full one among them, with small integers that every type holds.
struct Lists {
  static constexpr index_t kHalves = 4, kSteps = 5;

  Lists() : w(static_cast<std::size_t>(kHalves * kSparseColumns * kSteps * kSparseStep), 0.0f) {
    Random random(3);
    for (index_t h = 0; h < kHalves; ++h) {
      for (index_t s = 0; s < kSteps; ++s) {
        if (h == 1 || (h != 3 && random() % 2 == 0)) continue;
        steps.push_back(static_cast<std::int32_t>(s));
        for (index_t k = 0; k < kSparseStep; ++k)
          for (index_t n = 0; n < kSparseColumns; ++n) {
            const auto v = static_cast<float>(static_cast<int>(random() % 15) - 7);
            w[static_cast<std::size_t>((h * kSparseColumns + n) * kSteps * kSparseStep + s * kSparseStep + k)] = v;
            f32.push_back(v);
          }
      }
      first.push_back(static_cast<std::ptrdiff_t>(steps.size()));
    }
    for (std::size_t i = 0; i < f32.size(); ++i) {
      const std::size_t unit = i / kSparseUnit * kSparseUnit, k = i % kSparseUnit / kSparseColumns;
      const std::size_t at = unit + k / 2 * 32 + i % kSparseColumns * 2 + k % 2;
      half.resize(f32.size());
      half[at] = bf16(f32[i]);
    }
  }
  std::vector<float> w;  ///< [kHalves * 16, kSteps * 32]
  std::vector<std::ptrdiff_t> first{0};
  std::vector<std::int32_t> steps;
  std::vector<float> f32;
  std::vector<bf16> half;
};

/// Integers: every order of a sum gives the same.
template <class X, class W>
void check_kernel(const kernels::BlockSparseKernel& kernel, const Lists& lists, const std::vector<W>& weights) {
  if (kernel.multiply.fn == nullptr) return;
  GuardedArray<W> w(weights.size());
  std::copy(weights.begin(), weights.end(), w.begin());
  const index_t k = Lists::kSteps * kSparseStep, n = Lists::kHalves * kSparseColumns;
  for (index_t tile_rows = 1; tile_rows <= kernel.max_tile_rows; ++tile_rows)
    for (const index_t tiles : {1, 2, 3, 5}) {
      const index_t rows = (tiles - 1) * tile_rows + (tile_rows + 1) / 2;
      GuardedArray<X> x(static_cast<std::size_t>(tiles * tile_rows * k));
      std::vector<float> plain(static_cast<std::size_t>(rows * k));
      Random random(static_cast<std::uint64_t>(tile_rows));
      for (index_t r = 0; r < rows; ++r)
        for (index_t i = 0; i < k; ++i) {
          const auto v = static_cast<float>(static_cast<int>(random() % 31) - 15);
          plain[static_cast<std::size_t>(r * k + i)] = v;
          x[static_cast<std::size_t>(r / tile_rows * tile_rows * k +
                                     (i / kSparseStep * tile_rows + r % tile_rows) * kSparseStep + i % kSparseStep)] =
              X(v);
        }
      for (const bool stream : {false, true}) {
        const index_t stride = stream ? n : n + 3;
        const auto size = static_cast<std::size_t>((rows - 1) * stride + n);
        GuardedArray<float> guarded(size);
        AlignedBuffer<float> aligned(stream ? static_cast<index_t>(size) : 0);
        float* y = stream ? aligned.data() : guarded.data();
        kernels::BlockSparseProduct b{};
        b.x = x.data();
        b.x_tile_bytes = tile_rows * k * static_cast<index_t>(sizeof(X));
        b.tiles = tiles;
        b.tile_rows = tile_rows;
        b.rows = rows;
        b.halves = Lists::kHalves;
        b.first = lists.first.data();
        b.steps = lists.steps.data();
        b.w = w.data();
        b.y = y;
        b.y_stride = stride;
        b.stream = stream;
        kernel.multiply.fn(b);
        index_t wrong = 0;
        for (index_t r = 0; r < rows; ++r)
          for (index_t j = 0; j < n; ++j) {
            float sum = 0.0f;
            for (index_t i = 0; i < k; ++i)
              sum += plain[static_cast<std::size_t>(r * k + i)] * lists.w[static_cast<std::size_t>(j * k + i)];
            wrong += y[r * stride + j] != sum;
          }
        CAPTURE(kernel.multiply.isa, tile_rows, tiles, stream);
        REQUIRE(wrong == 0);
      }
    }
}

TEST_CASE("block-sparse kernels multiply by their lists on every level, with and without its features",
          "[kernels][sparse][smoke]") {
  const Lists lists;
  for (const Isa isa : levels_here())
    for (const kernels::Features features : kernels::feature_sets(isa)) {
      const kernels::BlockSparseKernels table = kernels::make_table(isa, features).block_sparse;
      check_kernel<float>(table.f32_f32, lists, lists.f32);
      check_kernel<float>(table.f32_bf16, lists, lists.half);
      check_kernel<bf16>(table.bf16_bf16, lists, lists.half);
    }
}

TEST_CASE("kernels of bitmasks multiply by what is not zero, and expand to what it was", "[kernels][sparse][smoke]") {
  const Lists lists;
  // Half of the weights of every list, of one unit all or none, without their zeros.
  std::vector<bf16> half = lists.half;
  std::vector<float> w = lists.w;
  std::vector<unsigned char> squeezed;
  std::vector<std::ptrdiff_t> weights_first;
  Random random(9);
  for (index_t h = 0; h < Lists::kHalves; ++h) {
    weights_first.push_back(static_cast<std::ptrdiff_t>(squeezed.size()));
    for (std::ptrdiff_t i = lists.first[static_cast<std::size_t>(h)]; i < lists.first[static_cast<std::size_t>(h) + 1];
         ++i) {
      std::uint32_t masks[16] = {};
      std::vector<std::uint16_t> kept;
      for (index_t e = 0; e < kSparseUnit; ++e) {
        bf16& v = half[static_cast<std::size_t>(i * kSparseUnit + e)];
        if (i != 1 && (i == 2 || random() % 2 == 0)) v = bf16(0.0f);
        const index_t n = h * kSparseColumns + e % 32 / 2;
        const index_t k = lists.steps[static_cast<std::size_t>(i)] * kSparseStep + e / 32 * 2 + e % 2;
        w[static_cast<std::size_t>(n * Lists::kSteps * kSparseStep + k)] = static_cast<float>(v);
        if (v.bits == 0) continue;
        masks[e / 32] |= 1u << (e % 32);
        kept.push_back(v.bits);
      }
      const std::size_t at = squeezed.size();
      squeezed.resize(at + 64 + 2 * kept.size());
      std::memcpy(squeezed.data() + at, masks, 64);
      if (!kept.empty()) std::memcpy(squeezed.data() + at + 64, kept.data(), 2 * kept.size());
    }
  }
  squeezed.resize(squeezed.size() + 64);
  GuardedArray<unsigned char> memory(squeezed.size());
  std::copy(squeezed.begin(), squeezed.end(), memory.begin());
  const index_t n = Lists::kHalves * kSparseColumns, depth = Lists::kSteps * kSparseStep;
  for (const Isa isa : levels_here())
    for (const kernels::Features features : kernels::feature_sets(isa)) {
      const kernels::BlockSparseKernels table = kernels::make_table(isa, features).block_sparse;
      CAPTURE(to_string(isa), features);
      for (index_t h = 0; h < Lists::kHalves; ++h) {
        const std::ptrdiff_t first = lists.first[static_cast<std::size_t>(h)];
        const std::ptrdiff_t units = lists.first[static_cast<std::size_t>(h) + 1] - first;
        GuardedArray<std::uint16_t> expanded(static_cast<std::size_t>(units * kSparseUnit));
        table.expand_bitmask.fn(memory.data() + weights_first[static_cast<std::size_t>(h)], units, expanded.data());
        index_t wrong = 0;
        for (std::ptrdiff_t e = 0; e < units * kSparseUnit; ++e)
          wrong += expanded.data()[e] != half[static_cast<std::size_t>(first * kSparseUnit + e)].bits;
        REQUIRE(wrong == 0);
      }
      for (const int tokens : {1, 2, 4, 8}) {
        const auto run = [&](const auto& slot, auto element) {
          using X = decltype(element);
          if (slot.fn == nullptr) return;
          GuardedArray<X> x(static_cast<std::size_t>(tokens * depth));
          std::vector<float> plain(static_cast<std::size_t>(tokens * depth));
          for (index_t t = 0; t < tokens; ++t)
            for (index_t k = 0; k < depth; ++k) {
              const auto v = static_cast<float>(static_cast<int>(random() % 31) - 15);
              plain[static_cast<std::size_t>(t * depth + k)] = v;
              x.data()[(k / kSparseStep * tokens + t) * kSparseStep + k % kSparseStep] = X(v);
            }
          GuardedArray<float> sums(static_cast<std::size_t>(tokens * n));
          slot.fn({x.data(), tokens, Lists::kHalves, lists.first.data(), lists.steps.data(), weights_first.data(),
                   memory.data(), sums.data(), n});
          index_t wrong = 0;
          for (index_t t = 0; t < tokens; ++t)
            for (index_t j = 0; j < n; ++j) {
              float sum = 0.0f;
              for (index_t k = 0; k < depth; ++k)
                sum += plain[static_cast<std::size_t>(t * depth + k)] * w[static_cast<std::size_t>(j * depth + k)];
              wrong += sums.data()[t * n + j] != sum;
            }
          CAPTURE(slot.isa, tokens);
          REQUIRE(wrong == 0);
        };
        run(table.bitmask_f32, 0.0f);
        run(table.bitmask_bf16, bf16());
      }
    }
}

TEST_CASE("kernels of strips multiply by their lists, and tokens are spread to columns", "[kernels][sparse][smoke]") {
  // Half-panels of an empty strip, one column, and lists that fill their groups or do not.
  constexpr index_t kHalves = 2, kColumns = 93, kRows = kHalves * kSparseColumns;
  Random random(4);
  std::vector<std::ptrdiff_t> first{0};
  std::vector<std::int32_t> columns;
  std::vector<std::int8_t> weights;
  std::vector<int> dense(static_cast<std::size_t>(kRows * kColumns));
  const index_t kept[] = {0, 1, 4, 61, 8, 3, 90, 0};
  for (index_t s = 0; s < 4 * kHalves; ++s) {
    for (index_t g = 0; g < ceil_div(kept[s], 4); ++g)
      for (index_t i = 0; i < 16; ++i) {
        const index_t place = 4 * g + i % 4, column = std::min(place, kept[s] - 1);
        if (i < 4) columns.push_back(static_cast<std::int32_t>(column * kernels::kStripTokens));
        const int v = place < kept[s] ? static_cast<int>(random() % 256) - 128 : 0;
        weights.push_back(static_cast<std::int8_t>(v));
        if (place < kept[s]) dense[static_cast<std::size_t>((4 * s + i / 4) * kColumns + column)] = v;
      }
    first.push_back(static_cast<std::ptrdiff_t>(weights.size() / 16));
  }
  columns.resize(columns.size() + 8);
  GuardedArray<std::int8_t> w(weights.size());
  std::copy(weights.begin(), weights.end(), w.begin());
  GuardedArray<std::int32_t> places(columns.size());
  std::copy(columns.begin(), columns.end(), places.begin());
  std::vector<std::int32_t> starts;
  std::vector<float> scales;
  for (index_t n = 0; n < kRows; ++n) {
    int sum = 0;
    for (index_t k = 0; k < kColumns; ++k) sum += dense[static_cast<std::size_t>(n * kColumns + k)];
    starts.push_back(-128 * sum);
    scales.push_back(exp2i(static_cast<int>(n % 5) - 3));
  }
  for (const Isa isa : levels_here()) {
    const kernels::BlockSparseKernels& table = kernels::table_for(isa).block_sparse;
    for (const index_t tokens : {1, 15, 16, 17, 32, 33, 48, 49, 63, 64, 65, 129}) {
      const index_t tiles = ceil_div(tokens, kernels::kStripTokens), stride = kColumns + 2;
      GuardedArray<std::int8_t> codes(static_cast<std::size_t>((tokens - 1) * stride + kColumns));
      for (std::int8_t& c : codes) c = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
      GuardedArray<std::uint8_t> x(static_cast<std::size_t>(tiles * kernels::kStripTokens * kColumns));
      std::vector<float> token_scales;
      for (index_t t = 0; t < tiles * kernels::kStripTokens; ++t)
        token_scales.push_back(exp2i(static_cast<int>(t % 3)));
      for (index_t t = 0; t < tiles; ++t)
        table.spread_tokens.fn(codes.data() + t * kernels::kStripTokens * stride, stride,
                               std::min(kernels::kStripTokens, tokens - t * kernels::kStripTokens), kColumns,
                               x.data() + t * kernels::kStripTokens * kColumns);
      for (const bool stream : {false, true}) {
        const index_t y_stride = stream ? kRows : kRows + 3;
        const auto size = static_cast<std::size_t>((tokens - 1) * y_stride + kRows);
        GuardedArray<float> guarded(size);
        AlignedBuffer<float> aligned(stream ? static_cast<index_t>(size) : 0);
        float* y = stream ? aligned.data() : guarded.data();
        table.strips_int8.fn({x.data(), kernels::kStripTokens * kColumns, tokens, kHalves, first.data(), places.data(),
                              w.data(), y, y_stride, token_scales.data(), scales.data(), starts.data(), stream});
        index_t wrong = 0;
        for (index_t t = 0; t < tokens; ++t)
          for (index_t n = 0; n < kRows; ++n) {
            int sum = 0;
            for (index_t k = 0; k < kColumns; ++k)
              sum +=
                  dense[static_cast<std::size_t>(n * kColumns + k)] * codes[static_cast<std::size_t>(t * stride + k)];
            wrong += y[t * y_stride + n] != static_cast<float>(sum) * scales[static_cast<std::size_t>(n)] *
                                                token_scales[static_cast<std::size_t>(t)];
          }
        CAPTURE(table.strips_int8.isa, tokens, stream);
        REQUIRE(wrong == 0);
      }
    }
  }
}

ApplyOptions options(Isa isa, Activations mode, int threads = 1) {
  ApplyOptions how;
  how.execution.isa = isa;
  how.execution.threads = threads;
  how.activations = mode;
  return how;
}

/// Weights of which so many in 100 blocks are zeros; the first block row is empty, the last one full.
std::vector<float> pruned(MatrixShape shape, MatrixShape block, unsigned percent) {
  std::vector<float> w = random_weights(shape.rows, shape.cols, 5);
  Random random(6);
  for (index_t r = 0; r < shape.rows; r += block.rows)
    for (index_t c = 0; c < shape.cols; c += block.cols) {
      const bool drawn = random() % 100 < percent, last = r + block.rows >= shape.rows;
      if (r > 0 && (last || !drawn)) continue;
      for (index_t i = r; i < std::min(r + block.rows, shape.rows); ++i)
        std::fill_n(w.begin() + i * shape.cols + c, std::min(block.cols, shape.cols - c), 0.0f);
    }
  return w;
}

/// y in memory that ends at a protected page.
template <class Op>
std::vector<float> multiply(const Op& op, const std::vector<float>& x, index_t tokens, const ApplyOptions& how) {
  const index_t n = op.out_features(), k = op.in_features();
  GuardedArray<float> y(static_cast<std::size_t>(tokens * n)), rows(static_cast<std::size_t>(tokens * k));
  std::copy_n(x.begin(), tokens * k, rows.begin());
  op.apply(MatrixView<const float>(rows.data(), tokens, k), MatrixView<float>(y.data(), tokens, n), how);
  return {y.begin(), y.end()};
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

template <class V>
void check_operator(MatrixShape shape, MatrixShape block, const V& values, unsigned percent) {
  const std::vector<float> w = pruned(shape, block, percent), x = random_normal(128 * shape.cols, 7);
  const auto encoded = BlockSparse<V>::encode(MatrixView<const float>(w.data(), shape.rows, shape.cols), block, values);
  std::vector<float> decoded(w.size());
  for (index_t i = 0; i < shape.rows; ++i)
    encoded.decode_rows(std::span(&i, 1), MatrixView<float>(decoded.data() + i * shape.cols, 1, shape.cols));
  for (const Isa isa : levels_here())
    for (const Activations mode : {Activations::f32, Activations::bf16, Activations::int8, Activations::int8_token}) {
      const auto op = BlockSparse<V>::from_sections(shape, encoded.parameters(), encoded.sections());
      for (const index_t tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 33, 128}) {
        if (small_budget() && tokens > 9 && shape.rows > 40) continue;
        CAPTURE(encoded.scheme(), to_string(shape), to_string(isa), to_string(mode), tokens);
        const std::vector<float> y = multiply(op, x, tokens, options(isa, mode));
        for (index_t m = 0; m<tokens; m += tokens> 9 ? 17 : 1)
          for (index_t j = 0; j < shape.rows; ++j) {
            const auto in = static_cast<std::size_t>(shape.cols);
            const ProductCheck c = check_product(std::span(x).subspan(static_cast<std::size_t>(m) * in, in),
                                                 std::span(decoded).subspan(static_cast<std::size_t>(j) * in, in), mode,
                                                 values.exact_in_bf16());
            const double got = static_cast<double>(y[static_cast<std::size_t>(m * shape.rows + j)]);
            if (std::abs(got - c.value) <= c.bound) continue;
            CAPTURE(m, j, got, c.value, c.bound);
            REQUIRE(std::abs(got - c.value) <= c.bound);
          }
        for (const int threads : {2, 4}) REQUIRE(same_bits(y, multiply(op, x, tokens, options(isa, mode, threads))));
      }
      if (encoded.kept_blocks() > 0) CHECK(op.packed_bytes() > 0);
      // A token of an invariant batch has the bits it has alone.
      ApplyOptions how = options(isa, mode);
      how.execution.batch_invariant = true;
      const std::vector<float> all = multiply(op, x, 9, how), one = multiply(op, x, 1, how);
      REQUIRE(same_bits(one, {all.begin(), all.begin() + shape.rows}));
    }
}

TEST_CASE("block-sparse products are within the bound of the mode for any blocks, values and shape",
          "[kernels][sparse]") {
  check_operator({64, 96}, {32, 32}, DenseFormat<bf16>{}, 70);
  check_operator({75, 133}, {16, 32}, DenseFormat<bf16>{}, 60);
  check_operator({49, 70}, {16, 32}, DenseFormat<float>{}, 50);
  check_operator({37, 65}, {1, 1}, DenseFormat<bf16>{}, 50);
  check_operator({150, 133}, {1, 1}, DenseFormat<bf16>{}, 60);
  check_operator({70, 301}, {4, 1}, DenseFormat<bf16>{}, 80);
  check_operator({34, 100}, {4, 1}, GroupInt{.bits = 8, .group_size = 0}, 80);
  check_operator({70, 301}, {4, 1}, GroupInt{.bits = 8, .group_size = 0}, 90);
  check_operator({75, 170}, {32, 32}, GroupInt{.bits = 8, .group_size = 0}, 60);
  check_operator({33, 90}, {5, 7}, GroupInt{.bits = 4, .group_size = 32}, 70);
  check_operator({40, 64}, {40, 64}, DenseFormat<float>{}, 0);  // nothing but zeros
  check_operator({5, 0}, {32, 32}, DenseFormat<bf16>{}, 0);
}

TEST_CASE("int8 weights with a scale a row meet int8_token activations in integers", "[kernels][sparse]") {
  // Integers up to 127 times powers of two: x is exact in int8, and so is every product.
  const MatrixShape shape{50, 230}, block = GENERATE(MatrixShape{16, 32}, MatrixShape{4, 1});
  std::vector<float> w(static_cast<std::size_t>(shape.rows * shape.cols)), x(static_cast<std::size_t>(20 * shape.cols));
  Random random(8);
  for (index_t i = 0; i < shape.rows; ++i)
    for (index_t k = 0; k < shape.cols; ++k) {
      const bool kept = (i / block.rows * 3 + k / block.cols) % 4 == 0;
      const int code = k % 32 < 4 ? 127 : static_cast<int>(random() % 255) - 127;
      w[static_cast<std::size_t>(i * shape.cols + k)] =
          kept ? static_cast<float>(code) * exp2i(static_cast<int>(i % 5) - 9) : 0.0f;
    }
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = i % 230 == 7 ? -127.0f : static_cast<float>(static_cast<int>(random() % 255) - 127);
  const MatrixView<const float> weights(w.data(), shape.rows, shape.cols);
  const GroupInt format{.bits = 8, .group_size = 0, .grid = GroupGrid::max_abs};
  for (const Isa isa : levels_here()) {
    if (!multiplies_int8_blocks(shape.cols, isa)) continue;
    const auto op = BlockSparse<GroupInt>::encode(weights, block, format);
    for (const index_t tokens : {1, 2, 5, 14, 15, 20}) {
      const std::vector<float> y = multiply(op, x, tokens, options(isa, Activations::int8_token));
      index_t wrong = 0;
      for (index_t m = 0; m < tokens; ++m)
        for (index_t j = 0; j < shape.rows; ++j) {
          float sum = 0.0f;  // of at most 230 * 2^14 steps: exact
          for (index_t k = 0; k < shape.cols; ++k)
            sum += x[static_cast<std::size_t>(m * shape.cols + k)] * w[static_cast<std::size_t>(j * shape.cols + k)];
          wrong += y[static_cast<std::size_t>(m * shape.rows + j)] != sum;
        }
      CAPTURE(to_string(isa), tokens);
      REQUIRE(wrong == 0);
    }
  }
}

TEST_CASE("a block-sparse operator takes every epilogue, bf16 x and y, and writes large y past the caches",
          "[kernels][sparse]") {
  const index_t tokens = budget<index_t>(197, 33), k = 96;
  for (const index_t n : {budget<index_t>(1408, 64), index_t{45}}) {
    const MatrixShape shape{n, k};
    const std::vector<float> w = pruned(shape, {32, 32}, 50);
    std::vector<float> x = random_normal(tokens * k, 3);
    std::vector<bf16> x16;
    for (float& v : x) {
      x16.emplace_back(v);
      v = static_cast<float>(x16.back());
    }
    const std::vector<float> bias = random_normal(n, 4), scales = random_normal(tokens, 5);
    const std::vector<float> residual = random_normal(tokens * n, 6);
    for (const Isa isa : levels_here()) {
      CAPTURE(to_string(isa), n);
      const auto op = BlockSparse<DenseFormat<bf16>>::encode(MatrixView<const float>(w.data(), n, k), {32, 32});
      ApplyOptions how = options(isa, Activations::bf16, 2);
      const std::vector<float> plain = multiply(op, x, tokens, how);
      const MatrixView<const bf16> narrow(x16.data(), tokens, k);
      std::vector<bf16> y16(plain.size());
      op.apply(narrow, MatrixView<bf16>(y16.data(), tokens, n), how);
      AlignedBuffer<float> wide(tokens * n);  // on a boundary
      op.apply(narrow, MatrixView<float>(wide.data(), tokens, n), how);
      how.epilogue.bias = bias;
      how.epilogue.function = EpilogueFunction::relu;
      how.epilogue.token_scales = scales;
      how.epilogue.residual = MatrixView<const float>(residual.data(), tokens, n);
      const std::vector<float> full = multiply(op, x, tokens, how);
      index_t wrong = 0;
      for (index_t m = 0; m < tokens; ++m)
        for (index_t j = 0; j < n; ++j) {
          const auto i = static_cast<std::size_t>(m * n + j);
          const volatile float scaled = plain[i] * scales[static_cast<std::size_t>(m)];
          wrong += full[i] != std::max(scaled + bias[static_cast<std::size_t>(j)], 0.0f) + residual[i];
          wrong += y16[i].bits != bf16(plain[i]).bits;
          wrong += wide[static_cast<index_t>(i)] != plain[i];
        }
      REQUIRE(wrong == 0);
    }
  }
}

TEST_CASE("large block-sparse products cross every boundary of slices and groups", "[kernels][sparse][long]") {
  struct Shape {
    index_t m, n, k;
  };
  for (const Shape& s : {Shape{90, 300, 4100}, Shape{2100, 80, 70}, Shape{40, 2500, 64}}) {
    if (small_budget()) continue;
    const std::vector<float> w = pruned({s.n, s.k}, {16, 32}, 80), x = random_normal(s.m * s.k, 3);
    for (const Isa isa : levels_here()) {
      CAPTURE(s.m, s.n, s.k, to_string(isa));
      const auto op = BlockSparse<DenseFormat<bf16>>::encode(MatrixView<const float>(w.data(), s.n, s.k), {16, 32});
      const ApplyOptions how = options(isa, Activations::automatic);
      const std::vector<float> y = multiply(op, x, s.m, how);
      for (const int threads : {2, 3})
        REQUIRE(same_bits(y, multiply(op, x, s.m, options(isa, Activations::automatic, threads))));
      const auto stored =
          BlockSparse<DenseFormat<bf16>>::from_sections({s.n, s.k}, op.parameters(), op.sections(), PackPolicy::none());
      const std::vector<float> by_rows = multiply(stored, x, s.m, how);
      CHECK(stored.packed_bytes() == 0);
      double error = 0, norm = 0;
      for (std::size_t i = 0; i < y.size(); ++i) {
        error += std::pow(static_cast<double>(y[i]) - static_cast<double>(by_rows[i]), 2);
        norm += std::pow(static_cast<double>(by_rows[i]), 2);
      }
      REQUIRE(error <= std::pow(gamma_bound(static_cast<double>(s.k)), 2) * norm);
    }
  }
  SUCCEED();
}

TEST_CASE("packed blocks go where the pack policy says", "[kernels][sparse]") {
  const MatrixShape shape{70, 130};
  const std::vector<float> w = pruned(shape, {16, 32}, 60), x = random_normal(3 * shape.cols, 3);
  const MatrixView<const float> weights(w.data(), shape.rows, shape.cols);
  using Op = BlockSparse<DenseFormat<bf16>>;
  const Op first = Op::encode(weights, {16, 32});
  const std::vector<float> y = multiply(first, x, 3, {});
  CHECK(first.packed_bytes() == first.packed_bytes_needed());
  CHECK(Op(first).packed_bytes() == first.packed_bytes());  // copies share it
  const Op ahead = Op::encode(weights, {16, 32}, {}, {}, PackPolicy::ahead());
  CHECK(ahead.packed_bytes() == first.packed_bytes());
  GuardedArray<std::byte> memory(first.packed_bytes());
  const Op into = Op::from_sections(shape, first.parameters(), first.sections(), PackPolicy::into(memory.span()));
  CHECK(same_bits(multiply(into, x, 3, {}), y));
  // The thread sanitizer, which has the small budget, loses count of exceptions that pass through std::call_once.
  if (!small_budget())
    CHECK_THROWS_AS(Op::encode(weights, {16, 32}, {}, {}, PackPolicy::into(memory.span().first(memory.size() - 1))),
                    ShapeError);
}

}  // namespace
