// SPDX-License-Identifier: Apache-2.0
/// The reference, block by block.

#include "kernels/ggml/ggml_kernels.hpp"

namespace blockpack::kernels {
namespace {

void encode(const GgmlEncode& row) noexcept {
  for (std::size_t b = 0; b < row.blocks; ++b) row.encode_block(row, b);
}
void decode(const GgmlDecode& row) noexcept {
  for (std::size_t b = 0; b < row.blocks; ++b) row.decode_block(row, b);
}

}  // namespace

void install_ggml_scalar(GgmlKernels& t, Features) noexcept {
  t.encode = {encode, "scalar"};
  t.decode = {decode, "scalar"};
}

}  // namespace blockpack::kernels
