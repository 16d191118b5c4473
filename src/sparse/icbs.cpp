// SPDX-License-Identifier: Apache-2.0
#include "blockpack/sparse/prune/icbs.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <memory>
#include <numeric>
#include <string>
#include <utility>

#include "quant/hessian.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

constexpr index_t kEnumerated = 16;

/// A share of n, rounded.
index_t share_of(double share, index_t n) { return static_cast<index_t>(std::lround(share * static_cast<double>(n))); }

}  // namespace

void empirical_fisher(MatrixView<const float> samples, std::span<double> g, MatrixView<double> h) {
  const index_t n = samples.cols();
  detail::check_length("empirical_fisher", "g", g.size(), n);
  if (h.shape() != MatrixShape{n, n})
    throw ShapeError("empirical_fisher: h is " + to_string(h.shape()) + ", " + to_string(MatrixShape{n, n}) +
                     " needed");
  if (samples.rows() == 0) throw ShapeError("empirical_fisher: no samples");
  std::fill(g.begin(), g.end(), 0.0);
  for (index_t i = 0; i < n; ++i) std::fill_n(h.row_data(i), n, 0.0);
  const double weight = 1.0 / static_cast<double>(samples.rows());
  for (index_t s = 0; s < samples.rows(); ++s) {
    const float* sample = samples.row_data(s);
    for (index_t i = 0; i < n; ++i) {
      const double scaled = weight * static_cast<double>(sample[i]);
      g[static_cast<std::size_t>(i)] += scaled;
      double* row = h.row_data(i);
      for (index_t j = 0; j <= i; ++j) row[j] += scaled * static_cast<double>(sample[j]);
    }
  }
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < i; ++j) h(j, i) = h(i, j);
}

IcbsModel icbs_layer_model(MatrixView<const float> w, const GramMatrix& x) {
  struct Layer {
    MatrixView<const float> w;
    std::vector<float> original;
    std::vector<double> h;  ///< 2 XᵀX

    /// w - w0 of a row.
    std::vector<double> difference(index_t row) const {
      std::vector<double> d;
      for (index_t j = 0; j < w.cols(); ++j)
        d.push_back(static_cast<double>(w(row, j)) -
                    static_cast<double>(original[static_cast<std::size_t>(row * w.cols() + j)]));
      return d;
    }
    std::span<const double> row(index_t j) const {
      return std::span(h).subspan(static_cast<std::size_t>(j * w.cols()), static_cast<std::size_t>(w.cols()));
    }
  };
  if (x.in_features() != w.cols())
    throw ShapeError("icbs_layer_model: x has " + std::to_string(x.in_features()) + " features, w has " +
                     std::to_string(w.cols()) + " columns");
  const auto layer = std::make_shared<Layer>();
  layer->w = w;
  for (index_t i = 0; i < w.rows(); ++i)
    layer->original.insert(layer->original.end(), w.row_data(i), w.row_data(i) + w.cols());
  layer->h.resize(static_cast<std::size_t>(checked_mul(w.cols(), w.cols(), "icbs_layer_model")));
  x.copy_to(MatrixView<double>(layer->h.data(), w.cols(), w.cols()), 2.0);

  IcbsModel model;
  model.local = [layer](std::size_t, Coordinates block, std::span<double> g, MatrixView<double> h) {
    const index_t in = layer->w.cols();
    std::vector<std::vector<double>> differences(static_cast<std::size_t>(layer->w.rows()));
    for (std::size_t i = 0; i < block.size(); ++i) {
      std::vector<double>& d = differences[static_cast<std::size_t>(block[i] / in)];
      if (d.empty()) d = layer->difference(block[i] / in);
      const std::span<const double> row = layer->row(block[i] % in);
      g[i] = detail::dot(row, d);
      for (std::size_t j = 0; j < block.size(); ++j)
        h(static_cast<index_t>(i), static_cast<index_t>(j)) =
            block[i] / in == block[j] / in ? row[static_cast<std::size_t>(block[j] % in)] : 0.0;
    }
  };
  model.gradient = [layer](std::size_t, MatrixView<float> g) {
    for (index_t i = 0; i < g.rows(); ++i) {
      const std::vector<double> d = layer->difference(i);
      for (index_t j = 0; j < g.cols(); ++j) g(i, j) = static_cast<float>(detail::dot(layer->row(j), d));
    }
  };
  model.loss = [layer] {
    double sum = 0.0;
    for (index_t i = 0; i < layer->w.rows(); ++i) {
      const std::vector<double> d = layer->difference(i);
      for (index_t j = 0; j < layer->w.cols(); ++j)
        sum += 0.5 * d[static_cast<std::size_t>(j)] * detail::dot(layer->row(j), d);
    }
    return sum;
  };
  return model;
}

IcbsQuadratic icbs_quadratic(std::span<const double> original, std::span<const double> current,
                             std::span<const double> g, MatrixView<const double> h, const IcbsOptions& options) {
  const auto n = static_cast<index_t>(original.size());
  detail::check_length("icbs_quadratic", "current", current.size(), n);
  detail::check_length("icbs_quadratic", "g", g.size(), n);
  if (h.shape() != MatrixShape{n, n})
    throw ShapeError("icbs_quadratic: h is " + to_string(h.shape()) + ", " + to_string(MatrixShape{n, n}) + " needed");
  std::vector<double> dw;
  for (std::size_t i = 0; i < original.size(); ++i) dw.push_back(current[i] - original[i]);
  IcbsQuadratic r;
  double sum = 0.0;
  std::size_t count = 0;
  for (std::size_t i = 0; i < original.size(); ++i) {
    const std::span<const double> row = h.row(static_cast<index_t>(i));
    const double image = detail::dot(row, dw), w0 = original[i];
    for (std::size_t j = 0; j < original.size(); ++j) {
      double v = 0.5 * (w0 * original[j]) * row[j];
      if (i == j) v += w0 * (image - options.gradient * g[i] + options.ridge * (2.0 * dw[i] + w0));
      r.q.push_back(v);
      sum += std::fabs(v);
      count += v != 0.0 ? 1 : 0;
    }
    r.constant += dw[i] * (0.5 * image - options.gradient * g[i] + options.ridge * dw[i]);
  }
  if (count > 0) r.unit = sum / static_cast<double>(count);
  for (double& v : r.q) {
    v /= r.unit;
    if ((options.compat ? v : std::fabs(v)) <= 1e-12) v = 0.0;
  }
  return r;
}

std::vector<std::size_t> icbs_schedule(std::span<const index_t> sizes, index_t steps, index_t min_steps,
                                       Random& random) {
  if (min_steps < 0 || steps < min_steps * static_cast<index_t>(sizes.size()))
    throw ValueError("icbs_schedule: " + std::to_string(steps) + " steps, at least " + std::to_string(min_steps) +
                     " for each of " + std::to_string(sizes.size()) + " layers needed");
  std::vector<std::size_t> order;
  if (sizes.empty()) return order;
  double sum = 0.0;
  const auto weight = [](index_t size) { return std::log10(static_cast<double>(std::max<index_t>(size, 2))); };
  for (const index_t size : sizes) sum += weight(size);
  std::vector<index_t> counts;
  for (const index_t size : sizes) counts.push_back(std::max(min_steps, share_of(weight(size) / sum, steps)));
  index_t total = std::accumulate(counts.begin(), counts.end(), index_t{0});
  for (; total > steps; --total) --*std::max_element(counts.begin(), counts.end());
  for (; total < steps; ++total) ++*std::min_element(counts.begin(), counts.end());
  for (std::size_t l = 0; l < counts.size(); ++l) order.insert(order.end(), static_cast<std::size_t>(counts[l]), l);
  for (std::size_t k = order.size(); k > 1; --k)
    std::swap(order[k - 1], order[random.below(static_cast<std::uint32_t>(k))]);
  return order;
}

class Icbs::State {
 public:
  State(std::vector<IcbsLayer> layers, IcbsModel model, const IcbsOptions& options, const Execution& how);
  IcbsStep step(std::size_t layer, const Execution& how);
  IcbsReport run(const Execution& how);
  Mask mask(std::size_t layer) const;

 private:
  struct Layer {
    MatrixView<float> w;
    std::vector<double> column_norms;
    std::vector<float> original;
    std::vector<std::uint8_t> pruned, free, resting;
    index_t free_count = 0;
    std::deque<index_t> tabu;

    float& at(index_t k) const { return w(k / w.cols(), k % w.cols()); }
    void set(index_t k, bool prune) {
      const auto i = static_cast<std::size_t>(k);
      pruned[i] = prune ? 1 : 0;
      at(k) = prune ? 0.0f : original[i];
    }
  };

  std::vector<float> scores(std::size_t layer, IcbsScore score);
  void fix(Layer& layer, std::span<const float> scores);
  std::vector<index_t> choose(const Layer& layer, std::span<const float> scores) const;
  std::vector<index_t> choose_groups(const Layer& layer, std::span<const float> scores) const;
  std::vector<std::uint8_t> solve(const IcbsQuadratic& quadratic, std::vector<std::uint8_t> x,
                                  std::span<const std::uint8_t> costless, Coordinates groups, const Execution& how);
  /// Of an N:M pattern, counted over the layer.
  index_t group_of(const Layer& layer, index_t k) const {
    const index_t in = layer.w.cols();
    return k / in * ceil_div(in, options_.pattern.of) + k % in / options_.pattern.of;
  }
  bool in_groups() const noexcept { return options_.pattern.scope == MaskScope::group; }

  IcbsOptions options_;
  IcbsModel model_;
  std::vector<Layer> layers_;
  Random random_;
  std::uint64_t solved_ = 0;
};

Icbs::State::State(std::vector<IcbsLayer> layers, IcbsModel model, const IcbsOptions& options, const Execution& how)
    : options_(options), model_(std::move(model)), random_(options.seed) {
  const auto share = [](double v) { return v >= 0.0 && v <= 1.0; };
  if (options.block < 1 || options.pruned < 0 || options.pruned > options.block || options.passes < 0 ||
      options.steps < 0 || options.min_steps < 0)
    throw ValueError("Icbs: block >= 1, 0 <= pruned <= block, and passes, steps, min_steps >= 0 needed");
  if (!share(options.tabu) || !share(options.fix_pruned) || !share(options.fix_kept) || !(options.ridge >= 0.0) ||
      !std::isfinite(options.ridge) || !std::isfinite(options.gradient))
    throw ValueError("Icbs: tabu, fix_pruned, fix_kept from 0 to 1, ridge >= 0 and a finite gradient needed");
  if (options.pattern.scope == MaskScope::block) throw ValueError("Icbs: patterns of blocks are not kept by exchanges");
  if (in_groups() && options.remove_zero_rows) throw ValueError("Icbs: remove_zero_rows does not keep N:M patterns");
  if (!model_.local) throw ValueError("Icbs: the model has no local()");
  const auto uses = [&](IcbsScore s) { return options.start == s || options.choice == s; };
  if (uses(IcbsScore::gradient) && !model_.gradient)
    throw ValueError("Icbs: the model has no gradient(), which IcbsScore::gradient needs");
  for (IcbsLayer& given : layers) {
    quant::check_finite<float>("Icbs", given.w);
    if (uses(IcbsScore::wanda)) detail::check_length("Icbs", "column_norms", given.column_norms.size(), given.w.cols());
    Layer layer;
    layer.w = given.w;
    layer.column_norms = std::move(given.column_norms);
    for (index_t i = 0; i < given.w.rows(); ++i)
      layer.original.insert(layer.original.end(), given.w.row_data(i), given.w.row_data(i) + given.w.cols());
    layer.pruned.resize(layer.original.size());
    layer.resting.resize(layer.original.size());
    layer.free.resize(layer.original.size(), 1);
    layer.free_count = static_cast<index_t>(layer.free.size());
    layers_.push_back(std::move(layer));
  }
  if (model_.next_batch) model_.next_batch();
  // All scores are those of the whole model: no layer is pruned before.
  std::vector<std::vector<float>> all;
  for (std::size_t l = 0; l < layers_.size(); ++l) all.push_back(scores(l, options.start));
  std::vector<Mask> masks;
  for (std::size_t l = 0; l < layers_.size(); ++l)
    masks.push_back(select_mask(MatrixView<const float>(all[l].data(), layers_[l].w.rows(), layers_[l].w.cols()),
                                options.pattern, how));
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const index_t in = layers_[l].w.cols();
    for (index_t k = 0; k < layers_[l].free_count; ++k) layers_[l].set(k, !masks[l](k / in, k % in));
    fix(layers_[l], all[l]);
  }
}

std::vector<float> Icbs::State::scores(std::size_t l, IcbsScore score) {
  const Layer& layer = layers_[l];
  std::vector<float> values(layer.original.size());
  if (score == IcbsScore::random) {
    for (float& v : values) v = random_.uniform();
    return values;
  }
  const index_t in = layer.w.cols();
  if (score == IcbsScore::gradient) model_.gradient(l, MatrixView<float>(values.data(), layer.w.rows(), in));
  for (std::size_t k = 0; k < values.size(); ++k) {
    const float w = std::fabs(layer.original[k]);
    values[k] = score == IcbsScore::magnitude ? w
                : score == IcbsScore::gradient
                    ? std::fabs(layer.original[k] * values[k])
                    : static_cast<float>(static_cast<double>(w) * layer.column_norms[k % static_cast<std::size_t>(in)]);
    if (!std::isfinite(values[k])) throw ValueError("Icbs: a score of layer " + std::to_string(l) + " is not finite");
  }
  return values;
}

/// Takes weights out of the game.
void Icbs::State::fix(Layer& layer, std::span<const float> scores) {
  for (const bool prune : {true, false}) {
    std::vector<index_t> order;
    for (index_t k = 0; k < static_cast<index_t>(scores.size()); ++k)
      if ((layer.pruned[static_cast<std::size_t>(k)] != 0) == prune) order.push_back(k);
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) {
      const float x = scores[static_cast<std::size_t>(a)], y = scores[static_cast<std::size_t>(b)];
      return prune ? x < y : x > y;
    });
    order.resize(static_cast<std::size_t>(
        share_of(prune ? options_.fix_pruned : options_.fix_kept, static_cast<index_t>(order.size()))));
    for (const index_t k : order) layer.free[static_cast<std::size_t>(k)] = 0;
    layer.free_count -= static_cast<index_t>(order.size());
  }
}

std::vector<index_t> Icbs::State::choose(const Layer& layer, std::span<const float> scores) const {
  if (in_groups()) return choose_groups(layer, scores);
  const bool all = layer.free_count <= options_.block;
  std::vector<index_t> block;
  for (const bool prune : {true, false}) {
    std::vector<index_t> order;
    for (std::size_t k = 0; k < scores.size(); ++k)
      if ((layer.pruned[k] != 0) == prune && layer.free[k] != 0 && layer.resting[k] == 0)
        order.push_back(static_cast<index_t>(k));
    const auto before = [&](index_t a, index_t b) {
      const float x = scores[static_cast<std::size_t>(a)], y = scores[static_cast<std::size_t>(b)];
      return x != y ? (prune ? x > y : x < y) : a < b;
    };
    const index_t wanted = prune ? options_.pruned : options_.block - options_.pruned;
    const auto end = order.begin() +
                     (all ? static_cast<index_t>(order.size()) : std::min(wanted, static_cast<index_t>(order.size())));
    std::partial_sort(order.begin(), end, order.end(), before);
    block.insert(block.end(), order.begin(), end);
  }
  return block;
}

/// Whole groups, those first whose best pruned weight scores highest over their worst kept one.
std::vector<index_t> Icbs::State::choose_groups(const Layer& layer, std::span<const float> scores) const {
  struct Group {
    float gain;
    std::vector<index_t> members;
  };
  std::vector<Group> groups;
  const auto size = static_cast<index_t>(scores.size());
  for (index_t first = 0, next; first < size; first = next) {
    for (next = first + 1; next < size && group_of(layer, next) == group_of(layer, first);) ++next;
    std::vector<index_t> members;
    float pruned = -1.0f, kept = -1.0f;  // scores are not negative
    for (index_t k = first; k < next; ++k) {
      const auto at = static_cast<std::size_t>(k);
      if (layer.free[at] == 0 || layer.resting[at] != 0) continue;
      members.push_back(k);
      if (layer.pruned[at] != 0)
        pruned = std::max(pruned, scores[at]);
      else
        kept = kept < 0.0f ? scores[at] : std::min(kept, scores[at]);
    }
    if (pruned >= 0.0f && kept >= 0.0f) groups.push_back({pruned - kept, std::move(members)});
  }
  std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.gain > b.gain; });
  std::vector<index_t> block;
  for (const Group& group : groups) {
    if (static_cast<index_t>(block.size() + group.members.size()) > options_.block) break;
    block.insert(block.end(), group.members.begin(), group.members.end());
  }
  return block;
}

std::vector<std::uint8_t> Icbs::State::solve(const IcbsQuadratic& quadratic, std::vector<std::uint8_t> x,
                                             std::span<const std::uint8_t> costless, Coordinates groups,
                                             const Execution& how) {
  const auto n = static_cast<index_t>(x.size());
  index_t k = std::accumulate(x.begin(), x.end(), index_t{0});
  std::vector<std::uint8_t> result(x.size());
  std::vector<index_t> asked;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (costless[i] != 0 && k > 0) {
      result[i] = 1;
      --k;
    } else {
      asked.push_back(static_cast<index_t>(i));
    }
  }
  // The rest of the pruned, as they are; where costless weights were kept, the last of them go.
  std::vector<std::uint8_t> start;
  index_t left = k;
  for (const index_t i : asked) {
    start.push_back(x[static_cast<std::size_t>(i)] != 0 && left > 0 ? 1 : 0);
    left -= start.back();
  }
  const auto m = static_cast<index_t>(asked.size());
  std::vector<double> part;
  for (const index_t i : asked)
    for (const index_t j : asked) part.push_back(quadratic.q[static_cast<std::size_t>(i * n + j)]);
  const MatrixView<const double> q(part.data(), m, m);
  QcboAnnealing annealing = options_.annealing;
  annealing.seed += solved_++;
  const QcboSolution solution =
      m <= kEnumerated && groups.empty() ? qcbo_exhaustive(q, k) : qcbo_anneal(q, start, annealing, how, groups);
  for (std::size_t i = 0; i < asked.size(); ++i) result[static_cast<std::size_t>(asked[i])] = solution.x[i];
  return result;
}

IcbsStep Icbs::State::step(std::size_t l, const Execution& how) {
  if (l >= layers_.size())
    throw ValueError("Icbs::step: layer " + std::to_string(l) + ", there are " + std::to_string(layers_.size()));
  Layer& layer = layers_[l];
  if (model_.next_batch) model_.next_batch();
  IcbsStep step;
  step.block = choose(layer, scores(l, options_.choice));
  const auto n = static_cast<index_t>(step.block.size());
  if (n == 0) return step;
  std::vector<double> original, current, g(step.block.size()), memory(static_cast<std::size_t>(n * n));
  for (const index_t k : step.block) {
    step.pruned.push_back(layer.pruned[static_cast<std::size_t>(k)]);
    original.push_back(static_cast<double>(layer.original[static_cast<std::size_t>(k)]));
    current.push_back(static_cast<double>(layer.at(k)));
  }
  const MatrixView<double> h(memory.data(), n, n);
  model_.local(l, step.block, g, h);
  detail::check_finite("Icbs::step", "the gradient of the block", g);
  detail::check_qcbo("Icbs::step, the Hessian of the block", h);
  step.quadratic = icbs_quadratic(original, current, g, h, options_);
  std::vector<std::uint8_t> costless(step.block.size());
  if (options_.remove_zero_rows)
    for (index_t i = 0; i < n; ++i) {
      const std::span<const double> row = h.row(i);
      const auto at = static_cast<std::size_t>(i);
      costless[at] = original[at] == 0.0 || (options_.gradient * g[at] == 0.0 &&
                                             std::all_of(row.begin(), row.end(), [](double v) { return v == 0.0; }))
                         ? 1
                         : 0;
    }
  std::vector<index_t> groups;
  if (in_groups())
    for (const index_t k : step.block) groups.push_back(group_of(layer, k));
  const std::vector<std::uint8_t> x = solve(step.quadratic, step.pruned, costless, groups, how);

  std::vector<double> d;
  for (std::size_t i = 0; i < x.size(); ++i) d.push_back((x[i] != 0 ? 0.0 : original[i]) - current[i]);
  for (std::size_t i = 0; i < x.size(); ++i)
    step.change += d[i] * (options_.gradient * g[i] + 0.5 * detail::dot(h.row(static_cast<index_t>(i)), d));
  for (std::size_t i = 0; i < x.size(); ++i) layer.set(step.block[i], x[i] != 0);
  step.pruned = x;

  const index_t length = share_of(options_.tabu, layer.free_count);
  if (layer.free_count - length < options_.block) return step;
  for (const index_t k : step.block) {
    layer.tabu.push_back(k);
    layer.resting[static_cast<std::size_t>(k)] = 1;
  }
  while (static_cast<index_t>(layer.tabu.size()) > length) {
    layer.resting[static_cast<std::size_t>(layer.tabu.front())] = 0;
    layer.tabu.pop_front();
  }
  return step;
}

IcbsReport Icbs::State::run(const Execution& how) {
  const Execution quiet = how.quiet();
  IcbsReport report;
  if (model_.loss) report.losses.push_back(model_.loss());
  double lowest = report.losses.empty() ? 0.0 : report.losses.front();
  std::vector<index_t> sizes;
  for (const Layer& layer : layers_) sizes.push_back(static_cast<index_t>(layer.original.size()));
  for (index_t pass = 0; pass < options_.passes; ++pass) {
    std::vector<std::vector<std::uint8_t>> before;
    for (const Layer& layer : layers_) before.push_back(layer.pruned);
    const std::vector<std::size_t> order = icbs_schedule(sizes, options_.steps, options_.min_steps, random_);
    double change = 0.0;
    for (std::size_t k = 0; k < order.size(); ++k) {
      how.throw_if_stopped();
      change += step(order[k], quiet).change;
      how.report((static_cast<double>(pass) + static_cast<double>(k + 1) / static_cast<double>(order.size())) /
                 static_cast<double>(options_.passes));
    }
    report.changes.push_back(change);
    report.accepted.push_back(true);
    if (!model_.loss) continue;
    report.losses.push_back(model_.loss());
    if (report.losses.back() < lowest) {
      lowest = report.losses.back();
      continue;
    }
    report.accepted.back() = false;
    for (std::size_t l = 0; l < layers_.size(); ++l)
      for (std::size_t k = 0; k < before[l].size(); ++k) layers_[l].set(static_cast<index_t>(k), before[l][k] != 0);
  }
  return report;
}

Mask Icbs::State::mask(std::size_t l) const {
  const Layer& layer = layers_.at(l);
  return ~Mask::of_nonzeros(MatrixView<const std::uint8_t>(layer.pruned.data(), layer.w.rows(), layer.w.cols()));
}

Icbs::Icbs(std::vector<IcbsLayer> layers, IcbsModel model, const IcbsOptions& options, const Execution& how)
    : state_(std::make_unique<State>(std::move(layers), std::move(model), options, how.quiet())) {}
Icbs::Icbs(Icbs&&) noexcept = default;
Icbs::~Icbs() = default;
IcbsStep Icbs::step(std::size_t layer, const Execution& how) { return state_->step(layer, how.quiet()); }
IcbsReport Icbs::run(const Execution& how) { return state_->run(how); }
Mask Icbs::mask(std::size_t layer) const { return state_->mask(layer); }

}  // namespace blockpack::inline BLOCKPACK_ABI
