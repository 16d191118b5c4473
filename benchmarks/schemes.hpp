// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace bench {

/// Compressed schemes whose products have rows: every kind of block, in one size. Any other scheme of the registry is
/// added to the suite with --scheme. (Every listed format is encoded and decoded.)
std::vector<std::string>& measured_schemes();

}  // namespace bench
