// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/execution.hpp"

#include <algorithm>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace blockpack::inline BLOCKPACK_ABI {
namespace detail {

// Tasks are handed out one by one: they are tiles or row panels, few and large, and their costs differ.
void default_executor([[maybe_unused]] int threads, index_t n, RangeTask task, void* context) {
#if defined(_OPENMP)
  const index_t limit = threads > 0 ? threads : omp_get_max_threads();
  const int team = static_cast<int>(std::min(limit, n));
  // Inside another parallel region the caller's threads are busy already: run there.
  if (team > 1 && omp_in_parallel() == 0) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
    for (index_t i = 0; i < n; ++i) task(context, i);
    return;
  }
#endif
  for (index_t i = 0; i < n; ++i) task(context, i);
}

}  // namespace detail
}  // namespace blockpack::inline BLOCKPACK_ABI
