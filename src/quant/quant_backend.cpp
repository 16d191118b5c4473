// SPDX-License-Identifier: Apache-2.0
/// Rows of the quantization formats through the kernels of the active level. What the kernels do not cover (roundings
/// other than half to even, the mse scale rule, mantissas of other widths) runs the reference.

#include "blockpack/quant.hpp"
#include "quant/block_code.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

using kernels::BlockCode;
using kernels::QuantKernels;

namespace {

std::uint16_t* bits_of(bf16* p) noexcept { return reinterpret_cast<std::uint16_t*>(p); }

}  // namespace

void Bfp::encode_compiled(const EncodeRow& row, std::uint8_t* scales, std::uint8_t* codes) const {
  if (!kernels::encodes(*this) || !row.importance.empty())
    return detail::encode_block_row_reference(*this, row, scales, codes);
  const kernels::BlockCoder<Bfp> coder(*this, row.non_finite);
  kernels::active().quant.encode_fixed.fn(row.weights.data(), row.weights.size(), coder.code, scales, codes);
}
void Bfp::decode_compiled(const std::uint8_t* scales, const std::uint8_t* codes, std::span<float> dst) const {
  if (!kernels::decodes(*this)) return detail::decode_block_row_reference(*this, scales, codes, dst);
  const kernels::BlockCoder<Bfp> coder(*this);
  kernels::active().quant.decode_f32_fixed.fn(scales, codes, dst.size(), coder.code, dst.data());
}
void Bfp::decode_compiled(const std::uint8_t* scales, const std::uint8_t* codes, std::span<bf16> dst) const {
  if (!kernels::decodes(*this)) return detail::decode_block_row_reference(*this, scales, codes, dst);
  const kernels::BlockCoder<Bfp> coder(*this);
  kernels::active().quant.decode_bf16_fixed.fn(scales, codes, dst.size(), coder.code, bits_of(dst.data()));
}

void Mx::encode_compiled(const EncodeRow& row, std::uint8_t* scales, std::uint8_t* codes) const {
  if (!kernels::encodes(*this)) return detail::encode_block_row_reference(*this, row, scales, codes);
  const kernels::BlockCoder<Mx> coder(*this, row.non_finite);
  const QuantKernels& k = kernels::active().quant;
  const auto& slot = spec().exponent_bits == 0 ? k.encode_fixed : k.encode_small;
  slot.fn(row.weights.data(), row.weights.size(), coder.code, scales, codes);
}
void Mx::decode_compiled(const std::uint8_t* scales, const std::uint8_t* codes, std::span<float> dst) const {
  const kernels::BlockCoder<Mx> coder(*this);
  const QuantKernels& k = kernels::active().quant;
  const auto& slot = spec().exponent_bits == 0 ? k.decode_f32_fixed : k.decode_f32_small;
  slot.fn(scales, codes, dst.size(), coder.code, dst.data());
}
void Mx::decode_compiled(const std::uint8_t* scales, const std::uint8_t* codes, std::span<bf16> dst) const {
  const kernels::BlockCoder<Mx> coder(*this);
  const QuantKernels& k = kernels::active().quant;
  const auto& slot = spec().exponent_bits == 0 ? k.decode_bf16_fixed : k.decode_bf16_small;
  slot.fn(scales, codes, dst.size(), coder.code, bits_of(dst.data()));
}

namespace detail {

TableOps table_ops() { return kernels::table_ops(kernels::active().quant); }

void encode_ternary(std::span<const float> values, float divisor, int bits, std::uint8_t* codes) {
  const kernels::GroupCode g{divisor == 0.0f ? std::numeric_limits<float>::infinity() : divisor, 1.0f, 0.0f, 2.0f,
                             static_cast<std::uint32_t>(bits)};
  kernels::active().quant.group_encode.fn(values.data(), values.size(), g, codes);
}
void decode_ternary(const std::uint8_t* codes, float scale, std::span<float> dst) {
  const kernels::GroupCode g{scale, 1.0f, 0.0f, 2.0f, 2};
  kernels::active().quant.group_decode.fn(codes, dst.size(), g, dst.data());
}

void add_gram_tile(MatrixView<const float> x, index_t left, index_t right, double* sums) {
  static_assert(kGramTile == kernels::kGramTile);
  if (x.rows() == 0) return;
  const auto columns = [&](index_t first) { return static_cast<std::size_t>(std::min(kGramTile, x.cols() - first)); };
  kernels::active().quant.gram_tile.fn({x.row_data(0) + left, x.row_data(0) + right,
                                        static_cast<std::size_t>(x.row_stride()), static_cast<std::size_t>(x.rows()),
                                        columns(left), columns(right), sums});
}

GroupOps group_ops() { return kernels::group_ops(kernels::active().quant); }

}  // namespace detail

}  // namespace blockpack::inline BLOCKPACK_ABI
