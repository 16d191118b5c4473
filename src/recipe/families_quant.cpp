// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <memory>

#include "blockpack/quant/bfp.hpp"
#include "blockpack/quant/group_int.hpp"
#include "blockpack/quant/mx.hpp"
#include "blockpack/quant/nf4.hpp"
#include "blockpack/quant/nvfp4.hpp"
#include "blockpack/quant/ofq.hpp"
#include "blockpack/quant/ternary.hpp"
#include "blockpack/recipe/rounding_codec.hpp"
#include "recipe/families.hpp"

namespace blockpack::recipe_detail {
namespace {

const std::vector<index_t> kBlocks = {16, 32, 64, 128};
constexpr const char* kBfpFields = "b<16|32|64|128>, asym and one of away, trunc, down, stochastic";
constexpr const char* kMxFields = "b<16|32|64|128>, one of ceil, mse and one of away, trunc";
constexpr const char* kGroupFields = "g<32|64|128> or row, and one of half, maxabs, asym, and search";

std::shared_ptr<const Codec> make_bfp(const Scheme& scheme) {
  SchemeFields fields(scheme);
  Bfp format;
  format.mantissa_bits = static_cast<int>(fields.format_number("bfp", 10, 32)) - 8;
  format.block = static_cast<int>(fields.number('b', kBlocks).value_or(32));
  format.asymmetric = fields.variant("asym");
  constexpr Rounding kRoundings[] = {Rounding::half_away, Rounding::toward_zero, Rounding::down, Rounding::stochastic};
  if (const auto rounding = fields.one_of({"away", "trunc", "down", "stochastic"}))
    format.rounding = kRoundings[*rounding];
  fields.finish(kBfpFields);
  return make_rounding_codec(format, scheme, true);
}

std::shared_ptr<const Codec> make_mx(const Scheme& scheme) {
  SchemeFields fields(scheme);
  Mx format;
  const std::string& name = scheme.format.text;
  const auto element = [&](std::string_view first, MxElement a, std::string_view second, MxElement b) {
    const auto which = fields.one_of({first, second});
    if (!which)
      fail_scheme(scheme.text, scheme.format.offset + name.size(),
                  fmt::format("the element is missing: {0}-{1} or {0}-{2}", name, first, second));
    return *which == 0 ? a : b;
  };
  if (name == "mxfp8")
    format.element = element("e4m3", MxElement::e4m3, "e5m2", MxElement::e5m2);
  else if (name == "mxfp6")
    format.element = element("e2m3", MxElement::e2m3, "e3m2", MxElement::e3m2);
  else
    format.element = name == "mxfp4" ? MxElement::e2m1 : name == "mxint8" ? MxElement::int8 : MxElement::int4;
  format.block = static_cast<int>(fields.number('b', kBlocks).value_or(32));
  if (const auto rule = fields.one_of({"ceil", "mse"}))
    format.scale_rule = *rule == 0 ? MxScaleRule::ceil_fit : MxScaleRule::mse;
  if (const auto rounding = fields.one_of({"away", "trunc"}))
    format.rounding = *rounding == 0 ? Rounding::half_away : Rounding::toward_zero;
  fields.finish(kMxFields);
  return make_rounding_codec(format, scheme, format.scale_rule == MxScaleRule::mse);
}

std::shared_ptr<const Codec> make_group_int(const Scheme& scheme) {
  SchemeFields fields(scheme);
  GroupInt format;
  format.bits = static_cast<int>(fields.format_number("int", 2, 8));
  const auto group = fields.number('g', {32, 64, 128});
  format.group_size = static_cast<int>(group.value_or(32));
  for (const SchemeToken& field : scheme.fields)
    if (field.text == "row" && group) fail_scheme(scheme.text, field.offset, "'row' cannot stand beside a group size");
  if (fields.variant("row")) format.group_size = 0;
  constexpr GroupGrid kGrids[] = {GroupGrid::half_step, GroupGrid::max_abs, GroupGrid::asymmetric};
  if (const auto grid = fields.one_of({"half", "maxabs", "asym"})) format.grid = kGrids[*grid];
  format.search = fields.variant("search");
  fields.finish(kGroupFields);
  return make_rounding_codec(format, scheme, format.search);
}

std::shared_ptr<const Codec> make_nvfp4(const Scheme& scheme) {
  SchemeFields fields(scheme);
  Nvfp4 format;
  format.four_over_six = fields.variant("4over6");
  fields.finish("4over6");
  return make_rounding_codec(format, scheme, format.four_over_six);
}

std::shared_ptr<const Codec> make_nf4(const Scheme& scheme) {
  SchemeFields fields(scheme);
  Nf4 format;
  format.block = static_cast<int>(fields.number('b', {32, 64, 128}).value_or(64));
  fields.finish("b<32|64|128>");
  return make_rounding_codec(format, scheme, true);
}

std::shared_ptr<const Codec> make_statsq(const Scheme& scheme) {
  SchemeFields fields(scheme);
  StatsQ format;
  format.bits = static_cast<int>(fields.format_number("statsq", 2, 4));
  format.multiplier_100 = static_cast<int>(fields.number('x', 1, 10000).value_or(200));
  fields.finish("x<hundredths of the multiplier, 1 to 10000>");
  return make_rounding_codec(format, scheme, true);
}

std::shared_ptr<const Codec> make_ternary(const Scheme& scheme) {
  SchemeFields fields(scheme);
  Ternary format;
  const auto group = fields.number('g', {64, 128, 256});
  const auto whole = fields.one_of({"row", "tensor"});
  if (group && whole) fail_scheme(scheme.text, scheme.format.offset, "'row' and 'tensor' stand in place of a group");
  if (group) format.group_size = static_cast<int>(*group);
  if (whole) format.group_size = *whole == 0 ? Ternary::kRow : Ternary::kTensor;
  if (fields.variant("mean") || format.group_size == Ternary::kTensor) format.rule = TernaryRule::mean;
  if (fields.variant("base3")) format.packing = TernaryPacking::base3;
  fields.finish("g<64|128|256>, row or tensor, and mean, base3");
  return make_rounding_codec(format, scheme, format.rule == TernaryRule::threshold);
}

void add(Registry& registry, std::string pattern, std::vector<std::string> names, std::vector<ListedScheme> listed,
         std::vector<std::string> algorithms, std::shared_ptr<const Codec> (*make)(const Scheme&)) {
  registry.add(SchemeFamily{std::move(pattern), std::move(names), std::move(listed), std::move(algorithms), make});
}

void add_bfp(Registry& registry) {
  std::vector<std::string> names;
  for (int bits = 10; bits <= 32; ++bits) names.push_back(fmt::format("bfp{}", bits));
  std::vector<ListedScheme> listed;
  for (const auto& [bits, block] : {std::pair{10, 32},
                                    {12, 16},
                                    {12, 32},
                                    {12, 64},
                                    {12, 128},
                                    {14, 32},
                                    {16, 16},
                                    {16, 32},
                                    {16, 64},
                                    {16, 128},
                                    {20, 32},
                                    {24, 32},
                                    {32, 16}})
    listed.push_back({fmt::format("bfp{}-b{}", bits, block),
                      fmt::format("{}-bit mantissas, a shared 8-bit exponent for {} weights", bits - 8, block)});
  listed.push_back({"bfp12-b32-asym", "bfp12-b32 that also uses the code -8"});
  add(registry, "bfp<10 to 32>[-b<16|32|64|128>][-asym][-away|-trunc|-down|-stochastic]", std::move(names),
      std::move(listed), rounding_algorithms<Bfp>(), make_bfp);
}

void add_mx(Registry& registry) {
  add(registry,
      "mxfp8-<e4m3|e5m2>, mxfp6-<e2m3|e3m2>, mxfp4, mxint8 or mxint4[-b<16|64|128>][-ceil|-mse][-away|-trunc]",
      {"mxfp8", "mxfp6", "mxfp4", "mxint8", "mxint4"},
      {{"mxfp8-e4m3", "OCP MX: FP8 E4M3, a shared power of two for 32 weights"},
       {"mxfp8-e5m2", "OCP MX: FP8 E5M2"},
       {"mxfp6-e2m3", "OCP MX: FP6 E2M3"},
       {"mxfp6-e3m2", "OCP MX: FP6 E3M2"},
       {"mxfp4", "OCP MX: FP4 E2M1"},
       {"mxfp4-ceil", "mxfp4 with the scale rounded up, so that nothing saturates"},
       {"mxfp4-mse", "mxfp4 with the scale of least squared error"},
       {"mxint8", "OCP MX: 8-bit integers with a shared power of two"},
       {"mxint4", "4-bit integers with a shared power of two (not in the OCP text)"}},
      rounding_algorithms<Mx>(), make_mx);
}

void add_group_int(Registry& registry) {
  std::vector<ListedScheme> listed;
  for (const int bits : {8, 4, 3, 2}) {
    for (const int group : {32, 64, 128})
      listed.push_back(
          {fmt::format("int{}-g{}", bits, group),
           fmt::format("{}-bit integers, a binary16 scale for {} weights, grid of the signed maximum", bits, group)});
    listed.push_back(
        {fmt::format("int{}-row", bits), fmt::format("{}-bit integers, a binary16 scale for a row", bits)});
    listed.push_back({fmt::format("int{}-g128-half", bits), "the same with the half-step grid of GPTQ"});
    listed.push_back({fmt::format("int{}-g128-maxabs", bits),
                      fmt::format("the same with codes within +-{}", (1 << (bits - 1)) - 1)});
    listed.push_back({fmt::format("int{}-g128-asym", bits), "the same with a zero point for each group"});
  }
  listed.push_back({"int4-g32-search", "int4-g32 with the range of least squared error for each group"});
  listed.push_back({"int3-g32-asym-search", "3-bit integers with a zero point and the range of least squared error"});
  listed.push_back({"int2-g32-asym-search", "2-bit integers with a zero point and the range of least squared error"});
  add(registry, "int<2|3|4|8>[-g<32|64|128>|-row][-half|-maxabs|-asym][-search]", {"int2", "int3", "int4", "int8"},
      std::move(listed), rounding_algorithms<GroupInt>(), make_group_int);
}

void add_tables(Registry& registry) {
  add(registry, "nvfp4[-4over6]", {"nvfp4"},
      {{"nvfp4", "FP4 E2M1, an FP8 scale for 16 weights and a float32 scale for the matrix"},
       {"nvfp4-4over6", "nvfp4 where a block's maximum becomes 6 or 4, whichever has the smaller error"}},
      rounding_algorithms<Nvfp4>(), make_nvfp4);
  add(registry, "nf4[-b<32|64|128>]", {"nf4"},
      {{"nf4-b64", "QLoRA's NF4, a binary16 scale for 64 weights"}, {"nf4-b32", "NF4 with a scale for 32 weights"}},
      rounding_algorithms<Nf4>(), make_nf4);
}

void add_ternary(Registry& registry) {
  add(registry, "ternary[-g<64|128|256>|-row|-tensor][-mean][-base3]", {"ternary"},
      {{"ternary-g256", "-1, 0, 1 above 0.7 of the mean magnitude, a binary16 scale for 256 weights"},
       {"ternary-g64", "the same with a scale for 64 weights"},
       {"ternary-g256-base3", "ternary-g256 with 64 weights in 13 bytes"},
       {"ternary-tensor", "BitNet b1.58: one scale for the matrix"},
       {"ternary-tensor-base3", "BitNet b1.58 with 64 weights in 13 bytes"}},
      rounding_algorithms<Ternary>(), make_ternary);
  add(registry, "statsq<2|3|4>[-x<1 to 10000>]", {"statsq2", "statsq3", "statsq4"},
      {{"statsq2", "OFQ's StatsQ: 2 bits without a level at zero, a binary16 scale for a row"},
       {"statsq3", "StatsQ in 3 bits"},
       {"statsq4-x260", "StatsQ in 4 bits with the scale 2.6 * mean in place of 2 * mean"}},
      rounding_algorithms<StatsQ>(), make_statsq);
}

}  // namespace

void add_quant_families(Registry& registry) {
  add_bfp(registry);
  add_mx(registry);
  add_group_int(registry);
  add_tables(registry);
  add_ternary(registry);
}

}  // namespace blockpack::recipe_detail
