// SPDX-License-Identifier: Apache-2.0
#pragma once

/// How a call runs: threads, SIMD level, the caller's own executor, progress and cancellation. The library owns no
/// thread pool: the default executor is OpenMP where the compiler has it and the calling thread otherwise.

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <optional>
#include <stop_token>

#include "blockpack/core/config.hpp"
#include "blockpack/core/isa.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

struct Execution {
  /// Runs f(0), …, f(n - 1), in any order and on any threads, and returns when all are done. f does not throw.
  using Executor = std::function<void(index_t n, const std::function<void(index_t)>& f)>;

  int threads = 0;         ///< at most this many for the default executor; 0 = what the OpenMP runtime would use
  std::optional<Isa> isa;  ///< forces a level for this call; UnsupportedError where it does not run
  Executor executor;       ///< replaces the default executor, `threads` is then not used
  std::function<void(double)> progress;  ///< told the fraction done in [0, 1], from the calling thread, by long calls
  std::stop_token stop;                  ///< when set, a long call ends with CancelledError
  bool batch_invariant = false;  ///< one kernel for every number of tokens: a row's bits do not depend on the batch

  /// The level this call uses. UnsupportedError when `isa` does not run here.
  Isa level() const {
    if (!isa) return active_isa();
    if (!runs_here(*isa))
      throw UnsupportedError("Execution: level " + std::string(to_string(*isa)) + " does not run here");
    return *isa;
  }
  void throw_if_stopped() const {
    if (stop.stop_requested()) throw CancelledError("cancelled by the caller");
  }
  void report(double fraction) const {
    if (progress) progress(fraction);
  }

  /// The same without progress: for the steps of a call that reports by itself.
  Execution quiet() const {
    Execution step = *this;
    step.progress = nullptr;
    return step;
  }
  /// The same without progress, on the calling thread: for calls inside tasks that are parallel already.
  Execution serial() const {
    Execution step = quiet();
    step.threads = 1;
    step.executor = nullptr;
    return step;
  }
};

namespace detail {

using RangeTask = void (*)(void* context, index_t i);
#if defined(BLOCKPACK_HEADERS_ONLY)
inline void default_executor(int, index_t n, RangeTask task, void* context) {
  for (index_t i = 0; i < n; ++i) task(context, i);
}
#else
/// OpenMP, at most `threads` threads (0: the runtime's default); the calling thread when compiled without OpenMP.
BLOCKPACK_API void default_executor(int threads, index_t n, RangeTask task, void* context);
#endif

}  // namespace detail

/// Runs f(i) for i in [0, n) as `how` says. The first exception thrown by f stops the tasks not yet begun and is
/// rethrown here; so does a stop request, as CancelledError. One task, or one thread, runs on the calling thread
/// without overhead.
template <class F>
void parallel_for(const Execution& how, index_t n, const F& f) {
  if (n <= 0) return;
  if (n == 1 || (how.threads == 1 && !how.executor)) {
    for (index_t i = 0; i < n; ++i) {
      how.throw_if_stopped();
      f(i);
    }
    return;
  }
  struct Shared {
    const Execution& how;
    const F& f;
    std::atomic<bool> failed{false};
    std::exception_ptr error;
    void run(index_t i) noexcept {
      if (failed.load(std::memory_order_relaxed)) return;
      try {
        how.throw_if_stopped();
        f(i);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
  } shared{how, f, {}, {}};
  if (how.executor) {
    how.executor(n, [&shared](index_t i) { shared.run(i); });
  } else {
    detail::default_executor(
        how.threads, n, [](void* context, index_t i) { static_cast<Shared*>(context)->run(i); }, &shared);
  }
  if (shared.error) std::rethrow_exception(shared.error);
}

/// parallel_for, which tells `how.progress` the fraction done after every stretch of calls: 64 at least, so that many
/// threads have work.
template <class F>
void parallel_for_reported(const Execution& how, index_t n, const F& f) {
  const index_t stretch = how.progress ? std::max<index_t>(64, (n + 31) / 32) : n;
  for (index_t begin = 0; begin < n; begin += stretch) {
    const index_t count = std::min(stretch, n - begin);
    parallel_for(how, count, [&](index_t i) { f(begin + i); });
    how.report(static_cast<double>(begin + count) / static_cast<double>(n));
  }
}

}  // namespace blockpack::inline BLOCKPACK_ABI
