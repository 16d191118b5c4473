// SPDX-License-Identifier: Apache-2.0
// The baseline: `blockpack::headers`, scalar templates without the compiled backend.
#include "own/row_product.hpp"

namespace bench {

void add_headers(Contestants& all) {
  // Scalar code at a few GFLOP/s: larger products would take the time of all others together.
  all.implementations.push_back({"headers",
                                 [](const std::string& scheme, index_t m, index_t n, index_t k, bool) {
                                   return (scheme == "f32" || scheme == "bf16") && m * n * k <= 20000000;
                                 },
                                 [](const Request& r) {
                                   return r.scheme == "f32"
                                              ? make_row_product<blockpack::DenseFormat<float>>(r)
                                              : make_row_product<blockpack::DenseFormat<blockpack::bf16>>(r);
                                 }});
}

}  // namespace bench
