// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The slots of the histogram family. Installers are called weakest level first, each overwrites what it does better.

#include "kernels/slot.hpp"

namespace blockpack::kernels {

struct HistogramKernels {};

/// Calls visit("name", slot) for every slot of the family: kernel_report() and the tests walk the table with it.
template <class Visitor>
void visit_slots(const HistogramKernels&, Visitor&&) {}

}  // namespace blockpack::kernels
