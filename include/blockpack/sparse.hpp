// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Everything of the concept `sparse`: masks, pruning criteria, SparseGPT, ARMOR, iCBS and the refit of kept weights.
/// docs/sparsity.md.

#include "blockpack/sparse/mask.hpp"
#include "blockpack/sparse/prune/armor.hpp"
#include "blockpack/sparse/prune/criterion.hpp"
#include "blockpack/sparse/prune/icbs.hpp"
#include "blockpack/sparse/prune/nowag.hpp"
#include "blockpack/sparse/prune/refit.hpp"
#include "blockpack/sparse/prune/sparsegpt.hpp"
#include "blockpack/sparse/prune/wanda.hpp"
