// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/execution.hpp"

#include <atomic>
#include <mutex>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include "support/catch.hpp"

using namespace blockpack;

namespace {

/// Hands the tasks to that many std::threads, one at a time.
Execution::Executor threads_executor(int threads) {
  return [threads](index_t n, const std::function<void(index_t)>& f) {
    std::atomic<index_t> next{0};
    std::vector<std::thread> team;
    for (int t = 0; t < threads; ++t)
      team.emplace_back([&] {
        for (index_t i = next++; i < n; i = next++) f(i);
      });
    for (std::thread& t : team) t.join();
  };
}

std::vector<Execution> executions() {
  std::vector<Execution> all(6);
  all[1].threads = 1;
  all[2].threads = 2;
  all[3].threads = 4;
  all[4].executor = threads_executor(3);
  all[5].executor = [](index_t n, const std::function<void(index_t)>& f) {
    for (index_t i = n; i-- > 0;) f(i);
  };
  return all;
}

}  // namespace

TEST_CASE("every task runs exactly once, whoever runs it", "[core]") {
  for (const Execution& how : executions()) {
    for (const index_t n : {0, 1, 2, 3, 7, 64, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(n));
      parallel_for(how, n, [&](index_t i) { ++runs[static_cast<std::size_t>(i)]; });
      for (const auto& r : runs) REQUIRE(r == 1);
    }
    parallel_for(how, -1, [](index_t) { FAIL("no task exists"); });
  }
}

TEST_CASE("the default executor uses no more threads than asked for", "[core]") {
  for (const int threads : {1, 2, 3}) {
    Execution how;
    how.threads = threads;
    std::mutex mutex;
    std::set<std::thread::id> seen;
    parallel_for(how, 64, [&](index_t) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      const std::lock_guard lock(mutex);
      seen.insert(std::this_thread::get_id());
    });
    CHECK(static_cast<int>(seen.size()) <= threads);
    CHECK(seen.count(std::this_thread::get_id()) == 1);
  }
}

TEST_CASE("the first exception comes back to the caller and stops the rest", "[core]") {
  for (const Execution& how : executions()) {
    std::atomic<int> started{0};
    CHECK_THROWS_AS(parallel_for(how, 100000,
                                 [&](index_t) {
                                   ++started;
                                   throw ValueError("no");
                                 }),
                    ValueError);
    CHECK(started >= 1);
    CHECK(started <= 4);  // at most one a thread
  }
}

TEST_CASE("an exception of one task leaves the finished ones finished", "[core]") {
  for (const Execution& how : executions()) {
    std::vector<std::atomic<int>> runs(50);
    CHECK_THROWS_WITH(parallel_for(how, 50,
                                   [&](index_t i) {
                                     if (i == 25) throw ShapeError("task 25");
                                     ++runs[static_cast<std::size_t>(i)];
                                   }),
                      "task 25");
    for (const auto& r : runs) CHECK(r <= 1);
    CHECK(runs[25] == 0);
  }
}

TEST_CASE("a stop request ends the call with CancelledError", "[core]") {
  for (Execution how : executions()) {
    std::stop_source source;
    how.stop = source.get_token();
    std::atomic<int> started{0};
    CHECK_THROWS_AS(parallel_for(how, 100000,
                                 [&](index_t) {
                                   ++started;
                                   source.request_stop();
                                 }),
                    CancelledError);
    CHECK(started >= 1);
    CHECK(started <= 4);
    // Nothing starts under a token that is already stopped, one task neither.
    for (const index_t n : {1, 10}) {
      CHECK_THROWS_AS(parallel_for(how, n, [&](index_t) { FAIL("must not start"); }), CancelledError);
    }
    parallel_for(how, 0, [](index_t) {});
  }
}

TEST_CASE("a nested call works and does not multiply the threads", "[core]") {
  for (const Execution& how : executions()) {
    std::atomic<int> sum{0};
    std::atomic<int> foreign{0};
    parallel_for(how, 5, [&](index_t) {
      const std::thread::id outer = std::this_thread::get_id();
      Execution inner = how;
      inner.executor = nullptr;
      const bool team = !how.executor && how.threads != 1;  // an OpenMP team is at work around us
      parallel_for(inner, 7, [&, team](index_t j) {
        sum += static_cast<int>(j);
        if (team && std::this_thread::get_id() != outer) ++foreign;
      });
    });
    CHECK(sum == 5 * 21);
    // With a runtime of one thread the outer call is no team, and then the inner one is none either.
    CHECK(foreign == 0);
  }
}

TEST_CASE("an executor of the caller that throws is heard", "[core]") {
  Execution how;
  how.executor = [](index_t, const std::function<void(index_t)>&) { throw std::runtime_error("no threads left"); };
  CHECK_THROWS_WITH(parallel_for(how, 3, [](index_t) {}), "no threads left");
}

TEST_CASE("a forced level is used, and refused where it does not run", "[core]") {
  Execution how;
  CHECK(how.level() == active_isa());
  for (const Isa isa : kAllIsas) {
    how.isa = isa;
    if (runs_here(isa)) {
      CHECK(how.level() == isa);
    } else {
      CHECK_THROWS_AS(how.level(), UnsupportedError);
    }
  }
}

TEST_CASE("progress goes to the caller's function, if any", "[core]") {
  Execution how;
  how.report(0.5);
  double seen = -1;
  how.progress = [&seen](double fraction) { seen = fraction; };
  how.report(0.25);
  CHECK(seen == 0.25);
}
