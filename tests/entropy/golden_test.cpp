// SPDX-License-Identifier: Apache-2.0
/// Every golden case of the entropy scorers, driven by the manifest: Gardener's notebook, numpy and scipy, EntroDrop.

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "blockpack/entropy.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

using namespace blockpack;
using nlohmann::json;

namespace {

template <class T>
test::GoldenArray<T> read(const json& name) {
  return test::read_npy<T>(test::golden_folder("entropy_and_lossless") + name.get<std::string>());
}

#define CHECK_WITHIN(value, expected, tolerance)                   \
  do {                                                             \
    const double got_ = (value), want_ = (expected).get<double>(); \
    CAPTURE(#value, got_, want_);                                  \
    CHECK(test::within(got_, want_, tolerance));                   \
  } while (false)

void check_statistics(const WeightBlock& block, const ValueGrid& grid, const json& expected, const json& tolerance) {
  const GardenerScore score = gardener_score(block, grid);
  const WeightStatistics s = weight_statistics(block);
  const std::map<std::string, double> figures{{"entropy_number_nats", score.score()},
                                              {"efficiency", score.efficiency},
                                              {"entropy_value_nats", s.value_entropy},
                                              {"distinct", static_cast<double>(score.entropy.distinct)},
                                              {"abs_max", s.abs_max},
                                              {"abs_mean", s.abs_mean},
                                              {"abs_var", s.abs_variance},
                                              {"abs_std", s.abs_std()},
                                              {"kurtosis_excess", s.kurtosis_excess},
                                              {"l1", s.l1},
                                              {"l2", s.l2}};
  for (const auto& [name, value] : expected.items()) {
    CAPTURE(name);
    CHECK_WITHIN(figures.at(name), value, tolerance);
  }
  CHECK(expected.size() == figures.size());
  CHECK(score.entropy.count == static_cast<std::uint64_t>(block.size()));
  CHECK_FALSE(score.has_nan);
}

void check_weight_number_entropy(const json& c) {
  const json &outputs = c.at("outputs"), &tolerance = c.at("tolerance");
  if (!c.at("params").contains("input")) {  // float32 as stored: nearly every value is distinct
    const auto w = read<float>(c.at("inputs").at(0));
    const WeightBlock block(std::span<const float>(w.values));
    check_statistics(block, ValueGrid::as_stored(), outputs, tolerance);
    CHECK(gardener_score(block, ValueGrid::as_stored()).saturated);
    return;
  }
  REQUIRE(c.at("params").at("input") == "fp16 bit patterns");
  std::vector<std::vector<fp16>> data;
  for (const auto& name : c.at("inputs")) data.push_back(read<fp16>(name).values);
  std::vector<WeightBlock> blocks;
  for (const auto& values : data) blocks.emplace_back(std::span<const fp16>(values));
  std::vector<double> scores;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    CAPTURE(i);
    check_statistics(blocks[i], ValueGrid::automatic(), outputs.at("per_block").at(i), tolerance);
    scores.push_back(gardener_score(blocks[i]).score());
  }
  const PooledEntropyGap gap = pooled_entropy_gap(blocks);
  const json& pooled = outputs.at("mutual_information_number_nats");
  for (index_t i = 0; i < gap.blocks; ++i)
    for (index_t j = 0; j < gap.blocks; ++j) {
      const json& expected = pooled.at(static_cast<std::size_t>(i)).at(static_cast<std::size_t>(j));
      CAPTURE(i, j);
      CHECK(expected.is_null() == (i == j));
      if (i != j) CHECK_WITHIN(gap(i, j), expected, tolerance);
    }
  const std::vector<double> normalised = normalised_scores(scores);
  for (std::size_t i = 0; i < scores.size(); ++i)
    CHECK_WITHIN(normalised[i], outputs.at("normalised_entropy").at(i), tolerance);
  CHECK(json(removal_order(scores)) == outputs.at("removal_order_ascending_entropy_0based"));
  CHECK(block_scores(blocks, Scorer::weight_entropy) == scores);
  CHECK(outputs.size() == 4);
}

void check_histogram_entropy(const json& c) {
  const json& tolerance = c.at("tolerance");
  REQUIRE(tolerance.at("counts") == "exact");
  const auto data = read<float>(c.at("inputs").at(0));
  const std::span<const float> sample(data.values);
  const std::map<std::string, BinRule> rules{{"fd", BinRule::freedman_diaconis}, {"sturges", BinRule::sturges},
                                             {"scott", BinRule::scott},          {"rice", BinRule::rice},
                                             {"sqrt", BinRule::square_root},     {"doane", BinRule::doane},
                                             {"auto", BinRule::automatic}};
  const std::map<std::string, std::function<double()>> differential{
      {"vasicek", [&] { return spacing_entropy(sample, SpacingEstimator::vasicek); }},
      {"van_es", [&] { return spacing_entropy(sample, SpacingEstimator::van_es); }},
      {"ebrahimi", [&] { return spacing_entropy(sample, SpacingEstimator::ebrahimi); }},
      {"correa", [&] { return spacing_entropy(sample, SpacingEstimator::correa); }},
      {"gaussian_fit", [&] { return gaussian_entropy(sample); }}};
  for (const auto& [name, expected] : c.at("outputs").items()) {
    CAPTURE(name);
    HistogramOptions options;
    if (name == "bins64_range_-1_1_outside_dropped") {
      options.bins = 64;
      options.range = ValueRange{-1, 1};
      const Histogram h = histogram(sample, options);
      CHECK_WITHIN(h.entropy().bits(), expected.at("H_bits"), tolerance);
      CHECK(h.entropy().count == expected.at("total").get<std::uint64_t>());
      CHECK(h.entropy().count + h.outside == sample.size());
    } else if (name.rfind("bins", 0) == 0) {
      options.bins = std::stol(name.substr(4));
      const Histogram h = histogram(sample, options);
      REQUIRE(h.bins() == options.bins);
      const std::vector<std::uint64_t> first(h.counts.begin(), h.counts.begin() + 16);
      CHECK(json(first) == expected.at("counts_first16"));
      CHECK_WITHIN(h.entropy().bits(), expected.at("H_bits"), tolerance);
      CHECK_WITHIN(h.entropy().plug_in, expected.at("H_nats"), tolerance);
      CHECK_WITHIN(h.entropy().miller_madow, expected.at("miller_madow_nats"), tolerance);
    } else if (name.rfind("rule_", 0) == 0) {
      options.rule = rules.at(name.substr(5));
      const Histogram h = histogram(sample, options);
      CHECK(h.bins() == expected.at("bins").get<index_t>());
      CHECK_WITHIN(h.entropy().bits(), expected.at("H_bits"), tolerance);
      CHECK_WITHIN(h.range.low, expected.at("left"), tolerance);
      CHECK_WITHIN(h.range.high, expected.at("right"), tolerance);
    } else {
      const std::string estimator = name.substr(13, name.size() - 13 - 5);  // differential_…_nats
      CHECK_WITHIN(differential.at(estimator)(), expected, tolerance);
    }
  }
}

void check_activation_entropy(const json& c) {
  const json &outputs = c.at("outputs"), &params = c.at("params"), &tolerance = c.at("tolerance");
  const auto x = read<float>(c.at("inputs").at(0));
  const auto y = read<float>(c.at("inputs").at(1));
  const MatrixView<const float> before(x.values.data(), x.rows, x.cols), after(y.values.data(), y.rows, y.cols);
  ActivationEntropy bins, neighbours{ActivationEntropy::Kind::neighbours}, renyi{ActivationEntropy::Kind::renyi};
  bins.bins = params.at("bins");
  neighbours.k = params.at("k");
  renyi.alpha = params.at("renyi_alpha");
  std::map<std::string, double> figures{{"binning_H_X_nats", activation_entropy(before, bins)},
                                        {"binning_H_Y_nats", activation_entropy(after, bins)},
                                        {"binning_gain", entropy_increase(before, after, bins)},
                                        {"knn_H_X_nats", activation_entropy(before, neighbours)},
                                        {"knn_H_Y_nats", activation_entropy(after, neighbours)},
                                        {"renyi_X", activation_entropy(before, renyi)},
                                        {"renyi_Y", activation_entropy(after, renyi)},
                                        {"cosine_importance", block_influence(before, after).value}};
  for (const auto& [name, expected] : outputs.items()) {
    CAPTURE(name);
    if (name == "binning_H_Y_per_dim") {
      const MarginalEntropy h = marginal_bin_entropy(after, bins.bins);
      REQUIRE(h.per_column.size() == expected.size());
      for (std::size_t j = 0; j < expected.size(); ++j) CHECK_WITHIN(h.per_column[j], expected.at(j), tolerance);
    } else {
      CHECK_WITHIN(figures.at(name), expected, tolerance);
    }
  }
  CHECK(outputs.size() == figures.size() + 1);
}

void check_field_entropies(const json& c) {
  const json &bits = c.at("outputs").at("field_entropy_bits"), &tolerance = c.at("tolerance").at("entropies");
  const auto w = read<bf16>(c.at("inputs").at(0));
  CHECK(c.at("outputs").at("n") == w.values.size());
  const FieldEntropies h = field_entropies(WeightBlock(std::span<const bf16>(w.values)));
  const std::map<std::string, double> figures{{"H_sign", h.sign},
                                              {"H_exponent", h.exponent},
                                              {"H_mantissa", h.mantissa},
                                              {"H_joint16", h.joint},
                                              {"H_high_byte", h.high_byte},
                                              {"H_low_byte", h.low_byte},
                                              {"distinct_exponents", h.distinct_exponents}};
  for (const auto& [name, expected] : bits.items()) {
    CAPTURE(name);
    CHECK_WITHIN(figures.at(name), expected, tolerance);
  }
  CHECK(bits.size() == figures.size());
  json counts = json::object();
  for (std::size_t e = 0; e < h.exponent_counts.size(); ++e)
    if (h.exponent_counts[e] != 0) counts[std::to_string(e)] = h.exponent_counts[e];
  CHECK(counts == c.at("outputs").at("exponent_counts"));
}

/// Runs a check on every case of one kind. The folder has kinds that others read, and kinds that no test reads yet.
void check_every(const std::string& kind, void (*check)(const json&), std::size_t ours) {
  const std::set<std::string> known{"weight_number_entropy",
                                    "histogram_entropy",
                                    "activation_entropy_increase",
                                    "bf16_lossless",
                                    "npy",  // io
                                    "enec_bf16_sections",
                                    "enec_search_fp16",
                                    "enec_search_fp32",
                                    "gaussian_conditional_rans",
                                    "pmf_to_quantized_cdf",
                                    "shared_template_fit"};
  std::size_t cases = 0;
  for (const json& c : test::golden_cases("entropy_and_lossless")) {
    const std::string id = c.at("id"), found = c.at("kind");
    CAPTURE(id, found);
    REQUIRE(known.count(found) == 1);
    if (found != kind) continue;
    check(c);
    ++cases;
  }
  REQUIRE(test::golden_complete(cases, ours));
}

}  // namespace

TEST_CASE("Gardener's scores are those of its notebook", "[entropy][golden]") {
  check_every("weight_number_entropy", check_weight_number_entropy, 3);
}

TEST_CASE("histograms and differential entropies are those of numpy and scipy", "[entropy][golden]") {
  check_every("histogram_entropy", check_histogram_entropy, 5);
}

TEST_CASE("activation entropies are those of EntroDrop", "[entropy][golden]") {
  check_every("activation_entropy_increase", check_activation_entropy, 2);
}

TEST_CASE("the entropies of the fields of bf16 are those of scipy", "[entropy][golden]") {
  check_every("bf16_lossless", check_field_entropies, 10);
}
