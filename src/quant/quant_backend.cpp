// SPDX-License-Identifier: Apache-2.0
/// Rows of the quantization formats through the kernels of the active level. What the kernels do not cover (MX with
/// roundings other than half to even or the mse scale rule, mantissas of other widths read) runs the reference; BFP of
/// other widths and roundings is encoded here, but for the stochastic one.

#include <bit>
#include <limits>

#include "blockpack/quant.hpp"
#include "quant/block_code.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

using kernels::BlockCode;
using kernels::QuantKernels;

namespace {

std::uint16_t* bits_of(bf16* p) noexcept { return reinterpret_cast<std::uint16_t*>(p); }

/// |w| * inverse_step, rounded, to codes of `bits` bits. From kFastExponentField on the product is exact or far below
/// one half; the sum with 2^23 has it rounded half to even in its lowest bits, and what that is off by is exact again.
template <Rounding R>
void round_block(const float* w, std::size_t count, float inverse_step, int bits, bool asymmetric,
                 std::uint32_t* codes) noexcept {
  constexpr float kUnit = 0x1p23f;
  const std::uint32_t mask = (1u << bits) - 1;
  const auto limit = static_cast<float>(mask >> 1);
  const float lower_from = asymmetric ? limit + 0.5f : std::numeric_limits<float>::infinity();  // takes one more
  for (std::size_t i = 0; i < count; ++i) {
    const auto sign = static_cast<std::uint32_t>(std::bit_cast<std::int32_t>(w[i]) >> 31);  // all bits or none
    const std::uint32_t w_bits = std::bit_cast<std::uint32_t>(w[i]) & 0x7fffffffu;
    const float magnitude = std::bit_cast<float>(w_bits) * inverse_step;
    const float v = magnitude < limit ? magnitude : limit;
    const float sum = v + kUnit, rounded = sum - kUnit;
    std::uint32_t steps = std::bit_cast<std::uint32_t>(sum) - std::bit_cast<std::uint32_t>(kUnit);
    if constexpr (R == Rounding::half_away) steps += v - rounded == 0.5f ? 1 : 0;
    if constexpr (R == Rounding::toward_zero) steps -= v < rounded ? 1 : 0;
    if constexpr (R == Rounding::down) {
      const std::uint32_t over = v < rounded ? 1 : 0, under = v > rounded ? 1 : 0, lost = (steps == 0) & (w_bits != 0);
      steps += ((under | lost) & sign) - (over & ~sign);
    }
    steps += (magnitude >= lower_from ? 1u : 0u) & sign;
    codes[i] = ((steps ^ sign) - sign) & mask;
  }
}

/// One whole block of a width or a rounding that the kernels do not have; `stochastic` is not here.
void encode_block_in_float(const Bfp& f, const float* w, std::uint8_t* scale, std::uint8_t* codes) noexcept {
  const auto count = static_cast<std::size_t>(f.block);
  *scale = Bfp::exponent_of({w, count});
  if (*scale < kernels::kFastExponentField || *scale > 240)  // the inverse of the step may be subnormal
    return f.encode_block({w, count}, {}, 0, scale, codes);
  const float inverse_step = exp2i(-f.step_exponent(*scale));
  std::uint32_t m[detail::kMaxBlock];
  const auto round = f.rounding == Rounding::half_even     ? round_block<Rounding::half_even>
                     : f.rounding == Rounding::half_away   ? round_block<Rounding::half_away>
                     : f.rounding == Rounding::toward_zero ? round_block<Rounding::toward_zero>
                                                           : round_block<Rounding::down>;
  round(w, count, inverse_step, f.mantissa_bits, f.asymmetric, m);
  const int together = f.mantissa_bits <= 8 ? 4 : (f.mantissa_bits <= 16 ? 2 : 1);  // codes of 32 bits at most
  std::uint64_t pending = 0;
  int held = 0;
  for (std::size_t i = 0; i < count; i += static_cast<std::size_t>(together)) {
    std::uint32_t word = m[i];
    for (int j = 1; j < together; ++j) word |= m[i + static_cast<std::size_t>(j)] << j * f.mantissa_bits;
    pending |= std::uint64_t{word} << held;
    held += together * f.mantissa_bits;
    if (held < 32) continue;
    for (int byte = 0; byte < 4; ++byte) *codes++ = static_cast<std::uint8_t>(pending >> 8 * byte);
    pending >>= 32;
    held -= 32;
  }
  for (; held > 0; held -= 8, pending >>= 8) *codes++ = static_cast<std::uint8_t>(pending);
}

}  // namespace

void Bfp::encode_compiled(const EncodeRow& row, std::uint8_t* scales, std::uint8_t* codes) const {
  if (!row.importance.empty() || rounding == Rounding::stochastic)
    return detail::encode_block_row_reference(*this, row, scales, codes);
  if (kernels::encodes(*this)) {
    const kernels::BlockCoder<Bfp> coder(*this, row.non_finite);
    return kernels::active().quant.encode_fixed.fn(row.weights.data(), row.weights.size(), coder.code, scales, codes);
  }
  EncodeRow rest = row;
  const auto whole = static_cast<std::size_t>(block);
  for (; rest.weights.size() >= whole; rest.weights = rest.weights.subspan(whole), codes += code_bytes())
    encode_block_in_float(*this, rest.weights.data(), scales++, codes);
  detail::encode_block_row_reference(*this, rest, scales, codes);
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
