// SPDX-License-Identifier: Apache-2.0
/// A program of its own that uses the header-only encoders with flags a consumer may have: -O3 -mfma
/// -ffp-contract=fast, where a compiler fuses every product and sum it can see. It compares the bytes of every scheme
/// with the stored hashes; `--print` writes them instead. It links nothing, so that none of its inline functions reach
/// another test program.

#include <fstream>
#include <iostream>
#include <set>

#include "quant/byte_hashes.hpp"

int main(int argc, char** argv) {
#if (defined(__x86_64__) || defined(__i386__)) && defined(__FMA__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("fma") == 0 || __builtin_cpu_supports("avx2") == 0) {
    std::puts("skipped: this CPU has no FMA");
    return 0;
  }
#endif
  std::set<std::string> lines;
  const bool print = argc == 2 && std::string(argv[1]) == "--print";
  blockpack::test::for_each_hash_line([&](const std::string& line) {
    lines.insert(line);
    if (print) std::cout << line << '\n';
  });
  if (print) return 0;
  std::ifstream file(BLOCKPACK_GOLDEN_DEFAULT "/quantization/bytes.txt");
  std::size_t seen = 0;
  std::size_t wrong = 0;
  for (std::string line; std::getline(file, line); ++seen) {
    if (lines.count(line) != 0) continue;
    std::cout << "bytes differ from " << line << '\n';
    ++wrong;
  }
  std::cout << seen << " schemes, " << wrong << " with other bytes\n";
  return seen == lines.size() && wrong == 0 && seen != 0 ? 0 : 1;
}
