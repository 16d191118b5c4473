// SPDX-License-Identifier: Apache-2.0
// blockpack with its compiled backend, at the active level, weights packed ahead.
#include "own/row_product.hpp"

namespace bench {

void add_blockpack(Contestants& all) {
  all.schemes = {"f32", "bf16", "int8-row"};
  all.implementations.push_back(
      {"blockpack",
       [](const std::string& scheme, index_t, index_t, index_t, bool) { return scheme == "f32" || scheme == "bf16"; },
       [](const Request& r) {
         return r.scheme == "f32" ? make_row_product<blockpack::DenseFormat<float>>(r)
                                  : make_row_product<blockpack::DenseFormat<blockpack::bf16>>(r);
       }});
}

}  // namespace bench
