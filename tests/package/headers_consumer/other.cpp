// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/isa.hpp"
#include "blockpack/core/scalar.hpp"

float rounded_elsewhere(float v) { return static_cast<float>(blockpack::bf16(v)); }
