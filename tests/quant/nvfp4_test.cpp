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

constexpr float kInfinity = std::numeric_limits<float>::infinity();

test::Stored stored(const Nvfp4& format, const std::vector<float>& w, index_t rows = 1,
                    NonFinite policy = NonFinite::reject) {
  EncodeOptions options;
  options.non_finite = policy;
  return test::encode_matrix(format, MatrixView<const float>(w.data(), rows, static_cast<index_t>(w.size()) / rows),
                             options);
}

float tensor_scale(const test::Stored& s) { return detail::load_f32(s[2].data()); }

}  // namespace

TEST_CASE("an NVFP4 tensor by hand", "[quant][format]") {
  // A = 2688: enc = dec = 1. The first block has s = 448, the second 1 (amax 6).
  std::vector<float> w(32, 0.0f);
  w[0] = 2688.0f;
  w[1] = -224.0f;
  w[2] = 112.0f;  // u = 0.25: a tie, to 0
  const float second[16] = {6,  0.25f,  0.75f,  1.25f,  1.75f,  2.5f,  3.5f,  5,
                            -6, -0.25f, -0.75f, -1.25f, -1.75f, -2.5f, -3.5f, -5};
  std::copy(std::begin(second), std::end(second), w.begin() + 16);
  const test::Stored s = stored({}, w);
  REQUIRE(s.size() == 3);
  REQUIRE(tensor_scale(s) == 1.0f);
  REQUIRE(test::numbers(s[0]) == std::vector<int>{0x7e, 0x38});
  REQUIRE(test::numbers(s[1]) ==
          std::vector<int>{0x97, 0, 0, 0, 0, 0, 0, 0, 0x07, 0x22, 0x44, 0x66, 0x8f, 0xaa, 0xcc, 0xee});
  const std::vector<float> decoded = round_trip(Nvfp4{}, w);
  REQUIRE(decoded[0] == 2688.0f);
  REQUIRE(decoded[1] == -224.0f);
  const float expected[16] = {6, 0, 1, 1, 2, 2, 4, 4, -6, -0.0f, -1, -1, -2, -2, -4, -4};
  for (std::size_t i = 0; i < 16; ++i) REQUIRE(decoded[16 + i] == expected[i]);
  REQUIRE(std::signbit(decoded[25]));
}

TEST_CASE("the tensor scale is that of the whole matrix", "[quant][format]") {
  std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 512, 5);
  w[500] = 1000.0f;
  const test::Stored s = stored({}, w, 8);
  REQUIRE(tensor_scale(s) == 1.0f / (2688.0f / 1000.0f));
  // Rows encoded with another tensor's scale are other bytes; rows of a fitted format are the same ones.
  const Nvfp4 format = Nvfp4{}.fitted_to({1000.0f, 0.0, 1});
  std::vector<std::vector<std::byte>> part = {std::vector<std::byte>(4), std::vector<std::byte>(32),
                                              std::vector<std::byte>(4)};
  std::vector<std::byte*> dst = {part[0].data(), part[1].data(), part[2].data()};
  encode_rows(format, MatrixView<const float>(w.data() + 64, 1, 64), 1, dst, {});
  REQUIRE(part[0] == std::vector<std::byte>(s[0].begin() + 4, s[0].begin() + 8));
  REQUIRE(part[1] == std::vector<std::byte>(s[1].begin() + 32, s[1].begin() + 64));
  REQUIRE(part[2] == s[2]);
  REQUIRE_THROWS_AS(encode_rows(Nvfp4{}, MatrixView<const float>(w.data(), 1, 64), 0, dst, {}), UnsupportedError);
}

TEST_CASE("four over six is never worse than six and follows importance", "[quant][format]") {
  const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 64 * 16, 9);
  const auto error = [&](const Nvfp4& format, std::uint8_t scale, std::size_t block) {
    const std::span<const float> values = std::span(w).subspan(16 * block, 16);
    std::vector<std::int32_t> codes(16);
    std::vector<float> decoded(16);
    format.encode(values, scale, codes);
    format.decode(codes, scale, 1.0f / format.encode_scale(), decoded);
    double sum = 0;
    for (std::size_t i = 0; i < 16; ++i) sum += std::pow(double{values[i]} - double{decoded[i]}, 2);
    return sum;
  };
  Nvfp4 format{true};
  TensorStatistics statistics;
  statistics.add(MatrixView<const float>(w.data(), 1, 1024), NonFinite::reject, {});
  format = format.fitted_to(statistics);
  int fours = 0;
  for (std::size_t block = 0; block < 64; ++block) {
    const std::span<const float> values = std::span(w).subspan(16 * block, 16);
    const float amax = std::bit_cast<float>(detail::max_magnitude_bits(values));
    const std::uint8_t six = fp8_e4m3(amax / 6 * format.encode_scale()).bits;
    const std::uint8_t chosen = format.fit(values);
    REQUIRE(error(format, chosen, block) <= error(format, six, block) * 1.00001);
    fours += chosen != six ? 1 : 0;
  }
  REQUIRE(fours > 10);
  REQUIRE(fours < 54);
  // 5 is a level of amax / 4 = 2 (codes 6 and 4 give 12 and 8), not of amax / 6: with all weight on it the scale turns.
  const std::vector<float> block = {1536, 1024 + 128, 700, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  const Nvfp4 unit = Nvfp4{true}.fitted_to({1536.0f, 0.0, 16});
  std::vector<float> importance(16, 0.0f);
  importance[0] = 1.0f;
  const std::uint8_t first = unit.fit(block, importance);
  importance[0] = 0.0f;
  importance[1] = 1.0f;
  const std::uint8_t other = unit.fit(block, importance);
  REQUIRE(int{first} == int{fp8_e4m3(256.0f).bits});  // both exact: six
  REQUIRE(int{other} == int{fp8_e4m3(384.0f).bits});  // 1152 = 3 * 384
}

TEST_CASE("NVFP4 at the ends of the range", "[quant][format]") {
  for (const bool variant : {false, true}) {
    const Nvfp4 format{variant};
    for (const test::Weights kind : test::kAllWeights) {
      CAPTURE(variant, test::to_string(kind));
      const std::vector<float> w = test::make_weights(kind, 200, 3);
      for (const float v : round_trip(format, w, NonFinite::saturate)) REQUIRE(std::isfinite(v));
      const test::Stored s = stored(format, w, 1, NonFinite::saturate);
      REQUIRE(std::isfinite(tensor_scale(s)));
      for (const int scale : test::numbers(s[0])) REQUIRE(scale <= 0x7e);
    }
    const std::vector<float> zeros(16, -0.0f);
    const test::Stored zero = stored(format, zeros);
    REQUIRE(test::numbers(zero[1]) == std::vector<int>(8, 0));
    REQUIRE(tensor_scale(zero) == 1.0f);
    const std::vector<float> tiny(16, 0x1p-111f);  // below the smallest absmax that has a scale
    REQUIRE(round_trip(format, tiny) == std::vector<float>(16, 0.0f));
    const std::vector<float> small(16, 0x1p-109f);
    REQUIRE(round_trip(format, small)[0] == Approx(0x1p-109f).epsilon(1e-5));
    for (const float a : {std::numeric_limits<float>::max(), 3.4028233e38f, 3.0e38f}) {
      const std::vector<float> huge(16, a);
      REQUIRE(round_trip(format, huge)[3] == Approx(a).epsilon(1e-6));
    }
  }
  // A block far below the maximum flushes to zero.
  std::vector<float> w(32, 0x1p-19f);
  w[0] = 1.0f;
  REQUIRE(round_trip(Nvfp4{}, w)[20] == 0.0f);
  w[20] = 0x1p-17f;
  REQUIRE(round_trip(Nvfp4{}, w)[20] != 0.0f);
}

TEST_CASE("NVFP4 takes infinity and NaN as the policy says", "[quant][format]") {
  std::vector<float> w(48, 1.0f);
  w[20] = std::numeric_limits<float>::quiet_NaN();
  w[40] = -kInfinity;
  REQUIRE_THROWS_AS(stored({}, w), ValueError);
  const std::vector<float> clamped = round_trip(Nvfp4{}, w, NonFinite::saturate);
  REQUIRE(clamped[0] == 0.0f);  // the infinity takes the whole range of the tensor
  REQUIRE(clamped[40] == Approx(-std::numeric_limits<float>::max()).epsilon(1e-6));
  const std::vector<float> kept = round_trip(Nvfp4{}, w, NonFinite::propagate);
  for (std::size_t i = 0; i < 16; ++i) REQUIRE(kept[i] == Approx(1.0f).epsilon(1e-6));
  for (std::size_t i = 16; i < 48; ++i) REQUIRE(std::isnan(kept[i]));
}

TEST_CASE("a short last block of NVFP4 is stored whole", "[quant][format]") {
  const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 37, 21);
  std::vector<float> whole = w;
  whole.resize(48, 0.0f);
  REQUIRE(stored({}, w) == stored({}, whole));
  REQUIRE(bits_per_weight(Nvfp4{}, 4096) == 4.5);
  REQUIRE(Nvfp4{}.sections(0)[0].bytes_per_row == 0);
}
