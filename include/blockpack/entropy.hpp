// SPDX-License-Identifier: Apache-2.0
#pragma once

/// How much information a block of weights holds, and which blocks matter. docs/entropy.md has the ideas and equations.

#include "blockpack/entropy/estimators.hpp"
#include "blockpack/entropy/fields.hpp"
#include "blockpack/entropy/gardener.hpp"
#include "blockpack/entropy/histogram.hpp"
#include "blockpack/entropy/plan.hpp"
#include "blockpack/entropy/scores.hpp"
#include "blockpack/entropy/statistics.hpp"
#include "blockpack/entropy/tile_map.hpp"
#include "blockpack/entropy/value_counts.hpp"
#include "blockpack/entropy/weights.hpp"
