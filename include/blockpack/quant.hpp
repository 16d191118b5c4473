// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Everything of the concept `quant`: block formats and the operator over them. docs/quantization.md.

#include "blockpack/quant/allocate.hpp"
#include "blockpack/quant/awq.hpp"
#include "blockpack/quant/bfp.hpp"
#include "blockpack/quant/ggml.hpp"
#include "blockpack/quant/ggml_grid.hpp"
#include "blockpack/quant/group_int.hpp"
#include "blockpack/quant/hsic.hpp"
#include "blockpack/quant/input_transforms.hpp"
#include "blockpack/quant/ksort.hpp"
#include "blockpack/quant/mx.hpp"
#include "blockpack/quant/nf4.hpp"
#include "blockpack/quant/nvfp4.hpp"
#include "blockpack/quant/ofq.hpp"
#include "blockpack/quant/ptq161.hpp"
#include "blockpack/quant/quantized_matrix.hpp"
#include "blockpack/quant/rounding.hpp"
#include "blockpack/quant/ternary.hpp"
