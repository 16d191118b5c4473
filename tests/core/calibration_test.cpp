// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/calibration.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;

namespace {

MatrixView<const float> view(const std::vector<float>& v, index_t rows, index_t cols) { return {v.data(), rows, cols}; }

Execution with_threads(int threads) {
  Execution how;
  how.threads = threads;
  return how;
}

}  // namespace

TEST_CASE("column statistics of a small batch computed by hand", "[core][smoke]") {
  const std::vector<float> x{3, -1, 4, 2, 0, -5};  // rows (3 -1) (4 2) (0 -5)
  ColumnStats s(2);
  CHECK(s.mean_abs(0) == 0.0);
  s.add(view(x, 3, 2));
  CHECK(s.rows() == 3);
  CHECK(s.l2_norm(0) == 5.0);
  CHECK(s.absmax(1) == 5.0);
  CHECK(s.mean_abs(1) == Approx(8.0 / 3).epsilon(1e-15));
  CHECK(s.mean_square(1) == 10.0);
  CHECK(s.importance() == std::vector<float>{static_cast<float>(25.0 / 3), 10.0f});
}

TEST_CASE("the Gram matrix of a small batch computed by hand, with damping", "[core][smoke]") {
  const std::vector<float> x{1, 2, 3, -1, 0, 1};
  GramMatrix h(3);
  h.add(view(x, 2, 3));
  const double expected[3][3] = {{2, 2, 2}, {2, 4, 6}, {2, 6, 10}};
  for (index_t i = 0; i < 3; ++i)
    for (index_t j = 0; j < 3; ++j) CHECK(h(i, j) == expected[i][j]);
  CHECK(h.mean_diagonal() == Approx(16.0 / 3));
  std::vector<double> dense(9);
  h.copy_to(MatrixView<double>(dense.data(), 3, 3), 2.0 / static_cast<double>(h.rows()), 0.01);
  CHECK(dense[1] == 2.0);
  CHECK(dense[3] == 2.0);
  CHECK(dense[8] == Approx(10.0 + 0.16 / 3).epsilon(1e-15));
}

TEST_CASE("statistics of any shape equal the plain double loops, and do not depend on the threads", "[core]") {
  const auto rows = GENERATE(index_t{1}, 3, 64, 131);
  const auto cols = GENERATE(index_t{1}, 31, 33, 257);
  const std::vector<float> x = test::random_weights(rows, cols + 3, 7);
  const MatrixView<const float> padded(x.data(), rows, cols, cols + 3);
  ColumnStats columns(cols);
  GramMatrix gram(cols);
  columns.add(padded);
  gram.add(padded);
  for (index_t i = 0; i < cols; ++i) {
    double absolute = 0, largest = 0;
    for (index_t t = 0; t < rows; ++t) {
      absolute += std::fabs(static_cast<double>(padded(t, i)));
      largest = std::max(largest, std::fabs(static_cast<double>(padded(t, i))));
    }
    REQUIRE(columns.mean_abs(i) ==
            Approx(absolute / static_cast<double>(rows)).epsilon(2e-16 * static_cast<double>(rows + 4)));
    REQUIRE(columns.absmax(i) == largest);
    REQUIRE(columns.mean_square(i) * static_cast<double>(rows) == Approx(gram(i, i)).epsilon(1e-13));
    for (index_t j = 0; j < cols; ++j) {
      double sum = 0, magnitude = 0;
      for (index_t t = 0; t < rows; ++t) {
        const double product = static_cast<double>(padded(t, i)) * static_cast<double>(padded(t, j));
        sum += product;
        magnitude += std::fabs(product);
      }
      REQUIRE(std::fabs(gram(i, j) - sum) <= 2e-16 * static_cast<double>(rows + 4) * magnitude);
      REQUIRE(gram(i, j) == gram(j, i));
    }
  }
  for (int threads = 2; threads <= 4; ++threads) {
    ColumnStats c(cols);
    GramMatrix g(cols);
    c.add(padded, with_threads(threads));
    g.add(padded, with_threads(threads));
    for (index_t i = 0; i < cols; ++i) {
      REQUIRE(c.l2_norm(i) == columns.l2_norm(i));
      for (index_t j = 0; j <= i; ++j) REQUIRE(g(i, j) == gram(i, j));
    }
  }
}

TEST_CASE("batches and merged workers add up", "[core]") {
  const index_t rows = 90, cols = 37;
  const std::vector<float> x = test::random_normal(rows * cols, 3);
  const auto all = view(x, rows, cols);
  GramMatrix whole(cols), first(cols), second(cols);
  ColumnStats whole_columns(cols), a(cols), b(cols);
  whole.add(all);
  whole_columns.add(all);
  first.add(all.rows_from(0, 64));  // the panel length, so the order of additions is that of the whole
  second.add(all.rows_from(64, 20));
  second.add(all.rows_from(84, 6));
  first.merge(second);
  a.add(all.rows_from(0, 50));
  b.add(all.rows_from(50, 40));
  a.merge(b);
  CHECK(first.rows() == rows);
  CHECK(a.rows() == rows);
  for (index_t i = 0; i < cols; ++i) {
    CHECK(a.l2_norm(i) == Approx(whole_columns.l2_norm(i)).epsilon(2e-16 * static_cast<double>(rows + 4)));
    CHECK(a.absmax(i) == whole_columns.absmax(i));
    for (index_t j = 0; j < cols; ++j) CHECK(std::fabs(first(i, j) - whole(i, j)) < 1e-12);
  }
}

TEST_CASE("second moments of gradients average over batches", "[core]") {
  const std::vector<float> g{1, 2, 3, -4}, h{3, 0, 1, 2};
  SecondMoments s({2, 2}), t({2, 2});
  CHECK(s.mean(0, 0) == 0.0);
  s.add(view(g, 2, 2));
  t.add(view(h, 2, 2), with_threads(3));
  s.merge(t);
  CHECK(s.batches() == 2);
  CHECK(s.mean(0, 0) == 5.0);
  CHECK(s.mean(1, 1) == 10.0);
  std::vector<float> out(4);
  s.copy_to(MatrixView<float>(out.data(), 2, 2));
  CHECK(out == std::vector<float>{5, 2, 5, 10});
}

TEST_CASE("calibration statistics state their memory and take empty batches", "[core]") {
  CHECK(GramMatrix(64).memory_bytes() == 3 * 32 * 32 * 8);
  GramMatrix gram(5);
  ColumnStats columns(5);
  gram.add(MatrixView<const float>(nullptr, 0, 5));
  columns.add(MatrixView<const float>(nullptr, 0, 5));
  CHECK(gram.rows() == 0);
  CHECK(gram(4, 0) == 0.0);
  CHECK(columns.mean_square(4) == 0.0);
  GramMatrix none(0);
  none.add(MatrixView<const float>(nullptr, 7, 0));
  CHECK(none.rows() == 7);
  CHECK(none.mean_diagonal() == 0.0);
}

TEST_CASE("calibration statistics refuse bad batches and stay as they were", "[core]") {
  std::vector<float> x(6, 1.0f);
  ColumnStats columns(3);
  GramMatrix gram(3);
  SecondMoments moments({2, 3});
  CHECK_THROWS_WITH(columns.add(view(x, 3, 2)), "ColumnStats::add: x has 2 columns, 3 needed");
  CHECK_THROWS_WITH(gram.add(view(x, 3, 2)), "GramMatrix::add: x has 2 columns, 3 needed");
  CHECK_THROWS_WITH(moments.add(view(x, 1, 3)), "SecondMoments::add: gradient is 1x3, 2x3 needed");
  x[4] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(columns.add(view(x, 2, 3)), "ColumnStats::add: x is not finite at row 1, column 1");
  CHECK_THROWS_AS(gram.add(view(x, 2, 3)), ValueError);
  CHECK_THROWS_AS(moments.add(view(x, 2, 3)), ValueError);
  CHECK(columns.rows() + gram.rows() + moments.batches() == 0);
  CHECK(gram(0, 0) + columns.absmax(0) + moments.mean(0, 0) == 0.0);
  CHECK_THROWS_AS(columns.merge(ColumnStats(4)), ShapeError);
  CHECK_THROWS_AS(gram.merge(GramMatrix(4)), ShapeError);
  CHECK_THROWS_AS(moments.merge(SecondMoments({3, 2})), ShapeError);
  CHECK_THROWS_AS(GramMatrix(std::numeric_limits<index_t>::max() / 2), ShapeError);
  std::vector<float> dst(4);
  CHECK_THROWS_AS(gram.copy_to(MatrixView<float>(dst.data(), 2, 2)), ShapeError);
}

TEST_CASE("a Gram matrix made elsewhere is taken as it is", "[core]") {
  const std::vector<double> h = {4, 9, 1, 5};
  const GramMatrix gram = GramMatrix::from_values(MatrixView<const double>(h.data(), 2, 2), 7);
  CHECK(gram.rows() == 7);
  CHECK(gram(0, 0) == 4);
  CHECK(gram(1, 1) == 5);
  CHECK(gram(0, 1) == 1);  // the lower triangle
  CHECK(gram(1, 0) == 1);
  CHECK_THROWS_AS(GramMatrix::from_values(MatrixView<const double>(h.data(), 1, 2)), ShapeError);
  const std::vector<double> bad = {-1};
  CHECK_THROWS_AS(GramMatrix::from_values(MatrixView<const double>(bad.data(), 1, 1)), ValueError);
}
