// SPDX-License-Identifier: Apache-2.0
/// Quadratic binary optimization with a fixed number of ones: the golden cases, and what every solver keeps.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stop_token>
#include <string>
#include <vector>

#include "blockpack/solve/qcbo.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

using namespace blockpack;

namespace {

/// For many small steps.
const Execution kSerial = [] {
  Execution one;
  one.threads = 1;
  return one;
}();

std::vector<double> values_of(const nlohmann::json& c, const char* side, const char* name) {
  return test::read_npy<double>(test::golden_folder("sparsity") + c.at(side).at(name).at("file").get<std::string>())
      .values;
}

/// A symmetric matrix.
struct Problem {
  index_t n;
  std::vector<double> values;

  Problem(index_t size, std::uint64_t seed, double scale = 1.0)
      : n(size), values(static_cast<std::size_t>(size * size)) {
    Random random(seed);
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j <= i; ++j)
        values[static_cast<std::size_t>(i * n + j)] = values[static_cast<std::size_t>(j * n + i)] =
            scale * static_cast<double>(random.normal());
  }
  MatrixView<const double> q() const { return {values.data(), n, n}; }
  std::vector<std::uint8_t> first(index_t k) const {
    std::vector<std::uint8_t> x(static_cast<std::size_t>(n));
    std::fill_n(x.begin(), k, std::uint8_t{1});
    return x;
  }
  double value(const std::vector<std::uint8_t>& x) const {
    double sum = 0.0;
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < n; ++j)
        sum += x[static_cast<std::size_t>(i)] * q()(i, j) * x[static_cast<std::size_t>(j)];
    return sum;
  }
};

index_t ones(const std::vector<std::uint8_t>& x) { return std::accumulate(x.begin(), x.end(), index_t{0}); }

}  // namespace

TEST_CASE("solvers and exports reproduce the golden problems", "[solve][golden]") {
  std::size_t found = 0;
  for (const nlohmann::json& c : test::golden_cases("sparsity")) {
    const auto name = c.at("name").get<std::string>();
    if (name.rfind("qcbo_", 0) != 0) continue;
    CAPTURE(name);
    ++found;
    const index_t k = c.at("params").at("k");
    const std::vector<double> q = values_of(c, "inputs", "Q"), x = values_of(c, "outputs", "x_opt");
    const auto n = static_cast<index_t>(x.size());
    const MatrixView<const double> view(q.data(), n, n);
    const double optimum = values_of(c, "outputs", "E_opt")[0];
    const QcboSolution exact = qcbo_exhaustive(view, k);
    CHECK(exact.x == std::vector<std::uint8_t>(x.begin(), x.end()));
    CHECK(exact.value == Approx(optimum).epsilon(1e-9));

    std::vector<std::uint8_t> start(x.size());
    std::fill_n(start.begin(), k, std::uint8_t{1});
    CHECK(qcbo_anneal(view, start, {}, kSerial).value <= optimum + 0.01 * std::fabs(optimum));
    CHECK(qcbo_descend(view, exact.x).x == exact.x);

    const Qubo qubo = qcbo_to_qubo(view, k, c.at("params").at("penalty"));
    const std::vector<double> matrix = values_of(c, "outputs", "qubo");
    const Ising ising = qubo_to_ising(qubo);
    const std::vector<double> coupling = values_of(c, "outputs", "ising_J"), field = values_of(c, "outputs", "ising_h");
    for (std::size_t i = 0; i < matrix.size(); ++i) {
      CHECK(std::fabs(qubo.matrix[i] - matrix[i]) <= 1e-12);
      CHECK(std::fabs(ising.coupling[i] - coupling[i]) <= 1e-12);
    }
    for (std::size_t i = 0; i < field.size(); ++i) CHECK(std::fabs(ising.field[i] - field[i]) <= 1e-12);
    CHECK(qubo.constant == Approx(values_of(c, "outputs", "qubo_const")[0]));
    CHECK(ising.constant == Approx(values_of(c, "outputs", "ising_const")[0]));
    double energy = qubo.constant;
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < n; ++j)
        energy += x[std::size_t(i)] * qubo.matrix[std::size_t(i * n + j)] * x[std::size_t(j)];
    CHECK(energy == Approx(optimum));
  }
  REQUIRE(test::golden_complete(found, 3));
}

TEST_CASE("QCBO solvers keep the number of ones, never end above their start, and find small optima", "[solve][qcbo]") {
  for (const index_t n : {1, 2, 5, 12, 40})
    for (const index_t k : {index_t{0}, n / 3, n / 2, n}) {
      CAPTURE(n, k);
      const Problem problem(n, static_cast<std::uint64_t>(n));
      const std::vector<std::uint8_t> start = problem.first(k);
      const QcboSolution descended = qcbo_descend(problem.q(), start, kSerial);
      const QcboSolution annealed = qcbo_anneal(problem.q(), start, {.restarts = 3}, kSerial);
      for (const QcboSolution* s : {&descended, &annealed}) {
        CHECK(ones(s->x) == k);
        CHECK(s->value == Approx(problem.value(s->x)).margin(1e-12));
        CHECK(s->value <= problem.value(start) + 1e-12);
      }
      // No exchange is left that would lower it.
      for (std::size_t i = 0; i < start.size(); ++i)
        for (std::size_t j = 0; j < start.size(); ++j)
          if (annealed.x[i] == 1 && annealed.x[j] == 0) {
            std::vector<std::uint8_t> other = annealed.x;
            std::swap(other[i], other[j]);
            CHECK(problem.value(other) >= annealed.value - 1e-9);
          }
      if (n <= 12) CHECK(annealed.value == Approx(qcbo_exhaustive(problem.q(), k).value).margin(1e-12));
    }
}

TEST_CASE("QCBO exchanges inside groups keep the ones of each", "[solve][qcbo]") {
  const Problem problem(20, 9);
  std::vector<index_t> groups;
  for (index_t i = 0; i < 20; ++i) groups.push_back(i % 6);  // of 4, 4, 3, 3, 3, 3
  std::vector<std::uint8_t> start(20);
  for (const std::size_t i : {0, 6, 1, 2, 8, 14, 9}) start[i] = 1;
  std::vector<std::uint8_t> best = start;  // by all exchanges
  const QcboSolution descended = qcbo_descend(problem.q(), start, kSerial, groups);
  const QcboSolution annealed = qcbo_anneal(problem.q(), start, {.restarts = 4}, kSerial, groups);
  double optimum = problem.value(start);
  for (unsigned bits = 0; bits < 1u << 20; ++bits) {
    index_t counts[6] = {};
    for (unsigned i = 0; i < 20; ++i) counts[i % 6] += bits >> i & 1;
    if (counts[0] != 2 || counts[1] != 1 || counts[2] != 3 || counts[3] != 1 || counts[4] != 0 || counts[5] != 0)
      continue;
    for (unsigned i = 0; i < 20; ++i) best[i] = static_cast<std::uint8_t>(bits >> i & 1);
    optimum = std::min(optimum, problem.value(best));
  }
  for (const QcboSolution* s : {&descended, &annealed}) {
    CHECK(s->value <= problem.value(start));
    index_t counts[6] = {};
    for (std::size_t i = 0; i < 20; ++i) counts[i % 6] += s->x[i];
    CHECK(std::vector<index_t>(counts, counts + 6) == std::vector<index_t>{2, 1, 3, 1, 0, 0});
  }
  CHECK(annealed.value == Approx(optimum));
  groups.pop_back();
  CHECK_THROWS_AS(qcbo_descend(problem.q(), start, kSerial, groups), ShapeError);
}

TEST_CASE("QCBO annealing depends on its seed, and on neither threads nor the unit of Q", "[solve][qcbo]") {
  const Problem problem(60, 2), small(60, 2, 0x1p-40);
  const std::vector<std::uint8_t> start = problem.first(25);
  const QcboAnnealing options{.last = 1.0, .restarts = 4, .seed = 5};
  const QcboSolution one = qcbo_anneal(problem.q(), start, options, kSerial);
  Execution threads;
  threads.threads = 3;
  CHECK(qcbo_anneal(problem.q(), start, options, threads).x == one.x);
  CHECK(qcbo_anneal(small.q(), start, options, kSerial).x == one.x);
}

TEST_CASE("QCBO refuses what is no problem", "[solve][qcbo]") {
  Problem problem(6, 3);
  const std::vector<std::uint8_t> start = problem.first(3);
  CHECK_THROWS_AS(qcbo_exhaustive(problem.q(), 7), ValueError);
  CHECK_THROWS_AS(qcbo_exhaustive(problem.q(), -1), ValueError);
  CHECK_THROWS_AS(qcbo_exhaustive(Problem(25, 1).q(), 3), ValueError);
  CHECK_THROWS_AS(qcbo_exhaustive(problem.q().rows_from(0, 5), 3), ShapeError);
  CHECK_THROWS_AS(qcbo_to_qubo(problem.q(), 9, 1.0), ValueError);
  CHECK_THROWS_AS(qcbo_descend(problem.q(), std::vector<std::uint8_t>(5)), ShapeError);
  CHECK_THROWS_AS(qcbo_descend(problem.q(), std::vector<std::uint8_t>(6, 2)), ValueError);
  CHECK_THROWS_AS(qcbo_anneal(problem.q(), start, {.restarts = 0}), ValueError);
  CHECK_THROWS_AS(qcbo_anneal(problem.q(), start, {.growth = 1.0}), ValueError);
  std::stop_source source;
  source.request_stop();
  Execution stopped = kSerial;
  stopped.stop = source.get_token();
  CHECK_THROWS_AS(qcbo_anneal(problem.q(), start, {}, stopped), CancelledError);
  problem.values[1] += 1.0;
  CHECK_THROWS_WITH(qcbo_descend(problem.q(), start), Catch::Contains("symmetric"));
  problem.values[1] = problem.values[6] = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(qcbo_descend(problem.q(), start), ValueError);
  CHECK(qcbo_exhaustive(MatrixView<const double>(), 0).value == 0.0);
}
