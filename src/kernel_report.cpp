// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <string>

#include "blockpack/core/engine.hpp"
#include "cpu.hpp"
#include "dispatch.hpp"
#include "kernels/table.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

std::string kernel_report() {
  const kernels::KernelTable& table = kernels::active();
  std::string text = "blockpack " BLOCKPACK_VERSION_STRING " on " + kernels::this_cpu().name + "\nlevel: ";
  text += to_string(table.level);
  if (const char* forced = std::getenv("BLOCKPACK_ISA"); forced != nullptr && *forced != '\0')
    text += std::string(" (BLOCKPACK_ISA=") + forced + ")";
  text += "\nfeatures: " + kernels::feature_names(table.features) + "\nlevels of this build:";
  for (const Isa isa : compiled_isas()) {
    text += ' ';
    text += to_string(isa);
    if (!runs_here(isa)) text += " (not on this CPU)";
  }
  text += "\nautomatic activations:";
  for (const int bits : {4, 6, 8, 16, 32}) {
    text += bits == 4 ? " " : ", ";
    text += to_string(resolve(Activations::automatic, bits, table.level));
    text += " for " + std::to_string(bits) + "-bit weights";
  }
  if (multiplies_codes(table.level)) {
    text += "\nautomatic activations of products on packed codes:";
    for (const double bits : {4.25, 8.5}) {
      text += bits < 8 ? " " : ", ";
      text += to_string(resolve(Activations::automatic, bits, table.level, true));
      text += bits < 8 ? " up to 6.6 bits" : " above";
    }
  }
  text += "\nkernels:\n";
  kernels::visit_slots(table, [&text](const char* family, const char* name, const auto& slot) {
    std::string line = std::string("  ") + family;
    line.resize(line.size() < 13 ? 13 : line.size() + 1, ' ');
    line += name;
    line.resize(line.size() < 38 ? 38 : line.size() + 1, ' ');
    text += line + (slot.fn == nullptr ? "missing" : slot.isa) + "\n";
  });
  return text;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
