// SPDX-License-Identifier: Apache-2.0

/// Structured forms as schemes, the frontier of schemes on a matrix, and targets of shares.

#include <cmath>
#include <numeric>
#include <vector>

#include "blockpack/io/sharded.hpp"
#include "blockpack/recipe/auto_plan.hpp"
#include "blockpack/recipe/compressed_model.hpp"
#include "blockpack/recipe/frontier.hpp"
#include "blockpack/structured.hpp"
#include "recipe/model_support.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace blockpack::test {
namespace {

constexpr index_t kOut = 48, kIn = 64;

std::vector<float> sample(index_t rows = kOut, index_t cols = kIn) { return random_weights(rows, cols, 5); }
MatrixView<const float> view_of(const std::vector<float>& w, index_t cols = kIn) {
  return {w.data(), static_cast<index_t>(w.size()) / cols, cols};
}

/// Inputs of which the first features are much larger than the last.
GramMatrix inputs(index_t cols = kIn) {
  std::vector<float> x = random_normal(256 * cols, 9);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] /= static_cast<float>(1 + i % static_cast<std::size_t>(cols));
  GramMatrix gram(cols);
  gram.add(MatrixView<const float>(x.data(), 256, cols));
  return gram;
}

TEST_CASE("a structured scheme is its fit with factors in the named format", "[recipe][structured]") {
  const std::vector<float> w = sample();
  for (const char* scheme : {"lowrank-r8-f32", "monarch-b4-r8-f32", "blast-b4-r8-f32", "blr-t16-r8-f32",
                             "blockdiag-b4-f32", "lowrank-r8-mxfp8-e4m3", "monarch-b4-r8-int8-g32",
                             "blast-b4-r8-mxfp8-e4m3", "blr-t16-r8-bf16", "blockdiag-b4-mxfp4"}) {
    CAPTURE(scheme);
    const auto codec = Registry::standard().codec(scheme);
    CHECK(codec->scheme() == scheme);
    CHECK_FALSE(codec->reproducible());
    const AnyLinear op = encode_matrix(*codec, view_of(w));
    CHECK(op.scheme() == scheme);
    index_t bytes = 0;
    for (const SectionSize& s : codec->sections({kOut, kIn})) bytes += s.bytes;
    CHECK(static_cast<index_t>(op.storage_bytes()) == bytes);
    const AnyLinear again = codec->open({kOut, kIn}, op.sections());
    CHECK(again.storage_bytes() == op.storage_bytes());
  }
}

TEST_CASE("factors in a quantized format lose little beside the fit", "[recipe][structured]") {
  const std::vector<float> w = sample();
  const std::vector<std::string> schemes = {"lowrank-r12-f32", "lowrank-r12-mxfp8-e4m3", "monarch-b4-r12-f32",
                                            "monarch-b4-r12-mxfp8-e4m3"};
  const std::vector<FrontierPoint> points = scheme_frontier(view_of(w), schemes);
  const auto error = [&](const std::string& scheme) {
    for (const FrontierPoint& p : points)
      if (p.scheme == scheme) return p.error;
    return INFINITY + 0.0;
  };
  CHECK(error("lowrank-r12-mxfp8-e4m3") < 1.05 * error("lowrank-r12-f32"));
  CHECK(error("monarch-b4-r12-mxfp8-e4m3") < 1.05 * error("monarch-b4-r12-f32"));
  CHECK(error("lowrank-r12-f32") > 0.0);
}

TEST_CASE("whitened and refined fits lower the error of the outputs", "[recipe][structured]") {
  const std::vector<float> w = sample();
  const GramMatrix gram = inputs();
  FrontierOptions options;
  options.gram = &gram;
  for (const std::string form : {"lowrank-r6-f32", "monarch-b4-r8-f32", "blast-b4-r8-f32"}) {
    CAPTURE(form);
    const std::vector<std::string> schemes = {form, form + "+whiten", form + "+refine"};
    double plain = 0, whitened = 0, refined = 0;
    for (const FrontierPoint& p : scheme_frontier(view_of(w), schemes, options)) {
      if (p.scheme == form) plain = p.error;
      if (p.scheme == form + "+whiten") whitened = p.error;
      if (p.scheme == form + "+refine") refined = p.error;
    }
    CHECK(whitened < plain);
    CHECK(refined < plain);
  }
}

TEST_CASE("the frontier orders schemes by bytes and marks those that no other beats", "[recipe][structured]") {
  const std::vector<float> w = sample();
  const std::vector<std::string> schemes = {"bf16",          "f32", "int8-g32", "lowrank-r8-bf16", "lowrank-r16-bf16",
                                            "lowrank-r4-f32"};
  const std::vector<FrontierPoint> points = scheme_frontier(view_of(w), schemes);
  REQUIRE(points.size() == schemes.size());
  for (std::size_t i = 0; i < points.size(); ++i) {
    CAPTURE(points[i].scheme);
    if (i > 0) CHECK(points[i - 1].bytes <= points[i].bytes);
    bool beaten = false;
    for (const FrontierPoint& other : points)
      beaten = beaten || (other.bytes <= points[i].bytes && other.error <= points[i].error &&
                          (other.bytes < points[i].bytes || other.error < points[i].error));
    CHECK(points[i].best == !beaten);
  }
  CHECK(points.back().scheme == "f32");
  CHECK(points.back().error == 0.0);
  const FrontierPoint* within = best_within_bytes(points, kOut * kIn * 2);
  REQUIRE(within != nullptr);
  CHECK(within->scheme == "bf16");
  CHECK(best_within_bytes(points, 10) == nullptr);
  const FrontierPoint* close = best_within_error(points, 0.01);
  REQUIRE(close != nullptr);
  CHECK(close->scheme == "int8-g32");
}

TEST_CASE("a measured menu has the noise of each scheme on the matrix and serves the allocator", "[recipe]") {
  const std::vector<float> w = sample();
  const std::vector<std::string> schemes = {"int8-g32", "int3-g32", "int4-g32", "int4-g32-maxabs", "bf16"};
  const std::vector<MenuEntry> menu = measured_menu(view_of(w), schemes);
  REQUIRE(menu.size() == 4);  // of two with the same bits the better one
  for (std::size_t i = 0; i < menu.size(); ++i) {
    CAPTURE(menu[i].name);
    const auto codec = Registry::standard().codec(menu[i].name);
    CHECK(menu[i].bits_per_weight == codec->bits_per_weight({kOut, kIn}));
    const AnyLinear form = encode_matrix(*codec, view_of(w));
    std::vector<index_t> rows(static_cast<std::size_t>(kOut));
    std::iota(rows.begin(), rows.end(), index_t{0});
    std::vector<float> decoded(w.size());
    form.decode_rows(rows, MatrixView<float>(decoded.data(), kOut, kIn));
    double error = 0, norm = 0;
    for (std::size_t k = 0; k < w.size(); ++k) {
      error += std::pow(static_cast<double>(decoded[k]) - static_cast<double>(w[k]), 2);
      norm += std::pow(static_cast<double>(w[k]), 2);
    }
    CHECK(menu[i].noise == Approx(error / norm).epsilon(1e-5));
    if (i > 0) CHECK(menu[i].noise < menu[i - 1].noise);
  }
  const std::vector<AllocationTensor> tensors = {{"loud", 0, 100, 1.0}, {"quiet", 1, 100, 1e-3}};
  const Allocation plan = allocate_bits(tensors, menu, 6.0);
  CHECK(plan.choice[0] > plan.choice[1]);
  CHECK(plan.bits_per_weight <= 6.0);
}

TEST_CASE("a menu of structured forms stays within its share", "[recipe][structured]") {
  for (const MatrixShape shape : {MatrixShape{48, 64}, {384, 128}, {33, 70}, {7, 5}, {1, 9}}) {
    for (const double share : {0.2, 0.5, 1.0}) {
      CAPTURE(to_string(shape), share);
      for (const std::string& scheme : structured_menu(shape, share)) {
        CAPTURE(scheme);
        index_t bytes = 0;
        for (const SectionSize& s : Registry::standard().codec(scheme)->sections(shape))
          if (s.name != "ranks") bytes += s.bytes;
        CHECK(static_cast<double>(bytes) <= 2.0 * share * static_cast<double>(shape.rows * shape.cols));
      }
    }
  }
  CHECK(structured_menu({48, 64}, 0.5).size() == 4);
  CHECK_THROWS_AS(structured_menu({48, 64}, 0.0), ValueError);
}

TEST_CASE("bad structured schemes say what is wrong", "[recipe][structured]") {
  for (const char* scheme :
       {"lowrank", "lowrank-r8", "lowrank-b4-bf16", "monarch-b4-bf16", "monarch-b4-r10-bf16", "blast-r8-b4-bf16",
        "blr-t0-r4-bf16", "lowrank-r8-ptq1.61", "lowrank-r8-bf16+gptq", "blockdiag-b4-bf16+whiten"}) {
    CAPTURE(scheme);
    CHECK_THROWS_AS(Registry::standard().codec(scheme), FormatError);
  }
  const std::vector<float> w = sample();
  CHECK_THROWS_AS(encode_matrix(*Registry::standard().codec("lowrank-r8-bf16+whiten"), view_of(w)), ValueError);
  std::vector<float> bad = w;
  bad[70] = NAN;
  CHECK_THROWS_AS(encode_matrix(*Registry::standard().codec("monarch-b4-r8-bf16"), view_of(bad)), ValueError);
}

TEST_CASE("structured:60% gives every tensor a form within the budget of the model", "[recipe][structured]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  const Recipe recipe = Recipe::parse("structured:60%");
  CHECK(has_auto(recipe));
  const Recipe plan = resolve_auto(folder / "in", recipe);
  CHECK_FALSE(has_auto(plan));
  const CompressReport report = compress_model(folder / "in", plan, folder / "out");
  CHECK(report.bits_per_weight() <= 0.4 * 16.0 + 1e-9);
  CHECK(report.bits_per_weight() > 0.3 * 16.0);
}

}  // namespace
}  // namespace blockpack::test
