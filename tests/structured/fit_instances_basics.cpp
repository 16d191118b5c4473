// SPDX-License-Identifier: Apache-2.0
#include "structured/fit_instances.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

BLOCKPACK_TEST_BASICS(, float)
BLOCKPACK_TEST_BASICS(, double)
BLOCKPACK_TEST_COMPLEX()

}  // namespace blockpack::inline BLOCKPACK_ABI
