// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The scheme families of the library, by concept.

#include <string>
#include <utility>

#include "blockpack/recipe/registry.hpp"

namespace blockpack::recipe_detail {

/// An operator that is named after the scheme it was made of: what it holds may say less.
template <class Op>
class Named : public Op {
 public:
  Named(Op op, std::string scheme) : Op(std::move(op)), scheme_(std::move(scheme)) {}
  std::string scheme() const { return scheme_; }

 private:
  std::string scheme_;
};

void add_dense_families(Registry& registry);       ///< f32, bf16, fp16
void add_ggml_families(Registry& registry);        ///< the blocks of ggml
void add_hadamard_family(Registry& registry);      ///< a rotation of the input before another format
void add_quant_families(Registry& registry);       ///< block floating point, MX, group integers, tables, ternary
void add_ptq161_family(Registry& registry);        ///< ptq1.61
void add_sparse_families(Registry& registry);      ///< N:M, bitmask, block-sparse
void add_structured_families(Registry& registry);  ///< low rank, block-diagonal, Monarch, BLAST, block low rank

}  // namespace blockpack::recipe_detail
