// SPDX-License-Identifier: Apache-2.0
#include "blockpack/sparse/mask.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "blockpack/core/random.hpp"
#include "blockpack/sparse/prune/wanda.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;

namespace {

/// A matrix and its view.
struct Scores {
  index_t rows, cols;
  std::vector<float> values;
  MatrixView<const float> view() const { return {values.data(), rows, cols}; }
};

Scores random_scores(index_t rows, index_t cols, std::uint64_t seed) {
  return {rows, cols, test::random_normal(rows * cols, seed)};
}

/// The 0s and 1s of a mask, row by row.
std::string text(const Mask& mask) {
  std::string s;
  for (index_t i = 0; i < mask.rows(); ++i) {
    for (index_t j = 0; j < mask.cols(); ++j) s += mask(i, j) ? '1' : '0';
    s += i + 1 < mask.rows() ? " " : "";
  }
  return s;
}

}  // namespace

TEST_CASE("a mask counts what it keeps and composes with others", "[sparse]") {
  const std::vector<float> w = {0.0f, -0.0f, 1.0f, std::nanf(""), 0.0f, 2.0f};
  const Mask mask = Mask::of_nonzeros(MatrixView<const float>(w.data(), 2, 3));
  CHECK(text(mask) == "001 101");
  CHECK(mask.count() == 3);
  CHECK(mask.density() == 0.5);
  CHECK(mask.sparsity() == 0.5);
  CHECK(mask.row_counts() == std::vector<index_t>{1, 2});
  CHECK(mask.column_counts() == std::vector<index_t>{1, 0, 2});
  Mask other({2, 3});
  other.set(0, 0);
  other.set(1, 2);
  CHECK(text(mask & other) == "000 001");
  CHECK(text(mask | other) == "101 101");
  CHECK(text(~mask) == "110 010");
  CHECK(~~mask == mask);
  CHECK((mask & ~mask).count() == 0);
  CHECK((mask | ~mask) == Mask({2, 3}, true));
  CHECK(Mask({3, 70}, true).count() == 210);  // nothing past the last column
  CHECK((~Mask({3, 70})).count() == 210);
  std::vector<float> pruned = {1, 2, 3, 4, 5, 6};
  mask.apply(MatrixView<float>(pruned.data(), 2, 3));
  CHECK(pruned == std::vector<float>{0, 0, 3, 4, 0, 6});
  CHECK_THROWS_AS(mask & Mask({3, 2}), ShapeError);
  CHECK_THROWS_AS(mask.apply(MatrixView<float>(pruned.data(), 3, 2)), ShapeError);
  CHECK(Mask({0, 5}).density() == 1.0);
}

TEST_CASE("N:M masks keep the largest of every group and the lower index where scores are equal", "[sparse]") {
  const std::vector<float> s = {1, 3, 2, 4, /**/ 5, 5, 5, 5, /**/ -1, -2, -3, -4};
  const MatrixView<const float> score(s.data(), 1, 12);
  CHECK(text(select_nm(score, 2, 4)) == "010111001100");
  CHECK(text(select_nm(score, 1, 4)) == "000110001000");
  CHECK(text(select_nm(score, 0, 4)) == "000000000000");
  CHECK(text(select_nm(score, 4, 4)) == "111111111111");
  CHECK(text(select_nm(score, 1, 5, Tail::short_group)) == "000011000010");
  const Mask mask = select_nm(score, 2, 4);
  CHECK(mask.is_nm(2, 4));
  CHECK(!mask.is_nm(1, 4));
  CHECK(mask.find_nm_violation(1, 4) == MatrixShape{0, 0});
  CHECK_NOTHROW(mask.require_nm("test", 2, 4));
  Mask crowded = mask;
  crowded.set(0, 6);
  CHECK_THROWS_WITH(crowded.require_nm("NmMatrix::encode", 2, 4),
                    Catch::Contains("NmMatrix::encode") && Catch::Contains("row 0 from column 4"));
}

TEST_CASE("the fast selections choose what the definition chooses, ties included", "[sparse]") {
  const index_t cols = GENERATE(index_t{1}, 48, 64, 200, 257);
  Scores s = random_scores(7, cols, 5);
  const bool ties = GENERATE(false, true);
  if (ties)
    for (float& v : s.values) v = std::round(2.0f * v);
  s.values[0] = std::numeric_limits<float>::infinity();
  s.values.back() = -std::numeric_limits<float>::infinity();
  if (cols > 3) s.values[3] = -0.0f;
  const std::vector<double> wide(s.values.begin(), s.values.end());
  const MatrixView<const double> reference(wide.data(), s.rows, s.cols);
  for (const index_t of : {1, 2, 3, 4, 8, 13, 16, 20})
    for (index_t keep = 0; keep <= of; keep += of > 4 ? 3 : 1) {
      CAPTURE(of, keep, cols, ties);
      const Mask mask = select_nm(s.view(), keep, of, Tail::short_group);
      CHECK(mask == select_nm(reference, keep, of, Tail::short_group));
      CHECK(mask.is_nm(keep, of));
    }
  for (const double density : {0.0, 0.1, 0.5, 0.9, 1.0}) {
    CAPTURE(density, cols, ties);
    for (const MaskPattern& p :
         {MaskPattern::rows(density), MaskPattern::layer(density), MaskPattern::columns(density)})
      CHECK(select_mask(s.view(), p) == select_mask(reference, p));
    const MaskPattern rows = MaskPattern::rows(density);
    for (const index_t count : select_mask(s.view(), rows).row_counts()) CHECK(count == rows.kept_of(cols));
    for (const index_t count : select_mask(s.view(), MaskPattern::columns(density)).column_counts())
      CHECK(count == rows.kept_of(7));
    CHECK(select_mask(s.view(), MaskPattern::layer(density)).count() == rows.kept_of(7 * cols));
  }
}

TEST_CASE("weights that are weighed and chosen in one pass have the mask of their scores", "[sparse]") {
  const index_t cols = GENERATE(index_t{3}, 64, 200);
  Scores w = random_scores(5, cols, 6);
  const std::vector<float> normal = test::random_normal(cols, 7);
  Criterion criterion{{1.0, -2.0, 0.5, 1.0, 3.0}, {normal.begin(), normal.end()}};
  for (float& v : w.values) v = std::round(2.0f * v);  // ties
  w.values[0] = w.values[1] = std::numeric_limits<float>::infinity();
  criterion.column[0] = 1.0;
  criterion.column[1] = -1.0;  // infinite scores of both signs
  Scores scores = w;
  for (index_t i = 0; i < w.rows; ++i)
    for (index_t j = 0; j < cols; ++j)
      scores.values[static_cast<std::size_t>(i * cols + j)] =
          std::fabs(w.view()(i, j)) * static_cast<float>(criterion.column[static_cast<std::size_t>(j)]) *
          static_cast<float>(criterion.row[static_cast<std::size_t>(i)]);
  for (const index_t of : {2, 3, 4, 8, 16}) {
    const MaskPattern pattern = MaskPattern::nm(of / 2, of, Tail::short_group);
    CAPTURE(cols, of);
    CHECK(prune_mask(w.view(), criterion, pattern) == select_mask(scores.view(), pattern));
    Scores bad = w;
    bad.values[static_cast<std::size_t>(3 * cols + 2)] = std::nanf("");
    CHECK_THROWS_WITH(prune_mask(bad.view(), criterion, pattern), Catch::Contains("NaN at row 3, column 2"));
  }
}

TEST_CASE("of equal scores the lower index is kept in every scope", "[sparse]") {
  const Scores equal{2, 4, std::vector<float>(8, 1.0f)};
  CHECK(text(select_mask(equal.view(), MaskPattern::layer(0.375))) == "1110 0000");
  CHECK(text(select_mask(equal.view(), MaskPattern::rows(0.5))) == "1100 1100");
  CHECK(text(select_mask(equal.view(), MaskPattern::columns(0.5))) == "1111 0000");
  CHECK(text(select_mask(equal.view(), MaskPattern::blocks({1, 2}, 0.5))) == "1111 0000");
  CHECK(text(select_mask(equal.view(), MaskPattern::blocks({1, 2}, 0.5, true))) == "1100 1100");
}

TEST_CASE("blocks compare the squares or the magnitudes of their scores, edges included", "[sparse]") {
  const Scores s{3, 5, {3, 0, 1, 1, 0, /**/ 0, 0, 1, 1, 0, /**/ 0, 0, 0, 0, -4}};
  const MaskPattern squares = MaskPattern::blocks({2, 2}, 1.0 / 3.0);  // 2 of 6 blocks
  CHECK(text(select_mask(s.view(), squares)) == "11000 11000 00001");
  MaskPattern magnitudes = squares;
  magnitudes.sum_of_magnitudes = true;
  CHECK(text(select_mask(s.view(), magnitudes)) == "00110 00110 00001");
  const Mask mask = select_mask(s.view(), squares);
  CHECK(mask.is_blocks({2, 2}));
  CHECK(!mask.is_blocks({3, 5}));
  CHECK(text(mask.any_of_blocks({2, 2})) == "100 001");
  const Scores large = random_scores(32, 64, 3);
  const Mask by_row = select_mask(large.view(), MaskPattern::blocks({4, 1}, 0.25, true));
  CHECK(by_row.is_blocks({4, 1}));
  for (const index_t count : by_row.row_counts()) CHECK(count == 16);
}

TEST_CASE("masks do not depend on the number of threads", "[sparse]") {
  const Scores s = random_scores(65, 130, 8);
  Execution one, two;
  one.threads = 1;
  two.threads = 2;
  for (const MaskPattern& p : {MaskPattern::rows(0.5), MaskPattern::layer(0.5), MaskPattern::columns(0.5),
                               MaskPattern::nm(2, 4, Tail::short_group), MaskPattern::blocks({16, 32}, 0.5)})
    CHECK(select_mask(s.view(), p, one) == select_mask(s.view(), p, two));
}

TEST_CASE("bad patterns and scores are refused with what is wrong", "[sparse]") {
  Scores s = random_scores(4, 10, 1);
  CHECK_THROWS_WITH(select_nm(s.view(), 2, 4), Catch::Contains("10 columns are not a multiple of 4"));
  CHECK_THROWS_AS(select_nm(s.view(), 5, 4), ValueError);
  CHECK_THROWS_AS(select_nm(s.view(), -1, 4), ValueError);
  CHECK_THROWS_AS(select_nm(s.view(), 0, 0), ValueError);
  CHECK_THROWS_AS(select_mask(s.view(), MaskPattern::layer(1.5)), ValueError);
  CHECK_THROWS_AS(select_mask(s.view(), MaskPattern::rows(std::nan(""))), ValueError);
  CHECK_THROWS_WITH(select_mask(s.view(), MaskPattern::blocks({8, 2}, 0.5)), Catch::Contains("larger than the matrix"));
  CHECK_THROWS_AS(select_mask(s.view(), MaskPattern::blocks({2, 11}, 0.5)), ShapeError);
  CHECK_THROWS_AS(select_mask(s.view(), MaskPattern::blocks({0, 2}, 0.5)), ShapeError);
  CHECK_THROWS_AS(Mask({4, 10}).is_blocks({0, 1}), ShapeError);
  s.values[27] = std::nanf("");
  for (const MaskPattern& p : {MaskPattern::rows(0.5), MaskPattern::layer(0.5), MaskPattern::columns(0.5),
                               MaskPattern::nm(1, 2), MaskPattern::blocks({2, 2}, 0.5)})
    CHECK_THROWS_WITH(select_mask(s.view(), p), Catch::Contains("NaN at row 2, column 7"));
  CHECK_THROWS_WITH(prune_mask(s.view(), magnitude(), MaskPattern::rows(0.5)),
                    Catch::Contains("NaN at row 2, column 7"));
  CHECK_THROWS_AS(prune_mask(s.view(), Criterion{{}, {1.0}}, MaskPattern::rows(0.5)), ShapeError);
}

TEST_CASE("empty and all-zero matrices have masks of every pattern", "[sparse]") {
  const std::vector<float> zeros(4 * 8);
  for (const MaskPattern& p : {MaskPattern::rows(0.5), MaskPattern::layer(0.5), MaskPattern::columns(0.5),
                               MaskPattern::nm(2, 4), MaskPattern::blocks({2, 2}, 0.5)}) {
    for (const MatrixShape shape : {MatrixShape{0, 8}, MatrixShape{4, 0}})
      CHECK(select_mask(MatrixView<const float>(zeros.data(), shape.rows, shape.cols), p).shape() == shape);
    CHECK(select_mask(MatrixView<const float>(zeros.data(), 4, 8), p).density() == 0.5);
  }
}

TEST_CASE("the row-threshold variant prunes by each row's own sum", "[sparse]") {
  // One row of equal scores, one in which a few weights hold nearly everything.
  const index_t cols = 1000;
  std::vector<float> w(2 * cols);
  for (index_t j = 0; j < cols; ++j) {
    w[static_cast<std::size_t>(j)] = 1.0f + 1e-4f * static_cast<float>(j);
    w[static_cast<std::size_t>(cols + j)] = std::exp(-0.02f * static_cast<float>(j));
  }
  const MatrixView<const float> view(w.data(), 2, cols);
  const Mask mask = row_threshold_mask(view, magnitude(), 0.5);
  CHECK(mask.sparsity() == Approx(0.5).margin(1e-3));
  CHECK(mask.row_count(0) > 700);
  CHECK(mask.row_count(1) < 300);
  // The lowest go.
  for (index_t j = 0; j < cols - mask.row_count(0); ++j) CHECK(!mask(0, j));
  for (index_t j = 0; j < mask.row_count(1); ++j) CHECK(mask(1, j));
  CHECK(row_threshold_mask(view, magnitude(), 0.0).sparsity() < 2e-3);
  CHECK_THROWS_AS(row_threshold_mask(view, magnitude(), -0.1), ValueError);
  w[1500] = std::nanf("");
  CHECK_THROWS_WITH(row_threshold_mask(view, magnitude(), 0.5), Catch::Contains("NaN at row 1, column 500"));
  const std::vector<float> zeros(64);
  CHECK(row_threshold_mask(MatrixView<const float>(zeros.data(), 4, 16), magnitude(), 0.5).shape() ==
        MatrixShape{4, 16});
}
