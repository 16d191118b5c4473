// SPDX-License-Identifier: Apache-2.0
// A buffer is moved, never copied behind one's back.
// message: (call to implicitly-deleted copy constructor|uses? (of )?deleted function)
#include <utility>

#include "blockpack/core/buffer.hpp"

blockpack::AlignedBuffer<float> pass(blockpack::AlignedBuffer<float>& buffer) {
#if defined(WRONG)
  return blockpack::AlignedBuffer<float>(buffer);
#else
  return blockpack::AlignedBuffer<float>(std::move(buffer));
#endif
}
