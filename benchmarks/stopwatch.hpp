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

/// Keeps the calling thread on one core while it is alive, and restores where it may run. Threads started meanwhile
/// would inherit the pin: use it around work on one thread only.
class PinToOneCore {
 public:
  explicit PinToOneCore(bool active);
  ~PinToOneCore();
  PinToOneCore(const PinToOneCore&) = delete;
  PinToOneCore& operator=(const PinToOneCore&) = delete;

 private:
  cpu_set_t before_{};
  bool pinned_ = false;
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
