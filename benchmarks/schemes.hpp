// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace bench {

/// Compressed schemes with rows of their own: every kind of block, in one size. Any other scheme of the registry is
/// added to the suite with --scheme.
std::vector<std::string>& measured_schemes();

}  // namespace bench
