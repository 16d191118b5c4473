// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Runs the example programs as people run them.

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/process.hpp"

namespace blockpack::test {

/// Through the emulator of a cross build where there is one (words separated by bars).
inline ProcessResult run_example(const std::string& path, const std::vector<std::string>& arguments,
                                 const ProcessOptions& options = {}) {
  std::vector<std::string> words;
  std::istringstream emulator(BLOCKPACK_EMULATOR);
  for (std::string word; std::getline(emulator, word, '|');) words.push_back(word);
  words.push_back(path);
  words.insert(words.end(), arguments.begin(), arguments.end());
  const std::string program = words.front();
  words.erase(words.begin());
  return run_process(program, words, options);
}

inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// Exit code 1, nothing on stdout, one line of `program` on stderr that contains `part`.
inline void check_refused(const ProcessResult& result, const std::string& program, const std::string& part) {
  CAPTURE(part, result.out, result.err, result.signal);
  CHECK(result.exit_code == 1);
  CHECK(result.out.empty());
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
  CHECK(has(result.err, program + ": "));
  CHECK(has(result.err, part));
}

}  // namespace blockpack::test
