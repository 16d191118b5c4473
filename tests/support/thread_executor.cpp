// SPDX-License-Identifier: Apache-2.0
// BLOCKPACK_TEST_EXECUTOR=threads replaces the default executor of the whole test program by one on std::thread, so
// that the thread sanitizer sees every synchronisation (it knows little of OpenMP runtimes). The linker (--wrap) sends
// every call of detail::default_executor here; BLOCKPACK_EXECUTOR_SYMBOL is its mangled name.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string_view>
#include <thread>
#include <vector>

#include "blockpack/core/execution.hpp"

namespace blockpack::test {

void real_executor(int threads, index_t n, detail::RangeTask task,
                   void* context) asm("__real_" BLOCKPACK_EXECUTOR_SYMBOL);
void test_executor(int threads, index_t n, detail::RangeTask task,
                   void* context) asm("__wrap_" BLOCKPACK_EXECUTOR_SYMBOL);

void test_executor(int threads, index_t n, detail::RangeTask task, void* context) {
  static const bool on_threads = [] {
    const char* text = std::getenv("BLOCKPACK_TEST_EXECUTOR");
    return text != nullptr && std::string_view(text) == "threads";
  }();
  if (!on_threads) return real_executor(threads, n, task, context);

  static thread_local bool inside = false;
  const index_t limit = threads > 0 ? threads : 4;
  if (inside || std::min(limit, n) <= 1) {
    for (index_t i = 0; i < n; ++i) task(context, i);
    return;
  }
  std::atomic<index_t> next{0};
  const auto work = [&] {
    inside = true;
    for (index_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) task(context, i);
    inside = false;
  };
  std::vector<std::thread> team;
  for (index_t t = 1; t < std::min(limit, n); ++t) team.emplace_back(work);
  work();
  for (std::thread& t : team) t.join();
}

}  // namespace blockpack::test
