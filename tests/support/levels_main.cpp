// SPDX-License-Identifier: Apache-2.0
// Prints each compiled level and whether this CPU runs it, for scripts that repeat the suite per level.
#include <cstdio>

#include "blockpack/core/isa.hpp"

int main() {
  using namespace blockpack;
  for (const Isa isa : compiled_isas())
    std::printf("%s %s\n", to_string(isa).data(), runs_here(isa) ? "runs" : "cannot");
  return 0;
}
