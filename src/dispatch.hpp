// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What BLOCKPACK_ISA asks for and what follows from it.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/isa.hpp"
#include "kernels/slot.hpp"

namespace blockpack::kernels {

constexpr bool is_arm(Isa isa) { return isa == Isa::neon || isa == Isa::neon_dot; }

/// Whether a table of `level` contains what `part` supplies.
constexpr bool includes(Isa level, Isa part) {
  return part == Isa::scalar || (is_arm(level) == is_arm(part) && part <= level);
}

/// Features of this CPU less those BLOCKPACK_ISA switches off.
Features features_in_use();

/// Every sub-set of the features this CPU has that matters to a level: all, none, and all but one.
std::vector<Features> feature_sets(Isa level);

/// The names of the bits, `vbmi2 avx512bf16`.
std::string feature_names(Features features);

/// What BLOCKPACK_ISA asks for: `level[-feature...]`. An empty text means the best level with all features.
struct IsaRequest {
  Isa level = Isa::scalar;
  Features off = 0;
};
/// UnsupportedError that lists the levels of the build for a level or a feature that is unknown, and for a level that
/// does not run here.
IsaRequest parse_request(std::string_view text);

/// The request of this process, parsed once; throws as parse_request does, each time it is asked.
const IsaRequest& request();

}  // namespace blockpack::kernels
