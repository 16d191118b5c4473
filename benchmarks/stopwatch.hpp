// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The clocks of the suite: CPU time of the calling thread for work on one thread (other jobs on the machine do not
/// count), wall time for more.

#include <benchmark/benchmark.h>
#include <ctime>

namespace bench {

class Stopwatch {
 public:
  explicit Stopwatch(int threads) noexcept
      : clock_(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC), start_(now()) {}
  double seconds() const noexcept { return now() - start_; }

 private:
  double now() const noexcept {
    std::timespec t{};
    clock_gettime(clock_, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  clockid_t clock_;
  double start_;
};

/// While it is alive, keeps the calling thread on the first core the program may use, and thread t of the OpenMP team
/// on core t: a worker that shares the core of its master makes a call ten times longer. The calling thread gets its
/// old freedom back, so that threads it starts elsewhere do not inherit the pin.
class PinThreads {
 public:
  explicit PinThreads(int threads);
  ~PinThreads();
  PinThreads(const PinThreads&) = delete;
  PinThreads& operator=(const PinThreads&) = delete;

  /// Puts the calling thread on core t of those the program may use, for good.
  static void pin_self(int t) noexcept;
};

/// Runs `call` as often as the state asks and reports its time; returns the seconds of one call. The clock is read
/// twice in all, so short calls are not distorted. `warm_calls` untimed ones come first.
template <class F>
double time_calls(benchmark::State& state, int threads, std::size_t warm_calls, const F& call) {
  for (std::size_t i = 0; i < warm_calls; ++i) call();
  const Stopwatch watch(threads);
  for (auto _ : state) {
    static_cast<void>(_);
    call();
  }
  const double seconds = watch.seconds();
  state.SetIterationTime(seconds);
  return seconds / static_cast<double>(state.iterations());
}

}  // namespace bench
