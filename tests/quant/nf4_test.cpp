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

test::Stored stored(const Nf4& format, const std::vector<float>& w, NonFinite policy = NonFinite::reject) {
  EncodeOptions options;
  options.non_finite = policy;
  return test::encode_matrix(format, MatrixView<const float>(w.data(), 1, static_cast<index_t>(w.size())), options);
}

}  // namespace

TEST_CASE("the levels of NF4 come back exactly", "[quant][format]") {
  std::vector<float> w(64, 0.0f);
  for (std::size_t i = 0; i < 16; ++i) w[i] = Nf4::kLevels[i] * 0.5f;
  const test::Stored s = stored({}, w);
  REQUIRE(test::numbers(s[0]) == std::vector<int>{0x00, 0x38});  // fp16 0.5
  for (std::size_t i = 0; i < 8; ++i)
    REQUIRE(std::to_integer<int>(s[1][i]) == static_cast<int>(2 * i + 16 * (2 * i + 1)));
  REQUIRE(std::to_integer<int>(s[1][8]) == 0x77);
  REQUIRE(round_trip(Nf4{}, w) == w);
}

TEST_CASE("an NF4 code is the nearest level of the scale as stored", "[quant][format]") {
  for (const int block : {32, 64, 128}) {
    const Nf4 format{block};
    const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 700, 4);
    const test::Stored s = stored(format, w);
    const std::vector<float> decoded = round_trip(format, w);
    for (std::size_t i = 0; i < w.size(); ++i) {
      const float scale = detail::load_fp16(s[0].data() + 2 * (i / static_cast<std::size_t>(block)));
      double nearest = 1e30;
      for (const float level : Nf4::kLevels)
        nearest = std::min(nearest, std::abs(double{w[i]} - double{level} * double{scale}));
      CAPTURE(block, i, w[i], decoded[i]);
      REQUIRE(std::abs(double{w[i]} - double{decoded[i]}) <= nearest + 1e-6 * double{scale});
    }
  }
  // A midpoint takes the lower level: (0 + 0.0795803)/2 with scale 1.
  std::vector<float> w(32, 0.0f);
  w[0] = 1.0f;
  w[1] = (Nf4::kLevels[7] + Nf4::kLevels[8]) / 2;
  w[2] = std::nextafter(w[1], 1.0f);
  REQUIRE(round_trip(Nf4{32}, w)[1] == 0.0f);
  REQUIRE(round_trip(Nf4{32}, w)[2] == Nf4::kLevels[8]);
}

TEST_CASE("NF4 at the ends of the range", "[quant][format]") {
  for (const test::Weights kind : test::kAllWeights) {
    CAPTURE(test::to_string(kind));
    const std::vector<float> w = test::make_weights(kind, 200, 3);
    for (const float v : round_trip(Nf4{}, w, NonFinite::saturate)) REQUIRE(std::isfinite(v));
  }
  const test::Stored zero = stored({}, std::vector<float>(64, -0.0f));
  REQUIRE(test::numbers(zero[0]) == std::vector<int>{0, 0});
  REQUIRE(test::numbers(zero[1]) == std::vector<int>(32, 0x77));
  for (const float v : round_trip(Nf4{}, std::vector<float>(64, 0x1p-26f))) REQUIRE(v == 0.0f);
  REQUIRE(round_trip(Nf4{}, std::vector<float>(64, 0x1p-24f))[5] == 0x1p-24f);
  REQUIRE(round_trip(Nf4{}, std::vector<float>(64, 65504.0f))[5] == 65504.0f);

  std::vector<float> big(128, 1.0f);
  big[70] = 70000.0f;
  try {
    stored({}, big);
    FAIL("accepted");
  } catch (const ValueError& e) {
    REQUIRE(std::string(e.what()).find("row 0, column 64") != std::string::npos);
  }
  REQUIRE(round_trip(Nf4{}, big, NonFinite::saturate)[70] == 65504.0f);
  big[70] = std::numeric_limits<float>::infinity();
  REQUIRE_THROWS_AS(stored({}, big), ValueError);
  REQUIRE(round_trip(Nf4{}, big, NonFinite::saturate)[70] == 65504.0f);
  REQUIRE_THROWS_AS(stored({}, big, NonFinite::propagate), UnsupportedError);
}

TEST_CASE("a short last block of NF4 is stored whole", "[quant][format]") {
  const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 75, 21);
  std::vector<float> whole = w;
  whole.resize(128, 0.0f);
  REQUIRE(stored({}, w) == stored({}, whole));
  REQUIRE(bits_per_weight(Nf4{}, 4096) == 4.25);
  REQUIRE(bits_per_weight(Nf4{32}, 4096) == 4.5);
  REQUIRE_THROWS_AS(Nf4{16}.sections(32), ValueError);
}

TEMPLATE_TEST_CASE("with importance a scale is searched for, and the weighted error does not grow", "[quant][format]",
                   Nf4, Bfp, StatsQ) {
  const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 3 * 300, 17);
  std::vector<float> importance(w.size());
  for (std::size_t i = 0; i < importance.size(); ++i) importance[i] = i % 7 == 0 ? 20.0f : 0.5f;
  const MatrixView<const float> view(w.data(), 3, 300);
  EncodeOptions options;
  options.importance = MatrixView<const float>(importance.data(), 3, 300);
  const TestType format;
  const auto stored = test::encode_matrix(format, view, options), plain = test::encode_matrix(format, view);
  CHECK(stored != plain);
  const double before = test::squared_error(test::decode_matrix(format, plain, view.shape()), w, importance);
  const double after = test::squared_error(test::decode_matrix(format, stored, view.shape()), w, importance);
  CAPTURE(before, after);
  CHECK(after < before);
  // No importance at all decides nothing, and a weight that does not count may be lost.
  std::fill(importance.begin(), importance.end(), 0.0f);
  CHECK(test::encode_matrix(format, view, options) == plain);
  for (const float v : test::decode_matrix(format, stored, view.shape())) REQUIRE(std::isfinite(v));
}
