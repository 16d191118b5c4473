// SPDX-License-Identifier: Apache-2.0

#include "blockpack/structured/blast_fit.hpp"

#include <algorithm>
#include <stop_token>

#include "structured/fit_cases.hpp"
#include "support/budget.hpp"

namespace {

using namespace blockpack;
using test::read;
using test::relative_error;

BlastOptions options_of(index_t blocks, index_t rank, BlastStart start, int iterations) {
  BlastOptions options;
  options.blocks = blocks;
  options.rank = rank;
  options.start = start;
  options.iterations = iterations;
  return options;
}

/// Low rank plus contiguous blocks of low rank plus noise.
RowMajorMatrix<double> mixed_matrix(index_t rows, index_t cols) {
  RowMajorMatrix<double> w = test::normal<double>(rows, 4, 1) * test::normal<double>(4, cols, 2);
  const index_t p = rows / 4, q = cols / 4;
  for (index_t i = 0; i < 4; ++i)
    w.block(i * p, i * q, p, q) += test::normal<double>(p, 3, static_cast<std::uint64_t>(10 + i)) *
                                   test::normal<double>(3, q, static_cast<std::uint64_t>(20 + i));
  return w + 0.3 * test::normal<double>(rows, cols, 3);
}

}  // namespace

TEST_CASE("BLAST with couplings of one is low rank", "[structured]") {
  const auto w = test::normal<double>(24, 36, 3);
  const auto options = options_of(3, 5, BlastStart::svd, 0);
  const BlastFit<double> fit = blast_factorize<double>(read(w), options);
  const LowRankFactors<double> svd = low_rank_fit<double>(read(w), 5);
  REQUIRE(relative_error(svd.dense(), fit.factors.dense()) < 1e-12);
  REQUIRE(fit.factors.coupling.isConstant(fit.factors.coupling(0, 0)));
  REQUIRE(fit.factors.parameters() == 5 * (24 + 36 + 9));
  REQUIRE(fit.rel_error == Approx(relative_error(w, svd.dense())));
}

TEST_CASE("The Monarch start is the contiguous projection", "[structured]") {
  const auto w = test::normal<double>(24, 36, 3);
  for (const index_t rank : {6, 7, 8}) {
    CAPTURE(rank);
    const BlastFit<double> fit = blast_factorize<double>(read(w), options_of(3, rank, BlastStart::monarch, 0));
    MonarchOptions monarch;
    monarch.in_blocks = monarch.out_blocks = 3;
    monarch.rank = 2;
    const double floor_error = relative_error(w, monarch_project<double>(read(w), monarch).dense());
    if (rank == 6)
      REQUIRE(fit.rel_error == Approx(floor_error));
    else
      REQUIRE(fit.rel_error < floor_error);
  }
}

TEST_CASE("No start ends worse than it begins", "[structured]") {
  const auto w = mixed_matrix(48, 64);
  const double svd = relative_error(w, low_rank_fit<double>(read(w), 12).dense());
  MonarchOptions monarch;
  monarch.in_blocks = monarch.out_blocks = 4;
  monarch.rank = 3;
  const double contiguous = relative_error(w, monarch_project<double>(read(w), monarch).dense());
  const int iterations = test::budget(120, 30);
  double single = 1;
  for (const auto start : {BlastStart::svd, BlastStart::monarch, BlastStart::noise}) {
    CAPTURE(static_cast<int>(start));
    const auto fit = blast_factorize<double>(read(w), options_of(4, 12, start, iterations));
    REQUIRE(fit.start == start);
    REQUIRE(fit.rel_error == Approx(relative_error(w, fit.factors.dense())));
    REQUIRE(fit.error_trace.size() == static_cast<std::size_t>(iterations));
    if (start != BlastStart::noise) REQUIRE(fit.rel_error <= (start == BlastStart::svd ? svd : contiguous));
    REQUIRE(fit.rel_error < std::min(svd, contiguous));
    single = std::min(single, fit.rel_error);
  }
  const auto best = blast_factorize<double>(read(w), options_of(4, 12, BlastStart::best, iterations));
  REQUIRE(best.rel_error < 1.1 * single);
  REQUIRE(best.rel_error <= svd);
  REQUIRE(best.rel_error <= contiguous);
  REQUIRE(best.error_trace.size() == static_cast<std::size_t>(iterations));
  // Going on from factors does not lose them.
  auto again = options_of(4, 12, BlastStart::given, 5);
  const auto more = blast_factorize<double>(read(w), again, &best.factors);
  REQUIRE(more.rel_error <= best.rel_error * (1 + 1e-9));
  again.start = BlastStart::best;
  const auto four = blast_factorize<double>(read(w), again, &best.factors);
  REQUIRE(four.start == BlastStart::given);
  REQUIRE(four.rel_error <= best.rel_error * (1 + 1e-9));
}

TEST_CASE("The matched preconditioner is better than the swapped one", "[structured]") {
  const RowMajorMatrix<double> w = test::normal<double>(64, 8, 1) * test::normal<double>(8, 64, 2);
  auto options = options_of(4, 8, BlastStart::noise, 100);
  const double matched = blast_factorize<double>(read(w), options).rel_error;
  options.preconditioner = BlastPreconditioner::swapped;
  const double swapped = blast_factorize<double>(read(w), options).rel_error;
  CAPTURE(matched, swapped);
  REQUIRE(matched < 1e-9);
  REQUIRE(matched < 0.1 * swapped);
  REQUIRE(swapped < 1e-4);
}

TEST_CASE("Cheaper coupling steps come close to the exact ones", "[structured]") {
  const auto w = mixed_matrix(48, 64);
  auto options = options_of(4, 12, BlastStart::svd, test::budget(100, 40));
  const double exact = blast_factorize<double>(read(w), options).rel_error;
  options.coupling_solver = CouplingSolver::conjugate_gradients;
  const double gradients = blast_factorize<double>(read(w), options).rel_error;
  options.coupling_solver = CouplingSolver::cholesky;
  options.coupling_every = 3;
  const double fewer = blast_factorize<double>(read(w), options).rel_error;
  options.coupling_every = 1;
  options.fix_coupling = true;
  const double fixed = blast_factorize<double>(read(w), options).rel_error;
  CAPTURE(exact, gradients, fewer, fixed);
  REQUIRE(gradients < 1.1 * exact);
  REQUIRE(fewer < 1.15 * exact);
  REQUIRE(exact < 0.9 * fixed);
}

TEST_CASE("Fits of padded, constant, zero and rank-deficient matrices", "[structured]") {
  const auto w = mixed_matrix(48, 64);
  for (const MatrixShape shape : {MatrixShape{45, 61}, {41, 64}, {48, 7}, {5, 5}}) {
    CAPTURE(shape.rows, shape.cols);
    const RowMajorMatrix<double> part = w.topLeftCorner(shape.rows, shape.cols);
    const GramMatrix gram = test::gram_of(test::correlated_inputs(90, shape.cols, 8));
    for (const GramMatrix* g : {static_cast<const GramMatrix*>(nullptr), &gram}) {
      auto options = options_of(4, 5, BlastStart::best, 30);
      options.gram = g;
      const auto fit = blast_factorize<double>(read(part), options);
      REQUIRE(fit.factors.shape() == shape);
      REQUIRE(fit.rel_error == Approx(relative_output_error<double>(read(part), fit.factors.dense(), g)).margin(1e-9));
      REQUIRE(fit.rel_error < 1);
    }
  }
  const RowMajorMatrix<float> zero = RowMajorMatrix<float>::Zero(8, 12);
  const auto none = blast_factorize<float>(read(zero), options_of(4, 3, BlastStart::best, 20));
  REQUIRE(none.factors.dense().isZero(0));
  REQUIRE(none.factors.left.rows() == 8);
  const RowMajorMatrix<float> same = RowMajorMatrix<float>::Constant(8, 12, 2.5f);
  REQUIRE(blast_factorize<float>(read(same), options_of(4, 3, BlastStart::best, 30)).rel_error < 1e-3);
  const RowMajorMatrix<float> low = test::normal<float>(32, 2, 1) * test::normal<float>(2, 32, 2);
  for (const auto start : {BlastStart::svd, BlastStart::monarch, BlastStart::noise}) {
    CAPTURE(static_cast<int>(start));
    const auto fit = blast_factorize<float>(read(low), options_of(4, 9, start, 60));
    REQUIRE(fit.factors.dense().allFinite());
    REQUIRE(fit.rel_error < 0.05);
  }
  RowMajorMatrix<float> holes = test::normal<float>(32, 32, 1);
  holes.block(0, 0, 8, 32).setZero();
  holes.block(0, 8, 32, 8).setZero();
  const GramMatrix few = test::gram_of(test::correlated_inputs(5, 32, 8));
  auto options = options_of(4, 9, BlastStart::best, 30);
  REQUIRE(blast_factorize<float>(read(holes), options).factors.dense().allFinite());
  options.gram = &few;
  REQUIRE(blast_factorize<float>(read(holes), options).rel_error < 0.1);
}

TEST_CASE("BLAST of any matrix at full rank is exact", "[structured]") {
  const auto w = test::normal<double>(12, 12, 1);
  const auto fit = blast_factorize<double>(read(w), options_of(3, 12, BlastStart::monarch, 3));
  REQUIRE(fit.rel_error < 1e-12);
}

TEST_CASE("Activation-aware BLAST has less output error than the whitened SVD of its size", "[structured]") {
  const index_t n = 64;
  const auto x = test::correlated_inputs(500, n, 3);
  const GramMatrix gram = test::gram_of(x);
  struct Named {
    const char* name;
    RowMajorMatrix<double> w;
  };
  for (const Named& c : {Named{"normal", test::normal<double>(n, n, 5)}, Named{"mixed", mixed_matrix(n, n)}}) {
    CAPTURE(c.name);
    const index_t rank = blast_rank_for_ratio({n, n}, 4, 0.5), svd_rank = low_rank_for_ratio({n, n}, 0.5);
    LowRankOptions whitened;
    whitened.scale = ScaleMode::cholesky;
    whitened.gram = &gram;
    const double svd =
        relative_output_error<double>(read(c.w), low_rank_fit<double>(read(c.w), svd_rank, whitened).dense(), &gram);
    auto options = options_of(4, rank, BlastStart::best, test::budget(150, 60));
    const double plain =
        relative_output_error<double>(read(c.w), blast_factorize<double>(read(c.w), options).factors.dense(), &gram);
    options.gram = &gram;
    const auto fit = blast_factorize<double>(read(c.w), options);
    CAPTURE(svd, plain, fit.rel_error, static_cast<int>(fit.start));
    INFO("figures");
    REQUIRE(fit.rel_error == Approx(relative_output_error<double>(read(c.w), fit.factors.dense(), &gram)));
    REQUIRE(fit.rel_error < 0.8 * svd);
    REQUIRE(fit.rel_error < plain);
    REQUIRE(fit.start == BlastStart::plain);
    // The loss never rises, whatever the step.
    options.start = BlastStart::svd;
    options.iterations = 20;
    for (const double rate : {0.5, 1.0}) {
      options.gram_learning_rate = rate;
      const auto trace = blast_factorize<double>(read(c.w), options).error_trace;
      for (std::size_t t = 1; t < trace.size(); ++t) REQUIRE(trace[t] <= trace[t - 1] * (1 + 1e-9));
    }
    // A refinement of the plain fit helps, and never hurts.
    options = options_of(4, rank, BlastStart::best, 40);
    const auto start = blast_factorize<double>(read(c.w), options);
    const auto refined = blast_refine<double>(read(c.w), start.factors, gram, 20);
    REQUIRE(refined.start_error == Approx(relative_output_error<double>(read(c.w), start.factors.dense(), &gram)));
    REQUIRE(refined.rel_error < 0.95 * refined.start_error);
    REQUIRE(refined.rel_error == Approx(relative_output_error<double>(read(c.w), refined.factors.dense(), &gram)));
    REQUIRE(blast_refine<double>(read(c.w), refined.factors, gram, 3).rel_error <= refined.rel_error * (1 + 1e-9));
  }
}

TEST_CASE("BLAST fits do not depend on the threads and report progress", "[structured]") {
  // Large enough to wake other threads.
  const RowMajorMatrix<float> w = mixed_matrix(160, 192).cast<float>();
  const GramMatrix gram = test::gram_of(test::correlated_inputs(90, 192, 8));
  for (const GramMatrix* g : {static_cast<const GramMatrix*>(nullptr), &gram}) {
    auto options = options_of(4, test::budget(48, 12), BlastStart::best, test::budget(20, 3));
    options.trial_iterations = test::budget(0, 2);
    options.gram = g;
    options.execution.threads = 1;
    const auto one = blast_factorize<float>(read(w), options);
    options.execution.threads = 2;
    std::vector<double> told;
    options.execution.progress = [&](double fraction) { told.push_back(fraction); };
    const auto two = blast_factorize<float>(read(w), options);
    REQUIRE(one.factors.left == two.factors.left);
    REQUIRE(one.factors.right == two.factors.right);
    REQUIRE(one.factors.coupling == two.factors.coupling);
    REQUIRE(std::is_sorted(told.begin(), told.end()));
    REQUIRE(told.back() == Approx(1.0));
    std::stop_source source;
    options.execution.progress = [&](double) { source.request_stop(); };
    options.execution.stop = source.get_token();
    REQUIRE_THROWS_AS(blast_factorize<float>(read(w), options), CancelledError);
  }
}

TEST_CASE("Balanced factors are the same matrix", "[structured]") {
  const auto w = mixed_matrix(45, 61);
  auto f = blast_factorize<double>(read(w), options_of(4, 12, BlastStart::noise, 20)).factors;
  f.left.col(3).segment(12, 12).setZero();
  auto zeroed = f;
  balance(zeroed);
  REQUIRE(relative_error(f.dense(), zeroed.dense()) < 1e-12);
  REQUIRE(zeroed.left.col(3).segment(12, 12).isZero(0));
  REQUIRE(zeroed.left.col(2).segment(12, 12).squaredNorm() == Approx(12.0));
  REQUIRE(zeroed.right.row(5).squaredNorm() == Approx(16.0));
}

TEST_CASE("BLAST fits refuse what they cannot fit and say why", "[structured]") {
  auto w = test::normal<float>(12, 8, 1);
  const auto good = options_of(4, 3, BlastStart::svd, 2);
  const auto refuses = [&](auto change) {
    auto options = good;
    change(options);
    try {
      blast_factorize<float>(read(w), options);
    } catch (const ShapeError&) {
      return 's';
    } catch (const ValueError&) {
      return 'v';
    }
    return '-';
  };
  REQUIRE(refuses([](BlastOptions&) {}) == '-');
  REQUIRE(refuses([](BlastOptions& o) { o.blocks = 0; }) == 'v');
  REQUIRE(refuses([](BlastOptions& o) { o.blocks = 9; }) == 's');
  REQUIRE(refuses([](BlastOptions& o) { o.rank = 0; }) == 'v');
  REQUIRE(refuses([](BlastOptions& o) { o.rank = 9; }) == 's');
  REQUIRE(refuses([](BlastOptions& o) { o.iterations = -1; }) == 'v');
  REQUIRE(refuses([](BlastOptions& o) { o.learning_rate = 0; }) == 'v');
  REQUIRE(refuses([](BlastOptions& o) { o.learning_rate = NAN; }) == 'v');
  REQUIRE(refuses([](BlastOptions& o) { o.end_factor = 2; }) == 'v');
  REQUIRE(refuses([](BlastOptions& o) { o.damping = -1; }) == 'v');
  REQUIRE(refuses([](BlastOptions& o) { o.gram_damping = -1; }) == 'v');
  REQUIRE(refuses([](BlastOptions& o) { o.gram_learning_rate = 1.5; }) == 'v');
  REQUIRE(refuses([](BlastOptions& o) { o.start = BlastStart::plain; }) == 'v');
  REQUIRE(refuses([](BlastOptions& o) { o.coupling_every = 0; }) == 'v');
  REQUIRE(refuses([](BlastOptions& o) { o.start = BlastStart::given; }) == 'v');
  const GramMatrix gram(9), fitting(8);
  REQUIRE(refuses([&](BlastOptions& o) { o.gram = &gram; }) == 's');
  REQUIRE(refuses([&](BlastOptions& o) {
            o.gram = &fitting;
            o.preconditioner = BlastPreconditioner::swapped;
          }) == 'v');
  auto start = blast_factorize<float>(read(w), good).factors;
  start.rank = 2;
  REQUIRE_THROWS_AS(blast_factorize<float>(read(w), good, &start), ShapeError);
  w(11, 0) = NAN;
  REQUIRE(refuses([](BlastOptions&) {}) == 'v');
  for (const MatrixShape shape : {MatrixShape{0, 5}, {5, 0}, {0, 0}}) {
    const RowMajorMatrix<float> empty(shape.rows, shape.cols);
    const auto none = blast_factorize<float>(read(empty), good);
    REQUIRE(none.factors.shape() == shape);
    REQUIRE(none.factors.rank == 0);
    REQUIRE(none.factors.dense().size() == 0);
  }
}
