// SPDX-License-Identifier: Apache-2.0
// Headers that encode refuse -ffast-math, which would change codes.
// flags: -ffast-math
// message: compile without -ffast-math
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/strict.hpp"
