// SPDX-License-Identifier: Apache-2.0
// A temporary dies before its view is used.
// message: (use of deleted function|call to deleted function)
#include "blockpack/core/xtensor.hpp"

#if __has_include(<xtensor/containers/xtensor.hpp>)
#include <xtensor/containers/xtensor.hpp>
#else
#include <xtensor/xtensor.hpp>
#endif

using Tensor = xt::xtensor<float, 2>;
Tensor make();

float first(const Tensor& kept) {
#if defined(WRONG)
  return blockpack::view(make())(0, 0) + kept(0, 0);
#else
  return blockpack::view(kept)(0, 0);
#endif
}
