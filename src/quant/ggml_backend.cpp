// SPDX-License-Identifier: Apache-2.0
/// Rows of ggml's blocks through the kernels of the active level; a short last block goes through the reference.

#include "blockpack/quant/ggml.hpp"
#include "kernels/table.hpp"
#include "quant/ggml_row.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

void Ggml::encode_compiled(const EncodeRow& row, std::uint8_t* dst) const {
  const kernels::KernelTable& table = kernels::active();
  float low = 0.0f, high = 0.0f;
  table.quant.group_range.fn(row.weights.data(), row.weights.size(), &low, &high);
  if (std::max(-low, high) > detail::kPlainGgmlWeight) return detail::encode_wide_ggml_row(*this, row, dst);
  kernels::encode_ggml_row(table.ggml, *this, row.weights, row.importance, dst);
}
void Ggml::decode_compiled(const std::uint8_t* src, std::span<float> dst) const {
  kernels::decode_ggml_row(kernels::active().ggml, *this, src, dst);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
