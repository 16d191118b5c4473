// SPDX-License-Identifier: Apache-2.0
#include "compress_model/commands.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <optional>
#include <string_view>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "blockpack/io/atomic_file.hpp"
#include "blockpack/recipe/auto_plan.hpp"
#include "blockpack/recipe/compressed_model.hpp"
#include "decoder/divergence.hpp"

namespace example {
namespace {

using blockpack::CompressedModel;
using blockpack::Registry;

constexpr index_t kDivergenceWindows = 32;

/// A line that redraws itself, on a terminal only; calls the progress callback underneath.
class ProgressLine {
 public:
  explicit ProgressLine(const blockpack::Execution& how) : how_(how) {
    const auto inner = how.progress;
    how_.progress = [this, inner](double fraction) {
      if (inner) inner(fraction);
      draw(fraction);
    };
  }
  ~ProgressLine() {
    if (shown_ >= 0) fmt::print(stderr, "\r{:60}\r", "");
  }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  const blockpack::Execution& execution() const { return how_; }

 private:
  void draw(double fraction) {
    static const bool terminal = ::isatty(2) != 0;
    const int percent = static_cast<int>(fraction * 100);
    if (!terminal || percent == shown_) return;
    shown_ = percent;
    const auto filled = static_cast<std::size_t>(percent * 40 / 100);
    fmt::print(stderr, "\r[{}{}] {:3} %", std::string(filled, '#'), std::string(40 - filled, '.'), percent);
    std::fflush(stderr);
  }
  blockpack::Execution how_;
  int shown_ = -1;
};

double weights(const std::vector<blockpack::index_t>& shape) {
  double n = 1;
  for (const blockpack::index_t d : shape) n *= static_cast<double>(d);
  return n;
}

/// The most memory this process ever held, mapped files included; 0 where the system does not tell.
std::uint64_t peak_memory_bytes() {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line))
    if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) * 1024;
  return 0;
}

/// The recipe with its `auto:` targets resolved.
blockpack::Recipe planned(const blockpack::Recipe& recipe, const CompressArguments& arguments,
                          const blockpack::CalibrationLookup& calibration, const blockpack::Execution& how) {
  const ProgressLine progress(how);
  blockpack::AutoPlanOptions options;
  options.calibration = calibration;
  options.execution = progress.execution();
  std::optional<Divergence> divergence;
  if (!arguments.divergence.empty()) {
    const std::filesystem::path data = arguments.divergence;
    const DecoderConfig config = DecoderConfig::load(data / "config.json");
    divergence.emplace(ByteDecoder(CompressedModel::open(arguments.in), config),
                       CalibrationText::load(data / "calib.bin", config, 0), kDivergenceWindows, how);
    options.loss = [&divergence, matrices = config.matrices()](std::string_view tensor, const AnyLinear& candidate) {
      for (std::size_t m = 0; m < matrices.size(); ++m)
        if (matrices[m].name == tensor) return divergence->of_matrix(m, candidate);
      throw blockpack::ValueError(fmt::format("tensor '{}' is no matrix of the decoder", tensor));
    };
  }
  return blockpack::resolve_auto(arguments.in, recipe, options);
}

}  // namespace

std::string mebibytes(std::uint64_t bytes) { return fmt::format("{:.3f}", static_cast<double>(bytes) / 1048576.0); }

std::string shape_text(const std::vector<blockpack::index_t>& shape) {
  return shape.empty() ? "scalar" : fmt::format("{}", fmt::join(shape, "x"));
}

std::string decibels(double sqnr) { return std::isinf(sqnr) && sqnr > 0 ? "exact" : fmt::format("{:.2f}", sqnr); }

int list_schemes() {
  const Registry& registry = Registry::standard();
  fmt::print("{:<18} {:>11}  what it is\n", "scheme", "bits/weight");
  for (const blockpack::ListedScheme& s : registry.listed())
    fmt::print("{:<18} {:>11.4f}  {}\n", s.scheme, registry.codec(s.scheme)->bits_per_weight({4096, 4096}), s.what);
  fmt::print("\nBits per weight of a 4096x4096 matrix, scales included. All forms:\n");
  for (const blockpack::SchemeFamily& family : registry.families()) fmt::print("  {}\n", family.pattern);
  fmt::print("\nAlgorithms, written behind a plus sign (int4-g32+nearest):\n");
  for (const blockpack::SchemeAlgorithm& algorithm : registry.algorithms()) {
    std::string formats;
    for (const blockpack::SchemeFamily& family : registry.families())
      for (const std::string& name : family.algorithms)
        if (name == algorithm.name)
          formats += (formats.empty() ? "" : ", ") + (family.names.size() > 4
                                                          ? family.names.front() + " to " + family.names.back()
                                                          : fmt::format("{}", fmt::join(family.names, ", ")));
    fmt::print("  {:<16} {}\n  {:<16} takes {}\n", algorithm.name, algorithm.what, "", formats);
  }
  return 0;
}

int compress(const CompressArguments& arguments, const blockpack::Execution& how) {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 1 << 20);  // matrices that are freed do not stay with the process
#endif
  blockpack::Recipe recipe = blockpack::Recipe::load(arguments.recipe);
  blockpack::CompressOptions options;
  options.panel_budget = arguments.budget_mib << 20;
  options.max_shard_bytes = static_cast<std::uint64_t>(arguments.shard_mib) << 20;
  options.non_finite = arguments.non_finite;
  options.measure = arguments.measure;
  if (!arguments.calibration.empty())
    options.calibration = [folder = blockpack::CalibrationFolder(arguments.calibration)](std::string_view tensor) {
      return folder.find(tensor);
    };
  if (blockpack::has_auto(recipe)) recipe = planned(recipe, arguments, options.calibration, how);
  if (!arguments.save_recipe.empty()) blockpack::write_file_atomically(arguments.save_recipe, recipe.to_json() + "\n");
  blockpack::CompressReport report;
  try {
    const ProgressLine progress(how);
    options.execution = progress.execution();
    report = blockpack::compress_model(arguments.in, recipe, arguments.out, options);
  } catch (const blockpack::ValueError& error) {
    const std::string text = error.what();
    throw blockpack::ValueError(text +
                                (text.find("not finite") != std::string::npos ? " (--non-finite saturate)" : ""));
  }
  if (arguments.quiet) return 0;
  fmt::print("{:<44} {:<14} {:>12} {:>10} {:>7} {:>8}\n", "tensor", "scheme", "shape", "MiB", "bits/w", "SQNR dB");
  std::size_t kept = 0;
  std::uint64_t kept_bytes = 0;
  for (const blockpack::TensorReport& t : report.tensors) {
    if (t.scheme.empty()) {
      ++kept;
      kept_bytes += t.stored_bytes;
      continue;
    }
    fmt::print("{:<44} {:<14} {:>12} {:>10} {:>7.3f} {:>8}\n", t.name, t.scheme, shape_text(t.shape),
               mebibytes(t.stored_bytes), 8.0 * static_cast<double>(t.stored_bytes) / weights(t.shape),
               arguments.measure ? decibels(t.error.sqnr_db()) : "-");
  }
  if (kept > 0)
    fmt::print("{:<44} {:<14} {:>12} {:>10}\n", fmt::format("({} tensors)", kept), "kept", "", mebibytes(kept_bytes));
  fmt::print("{} -> {} MiB, {:.3f} bits per weight{}\n", mebibytes(report.source_bytes()),
             mebibytes(report.stored_bytes()), report.bits_per_weight(),
             arguments.measure ? fmt::format(", SQNR {} dB", decibels(report.error().sqnr_db())) : "");
  // The largest matrix of each scheme whose algorithm has it in memory as a whole.
  std::map<std::string, const blockpack::TensorReport*> whole;
  for (const blockpack::TensorReport& t : report.tensors) {
    if (t.whole_bytes == 0) continue;
    const blockpack::TensorReport*& largest = whole[t.scheme];
    if (largest == nullptr || largest->whole_bytes < t.whole_bytes) largest = &t;
  }
  for (const auto& [scheme, t] : whole)
    fmt::print("{} holds whole matrices: {} MiB at most ({})\n", scheme,
               mebibytes(static_cast<std::uint64_t>(t->whole_bytes)), t->name);
  fmt::print("panels of at most {} MiB, peak memory {} MiB\n",
             mebibytes(static_cast<std::uint64_t>(report.peak_working_bytes)), mebibytes(peak_memory_bytes()));
  return 0;
}

int verify(const std::string& path, const std::string& original_path, const blockpack::Execution& how) {
  const CompressedModel model = CompressedModel::open(path);
  if (!model.is_compressed())
    throw blockpack::ValueError(fmt::format("'{}' is not a compressed model; make one with compress", path));
  std::vector<blockpack::HashCheck> checks;
  if (model.has_hashes()) checks = model.verify_hashes(how);
  std::size_t broken = 0;
  for (const blockpack::HashCheck& check : checks) {
    if (check.intact) continue;
    ++broken;
    fmt::print("{}: the stored bytes do not have the recorded SHA-256\n", check.name);
  }
  std::vector<blockpack::ErrorStats> errors;
  std::vector<blockpack::DecodedRange> ranges;
  const bool compares = !original_path.empty();
  if (compares)
    errors = model.compare(CompressedModel::open(original_path), how);
  else
    ranges = model.decoded_ranges(how);
  fmt::print("{:<44} {:<14} {:>12} {:>10} {:>7} {:>10} {:>10}\n", "tensor", "scheme", "shape", "MiB", "bits/w",
             compares ? "SQNR dB" : "least", compares ? "max error" : "greatest");
  blockpack::ErrorStats total;
  for (std::size_t i = 0; i < model.compressed().size(); ++i) {
    const blockpack::CompressedTensor& t = model.compressed()[i];
    fmt::print("{:<44} {:<14} {:>12} {:>10} {:>7.3f}", t.name, t.scheme, blockpack::to_string(t.shape),
               mebibytes(t.stored_bytes()), t.codec->bits_per_weight(t.shape));
    if (compares) {
      fmt::print(" {:>10} {:>10.3g}\n", decibels(errors[i].sqnr_db()), errors[i].max_error());
      total.merge(errors[i]);
    } else {
      fmt::print(" {:>10.3g} {:>10.3g}{}\n", ranges[i].least, ranges[i].greatest,
                 ranges[i].not_finite == 0 ? "" : fmt::format("  {} not finite", ranges[i].not_finite));
    }
  }
  if (compares)
    fmt::print("all compressed tensors: SQNR {} dB\n", decibels(total.sqnr_db()));
  else
    fmt::print("every compressed tensor decodes to these ranges; --original MODEL gives their SQNR\n");
  if (model.has_hashes())
    fmt::print("{} of {} stored tensors are intact (SHA-256)\n", checks.size() - broken, checks.size());
  else
    fmt::print("the file holds no hashes to compare with: compress_model did not write it\n");
  if (broken > 0) throw blockpack::FormatError(fmt::format("'{}' is damaged; compress the original again", path));
  return 0;
}

int evaluate_model(const EvaluateArguments& arguments, const blockpack::Execution& how) {
  const std::filesystem::path data = arguments.data;
  const DecoderConfig config = DecoderConfig::load(data / "config.json");
  const std::vector<std::uint8_t> text = read_bytes(data / "test.txt");
  blockpack::ApplyOptions apply;
  apply.execution = how;
  apply.activations = arguments.activations;
  const CompressedModel model = CompressedModel::open(arguments.model);
  const ByteDecoder decoder(model, config);
  const Evaluation result = evaluate(decoder, text, arguments.windows, apply);
  const CompressedModel plain = CompressedModel::open(data / "model.safetensors");
  const Evaluation reference = evaluate(ByteDecoder(plain, config), text, arguments.windows, apply);
  fmt::print("{:<14} {:>10} {:>11} {:>12}\n", "", "MiB", "bits/byte", "tokens/s");
  fmt::print("{:<14} {:>10} {:>11.4f} {:>12.0f}\n", "this model", mebibytes(model.storage_bytes()),
             result.bits_per_byte, result.tokens_per_second);
  fmt::print("{:<14} {:>10} {:>11.4f} {:>12.0f}\n", "uncompressed", mebibytes(plain.storage_bytes()),
             reference.bits_per_byte, reference.tokens_per_second);
  return 0;
}

}  // namespace example
