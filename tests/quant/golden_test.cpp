// SPDX-License-Identifier: Apache-2.0
/// The golden vectors of microxcaling (mx_*), dmx-compressor (bfp*) and GPTQ's group quantizer (group_*), each through
/// the separate parts of a format and through the row encoder.

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/quant.hpp"
#include "quant/golden_cases.hpp"
#include "quant/rows.hpp"
#include "support/catch.hpp"

namespace {

using namespace blockpack;
using test::cases_of;
using Case = test::GoldenCase;

Rounding rounding_of(const std::string& name) {
  if (name == "half_to_even") return Rounding::half_even;
  if (name == "half_away_from_zero") return Rounding::half_away;
  if (name == "toward_zero") return Rounding::toward_zero;
  if (name == "toward_minus_infinity") return Rounding::down;
  throw std::runtime_error("unknown rounding " + name);
}

MxElement element_of(const std::string& name) {
  const std::pair<const char*, MxElement> names[] = {{"fp8_e4m3", MxElement::e4m3}, {"fp8_e5m2", MxElement::e5m2},
                                                     {"fp6_e3m2", MxElement::e3m2}, {"fp6_e2m3", MxElement::e2m3},
                                                     {"fp4_e2m1", MxElement::e2m1}, {"int8", MxElement::int8},
                                                     {"int4", MxElement::int4}};
  for (const auto& [text, element] : names)
    if (name == text) return element;
  throw std::runtime_error("unknown element " + name);
}

template <class Format>
std::vector<float> through_rows(const Format& format, MatrixView<const float> w, NonFinite policy) {
  EncodeOptions options;
  options.non_finite = policy;
  return test::decode_matrix(format, test::encode_matrix(format, w, options), w.shape());
}

bool same_value(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

}  // namespace

TEST_CASE("MX gives the values and scales of microxcaling bit for bit", "[quant][golden]") {
  std::size_t count = 0;
  for (const Case& c : cases_of("mx_quantize")) {
    CAPTURE(c.id);
    REQUIRE(c.params.at("axis") == -1);
    Mx format;
    format.element = element_of(c.params.at("elem_format"));
    format.block = c.params.at("block_size");
    format.rounding = rounding_of(c.params.at("rounding"));
    const auto x = c.array<float>("x");
    const auto y = c.array<float>("y");
    const auto scales = c.array<std::uint8_t>("scale_e8m0");
    REQUIRE(x.values.size() == y.values.size());
    REQUIRE(scales.cols * format.block == x.cols);
    for (index_t r = 0; r < x.rows; ++r) {
      for (index_t b = 0; b < scales.cols; ++b) {
        const auto values =
            x.view().row(r).subspan(static_cast<std::size_t>(b * format.block), static_cast<std::size_t>(format.block));
        const std::uint8_t scale = format.fit(values, {}, NonFinite::propagate);
        if (detail::max_magnitude_bits(values) != 0) {
          CAPTURE(r, b);
          REQUIRE(int{scale} == int{scales.view()(r, b)});
        }
        std::vector<std::int32_t> codes(values.size());
        format.encode(values, scale, codes);
        std::vector<std::uint8_t> packed(static_cast<std::size_t>(format.code_bytes()));
        format.pack(codes, packed.data());
        std::vector<std::int32_t> unpacked(values.size());
        format.unpack(packed.data(), unpacked);
        std::vector<float> decoded(values.size());
        format.decode(unpacked, scale, decoded);
        for (std::size_t i = 0; i < values.size(); ++i) {
          CAPTURE(r, b, i, values[i], decoded[i]);
          REQUIRE(same_value(decoded[i], y.view()(r, b * format.block + static_cast<index_t>(i))));
        }
      }
    }
    const auto rows = through_rows(format, x.view(), NonFinite::propagate);
    for (std::size_t i = 0; i < rows.size(); ++i) REQUIRE(same_value(rows[i], y.values[i]));
    ++count;
  }
  REQUIRE(test::golden_complete(count, 30));
}

TEST_CASE("BFP gives the values and exponents of dmx-compressor", "[quant][golden]") {
  std::size_t count = 0;
  for (const Case& c : cases_of("bfp_quantize")) {
    CAPTURE(c.id);
    Bfp format;
    format.mantissa_bits = c.params.at("mantissa_bits_incl_sign");
    format.block = c.params.at("block");
    format.rounding = rounding_of(c.params.at("rounding"));
    format.asymmetric = c.params.at("mantissa_range") != "symmetric";
    const auto x = c.array<float>("x");
    const auto y = c.array<float>("y");
    const auto exponents = c.array<std::int32_t>("shared_exp");
    REQUIRE(exponents.cols * format.block == x.cols);
    const auto rows = through_rows(format, x.view(), NonFinite::reject);
    for (index_t r = 0; r < x.rows; ++r) {
      for (index_t b = 0; b < exponents.cols; ++b) {
        const auto values =
            x.view().row(r).subspan(static_cast<std::size_t>(b * format.block), static_cast<std::size_t>(format.block));
        const std::uint8_t exponent = format.fit(values);
        CAPTURE(r, b);
        if (detail::max_magnitude_bits(values) != 0) REQUIRE(int{exponent} - 127 == exponents.view()(r, b));
        const double step = std::ldexp(1.0, format.step_exponent(exponent));
        for (std::size_t i = 0; i < values.size(); ++i) {
          const index_t at = b * format.block + static_cast<index_t>(i);
          const float ours = rows[static_cast<std::size_t>(r * x.cols + at)];
          const float theirs = y.view()(r, at);
          if (ours == theirs) continue;
          // The reference adds 6 * 2^E in float32 before it rounds, which can carry a value to the boundary it is near.
          // A difference is allowed only where that addition explains it.
          const double t = static_cast<double>(values[i]) / step;
          const auto offset = static_cast<float>(std::ldexp(6.0, int{exponent} - 127));
          volatile float sum = values[i] + offset;
          const double moved = static_cast<double>(sum - offset) / step;
          const double rounded = format.rounding == Rounding::down ? std::floor(moved) : std::nearbyint(moved);
          CAPTURE(i, values[i], ours, theirs, t, moved);
          REQUIRE(static_cast<double>(theirs) == rounded * step);
          REQUIRE(std::abs(t - std::floor(t) - 0.5) <= 1e-6 * std::max(1.0, std::abs(t)));
          REQUIRE(std::abs(static_cast<double>(ours) - static_cast<double>(theirs)) == step);
        }
      }
    }
    ++count;
  }
  REQUIRE(test::golden_complete(count, 7));
}

TEST_CASE("group integers give the scales, zero points and values of GPTQ's quantizer", "[quant][golden]") {
  std::size_t count = 0;
  for (const Case& c : cases_of("group_rtn")) {
    CAPTURE(c.id);
    GroupInt format;
    format.bits = c.params.at("bits");
    const int group = c.params.at("group");
    format.group_size = group == -1 ? 0 : group;
    format.grid = c.params.at("symmetric").get<bool>() ? GroupGrid::half_step : GroupGrid::asymmetric;
    const auto w = c.array<float>("w");
    const auto scales = c.array<float>("scale");
    const auto zeros = c.array<float>("zero");
    const auto w_hat = c.array<float>("w_hat");
    const index_t size = group == -1 ? w.cols : group;
    REQUIRE(scales.cols == w.cols / size);
    for (index_t r = 0; r < w.rows; ++r) {
      for (index_t g = 0; g < scales.cols; ++g) {
        CAPTURE(r, g);
        const auto values = w.view().row(r).subspan(static_cast<std::size_t>(g * size), static_cast<std::size_t>(size));
        const GroupParameters p = format.fit(values);
        const float scale = scales.view()(r, g);
        REQUIRE(std::abs(p.scale - scale) <= 1e-6f * scale);
        REQUIRE(static_cast<float>(p.zero_point) == zeros.view()(r, g));
        std::vector<std::int32_t> codes(values.size());
        format.encode(values, p, codes);
        std::vector<float> decoded(values.size());
        format.decode(codes, p, decoded);
        for (std::size_t i = 0; i < values.size(); ++i) {
          const float theirs = w_hat.view()(r, g * size + static_cast<index_t>(i));
          if (std::abs(decoded[i] - theirs) <= 1e-6f) continue;
          const double t = static_cast<double>(values[i]) / static_cast<double>(p.scale);
          CAPTURE(i, values[i], decoded[i], theirs, t);
          REQUIRE(std::abs(t - std::floor(t) - 0.5) <= 1e-6);  // an exact tie
          REQUIRE(std::abs(decoded[i] - theirs) <= p.scale * 1.000001f);
        }
      }
    }
    ++count;
  }
  REQUIRE(test::golden_complete(count, 24));
}
