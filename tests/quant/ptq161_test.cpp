// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "blockpack/quant.hpp"
#include "quant/golden_cases.hpp"
#include "quant/weights.hpp"

namespace {

using namespace blockpack;
using test::cases_of;

/// |a - b| within 1e-4 of the largest |b|.
template <class A>
void require_close(const A& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (const float v : b) largest = std::max(largest, std::abs(static_cast<double>(v)));
  for (std::size_t i = 0; i < b.size(); ++i) {
    CAPTURE(i, a[i], b[i]);
    REQUIRE(std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])) <= 1e-4 * largest);
  }
}

struct Sample {
  std::vector<float> w, x, statistic;
  MatrixView<const float> weights() const { return {w.data(), 24, 50}; }
  MatrixView<const float> inputs() const { return {x.data(), 200, 50}; }
};

Sample sample() {
  Sample s{test::make_weights(test::Weights::heavy_tailed, 24 * 50, 5),
           test::make_weights(test::Weights::heavy_tailed, 200 * 50, 6), std::vector<float>(50, 0.0f)};
  for (float& v : s.w) v *= 0.1f;
  for (index_t t = 0; t < 200; ++t)
    for (index_t c = 0; c < 50; ++c) {
      float& v = s.x[static_cast<std::size_t>(t * 50 + c)];
      v *= c % 9 == 0 ? 2.0f : 0.3f;
      s.statistic[static_cast<std::size_t>(c)] = std::max(s.statistic[static_cast<std::size_t>(c)], std::abs(v));
    }
  return s;
}

}  // namespace

TEST_CASE("PTQ1.61 agrees with the reference on masks, values, loss and gradients", "[quant][golden]") {
  std::size_t count = 0;
  for (const test::GoldenCase& c : cases_of("ptq161_layer")) {
    CAPTURE(c.id);
    REQUIRE(c.params.at("salient_bits") == 4);
    REQUIRE(c.params.at("ratio") == 0.2);
    const auto w = c.array<float>("w");
    const auto x = c.array<float>("x");
    Ptq161Layer layer = ptq161_start(w.view(), c.array<float>("act_absmax").values);
    REQUIRE(layer.salient == c.array<std::uint8_t>("mask").values);
    require_close(layer.mean, c.array<float>("row_mean").values);
    require_close(layer.scale, c.array<float>("row_scale").values);
    layer.row = c.array<float>("r1").values;
    layer.column = c.array<float>("r2").values;
    std::vector<float> values(w.values.size());
    ptq161_values(w.view(), layer, MatrixView<float>(values.data(), w.rows, w.cols));
    require_close(values, c.array<float>("w_hat").values);
    const Ptq161Gradient g = ptq161_gradient(w.view(), x.view(), layer);
    require_close(std::vector<double>{g.loss}, c.array<float>("loss").values);
    require_close(g.scale, c.array<float>("g_scale").values);
    require_close(g.row, c.array<float>("g_r1").values);
    require_close(g.column, c.array<float>("g_r2").values);
    ++count;
  }
  REQUIRE(test::golden_complete(count, 1));
}

TEST_CASE("PTQ1.61 ranks channels by the statistic it is told and can fit 4 bits to the salient ones alone",
          "[quant]") {
  Sample s = sample();
  for (index_t t = 0; t < 200; ++t)  // one outlier beside nothing in channel 1
    s.x[static_cast<std::size_t>(t * 50 + 1)] = t == 0 ? 30.0f : 0.0f;
  ColumnStats inputs(50);
  inputs.add(s.inputs());
  using Options = Ptq161StartOptions;
  const Ptq161Layer largest = ptq161_start(s.weights(), inputs);
  const Ptq161Layer mean = ptq161_start(s.weights(), inputs, {.statistic = Options::Statistic::mean_abs});
  REQUIRE(largest.salient[1] == 1);
  REQUIRE(mean.salient[1] == 0);
  for (const std::size_t c : {std::size_t{0}, std::size_t{9}, std::size_t{18}}) REQUIRE(mean.salient[c] == 1);
  REQUIRE(std::count(mean.salient.begin(), mean.salient.end(), 1) == ptq161_salient_count(50));

  const Ptq161Layer narrow = ptq161_start(s.weights(), inputs, {.salient_range = true});
  REQUIRE(narrow.salient == largest.salient);
  REQUIRE(narrow.sign == largest.sign);
  REQUIRE(narrow.mean == largest.mean);
  REQUIRE(narrow.scale == largest.scale);
  std::size_t finer = 0;
  for (index_t r = 0; r < 24; ++r) {
    const auto i = static_cast<std::size_t>(r);
    float low = 0, high = 0;
    for (std::size_t c = 0; c < 50; ++c)
      if (narrow.salient[c] != 0) {
        low = std::min(low, s.weights().row(r)[c]);
        high = std::max(high, s.weights().row(r)[c]);
      }
    CHECK(narrow.grid[i].scale == Approx((high - low) / 15).epsilon(1e-6));
    CHECK(narrow.grid[i].scale <= largest.grid[i].scale);
    finer += narrow.grid[i].scale < largest.grid[i].scale ? 1 : 0;
  }
  REQUIRE(finer > 12);
  const auto error = [&](const Ptq161Layer& layer) {  // of the salient channels
    std::vector<float> values(24 * 50);
    ptq161_values(s.weights(), layer, MatrixView<float>(values.data(), 24, 50));
    double sum = 0;
    for (std::size_t i = 0; i < values.size(); ++i)
      if (layer.salient[i % 50] != 0) sum += std::pow(static_cast<double>(values[i]) - static_cast<double>(s.w[i]), 2);
    return sum;
  };
  REQUIRE(error(narrow) < error(largest));
  REQUIRE_THROWS_AS(ptq161_start(s.weights(), ColumnStats(49)), ShapeError);
}

TEST_CASE("the gradients of PTQ1.61 are those of its loss", "[quant]") {
  const Sample s = sample();
  Ptq161Layer layer = ptq161_start(s.weights(), s.statistic);
  for (std::size_t c = 0; c < layer.column.size(); ++c) layer.column[c] = 1.0f + 0.02f * static_cast<float>(c % 5);
  const Ptq161Gradient g = ptq161_gradient(s.weights(), s.inputs(), layer);
  const auto slope = [&](float& parameter) {
    const float kept = parameter, step = 0.01f;
    parameter = kept + step;
    const double up = ptq161_gradient(s.weights(), s.inputs(), layer).loss;
    parameter = kept - step;
    const double down = ptq161_gradient(s.weights(), s.inputs(), layer).loss;
    parameter = kept;
    return (up - down) / (2 * static_cast<double>(step));
  };
  double largest = 0;
  for (const auto* part : {&g.scale, &g.row, &g.column})
    for (const double v : *part) largest = std::max(largest, std::abs(v));
  for (const std::size_t i : {std::size_t{0}, std::size_t{7}, std::size_t{23}}) {
    REQUIRE(std::abs(slope(layer.scale[i]) - g.scale[i]) <= 0.02 * largest);
    REQUIRE(std::abs(slope(layer.row[i]) - g.row[i]) <= 0.02 * largest);
    REQUIRE(std::abs(slope(layer.column[i + 1]) - g.column[i + 1]) <= 0.02 * largest);
  }
}

TEST_CASE("the fit of PTQ1.61 lowers the loss and never raises it", "[quant]") {
  const Sample s = sample();
  const Ptq161Layer start = ptq161_start(s.weights(), s.statistic);
  Ptq161Layer squares = start;
  Ptq161Options options;
  const Ptq161Report report = ptq161_optimise(s.weights(), s.inputs(), squares, options);
  REQUIRE(report.loss < 0.8 * report.start_loss);
  REQUIRE(ptq161_gradient(s.weights(), s.inputs(), squares).loss == report.loss);
  REQUIRE(squares.sign == start.sign);
  REQUIRE(squares.salient == start.salient);
  options.alternations = 0;
  options.steps = 60;
  Ptq161Layer descended = start;
  REQUIRE(ptq161_optimise(s.weights(), s.inputs(), descended, options).loss < report.start_loss);
  Ptq161Layer both = squares;
  const Ptq161Report more = ptq161_optimise(s.weights(), s.inputs(), both, options);
  REQUIRE(more.start_loss == report.loss);
  REQUIRE(more.loss <= more.start_loss);
  Execution how;
  std::vector<double> told;
  how.progress = [&](double fraction) { told.push_back(fraction); };
  options.alternations = 2;
  ptq161_optimise(s.weights(), s.inputs(), both, options, how);
  REQUIRE(told.size() >= 62);
  REQUIRE(told.back() == 1.0);
  REQUIRE(std::is_sorted(told.begin(), told.end()));
  std::stop_source source;
  how.stop = source.get_token();
  how.progress = [&](double) { source.request_stop(); };
  REQUIRE_THROWS_AS(ptq161_optimise(s.weights(), s.inputs(), both, options, how), CancelledError);
}

TEST_CASE("a PTQ1.61 matrix holds the layer to fp16 and counts every bit", "[quant][format]") {
  const Sample s = sample();
  Ptq161Layer layer = ptq161_start(s.weights(), s.statistic);
  ptq161_optimise(s.weights(), s.inputs(), layer);
  const Ptq161Matrix op = Ptq161Matrix::encode(s.weights(), layer);
  std::vector<float> values(24 * 50), decoded(24 * 50);
  ptq161_values(s.weights(), layer, MatrixView<float>(values.data(), 24, 50));
  for (index_t r = 0; r < 24; ++r) op.decode_rows(std::span(&r, 1), MatrixView<float>(decoded.data() + r * 50, 1, 50));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t r = i / 50, c = i % 50;
    const float size = layer.salient[c] != 0
                           ? 16 * layer.grid[r].scale
                           : std::abs(layer.column[c]) * (std::abs(layer.mean[r]) + std::abs(layer.scale[r]));
    CAPTURE(r, c);
    const bool tie = layer.salient[c] != 0 && std::abs(values[i] - decoded[i]) > 0.5f * layer.grid[r].scale;
    if (!tie) REQUIRE(std::abs(values[i] - decoded[i]) <= 2e-3f * size);
  }
  double bits = 0;
  for (const auto& [name, bytes] : Ptq161Matrix::section_sizes({4096, 4096})) bits += 8.0 * static_cast<double>(bytes);
  REQUIRE(bits / (4096.0 * 4096.0) == Approx(1.617).margin(0.0005));
}

TEST_CASE("PTQ1.61 refuses what it cannot hold", "[quant][format]") {
  Sample s = sample();
  REQUIRE_THROWS_AS(ptq161_start(s.weights(), std::span<const float>(s.statistic).first(49)), ShapeError);
  Ptq161Layer layer = ptq161_start(s.weights(), s.statistic);
  layer.column[1] = 1e6f;
  layer.column[2] = 1e6f;
  REQUIRE_THROWS_AS(Ptq161Matrix::encode(s.weights(), layer), ValueError);
  EncodeOptions saturate;
  saturate.non_finite = NonFinite::saturate;
  REQUIRE_NOTHROW(Ptq161Matrix::encode(s.weights(), layer, saturate));
  layer.salient.assign(50, 1);
  REQUIRE_THROWS_AS(Ptq161Matrix::encode(s.weights(), layer), ValueError);

  s.w[77] = std::numeric_limits<float>::quiet_NaN();
  s.w[78] = std::numeric_limits<float>::infinity();
  REQUIRE_THROWS_AS(Ptq161Matrix::encode(s.weights(), s.statistic), ValueError);
  const Ptq161Matrix clamped = Ptq161Matrix::encode(s.weights(), s.statistic, saturate);
  std::vector<float> row(50);
  const index_t which = 1;
  clamped.decode_rows(std::span(&which, 1), MatrixView<float>(row.data(), 1, 50));
  for (const float v : row) REQUIRE(std::isfinite(v));
  saturate.non_finite = NonFinite::propagate;
  REQUIRE_THROWS_AS(Ptq161Matrix::encode(s.weights(), s.statistic, saturate), UnsupportedError);
  s.x[3] = std::numeric_limits<float>::quiet_NaN();
  REQUIRE_THROWS_AS(ptq161_gradient(s.weights(), s.inputs(), layer), ValueError);

  // Sections with another mask.
  const Ptq161Matrix op = Ptq161Matrix::encode(sample().weights(), s.statistic);
  std::vector<Section> sections = op.sections();
  const std::vector<std::byte> none(sections[0].data.bytes.size(), std::byte{0}), all(none.size(), std::byte{255});
  for (const auto* mask : {&none, &all}) {
    sections[0].data = SharedBytes(std::span<const std::byte>(*mask), nullptr);
    REQUIRE_THROWS_AS(Ptq161Matrix::from_sections({24, 50}, {}, sections), FormatError);
  }
  sections.pop_back();
  REQUIRE_THROWS_AS(Ptq161Matrix::from_sections({24, 50}, {}, sections), FormatError);
}

TEST_CASE("salient channels of equal statistic are the first ones", "[quant]") {
  const std::vector<float> equal(11, 3.0f);
  const std::vector<std::uint8_t> mask = ptq161_salient_channels(equal);
  REQUIRE(mask == std::vector<std::uint8_t>{1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0});
  REQUIRE(ptq161_salient_count(4096) == 820);
  REQUIRE(ptq161_salient_count(1) == 1);
  REQUIRE(ptq161_salient_count(0) == 0);
}
