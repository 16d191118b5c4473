// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Everything of the concept `structured`: block-diagonal, low-rank, Monarch, BLAST and block low-rank
/// layers. docs/structured.md.

#include "blockpack/structured/blast.hpp"
#include "blockpack/structured/blast_fit.hpp"
#include "blockpack/structured/block_diagonal.hpp"
#include "blockpack/structured/block_factors.hpp"
#include "blockpack/structured/block_low_rank.hpp"
#include "blockpack/structured/block_low_rank_fit.hpp"
#include "blockpack/structured/factor_format.hpp"
#include "blockpack/structured/low_rank.hpp"
#include "blockpack/structured/low_rank_fit.hpp"
#include "blockpack/structured/monarch.hpp"
#include "blockpack/structured/monarch_fit.hpp"
#include "blockpack/structured/output_order.hpp"
#include "blockpack/structured/roofline.hpp"
