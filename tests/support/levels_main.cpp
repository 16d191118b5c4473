// SPDX-License-Identifier: Apache-2.0
// Prints what BLOCKPACK_ISA may be, for scripts that repeat the suite: every compiled level, and the level without a
// feature where that changes a kernel. Beside it `best` (what this CPU takes by itself), `runs` or `cannot`.
#include <algorithm>
#include <cstdio>
#include <set>
#include <string>

#include "dispatch.hpp"
#include "kernels/table.hpp"

namespace {

std::string suppliers(blockpack::Isa level, blockpack::kernels::Features features) {
  std::string text;
  visit_slots(blockpack::kernels::make_table(level, features),
              [&](const char*, const char*, const auto& slot) { (text += slot.isa) += ' '; });
  return text;
}

}  // namespace

int main() {
  using namespace blockpack;
  for (const Isa isa : compiled_isas()) {
    const std::string name(to_string(isa));
    std::printf("%s %s\n", name.c_str(), !runs_here(isa) ? "cannot" : isa == active_isa() ? "best" : "runs");
    if (!runs_here(isa)) continue;
    const std::vector<kernels::Features> sets = kernels::feature_sets(isa);
    std::set<std::string> seen;
    for (const kernels::Features features : sets) {
      if (!seen.insert(suppliers(isa, features)).second || features == sets.front()) continue;
      std::string off = kernels::feature_names(sets.front() & ~features);
      std::replace(off.begin(), off.end(), ' ', '-');
      std::printf("%s-%s runs\n", name.c_str(), off.c_str());
    }
  }
  return 0;
}
