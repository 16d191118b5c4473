// SPDX-License-Identifier: Apache-2.0
// Without a fuzzing engine: runs a target once over every file of the folders and files it is given.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

namespace fs = std::filesystem;

void run(const fs::path& path, std::size_t& inputs) {
  std::ifstream in(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
  // An exact copy on the heap, so that a sanitizer sees a read behind its end.
  const std::vector<std::uint8_t> copy(bytes.begin(), bytes.end());
  static const std::uint8_t none = 0;
  LLVMFuzzerTestOneInput(copy.empty() ? &none : copy.data(), copy.size());
  ++inputs;
}

}  // namespace

int main(int argc, char** argv) {
  std::size_t inputs = 0;
  for (int i = 1; i < argc; ++i) {
    const fs::path path = argv[i];
    try {
      if (!fs::is_directory(path)) {
        run(path, inputs);
        continue;
      }
      for (const auto& entry : fs::recursive_directory_iterator(path))
        if (entry.is_regular_file()) run(entry.path(), inputs);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", argv[i], error.what());
      return 1;
    }
  }
  std::printf("%zu inputs\n", inputs);
  return inputs == 0 ? 1 : 0;  // an empty corpus is a mistake
}
