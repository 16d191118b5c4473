// SPDX-License-Identifier: Apache-2.0
// Buffers hold plain data.
// message: static.assert(ion)? failed
#include <string>

#include "blockpack/core/buffer.hpp"

#if defined(WRONG)
blockpack::AlignedBuffer<std::string> buffer(3);
#else
blockpack::AlignedBuffer<char> buffer(3);
#endif
