// SPDX-License-Identifier: Apache-2.0
/// Rows of the quantization formats through the kernels of the active level. What the kernels do not cover (roundings
/// other than half to even, the mse scale rule, mantissas of other widths read or with their lowest code) runs the
/// reference.

#include <bit>
#include <cmath>

#include "blockpack/quant.hpp"
#include "quant/block_code.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

using kernels::BlockCode;
using kernels::QuantKernels;

namespace {

std::uint16_t* bits_of(bf16* p) noexcept { return reinterpret_cast<std::uint16_t*>(p); }

/// One whole block of symmetric mantissas of any width, half to even: v / step is exact in double, where the sum with
/// 1.5 * 2^52 has it rounded in its lowest bits.
void encode_half_even(const Bfp& f, const float* w, std::uint8_t* scale, std::uint8_t* codes) noexcept {
  const auto count = static_cast<std::size_t>(f.block);
  *scale = Bfp::exponent_of({w, count});
  const double limit = static_cast<double>((1 << (f.mantissa_bits - 1)) - 1);
  const double steps = *scale == 0 ? 0.0 : std::ldexp(1.0, -f.step_exponent(*scale));
  const std::uint32_t mask = (1u << f.mantissa_bits) - 1;
  std::uint32_t m[detail::kMaxBlock];
  for (std::size_t i = 0; i < count; ++i) {
    const double v = static_cast<double>(w[i]) * steps;
    const double inside = v > limit ? limit : (v < -limit ? -limit : (v == v ? v : 0.0));
    m[i] = static_cast<std::uint32_t>(std::bit_cast<std::uint64_t>(inside + 0x1.8p52)) & mask;
  }
  std::uint64_t pending = 0;
  int held = 0;
  for (std::size_t i = 0; i < count; ++i) {
    pending |= std::uint64_t{m[i]} << held;
    held += f.mantissa_bits;
    if (held < 32) continue;
    for (int byte = 0; byte < 4; ++byte) *codes++ = static_cast<std::uint8_t>(pending >> 8 * byte);
    pending >>= 32;
    held -= 32;
  }
  for (; held > 0; held -= 8, pending >>= 8) *codes++ = static_cast<std::uint8_t>(pending);
}

}  // namespace

void Bfp::encode_compiled(const EncodeRow& row, std::uint8_t* scales, std::uint8_t* codes) const {
  if (rounding == Rounding::half_even && !asymmetric && !kernels::encodes(*this) && row.importance.empty()) {
    EncodeRow rest = row;
    const auto whole = static_cast<std::size_t>(block);
    for (; rest.weights.size() >= whole; rest.weights = rest.weights.subspan(whole), codes += code_bytes())
      encode_half_even(*this, rest.weights.data(), scales++, codes);
    return detail::encode_block_row_reference(*this, rest, scales, codes);
  }
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
