// SPDX-License-Identifier: Apache-2.0
/// Rows of the quantization formats through the kernels of the active level.

#include "blockpack/quant.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

void Bfp::encode_compiled(const EncodeRow& row, std::uint8_t* scales, std::uint8_t* codes) const {
  detail::encode_block_row_reference(*this, row, scales, codes);
}
void Bfp::decode_compiled(const std::uint8_t* scales, const std::uint8_t* codes, std::span<float> dst) const {
  detail::decode_block_row_reference(*this, scales, codes, dst);
}
void Bfp::decode_compiled(const std::uint8_t* scales, const std::uint8_t* codes, std::span<bf16> dst) const {
  detail::decode_block_row_reference(*this, scales, codes, dst);
}

void Mx::encode_compiled(const EncodeRow& row, std::uint8_t* scales, std::uint8_t* codes) const {
  detail::encode_block_row_reference(*this, row, scales, codes);
}
void Mx::decode_compiled(const std::uint8_t* scales, const std::uint8_t* codes, std::span<float> dst) const {
  detail::decode_block_row_reference(*this, scales, codes, dst);
}
void Mx::decode_compiled(const std::uint8_t* scales, const std::uint8_t* codes, std::span<bf16> dst) const {
  detail::decode_block_row_reference(*this, scales, codes, dst);
}

namespace detail {

const GroupOps& compiled_group_ops() { return kGroupReference; }

}  // namespace detail

}  // namespace blockpack::inline BLOCKPACK_ABI
