// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The core vocabulary: views, scalar types, Execution, linear operators, dense weights, statistics. The adapters
/// core/eigen.hpp and core/xtensor.hpp are included by those who want them.

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/block_product.hpp"
#include "blockpack/core/buffer.hpp"
#include "blockpack/core/calibration.hpp"
#include "blockpack/core/compose.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/convert.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/core/engine.hpp"
#include "blockpack/core/error.hpp"
#include "blockpack/core/error_stats.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/histogram.hpp"
#include "blockpack/core/isa.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/pack_policy.hpp"
#include "blockpack/core/packed_cache.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/core/reference.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/row_matrix.hpp"
#include "blockpack/core/row_source.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/core/sha256.hpp"
#include "blockpack/core/strict.hpp"
#include "blockpack/core/sum.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"
