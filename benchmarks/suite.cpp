// SPDX-License-Identifier: Apache-2.0
#include "suite.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <regex>
#include <stdexcept>

namespace bench {
namespace {

std::string counter(const benchmark::BenchmarkReporter::Run& run, const char* name, const char* format) {
  const auto it = run.counters.find(name);
  return it == run.counters.end() ? std::string() : fmt::format(fmt::runtime(format), it->second.value);
}

/// One line per row from the aggregates; every repetition and aggregate goes on to the JSON reporter. Google Benchmark
/// is run once per group, so the context is written once and the file is closed by `finish`.
class TableAndJson final : public benchmark::BenchmarkReporter {
 public:
  explicit TableAndJson(const std::string& json_path) {
    if (json_path.empty()) return;
    file_.open(json_path);
    if (!file_) throw std::runtime_error("cannot write " + json_path);
    json_.SetOutputStream(&file_);
    json_.SetErrorStream(&GetErrorStream());
  }

  bool ReportContext(const Context& context) override {
    if (std::exchange(started_, true)) return true;
    fmt::print("{:<72} {:>11} {:>6} {:>8} {:>9} {:>6} {:>6} {:>9} {}\n", "row", "median", "spread", "GB/s", "GOP/s",
               "limit", "bits/w", "rel.err", "arithmetic");
    return !file_.is_open() || json_.ReportContext(context);
  }

  void ReportRuns(const std::vector<Run>& report) override {
    std::vector<Run> runs = report;
    for (Run& run : runs) {
      run.run_name.time_type.clear();  // row names end where ours do
      run.run_name.repetitions.clear();
      run.run_name.iterations.clear();
      if (run.error_occurred) {
        if (failed_.insert({run.run_name.str(), run.error_message}).second)
          lines_[run.run_name.str()] = fmt::format("{:<72} ERROR: {}\n", run.run_name.str(), run.error_message);
      } else if (run.run_type == Run::RT_Aggregate && run.aggregate_name == "median") {
        median_[run.run_name.str()] = run;
      } else if (run.run_type == Run::RT_Aggregate && run.aggregate_name == "cv") {
        lines_[run.run_name.str()] = line(median_[run.run_name.str()], run.real_accumulated_time);
      } else if (run.run_type == Run::RT_Iteration && run.repetitions <= 1) {
        lines_[run.run_name.str()] = line(run, 0);
      }
    }
    if (file_.is_open()) json_.ReportRuns(runs);
  }

  /// Prints the line of a row; repetitions end in random order, tables do not.
  void print(const std::string& row) {
    fmt::print("{}", lines_[row]);
    std::fflush(stdout);
  }

  void finish() {
    if (started_ && file_.is_open()) {
      json_.Finalize();
      file_.close();
      if (!file_) throw std::runtime_error("writing the JSON failed");
    }
  }
  int failures() const noexcept { return static_cast<int>(failed_.size()); }

 private:
  static std::string line(const Run& run, double spread) {
    const double ms = run.GetAdjustedRealTime() / benchmark::GetTimeUnitMultiplier(run.time_unit) * 1e3;
    return fmt::format("{:<72} {:>8.4f} ms {:>5.1f}% {:>8} {:>9} {:>6} {:>6} {:>9} {}\n", run.run_name.str(), ms,
                       100 * spread, counter(run, "GBps", "{:.2f}"), counter(run, "GOPS", "{:.1f}"),
                       counter(run, "limit_fraction", "{:.2f}"), counter(run, "bits_per_weight", "{:.2f}"),
                       counter(run, "rel_error", "{:.1e}"), run.report_label);
  }

  benchmark::JSONReporter json_;
  std::ofstream file_;
  std::map<std::string, Run> median_;
  std::map<std::string, std::string> failed_, lines_;
  bool started_ = false;
};

}  // namespace

int Suite::list(const std::string& filter) const {
  const std::regex wanted(filter);
  for (const Row& row : rows_)
    if (std::regex_search(row.name, wanted)) fmt::print("{}\n", row.name);
  return 0;
}

int Suite::run(const std::string& filter, const std::string& json_path) {
  const std::regex wanted(filter);
  std::vector<std::string> order;
  std::map<std::string, std::vector<const Row*>> groups;
  for (const Row& row : rows_) {
    if (!std::regex_search(row.name, wanted)) continue;
    std::vector<const Row*>& group = groups[row.group];
    if (group.empty()) order.push_back(row.group);
    group.push_back(&row);
  }
  if (order.empty()) throw std::runtime_error("no row matches " + filter);

  TableAndJson reporter(json_path);
  for (const std::string& name : order) {
    benchmark::ClearRegisteredBenchmarks();
    for (const Row* row : groups[name]) {
      auto* registered = benchmark::RegisterBenchmark(row->name.c_str(), row->body);
      registered->UseManualTime()->Unit(benchmark::kMicrosecond);
      if (row->iterations > 0) registered->Iterations(row->iterations);
    }
    benchmark::RunSpecifiedBenchmarks(&reporter, ".");
    for (const Row* row : groups[name]) reporter.print(row->name);
  }
  reporter.finish();
  return reporter.failures();
}

}  // namespace bench
