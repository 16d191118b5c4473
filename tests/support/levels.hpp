// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The SIMD levels a test can run on this CPU.

#include <vector>

#include "blockpack/core/isa.hpp"

namespace blockpack::test {

/// Compiled in and able to run here, weakest first; never empty, `scalar` always runs.
inline std::vector<Isa> levels_here() {
  std::vector<Isa> levels;
  for (const Isa isa : compiled_isas())
    if (runs_here(isa)) levels.push_back(isa);
  return levels;
}

}  // namespace blockpack::test
