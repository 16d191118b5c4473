// SPDX-License-Identifier: Apache-2.0
// blockpack with its compiled backend, at the active level, weights packed ahead.
#include <algorithm>

#include "blockpack/quant/group_int.hpp"
#include "blockpack/sparse/block_sparse.hpp"
#include "own/coded_product.hpp"
#include "own/row_product.hpp"
#include "schemes.hpp"

namespace bench {

namespace {

std::unique_ptr<Product> make_block_sparse_product(const Request& r) {
  const PrunedBlocks blocks = pruned_blocks(r.scheme);
  const blockpack::MatrixView<const float> w(r.weights.data, r.weights.n, r.weights.k);
  if (blocks.values == "int8-row") {  // a scale a token too, as oneDNN has it
    using Int8 = blockpack::BlockSparse<blockpack::GroupInt>;
    const blockpack::GroupInt values{.bits = 8, .group_size = 0};
    return std::make_unique<RowProduct<Int8>>(Int8::encode(w, {blocks.rows, blocks.cols}, values),
                                              blockpack::Activations::int8_token, blockpack::PackPolicy{});
  }
  using Operator = blockpack::BlockSparse<blockpack::DenseFormat<blockpack::bf16>>;
  return std::make_unique<RowProduct<Operator>>(
      Operator::encode(w, {blocks.rows, blocks.cols}, {}, {}, blockpack::PackPolicy::ahead()));
}

}  // namespace

std::vector<std::string>& measured_schemes() {
  static std::vector<std::string> schemes = {
      "int8-g128", "int8-row",  "int4-g32",   "int3-g32",     "int2-g32", "mxfp8-e4m3",  "mxfp6-e2m3", "mxfp4",
      "nvfp4",     "bfp12-b32", "nf4-b64",    "ternary-g256", "q4_0",     "q4_1",        "q5_0",       "q5_1",
      "q8_0",      "q2_k",      "q3_k",       "q4_k",         "q5_k",     "q6_k",        "iq4_nl",     "iq4_xs",
      "tq1_0",     "tq2_0",     "ggml-mxfp4", "ggml-nvfp4",   "2:4-bf16", "2:4-int4-g32"};
  return schemes;
}

void add_blockpack(Contestants& all) {
  all.schemes = {"f32", "bf16"};
  all.schemes.insert(all.schemes.end(), measured_schemes().begin(), measured_schemes().end());
  all.implementations.push_back(
      {"blockpack", [](const std::string& s, index_t, index_t, index_t, bool) { return !structured(s); },
       [](const Request& r) {
         return r.scheme == "f32"         ? make_row_product<blockpack::DenseFormat<float>>(r)
                : r.scheme == "bf16"      ? make_row_product<blockpack::DenseFormat<blockpack::bf16>>(r)
                : pruned_blocks(r.scheme) ? make_block_sparse_product(r)
                                          : make_coded_product(r);
       }});
  // One token whose activations are not rounded, where `automatic` rounds them.
  all.implementations.push_back({"f32",
                                 [](const std::string& scheme, index_t m, index_t, index_t, bool) {
                                   return m == 1 && !structured(scheme) && !pruned_blocks(scheme) &&
                                          armor_blocks(scheme) == 0 && scheme != "f32" && scheme != "bf16";
                                 },
                                 [](const Request& r) { return make_coded_product(r, blockpack::Activations::f32); }});
  // One int8 scale a token on both sides, as oneDNN's rows have it.
  all.implementations.push_back(
      {"int8_token",
       [](const std::string& scheme, index_t m, index_t, index_t, bool) {
         return (scheme == "int8-row" || scheme == "int8-g128") && m >= 8;
       },
       [](const Request& r) { return make_coded_product(r, blockpack::Activations::int8_token); }});
  // What sparsity gains: the dense operator with the same values on the same matrix.
  all.implementations.push_back({"dense",
                                 [](const std::string& scheme, index_t, index_t, index_t, bool) {
                                   return pruned_blocks(scheme).values == "int8-row" ||
                                          scheme.rfind("2:4-int4-", 0) == 0;
                                 },
                                 [](const Request& r) {
                                   Request dense = r;
                                   const PrunedBlocks blocks = pruned_blocks(r.scheme);
                                   dense.scheme = blocks ? blocks.values : r.scheme.substr(4);
                                   return make_coded_product(dense, blocks ? blockpack::Activations::int8_token
                                                                           : blockpack::Activations::automatic);
                                 }});
  // What compression costs or gains: the bf16 operator on the same matrix, in the same group.
  all.implementations.push_back(
      {"dense",
       [](const std::string& scheme, index_t m, index_t n, index_t k, bool) {
         if (structured(scheme) || pruned_blocks(scheme).values == "bf16" || scheme == "2:4-bf16" ||
             armor_blocks(scheme) > 0)
           return true;
         if (pruned_blocks(scheme) || scheme.rfind("2:4-", 0) == 0) return false;
         return scheme != "f32" && scheme != "bf16" && m >= 32 && n == 4096 && k == 4096;
       },
       [](const Request& r) { return make_row_product<blockpack::DenseFormat<blockpack::bf16>>(r); }});
}

}  // namespace bench
