// SPDX-License-Identifier: Apache-2.0
// blockpack_bench: products, codecs and estimators beside their peers and the limits of the machine. docs/benchmarks.md
// explains rows, columns and method.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "bench_commit.hpp"
#include "blockpack/core/isa.hpp"
#include "schemes.hpp"
#include "suite.hpp"

namespace {

constexpr const char* kHelp = R"(blockpack_bench: measures blockpack, the peers it was built with, and the machine.

  --filter=REGEX        only rows whose name matches: --filter='matmul/bf16/.*/M:128/N:4096/'
  --list                names of the rows, and nothing more
  --json=FILE           every repetition and aggregate as JSON, for benchmarks/compare and benchmarks/plot
  --isa=LEVEL           use this SIMD level (as BLOCKPACK_ISA does)
  --seed=N              seed of weights and activations (1)
  --min-time=SECONDS    of one repetition (0.03)
  --repetitions=N       of each row (7); the table shows the median and the spread (standard deviation / mean)
  --scheme=SCHEME       also measures this scheme of the registry (may be repeated)
  --threads=N           rows for 1 to N threads (2, or 1 on one core)

Options of Google Benchmark (--benchmark_...) are passed on to it.
)";

bool take(const std::string& argument, const char* name, std::string& value) {
  const std::string prefix = std::string(name) + "=";
  if (argument.rfind(prefix, 0) != 0) return false;
  value = argument.substr(prefix.size());
  return true;
}

long number(const std::string& text, const char* name) {
  std::size_t used = 0;
  long value = -1;
  try {
    value = std::stol(text, &used);
  } catch (const std::exception&) {
  }
  if (value < 0 || used != text.size())
    throw std::runtime_error(fmt::format("{}: a number >= 0 is needed, \"{}\" came", name, text));
  return value;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown";
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "g++ " __VERSION__;
#else
  return "unknown";
#endif
}

int run(int argc, char** argv) {
  std::string filter = ".", json, isa, seed = "1", min_time = "0.03", repetitions = "7", threads;
  bool list = false;
  std::string scheme;
  std::vector<std::string> google = {argv[0], "--benchmark_enable_random_interleaving=true"}, passed_on;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--help" || argument == "-h") {
      fmt::print("{}", kHelp);
      return 0;
    }
    if (argument == "--list") {
      list = true;
    } else if (take(argument, "--scheme", scheme)) {
      std::vector<std::string>& schemes = bench::measured_schemes();
      if (std::find(schemes.begin(), schemes.end(), scheme) == schemes.end()) schemes.push_back(scheme);
    } else if (!take(argument, "--filter", filter) && !take(argument, "--json", json) &&
               !take(argument, "--isa", isa) && !take(argument, "--seed", seed) &&
               !take(argument, "--min-time", min_time) && !take(argument, "--repetitions", repetitions) &&
               !take(argument, "--threads", threads)) {
      if (argument.rfind("--benchmark_", 0) != 0)
        throw std::runtime_error(fmt::format("unknown option {}; see --help", argument));
      passed_on.push_back(argument);
    }
  }
  if (!isa.empty()) setenv("BLOCKPACK_ISA", isa.c_str(), 1);
  google.push_back("--benchmark_min_time=" + min_time);
  google.push_back("--benchmark_repetitions=" + repetitions);
  google.insert(google.end(), passed_on.begin(), passed_on.end());

  bench::Options options;
  options.seed = static_cast<std::uint64_t>(number(seed, "--seed"));
  const long cores = std::max(1u, std::thread::hardware_concurrency());
  options.max_threads = static_cast<int>(threads.empty() ? std::min(2L, cores) : number(threads, "--threads"));

  bench::Contestants contestants;
  bench::add_blockpack(contestants);
  bench::add_structured(contestants);
  bench::add_headers(contestants);
#if defined(BENCH_WITH_ONEDNN)
  bench::add_onednn(contestants);
#endif
#if defined(BENCH_WITH_OPENBLAS)
  bench::add_openblas(contestants);
#endif
#if defined(BENCH_WITH_EIGEN)
  bench::add_eigen(contestants);
#endif
#if defined(BENCH_WITH_LIBXSMM)
  bench::add_libxsmm(contestants);
#endif
#if defined(BENCH_WITH_GGML)
  bench::add_ggml(contestants);
#endif

  bench::Suite suite;
  bench::add_limit_rows(suite, options);
  bench::add_matmul_rows(suite, contestants, options);
  bench::add_gated_rows(suite, options);
  bench::add_adapter_rows(suite, options);
  bench::add_codec_rows(suite, contestants, options);
  bench::add_entropy_rows(suite, options);
  bench::add_rounding_rows(suite, options);
  bench::add_solve_rows(suite, options);
  bench::add_pruning_rows(suite, options);
  bench::add_fit_rows(suite, options);
#if defined(BENCH_WITH_EIGEN)
  bench::add_mixer_rows(suite, options);
#endif
  bench::add_model_rows(suite, options);
  if (list) return suite.list(filter);

  std::vector<char*> arguments;
  for (std::string& g : google) arguments.push_back(g.data());
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  if (count > 1) throw std::runtime_error(fmt::format("unknown option {}; see --help", arguments[1]));

  const std::string level(blockpack::to_string(blockpack::active_isa()));
  benchmark::AddCustomContext("cpu", cpu_name());
  benchmark::AddCustomContext("level", level);
  benchmark::AddCustomContext("compiler", compiler());
  benchmark::AddCustomContext("build", BENCH_BUILD_TYPE);
  benchmark::AddCustomContext("commit", bench::built_commit());
  benchmark::AddCustomContext("blockpack", BLOCKPACK_VERSION_STRING);
  benchmark::AddCustomContext("seed", seed);
  std::string peers;
  for (const bench::Peer& p : contestants.peers) {
    benchmark::AddCustomContext("peer " + p.name, p.version);
    peers += fmt::format("{}{} {}", peers.empty() ? "" : ", ", p.name, p.version);
  }
  benchmark::AddCustomContext("kernel_report", blockpack::kernel_report());
  fmt::print("blockpack {} ({}, {}, {})\n{}, level {}\npeers: {}\n\n", BLOCKPACK_VERSION_STRING, bench::built_commit(),
             compiler(), BENCH_BUILD_TYPE, cpu_name(), level, peers.empty() ? "none" : peers);

  const int failures = suite.run(filter, json);
  benchmark::Shutdown();
  return failures == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "blockpack_bench: {}\n", e.what());
    return 1;
  }
}
