// SPDX-License-Identifier: Apache-2.0
#include "stopwatch.hpp"

#if defined(__linux__)
#include <sched.h>
#endif

namespace bench {

#if defined(__linux__)
namespace {

/// Where the program may run, asked before anything is pinned.
const cpu_set_t& allowed() {
  static const cpu_set_t set = [] {
    cpu_set_t s;
    CPU_ZERO(&s);
    sched_getaffinity(0, sizeof s, &s);
    return s;
  }();
  return set;
}

}  // namespace

void PinThreads::pin_self(int t) noexcept {
  const int count = CPU_COUNT(&allowed());
  if (count == 0) return;
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(static_cast<unsigned>(cpu), &allowed()) && seen++ == t % count) {
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(static_cast<unsigned>(cpu), &one);
      sched_setaffinity(0, sizeof one, &one);
    }
}

PinThreads::PinThreads(int threads) {
  allowed();
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
#endif
  for (int t = 0; t < threads; ++t) pin_self(t);
  pin_self(0);
}
PinThreads::~PinThreads() { sched_setaffinity(0, sizeof(cpu_set_t), &allowed()); }
#else
void PinThreads::pin_self(int) noexcept {}
PinThreads::PinThreads(int) {}
PinThreads::~PinThreads() {}
#endif

}  // namespace bench
