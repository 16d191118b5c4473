// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The commands of compress_model; each prints to stdout, throws on any error and returns the exit code.

#include <cstdint>
#include <string>
#include <vector>

#include "blockpack/core/execution.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/row_format.hpp"

namespace example {

struct CompressArguments {
  std::string recipe, in, out;
  std::string calibration;  ///< folder; empty: none
  std::string divergence;   ///< folder with config.json and calib.bin; empty: none
  std::string save_recipe;  ///< file; empty: none
  std::int64_t budget_mib = 256;
  std::int64_t shard_mib = 0;
  blockpack::NonFinite non_finite = blockpack::NonFinite::reject;
  bool measure = true;
  bool quiet = false;
};

struct EvaluateArguments {
  std::string model, data;
  std::int64_t windows = 128;
  blockpack::Activations activations = blockpack::Activations::automatic;
};

struct CalibrateArguments {
  std::string model, data, text, out;  ///< text: empty for the calib.bin of `data`
  std::int64_t set = 0;
};

struct QualityArguments {
  std::string data, out = "quality.md";
  std::string scope = "both";  ///< linears, all or both; structured, sparse: pages of their own
  std::int64_t windows = 128;  ///< of the test text
  int discquant_steps = 512;
};

struct FamiliesArguments {
  std::vector<std::string> models;        ///< empty: the embedded model
  std::vector<std::string> calibrations;  ///< folders, "none", one for each model; empty: none at all
  std::string out = "families.md";
};

int list_schemes();
int inspect(const std::string& model, const blockpack::Execution& how);
int compress(const CompressArguments& arguments, const blockpack::Execution& how);
int verify(const std::string& model, const std::string& original, const blockpack::Execution& how);
int evaluate_model(const EvaluateArguments& arguments, const blockpack::Execution& how);
int calibrate_model(const CalibrateArguments& arguments, const blockpack::Execution& how);
int quality(const QualityArguments& arguments, const blockpack::Execution& how);
int families(const FamiliesArguments& arguments, const blockpack::Execution& how);
int demo(const std::string& data, const std::string& report, std::int64_t windows, const blockpack::Execution& how);

/// 1.69 MiB
std::string mebibytes(std::uint64_t bytes);
/// 128x384
std::string shape_text(const std::vector<blockpack::index_t>& shape);
/// "exact" for no error at all.
std::string decibels(double sqnr);

}  // namespace example
