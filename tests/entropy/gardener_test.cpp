// SPDX-License-Identifier: Apache-2.0
#include "blockpack/entropy/gardener.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "blockpack/entropy/fields.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

template <class T>
std::vector<T> rounded(const std::vector<float>& w) {
  std::vector<T> r;
  for (const float v : w) r.push_back(T(v));
  return r;
}

template <class T>
WeightBlock block_of(const std::vector<T>& w) {
  return WeightBlock(std::span<const T>(w));
}

Execution with_threads(int threads) {
  Execution how;
  how.threads = threads;
  return how;
}

/// Counts of distinct values the slow way; all NaN under one key.
template <class T>
std::map<float, std::uint64_t> count_values(const std::vector<T>& values, std::uint64_t& nan) {
  std::map<float, std::uint64_t> counts;
  nan = 0;
  for (const T v : values) {
    const float f = static_cast<float>(v);
    if (f != f) {
      ++nan;
    } else {
      ++counts[f == 0 ? 0.0f : f];
    }
  }
  return counts;
}

template <class T>
void check_counts(const ValueCounts& got, const std::vector<T>& values) {
  std::uint64_t nan = 0;
  const std::map<float, std::uint64_t> expected = count_values(values, nan);
  CHECK(got.total == values.size());
  CHECK(got.nan_count == nan);
  CHECK(std::is_sorted(got.symbols.begin(), got.symbols.end()));
  REQUIRE(got.symbols.size() == expected.size() + (nan > 0 ? 1 : 0));
  for (std::size_t i = 0; i < got.symbols.size(); ++i) {
    const float v = std::bit_cast<float>(got.symbols[i]);
    if (v == v) {
      REQUIRE(expected.count(v) == 1);
      REQUIRE(expected.at(v) == got.counts[i]);
    }
  }
}

std::vector<float> with_specials(index_t n, std::uint64_t seed) {
  std::vector<float> w = test::random_weights(n, 1, seed);
  const float specials[] = {0.0f,   -0.0f,   -0.0f,    kInf,   -kInf, kNaN, -kNaN,
                            1e-45f, -1e-45f, 70000.0f, -1e30f, 1e30f, 0.5f};
  for (std::size_t i = 0; i < std::size(specials); ++i) w[i * 7] = specials[i];
  return w;
}

}  // namespace

TEST_CASE("the entropy of a few stored values by hand", "[entropy][smoke]") {
  const std::vector<float> w{1, 1, 2, 4};
  const GardenerScore s = gardener_score(block_of(w));
  CHECK(s.score() == Approx(1.5 * std::log(2.0)).epsilon(1e-15));
  CHECK(s.efficiency == Approx(0.75).epsilon(1e-15));
  CHECK(s.entropy.distinct == 3);
  CHECK(s.entropy.count == 4);
  CHECK(s.grid.kind == ValueGrid::Kind::fp16);  // the default for float32
  CHECK(s.weight_bytes == 16);
  CHECK_FALSE(s.saturated);
  const std::vector<bf16> narrow = rounded<bf16>(w);
  CHECK(gardener_score(block_of(narrow)).grid.kind == ValueGrid::Kind::as_stored);
  CHECK(gardener_score(block_of(narrow)).weight_bytes == 8);
}

TEST_CASE("both zeros are one value, and so are all NaN, on every grid and type", "[entropy]") {
  const std::vector<float> w{0.0f, -0.0f, kNaN, -kNaN, std::bit_cast<float>(0x7f800001u)};
  const std::vector<bf16> b{bf16::from_bits(0), bf16::from_bits(0x8000), bf16::from_bits(0x7fc0),
                            bf16::from_bits(0xff81), bf16::from_bits(0x7f81)};
  const std::vector<fp16> h{fp16::from_bits(0), fp16::from_bits(0x8000), fp16::from_bits(0x7e00),
                            fp16::from_bits(0xfc01), fp16::from_bits(0x7c01)};
  for (const ValueGrid& grid : {ValueGrid::automatic(), ValueGrid::as_stored(), ValueGrid::fp16(), ValueGrid::bf16(),
                                ValueGrid::e4m3(), ValueGrid::integer(2), ValueGrid::integer(16)})
    for (const WeightBlock& block : {block_of(w), block_of(b), block_of(h)}) {
      const GardenerScore s = gardener_score(block, grid);
      CAPTURE(to_string(grid));
      CHECK(s.entropy.distinct == 2);
      CHECK(s.has_nan);
      CHECK(s.score() == Approx(std::log(5.0) - 0.4 * std::log(2.0) - 0.6 * std::log(3.0)).epsilon(1e-14));
    }
  CHECK_FALSE(gardener_score(block_of(std::vector<float>{0.0f, -0.0f})).has_nan);
  CHECK(gardener_score(block_of(std::vector<float>{0.0f, -0.0f})).score() == 0.0);
}

TEST_CASE("counts on every floating grid are those of rounding each weight", "[entropy]") {
  const std::vector<float> w = with_specials(5000, 21);
  check_counts(value_counts(block_of(w), ValueGrid::as_stored()), w);
  check_counts(value_counts(block_of(w), ValueGrid::fp16()), rounded<fp16>(w));
  check_counts(value_counts(block_of(w), ValueGrid::bf16()), rounded<bf16>(w));
  check_counts(value_counts(block_of(w), ValueGrid::e4m3()), rounded<fp8_e4m3>(w));
  const std::vector<bf16> b = rounded<bf16>(w);
  std::vector<float> wide;
  for (const bf16 v : b) wide.push_back(static_cast<float>(v));
  check_counts(value_counts(block_of(b), ValueGrid::as_stored()), b);
  check_counts(value_counts(block_of(b), ValueGrid::fp16()), rounded<fp16>(wide));
  check_counts(value_counts(block_of(b), ValueGrid::e4m3()), rounded<fp8_e4m3>(wide));
  const std::vector<fp16> h = rounded<fp16>(w);
  wide.clear();
  for (const fp16 v : h) wide.push_back(static_cast<float>(v));
  check_counts(value_counts(block_of(h), ValueGrid::as_stored()), h);
  check_counts(value_counts(block_of(h), ValueGrid::bf16()), rounded<bf16>(wide));
}

TEST_CASE("the integer grid is symmetric about zero with the step absmax over the largest code", "[entropy]") {
  // int3: codes -3 .. 3, step 2; 1 and 5 lie half way and go to the even code.
  const std::vector<float> w{6, -6, 1, 3, 5, -5, 4.9f, -1, 0.9f, kNaN, -0.0f};
  const ValueCounts c = value_counts(block_of(w), ValueGrid::integer(3));
  CHECK(c.grid.absmax == 6.0);
  CHECK(c.symbols == std::vector<std::uint32_t>{0, 2, 3, 0x7fc00000u, 0x80000002u, 0x80000003u});
  CHECK(c.counts == std::vector<std::uint64_t>{4, 3, 1, 1, 1, 1});
  // A given absmax clamps what lies beyond it, infinities too.
  const std::vector<float> x{8, kInf, -kInf, 1, 0.4f};
  const ValueCounts clamped = value_counts(block_of(x), ValueGrid::integer(2, 1.0));
  CHECK(clamped.symbols == std::vector<std::uint32_t>{0, 1, 0x80000001u});
  CHECK(clamped.counts == std::vector<std::uint64_t>{1, 3, 1});
  CHECK(value_counts(block_of(x), ValueGrid::integer(8)).grid.absmax == 8.0);  // the largest finite magnitude
  // Both ends of 16 bits, zeros only, subnormals.
  const std::vector<float> ends{32767, -32767, 32766, 0.49f};
  CHECK(value_counts(block_of(ends), ValueGrid::integer(16)).symbols ==
        std::vector<std::uint32_t>{0, 32766, 32767, 0x80000000u | 32767});
  CHECK(value_counts(block_of(std::vector<float>(5)), ValueGrid::integer(4)).symbols == std::vector<std::uint32_t>{0});
  const std::vector<float> tiny{3e-45f, -1e-45f};
  CHECK(value_counts(block_of(tiny), ValueGrid::integer(3)).symbols ==
        std::vector<std::uint32_t>{3, 0x80000002u});  // -1.5 to the even code
  // 16-bit data take the same codes as the same values in float.
  const std::vector<bf16> b = rounded<bf16>(test::random_weights(40, 40, 5));
  std::vector<float> wide;
  for (const bf16 v : b) wide.push_back(static_cast<float>(v));
  const ValueCounts from_bf16 = value_counts(block_of(b), ValueGrid::integer(5));
  const ValueCounts from_f32 = value_counts(block_of(wide), ValueGrid::integer(5));
  CHECK(from_bf16.symbols == from_f32.symbols);
  CHECK(from_bf16.counts == from_f32.counts);
}

TEST_CASE("a block is the concatenation of its matrices, of any type, shape and stride", "[entropy]") {
  const std::vector<float> a = with_specials(7 * 130, 31), c = test::random_weights(64, 3, 32);
  const std::vector<bf16> b = rounded<bf16>(test::random_weights(33, 17, 33));
  const MatrixView<const float> padded(a.data(), 7, 100, 130);
  const WeightBlock block("layer", {padded, MatrixView<const bf16>(b.data(), 33, 17), std::span<const float>(c),
                                    MatrixView<const float>(nullptr, 0, 5), MatrixView<const fp16>(nullptr, 4, 0)});
  std::vector<float> flat;
  for (index_t i = 0; i < 7; ++i) flat.insert(flat.end(), padded.row(i).begin(), padded.row(i).end());
  for (const bf16 v : b) flat.push_back(static_cast<float>(v));
  flat.insert(flat.end(), c.begin(), c.end());
  CHECK(block.size() == static_cast<index_t>(flat.size()));
  for (const ValueGrid& grid :
       {ValueGrid::automatic(), ValueGrid::as_stored(), ValueGrid::integer(6), ValueGrid::bf16()}) {
    const ValueCounts whole = value_counts(block, grid), one = value_counts(block_of(flat), grid);
    CHECK(whole.symbols == one.symbols);
    CHECK(whole.counts == one.counts);
    CHECK(gardener_score(block, grid).score() == gardener_score(block_of(flat), grid).score());
    CHECK(gardener_score(block, grid).score() == Approx(one.entropy().plug_in).epsilon(1e-14));
    CHECK(gardener_score(block, grid).has_nan);
  }
}

TEST_CASE("scaling by a power of two leaves the score as it is on a floating grid", "[entropy]") {
  std::vector<float> w = test::random_weights(80, 90, 3);
  const GardenerScore before = gardener_score(block_of(w), ValueGrid::bf16());
  for (float& v : w) v *= 0.125f;
  CHECK(gardener_score(block_of(w), ValueGrid::bf16()).score() == before.score());
  for (float& v : w) v *= 3.0f;
  CHECK(gardener_score(block_of(w), ValueGrid::bf16()).score() != before.score());
}

TEST_CASE("float32 as stored saturates, the same weights in bf16 do not", "[entropy]") {
  const std::vector<float> w = test::random_normal(20000, 9, 0.02f);
  const GardenerScore stored = gardener_score(block_of(w), ValueGrid::as_stored());
  CHECK(stored.saturated);
  CHECK(stored.efficiency > 0.99);
  const GardenerScore coarse = gardener_score(block_of(w), ValueGrid::bf16());
  CHECK_FALSE(coarse.saturated);
  CHECK(coarse.score() < stored.score());
}

TEST_CASE("the score is that of large blocks too, and does not depend on the threads", "[entropy]") {
  // More than one counting task and radix passes beside std::sort.
  const index_t n = test::budget<index_t>(5 << 20, 1 << 18);
  const std::vector<float> w = test::random_normal(n, 77, 0.02f);
  const std::vector<bf16> b = rounded<bf16>(w);
  const ValueCounts stored = value_counts(block_of(w), ValueGrid::as_stored(), with_threads(1));
  std::vector<float> sorted = w;
  std::sort(sorted.begin(), sorted.end());
  const auto distinct = std::unique(sorted.begin(), sorted.end()) - sorted.begin();
  CHECK(static_cast<index_t>(stored.symbols.size()) == distinct);
  CHECK(stored.total == w.size());
  std::vector<std::uint64_t> codes(65536);
  for (const bf16 v : b) ++codes[v.bits];
  codes[0] += std::exchange(codes[0x8000], 0u);
  const GardenerScore one = gardener_score(block_of(b), {}, with_threads(1));
  CHECK(one.score() == Approx(discrete_entropy(codes).plug_in).epsilon(1e-14));
  CHECK(gardener_score(block_of(w), ValueGrid::bf16()).score() == one.score());
  const double f32 = gardener_score(block_of(w), ValueGrid::as_stored(), with_threads(1)).score();
  CHECK(f32 == Approx(stored.entropy().plug_in).epsilon(1e-13));
  for (int threads = 2; threads <= 4; ++threads) {
    CHECK(gardener_score(block_of(b), {}, with_threads(threads)).score() == one.score());
    CHECK(gardener_score(block_of(w), ValueGrid::as_stored(), with_threads(threads)).score() == f32);
  }
}

TEST_CASE("an empty block scores zero", "[entropy]") {
  const GardenerScore s = gardener_score(WeightBlock());
  CHECK(s.score() == 0.0);
  CHECK(s.entropy.count == 0);
  CHECK_FALSE(s.saturated);
  CHECK(gardener_score(WeightBlock(WeightView()), ValueGrid::as_stored()).score() == 0.0);
}

TEST_CASE("impossible grids are refused", "[entropy]") {
  const std::vector<float> w{1, 2};
  CHECK_THROWS_WITH(gardener_score(block_of(w), ValueGrid::integer(1)),
                    "gardener_score: integer grid of 1 bits, 2 to 16 needed");
  CHECK_THROWS_AS(value_counts(block_of(w), ValueGrid::integer(17)), ValueError);
  CHECK_THROWS_AS(value_counts(block_of(w), ValueGrid::integer(4, -1.0)), ValueError);
  CHECK_THROWS_AS(value_counts(block_of(w), ValueGrid::integer(4, std::numeric_limits<double>::infinity())),
                  ValueError);
  CHECK_THROWS_WITH(code_counts(block_of(w), StoredType::bf16),
                    "code_counts: a matrix of type f32, bf16 or fp16 matrices of one type needed");
  CHECK_THROWS_AS(field_entropies(block_of(w)), ValueError);
  CHECK_THROWS_AS(field_entropies(std::vector<std::uint64_t>(10), StoredType::bf16), ShapeError);
}

TEST_CASE("a cancelled score ends with CancelledError", "[entropy]") {
  const std::vector<bf16> w(10);
  std::stop_source stop;
  stop.request_stop();
  Execution how;
  how.stop = stop.get_token();
  CHECK_THROWS_AS(gardener_score(block_of(w), {}, how), CancelledError);
}

TEST_CASE("field entropies of bf16 and fp16 by hand", "[entropy]") {
  const std::vector<bf16> b{bf16(1.0f), bf16(-1.0f), bf16(1.5f), bf16(2.0f)};
  const FieldEntropies h = field_entropies(block_of(b));
  const double quarter = 2.0 - 0.75 * std::log2(3.0);  // a split of 3 to 1
  CHECK(h.sign == Approx(quarter).epsilon(1e-14));
  CHECK(h.exponent == Approx(quarter).epsilon(1e-14));
  CHECK(h.mantissa == Approx(quarter).epsilon(1e-14));
  CHECK(h.joint == Approx(2.0).epsilon(1e-14));
  CHECK(h.distinct_exponents == 2);
  CHECK(h.exponent_counts[127] == 3);
  CHECK(h.exponent_coverage(1) == 0.75);
  CHECK(h.exponent_coverage(0) == 0.0);
  CHECK(h.field_sum() == h.sign + h.exponent + h.mantissa);
  const FieldEntropies f = field_entropies(block_of(rounded<fp16>({1.0f, -1.0f, 1.5f, 2.0f})));
  CHECK(f.exponent_counts[15] == 3);
  CHECK(f.exponent_counts[16] == 1);
  CHECK(f.joint == Approx(2.0).epsilon(1e-14));
  CHECK(field_entropies(WeightBlock()).joint == 0.0);
}

TEST_CASE("field entropies of normal weights are the tabulated ones", "[entropy][slow]") {
  // specification table, 4.19 M weights N(0, 0.02) in bf16: 1.000, 2.545, 6.971, sum 10.517, joint 10.463 bits.
  Random random(1);
  std::vector<bf16> w(std::size_t{1} << 22);
  for (std::size_t i = 0; i < w.size(); i += 2) {  // Box and Muller
    const double r = std::sqrt(-2 * std::log(1.0 - static_cast<double>(random.uniform())));
    const double angle = 6.283185307179586 * static_cast<double>(random.uniform());
    w[i] = bf16(static_cast<float>(0.02 * r * std::cos(angle)));
    w[i + 1] = bf16(static_cast<float>(0.02 * r * std::sin(angle)));
  }
  const FieldEntropies h = field_entropies(block_of(w));
  CHECK(h.sign == Approx(1.000).margin(0.001));
  CHECK(h.exponent == Approx(2.545).margin(0.002));
  CHECK(h.mantissa == Approx(6.971).margin(0.001));
  CHECK(h.field_sum() == Approx(10.517).margin(0.002));
  CHECK(h.joint == Approx(10.463).margin(0.002));
  CHECK(h.exponent_coverage(7) == Approx(0.9787).margin(0.0003));
  CHECK(h.exponent_coverage(15) == Approx(0.99984).margin(0.00003));
}
