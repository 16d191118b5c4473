// SPDX-License-Identifier: Apache-2.0
/// Signal to quantization noise of every format on Gaussian and Laplace weights against the anchors of the
/// specification: 2^20 values in rows of 4096, within 0.05 dB (0.1 dB for 2 and 3 bits and for Laplace).

#include <cmath>
#include <string>
#include <vector>

#include "blockpack/quant.hpp"
#include "quant/rows.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {

using namespace blockpack;

constexpr index_t kRows = 256;
constexpr index_t kCols = 4096;

double uniform(Random& random) { return (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53; }

std::vector<float> gaussian() {
  Random random(20240501);
  std::vector<float> w(static_cast<std::size_t>(kRows * kCols));
  for (std::size_t i = 0; i < w.size(); i += 2) {  // Box-Muller
    const double radius = std::sqrt(-2.0 * std::log(uniform(random)));
    const double angle = 6.283185307179586 * uniform(random);
    w[i] = static_cast<float>(radius * std::cos(angle));
    w[i + 1] = static_cast<float>(radius * std::sin(angle));
  }
  return w;
}

std::vector<float> laplace() {
  Random random(20240502);
  std::vector<float> w(static_cast<std::size_t>(kRows * kCols));
  for (float& v : w) {
    const double u = uniform(random) - 0.5;
    v = static_cast<float>((u < 0 ? 1.0 : -1.0) * std::log(1.0 - 2.0 * std::abs(u)) * 0.7071067811865476);
  }
  return w;
}

template <class Format>
double sqnr_db(const Format& format, const std::vector<float>& w, bool flat_importance) {
  const MatrixView<const float> view(w.data(), kRows, kCols);
  const std::vector<float> ones(static_cast<std::size_t>(kCols), 1.0f);
  EncodeOptions options;
  if (flat_importance) options.importance = MatrixView<const float>(ones.data(), 1, kCols);
  const std::vector<float> decoded =
      test::decode_matrix(format, test::encode_matrix(format, view, options), view.shape());
  double signal = 0;
  double noise = 0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    const double e = static_cast<double>(w[i]) - static_cast<double>(decoded[i]);
    signal += static_cast<double>(w[i]) * static_cast<double>(w[i]);
    noise += e * e;
  }
  return 10.0 * std::log10(signal / noise);
}

template <class Format>
struct Anchor {
  Format format;
  double bits_per_weight;
  double gauss;
  double laplace;  ///< 0: none given
  bool flat_importance = false;
};

template <class Format>
void check(const std::vector<Anchor<Format>>& anchors, double gauss_tolerance) {
  static const std::vector<float> g = gaussian();
  static const std::vector<float> l = laplace();
  for (const Anchor<Format>& a : anchors) {
    CAPTURE(a.format.scheme());
    CHECK(bits_per_weight(a.format, kCols) == Approx(a.bits_per_weight).margin(0.0006));
    CHECK(std::abs(sqnr_db(a.format, g, a.flat_importance) - a.gauss) <= gauss_tolerance);
    if (a.laplace != 0) CHECK(std::abs(sqnr_db(a.format, l, a.flat_importance) - a.laplace) <= 0.1);
  }
}

}  // namespace

TEST_CASE("the MX formats reach their noise anchors", "[quant][slow]") {
  check<Mx>({{Mx{MxElement::e4m3}, 8.25, 30.62, 30.10},
             {Mx{MxElement::e5m2}, 8.25, 25.37, 25.25},
             {Mx{MxElement::int8}, 8.25, 41.66, 40.07},
             {Mx{MxElement::e2m3}, 6.25, 30.93, 30.31},
             {Mx{MxElement::e3m2}, 6.25, 25.37, 25.25},
             {Mx{MxElement::e2m1}, 4.25, 18.79, 18.01}},
            0.05);
}

TEST_CASE("block floating point reaches its noise anchors", "[quant][slow]") {
  check<Bfp>({{Bfp{8, 16}, 8.5, 42.79, 41.46},
              {Bfp{8, 32}, 8.25, 41.66, 40.07},
              {Bfp{8, 64}, 8.125, 41.02, 38.91},
              {Bfp{8, 128}, 8.0625, 40.82, 37.72},
              {Bfp{6, 16}, 6.5, 30.72, 29.42},
              {Bfp{6, 32}, 6.25, 29.61, 28.03},
              {Bfp{6, 64}, 6.125, 28.98, 26.87},
              {Bfp{6, 128}, 6.0625, 28.77, 25.69},
              {Bfp{4, 16}, 4.5, 18.62, 17.42},
              {Bfp{4, 32}, 4.25, 17.55, 16.08},
              {Bfp{4, 64}, 4.125, 16.93, 14.97},
              {Bfp{4, 128}, 4.0625, 16.73, 13.83}},
             0.05);
}

TEST_CASE("group integers of 4 and 8 bits reach their noise anchors", "[quant][slow]") {
  const GroupGrid max_abs = GroupGrid::max_abs;
  const GroupGrid half = GroupGrid::half_step;
  const GroupGrid asym = GroupGrid::asymmetric;
  check<GroupInt>({{GroupInt{4, 32, max_abs}, 4.5, 20.25, 18.34},
                   {GroupInt{4, 32, half}, 4.5, 20.46, 18.53},
                   {GroupInt{4, 32, asym}, 4.625, 21.85, 20.51},
                   {GroupInt{4, 64, max_abs}, 4.25, 19.36, 17.05},
                   {GroupInt{4, 64, half}, 4.25, 19.76, 17.44},
                   {GroupInt{4, 64, asym}, 4.3125, 20.81, 19.00},
                   {GroupInt{4, 128, max_abs}, 4.125, 18.61, 15.93},
                   {GroupInt{4, 128, half}, 4.125, 19.11, 16.41},
                   {GroupInt{4, 128, asym}, 4.15625, 19.95, 17.71},
                   {GroupInt{8, 32, max_abs}, 8.5, 45.43, 43.46},
                   {GroupInt{8, 32, half}, 8.5, 45.08, 43.11},
                   {GroupInt{8, 32, asym}, 8.75, 46.46, 45.08},
                   {GroupInt{8, 64, max_abs}, 8.25, 44.54, 42.15},
                   {GroupInt{8, 64, half}, 8.25, 44.38, 41.99},
                   {GroupInt{8, 64, asym}, 8.375, 45.42, 43.56},
                   {GroupInt{8, 128, max_abs}, 8.125, 43.80, 41.00},
                   {GroupInt{8, 128, half}, 8.125, 43.73, 40.94},
                   {GroupInt{8, 128, asym}, 8.1875, 44.56, 42.27},
                   {GroupInt{4, 32}, 4.5, 21.31, 19.44},
                   {GroupInt{8, 32}, 8.5, 45.49, 0}},
                  0.05);
}

TEST_CASE("group integers of 2 and 3 bits reach their noise anchors", "[quant][slow]") {
  const GroupGrid max_abs = GroupGrid::max_abs;
  const GroupGrid half = GroupGrid::half_step;
  const GroupGrid asym = GroupGrid::asymmetric;
  check<GroupInt>({{GroupInt{2, 32, max_abs}, 2.5, 3.63, 3.67},
                   {GroupInt{2, 32, half}, 2.5, 6.52, 5.61},
                   {GroupInt{2, 32, asym}, 2.5625, 7.82, 7.25},
                   {GroupInt{2, 64, max_abs}, 2.25, 2.89, 2.80},
                   {GroupInt{2, 64, half}, 2.25, 5.84, 4.79},
                   {GroupInt{2, 64, asym}, 2.28125, 6.80, 5.97},
                   {GroupInt{2, 128, max_abs}, 2.125, 2.31, 2.13},
                   {GroupInt{2, 128, half}, 2.125, 5.21, 4.05},
                   {GroupInt{2, 128, asym}, 2.140625, 5.97, 4.95},
                   {GroupInt{3, 32, max_abs}, 3.5, 12.89, 11.27},
                   {GroupInt{3, 32, half}, 3.5, 13.84, 12.10},
                   {GroupInt{3, 32, asym}, 3.59375, 15.23, 14.01},
                   {GroupInt{3, 64, max_abs}, 3.25, 12.00, 10.02},
                   {GroupInt{3, 64, half}, 3.25, 13.15, 11.05},
                   {GroupInt{3, 64, asym}, 3.296875, 14.19, 12.55},
                   {GroupInt{3, 128, max_abs}, 3.125, 11.26, 8.98},
                   {GroupInt{3, 128, half}, 3.125, 12.51, 10.08},
                   {GroupInt{3, 128, asym}, 3.1484375, 13.33, 11.30},
                   {GroupInt{2, 32}, 2.5, 8.82, 0},
                   {GroupInt{3, 32}, 3.5, 15.17, 0}},
                  0.1);
}

TEST_CASE("tables, NVFP4 and ternary weights reach their noise anchors", "[quant][slow]") {
  check<Nf4>({{Nf4{64}, 4.25, 20.72, 19.69}, {Nf4{32}, 4.5, 21.17, 20.61}}, 0.05);
  check<Nvfp4>({{Nvfp4{}, 4.5, 20.43, 20.66}}, 0.05);
  check<Ternary>({{Ternary{}, 2.0625, 7.20, 5.54}}, 0.1);
  check<Ternary>({{Ternary{Ternary::kTensor, TernaryRule::mean}, 2.0, 5.79, 4.05},
                  {Ternary{Ternary::kTensor, TernaryRule::mean, TernaryPacking::base3}, 1.625, 5.79, 4.05}},
                 0.05);
  check<StatsQ>({{StatsQ{2}, 2.0039, 8.61, 5.91}, {StatsQ{3}, 3.0039, 11.50, 7.40}}, 0.1);
  check<StatsQ>({{StatsQ{4}, 4.0039, 13.07, 8.10}}, 0.05);
}

TEST_CASE("the blocks of ggml reach their noise anchors", "[quant][slow]") {
  using enum GgmlType;
  check<Ggml>({{Ggml{q4_0}, 4.5, 21.31, 19.44},
               {Ggml{q4_1}, 5, 22.12, 20.76},
               {Ggml{q5_0}, 5.5, 27.38, 25.45},
               {Ggml{q8_0}, 8.5, 45.42, 43.45},
               {Ggml{q4_k}, 4.5, 22.92, 21.46},
               {Ggml{q5_k}, 5.5, 28.84, 27.38},
               {Ggml{q6_k}, 6.5625, 35.01, 33.30},
               {Ggml{iq4_nl}, 4.5, 22.08, 20.97},
               {Ggml{iq4_xs}, 4.25, 22.30, 21.05},
               {Ggml{mxfp4}, 4.25, 18.79, 18.01},
               {Ggml{nvfp4}, 4.5, 20.43, 20.66}},
              0.05);
  check<Ggml>({{Ggml{q2_k}, 2.625, 10.56, 9.26},
               {Ggml{q3_k}, 3.4375, 16.42, 15.09},
               {Ggml{tq1_0}, 1.6875, 1.87, 1.61},
               {Ggml{tq2_0}, 2.0625, 1.87, 1.61}},
              0.1);
}

TEST_CASE("the blocks of ggml with equal importance reach their noise anchors", "[quant][slow]") {
  using enum GgmlType;
  check<Ggml>({{Ggml{q4_0}, 4.5, 21.75, 19.72, true},
               {Ggml{q4_k}, 4.5, 23.00, 21.53, true},
               {Ggml{q6_k}, 6.5625, 35.23, 33.50, true},
               {Ggml{iq4_nl}, 4.5, 22.50, 21.28, true},
               {Ggml{iq4_xs}, 4.25, 22.43, 21.19, true}},
              0.05);
  check<Ggml>({{Ggml{q3_k}, 3.4375, 16.79, 15.41, true}, {Ggml{q2_k}, 2.625, 11.44, 10.44, true}}, 0.1);
}
