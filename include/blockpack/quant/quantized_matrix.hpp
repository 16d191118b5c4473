// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A quantized weight matrix: the linear operator over a quantization format.
///
///     const auto op = QuantizedMatrix<Mx>::encode(w, Mx{MxElement::fp4_e2m1});
///     op.apply(x, y);

#include "blockpack/core/row_matrix.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

template <RowFormat Format>
using QuantizedMatrix = RowMatrix<Format>;

}  // namespace blockpack::inline BLOCKPACK_ABI
