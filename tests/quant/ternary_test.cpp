// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <limits>
#include <vector>

#include "blockpack/quant.hpp"
#include "quant/rows.hpp"
#include "quant/weights.hpp"
#include "support/catch.hpp"

namespace {

using namespace blockpack;
using test::round_trip;

test::Stored stored(const Ternary& format, const std::vector<float>& w, EncodeOptions options = {}) {
  return test::encode_matrix(format, MatrixView<const float>(w.data(), 1, static_cast<index_t>(w.size())), options);
}

Ternary tensor() {
  Ternary f;
  f.group_size = Ternary::kTensor;
  f.rule = TernaryRule::mean;
  return f;
}

}  // namespace

TEST_CASE("the threshold rule keeps what lies above 0.7 of the mean", "[quant][format]") {
  std::vector<float> w(64, 0.0f);  // mean 1: sum 64
  w[0] = 31.0f;
  w[1] = -31.3125f;
  w[2] = 0.6875f;
  w[3] = 0.75f;
  w[4] = -0.25f;
  const Ternary format{64};
  const TernaryParameters p = format.fit(w);
  REQUIRE(p.divisor == 1.4f);
  REQUIRE(p.scale == Approx((31.0 + 31.3125 + 0.75) / 3));
  const test::Stored s = stored(format, w);
  REQUIRE(std::to_integer<int>(s[1][0]) == (2 | 0 << 2 | 1 << 4 | 2 << 6));
  REQUIRE(std::to_integer<int>(s[1][1]) == 0x55);
  const float scale = static_cast<float>(fp16(p.scale));
  const std::vector<float> decoded = round_trip(format, w);
  REQUIRE(decoded[0] == scale);
  REQUIRE(decoded[1] == -scale);
  REQUIRE(decoded[2] == 0.0f);
  REQUIRE(decoded[3] == scale);

  // Importance weights the scale, which is then the least-squares one of the kept weights.
  std::vector<float> importance(64, 0.0f);
  importance[0] = 3.0f;
  importance[3] = 1.0f;
  REQUIRE(format.fit(w, importance).scale == Approx((3 * 31.0 + 0.75) / 4));
  EncodeOptions options;
  options.importance = MatrixView<const float>(importance.data(), 1, 64);
  REQUIRE(stored(format, w, options)[0] != s[0]);
  REQUIRE(stored(format, w, options)[1] == s[1]);
}

TEST_CASE("BitNet's ternary weights have one scale for the matrix", "[quant][format]") {
  const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 12 * 70, 8);
  const MatrixView<const float> view(w.data(), 12, 70);
  const test::Stored s = test::encode_matrix(tensor(), view);
  double sum = 0;
  for (const float v : w) sum += std::abs(double{v});
  const float gamma = detail::load_f32(s[0].data());
  REQUIRE(s[0].size() == 4);
  REQUIRE(double{gamma} == Approx(sum / (12 * 70)).epsilon(1e-7));
  const std::vector<float> decoded = test::decode_matrix(tensor(), s, view.shape());
  for (std::size_t i = 0; i < w.size(); ++i) {
    const float t = round_half_even(w[i] / (gamma + 1e-5f));
    REQUIRE(decoded[i] == gamma * std::min(std::max(t, -1.0f), 1.0f));
  }
  std::vector<std::byte> bytes(4 + 18);
  std::vector<std::byte*> dst = {bytes.data(), bytes.data() + 4};
  REQUIRE_THROWS_AS(encode_rows(tensor(), MatrixView<const float>(w.data(), 1, 70), 0, dst, {}), UnsupportedError);
}

TEST_CASE("both packings hold the same digits", "[quant][format]") {
  for (const int group : {64, 128, 256, Ternary::kRow, Ternary::kTensor}) {
    for (const std::size_t n : {std::size_t{1}, std::size_t{63}, std::size_t{64}, std::size_t{65}, std::size_t{700}}) {
      for (const TernaryRule rule : {TernaryRule::threshold, TernaryRule::mean}) {
        if (group == Ternary::kTensor && rule == TernaryRule::threshold) continue;
        Ternary two{group, rule}, three{group, rule, TernaryPacking::base3};
        CAPTURE(two.scheme(), n);
        const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, n, n);
        const std::vector<float> a = round_trip(two, w);
        REQUIRE(a == round_trip(three, w));
        bool nonzero = false;
        for (const float v : a) nonzero = nonzero || v != 0.0f;
        REQUIRE(nonzero);
      }
    }
  }
  const std::vector<std::int32_t> codes = {2, 1, 0, 2, 1, 2};
  std::vector<std::uint8_t> bytes(13);
  Ternary{64, TernaryRule::threshold, TernaryPacking::base3}.pack(codes, bytes.data());
  REQUIRE(int{bytes[0]} == 2 + 3 * 1 + 9 * 0 + 27 * 2 + 81 * 1);
  REQUIRE(int{bytes[1]} == 2 + 3 + 9 + 27 + 81);
  REQUIRE(int{bytes[12]} == 1 + 3 + 9 + 27 + 81);
}

TEST_CASE("a ternary row decodes from any multiple of 512 on", "[quant][format]") {
  const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 1300, 33);
  const MatrixView<const float> view(w.data(), 1, 1300);
  for (const char* packing : {"", "-base3"}) {
    for (const char* group : {"-g64", "-row", "-tensor"}) {
      Ternary format;
      format.group_size = group[1] == 'g' ? 64 : (group[1] == 'r' ? Ternary::kRow : Ternary::kTensor);
      if (format.group_size == Ternary::kTensor) format.rule = TernaryRule::mean;
      if (*packing != 0) format.packing = TernaryPacking::base3;
      CAPTURE(format.scheme());
      REQUIRE(format.scheme() == std::string("ternary") + group + packing);
      const test::Stored s = test::encode_matrix(format, view);
      const std::vector<float> whole = test::decode_matrix(format, s, view.shape());
      for (const index_t col : {index_t{0}, index_t{512}, index_t{1024}})
        REQUIRE(test::decode_part(format, s, 0, 1300, col, 200) ==
                std::vector<float>(whole.begin() + col, whole.begin() + col + 200));
    }
  }
}

TEST_CASE("ternary weights at the ends of the range", "[quant][format]") {
  for (const test::Weights kind : test::kAllWeights) {
    for (const Ternary& format : {Ternary{}, Ternary{64, TernaryRule::mean}, tensor()}) {
      CAPTURE(format.scheme(), test::to_string(kind));
      const std::vector<float> w = test::make_weights(kind, 300, 3);
      for (const float v : round_trip(format, w, NonFinite::saturate)) REQUIRE(std::isfinite(v));
    }
  }
  for (const float v : round_trip(Ternary{}, std::vector<float>(64, -0.0f)))
    REQUIRE(std::bit_cast<std::uint32_t>(v) == 0);
  const std::vector<float> big(64, 70000.0f);
  REQUIRE_THROWS_AS(stored(Ternary{}, big), ValueError);
  REQUIRE(round_trip(Ternary{}, big, NonFinite::saturate)[0] == 65504.0f);
  REQUIRE(round_trip(tensor(), big)[0] == 70000.0f);  // float32
  REQUIRE_THROWS_AS(Ternary{32}.sections(64), ValueError);
  REQUIRE_THROWS_AS(Ternary{Ternary::kTensor}.sections(64), ValueError);
  REQUIRE(bits_per_weight(Ternary{}, 4096) == 2.0625);
  REQUIRE(bits_per_weight(Ternary{256, TernaryRule::threshold, TernaryPacking::base3}, 4096) == 1.6875);
}

TEST_CASE("BitNet quantizes activations to int8 with a scale per token", "[quant]") {
  const std::vector<float> x = {1.0f, -2.0f, 0.5f, 0.0f, 1e-7f, -2e-7f, 0.0f, 0.0f};
  std::vector<std::int8_t> q(8);
  std::vector<float> scales(2);
  quantize_bitnet_activations(MatrixView<const float>(x.data(), 2, 4), MatrixView<std::int8_t>(q.data(), 2, 4), scales);
  REQUIRE(scales[0] == 63.5f);
  REQUIRE(q == std::vector<std::int8_t>{64, -127, 32, 0, 1, -3, 0, 0});
  REQUIRE(scales[1] == 127.0f / 1e-5f);
  REQUIRE_THROWS_AS(quantize_bitnet_activations(MatrixView<const float>(x.data(), 2, 4),
                                                MatrixView<std::int8_t>(q.data(), 1, 4), scales),
                    ShapeError);
  const std::vector<float> bad = {1.0f, std::numeric_limits<float>::infinity()};
  REQUIRE_THROWS_AS(quantize_bitnet_activations(MatrixView<const float>(bad.data(), 1, 2),
                                                MatrixView<std::int8_t>(q.data(), 1, 2), std::span(scales).first(1)),
                    ValueError);
}
