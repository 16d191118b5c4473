// SPDX-License-Identifier: Apache-2.0

#include "blockpack/structured/low_rank_fit.hpp"

#include <Eigen/Cholesky>

#include <stop_token>

#include "structured/fit_cases.hpp"
#include "support/budget.hpp"

namespace {

using namespace blockpack;
using test::read;
using test::relative_error;

/// rows x cols with singular values decay^0, decay^1, …
template <class T>
RowMajorMatrix<T> falling_spectrum(index_t rows, index_t cols, double power, std::uint64_t seed) {
  RowMajorMatrix<double> u = test::normal<double>(rows, std::min(rows, cols), seed);
  RowMajorMatrix<double> v = test::normal<double>(cols, std::min(rows, cols), seed + 1);
  fit_detail::orthonormalize(u, {});
  fit_detail::orthonormalize(v, {});
  for (index_t k = 0; k < u.cols(); ++k) u.col(k) *= std::pow(static_cast<double>(k + 1), -power);
  return (u * v.transpose()).cast<T>();
}

double tail(const std::vector<double>& sigma, index_t rank) { return fit_detail::tail_norm(sigma, rank); }

}  // namespace

TEST_CASE("The error of a truncated SVD is the tail of the singular values", "[structured]") {
  for (const MatrixShape shape : {MatrixShape{20, 20}, {31, 17}, {5, 40}}) {
    const auto w = test::normal<double>(shape.rows, shape.cols, 1);
    for (const index_t rank : {index_t{1}, index_t{3}, std::min(shape.rows, shape.cols)}) {
      CAPTURE(shape.rows, shape.cols, rank);
      const Svd<double> svd = truncated_svd<double>(read(w), rank);
      const LowRankFactors<double> f = low_rank_fit<double>(read(w), rank);
      REQUIRE(f.shape() == shape);
      REQUIRE(f.rank() == rank);
      REQUIRE(f.parameters() == rank * (shape.rows + shape.cols));
      REQUIRE((w - f.dense()).norm() == Approx(tail(svd.sigma, rank)).margin(1e-10));
      // The square-root split: both factors have the same Gram diagonal.
      for (index_t k = 0; k < rank; ++k) REQUIRE(f.left.col(k).norm() == Approx(f.right.row(k).norm()));
      // Idempotent.
      const RowMajorMatrix<double> dense = f.dense();
      REQUIRE(relative_error(dense, low_rank_fit<double>(read(dense), rank).dense()) < 1e-12);
    }
  }
}

TEST_CASE("Rank rules keep the share of the parameters that they are asked for", "[structured]") {
  REQUIRE(low_rank_for_ratio({4096, 4096}, 0.5) == 1024);
  REQUIRE(low_rank_for_ratio({4096, 11008}, 0.5) == 1492);
  REQUIRE(break_even_rank({4096, 4096}) == 2048);
  REQUIRE(monarch_rank_for_ratio({4096, 4096}, 16, 16, 0.5) == 64);
  REQUIRE(blast_rank_for_ratio({128, 128}, 4, 0.5) == 30);
  REQUIRE(low_rank_for_ratio({3, 2}, 0.1) == 0);
  REQUIRE(low_rank_for_ratio({0, 0}, 0.5) == 0);
  REQUIRE_THROWS_AS(low_rank_for_ratio({4, 4}, 1.5), ValueError);
  REQUIRE_THROWS_AS(low_rank_for_ratio({4, 4}, NAN), ValueError);
  REQUIRE_THROWS_AS(blast_rank_for_ratio({4, 4}, 0, 0.5), ValueError);
}

TEST_CASE("Whitened factors have the least output error of their rank", "[structured]") {
  const auto x = test::correlated_inputs(400, 48, 3);
  const GramMatrix gram = test::gram_of(x);
  const auto w = test::normal<double>(40, 48, 5);
  const RowMajorMatrix<double> xt = x.cast<double>().transpose();
  LowRankOptions options;
  options.scale = ScaleMode::cholesky;
  options.gram = &gram;
  const Whitening whitening(gram);
  const auto scaled = whitening.multiply<double>(read(w));
  const std::vector<double> sigma = truncated_svd<double>(read(scaled), 0).sigma;
  ColumnStats columns(48);
  columns.add(view(x));
  for (const index_t rank : {1, 7, 20, 40}) {
    CAPTURE(rank);
    const LowRankFactors<double> f = low_rank_fit<double>(read(w), rank, options);
    const double error = ((w - f.dense()) * xt).norm();
    REQUIRE(error == Approx(tail(sigma, rank)).epsilon(1e-8).margin(1e-8 * (w * xt).norm()));
    REQUIRE(relative_output_error<double>(read(w), f.dense(), &gram) ==
            Approx(error / (w * xt).norm()).epsilon(1e-6).margin(1e-8));
    if (rank == 40 || (test::small_budget() && rank != 7)) continue;
    const LowRankFactors<double> plain = low_rank_fit<double>(read(w), rank);
    REQUIRE(error < 0.999 * ((w - plain.dense()) * xt).norm());
    LowRankOptions diagonal;
    diagonal.scale = ScaleMode::diagonal;
    diagonal.columns = &columns;
    const double between = ((w - low_rank_fit<double>(read(w), rank, diagonal).dense()) * xt).norm();
    REQUIRE(error < between);
    REQUIRE(between < ((w - plain.dense()) * xt).norm());
    // Alternating least squares from the plain factors arrives at the same error.
    const LowRankFactors<double> refined = low_rank_refine<double>(read(w), plain, &gram, 400);
    REQUIRE(((w - refined.dense()) * xt).norm() == Approx(error).epsilon(1e-2));
    REQUIRE(((w - refined.dense()) * xt).norm() >= error * (1 - 1e-9));
  }
}

TEST_CASE("Whitening takes Gram matrices of few tokens and of none", "[structured]") {
  const auto w = test::normal<float>(24, 32, 5);
  for (const index_t tokens : {0, 1, 9}) {
    CAPTURE(tokens);
    const auto x = test::correlated_inputs(tokens, 32, 8);
    const GramMatrix gram = test::gram_of(x);
    LowRankOptions options;
    options.scale = ScaleMode::cholesky;
    options.gram = &gram;
    const LowRankFactors<float> f = low_rank_fit<float>(read(w), 12, options);
    REQUIRE(f.left.allFinite());
    REQUIRE(f.right.allFinite());
    const RowMajorMatrix<float> y = w * x.transpose();
    REQUIRE(((w - f.dense()) * x.transpose()).norm() <= 2e-2f * y.norm());  // 12 ranks hold 9 directions
  }
}

TEST_CASE("Randomized and Krylov decompositions are close to the best", "[structured]") {
  for (const double power : {0.5, 1.0}) {
    const auto w = falling_spectrum<float>(test::budget<index_t>(300, 90), test::budget<index_t>(220, 70), power, 11);
    const index_t rank = test::budget<index_t>(60, 20);
    const double least = tail(truncated_svd<float>(read(w), rank).sigma, rank);
    SvdOptions options;
    double errors[2];
    for (const SvdMethod method : {SvdMethod::randomized, SvdMethod::krylov}) {
      CAPTURE(power, static_cast<int>(method));
      options.method = method;
      const Svd<float> svd = truncated_svd<float>(read(w), rank, options);
      REQUIRE(relative_error(RowMajorMatrix<float>::Identity(rank, rank).eval(), (svd.u.transpose() * svd.u).eval()) <
              1e-5);
      REQUIRE(relative_error(RowMajorMatrix<float>::Identity(rank, rank).eval(), (svd.vh * svd.vh.transpose()).eval()) <
              1e-5);
      const double error = (w - sqrt_split(svd).dense()).norm();
      errors[method == SvdMethod::krylov] = error;
      REQUIRE(error <= 1.05 * least);
      REQUIRE(error >= least * (1 - 1e-4));
      const Svd<float> again = truncated_svd<float>(read(w), rank, options);
      REQUIRE(again.u == svd.u);
      options.execution.threads = 1;
      REQUIRE(truncated_svd<float>(read(w), rank, options).u == svd.u);
      options.execution.threads = 0;
    }
    REQUIRE(errors[1] <= 1.01 * least);
  }
}

TEST_CASE("Randomized methods take matrices of lower rank, zeros and tiny ones", "[structured]") {
  for (const SvdMethod method : {SvdMethod::exact, SvdMethod::randomized, SvdMethod::krylov}) {
    CAPTURE(static_cast<int>(method));
    LowRankOptions options;
    options.svd.method = method;
    const RowMajorMatrix<float> low = test::normal<float>(50, 4, 1) * test::normal<float>(4, 30, 2);
    REQUIRE(relative_error(low, low_rank_fit<float>(read(low), 12, options).dense()) < 1e-5);
    const RowMajorMatrix<double> low_wide = test::normal<double>(50, 4, 1) * test::normal<double>(4, 30, 2);
    REQUIRE(relative_error(low_wide, low_rank_fit<double>(read(low_wide), 12, options).dense()) < 1e-12);
    const RowMajorMatrix<float> zero = RowMajorMatrix<float>::Zero(20, 30);
    const LowRankFactors<float> none = low_rank_fit<float>(read(zero), 5, options);
    REQUIRE(none.dense().isZero(0));
    const RowMajorMatrix<float> one = RowMajorMatrix<float>::Constant(1, 1, -3.0f);
    REQUIRE(low_rank_fit<float>(read(one), 1, options).dense()(0, 0) == Approx(-3.0));
    RowMajorMatrix<float> huge = test::normal<float>(9, 7, 3) * 1e30f;
    REQUIRE(relative_error((huge / 1e30f).eval(),
                           (low_rank_fit<float>(read(huge), 7, options).dense() / 1e30f).eval()) < 1e-5);
  }
}

TEST_CASE("A Cholesky factor by halves is that of Eigen, and its solves are", "[structured]") {
  for (const index_t n : {1, 31, 97, 200, test::budget(300, 130)}) {
    CAPTURE(n);
    const auto x = test::normal<float>(n + 20, n, 5);
    const RowMajorMatrix<double> a = (x.transpose() * x).cast<double>();
    fit_detail::Cholesky<float> narrow;
    fit_detail::Cholesky<double> wide;
    REQUIRE(narrow.factorize(a.cast<float>(), {}));
    REQUIRE(wide.factorize(a, {}));
    auto b = test::normal<double>(13, n, 6);
    RowMajorMatrix<float> b_narrow = b.cast<float>();
    const RowMajorMatrix<double> expected = a.llt().solve(b.transpose()).transpose();
    wide.solve_rows(view(b), {});
    narrow.solve_rows(view(b_narrow), {});
    REQUIRE(relative_error(expected, b) < 1e-9);
    REQUIRE(relative_error(expected, b_narrow.cast<double>().eval()) < 1e-1);
    RowMajorMatrix<double> indefinite = a;
    indefinite(n - 1, n - 1) = -1.0;
    REQUIRE_FALSE(wide.factorize(indefinite, {}));
    wide.factorize_damped(indefinite, 0.0, {});
    REQUIRE(wide.matrix().diagonal().allFinite());
  }
}

TEST_CASE("Least-squares updates lower the error and stand dependent factors", "[structured]") {
  const auto x = test::correlated_inputs(200, 30, 3);
  const GramMatrix gram = test::gram_of(x);
  const auto w = test::normal<float>(25, 30, 5);
  LowRankFactors<float> f{test::normal<float>(25, 6, 1), test::normal<float>(6, 30, 2)};
  double last = relative_output_error<float>(read(w), f.dense(), &gram);
  for (int i = 0; i < 3; ++i) {
    refine_left<float>(read(w), f, &gram);
    const double left = relative_output_error<float>(read(w), f.dense(), &gram);
    REQUIRE(left <= last * (1 + 1e-5));
    refine_right<float>(read(w), f);
    last = relative_output_error<float>(read(w), f.dense(), &gram);
    REQUIRE(last <= left * (1 + 1e-5));
  }
  f.right.row(1) = f.right.row(0);
  f.right.row(2).setZero();
  refine_left<float>(read(w), f, &gram);
  REQUIRE(f.left.allFinite());
  refine_left<float>(read(w), f);
  f.left.setZero();
  refine_right<float>(read(w), f);
  REQUIRE(f.right.allFinite());
}

TEST_CASE("Low-rank fits refuse what they cannot fit and say why", "[structured]") {
  auto w = test::normal<float>(6, 4, 1);
  REQUIRE_THROWS_AS(low_rank_fit<float>(read(w), 0), ValueError);
  REQUIRE_THROWS_AS(low_rank_fit<float>(read(w), 5), ShapeError);
  LowRankOptions options;
  options.scale = ScaleMode::cholesky;
  REQUIRE_THROWS_AS(low_rank_fit<float>(read(w), 2, options), ValueError);
  const GramMatrix gram(5);
  options.gram = &gram;
  REQUIRE_THROWS_AS(low_rank_fit<float>(read(w), 2, options), ShapeError);
  options.scale = ScaleMode::diagonal;
  REQUIRE_THROWS_AS(low_rank_fit<float>(read(w), 2, options), ValueError);
  const ColumnStats columns(3);
  options.columns = &columns;
  REQUIRE_THROWS_AS(low_rank_fit<float>(read(w), 2, options), ShapeError);
  SvdOptions svd;
  svd.oversampling = -1;
  REQUIRE_THROWS_AS(truncated_svd<float>(read(w), 2, svd), ValueError);
  REQUIRE_THROWS_AS(truncated_svd<float>(read(w), -1), ShapeError);
  std::stop_source source;
  source.request_stop();
  svd = {};
  svd.method = SvdMethod::krylov;
  svd.execution.stop = source.get_token();
  REQUIRE_THROWS_AS(truncated_svd<float>(read(w), 2, svd), CancelledError);
  w(3, 2) = NAN;
  try {
    low_rank_fit<float>(read(w), 2);
    FAIL("a NaN was taken");
  } catch (const ValueError& e) {
    REQUIRE(std::string(e.what()).find("row 3, column 2") != std::string::npos);
  }
  for (const MatrixShape shape : {MatrixShape{0, 5}, {5, 0}, {0, 0}}) {
    const RowMajorMatrix<float> empty(shape.rows, shape.cols);
    const LowRankFactors<float> f = low_rank_fit<float>(read(empty), 3);
    REQUIRE(f.shape() == shape);
    REQUIRE(f.rank() == 0);
    REQUIRE(f.dense().size() == 0);
  }
}
