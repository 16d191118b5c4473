// SPDX-License-Identifier: Apache-2.0
// blockpack with its compiled backend, at the active level, weights packed ahead.
#include <algorithm>

#include "own/coded_product.hpp"
#include "own/row_product.hpp"
#include "schemes.hpp"

namespace bench {

std::vector<std::string>& measured_schemes() {
  static std::vector<std::string> schemes = {"int8-g128", "int8-row", "mxfp8-e4m3", "mxfp6-e2m3", "bfp12-b32",
                                             "int4-g32",  "mxfp4",    "q4_0",       "q4_k"};
  return schemes;
}

void add_blockpack(Contestants& all) {
  all.schemes = {"f32", "bf16"};
  all.schemes.insert(all.schemes.end(), measured_schemes().begin(), measured_schemes().end());
  all.implementations.push_back({"blockpack", [](const std::string&, index_t, index_t, index_t, bool) { return true; },
                                 [](const Request& r) {
                                   return r.scheme == "f32" ? make_row_product<blockpack::DenseFormat<float>>(r)
                                          : r.scheme == "bf16"
                                              ? make_row_product<blockpack::DenseFormat<blockpack::bf16>>(r)
                                              : make_coded_product(r);
                                 }});
}

}  // namespace bench
