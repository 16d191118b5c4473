// SPDX-License-Identifier: Apache-2.0
// `compress_model families`: relative error against parameters of the structured families on the weight matrices of
// any models, and which family wins on which matrix.

#include <fmt/format.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>

#include "blockpack/core/eigen.hpp"
#include "blockpack/io/atomic_file.hpp"
#include "blockpack/recipe.hpp"
#include "blockpack/structured/blast_fit.hpp"
#include "blockpack/structured/block_low_rank_fit.hpp"
#include "blockpack/structured/low_rank_fit.hpp"
#include "blockpack/structured/monarch_fit.hpp"
#include "compress_model/blocks.hpp"
#include "compress_model/commands.hpp"

namespace example {
namespace {

using namespace blockpack;

constexpr int kRemoved[] = {20, 40, 50};
constexpr std::size_t kShares = std::size(kRemoved);
constexpr index_t kBlocks = 4;
constexpr int kBlastSteps = 150;
constexpr index_t kSmallestSide = 64;

constexpr const char* kIntroduction = R"(# Structured families on weight matrices

Made by `compress_model families MODEL... --calibration FOLDER... --out PAGE`: every matrix of these models whose sides are both at
least {}, approximated by each family with at least 20, 40 and 50 % of its parameters removed (the largest rank that does).
Factors are float32, nothing is refined. Monarch and BLAST have {} blocks a side; tiles are a quarter of the smaller side, at
most 256, and share one budget. BLAST runs {} steps from each start alone.

- "Weights" is ||W - M|| / ||W||; "outputs" is ||(W - M) Xᵀ|| / ||W Xᵀ|| for the inputs X of a calibration run, on the matrices
  that have one. Both are means over the matrices. "Kept" is the share of the parameters that is left, padding included.
- "Wins" counts the matrices on which no other row has a smaller error, by weights and by outputs.
- A cell of the second table names the winner and its error, then the best of the other families.
)";

enum class Family : std::uint8_t { svd, monarch, blast, tiles };

struct Method {
  const char* name;
  Family family;
  bool needs_gram;
};
constexpr std::array<Method, 8> kMethods = {{{"SVD", Family::svd, false},
                                             {"SVD, whitened", Family::svd, true},
                                             {"Monarch, blocked", Family::monarch, false},
                                             {"Monarch, interleaved", Family::monarch, false},
                                             {"BLAST from noise", Family::blast, false},
                                             {"BLAST from SVD", Family::blast, false},
                                             {"BLAST from Monarch", Family::blast, false},
                                             {"BLR", Family::tiles, false}}};

struct Result {
  double kept = 0;
  double weights = 0;
  std::optional<double> outputs;
};
using Results = std::array<std::optional<Result>, kMethods.size()>;

struct Measured {
  std::string name;
  MatrixShape shape;
  std::array<Results, kShares> by_share;
};

/// sqrt(tr(E G Eᵀ) / tr(W G Wᵀ)), G = I without a Gram matrix.
double relative(const RowMajorMatrix<float>& error, const RowMajorMatrix<float>& w, const RowMajorMatrix<float>* gram) {
  const auto norm = [&](const RowMajorMatrix<float>& m) {
    if (gram == nullptr) return m.cast<double>().squaredNorm();
    const RowMajorMatrix<float> mg = m * *gram;
    return mg.cast<double>().cwiseProduct(m.cast<double>()).sum();
  };
  return std::sqrt(std::max(0.0, norm(error)) / norm(w));
}

/// The approximation and its parameters.
struct Fitted {
  RowMajorMatrix<float> dense;
  index_t parameters = 0;
};
template <class Factors>
Fitted fitted_form(const Factors& f) {
  return {f.dense(), f.parameters()};
}

std::optional<Fitted> fit(const Method& method, MatrixView<const float> w, double share, const GramMatrix* gram,
                          const Execution& how) {
  const std::string name = method.name;
  switch (method.family) {
    case Family::svd: {
      const index_t rank = low_rank_for_ratio(w.shape(), share);
      if (rank < 1) return {};
      LowRankOptions options;
      if (method.needs_gram) options.scale = ScaleMode::cholesky, options.gram = gram;
      options.svd.execution = how;
      return fitted_form(low_rank_fit<float>(w, rank, options));
    }
    case Family::monarch: {
      MonarchOptions options;
      options.rank = monarch_rank_for_ratio(w.shape(), kBlocks, kBlocks, share);
      if (options.rank < 1) return {};
      options.order = name == "Monarch, interleaved" ? OutputOrder::interleaved : OutputOrder::blocked;
      options.svd.execution = how;
      return fitted_form(monarch_project<float>(w, options));
    }
    case Family::blast: {
      BlastOptions options;
      options.blocks = kBlocks;
      options.rank = blast_rank_for_ratio(w.shape(), kBlocks, share);
      if (options.rank < 1) return {};
      options.iterations = kBlastSteps;
      options.start = name == "BLAST from noise" ? BlastStart::noise
                      : name == "BLAST from SVD" ? BlastStart::svd
                                                 : BlastStart::monarch;
      options.execution = how;
      return fitted_form(blast_factorize<float>(w, options).factors);
    }
    default: {
      BlockLowRankOptions options;
      options.tile_rows = options.tile_cols = std::min<index_t>(std::min(w.rows(), w.cols()) / 4, 256);
      options.rank_multiple = 1;
      options.execution = how;
      const auto budget = static_cast<index_t>(share * static_cast<double>(w.rows()) * static_cast<double>(w.cols()));
      return fitted_form(block_low_rank_fit_budget<float>(w, budget, options));
    }
  }
}

Measured measure(const std::string& name, const WeightView& weights, const GramMatrix* gram, const Execution& how) {
  Measured result{name, weights.shape(), {}};
  RowMajorMatrix<float> w(weights.rows(), weights.cols());
  weights.visit([&](auto stored) {
    for (index_t r = 0; r < w.rows(); ++r)
      for (index_t c = 0; c < w.cols(); ++c) w(r, c) = static_cast<float>(stored(r, c));
  });
  RowMajorMatrix<float> inputs;
  if (gram != nullptr) {
    inputs.resize(w.cols(), w.cols());
    gram->copy_to(view(inputs), 1.0 / std::max(gram->mean_diagonal(), 1e-300), 0.0, how);
  }
  for (std::size_t s = 0; s < kShares; ++s)
    for (std::size_t m = 0; m < kMethods.size(); ++m) {
      if (kMethods[m].needs_gram && gram == nullptr) continue;
      const auto f = fit(kMethods[m], view(std::as_const(w)), 1.0 - kRemoved[s] / 100.0, gram, how);
      if (!f) continue;
      how.throw_if_stopped();
      const RowMajorMatrix<float> error = w - f->dense;
      Result r{static_cast<double>(f->parameters) / static_cast<double>(w.size()), relative(error, w, nullptr), {}};
      if (gram != nullptr) r.outputs = relative(error, w, &inputs);
      result.by_share[s][m] = r;
    }
  return result;
}

/// The error of a method; null where it was not fitted, or has no outputs.
std::optional<double> error_of(const Results& results, std::size_t m, bool outputs) {
  if (!results[m]) return {};
  return outputs ? results[m]->outputs : std::optional<double>(results[m]->weights);
}

/// The method of least error among those that `allowed` takes.
template <class Allowed>
std::optional<std::size_t> best(const Results& results, bool outputs, const Allowed& allowed) {
  std::optional<std::size_t> found;
  for (std::size_t m = 0; m < kMethods.size(); ++m) {
    const auto error = error_of(results, m, outputs);
    if (error && allowed(kMethods[m]) && (!found || *error < *error_of(results, *found, outputs))) found = m;
  }
  return found;
}

std::string winner_cell(const Results& results, bool outputs) {
  const auto first = best(results, outputs, [](const Method&) { return true; });
  if (!first) return "";
  std::string cell = fmt::format("{} {:.4f}", kMethods[*first].name, *error_of(results, *first, outputs));
  const auto second = best(results, outputs, [&](const Method& m) { return m.family != kMethods[*first].family; });
  if (second) cell += fmt::format("; {} {:.4f}", kMethods[*second].name, *error_of(results, *second, outputs));
  return cell;
}

bool has_outputs(const std::vector<Measured>& matrices) {
  return std::any_of(matrices.begin(), matrices.end(), [](const Measured& m) {
    return std::any_of(m.by_share[0].begin(), m.by_share[0].end(),
                       [](const std::optional<Result>& r) { return r && r->outputs; });
  });
}

std::string summary(const std::vector<Measured>& matrices) {
  const bool outputs = has_outputs(matrices);
  std::string head = "| family |", rule = "|---|";
  for (const int removed : kRemoved) {
    head += fmt::format(" {} %: kept | weights | wins |", removed) + (outputs ? " outputs | wins |" : "");
    rule += outputs ? "---|---|---|---|---|" : "---|---|---|";
  }
  std::string text = head + "\n" + rule + "\n";
  for (std::size_t m = 0; m < kMethods.size(); ++m) {
    std::string line = fmt::format("| {} |", kMethods[m].name);
    bool any = false;
    for (std::size_t s = 0; s < kShares; ++s) {
      double kept = 0, sum[2] = {};
      int count[2] = {}, wins[2] = {};
      for (const Measured& matrix : matrices) {
        const Results& r = matrix.by_share[s];
        if (!r[m]) continue;
        kept += r[m]->kept;
        for (const bool of_outputs : {false, true})
          if (const auto error = error_of(r, m, of_outputs)) {
            sum[of_outputs] += *error;
            ++count[of_outputs];
            wins[of_outputs] += best(r, of_outputs, [](const Method&) { return true; }) == m ? 1 : 0;
          }
      }
      any = any || count[0] > 0;
      line += count[0] == 0 ? " | | |"
                            : fmt::format(" {:.3f} | {:.4f} | {} |", kept / count[0], sum[0] / count[0], wins[0]);
      if (outputs) line += count[1] == 0 ? " | |" : fmt::format(" {:.4f} | {} |", sum[1] / count[1], wins[1]);
    }
    if (any) text += line + "\n";
  }
  return text;
}

std::string winners(const std::vector<Measured>& matrices) {
  const bool both = has_outputs(matrices);
  std::string head = "| matrix | shape |", rule = "|---|---|", lines;
  for (const bool outputs : {false, true})
    for (const int removed : kRemoved) {
      if (outputs && !both) continue;
      head += fmt::format(" {}, {} % |", outputs ? "outputs" : "weights", removed);
      rule += "---|";
    }
  for (const Measured& m : matrices) {
    lines += fmt::format("| `{}` | {} x {} |", m.name, m.shape.rows, m.shape.cols);
    for (const bool outputs : {false, true})
      for (const Results& r : m.by_share)
        if (both || !outputs) lines += " " + winner_cell(r, outputs) + " |";
    lines += "\n";
  }
  return head + "\n" + rule + "\n" + lines;
}

}  // namespace

int families(const FamiliesArguments& arguments, const Execution& how) {
  if (!arguments.calibrations.empty() && arguments.calibrations.size() != arguments.models.size())
    throw ValueError(fmt::format("{} models and {} calibrations; one for each model needed, 'none' for those without",
                                 arguments.models.size(), arguments.calibrations.size()));
  { const AtomicFile writable(arguments.out); }  // said now, not after the work
  std::string page = fmt::format(kIntroduction, kSmallestSide, kBlocks, kBlastSteps);
  for (std::size_t i = 0; i < arguments.models.size(); ++i) {
    const std::filesystem::path path = arguments.models[i];
    const CompressedModel model = CompressedModel::open(path);
    std::optional<CalibrationFolder> statistics;
    if (!arguments.calibrations.empty() && arguments.calibrations[i] != "none")
      statistics.emplace(arguments.calibrations[i]);
    std::vector<std::unique_ptr<StoredMatrix>> matrices;
    for (const std::string& name : model.names())
      if (auto matrix = StoredMatrix::open(model, name);
          matrix != nullptr && std::min(matrix->shape().rows, matrix->shape().cols) >= kSmallestSide)
        matrices.push_back(std::move(matrix));
    if (matrices.empty())
      throw ValueError(fmt::format("'{}' has no matrix with sides of at least {}", path.string(), kSmallestSide));
    std::vector<Measured> measured(matrices.size());
    const Execution one = how.serial();
    parallel_for(how, static_cast<index_t>(matrices.size()), [&](index_t m) {
      const StoredMatrix& matrix = *matrices[static_cast<std::size_t>(m)];
      const auto gram = statistics ? statistics->find(matrix.name()).gram : nullptr;
      measured[static_cast<std::size_t>(m)] = measure(matrix.name(), matrix.view(), gram.get(), one);
    });
    const std::string name =
        std::filesystem::is_directory(path) ? path.filename().string() : path.parent_path().filename().string();
    const std::string text =
        fmt::format("\n## {}\n\n{}\n{}", name.empty() ? path.string() : name, summary(measured), winners(measured));
    fmt::print("{}", text);
    std::fflush(stdout);
    page += text;
  }
  write_file_atomically(arguments.out, page);
  return 0;
}

}  // namespace example
