// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/histogram.hpp"

#include <cstring>
#include <numeric>
#include <vector>

#include "kernels/table.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/guard_page.hpp"
#include "support/levels.hpp"
#include "support/random.hpp"

using namespace blockpack;
using namespace blockpack::test;

namespace {

using Counts = std::vector<std::uint64_t>;

Counts plain_histogram(std::span<const std::uint16_t> codes) {
  Counts counts(kHistogramBins);
  for (const std::uint16_t c : codes) ++counts[c];
  return counts;
}

/// bf16 codes of heavy-tailed weights, or uniform codes.
std::vector<std::uint16_t> some_codes(std::size_t n, bool uniform) {
  std::vector<std::uint16_t> codes(n);
  if (uniform) {
    std::uint32_t state = 1;
    for (auto& c : codes) {
      state = state * 1664525u + 1013904223u;
      c = static_cast<std::uint16_t>(state >> 16);
    }
  } else {
    const std::vector<float> w = random_weights(1, static_cast<index_t>(n), 7);
    for (std::size_t i = 0; i < n; ++i) codes[i] = bf16(w[i]).bits;
  }
  return codes;
}

}  // namespace

TEST_CASE("every level counts every code", "[core][kernels][smoke]") {
  // Below and above the size from which the four tables are used.
  for (const std::size_t n : {std::size_t{100000}, (std::size_t{1} << 20) + 77})
    for (const bool uniform : {false, true}) {
      const std::vector<std::uint16_t> codes = some_codes(n, uniform);
      const Counts expected = plain_histogram(codes);
      for (const Isa isa : levels_here()) {
        Counts counts(kHistogramBins);
        histogram_u16(codes, counts, isa);
        CAPTURE(to_string(isa), n, uniform);
        CHECK(counts == expected);
      }
    }
}

TEST_CASE("counts accumulate and the extreme codes have their bins", "[core][kernels]") {
  const std::vector<std::uint16_t> codes = {0, 65535, 65535, 0x8000};
  for (const Isa isa : levels_here()) {
    Counts counts(kHistogramBins, 5);
    histogram_u16(codes, counts, isa);
    histogram_u16(codes, counts, isa);
    CHECK(counts[0] == 7);
    CHECK(counts[65535] == 9);
    CHECK(counts[0x8000] == 7);
    CHECK(counts[1] == 5);
  }
}

TEST_CASE("the merge adds 32-bit counters without losing a carry", "[core][kernels]") {
  for (const Isa isa : levels_here()) {
    std::vector<std::uint32_t> tables(kernels::kTables * kernels::kBins);
    for (std::size_t i = 0; i < tables.size(); ++i)
      tables[i] = static_cast<std::uint32_t>(i * 2654435761u) | 0x80000000u;
    Counts counts(kHistogramBins, std::uint64_t{1} << 40);
    kernels::table_for(isa).histogram.merge.fn(tables.data(), counts.data());
    bool equal = true;
    for (std::size_t c = 0; c < kHistogramBins; ++c) {
      std::uint64_t sum = std::uint64_t{1} << 40;
      for (std::size_t t = 0; t < kernels::kTables; ++t) sum += tables[t * kernels::kBins + c];
      equal = equal && counts[c] == sum;
    }
    CAPTURE(to_string(isa));
    CHECK(equal);
  }
}

TEST_CASE("histograms take any length at any address and stay inside", "[core][kernels]") {
  std::vector<std::uint16_t> codes = some_codes(100, true);
  for (const Isa isa : levels_here())
    for (const std::size_t n : {0u, 1u, 3u, 4u, 31u, 32u, 33u, 63u, 64u, 65u, 97u})
      for (const Guard guard : {Guard::after, Guard::before})
        for (const std::size_t shift : {0u, 1u, 2u, 5u}) {
          GuardedArray<std::byte> bytes(2 * n, guard, shift);
          if (n > 0) std::memcpy(bytes.data(), codes.data(), 2 * n);
          Counts counts(kHistogramBins);
          histogram_u16_bytes(bytes.span(), counts, isa);
          REQUIRE(counts == plain_histogram(std::span(codes).first(n)));
        }
}

TEST_CASE("padding between the rows of a matrix is not counted", "[core][kernels]") {
  const index_t rows = budget(1100, 20);
  const index_t cols = 1000;
  const index_t stride = 1003;
  const std::vector<std::uint16_t> codes = some_codes(static_cast<std::size_t>(rows * stride), false);
  Counts expected(kHistogramBins);
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < cols; ++j) ++expected[codes[static_cast<std::size_t>(i * stride + j)]];
  for (const Isa isa : levels_here()) {
    Counts counts(kHistogramBins);
    histogram_u16(MatrixView<const std::uint16_t>(codes.data(), rows, cols, stride), counts, isa);
    CHECK(counts == expected);
  }
}

TEMPLATE_TEST_CASE("floats are rounded to the grid of the type and counted there", "[core][kernels][smoke]", bf16,
                   fp16) {
  for (const index_t n : {0, 1, 2047, 2048, 2049, 1100000}) {
    std::vector<float> values = random_normal(n, 3, 0.02f);
    if (n > 4) {
      values[0] = -0.0f;
      values[1] = 0.0f;
      values[2] = std::numeric_limits<float>::infinity();
      values[3] = std::numeric_limits<float>::quiet_NaN();
    }
    Counts expected(kHistogramBins);
    for (const float v : values) ++expected[TestType(v).bits];
    for (const Isa isa : levels_here()) {
      Counts counts(kHistogramBins);
      histogram_rounded<TestType>(values, counts, isa);
      CAPTURE(to_string(isa), n);
      CHECK(counts == expected);
    }
  }
  const std::vector<float> padded = random_normal(30, 3);
  Counts counts(kHistogramBins);
  histogram_rounded<TestType>(MatrixView<const float>(padded.data(), 3, 7, 10), counts);
  CHECK(std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}) == 21);
}

TEST_CASE("wrong sizes of histograms are refused", "[core]") {
  Counts counts(65535);
  const std::vector<std::uint16_t> codes(3);
  CHECK_THROWS_WITH(histogram_u16(codes, counts), "histogram_u16: counts has 65535 bins, 65536 needed");
  const std::vector<float> values(3);
  CHECK_THROWS_AS(histogram_rounded<bf16>(values, counts), ShapeError);
  counts.resize(kHistogramBins);
  const std::vector<std::byte> odd(7);
  CHECK_THROWS_WITH(histogram_u16_bytes(odd, counts), "histogram_u16_bytes: codes has 7 bytes, an even number needed");
  CHECK(std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}) == 0);
}
