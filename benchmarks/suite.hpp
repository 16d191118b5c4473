// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The rows of the suite and how they run: in groups whose rows are measured in turn, so that what is compared saw the
/// same minutes.

#include <benchmark/benchmark.h>

#include <functional>
#include <string>
#include <vector>

#include "product.hpp"

namespace bench {

struct Options {
  std::uint64_t seed = 1;
  int max_threads = 2;
};

/// One row of the table. Rows of one group run interleaved, in random order of repetitions.
struct Row {
  std::string name;
  std::string group;
  std::function<void(benchmark::State&)> body;
  int iterations = 0;  ///< 0: as many as fill --min-time
};

class Suite {
 public:
  void add(std::string name, std::string group, std::function<void(benchmark::State&)> body, int iterations = 0) {
    rows_.push_back({std::move(name), std::move(group), std::move(body), iterations});
  }
  const std::vector<Row>& rows() const noexcept { return rows_; }

  /// Runs the rows whose name matches the regular expression, group by group; the table goes to standard output, the
  /// JSON to `json_path` when it is not empty. Returns the number of rows that failed.
  int run(const std::string& filter, const std::string& json_path);
  int list(const std::string& filter) const;

 private:
  std::vector<Row> rows_;
};

void add_limit_rows(Suite& suite, const Options& options);
void add_matmul_rows(Suite& suite, const Contestants& contestants, const Options& options);
void add_adapter_rows(Suite& suite, const Options& options);
void add_codec_rows(Suite& suite, const Contestants& contestants, const Options& options);
void add_gated_rows(Suite& suite, const Options& options);
void add_entropy_rows(Suite& suite, const Options& options);
void add_rounding_rows(Suite& suite, const Options& options);
void add_solve_rows(Suite& suite, const Options& options);
void add_pruning_rows(Suite& suite, const Options& options);
void add_fit_rows(Suite& suite, const Options& options);
void add_mixer_rows(Suite& suite, const Options& options);
void add_model_rows(Suite& suite, const Options& options);

}  // namespace bench
