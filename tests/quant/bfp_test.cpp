// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "blockpack/quant.hpp"
#include "quant/rows.hpp"
#include "quant/weights.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {

using namespace blockpack;
using test::round_trip;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> block_with(std::initializer_list<float> values, std::size_t size = 32) {
  std::vector<float> block(values);
  block.resize(size, 0.0f);
  return block;
}

/// The definition in double precision, where every step of it is exact.
double by_definition(double x, int shared_exponent, int bits, Rounding rounding, bool asymmetric) {
  const double step = std::ldexp(1.0, shared_exponent - bits + 2);
  const double t = x / step;
  double m = std::nearbyint(t);
  if (rounding == Rounding::down) m = std::floor(t);
  if (rounding == Rounding::toward_zero) m = std::trunc(t);
  if (rounding == Rounding::half_away) m = std::round(t);
  const double limit = std::ldexp(1.0, bits - 1) - 1;
  m = std::min(std::max(m, -limit), limit);
  if (asymmetric && shared_exponent < 127 && m == -limit && std::abs(t - (m - 1)) <= std::abs(t - m)) m -= 1;
  return m * step;
}

}  // namespace

TEST_CASE("a BFP12 block by hand", "[quant][format]") {
  // max 1.9375: E = 0, step = 2^-2; 1.9375 / 0.25 = 7.75 rounds to 8 and is clipped to 7.
  const std::vector<float> w = block_with({1.9375f, -1.0f, 0.125f, -0.375f, 0.376f, -1.9375f});
  const Bfp format;
  const auto stored = test::encode_matrix(format, MatrixView<const float>(w.data(), 1, 32));
  REQUIRE(stored.size() == 2);
  REQUIRE(test::numbers(stored[0]) == std::vector<int>{127});
  REQUIRE(stored[1].size() == 16);
  // 7 and -4 (0xc), 0 (a tie to even) and -2 (a tie, 0xe), 2 and -7 (0x9)
  REQUIRE(std::to_integer<int>(stored[1][0]) == 0xc7);
  REQUIRE(std::to_integer<int>(stored[1][1]) == 0xe0);
  REQUIRE(std::to_integer<int>(stored[1][2]) == 0x92);
  REQUIRE(round_trip(format, w) == block_with({1.75f, -1.0f, 0.0f, -0.5f, 0.5f, -1.75f}));
}

TEST_CASE("every BFP width, block and rounding agrees with the definition in double precision", "[quant][format]") {
  for (int bits = 2; bits <= 24; ++bits) {
    for (const int block : {16, 128}) {
      for (const Rounding rounding :
           {Rounding::half_even, Rounding::half_away, Rounding::toward_zero, Rounding::down}) {
        for (const bool asymmetric : {false, true}) {
          const Bfp format{bits, block, asymmetric, rounding};
          for (const test::Weights kind : {test::Weights::heavy_tailed, test::Weights::ties, test::Weights::tiny,
                                           test::Weights::huge, test::Weights::all_exponents}) {
            const std::vector<float> w = test::make_weights(kind, 256, static_cast<std::uint64_t>(bits));
            const std::vector<float> got = round_trip(format, w);
            std::size_t wrong = 0;
            for (std::size_t b = 0; b < w.size(); b += static_cast<std::size_t>(block)) {
              float top = 0;
              for (std::size_t i = b; i < b + static_cast<std::size_t>(block); ++i) top = std::max(top, std::abs(w[i]));
              const int exponent = top == 0 ? -126 : std::max(-126, std::ilogb(top));
              for (std::size_t i = b; i < b + static_cast<std::size_t>(block); ++i)
                wrong += static_cast<double>(got[i]) !=
                         static_cast<double>(static_cast<float>(
                             by_definition(static_cast<double>(w[i]), exponent, bits, rounding, asymmetric)));
            }
            CAPTURE(format.scheme(), test::to_string(kind));
            REQUIRE(wrong == 0);
          }
        }
      }
    }
  }
}

TEST_CASE("a BFP block of zeros stores exponent 0 and codes 0, and -0 becomes 0", "[quant][format]") {
  for (const int bits : {2, 4, 7, 8, 16}) {
    const Bfp format{bits, 32};
    const std::vector<float> w(32, -0.0f);
    const auto stored = test::encode_matrix(format, MatrixView<const float>(w.data(), 1, 32));
    REQUIRE(test::numbers(stored[0]) == std::vector<int>{0});
    REQUIRE(test::numbers(stored[1]) == std::vector<int>(static_cast<std::size_t>(4 * bits), 0));
    for (const float v : round_trip(format, w)) REQUIRE(std::bit_cast<std::uint32_t>(v) == 0);
    // Beside other weights too.
    REQUIRE(std::bit_cast<std::uint32_t>(round_trip(format, block_with({1.0f, -0.0f}))[1]) == 0);
  }
}

TEST_CASE("a BFP block of subnormals has the exponent of the smallest normal float", "[quant][format]") {
  const float smallest = std::numeric_limits<float>::denorm_min();
  const std::vector<float> w = block_with({3 * smallest, -smallest, 0x1p-127f});
  REQUIRE(int{Bfp{4, 32}.fit(w)} == 1);
  REQUIRE(round_trip(Bfp{4, 32}, w) == block_with({0.0f, 0.0f, 0x1p-127f}));
  REQUIRE(round_trip(Bfp{24, 32}, w) == block_with({4 * smallest, 0.0f, 0x1p-127f}));  // step 2^-148: ties to even
}

TEST_CASE("BFP takes infinity and NaN as the policy says", "[quant][format]") {
  std::vector<float> w(70, 1.0f);
  w[65] = kNan;
  w[66] = -kInfinity;
  const MatrixView<const float> view(w.data(), 2, 35);
  const Bfp format;
  REQUIRE_THROWS_AS(test::encode_matrix(format, view), ValueError);
  try {
    test::encode_matrix(format, view);
  } catch (const ValueError& e) {
    REQUIRE(std::string(e.what()).find("row 1, column 30") != std::string::npos);
  }
  EncodeOptions options;
  options.non_finite = NonFinite::propagate;
  REQUIRE_THROWS_AS(test::encode_matrix(format, view, options), UnsupportedError);
  const std::vector<float> got = round_trip(format, std::vector<float>(w.begin() + 35, w.end()), NonFinite::saturate);
  REQUIRE(got[30] == 0.0f);           // NaN
  REQUIRE(got[31] == -7 * 0x1p125f);  // the largest value of BFP12
  REQUIRE(got[0] == 0.0f);            // far below the step
  REQUIRE(got[34] == 1.0f);           // another block
  const std::vector<float> largest(32, std::numeric_limits<float>::max());
  REQUIRE(round_trip(format, largest) == std::vector<float>(32, 7 * 0x1p125f));
}

TEST_CASE("a short last BFP block is stored whole, its missing codes are 0", "[quant][format]") {
  const std::vector<float> w = {1.0f, -0.5f, 3.0f};
  for (const int bits : {4, 5}) {
    const Bfp format{bits, 16};
    const auto stored = test::encode_matrix(format, MatrixView<const float>(w.data(), 1, 3));
    const std::vector<float> whole = block_with({1.0f, -0.5f, 3.0f}, 16);
    REQUIRE(stored == test::encode_matrix(format, MatrixView<const float>(whole.data(), 1, 16)));
    REQUIRE(stored[1].size() == static_cast<std::size_t>(2 * bits));
    REQUIRE(round_trip(format, w) == w);
  }
}

TEST_CASE("stochastic BFP rounding is unbiased and depends on seed and place alone", "[quant][format]") {
  Bfp format{4, 32, false, Rounding::stochastic, 7};
  std::vector<float> w(4096, 0.3f);  // step 1/8 with a maximum of 0.5: 2.4 steps
  for (std::size_t i = 0; i < w.size(); i += 32) w[i] = 0.5f;
  for (std::size_t i = 1; i < w.size(); i += 2) w[i] = -w[i];
  const std::vector<float> first = round_trip(format, w);
  REQUIRE(round_trip(format, w) == first);
  double sum = 0;
  std::size_t count = 0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    const float m = std::abs(first[i]) * 8.0f;
    REQUIRE((i % 32 == 0 ? m == 4.0f : (m == 2.0f || m == 3.0f)));
    if (i % 32 == 0) continue;
    sum += static_cast<double>(m);
    ++count;
  }
  REQUIRE(std::abs(sum / static_cast<double>(count) - 2.4) < 5 * 0.49 / std::sqrt(static_cast<double>(count)));
  format.seed = 8;
  REQUIRE(round_trip(format, w) != first);

  // Rows encoded as one matrix or one by one, whatever the panel.
  const std::vector<float> two = [&] {
    std::vector<float> both = w;
    both.insert(both.end(), w.begin(), w.end());
    return both;
  }();
  const MatrixView<const float> view(two.data(), 2, 4096);
  const auto whole = test::encode_matrix(format, view);
  std::vector<std::byte> exponents(128), codes(2048);
  const std::byte* expected = whole[1].data() + 2048;
  std::byte* dst[] = {exponents.data(), codes.data()};
  encode_rows(format, view.rows_from(1, 1), 1, dst, {});
  REQUIRE(std::equal(codes.begin(), codes.end(), expected));
  REQUIRE(!std::equal(codes.begin(), codes.end(), whole[1].data()));  // row 0 drew other numbers
}

TEST_CASE("stochastic rounding of an exact multiple does not move it, and tiny values round down now and then",
          "[quant][format]") {
  for (const std::uint32_t random : {0u, 1u, 0xffffffu}) {
    REQUIRE(detail::round_to_steps(3.0f, 0, Rounding::stochastic, random) == 3);
    REQUIRE(detail::round_to_steps(-3.0f, 0, Rounding::stochastic, random) == -3);
    REQUIRE(detail::round_to_steps(-0x1p-140f, 0, Rounding::stochastic, random) == (random == 0 ? -1 : 0));
    REQUIRE(detail::round_to_steps(0x1p-140f, 0, Rounding::stochastic, random) == 0);
  }
  REQUIRE(detail::round_to_steps(0.75f, 0, Rounding::stochastic, 0x3fffff) == 0);  // 0.75 + 0.25 - 2^-24
  REQUIRE(detail::round_to_steps(0.75f, 0, Rounding::stochastic, 0x400000) == 1);
  REQUIRE(detail::round_to_steps(-0.75f, 0, Rounding::stochastic, 0xbfffff) == -1);
  REQUIRE(detail::round_to_steps(-0.75f, 0, Rounding::stochastic, 0xc00000) == 0);
  REQUIRE(detail::round_to_steps(-0x1p-140f, 0, Rounding::down) == -1);
  REQUIRE(detail::round_to_steps(kInfinity, 0, Rounding::half_even) == detail::kManySteps);
  REQUIRE(detail::round_to_steps(kNan, 0, Rounding::half_even) == 0);
}

TEST_CASE("codes of every width come back from their bit stream", "[quant][format]") {
  for (int bits = 2; bits <= 24; ++bits) {
    const Bfp format{bits, 16};
    const std::int32_t limit = (1 << (bits - 1)) - 1;
    std::vector<std::int32_t> codes = {limit, -limit, -limit - 1, 0, 1, -1, limit / 2, -(limit / 2),
                                       0,     limit,  -1,         1, 0, 0,  -limit,    limit};
    std::vector<std::uint8_t> packed(static_cast<std::size_t>(format.code_bytes()));
    format.pack(codes, packed.data());
    std::vector<std::int32_t> unpacked(16);
    format.unpack(packed.data(), unpacked);
    REQUIRE(unpacked == codes);
  }
}

TEST_CASE("BFP scales with powers of two and equals MXINT8 at width 8", "[quant][format]") {
  const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 512, 3);
  std::vector<float> larger = w;
  for (float& v : larger) v *= 0x1p20f;
  for (const int bits : {4, 8, 11}) {
    std::vector<float> expected = round_trip(Bfp{bits, 64}, w);
    for (float& v : expected) v *= 0x1p20f;
    REQUIRE(round_trip(Bfp{bits, 64}, larger) == expected);
  }
  REQUIRE(round_trip(Bfp{8, 32}, w) == round_trip(Mx{MxElement::int8}, w));
}

TEST_CASE("BFP decodes foreign bytes as its page says", "[quant][format]") {
  const Bfp format;
  std::vector<std::int32_t> codes(32, -8);
  std::vector<float> values(32);
  format.decode(codes, 127, values);
  REQUIRE(values[0] == -2.0f);
  format.decode(codes, 0, values);
  REQUIRE(values[0] == 0.0f);
  format.decode(codes, 255, values);
  REQUIRE(std::isnan(values[0]));
}

TEST_CASE("BFP schemes, sizes and refused parameters", "[quant][format]") {
  REQUIRE(Bfp{}.scheme() == "bfp12-b32");
  REQUIRE(Bfp{16, 128, true, Rounding::down}.scheme() == "bfp24-b128-asym-down");
  REQUIRE(bits_per_weight(Bfp{4, 128}, 4096) == 4.0625);
  REQUIRE(bits_per_weight(Bfp{24, 16}, 16) == 24.5);
  REQUIRE(Bfp{4, 32}.sections(0)[0].bytes_per_row == 0);
  REQUIRE_THROWS_AS((Bfp{1, 32}.sections(32)), ValueError);
  REQUIRE_THROWS_AS((Bfp{25, 32}.sections(32)), ValueError);
  REQUIRE_THROWS_AS((Bfp{4, 48}.sections(32)), ValueError);
}

#if !defined(BLOCKPACK_HEADERS_ONLY)
TEST_CASE("BFP too wide for codes is multiplied from packed values", "[quant][format]") {
  const index_t out = 35, in = 97, tokens = 3;
  const std::vector<float> w = test::random_normal(out * in, 1), x = test::random_normal(tokens * in, 2);
  const MatrixView<const float> weights(w.data(), out, in), rows(x.data(), tokens, in);
  for (const int bits : {9, 10, 16, 24}) {
    CAPTURE(bits);
    const Bfp format{.mantissa_bits = bits};
    const auto stored = QuantizedMatrix<Bfp>::encode(weights, format, {}, PackPolicy::none());
    auto packed = QuantizedMatrix<Bfp>::encode(weights, format, {}, PackPolicy::ahead());
    CHECK(stored.packed_bytes() == 0);
    CHECK(packed.packed_bytes() == stored.packed_bytes_needed());
    CHECK(packed.packed_bytes() >= static_cast<std::size_t>(out * in * (bits <= 9 ? 2 : 4)));
    packed.release_stored();
    const double bound = stored.activation_mode(tokens) == Activations::f32 ? 1e-5 : 2e-2;
    std::vector<float> a(static_cast<std::size_t>(tokens * out)), b(a.size());
    stored.apply(rows, MatrixView<float>(a.data(), tokens, out));
    packed.apply(rows, MatrixView<float>(b.data(), tokens, out));
    for (std::size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) <= bound * std::sqrt(97.0));
  }
}
#endif
