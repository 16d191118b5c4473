// SPDX-License-Identifier: Apache-2.0
/// The golden vectors of ggml-quants (ggml_*): bytes and decoded values, with and without importance.

#include <algorithm>
#include <cctype>
#include <cstring>
#include <set>
#include <string>

#include "blockpack/quant/ggml.hpp"
#include "quant/golden_cases.hpp"
#include "quant/rows.hpp"

namespace {

using namespace blockpack;

Ggml format_of(std::string type) {
  std::transform(type.begin(), type.end(), type.begin(), [](unsigned char c) { return std::tolower(c); });
  if (type == "mxfp4" || type == "nvfp4") type = "ggml-" + type;
  const auto format = Ggml::from_fields(type, {});
  if (!format) throw std::runtime_error("unknown type " + type);
  return *format;
}

/// Checks one case and returns the scheme.
std::string check(const test::GoldenCase& c) {
  CAPTURE(c.id);
  const Ggml format = format_of(c.params.at("type"));
  REQUIRE(format.spec().block == c.params.at("block_elems").get<int>());
  REQUIRE(format.spec().block_bytes == c.params.at("block_bytes").get<int>());
  const auto x = c.array<float>("x");
  const auto y = c.array<float>("y");
  const auto bytes = c.array<std::uint8_t>("bytes");
  test::GoldenArray<float> importance;
  EncodeOptions options;
  if (c.has("importance")) {
    importance = c.array<float>("importance");
    options.importance = importance.view();
  }
  const test::Stored stored = test::encode_matrix(format, x.view(), options);
  REQUIRE(stored.size() == 1);
  REQUIRE(stored[0].size() == bytes.values.size());
  const auto block_bytes = static_cast<std::size_t>(format.spec().block_bytes);
  for (std::size_t i = 0; i < bytes.values.size(); ++i) {
    // The reference leaves the codes of a block of zeros uninitialised in IQ4_NL; ours are those of 0.
    const std::uint8_t* block = bytes.values.data() + i / block_bytes * block_bytes;
    const bool unset = format.type == GgmlType::iq4_nl && block[0] == 0 && block[1] == 0 && i % block_bytes >= 2;
    CAPTURE(i / block_bytes, i % block_bytes);
    REQUIRE(std::to_integer<int>(stored[0][i]) == (unset ? 0x88 : int{bytes.values[i]}));
  }
  test::Stored theirs(1);
  for (const std::uint8_t b : bytes.values) theirs[0].push_back(std::byte{b});
  const std::vector<float> values = test::decode_matrix(format, theirs, x.view().shape());
  REQUIRE(std::memcmp(values.data(), y.values.data(), values.size() * sizeof(float)) == 0);
  REQUIRE(test::decode_matrix(format, stored, x.view().shape()) == y.values);  // -0 equals 0: see the codes left unset
  return format.scheme();
}

}  // namespace

TEST_CASE("ggml blocks have the bytes and values of ggml", "[quant][golden]") {
  std::set<std::string> schemes;
  std::size_t count = 0;
  for (const test::GoldenCase& c : test::cases_of("ggml_block_quantize")) {
    schemes.insert(check(c));
    ++count;
  }
  REQUIRE(test::golden_complete(count, 48));
  REQUIRE(test::golden_complete(schemes.size(), 15));  // all but q5_1 and q8_k, which have no golden
}

TEST_CASE("ggml blocks with importance have the bytes and values of ggml", "[quant][golden]") {
  std::size_t count = 0;
  for (const test::GoldenCase& c : test::cases_of("ggml_block_quantize_weighted")) {
    check(c);
    ++count;
  }
  REQUIRE(test::golden_complete(count, 8));
}
