// SPDX-License-Identifier: Apache-2.0
#pragma once

/// All kernels, one table per level. A table is filled weakest level first; each step overwrites only the slots it
/// implements, so gaps fall back by themselves and every slot remembers who supplied it.

#include "blockpack/core/isa.hpp"
#include "kernels/block_sparse/block_sparse_kernels.hpp"
#include "kernels/codes/codes_kernels.hpp"
#include "kernels/convert/convert_kernels.hpp"
#include "kernels/couple/couple_kernels.hpp"
#include "kernels/dense/dense_kernels.hpp"
#include "kernels/ggml/ggml_kernels.hpp"
#include "kernels/histogram/histogram_kernels.hpp"
#include "kernels/int8/int8_kernels.hpp"
#include "kernels/quant/quant_kernels.hpp"
#include "kernels/select/select_kernels.hpp"
#include "kernels/slot.hpp"
#include "kernels/two_four/two_four_kernels.hpp"

namespace blockpack::kernels {

struct KernelTable {
  Isa level = Isa::scalar;
  Features features = 0;
  DenseKernels dense;
  BlockSparseKernels block_sparse;
  CodeKernels codes;
  Int8Kernels int8;
  TwoFourKernels two_four;
  CoupleKernels couple;
  ConvertKernels convert;
  HistogramKernels histogram;
  QuantKernels quant;
  GgmlKernels ggml;
  SelectKernels select;
};

/// Calls visit("family", "kernel", slot) for every slot.
template <class Visitor>
void visit_slots(const KernelTable& table, Visitor&& visit) {
  visit_slots(table.dense, [&](const char* name, const auto& slot) { visit("dense", name, slot); });
  visit_slots(table.block_sparse, [&](const char* name, const auto& slot) { visit("block_sparse", name, slot); });
  visit_slots(table.codes, [&](const char* name, const auto& slot) { visit("codes", name, slot); });
  visit_slots(table.int8, [&](const char* name, const auto& slot) { visit("int8", name, slot); });
  visit_slots(table.two_four, [&](const char* name, const auto& slot) { visit("two_four", name, slot); });
  visit_slots(table.couple, [&](const char* name, const auto& slot) { visit("couple", name, slot); });
  visit_slots(table.convert, [&](const char* name, const auto& slot) { visit("convert", name, slot); });
  visit_slots(table.histogram, [&](const char* name, const auto& slot) { visit("histogram", name, slot); });
  visit_slots(table.quant, [&](const char* name, const auto& slot) { visit("quant", name, slot); });
  visit_slots(table.ggml, [&](const char* name, const auto& slot) { visit("ggml", name, slot); });
  visit_slots(table.select, [&](const char* name, const auto& slot) { visit("select", name, slot); });
}

/// The table of a level with the features in use (those of the CPU less those BLOCKPACK_ISA switches off), built once.
/// UnsupportedError when the level does not run here or BLOCKPACK_ISA is not valid.
const KernelTable& table_for(Isa level);

/// The table of active_isa().
const KernelTable& active();

/// A new table of a level that runs here with just these features, for tests that run each slot with and without its
/// bits. Features the CPU lacks are ignored.
KernelTable make_table(Isa level, Features features);

}  // namespace blockpack::kernels
