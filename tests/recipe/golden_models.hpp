// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The cases of tests/golden/models, by model, and their tolerance.

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "support/golden.hpp"

namespace blockpack::test {

/// Every case of one model; an error for a case in the manifest that no test knows.
inline std::vector<nlohmann::json> model_cases(std::string_view model) {
  // The last is a model of the reference set that has no example here.
  constexpr std::string_view kKinds[] = {"bytelm_logits", "use_lite_embed", "use_lite_activations", "fvit_logits",
                                         "ppocr_rec"};
  std::vector<nlohmann::json> cases;
  for (const nlohmann::json& entry : golden_cases("models")) {
    const std::string name = entry.at("case");
    if (std::none_of(std::begin(kKinds), std::end(kKinds), [&](auto kind) { return name.starts_with(kind); }))
      throw std::runtime_error("golden models: no test reads the case " + name);
    if (name.starts_with(model)) cases.push_back(entry);
  }
  return cases;
}

/// The number behind "max abs" in the tolerance of a case.
inline float max_abs_tolerance(const nlohmann::json& entry) {
  const std::string text = entry.at("tolerance");
  const std::size_t at = text.find("max abs ");
  if (at == text.npos) throw std::runtime_error("golden models: no \"max abs\" in the tolerance: " + text);
  return std::stof(text.substr(at + 8));
}

}  // namespace blockpack::test
