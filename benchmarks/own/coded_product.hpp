// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Any scheme of the registry behind the suite's interface.

#include "blockpack/core/linear_operator.hpp"
#include "product.hpp"

namespace bench {

std::unique_ptr<Product> make_coded_product(const Request& request,
                                            blockpack::Activations mode = blockpack::Activations::automatic);

}  // namespace bench
