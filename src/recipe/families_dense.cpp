// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/dense.hpp"
#include "recipe/families.hpp"

namespace blockpack::recipe_detail {
namespace {

template <class T>
void add(Registry& registry, const char* name, const char* what) {
  registry.add(SchemeFamily{name, {name}, {{name, what}}, {"nearest"}, [](const Scheme& scheme) {
                              SchemeFields(scheme).finish("");
                              return make_row_codec(DenseFormat<T>{});
                            }});
}

}  // namespace

void add_dense_families(Registry& registry) {
  add<float>(registry, "f32", "IEEE binary32, as it is");
  add<bf16>(registry, "bf16", "bfloat16: 8 exponent, 7 mantissa bits");
  add<fp16>(registry, "fp16", "IEEE binary16: 5 exponent, 10 mantissa bits");
}

}  // namespace blockpack::recipe_detail
