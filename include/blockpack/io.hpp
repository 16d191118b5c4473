// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Containers of named bytes: safetensors, sharded models, GGUF, npy.

#include "blockpack/io/atomic_file.hpp"
#include "blockpack/io/checked.hpp"
#include "blockpack/io/dtype.hpp"
#include "blockpack/io/gguf.hpp"
#include "blockpack/io/mapped_file.hpp"
#include "blockpack/io/npy.hpp"
#include "blockpack/io/safetensors.hpp"
#include "blockpack/io/sharded.hpp"
#include "blockpack/io/tensor.hpp"
