// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "product.hpp"

namespace bench {

/// What `blockpack::headers`, scalar templates without the compiled backend, makes of weights.
struct ScalarForm {
  std::vector<std::vector<std::byte>> sections;
  std::vector<float> values;  ///< decoded
};

/// Formats of rows, rotated or not, and PTQ1.61.
bool has_scalar_form(const std::string& scheme);

/// The first `rows` rows of w under a scheme; parameters of the whole matrix are those of all of w.
/// Errors: std::runtime_error for a scheme that no template has.
ScalarForm scalar_form(const std::string& scheme, const Weights& w, index_t rows);

}  // namespace bench
