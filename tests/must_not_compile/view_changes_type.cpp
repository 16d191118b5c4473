// SPDX-License-Identifier: Apache-2.0
// A view of one element type is no view of another.
// message: (no viable conversion|could not convert|conversion from .* requested)
#include "blockpack/core/view.hpp"

#if defined(WRONG)
blockpack::MatrixView<const double> convert(blockpack::MatrixView<const float> v) { return v; }
#else
blockpack::MatrixView<const float> convert(blockpack::MatrixView<const float> v) { return v; }
#endif
