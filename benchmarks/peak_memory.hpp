// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What a call takes of memory.

#include <fstream>
#include <string>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace bench {

/// A number of /proc/self/status in bytes; 0 where there is none.
inline double process_bytes(const char* key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(key)) return 1024.0 * std::stod(line.substr(std::string(key).size() + 1));
  return 0;
}

/// Bytes that `call` takes at most beside what is there when it starts.
template <class F>
double peak_bytes(const F& call) {
#if defined(__GLIBC__)
  malloc_trim(0);  // what was freed does not count
#endif
  std::ofstream("/proc/self/clear_refs") << "5";  // the peak starts from here
  const double before = process_bytes("VmRSS");
  call();
  return process_bytes("VmHWM") - before;
}

}  // namespace bench
