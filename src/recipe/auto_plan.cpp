// SPDX-License-Identifier: Apache-2.0
#include "blockpack/recipe/auto_plan.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <optional>

#include "blockpack/io/sharded.hpp"
#include "blockpack/recipe/frontier.hpp"
#include "recipe/measured_error.hpp"
#include "recipe/model_format.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

constexpr std::size_t kUnits = 16384;  // the budget, in grains of the table
constexpr std::string_view kAuto = "auto:", kShare = "structured:";

bool is_target(std::string_view scheme) { return scheme.starts_with(kAuto) || scheme.starts_with(kShare); }

/// What remains of a matrix, in weights of bf16, and the forms for some more and some less of it.
double share_left(const std::string& target) { return 1.0 - parse_scheme(target).target / 100.0; }
std::vector<std::string> share_menu(MatrixShape shape, double share) {
  std::vector<std::string> menu;
  for (const double part : {0.6, 0.8, 1.0, 1.25, 1.5})
    if (part * share <= 1.0)
      for (std::string& scheme : structured_menu(shape, part * share, "bf16", "+whiten"))
        menu.push_back(std::move(scheme));
  menu.push_back("bf16");
  return menu;
}

std::vector<std::string> default_menu() {
  std::vector<std::string> menu;
  for (const int bits : {2, 3, 4})
    for (const int group : {128, 64, 32}) menu.push_back(fmt::format("int{}-g{}+gptq", bits, group));
  menu.push_back("int8-g128");
  return menu;
}

/// Σ importance · (w - ŵ)², row by row.
double squared_error(MatrixView<const float> w, const AnyLinear& candidate, MatrixView<const float> importance,
                     const Execution& how) {
  std::vector<double> sums(static_cast<std::size_t>(w.rows()));
  parallel_for(how, w.rows(), [&](index_t i) {
    std::vector<float> decoded(static_cast<std::size_t>(w.cols()));
    candidate.decode_rows(std::span(&i, 1), MatrixView<float>(decoded.data(), 1, w.cols()));
    double sum = 0;
    for (index_t j = 0; j < w.cols(); ++j) {
      const double error = static_cast<double>(w(i, j)) - static_cast<double>(decoded[static_cast<std::size_t>(j)]);
      const double weight =
          importance.empty() ? 1.0 : static_cast<double>(importance(importance.rows() == 1 ? 0 : i, j));
      sum += weight * error * error;
    }
    sums[static_cast<std::size_t>(i)] = sum;
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace

std::vector<std::size_t> choose_entries(std::span<const std::vector<PlanEntry>> tensors, double budget) {
  double smallest = 0;
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    double least = std::numeric_limits<double>::infinity();
    for (const PlanEntry& e : tensors[t]) {
      if (!(e.bits >= 0) || !(e.loss >= 0) || !std::isfinite(e.bits) || !std::isfinite(e.loss))
        throw ValueError(fmt::format("choose_entries: bits or loss of tensor {} are negative or not finite", t));
      least = std::min(least, e.bits);
    }
    if (tensors[t].empty()) throw ValueError(fmt::format("choose_entries: tensor {} has no entries", t));
    smallest += least;
  }
  const auto refuse = [&] {
    throw ValueError(fmt::format("choose_entries: a budget of {:.0f} bits, at least {:.0f} needed", budget, smallest));
  };
  if (!(smallest <= budget)) refuse();
  const double grain = budget / static_cast<double>(kUnits);
  const auto units = [&](double bits) {
    return grain == 0 ? std::size_t{0} : static_cast<std::size_t>(std::ceil(bits / grain - 1e-9));
  };
  constexpr double kNever = std::numeric_limits<double>::infinity();
  // loss[u]: the least loss of the tensors so far within u units.
  std::vector<double> loss(kUnits + 1, 0.0), next;
  std::vector<std::vector<std::uint16_t>> chosen;
  for (const std::vector<PlanEntry>& entries : tensors) {
    next.assign(kUnits + 1, kNever);
    chosen.emplace_back(kUnits + 1);
    for (std::size_t e = 0; e < entries.size(); ++e)
      for (std::size_t u = units(entries[e].bits); u <= kUnits; ++u) {
        const double sum = loss[u - units(entries[e].bits)] + entries[e].loss;
        if (!(sum < next[u])) continue;
        next[u] = sum;
        chosen.back()[u] = static_cast<std::uint16_t>(e);
      }
    loss.swap(next);
  }
  if (loss[kUnits] == kNever) refuse();  // within a grain of the smallest
  std::vector<std::size_t> choice(tensors.size());
  std::size_t left = kUnits;
  for (std::size_t t = tensors.size(); t-- > 0;) {
    choice[t] = chosen[t][left];
    left -= units(tensors[t][choice[t]].bits);
  }
  return choice;
}

bool has_auto(const Recipe& recipe) {
  bool found = is_target(recipe.default_scheme);
  for (const RecipeRule& rule : recipe.rules) found = found || is_target(rule.scheme);
  return found;
}

Recipe resolve_auto(const std::filesystem::path& in, const Recipe& recipe, const AutoPlanOptions& options,
                    const Registry& registry) {
  const TensorStore store = TensorStore::open(in);
  std::vector<Tensor> tensors;
  std::vector<RecipeTensor> names;
  for (const std::string& name : store.names()) tensors.push_back(store.tensor(name));
  for (const Tensor& t : tensors) names.push_back({t.name, recipe_detail::is_matrix(t.spec())});
  const std::vector<std::string> plan = plan_recipe(recipe, names);
  const std::vector<std::string> given = options.menu.empty() ? default_menu() : options.menu;

  std::map<std::string, std::vector<std::size_t>> targets;  // scheme string -> tensors
  for (std::size_t i = 0; i < tensors.size(); ++i)
    if (is_target(plan[i])) targets[plan[i]].push_back(i);
  std::vector<std::string> resolved = plan;
  std::size_t done = 0;
  for (const auto& [target, members] : targets) {
    std::vector<std::vector<PlanEntry>> entries;
    std::vector<std::vector<std::string>> schemes;
    double weights = 0;
    const bool share = target.starts_with(kShare);
    const double budget = share ? 16.0 * share_left(target) : parse_scheme(target).target;
    for (const std::size_t i : members) {
      options.execution.throw_if_stopped();
      options.execution.report(static_cast<double>(done++) / static_cast<double>(tensors.size()));
      const MatrixShape shape = matrix_shape(tensors[i].shape);
      auto values = AlignedBuffer<float>::uninitialized(checked_mul(shape.rows, shape.cols, "resolve_auto"));
      const MatrixView<float> w(values.data(), shape.rows, shape.cols);
      read_rows_f32(tensors[i], 0, w, Pages::keep);
      const TensorCalibration calibration =
          options.calibration ? options.calibration(tensors[i].name) : TensorCalibration{};
      entries.emplace_back();
      schemes.emplace_back();
      weights += static_cast<double>(shape.rows) * static_cast<double>(shape.cols);
      std::optional<recipe_detail::MeasuredError> output;
      if (share) output.emplace(w, calibration.gram.get(), options.execution);
      for (const std::string& scheme : share ? share_menu(shape, share_left(target)) : given) {
        std::shared_ptr<const Codec> codec = registry.codec(scheme);
        if (calibration.lacks(codec->needs())) codec = registry.codec(codec->format());
        EncodeOptions encode;
        encode.execution = options.execution.quiet();
        calibration.only(codec->needs()).give(encode);
        try {
          const AnyLinear candidate = encode_matrix(*fitted(codec, w, encode), w, encode);
          const double loss = options.loss ? options.loss(tensors[i].name, candidate)
                              : share      ? output->squared(candidate)
                                           : squared_error(w, candidate, calibration.importance, encode.execution);
          entries.back().push_back({8.0 * static_cast<double>(candidate.storage_bytes()), std::max(loss, 0.0)});
        } catch (const ValueError& error) {
          throw ValueError(fmt::format("tensor '{}': {}", tensors[i].name, error.what()));
        }
        schemes.back().push_back(codec->scheme());
      }
    }
    std::vector<std::size_t> choice;
    try {
      choice = choose_entries(entries, budget * weights);
    } catch (const ValueError& error) {
      throw ValueError(fmt::format("recipe: {} cannot be reached with {}: {}", target,
                                   share ? "structured forms" : fmt::format("{}", fmt::join(given, ", ")),
                                   error.what()));
    }
    for (std::size_t m = 0; m < members.size(); ++m) resolved[members[m]] = schemes[m][choice[m]];
  }
  options.execution.report(1.0);
  Recipe result;
  result.name = recipe.name;
  for (std::size_t i = 0; i < tensors.size(); ++i)
    if (!resolved[i].empty()) result.rules.push_back({{tensors[i].name}, resolved[i]});
  return result;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
