// SPDX-License-Identifier: Apache-2.0
#include "suite.hpp"
namespace bench {
void add_codec_rows(Suite&, const Options&) {}
}  // namespace bench
