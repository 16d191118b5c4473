// SPDX-License-Identifier: Apache-2.0
// A user's program: calls the compiled backend and catches what it throws by its type.
#include <cstdio>
#include <cstdlib>

#include "blockpack/core/isa.hpp"

int main() {
  using namespace blockpack;
  ::setenv("BLOCKPACK_ISA", "no-such-level", 1);
  bool caught = false;
  try {
    static_cast<void>(active_isa());
  } catch (const UnsupportedError& error) {
    caught = true;
  }
  ::unsetenv("BLOCKPACK_ISA");
  if (!caught) return std::puts("UnsupportedError was not caught"), 1;
  for (const Isa isa : compiled_isas()) std::printf("%s ", to_string(isa).data());
  return runs_here(active_isa()) ? 0 : 1;
}
