// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "blockpack/quant/ggml.hpp"
#include "blockpack/quant/ggml_grid.hpp"
#include "blockpack/recipe/rounding_codec.hpp"
#include "recipe/families.hpp"

namespace blockpack::recipe_detail {
namespace {

/// Whether the scales of a block are searched for, with errors that importance weights.
bool fits_with_importance(GgmlType type) {
  switch (type) {
    case GgmlType::q4_0:
    case GgmlType::q4_1:
    case GgmlType::q5_0:
    case GgmlType::q5_1:
    case GgmlType::q2_k:
    case GgmlType::q3_k:
    case GgmlType::q4_k:
    case GgmlType::q5_k:
    case GgmlType::q6_k:
    case GgmlType::iq4_nl:
    case GgmlType::iq4_xs:
      return true;
    default:
      return false;
  }
}

std::shared_ptr<const Codec> make_ggml(const Scheme& scheme) {
  SchemeFields fields(scheme);
  std::string name = scheme.format.text;
  if (name == "ggml") {
    const auto which = fields.one_of({"mxfp4", "nvfp4"});
    if (!which)
      fail_scheme(scheme.text, scheme.format.offset + name.size(),
                  "the block is missing: ggml-mxfp4 or ggml-nvfp4; the other blocks of ggml go without the prefix");
    name += *which == 0 ? "-mxfp4" : "-nvfp4";
  }
  fields.finish("");
  const Ggml format = *Ggml::from_fields(name, {});
  return make_rounding_codec(format, scheme, fits_with_importance(format.type));
}

}  // namespace

void add_ggml_families(Registry& registry) {
  SchemeFamily family;
  family.pattern = "q4_0 to q5_1, q8_0, q2_k to q6_k, q8_k, iq4_nl, iq4_xs, tq1_0, tq2_0, ggml-<mxfp4|nvfp4>";
  constexpr const char* kWhat[] = {"ggml: 4-bit integers around 0, blocks of 32",
                                   "ggml: 4-bit integers above a minimum, blocks of 32",
                                   "ggml: 5-bit integers around 0, blocks of 32",
                                   "ggml: 5-bit integers above a minimum, blocks of 32",
                                   "ggml: 8-bit integers, blocks of 32",
                                   "ggml: 2 bits, scales and minima of 4 bits for 16 weights, super-blocks of 256",
                                   "ggml: 3 bits, scales of 6 bits for 16 weights",
                                   "ggml: 4 bits, scales and minima of 6 bits for 32 weights",
                                   "ggml: 5 bits, scales and minima of 6 bits for 32 weights",
                                   "ggml: 6 bits, scales of 8 bits for 16 weights",
                                   "ggml: 8 bits, a float32 scale for 256 weights and sums of 16 codes",
                                   "ggml: 16 levels of unequal distance, blocks of 32",
                                   "ggml: the same levels, scales of 6 bits for 32 weights, super-blocks of 256",
                                   "ggml: ternary, five weights a byte",
                                   "ggml: ternary, four weights a byte",
                                   "ggml: FP4 E2M1, a power of two for 32 weights",
                                   "ggml: FP4 E2M1, an unsigned E4M3 scale for 16 weights, no tensor scale"};
  for (std::size_t i = 0; i < std::size(Ggml::kTypes); ++i) {
    const std::string scheme = Ggml{Ggml::kTypes[i]}.scheme();
    family.listed.push_back({scheme, kWhat[i]});
    if (scheme.find('-') == std::string::npos) family.names.push_back(scheme);
  }
  family.names.emplace_back("ggml");
  family.algorithms = rounding_algorithms<Ggml>();
  family.make = make_ggml;
  registry.add(std::move(family));
}

}  // namespace blockpack::recipe_detail
