// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The scheme families of the library, by concept.

#include "blockpack/recipe/registry.hpp"

namespace blockpack::recipe_detail {

void add_dense_families(Registry& registry);       ///< f32, bf16, fp16
void add_ggml_families(Registry& registry);        ///< the blocks of ggml
void add_hadamard_family(Registry& registry);      ///< a rotation of the input before another format
void add_quant_families(Registry& registry);       ///< block floating point, MX, group integers, tables, ternary
void add_ptq161_family(Registry& registry);        ///< ptq1.61
void add_structured_families(Registry& registry);  ///< low rank, block-diagonal, Monarch, BLAST, block low rank

}  // namespace blockpack::recipe_detail
