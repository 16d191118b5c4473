// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The slots of the convert family. Installers are called weakest level first, each overwrites what it does better.

#include "kernels/slot.hpp"

namespace blockpack::kernels {

struct ConvertKernels {};

/// Calls visit("name", slot) for every slot of the family: kernel_report() and the tests walk the table with it.
template <class Visitor>
void visit_slots(const ConvertKernels&, Visitor&&) {}

}  // namespace blockpack::kernels
