// SPDX-License-Identifier: Apache-2.0
/// Products of matrices in blocks (core/block_product.hpp) on every level against sums in double: runs, tiles and
/// coupling, short last blocks, odd ranks, few tokens and many, in memory that ends at protected pages.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "blockpack/core/block_product.hpp"
#include "blockpack/core/random.hpp"
#include "guarded_product.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/guard_page.hpp"
#include "support/levels.hpp"

using namespace blockpack;
using namespace blockpack::test;

namespace {

/// A factor in guarded memory, all of its values exact in bf16.
struct Factor {
  Factor(index_t row_count, index_t col_count, WeightType type, std::uint64_t seed)
      : rows(row_count), cols(col_count), f32(size(type == WeightType::f32)), half(size(type == WeightType::bf16)) {
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    fill_normal(values, seed);
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (type == WeightType::bf16) {
        half[i] = bf16(values[i]);
      } else {
        f32[i] = static_cast<float>(bf16(values[i]));
      }
    }
  }
  double at(index_t r, index_t c) const {
    const auto i = static_cast<std::size_t>(r * cols + c);
    return static_cast<double>(f32.size() > 0 ? f32.data()[i] : static_cast<float>(half.data()[i]));
  }
  RowSource source() const {
    RowSource w;
    w.rows = rows;
    w.cols = cols;
    w.self = this;
    w.decode_f32 = [](const void* self, index_t row, index_t col, index_t count, float* dst) {
      const auto& f = *static_cast<const Factor*>(self);
      for (index_t i = 0; i < count; ++i) dst[i] = static_cast<float>(f.at(row, col + i));
    };
    w.decode_bf16 = [](const void* self, index_t row, index_t col, index_t count, bf16* dst) {
      const auto& f = *static_cast<const Factor*>(self);
      for (index_t i = 0; i < count; ++i) dst[i] = bf16(static_cast<float>(f.at(row, col + i)));
    };
    w.dense = f32.size() > 0 ? static_cast<const void*>(f32.data()) : half.data();
    w.dense_type = half.size() > 0 ? WeightType::bf16 : WeightType::f32;
    w.dense_row_stride = cols;
    return w;
  }

  index_t rows, cols;
  GuardedArray<float> f32;
  GuardedArray<bf16> half;

 private:
  std::size_t size(bool there) const { return there ? static_cast<std::size_t>(rows * cols) : 0; }
};

enum class Form { monarch, uneven, tiles, coupled };

/// A matrix in blocks, its parts, and what it multiplies by.
struct BlockCase {
  BlockCase(Form form, MatrixShape shape, index_t inputs, index_t outputs, index_t rank, WeightType type) {
    source.shape = shape;
    source.in_block = ceil_div(shape.cols, inputs);
    source.out_block = ceil_div(shape.rows, outputs);
    std::uint64_t seed = 20;
    const auto factor = [&](index_t rows, index_t cols) {
      factors.push_back(std::make_unique<Factor>(rows, cols, type, seed++));
      return factors.back().get();
    };
    const auto rows_of = [&](index_t k) {
      return std::clamp<index_t>(shape.rows - k * source.out_block, 0, source.out_block);
    };
    if (form == Form::coupled) {
      for (index_t l = 0; l < inputs; ++l) right.push_back(factor(rank, source.in_block));
      for (index_t k = 0; k < outputs; ++k) left.push_back(factor(rows_of(k), rank));
      coupling = std::make_unique<Factor>(outputs * inputs, rank, WeightType::f32, seed++);
      source.coupling = {coupling->f32.data(), coupling->rows, coupling->cols};
    } else {
      // Uneven: ranks of 0 to rank; tiles: every third block as it is.
      const auto rank_of = [&](index_t k, index_t l) {
        if (form == Form::tiles && (k + l) % 3 == 0) return index_t{0};
        return form == Form::monarch ? rank : (k * 5 + l * 3 + rank) % (rank + 1);
      };
      std::vector<index_t> first(static_cast<std::size_t>(outputs * inputs));
      for (index_t l = 0; l < inputs; ++l) {
        index_t all = 0;
        for (index_t k = 0; k < outputs; ++k) {
          first[static_cast<std::size_t>(k * inputs + l)] = all;
          all += rank_of(k, l);
        }
        right.push_back(all > 0 ? factor(all, source.in_block) : nullptr);
      }
      for (index_t k = 0; k < outputs; ++k) {
        index_t ranks = 0;
        for (index_t l = 0; l < inputs; ++l) {
          if (rank_of(k, l) > 0)
            source.runs.push_back({k, l, first[static_cast<std::size_t>(k * inputs + l)], rank_of(k, l)});
          ranks += rank_of(k, l);
          if (form == Form::tiles && (k + l) % 3 == 0) {
            tiles.push_back(factor(source.out_block, source.in_block));
            source.tiles.push_back({k, l, tiles.back()->source()});
          }
        }
        left.push_back(ranks > 0 ? factor(rows_of(k), ranks) : nullptr);
      }
    }
    for (const Factor* f : right) source.right.push_back(f != nullptr ? f->source() : RowSource{});
    for (const Factor* f : left) source.left.push_back(f != nullptr ? f->source() : RowSource{});
  }

  /// y of one token, and the same with every term positive.
  void multiply(const float* x, std::vector<double>& exact, std::vector<double>& magnitude) const {
    const index_t p = source.in_block, q = source.out_block;
    std::vector<std::vector<double>> v(right.size()), v_abs(right.size());
    const auto input = [&](std::size_t l, index_t i) {
      const index_t col = static_cast<index_t>(l) * p + i;
      return i < p && col < source.shape.cols ? static_cast<double>(x[col]) : 0.0;
    };
    for (std::size_t l = 0; l < right.size(); ++l)
      for (index_t r = 0; right[l] != nullptr && r < right[l]->rows; ++r) {
        double sum = 0, abs = 0;
        for (index_t i = 0; i < p; ++i) {
          const double product = right[l]->at(r, i) * input(l, i);
          sum += product;
          abs += std::fabs(product);
        }
        v[l].push_back(sum);
        v_abs[l].push_back(abs);
      }
    exact.assign(static_cast<std::size_t>(source.shape.rows), 0.0);
    magnitude = exact;
    std::size_t run = 0, tile = 0;
    for (std::size_t k = 0; k < left.size(); ++k) {
      std::vector<double> z, z_abs;
      for (; run < source.runs.size() && source.runs[run].out_block == static_cast<index_t>(k); ++run)
        for (index_t r = 0; r < source.runs[run].count; ++r) {
          const auto l = static_cast<std::size_t>(source.runs[run].in_block);
          z.push_back(v[l][static_cast<std::size_t>(source.runs[run].first + r)]);
          z_abs.push_back(v_abs[l][static_cast<std::size_t>(source.runs[run].first + r)]);
        }
      for (index_t r = 0; coupling != nullptr && r < coupling->cols; ++r) {
        z.push_back(0);
        z_abs.push_back(0);
        for (std::size_t l = 0; l < v.size(); ++l) {
          const double s = coupling->at(static_cast<index_t>(k * v.size() + l), r);
          z.back() += s * v[l][static_cast<std::size_t>(r)];
          z_abs.back() += std::fabs(s) * v_abs[l][static_cast<std::size_t>(r)];
        }
      }
      const index_t row0 = static_cast<index_t>(k) * q;
      for (index_t i = 0; left[k] != nullptr && i < left[k]->rows; ++i)
        for (std::size_t r = 0; r < z.size(); ++r) {
          const double w = left[k]->at(i, static_cast<index_t>(r));
          exact[static_cast<std::size_t>(row0 + i)] += w * z[r];
          magnitude[static_cast<std::size_t>(row0 + i)] += std::fabs(w) * z_abs[r];
        }
      for (; tile < source.tiles.size() && source.tiles[tile].out_block == static_cast<index_t>(k); ++tile)
        for (index_t i = 0; i < q && row0 + i < source.shape.rows; ++i)
          for (index_t c = 0; c < p; ++c) {
            const double product =
                tiles[tile]->at(i, c) * input(static_cast<std::size_t>(source.tiles[tile].in_block), c);
            exact[static_cast<std::size_t>(row0 + i)] += product;
            magnitude[static_cast<std::size_t>(row0 + i)] += std::fabs(product);
          }
    }
  }

  BlockSource source;
  std::vector<std::unique_ptr<Factor>> factors;
  std::vector<const Factor*> right, left, tiles;
  std::unique_ptr<Factor> coupling;
};

struct Size {
  MatrixShape shape;
  index_t inputs, outputs, rank;
};
const std::vector<Size>& sizes() {
  static const std::vector<Size> all = {{{1, 1}, 1, 1, 1},     {{7, 5}, 2, 3, 1},    {{33, 31}, 3, 2, 5},
                                        {{64, 96}, 2, 4, 32},  {{65, 67}, 4, 4, 17}, {{130, 100}, 3, 5, 33},
                                        {{40, 300}, 2, 2, 40}, {{9, 9}, 9, 9, 1},    {{600, 70}, 2, 2, 20}};
  return all;
}

double gamma_bound(double roundings) {
  const double u = std::ldexp(1.0, -24);
  return roundings * u / (1.0 - roundings * u);
}

}  // namespace

TEST_CASE("block products stay within the bound of their mode on every level", "[kernels][structured]") {
  const Isa isa = GENERATE(from_range(levels_here()));
  const auto form = GENERATE(Form::monarch, Form::uneven, Form::tiles, Form::coupled);
  const auto type = GENERATE(WeightType::f32, WeightType::bf16);
  const auto mode = GENERATE(Activations::f32, Activations::bf16);
  for (const Size& size : sizes()) {
    const BlockCase blocks(form, size.shape, size.inputs, size.outputs, size.rank, type);
    ApplyOptions how;
    how.execution.isa = isa;
    how.activations = mode;
    // The packed form fills its memory to the last byte.
    GuardedArray<std::byte> memory(PackedBlocks::bytes_needed(blocks.source, type));
    const PackedBlocks packed = PackedBlocks::pack(blocks.source, type, how.execution, memory.span());
    for (const index_t tokens : {1, 3, 8, 9, 33, budget(140, 20)}) {
      CAPTURE(to_string(isa), static_cast<int>(form), static_cast<int>(type), to_string(mode), to_string(size.shape),
              size.inputs, size.outputs, size.rank, tokens);
      std::vector<float> x(static_cast<std::size_t>(tokens * size.shape.cols));
      fill_normal(x, 7);
      const std::vector<float> y = multiply(packed, x, tokens, how);
      // All products and sums of both stages; x and the values between them rounded to bf16.
      const double roundings = static_cast<double>(size.shape.cols + size.inputs * size.rank + size.inputs) + 8;
      double relative = gamma_bound(roundings);
      if (mode == Activations::bf16) relative += 2 * std::ldexp(1.0, -8) + std::ldexp(1.0, -14);
      std::vector<double> exact, magnitude;
      for (index_t m = 0; m < tokens; ++m) {
        blocks.multiply(x.data() + m * size.shape.cols, exact, magnitude);
        for (index_t n = 0; n < size.shape.rows; ++n) {
          const auto at = static_cast<std::size_t>(n);
          const double got = static_cast<double>(y[static_cast<std::size_t>(m * size.shape.rows) + at]);
          const double bound = relative * magnitude[at] + std::ldexp(1.0, -110);
          if (!(std::fabs(got - exact[at]) <= bound)) {
            CAPTURE(m, n, got, exact[at], bound);
            REQUIRE(std::fabs(got - exact[at]) <= bound);
          }
        }
      }
    }
  }
}

TEST_CASE("the bits of block products depend neither on threads nor, when asked, on the batch",
          "[kernels][structured]") {
  const Isa isa = GENERATE(from_range(levels_here()));
  const auto form = GENERATE(Form::monarch, Form::tiles, Form::coupled);
  const auto type = GENERATE(WeightType::f32, WeightType::bf16);
  const BlockCase blocks(form, {130, 100}, 3, 5, 33, type);
  ApplyOptions how;
  how.execution.isa = isa;
  how.activations = type == WeightType::f32 ? Activations::f32 : Activations::bf16;
  const PackedBlocks packed = PackedBlocks::pack(blocks.source, type, how.execution);
  const index_t tokens = budget(300, 150);
  std::vector<float> x(static_cast<std::size_t>(tokens * 100));
  fill_normal(x, 8);
  CAPTURE(to_string(isa), static_cast<int>(form), static_cast<int>(type));
  how.execution.threads = 1;
  const std::vector<float> one = multiply(packed, x, tokens, how);
  how.execution.threads = 3;
  REQUIRE(multiply(packed, x, tokens, how) == one);
  how.execution.batch_invariant = true;
  const std::vector<float> all = multiply(packed, x, tokens, how);
  for (const index_t m : {index_t{0}, index_t{5}, tokens - 1}) {
    const std::vector<float> row(x.begin() + m * 100, x.begin() + (m + 1) * 100);
    const std::vector<float> alone = multiply(packed, row, 1, how);
    REQUIRE(std::equal(alone.begin(), alone.end(), all.begin() + m * 130));
  }
}

TEST_CASE("memory for packed blocks that is too small or unaligned is an error", "[kernels][structured]") {
  const BlockCase blocks(Form::coupled, {33, 31}, 3, 2, 5, WeightType::bf16);
  const std::size_t bytes = PackedBlocks::bytes_needed(blocks.source, WeightType::bf16);
  GuardedArray<std::byte> memory(bytes);
  CHECK_THROWS_AS(PackedBlocks::pack(blocks.source, WeightType::bf16, {}, memory.span().first(bytes - 64)), ShapeError);
  GuardedArray<std::byte> shifted(bytes + 64, Guard::before, 4);
  CHECK_THROWS_AS(PackedBlocks::pack(blocks.source, WeightType::bf16, {}, shifted.span()), ShapeError);
}
