// SPDX-License-Identifier: Apache-2.0
#include "structured/fit_instances.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

BLOCKPACK_TEST_BLAST(, float)
BLOCKPACK_TEST_BLAST(, double)

}  // namespace blockpack::inline BLOCKPACK_ABI
