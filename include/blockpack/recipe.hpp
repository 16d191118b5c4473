// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Recipes: scheme strings, the registry of formats, compressing a model and using the result. docs/recipe.md.

#include "blockpack/recipe/auto_plan.hpp"
#include "blockpack/recipe/calibration.hpp"
#include "blockpack/recipe/codec.hpp"
#include "blockpack/recipe/compressed_model.hpp"
#include "blockpack/recipe/frontier.hpp"
#include "blockpack/recipe/recipe.hpp"
#include "blockpack/recipe/registry.hpp"
#include "blockpack/recipe/rounding_codec.hpp"
#include "blockpack/recipe/scheme.hpp"
