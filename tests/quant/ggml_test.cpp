// SPDX-License-Identifier: Apache-2.0
/// What the golden vectors do not reach: hand-worked blocks of Q5_1 and Q8_K, scale codes, short rows, and weights that
/// are tiny, huge, infinite or of no importance.

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "blockpack/quant/ggml.hpp"
#include "quant/rows.hpp"
#include "quant/weights.hpp"
#include "support/catch.hpp"

namespace {

using namespace blockpack;
using test::numbers;

constexpr float kLargest = std::numeric_limits<float>::max();

test::Stored encode_row(const Ggml& format, const std::vector<float>& w, const std::vector<float>& importance = {},
                        NonFinite policy = NonFinite::reject) {
  EncodeOptions options;
  options.non_finite = policy;
  if (!importance.empty())
    options.importance = MatrixView<const float>(importance.data(), 1, static_cast<index_t>(importance.size()));
  return test::encode_matrix(format, MatrixView<const float>(w.data(), 1, static_cast<index_t>(w.size())), options);
}
std::vector<float> decode_row(const Ggml& format, const test::Stored& stored, std::size_t count) {
  return test::decode_matrix(format, stored, {1, static_cast<index_t>(count)});
}
std::vector<float> whole_block(const Ggml& format, float value) {
  return std::vector<float>(static_cast<std::size_t>(format.spec().block), value);
}

}  // namespace

TEST_CASE("a Q5_1 block worked by hand", "[quant][format]") {
  const Ggml format{GgmlType::q5_1};
  std::vector<float> w(32);
  std::vector<int> q(32);
  for (int j = 0; j < 32; ++j) {
    q[static_cast<std::size_t>(j)] = 5 * j % 32;
    w[static_cast<std::size_t>(j)] = -2.0f + 0.5f * static_cast<float>(5 * j % 32);  // min -2, max 13.5, d = 15.5 / 31
  }
  const test::Stored stored = encode_row(format, w);
  std::vector<int> expected = {0x00, 0x38, 0x00, 0xc0};  // 0.5, -2
  std::uint32_t high = 0;
  for (std::size_t j = 0; j < 32; ++j) high |= static_cast<std::uint32_t>(q[j] >> 4) << j;
  for (int b = 0; b < 4; ++b) expected.push_back(static_cast<int>((high >> (8 * b)) & 255));
  for (std::size_t j = 0; j < 16; ++j) expected.push_back((q[j] & 15) | ((q[j + 16] & 15) << 4));
  REQUIRE(numbers(stored[0]) == expected);
  REQUIRE(decode_row(format, stored, 32) == w);
}

TEST_CASE("a Q8_K block worked by hand", "[quant][format]") {
  const Ggml format{GgmlType::q8_k};
  std::vector<float> w(256, 0.0f);
  w[0] = 1.0f;
  w[17] = -3.0f;
  w[18] = 5.0f;
  w[255] = 127.0f;  // the signed maximum: iscale = -127 / 127 = -1, q = -x, d = -1
  const test::Stored stored = encode_row(format, w);
  std::vector<int> expected(292, 0);
  expected[2] = 0x80;  // -1.0f = 0xbf800000
  expected[3] = 0xbf;
  expected[4] = 255;  // -1
  expected[4 + 17] = 3;
  expected[4 + 18] = 251;               // -5
  expected[4 + 255] = 129;              // -127
  expected[260] = expected[261] = 255;  // the sum of 16: -1
  expected[262] = 254;                  // 3 - 5
  expected[263] = 255;
  expected[290] = 129;  // -127
  expected[291] = 255;
  REQUIRE(numbers(stored[0]) == expected);
  REQUIRE(decode_row(format, stored, 256) == w);
}

TEST_CASE("NVFP4 of ggml: every scale code and its rounding", "[quant][format]") {
  using ggml::simple::ue4m3_code;
  using ggml::simple::ue4m3_value;
  REQUIRE(ue4m3_value(0x7f) == 0.0f);
  REQUIRE(ue4m3_value(0x7e) == 448.0f);
  REQUIRE(ue4m3_value(0x01) == 0x1p-9f);
  for (int code = 0; code < 0x7e; ++code) {
    const float value = ue4m3_value(static_cast<std::uint8_t>(code));
    const float next = ue4m3_value(static_cast<std::uint8_t>(code + 1));
    CAPTURE(code, value, next);
    REQUIRE(value == static_cast<float>(fp8_e4m3::from_bits(static_cast<std::uint8_t>(code))));
    REQUIRE(ue4m3_code(value) == code);
    const float middle = 0.5f * (value + next);
    // Half up, but the subnormal codes end at 7.
    REQUIRE(ue4m3_code(middle) == (code == 7 ? 7 : code + 1));
    // Below half of the smallest code the float32 sum of ggml rounds up: 0.49999997 + 0.5 = 1.
    REQUIRE(ue4m3_code(std::nextafter(middle, 0.0f)) == (code == 0 ? 1 : code));
  }
  REQUIRE(ue4m3_code(kLargest) == 0x7e);
  REQUIRE(ue4m3_code(0.0f) == 0);
}

TEST_CASE("E2M1 in ggml: ties go to the smaller magnitude and zero has no sign", "[quant][format]") {
  using ggml::simple::e2m1_code;
  const float middles[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  for (const float scale : {1.0f, 0x1p-127f, 0x1p-9f, 448.0f})
    for (int code = 0; code < 7; ++code) {
      const float middle = middles[code] * scale;
      REQUIRE(e2m1_code(middle, scale) == code);
      REQUIRE(e2m1_code(std::nextafter(middle, kLargest), scale) == code + 1);
      REQUIRE(e2m1_code(-middle, scale) == (code == 0 ? 0 : code + 8));
    }
  REQUIRE(e2m1_code(3.0f, 0.0f) == 0);
}

TEST_CASE("the nearest level of IQ4 is the larger one on a tie", "[quant][format]") {
  for (int i = 0; i < 15; ++i) {
    const float middle = 0.5f * static_cast<float>(ggml::kIq4Levels[i] + ggml::kIq4Levels[i + 1]);
    REQUIRE(ggml::nearest_iq4(middle) == i + 1);
    REQUIRE(ggml::nearest_iq4(std::nextafter(middle, -200.0f)) == i);
  }
  REQUIRE(ggml::nearest_iq4(-1e30f) == 0);
  REQUIRE(ggml::nearest_iq4(1e30f) == 15);
}

TEST_CASE("a short last block of ggml is stored whole, filled with zeros", "[quant][format]") {
  for (const GgmlType type : Ggml::kTypes) {
    const Ggml format{type};
    CAPTURE(format.scheme());
    const auto block = static_cast<std::size_t>(format.spec().block);
    std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 2 * block - 5, 7);
    std::vector<float> padded = w;
    padded.resize(2 * block, 0.0f);
    const test::Stored stored = encode_row(format, w);
    REQUIRE(stored[0] == encode_row(format, padded)[0]);
    REQUIRE(static_cast<int>(stored[0].size()) == 2 * format.spec().block_bytes);
    const std::vector<float> decoded = decode_row(format, stored, w.size());
    const std::vector<float> whole = decode_row(format, stored, padded.size());
    REQUIRE(std::equal(decoded.begin(), decoded.end(), whole.begin()));
    REQUIRE(encode_row(format, {})[0].empty());
  }
}

TEST_CASE("ggml blocks of zeros and of what counts as zero decode to zeros", "[quant][format]") {
  for (const GgmlType type : Ggml::kTypes) {
    const Ggml format{type};
    CAPTURE(format.scheme());
    const std::vector<float> zeros = whole_block(format, 0.0f);
    const test::Stored of_zeros = encode_row(format, zeros);
    REQUIRE(decode_row(format, of_zeros, zeros.size()) == zeros);
    if (format.exact_in_bf16()) continue;
    for (const float tiny : {1e-45f, 1e-38f, 1e-20f, 1e-16f}) {
      std::vector<float> w = whole_block(format, tiny);
      w[1] = -tiny;
      const std::vector<float> decoded = decode_row(format, encode_row(format, w), w.size());
      REQUIRE(decoded == zeros);
      const std::vector<float> weighted =
          decode_row(format, encode_row(format, w, whole_block(format, 1.0f)), w.size());
      REQUIRE(weighted == zeros);
    }
  }
}

TEST_CASE("a ggml scale that rounds to 0 stores the codes of 0", "[quant][format]") {
  for (const GgmlType type :
       {GgmlType::q4_0, GgmlType::q4_1, GgmlType::q5_0, GgmlType::q5_1, GgmlType::q8_0, GgmlType::iq4_nl,
        GgmlType::iq4_xs, GgmlType::tq1_0, GgmlType::tq2_0, GgmlType::q3_k, GgmlType::q6_k}) {
    const Ggml format{type};
    for (const bool weighted : {false, true}) {
      CAPTURE(format.scheme(), weighted);
      std::vector<float> w = whole_block(format, 0.0f);
      for (std::size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(i % 7) * 1e-9f;
      const std::vector<float> importance = weighted ? whole_block(format, 1.0f) : std::vector<float>{};
      test::Stored stored = encode_row(format, w, importance);
      std::vector<int> expected = numbers(encode_row(format, whole_block(format, 0.0f), importance)[0]);
      std::vector<int> got = numbers(stored[0]);
      if (format.spec().block == 32 || type == GgmlType::iq4_xs)
        for (auto* bytes : {&expected, &got}) {  // a scale or minimum that rounds to 0 keeps its sign
          (*bytes)[1] &= 0x7f;
          if (type == GgmlType::q4_1 || type == GgmlType::q5_1) (*bytes)[3] &= 0x7f;
        }
      REQUIRE(got == expected);
    }
  }
}

TEST_CASE("weights beyond what a ggml scale can reach are refused before the row is written", "[quant][format]") {
  for (const GgmlType type : Ggml::kTypes) {
    const Ggml format{type};
    if (format.exact_in_bf16()) continue;  // MXFP4 reaches every float, NVFP4 saturates as ggml does
    CAPTURE(format.scheme());
    std::vector<float> w(2 * static_cast<std::size_t>(format.spec().block), 1.0f);
    w.back() = kLargest;
    std::vector<std::byte> row(static_cast<std::size_t>(2 * format.spec().block_bytes), std::byte{0x5a});
    std::byte* const dst[] = {row.data()};
    REQUIRE_THROWS_AS(format.encode_row(EncodeRow{w, {}, 3, NonFinite::reject}, dst), ValueError);
    REQUIRE(std::count(row.begin(), row.end(), std::byte{0x5a}) == static_cast<std::ptrdiff_t>(row.size()));
    try {
      format.encode_row(EncodeRow{w, {}, 3, NonFinite::reject}, dst);
    } catch (const ValueError& e) {
      CHECK(std::string(e.what()).find(format.scheme()) != std::string::npos);
      CHECK(std::string(e.what()).find("row 3, column " + std::to_string(w.size() - 1)) != std::string::npos);
    }
  }
  // Q2_K: both ends are within reach, the scale between them is not.
  std::vector<float> w(256, 15 * 65504.0f);
  w[5] = -15 * 65504.0f;
  w[6] = 45 * 65504.0f;
  REQUIRE_THROWS_WITH(encode_row(Ggml{GgmlType::q2_k}, w), Catch::Matchers::Contains("beyond fp16"));
}

TEST_CASE("saturated ggml rows hold finite scales and keep signs", "[quant][format]") {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const GgmlType type : Ggml::kTypes) {
    const Ggml format{type};
    const auto block = static_cast<std::size_t>(format.spec().block);
    for (const bool weighted : {false, true}) {
      for (const float top : {1e6f, 1e20f, kLargest, infinity}) {
        CAPTURE(format.scheme(), weighted, top);
        std::vector<float> w(2 * block, 0.25f);
        w[2] = top;
        w[block + 3] = -top;
        w[block + 5] = top;
        std::vector<float> importance;
        if (weighted)
          for (std::size_t i = 0; i < w.size(); ++i) importance.push_back(static_cast<float>(i % 5));
        const std::vector<float> decoded =
            decode_row(format, encode_row(format, w, importance, NonFinite::saturate), w.size());
        for (const float v : decoded) REQUIRE(std::isfinite(v));
        if (weighted) continue;  // a weight of no importance may come out anywhere
        REQUIRE(decoded[2] > 0.0f);
        REQUIRE(decoded[block + 3] < 0.0f);
      }
    }
  }
  // The largest value of a type: 8 * 65504 below zero.
  std::vector<float> w(32, 0.0f);
  w[0] = -infinity;
  REQUIRE(decode_row(Ggml{}, encode_row(Ggml{}, w, {}, NonFinite::saturate), 32)[0] == -8 * 65504.0f);
}

TEST_CASE("every kind of weights gives finite values in every ggml type", "[quant][format]") {
  for (const GgmlType type : Ggml::kTypes) {
    const Ggml format{type};
    for (const test::Weights kind : test::kAllWeights) {
      const std::vector<float> w = test::make_weights(kind, 517, 3);
      for (const float importance : {0.0f, 1e-30f, 1.0f, 1e30f, kLargest}) {
        CAPTURE(format.scheme(), test::to_string(kind), importance);
        std::vector<float> weights(w.size(), importance);
        weights[3] = 0.5f;
        for (const float v : decode_row(format, encode_row(format, w, weights, NonFinite::saturate), w.size()))
          REQUIRE(std::isfinite(v));
      }
    }
  }
}

TEST_CASE("importance lowers the weighted error of the ggml types that search with it", "[quant][format]") {
  const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 4096, 11);
  std::vector<float> importance(w.size());
  for (std::size_t i = 0; i < w.size(); ++i) importance[i] = i % 13 == 0 ? 20.0f : 0.05f;
  for (const GgmlType type : Ggml::kTypes) {
    const Ggml format{type};
    CAPTURE(format.scheme());
    const test::Stored plain = encode_row(format, w);
    const test::Stored weighted = encode_row(format, w, importance);
    const bool searches = type <= GgmlType::q5_1 || (type >= GgmlType::q2_k && type <= GgmlType::q6_k) ||
                          type == GgmlType::iq4_nl || type == GgmlType::iq4_xs;
    if (!searches) {
      REQUIRE(plain[0] == weighted[0]);
      continue;
    }
    const double before = test::squared_error(decode_row(format, plain, w.size()), w, importance);
    const double after = test::squared_error(decode_row(format, weighted, w.size()), w, importance);
    REQUIRE(after < 0.9 * before);
  }
}

TEST_CASE("importance beyond float32 sums falls back to the encoder without it", "[quant][format]") {
  const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 512, 5);
  const std::vector<float> importance(w.size(), kLargest);
  for (const GgmlType type : {GgmlType::q4_k, GgmlType::q6_k, GgmlType::iq4_nl, GgmlType::q3_k, GgmlType::q4_0}) {
    CAPTURE(Ggml{type}.scheme());
    REQUIRE(encode_row(Ggml{type}, w, importance)[0] == encode_row(Ggml{type}, w)[0]);
  }
}

TEST_CASE("ggml schemes", "[quant][scheme]") {
  for (const GgmlType type : Ggml::kTypes) {
    const Ggml format{type};
    REQUIRE(Ggml::from_fields(format.scheme(), {}) == format);
    REQUIRE(!format.can_store_nan());
  }
  const std::string_view fields[] = {"mxfp4"};
  REQUIRE(Ggml::from_fields("ggml", fields) == Ggml{GgmlType::mxfp4});
  REQUIRE(!Ggml::from_fields("mxfp4", {}));
  REQUIRE(!Ggml::from_fields("ggml", {}));
}

TEST_CASE("a block of ggml is written back from its codes, scales and minimums", "[quant][format]") {
  for (const GgmlType type : Ggml::kTypes) {
    const Ggml format{type};
    CAPTURE(format.scheme());
    const auto block = static_cast<std::size_t>(format.spec().block);
    const std::vector<float> w = test::make_weights(test::Weights::heavy_tailed, 8 * block, 3);
    std::vector<std::byte> stored(
        static_cast<std::size_t>(format.sections(static_cast<index_t>(w.size()))[0].bytes_per_row));
    std::byte* to = stored.data();
    format.encode_row({w, {}, 0, NonFinite::reject}, std::span(&to, 1));
    for (; to < stored.data() + stored.size(); to += format.spec().block_bytes)
      detail::with_ggml_block(type, [&](auto b) {
        std::uint8_t codes[256];
        std::uint32_t scales[16], minimums[16];
        std::memcpy(&b, to, sizeof b);
        ggml::read_codes(b, ggml::CodeBlock{codes, scales, minimums});
        decltype(b) again;
        ggml::write_codes(ggml::CodeBlock{codes, scales, minimums}, again);
        CHECK(std::memcmp(&again, &b, sizeof b) == 0);
      });
  }
}
