// SPDX-License-Identifier: Apache-2.0
#include "dispatch.hpp"

#include <cstdlib>
#include <optional>

#include "cpu.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

constexpr kernels::IsaSet kCompiled = {
    Isa::scalar,
#if defined(BLOCKPACK_WITH_AVX2)
    Isa::avx2,
#endif
#if defined(BLOCKPACK_WITH_AVX512)
    Isa::avx512,
#endif
#if defined(BLOCKPACK_WITH_AVX512VNNI)
    Isa::avx512vnni,
#endif
#if defined(BLOCKPACK_WITH_AMX)
    Isa::amx,
#endif
#if defined(BLOCKPACK_WITH_NEON)
    Isa::neon,
#endif
#if defined(BLOCKPACK_WITH_NEON_DOT)
    Isa::neon_dot,
#endif
};

}  // namespace

std::vector<Isa> compiled_isas() {
  std::vector<Isa> levels;
  for (const Isa isa : kAllIsas)
    if (kCompiled.contains(isa)) levels.push_back(isa);
  return levels;
}

Isa active_isa() { return kernels::request().level; }

bool runs_here(Isa isa) { return kCompiled.contains(isa) && kernels::this_cpu().levels.contains(isa); }

}  // namespace blockpack::inline BLOCKPACK_ABI

namespace blockpack::kernels {
namespace {

struct NamedFeature {
  Features bit;
  std::string_view name;
  Isa from;  ///< the weakest level it matters to
};
constexpr NamedFeature kFeatureNames[] = {
    {kAvxVnni, "avxvnni", Isa::avx2},         {kVbmi2, "vbmi2", Isa::avx512}, {kAvx512Bf16, "avx512bf16", Isa::avx512},
    {kFastBf16Dots, "fastbf16", Isa::avx512}, {kI8mm, "i8mm", Isa::neon},     {kArmBf16, "bf16", Isa::neon}};

std::string levels_of_this_build() {
  std::string text;
  for (const Isa isa : compiled_isas()) {
    if (!text.empty()) text += ", ";
    text += to_string(isa);
    if (!runs_here(isa)) text += " (not on this CPU)";
  }
  return text;
}

[[noreturn]] void refuse(std::string_view request, const std::string& why) {
  throw UnsupportedError("BLOCKPACK_ISA=" + std::string(request) + ": " + why +
                         "; levels of this build: " + levels_of_this_build());
}

}  // namespace

IsaRequest parse_request(std::string_view text) {
  IsaRequest result;
  if (text.empty()) {
    for (const Isa isa : kAllIsas)
      if (runs_here(isa)) result.level = isa;
    return result;
  }
  const std::size_t dash = text.find('-');
  const std::string_view name = text.substr(0, dash);
  const std::optional<Isa> level = parse_isa(name);
  if (!level) refuse(text, "there is no level `" + std::string(name) + "`");
  if (!runs_here(*level)) refuse(text, std::string(name) + " does not run here");
  result.level = *level;
  std::string_view rest = dash == std::string_view::npos ? std::string_view{} : text.substr(dash);
  while (!rest.empty()) {
    rest.remove_prefix(1);
    const std::string_view feature = rest.substr(0, rest.find('-'));
    rest.remove_prefix(feature.size());
    Features bit = 0;
    for (const NamedFeature& f : kFeatureNames)
      if (f.name == feature) bit = f.bit;
    if (bit == 0)
      refuse(text, "there is no feature `" + std::string(feature) +
                       "` (features: avxvnni, vbmi2, avx512bf16, fastbf16, i8mm, bf16)");
    result.off |= bit;
  }
  return result;
}

Features features_in_use() { return this_cpu().features & ~request().off; }

std::string feature_names(Features features) {
  std::string text;
  for (const NamedFeature& f : kFeatureNames) {
    if ((features & f.bit) == 0) continue;
    if (!text.empty()) text += ' ';
    text += f.name;
  }
  return text;
}

std::vector<Features> feature_sets(Isa level) {
  Features all = 0;
  for (const NamedFeature& f : kFeatureNames)
    if (includes(level, f.from)) all |= f.bit & this_cpu().features;
  std::vector<Features> sets = {all};
  const auto add = [&sets](Features set) {
    for (const Features s : sets)
      if (s == set) return;
    sets.push_back(set);
  };
  for (const NamedFeature& f : kFeatureNames) add(all & ~f.bit);
  add(0);
  return sets;
}

const IsaRequest& request() {
  // A throw leaves the variable uninitialised, so every call fails alike.
  static const IsaRequest chosen = [] {
    const char* text = std::getenv("BLOCKPACK_ISA");
    return parse_request(text == nullptr ? std::string_view{} : std::string_view(text));
  }();
  return chosen;
}

}  // namespace blockpack::kernels
