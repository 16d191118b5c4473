// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Everything. Each concept also has an umbrella of its own: core.hpp, solve.hpp, entropy.hpp, quant.hpp,
/// structured.hpp, sparse.hpp, io.hpp, recipe.hpp. `io` and `recipe` need the compiled library, blockpack::blockpack.

#include "blockpack/core.hpp"
#include "blockpack/entropy.hpp"
#include "blockpack/quant.hpp"
#include "blockpack/solve.hpp"
#include "blockpack/sparse.hpp"
#include "blockpack/structured.hpp"
#if !defined(BLOCKPACK_HEADERS_ONLY)
#include "blockpack/io.hpp"
#include "blockpack/recipe.hpp"
#endif
