// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Everything of the concept `sparse`: masks, stored forms (N:M, bitmask, block-sparse), pruning and the refit of kept
/// weights.
/// docs/sparsity.md.

#include "blockpack/sparse/armor_matrix.hpp"
#include "blockpack/sparse/block_sparse.hpp"
#include "blockpack/sparse/exchange.hpp"
#include "blockpack/sparse/mask.hpp"
#include "blockpack/sparse/n_m.hpp"
#include "blockpack/sparse/prune/armor.hpp"
#include "blockpack/sparse/prune/criterion.hpp"
#include "blockpack/sparse/prune/icbs.hpp"
#include "blockpack/sparse/prune/mask_search.hpp"
#include "blockpack/sparse/prune/nowag.hpp"
#include "blockpack/sparse/prune/refit.hpp"
#include "blockpack/sparse/prune/sparsegpt.hpp"
#include "blockpack/sparse/prune/wanda.hpp"
