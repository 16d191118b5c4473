// SPDX-License-Identifier: Apache-2.0

#include <string>
#include <string_view>
#include <vector>

#include "quant/byte_hashes.hpp"
#include "support/catch.hpp"

namespace {

using namespace blockpack;

template <class Format>
std::optional<Format> parse(const std::string& scheme) {
  std::vector<std::string_view> parts;
  std::string_view rest = scheme;
  for (std::size_t dash = rest.find('-'); dash != std::string_view::npos; dash = rest.find('-')) {
    parts.push_back(rest.substr(0, dash));
    rest.remove_prefix(dash + 1);
  }
  parts.push_back(rest);
  return Format::from_fields(parts.front(), std::span(parts).subspan(1));
}

}  // namespace

TEST_CASE("a quantization format comes back from its scheme", "[quant][format]") {
  test::for_each_format([](auto format) {
    const auto parsed = parse<decltype(format)>(format.scheme());
    if constexpr (std::is_same_v<decltype(format), Bfp>) format.seed = 0;  // not part of the scheme
    CAPTURE(format.scheme());
    REQUIRE(parsed.has_value());
    REQUIRE(*parsed == format);
  });
  REQUIRE(*parse<Bfp>("bfp16") == Bfp{8, 32});
  REQUIRE(*parse<GroupInt>("int8") == GroupInt{8, 32});
  REQUIRE(*parse<GroupInt>("int4-half-g64") == GroupInt{4, 64, GroupGrid::half_step});
  REQUIRE(*parse<Nf4>("nf4") == Nf4{64});
  REQUIRE(*parse<Ternary>("ternary-tensor-mean") == *parse<Ternary>("ternary-tensor"));
}

TEST_CASE("names of other formats are not taken, bad fields are refused", "[quant][format]") {
  for (const char* other : {"bf16", "bfp", "bfpx", "int", "int04", "mxfp9", "mxfp", "f32", "nvfp4", "bfp1234567"}) {
    CAPTURE(other);
    REQUIRE(!parse<Bfp>(other));
    REQUIRE(!parse<Mx>(other));
    REQUIRE(!parse<GroupInt>(other));
    REQUIRE((!parse<Nf4>(other) && !parse<Ternary>(other)));
  }
  for (const char* bad : {"bfp9", "bfp33", "bfp12-b24", "bfp12-q", "bfp12-b32-b32", "bfp12-asym-asym", "bfp12-b-32",
                          "bfp12-b032", "bfp12-away-trunc"}) {
    CAPTURE(bad);
    REQUIRE_THROWS_AS(parse<Bfp>(bad), ValueError);
  }
  for (const char* bad :
       {"mxfp8", "mxfp6-e4m3", "mxfp4-e2m1", "mxfp4-down", "mxfp4-ceil-mse", "mxint8-b8", "mxfp8-b32"}) {
    CAPTURE(bad);
    REQUIRE_THROWS_AS(parse<Mx>(bad), ValueError);
  }
  for (const char* bad : {"int5", "int4-g16", "int4-row-g32", "int4-half-asym", "int4-g", "int16"}) {
    CAPTURE(bad);
    REQUIRE_THROWS_AS(parse<GroupInt>(bad), ValueError);
  }
  for (const char* bad : {"nvfp4-b16", "nvfp4-4over6-4over6"}) REQUIRE_THROWS_AS(parse<Nvfp4>(bad), ValueError);
  for (const char* bad : {"nf4-b16", "nf4-g64", "nf4-b64-b64"}) REQUIRE_THROWS_AS(parse<Nf4>(bad), ValueError);
  for (const char* bad : {"statsq1", "statsq2-x0", "statsq2-x100-x100"})
    REQUIRE_THROWS_AS(parse<StatsQ>(bad), ValueError);
  for (const char* bad : {"ternary-g32", "ternary-row-tensor", "ternary-b64", "ternary-mean-mean"})
    REQUIRE_THROWS_AS(parse<Ternary>(bad), ValueError);
}
