// SPDX-License-Identifier: Apache-2.0
/// The golden cases of magnitude, Wanda, SparseGPT and NoWag-P.

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "blockpack/sparse.hpp"
#include "quant/rounded.hpp"
#include "sparse/golden_support.hpp"
#include "support/catch.hpp"

using namespace blockpack;
using namespace blockpack::test;

namespace {

/// The reference counts what it removes of a group, and the fraction it removes.
bool is_group(const nlohmann::json& params) { return params.at("prune_m").get<index_t>() > 0; }
MaskPattern group_of(const nlohmann::json& params) {
  const index_t of = params.at("prune_m");
  return MaskPattern::nm(of - params.at("prune_n").get<index_t>(), of);
}
/// The fraction kept where the reference prunes up to its threshold, element int(n * sparsity) of the sorted scores,
/// and the threshold too.
double density_below_threshold(index_t n, double sparsity) {
  return static_cast<double>(n - static_cast<index_t>(static_cast<double>(n) * sparsity) - 1) / static_cast<double>(n);
}

Mask mask_of(const nlohmann::json& one_case, const char* name) {
  const auto kept = array_of<std::uint8_t>(one_case, "outputs", name);
  return Mask::of_nonzeros(kept.view());
}

/// The calibration data of a case, one call for each sample.
template <class Statistics>
Statistics statistics_of(const nlohmann::json& one_case) {
  const auto x = array_of<float>(one_case, "inputs", "X");
  Statistics statistics(x.cols);
  const index_t tokens = one_case.at("inputs").at("X").at("shape").at(1);
  for (index_t t = 0; t < x.rows; t += tokens) statistics.add(x.view().rows_from(t, tokens), kSerial);
  return statistics;
}

template <class T>
std::vector<T> masked(const GoldenArray<T>& w, const Mask& mask) {
  std::vector<T> values = w.values;
  mask.apply(MatrixView<T>(values.data(), w.rows, w.cols));
  return values;
}

}  // namespace

TEST_CASE("magnitude pruning gives the weights of the reference", "[sparse][golden]") {
  const std::size_t count = each_case("magnitude_", [](const nlohmann::json& c, const nlohmann::json& params) {
    const auto w = array_of<float>(c, "inputs", "W"), expected = array_of<float>(c, "outputs", "W_pruned");
    const MaskPattern pattern =
        is_group(params) ? group_of(params)
                         : MaskPattern::layer(density_below_threshold(w.rows * w.cols, params.at("sparsity")));
    CHECK(masked(w, prune_mask(w.view(), magnitude(), pattern)) == expected.values);
  });
  REQUIRE(golden_complete(count, 6));
}

TEST_CASE("Wanda gives the column norms, masks and weights of the reference", "[sparse][golden]") {
  const std::size_t count = each_case("wanda_", [](const nlohmann::json& c, const nlohmann::json& params) {
    const auto w = array_of<float>(c, "inputs", "W"), expected = array_of<float>(c, "outputs", "W_pruned");
    const auto scaler = array_of<float>(c, "outputs", "scaler_row");
    const auto stats = statistics_of<ColumnStats>(c);
    const double samples = params.at("nsamples");
    for (index_t j = 0; j < w.cols; ++j)
      CHECK(stats.l2_norm(j) * stats.l2_norm(j) / samples ==
            Approx(scaler.values[static_cast<std::size_t>(j)]).epsilon(1e-5));
    const MaskPattern pattern =
        is_group(params) ? group_of(params) : MaskPattern::rows(1.0 - params.at("sparsity").get<double>());
    const Mask mask = prune_mask(w.view(), wanda(stats), pattern);
    CHECK(mask == mask_of(c, "mask_keep"));
    CHECK(prune_mask(w.view(), wanda(statistics_of<GramMatrix>(c)), pattern) == mask);
    CHECK(masked(w, mask) == expected.values);
  });
  REQUIRE(golden_complete(count, 6));
}

TEST_CASE("NoWag-P gives the norms, masks and weights of the reference", "[sparse][golden]") {
  const std::size_t count = each_case("nowagp_", [](const nlohmann::json& c, const nlohmann::json& params) {
    const auto w = array_of<double>(c, "inputs", "W"), h = array_of<double>(c, "inputs", "h");
    const auto column = array_of<double>(c, "outputs", "col_norm"), row = array_of<double>(c, "outputs", "row_norm");
    const auto w_hat = array_of<double>(c, "outputs", "W_hat");
    const NowagNorms norms = nowag_norms(w.view());
    for (std::size_t j = 0; j < norms.column.size(); ++j) CHECK(std::fabs(norms.column[j] - column.values[j]) <= 1e-10);
    for (std::size_t i = 0; i < norms.row.size(); ++i) CHECK(std::fabs(norms.row[i] - row.values[i]) <= 1e-10);
    const MaskPattern pattern = params.contains("pattern")
                                    ? MaskPattern::nm(params.at("pattern").at(0), params.at("pattern").at(1))
                                    : MaskPattern::layer(params.at("frac_sparse"));
    const Mask mask = prune_mask(w.view(), nowag<double>(w.view(), h.values), pattern);
    CHECK(mask == mask_of(c, "mask"));
    const std::vector<double> pruned = masked(w, mask);
    for (std::size_t i = 0; i < pruned.size(); ++i) CHECK(std::fabs(pruned[i] - w_hat.values[i]) <= 1e-10);
  });
  REQUIRE(golden_complete(count, 8));
}

TEST_CASE("SparseGPT gives the masks and weights of the reference, in float and in double", "[sparse][golden]") {
  const std::size_t count = each_case("sparsegpt_", [](const nlohmann::json& c, const nlohmann::json& params) {
    const auto w = array_of<float>(c, "inputs", "W"), expected = array_of<float>(c, "outputs", "W_pruned");
    const auto h = statistics_of<GramMatrix>(c);
    SparseGptOptions options;
    options.block = std::min(params.at("blocksize").get<index_t>(), w.cols);
    options.damping = params.at("percdamp");
    const MaskPattern pattern =
        is_group(params) ? group_of(params)
                         : MaskPattern::layer(density_below_threshold(w.rows * options.block, params.at("sparsity")));
    std::vector<float> chosen(w.values.size());
    const MatrixView<float> q(chosen.data(), w.rows, w.cols);
    if (params.contains("wbits")) {
      FloatScales grids({.bits = params.at("wbits"), .group_size = 0, .grid = GroupGrid::asymmetric}, {w.rows, w.cols});
      sparsegpt(w.view(), h, pattern, q, options, &grids, kSerial);
      const auto scale = array_of<float>(c, "outputs", "scale"), zero = array_of<float>(c, "outputs", "zero");
      for (std::size_t i = 0; i < scale.values.size(); ++i) {
        CHECK(grids.parameters[i].scale == Approx(scale.values[i]).epsilon(1e-5));
        CHECK(static_cast<float>(grids.parameters[i].zero_point) == zero.values[i]);
      }
      std::size_t close = 0;
      for (std::size_t i = 0; i < chosen.size(); ++i)
        close += std::fabs(chosen[i] - expected.values[i]) <= 1e-3f * std::fabs(expected.values[i]) ? 1 : 0;
      CHECK(static_cast<double>(close) >= 0.98 * static_cast<double>(chosen.size()));
      return;
    }
    // The reference sums in float: where terms cancel, an entry is right to H_rel of what its columns could sum to.
    const auto expected_h = array_of<float>(c, "outputs", "H");
    const double h_rel = c.at("tolerance").at("H_rel"), samples = c.at("inputs").at("X").at("shape").at(0);
    for (index_t i = 0; i < w.cols; ++i)
      for (index_t j = 0; j < w.cols; ++j)
        CHECK(std::fabs(2.0 / samples * h(i, j) - static_cast<double>(expected_h.view()(i, j))) <=
              h_rel * 2.0 / samples * std::sqrt(h(i, i) * h(j, j)));

    const Mask mask = mask_of(c, "mask_keep");
    const SparseGptReport report = sparsegpt(w.view(), h, pattern, q, options, nullptr, kSerial);
    CHECK(report.mask == mask);
    CHECK(report.damping == options.damping);
    for (std::size_t i = 0; i < chosen.size(); ++i)
      CHECK(std::fabs(chosen[i] - expected.values[i]) <= 5e-4f * std::fabs(expected.values[i]));

    const auto expected_f64 = array_of<double>(c, "outputs", "W_pruned_f64");
    const std::vector<double> wide(w.values.begin(), w.values.end());
    std::vector<double> chosen_f64(wide.size());
    const SparseGptReport report_f64 =
        sparsegpt(MatrixView<const double>(wide.data(), w.rows, w.cols), h, pattern,
                  MatrixView<double>(chosen_f64.data(), w.rows, w.cols), options, nullptr, kSerial);
    CHECK(report_f64.mask == mask);
    CHECK(report_f64.loss == Approx(report.loss).epsilon(1e-3));
    for (std::size_t i = 0; i < chosen_f64.size(); ++i)
      CHECK(std::fabs(chosen_f64[i] - expected_f64.values[i]) <= 1e-9);
  });
  REQUIRE(golden_complete(count, 10));
}
