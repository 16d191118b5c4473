// SPDX-License-Identifier: Apache-2.0
#include "blockpack/recipe/registry.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "recipe/families.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

const Registry& Registry::standard() {
  static const Registry registry = [] {
    Registry r;
    r.add(SchemeAlgorithm{"nearest", "round to the nearest code; what every format does when nothing is said"});
    r.add(SchemeAlgorithm{"importance", "fits weight errors by the importance of the weights (calibration)"});
    r.add(SchemeAlgorithm{"gptq", "GPTQ: errors are moved to columns not yet rounded (calibration)"});
    r.add(
        SchemeAlgorithm{"flexround", "FlexRound: learns what each weight is divided by before rounding (calibration)"});
    r.add(SchemeAlgorithm{"discquant", "DiscQuant with the layer's own error as loss (calibration)"});
    r.add(SchemeAlgorithm{"awq", "AWQ: scales of the input features, folded into the weights (calibration)"});
    r.add(SchemeAlgorithm{"whiten", "fits factors for the error of the outputs, not of the weights (calibration)"});
    r.add(SchemeAlgorithm{"refine", "least squares of the factors against the inputs, after the fit (calibration)"});
    r.add(SchemeAlgorithm{"polish", "coordinate descent on the layer's error after any rounding (calibration)"});
    r.add(SchemeAlgorithm{"wanda", "prunes by |weight| times the norm of its input (calibration)"});
    r.add(SchemeAlgorithm{"nowag", "prunes by NoWag-P: Wanda on rows and columns of equal norms (calibration)"});
    r.add(
        SchemeAlgorithm{"sparsegpt", "prunes by SparseGPT: errors are moved to columns not yet decided (calibration)"});
    r.add(SchemeAlgorithm{"refit", "least squares of the kept weights, after any pruning (calibration)"});
    r.add(SchemeAlgorithm{"search", "exact exchanges of kept weights for pruned ones, with the refit (calibration)"});
    recipe_detail::add_dense_families(r);
    recipe_detail::add_quant_families(r);
    recipe_detail::add_ggml_families(r);
    recipe_detail::add_hadamard_family(r);
    recipe_detail::add_ptq161_family(r);
    recipe_detail::add_structured_families(r);
    recipe_detail::add_sparse_families(r);
    return r;
  }();
  return registry;
}

void Registry::add(SchemeFamily family) {
  for (const SchemeFamily& known : families_)
    for (const std::string& name : family.names)
      if (std::find(known.names.begin(), known.names.end(), name) != known.names.end())
        throw ValueError(fmt::format("Registry::add: the format {} is registered already", name));
  for (const std::string& name : family.algorithms)
    if (std::none_of(algorithms_.begin(), algorithms_.end(), [&](const auto& a) { return a.name == name; }))
      throw ValueError(fmt::format("Registry::add: the algorithm {} of {} is unknown", name, family.pattern));
  families_.push_back(std::move(family));
}

void Registry::add(SchemeAlgorithm algorithm) {
  for (const SchemeAlgorithm& known : algorithms_)
    if (known.name == algorithm.name)
      throw ValueError(fmt::format("Registry::add: the algorithm {} is registered already", algorithm.name));
  algorithms_.push_back(std::move(algorithm));
}

std::vector<ListedScheme> Registry::listed() const {
  std::vector<ListedScheme> all;
  for (const SchemeFamily& family : families_) all.insert(all.end(), family.listed.begin(), family.listed.end());
  return all;
}

std::shared_ptr<const Codec> Registry::codec(std::string_view scheme) const { return codec(parse_scheme(scheme)); }

std::shared_ptr<const Codec> Registry::codec(const Scheme& scheme) const {
  const auto unknown = [&](std::size_t offset, const std::string& what) {
    try {
      fail_scheme(scheme.text, offset, what);
    } catch (const FormatError& error) {
      throw FormatError(error.what(), "UnknownScheme", error.byte_offset());
    }
  };
  if (scheme.kind != Scheme::Kind::format)
    unknown(
        0,
        "a target is no format; auto: and structured: targets stand in recipes alone, name a format such as int4-g32");
  const SchemeFamily* family = nullptr;
  for (const SchemeFamily& f : families_)
    if (std::find(f.names.begin(), f.names.end(), scheme.format.text) != f.names.end()) family = &f;
  if (family == nullptr) {
    std::string known;
    for (const SchemeFamily& f : families_) known += (known.empty() ? "" : ", ") + f.pattern;
    unknown(scheme.format.offset, fmt::format("unknown format '{}'; known are {}", scheme.format.text, known));
  }
  for (std::size_t i = 0; i < scheme.algorithms.size(); ++i) {
    const SchemeToken& algorithm = scheme.algorithms[i];
    if (std::none_of(algorithms_.begin(), algorithms_.end(), [&](const auto& a) { return a.name == algorithm.text; })) {
      std::string known;
      for (const SchemeAlgorithm& a : algorithms_) known += (known.empty() ? "" : ", ") + a.name;
      unknown(algorithm.offset, fmt::format("unknown algorithm '{}'; known are {}", algorithm.text, known));
    }
    if (std::find(family->algorithms.begin(), family->algorithms.end(), algorithm.text) == family->algorithms.end())
      fail_scheme(scheme.text, algorithm.offset,
                  fmt::format("{} does not take the algorithm {}", scheme.format.text, algorithm.text));
    for (std::size_t j = 0; j < i; ++j)
      if (scheme.algorithms[j].text == algorithm.text)
        fail_scheme(scheme.text, algorithm.offset, fmt::format("the algorithm {} is given twice", algorithm.text));
  }
  return family->make(scheme);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
