// SPDX-License-Identifier: Apache-2.0
#include "blockpack/recipe/scheme.hpp"

#include <string>
#include <vector>

#include "blockpack/core/random.hpp"
#include "blockpack/recipe/registry.hpp"
#include "support/catch.hpp"

namespace blockpack {
namespace {

/// Where the error of a call points, and what it says.
struct Caught {
  std::int64_t offset = -1;
  std::string code;
  std::string message;
};
template <class F>
Caught caught(const F& f) {
  try {
    f();
  } catch (const FormatError& error) {
    return {error.byte_offset(), error.code(), error.what()};
  }
  return {};
}

TEST_CASE("a scheme is a format, fields and algorithms", "[recipe]") {
  const Scheme s = parse_scheme("2:4-int4-g32+sparsegpt+nearest");
  CHECK(s.kind == Scheme::Kind::format);
  CHECK(s.format.text == "2:4");
  REQUIRE(s.fields.size() == 2);
  CHECK(s.fields[0].text == "int4");
  CHECK(s.fields[0].key == 0);
  CHECK(s.fields[1].key == 'g');
  CHECK(s.fields[1].number == 32);
  CHECK(s.fields[1].offset == 9);
  REQUIRE(s.algorithms.size() == 2);
  CHECK(s.algorithms[0].text == "sparsegpt");
  const Scheme inner = s.inner(0);
  CHECK(inner.format.text == "int4");
  REQUIRE(inner.fields.size() == 1);
  CHECK(inner.fields[0].number == 32);
  CHECK(inner.fields[0].offset == 9);
  CHECK(inner.algorithms.empty());
}

TEST_CASE("every example of the grammar reads and prints as itself", "[recipe]") {
  const std::string text =
      GENERATE("f32", "bf16", "int8-g128", "bfp12-b32", "mxfp8-e4m3", "mxfp4", "nf4-b64", "q4_0", "iq4_nl", "ptq1.61",
               "2:4-bf16+wanda", "2:4-int4-g32+sparsegpt", "bsr32x32-bf16", "armor-b16-2:4-bf16", "lowrank-r512-bf16",
               "blast-b16-r1024-mxfp8-e4m3", "int4-row-half", "auto:4.5bpw", "auto:3bpw", "structured:50%");
  CHECK(to_string(parse_scheme(text)) == text);
}

TEST_CASE("targets are numbers with a unit", "[recipe]") {
  CHECK(parse_scheme("auto:4.25bpw").kind == Scheme::Kind::bits);
  CHECK(parse_scheme("auto:4.25bpw").target == 4.25);
  CHECK(parse_scheme("structured:12.5%").kind == Scheme::Kind::share);
  CHECK(parse_scheme("structured:12.5%").target == 12.5);
  CHECK(to_string(parse_scheme("auto:04.500bpw")) == "auto:4.5bpw");
}

TEST_CASE("an error of a scheme points at the character", "[recipe]") {
  struct Case {
    std::string text;
    std::int64_t offset;
    std::string says;
  };
  const std::vector<Case> cases = {
      {"", 0, "a scheme is needed"},
      {"int4-", 5, "a field is missing"},
      {"-g32", 0, "a format is missing"},
      {"int4--g32", 5, "a field is missing"},
      {"int4+", 5, "an algorithm is missing"},
      {"int4+nearest-g32", 12, "fields stand before algorithms"},
      {"int4 -g32", 4, "no spaces"},
      {"Int4", 0, "lower case"},
      {"int4-G32", 5, "lower case"},
      {"int4-g32;rm", 8, "cannot stand in a scheme"},
      {"int4-g\xc3\xa9", 6, "cannot stand in a scheme"},
      {"int4-g032", 6, "leading zero"},
      {"int4-g1234567890", 6, "more than 9 digits"},
      {"2:", 1, "ends in a letter or a digit"},
      {".5", 0, "starts with a letter or a digit"},
      {"int4+4bit", 5, "starts with a letter"},
      {"auto:bpw", 5, "a number is needed"},
      {"auto:4.bpw", 7, "digits are needed"},
      {"auto:4bits", 6, "'bpw' is needed"},
      {"auto:0bpw", 5, "above 0"},
      {"structured:101%", 11, "at most 100"},
      {"auto:1234567890bpw", 5, "more than 9"},
      {std::string(300, 'a'), 256, "at most 256"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.text);
    const Caught error = caught([&] { parse_scheme(c.text); });
    CHECK(error.offset == c.offset);
    CHECK(error.code == "InvalidScheme");
    CHECK(error.message.find(c.says) != std::string::npos);
    CHECK(error.message.find("character " + std::to_string(c.offset + 1)) != std::string::npos);
    CHECK(error.message.find('\n') == std::string::npos);
    CHECK(error.message.find('^') != std::string::npos);
  }
}

TEST_CASE("the caret stands before the character, in the line and under it", "[recipe]") {
  const Caught error = caught([] { parse_scheme("int4-G32"); });
  CHECK(error.message == "scheme \"int4-G32\", character 6 (int4-^G32): schemes are written in lower case");
  CHECK(scheme_caret("int4-G32", 5) == "int4-G32\n     ^");
  CHECK(scheme_caret("a\nb", 2) == "a\\x0ab\n     ^");
}

TEST_CASE("a message shows no character that a terminal obeys", "[recipe]") {
  const Caught error = caught([] { parse_scheme("int4\x1b[31m"); });
  CHECK(error.message.find('\x1b') == std::string::npos);
  CHECK(error.message.find("int4\\x1b[31m") != std::string::npos);
}

TEST_CASE("no sequence of bytes breaks the parser, and what it accepts prints back", "[recipe]") {
  Random random(11);
  const std::string alphabet = "intbfpg0123456789-+:._%auto";
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    const std::uint32_t length = random.below(14);
    for (std::uint32_t i = 0; i < length; ++i)
      text += round % 4 == 0 ? static_cast<char>(random.below(256))
                             : alphabet[random.below(static_cast<std::uint32_t>(alphabet.size()))];
    try {
      const Scheme s = parse_scheme(text);
      ++accepted;
      const std::string printed = to_string(s);
      CAPTURE(text, printed);
      REQUIRE(to_string(parse_scheme(printed)) == printed);
    } catch (const FormatError& error) {
      REQUIRE(error.byte_offset() >= 0);
      REQUIRE(error.byte_offset() <= static_cast<std::int64_t>(text.size()));
    }
  }
  CHECK(accepted > 500);
}

TEST_CASE("SchemeFields takes what a family knows and refuses the rest", "[recipe]") {
  const auto read = [](const char* text) {
    const Scheme s = parse_scheme(text);
    SchemeFields fields(s);
    const index_t group = fields.number('g', 1, 1024).value_or(0);
    const auto variant = fields.one_of({"half", "asym"});
    fields.finish("g<size>, half, asym");
    return std::pair(group, variant ? static_cast<int>(*variant) : -1);
  };
  CHECK(read("int4") == std::pair<index_t, int>(0, -1));
  CHECK(read("int4-g32-asym") == std::pair<index_t, int>(32, 1));
  CHECK(read("int4-half-g64") == std::pair<index_t, int>(64, 0));
  CHECK(caught([&] { read("int4-g0"); }).offset == 6);
  CHECK(caught([&] { read("int4-g2000"); }).offset == 6);
  CHECK(caught([&] { read("int4-g32-g32"); }).offset == 9);
  CHECK(caught([&] { read("int4-half-asym"); }).offset == 10);
  CHECK(caught([&] { read("int4-half-row"); }).offset == 10);
  CHECK(caught([&] { read("int4-b32"); }).message.find("it takes g<size>") != std::string::npos);
  const Scheme s = parse_scheme("bfp12");
  CHECK(SchemeFields(s).format_number("bfp", 10, 32) == 12);
  CHECK(caught([&] { SchemeFields(s).format_number("bfp", 14, 32); }).offset == 3);
}

TEST_CASE("the registry knows its formats and points at what it does not", "[recipe]") {
  const Registry& registry = Registry::standard();
  CHECK(registry.codec("bf16")->scheme() == "bf16");
  CHECK(registry.codec("bf16+nearest")->scheme() == "bf16");
  const auto fails = [&](const char* text) { return caught([&] { registry.codec(text); }); };
  CHECK(fails("int5-g32").offset == 0);
  CHECK(fails("int5-g32").code == "UnknownScheme");
  CHECK(fails("int5-g32").message.find("known are f32") != std::string::npos);
  CHECK(fails("bf16+magic").offset == 5);
  CHECK(fails("bf16+nearest+nearest").offset == 13);
  CHECK(fails("bf16-g32").offset == 5);
  CHECK(fails("auto:4bpw").code == "UnknownScheme");
}

TEST_CASE("the quantization families take their fields in any order and point at what is wrong", "[recipe]") {
  const Registry& registry = Registry::standard();
  const auto canonical = [&](const char* text) { return registry.codec(text)->scheme(); };
  CHECK(canonical("int4") == "int4-g32");
  CHECK(canonical("int8-asym-g128") == "int8-g128-asym");
  CHECK(canonical("int3-row-maxabs+nearest") == "int3-row-maxabs");
  CHECK(canonical("bfp12") == "bfp12-b32");
  CHECK(canonical("bfp16-down-asym-b64") == "bfp16-b64-asym-down");
  CHECK(canonical("mxfp8-b16-e5m2") == "mxfp8-e5m2-b16");
  CHECK(canonical("mxfp4-trunc-mse-b64") == "mxfp4-b64-mse-trunc");
  const auto at = [&](const char* text) { return caught([&] { registry.codec(text); }).offset; };
  CHECK(at("int4-g33") == 6);
  CHECK(at("int4-g32-row") == 9);
  CHECK(at("int4-g32-half-asym") == 14);
  CHECK(at("int5") == 0);
  CHECK(at("bfp9") == 0);
  CHECK(at("bfp12-b33") == 7);
  CHECK(at("bfp12-away-down") == 11);
  CHECK(at("mxfp8") == 5);
  CHECK(at("mxfp8-e2m3") == 5);
  CHECK(at("mxfp6-e2m3-e3m2") == 11);
  CHECK(at("mxfp4-e2m1") == 6);
  CHECK(at("mxfp4-ceil-mse") == 11);
  CHECK(at("mxint8-down") == 7);
}

TEST_CASE("every listed scheme is canonical and makes a codec with sections", "[recipe]") {
  const Registry& registry = Registry::standard();
  REQUIRE(registry.listed().size() >= 3);
  for (const ListedScheme& listed : registry.listed()) {
    CAPTURE(listed.scheme);
    const auto codec = registry.codec(listed.scheme);
    CHECK(codec->scheme() == listed.scheme);
    CHECK_FALSE(listed.what.empty());
    CHECK(codec->bits_per_weight({4096, 4096}) > 0);
    CHECK_FALSE(codec->sections({3, 70}).empty());
  }
}

TEST_CASE("a copy of the registry takes new families and refuses what clashes", "[recipe]") {
  Registry registry = Registry::standard();
  SchemeFamily twin;
  twin.pattern = "half16";
  twin.names = {"half16"};
  twin.make = [](const Scheme&) { return Registry::standard().codec("fp16"); };
  registry.add(twin);
  CHECK(registry.codec("half16")->scheme() == "fp16");
  CHECK_THROWS_AS(registry.add(twin), ValueError);
  SchemeFamily unknown_algorithm = twin;
  unknown_algorithm.names = {"other"};
  unknown_algorithm.algorithms = {"magic"};
  CHECK_THROWS_AS(registry.add(unknown_algorithm), ValueError);
  CHECK_THROWS_AS(registry.add(SchemeAlgorithm{"nearest", ""}), ValueError);
}

}  // namespace
}  // namespace blockpack
