// SPDX-License-Identifier: Apache-2.0
// A view that is read does not become one that is written.
// message: (no viable conversion|could not convert|conversion from .* requested)
#include "blockpack/core/view.hpp"

#if defined(WRONG)
blockpack::MatrixView<float> convert(blockpack::MatrixView<const float> v) { return v; }
#else
blockpack::MatrixView<const float> convert(blockpack::MatrixView<float> v) { return v; }
#endif
