// SPDX-License-Identifier: Apache-2.0

#include "blockpack/structured/monarch_fit.hpp"

#include <stop_token>

#include "structured/fit_cases.hpp"
#include "support/budget.hpp"

namespace {

using namespace blockpack;
using test::read;
using test::relative_error;

MonarchOptions options_of(index_t in_blocks, index_t out_blocks, index_t rank,
                          OutputOrder order = OutputOrder::blocked) {
  MonarchOptions options;
  options.in_blocks = in_blocks;
  options.out_blocks = out_blocks;
  options.rank = rank;
  options.order = order;
  return options;
}

}  // namespace

TEST_CASE("The Monarch projection is idempotent and its error is the tail of its blocks", "[structured]") {
  struct Case {
    index_t out, in, in_blocks, out_blocks, rank;
  };
  for (const Case c : {Case{24, 32, 4, 4, 2},
                       {30, 20, 4, 5, 1},
                       {17, 23, 3, 2, 4},
                       {13, 9, 4, 5, 2},
                       {7, 7, 7, 7, 1},
                       {10, 6, 1, 3, 3},
                       {9, 9, 4, 2, 3}})
    for (const OutputOrder order : {OutputOrder::blocked, OutputOrder::interleaved}) {
      CAPTURE(c.out, c.in, c.in_blocks, c.out_blocks, c.rank, static_cast<int>(order));
      const auto w = test::normal<double>(c.out, c.in, 7);
      const auto options = options_of(c.in_blocks, c.out_blocks, c.rank, order);
      const MonarchFactors<double> f = monarch_project<double>(read(w), options);
      const RowMajorMatrix<double> dense = f.dense();
      REQUIRE(f.first.rows() == c.in_blocks * c.out_blocks * c.rank);
      REQUIRE(f.second.rows() == c.out_blocks * f.block_rows());
      REQUIRE(f.parameters() == c.in_blocks * c.out_blocks * c.rank * (f.block_rows() + f.block_cols()));
      double squares = 0;
      for (index_t k = 0; k < c.out_blocks; ++k)
        for (index_t l = 0; l < c.in_blocks; ++l) {
          RowMajorMatrix<double> block = RowMajorMatrix<double>::Zero(f.block_rows(), f.block_cols());
          for (index_t s = 0; s < f.block_rows(); ++s)
            for (index_t j = 0; j < f.block_cols(); ++j)
              if (f.output(k, s) < c.out && l * f.block_cols() + j < c.in)
                block(s, j) = w(f.output(k, s), l * f.block_cols() + j);
          const double e = fit_detail::tail_norm(truncated_svd<double>(read(block), 0).sigma, c.rank);
          squares += e * e;
        }
      REQUIRE((w - dense).norm() == Approx(std::sqrt(squares)).margin(1e-12));
      REQUIRE(relative_error(dense, monarch_project<double>(read(dense), options).dense()) < 1e-12);
      if (order == OutputOrder::interleaved) {
        const auto back = from_fly_layout(to_fly_layout(f), f.shape(), c.in_blocks, c.out_blocks);
        REQUIRE(back.first == f.first);
        REQUIRE(back.second == f.second);
      } else {
        REQUIRE_THROWS_AS(to_fly_layout(f), ValueError);
      }
    }
}

TEST_CASE("A Monarch matrix of one block is low rank", "[structured]") {
  const auto w = test::normal<double>(18, 25, 3);
  const MonarchFactors<double> f = monarch_project<double>(read(w), options_of(1, 1, 6));
  REQUIRE(relative_error(low_rank_fit<double>(read(w), 6).dense(), f.dense()) < 1e-12);
}

TEST_CASE("Square factors are the closest pair, larger first", "[structured]") {
  REQUIRE(square_factors(48) == std::pair<index_t, index_t>{8, 6});
  REQUIRE(square_factors(36) == std::pair<index_t, index_t>{6, 6});
  REQUIRE(square_factors(13) == std::pair<index_t, index_t>{13, 1});
  REQUIRE(square_factors(1) == std::pair<index_t, index_t>{1, 1});
}

TEST_CASE("Blocked and interleaved outputs are different families", "[structured]") {
  // Contiguous blocks of rank 8: exact in the one order, far in the other.
  const index_t n = 128, b = 4, rank = 8;
  RowMajorMatrix<float> w(n, n);
  for (index_t i = 0; i < b; ++i)
    for (index_t j = 0; j < b; ++j)
      w.block(i * 32, j * 32, 32, 32) = test::normal<float>(32, rank, static_cast<std::uint64_t>(i * b + j)) *
                                        test::normal<float>(rank, 32, static_cast<std::uint64_t>(99 + i * b + j));
  REQUIRE(relative_error(w, monarch_project<float>(read(w), options_of(b, b, rank)).dense()) < 1e-6);
  REQUIRE(relative_error(w, monarch_project<float>(read(w), options_of(b, b, rank, OutputOrder::interleaved)).dense()) >
          0.4);
}

TEST_CASE("Weighted projection and refinement lower the output error", "[structured]") {
  for (const MatrixShape shape : {MatrixShape{36, 48}, {35, 46}})
    for (const OutputOrder order : {OutputOrder::blocked, OutputOrder::interleaved}) {
      CAPTURE(shape.rows, shape.cols, static_cast<int>(order));
      const auto x = test::correlated_inputs(300, shape.cols, 3);
      const GramMatrix gram = test::gram_of(x);
      const auto w = test::normal<double>(shape.rows, shape.cols, 5);
      auto options = options_of(4, 3, 2, order);
      const auto output_error = [&](const MonarchFactors<double>& f) {
        const RowMajorMatrix<double> xt = x.cast<double>().transpose();
        return ((w - f.dense()) * xt).norm() / (w * xt).norm();
      };
      const MonarchFactors<double> plain = monarch_project<double>(read(w), options);
      options.gram = &gram;
      const MonarchFactors<double> weighted = monarch_project<double>(read(w), options);
      REQUIRE(output_error(weighted) < output_error(plain));
      const auto refined = monarch_refine<double>(read(w), plain, gram, 20);
      REQUIRE(refined.start_error == Approx(output_error(plain)).epsilon(1e-6));
      REQUIRE(refined.rel_error == Approx(output_error(refined.factors)).epsilon(1e-6));
      REQUIRE(refined.rel_error < 0.9 * refined.start_error);
      REQUIRE(refined.rel_error < output_error(weighted));
      const auto more = monarch_refine<double>(read(w), weighted, gram, 20);
      REQUIRE(more.rel_error < more.start_error);
      // Padding stays zero and steps of 0 return the start.
      if (shape.cols == 46) REQUIRE(refined.factors.first.bottomRightCorner(3 * 2, 2).isZero(0));
      REQUIRE(monarch_refine<double>(read(w), plain, gram, 0).factors.first == plain.first);
      const RowMajorMatrix<float> narrow = w.cast<float>();
      options.gram = nullptr;
      const auto floats = monarch_refine<float>(read(narrow), monarch_project<float>(read(narrow), options), gram, 20);
      REQUIRE(floats.rel_error == Approx(refined.rel_error).epsilon(2e-2));
    }
}

TEST_CASE("Refinement stands singular statistics, zero blocks and exact fits", "[structured]") {
  auto w = test::normal<float>(24, 32, 5);
  w.block(0, 0, 8, 8).setZero();
  w.row(20).setZero();
  for (const index_t tokens : {0, 3}) {
    const GramMatrix gram = test::gram_of(test::correlated_inputs(tokens, 32, 8));
    auto options = options_of(4, 3, 2);
    options.gram = &gram;
    const auto refined = monarch_refine<float>(read(w), monarch_project<float>(read(w), options), gram, 5);
    REQUIRE(refined.factors.first.allFinite());
    REQUIRE(refined.factors.second.allFinite());
    REQUIRE(refined.rel_error <= refined.start_error);
  }
  const GramMatrix gram = test::gram_of(test::correlated_inputs(90, 32, 8));
  const auto exact = monarch_refine<float>(read(w), monarch_project<float>(read(w), options_of(4, 3, 8)), gram, 5);
  REQUIRE(exact.rel_error < 1e-5);
  const RowMajorMatrix<float> zero = RowMajorMatrix<float>::Zero(24, 32);
  const auto none = monarch_refine<float>(read(zero), monarch_project<float>(read(zero), options_of(4, 3, 2)), gram, 5);
  REQUIRE(none.factors.dense().isZero(0));
}

TEST_CASE("Monarch fits refuse what they cannot fit and say why", "[structured]") {
  auto w = test::normal<float>(12, 8, 1);
  REQUIRE_THROWS_AS(monarch_project<float>(read(w), options_of(0, 2, 1)), ValueError);
  REQUIRE_THROWS_AS(monarch_project<float>(read(w), options_of(2, -1, 1)), ValueError);
  REQUIRE_THROWS_AS(monarch_project<float>(read(w), options_of(9, 2, 1)), ShapeError);
  REQUIRE_THROWS_AS(monarch_project<float>(read(w), options_of(2, 13, 1)), ShapeError);
  REQUIRE_THROWS_AS(monarch_project<float>(read(w), options_of(2, 2, 0)), ValueError);
  REQUIRE_THROWS_AS(monarch_project<float>(read(w), options_of(2, 2, 5)), ShapeError);
  REQUIRE_THROWS_AS(monarch_project_square<float>(read(w)), ShapeError);
  const auto square = test::normal<float>(12, 12, 1);
  REQUIRE_THROWS_AS(monarch_project_square<float>(read(square), 5), ShapeError);
  const GramMatrix gram(9);
  auto options = options_of(2, 2, 1);
  options.gram = &gram;
  REQUIRE_THROWS_AS(monarch_project<float>(read(w), options), ShapeError);
  const auto f = monarch_project<float>(read(w), options_of(2, 2, 1));
  REQUIRE_THROWS_AS(monarch_refine<float>(read(w), f, gram, 1), ShapeError);
  REQUIRE_THROWS_AS(monarch_refine<float>(read(square), f, GramMatrix(12), 1), ShapeError);
  FlyMonarch<float> fly{RowMajorMatrix<float>(7, 4), RowMajorMatrix<float>(12, 2)};
  REQUIRE_THROWS_AS(from_fly_layout(fly, {12, 8}, 2, 2), ShapeError);
  std::stop_source source;
  source.request_stop();
  options = options_of(2, 2, 1);
  options.svd.execution.stop = source.get_token();
  REQUIRE_THROWS_AS(monarch_project<float>(read(w), options), CancelledError);
  double told = 0;
  options = options_of(2, 2, 1);
  options.svd.execution.progress = [&](double fraction) { told = fraction; };
  monarch_project<float>(read(w), options);
  REQUIRE(told == 1.0);
  w(1, 7) = INFINITY;
  REQUIRE_THROWS_AS(monarch_project<float>(read(w), options), ValueError);
  for (const MatrixShape shape : {MatrixShape{0, 5}, {5, 0}, {0, 0}}) {
    const RowMajorMatrix<float> empty(shape.rows, shape.cols);
    const auto none = monarch_project<float>(read(empty), options_of(2, 2, 1));
    REQUIRE(none.shape() == shape);
    REQUIRE(none.rank == 0);
    REQUIRE(none.dense().size() == 0);
  }
}

TEST_CASE("Monarch projections do not depend on the threads", "[structured]") {
  const auto w = test::normal<float>(96, 64, 1);
  const GramMatrix gram = test::gram_of(test::correlated_inputs(90, 64, 8));
  auto options = options_of(4, 3, 5);
  options.gram = &gram;
  options.svd.execution.threads = 1;
  const auto one = monarch_project<float>(read(w), options);
  Execution two;
  two.threads = 2;
  options.svd.execution = two;
  const auto f = monarch_project<float>(read(w), options);
  REQUIRE(one.first == f.first);
  REQUIRE(one.second == f.second);
  Execution single;
  single.threads = 1;
  REQUIRE(monarch_refine<float>(read(w), f, gram, 3, two).factors.first ==
          monarch_refine<float>(read(w), f, gram, 3, single).factors.first);
}
