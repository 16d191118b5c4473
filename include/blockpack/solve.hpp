// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Everything of the concept `solve`: block coordinate descent, Adam, line search, binary quadratics. docs/solve.md.
/// Headers only, selection and update rules need Eigen; the compiled library has its own.

#include "blockpack/solve/adam.hpp"
#include "blockpack/solve/block_descent.hpp"
#include "blockpack/solve/forest.hpp"
#include "blockpack/solve/line_search.hpp"
#include "blockpack/solve/linear_model.hpp"
#include "blockpack/solve/objective.hpp"
#include "blockpack/solve/partition.hpp"
#include "blockpack/solve/problems.hpp"
#include "blockpack/solve/qcbo.hpp"
#include "blockpack/solve/quadratic.hpp"
#include "blockpack/solve/softmax.hpp"
#if !defined(BLOCKPACK_HEADERS_ONLY) || __has_include(<Eigen/Core>)
#include "blockpack/solve/selection.hpp"
#include "blockpack/solve/symmetric.hpp"
#include "blockpack/solve/update.hpp"
#endif
