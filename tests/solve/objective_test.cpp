// SPDX-License-Identifier: Apache-2.0
/// Objectives: derivatives, bounds and cached state; what they refuse.

#include <cmath>
#include <numeric>
#include <vector>

#include "blockpack/solve.hpp"
#include "support/catch.hpp"

using namespace blockpack;

namespace {

std::vector<double> normal(index_t n, std::uint64_t seed, double sigma = 1.0) {
  Random random(seed);
  std::vector<double> v(static_cast<std::size_t>(n));
  for (double& e : v) e = sigma * static_cast<double>(random.normal());
  return v;
}

template <class F>
void check_state(F f, const std::vector<double>& x) {
  STATIC_REQUIRE(CurvedObjective<F>);
  const index_t n = f.size();
  const auto size = static_cast<std::size_t>(n);
  f.set_x(x);
  std::vector<double> g(size), y(size);
  f.gradient(std::span<double>(g));

  // One block: gradient and value_after, against apply and against the gradient's differences.
  const std::vector<index_t> block = {n - 1, 0, n / 2};
  const std::vector<double> delta = {1e-5, -2e-5, 3e-5};
  std::vector<double> g_b(3);
  f.gradient(block, std::span<double>(g_b));
  for (std::size_t k = 0; k < 3; ++k) CHECK(g_b[k] == g[static_cast<std::size_t>(block[k])]);
  F moved = f;
  moved.apply(block, delta);
  CHECK(moved.value() == Approx(f.value_after(block, delta)).epsilon(1e-14));
  F again = f;
  again.set_x(moved.x());
  CHECK(again.value() == Approx(moved.value()).epsilon(1e-13));

  detail::SquareMatrix hessian(3), bound(3);
  f.hessian(block, hessian.view());
  f.bound(block, bound.view());
  const std::vector<double> h_delta = hessian.times(delta);
  std::vector<double> g_moved(3);
  moved.gradient(block, std::span<double>(g_moved));
  double model = f.value(), penalties = 0.0;
  for (std::size_t k = 0; k < 3; ++k) {
    CHECK(g_moved[k] - g_b[k] == Approx(h_delta[k]).epsilon(1e-3).margin(1e-9));
    const double at = x[static_cast<std::size_t>(block[k])];
    penalties += f.penalty().value(at + delta[k]) - f.penalty().value(at);
    model += delta[k] * (g_b[k] + 0.5 * h_delta[k]);
  }
  CHECK(moved.value() - f.value() ==
        Approx(model - f.value() + penalties).epsilon(1e-4).margin(1e-9 * std::fabs(f.value())));
  // H - Hessian is positive semidefinite.
  detail::SquareMatrix excess(3);
  for (index_t i = 0; i < 3; ++i)
    for (index_t j = 0; j < 3; ++j)
      excess.view()(i, j) = std::as_const(hessian).view()(i, j) - std::as_const(bound).view()(i, j);
  CHECK(detail::largest_eigenvalue(std::as_const(excess).view()) <= 1e-9);

  // The whole bound: products, row sums, diagonal.
  std::vector<index_t> all(size);
  std::iota(all.begin(), all.end(), index_t{0});
  const detail::SquareMatrix whole = detail::bound_of(f, all);
  const std::vector<double> expected = whole.times(x);
  f.bound_times(x, y);
  std::vector<double> sums(size);
  f.bound_row_sums(sums);
  for (std::size_t i = 0; i < size; ++i) {
    CHECK(y[i] == Approx(expected[i]).epsilon(1e-10).margin(1e-10));
    double sum = 0.0;
    for (const double v : whole.view().row(static_cast<index_t>(i))) sum += std::fabs(v);
    CHECK(sums[i] == Approx(sum).epsilon(1e-12));
    const index_t one = static_cast<index_t>(i);
    detail::SquareMatrix single = detail::bound_of(f, {&one, 1});
    CHECK(single.view()(0, 0) == Approx(f.lipschitz()[i]).epsilon(1e-14));
  }
}

const std::vector<double> kValues = normal(7 * 6, 1);
const MatrixView<const double> kA(kValues.data(), 7, 6);

}  // namespace

TEST_CASE("objectives keep value, gradient and bounds through steps of a block", "[solve]") {
  const std::vector<double> b = normal(7, 2), signs = {1, -1, 1, 1, -1, -1, 1};
  const std::vector<index_t> labels = {0, 1, 2, 0, 1, 2, 2};
  std::vector<double> x = normal(6, 3), above = x;
  for (double& v : above) v = std::fabs(v);
  check_state(LeastSquares(kA, b), x);
  check_state(LeastSquares(kA, b, {.l1 = 0.7}), x);
  check_state(LeastSquares(kA, b, {.l1 = 0.7, .nonnegative = true}), above);
  check_state(Logistic(kA, signs), x);
  check_state(Softmax(kA, labels, 3), normal(18, 4));
  check_state(Softmax(kA, labels, 4, {.l1 = 0.1}), normal(24, 5));
  const LatticeProblem lattice = lattice_problem(3, 3, 2, 6);
  check_state(Quadratic(lattice.matrix, lattice.right), normal(7, 7));
}

TEST_CASE("objectives do not overflow far from the data", "[solve]") {
  const std::vector<double> a = {1.0, -1.0}, signs = {1, -1}, far = {5000.0};
  Logistic f(MatrixView<const double>(a.data(), 2, 1), signs);
  f.set_x(far);
  CHECK(f.value() == 0.0);
  f.set_x(std::vector<double>{-5000.0});
  CHECK(f.value() == 10000.0);
  const std::vector<index_t> labels = {0, 1};
  Softmax s(MatrixView<const double>(a.data(), 2, 1), labels, 2);
  s.set_x(std::vector<double>{-5000.0, 5000.0});
  CHECK(s.value() == 20000.0);
}

TEST_CASE("objectives name what they cannot take", "[solve]") {
  using Catch::Matchers::Contains;
  const std::vector<double> b = normal(7, 2), wrong = {1, -1, 1, 0.5, 1, 1, 1};
  CHECK_THROWS_WITH(LeastSquares(kA, std::span(b).first(6)), Contains("LeastSquares: b has 6 elements, 7 needed"));
  CHECK_THROWS_AS(LeastSquares(kA, std::span(b).first(6)), ShapeError);
  CHECK_THROWS_WITH(LeastSquares(kA, b, {.l1 = -1.0}), Contains("penalty.l1"));
  CHECK_THROWS_WITH(Logistic(kA, wrong), Contains("Logistic: b is 0.5") && Contains("at 3"));
  std::vector<double> nan = kValues;
  nan[8] = std::nan("");
  CHECK_THROWS_WITH(LeastSquares(MatrixView<const double>(nan.data(), 7, 6), b), Contains("row 1, column 2"));
  std::vector<double> infinite = b;
  infinite[4] = HUGE_VAL;
  CHECK_THROWS_WITH(LeastSquares(kA, infinite), Contains("b is not finite at 4"));
  const std::vector<index_t> labels = {0, 1, 2, 3, 1, 2, 2};
  CHECK_THROWS_WITH(Softmax(kA, labels, 3), Contains("labels has 3 at 3"));
  CHECK_THROWS_WITH(Softmax(kA, labels, 0), Contains("classes = 0"));
  CHECK_THROWS_WITH(Softmax(kA, std::span(labels).first(2), 4), Contains("labels has 2 elements"));
  LeastSquares f(kA, b, {.nonnegative = true});
  CHECK_THROWS_WITH(f.set_x(std::vector<double>{1, 1, 1, -1, 1, 1}), Contains("x has a negative element"));
  CHECK_THROWS_WITH(f.set_x(std::vector<double>{1}), Contains("x has 1 elements, 6 needed"));

  const std::vector<double> skew = {2, 1, 0, 2}, indefinite = {1, 0, 0, 0}, right = {1, 1};
  CHECK_THROWS_WITH(SparseSymmetric(kA), Contains("7x6, a square needed"));
  CHECK_THROWS_WITH(SparseSymmetric(MatrixView<const double>(skew.data(), 2, 2)),
                    Contains("not symmetric at row 0, column 1"));
  CHECK_THROWS_WITH(SparseSymmetric({{{0, 1.0}, {1, 2.0}}, {{1, 1.0}}}), Contains("not symmetric at row 0, column 1"));
  CHECK_THROWS_WITH(SparseSymmetric({{{0, 1.0}, {2, 2.0}}, {{1, 1.0}}}), Contains("column out of range"));
  CHECK_THROWS_WITH(Quadratic(SparseSymmetric(MatrixView<const double>(indefinite.data(), 2, 2)), right),
                    Contains("diagonal of a is not positive in row 1"));
}

TEST_CASE("problems come from their seed", "[solve]") {
  const DesignProblem p = design_problem(200, 50, 1), same = design_problem(200, 50, 1),
                      other = design_problem(200, 50, 2);
  CHECK(p.values == same.values);
  CHECK(p.targets == same.targets);
  CHECK(p.values != other.values);
  const auto kept =
      static_cast<double>(p.values.size()) - static_cast<double>(std::count(p.values.begin(), p.values.end(), 0.0));
  CHECK(kept / 10000.0 == Approx(10.0 * std::log(200.0) / 200.0).margin(0.02));
  CHECK(p.signs.size() == 200);
  const DesignProblem c = softmax_problem(40, 10, 5, 1);
  CHECK(c.labels.size() == 40);
  CHECK_NOTHROW(Softmax(c.a(), c.labels, c.classes));
  const LatticeProblem d = lattice_problem(5, 4, 3, 1);
  CHECK(d.unknown.size() == 17);
  CHECK(d.matrix.size() == 17);
  CHECK_THROWS_AS(design_problem(0, 3, 1), ValueError);
  CHECK_THROWS_AS(softmax_problem(3, 3, 0, 1), ValueError);
  CHECK_THROWS_AS(lattice_problem(2, 2, 5, 1), ValueError);
}
