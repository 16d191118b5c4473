// SPDX-License-Identifier: Apache-2.0
/// The reference of the formats' headers, block by block and group by group: the meaning of the family.

#include <algorithm>
#include <array>
#include <span>

#include "blockpack/core/scalar.hpp"
#include "blockpack/quant/group_int.hpp"
#include "kernels/quant/quant_kernels.hpp"

namespace blockpack::kernels {
namespace {

constexpr std::size_t kMaxBlock = static_cast<std::size_t>(detail::kMaxBlock);

void encode_blocks(const float* w, std::size_t cols, const BlockCode& f, std::uint8_t* scales,
                   std::uint8_t* codes) noexcept {
  for (std::size_t col = 0; col < cols; col += f.block) {
    const std::size_t count = std::min<std::size_t>(f.block, cols - col);
    std::array<float, kMaxBlock> padded;
    const float* values = w + col;
    if (count < f.block) {
      std::fill(std::copy_n(values, count, padded.begin()), padded.end(), 0.0f);
      values = padded.data();
    }
    f.encode_block(f.self, values, scales++, codes);
    codes += f.block * f.bits / 8;
  }
}

template <class T, class Convert>
void decode_blocks(const std::uint8_t* scales, const std::uint8_t* codes, std::size_t count, const BlockCode& f, T* dst,
                   const Convert& convert) noexcept {
  for (std::size_t col = 0; col < count; col += f.block) {
    std::array<float, kMaxBlock> values;
    f.decode_block(f.self, *scales++, codes, values.data());
    codes += f.block * f.bits / 8;
    std::transform(values.begin(),
                   values.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(f.block, count - col)), dst + col,
                   convert);
  }
}
void decode_f32(const std::uint8_t* scales, const std::uint8_t* codes, std::size_t count, const BlockCode& f,
                float* dst) noexcept {
  decode_blocks(scales, codes, count, f, dst, [](float v) { return v; });
}
void decode_bf16(const std::uint8_t* scales, const std::uint8_t* codes, std::size_t count, const BlockCode& f,
                 std::uint16_t* dst) noexcept {
  decode_blocks(scales, codes, count, f, dst, [](float v) { return bf16(v).bits; });
}

GroupInt format_of(const GroupCode& g) noexcept {
  GroupInt f;
  f.bits = static_cast<int>(g.bits);
  f.grid = g.low == 0.0f ? GroupGrid::half_step : GroupGrid::max_abs;
  return f;
}
GroupParameters parameters_of(const GroupCode& g) noexcept {
  return {g.scale, static_cast<std::int32_t>(g.zero), 0.0f};
}

void group_range(const float* w, std::size_t n, float* low, float* high) noexcept {
  GroupInt::range_of({w, n}, *low, *high);
}
void group_encode(const float* w, std::size_t n, const GroupCode& g, std::uint8_t* codes) noexcept {
  const GroupInt f = format_of(g);
  std::array<std::int32_t, detail::kGroupChunk> q;
  for (std::size_t first = 0; first < n; first += q.size()) {
    const std::size_t count = std::min(q.size(), n - first);
    for (std::size_t i = 0; i < count; ++i) {
      const float code = round_half_even(w[first + i] / g.scale) + g.zero;
      q[i] = static_cast<std::int32_t>(code < g.low ? g.low : (code > g.high ? g.high : code));
    }
    f.pack(std::span<const std::int32_t>(q.data(), count), static_cast<std::int32_t>(g.zero), codes);
    codes += f.code_bytes(static_cast<index_t>(count));
  }
}
void group_decode(const std::uint8_t* codes, std::size_t n, const GroupCode& g, float* dst) noexcept {
  detail::decode_group_reference(format_of(g), codes, parameters_of(g), {dst, n});
}

}  // namespace

void install_quant_scalar(QuantKernels& t, Features) noexcept {
  t.encode_small = {encode_blocks, "scalar"};
  t.encode_fixed = {encode_blocks, "scalar"};
  t.decode_f32_small = {decode_f32, "scalar"};
  t.decode_f32_fixed = {decode_f32, "scalar"};
  t.decode_bf16_small = {decode_bf16, "scalar"};
  t.decode_bf16_fixed = {decode_bf16, "scalar"};
  t.group_range = {group_range, "scalar"};
  t.group_encode = {group_encode, "scalar"};
  t.group_decode = {group_decode, "scalar"};
  install_table_scalar(t);
  install_nvfp4_scalar(t);
  install_rounding_scalar(t);
  install_gram_scalar(t);
}

}  // namespace blockpack::kernels
