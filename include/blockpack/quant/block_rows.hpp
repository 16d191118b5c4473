// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What the quantization formats share beside arithmetic: names and checks of their parameters, and the walk over the
/// blocks of a row.

#include <algorithm>
#include <array>
#include <span>
#include <string>

#include "blockpack/core/code_spec.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/core/strict.hpp"

namespace blockpack::inline BLOCKPACK_ABI::detail {

inline constexpr index_t kMaxBlock = 128;

inline void check_block(const char* format, int block) {
  if (block != 16 && block != 32 && block != 64 && block != 128)
    throw ValueError(std::string(format) + ": block = " + std::to_string(block) + ", 16, 32, 64 or 128 needed");
}

inline std::uint8_t* bytes(std::byte* p) noexcept { return reinterpret_cast<std::uint8_t*>(p); }
inline const std::uint8_t* bytes(const std::byte* p) noexcept { return reinterpret_cast<const std::uint8_t*>(p); }

/// The next `count` values from `first` on, or the fewer there are.
inline std::span<const float> part_of(std::span<const float> row, index_t first, index_t count) noexcept {
  if (row.empty()) return {};
  return row.subspan(static_cast<std::size_t>(first),
                     std::min(static_cast<std::size_t>(count), row.size() - static_cast<std::size_t>(first)));
}

/// Sum of f(i), i = 0 … n - 1, in double: eight interleaved sums, added in order.
template <class F>
double interleaved_sum(std::size_t n, const F& f) noexcept {
  double sums[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (std::size_t lane = 0; lane < 8; ++lane) sums[lane] += f(i + lane);
  for (std::size_t lane = 0; i < n; ++i, ++lane) sums[lane] += f(i);
  double sum = 0;
  for (const double s : sums) sum += s;
  return sum;
}

/// Sum of importance * (w - decoded(i))², in double and in order. Importance that is shorter than the values ends where
/// the row does.
template <class Decoded>
double weighted_error(std::span<const float> values, std::span<const float> importance,
                      const Decoded& decoded) noexcept {
  double sum = 0;
  for (std::size_t i = 0; i < std::min(values.size(), importance.size()); ++i) {
    const double error = static_cast<double>(values[i]) - static_cast<double>(decoded(i));
    sum += strict_mul(strict_mul(error, error), static_cast<double>(importance[i]));
  }
  return sum;
}

/// Encodes a row block by block through the reference. A short last block is filled with zeros, which changes neither
/// its shared exponent nor its other codes.
template <class Format>
void encode_block_row_reference(const Format& f, const EncodeRow& row, std::uint8_t* scales,
                                std::uint8_t* codes) noexcept {
  const auto block = static_cast<std::size_t>(f.block);
  for (std::size_t col = 0; col < row.weights.size(); col += block) {
    const std::size_t count = std::min(block, row.weights.size() - col);
    std::array<float, kMaxBlock> padded;
    std::span<const float> values = row.weights.subspan(col, count);
    if (count < block) {
      std::fill(std::copy(values.begin(), values.end(), padded.begin()), padded.end(), 0.0f);
      values = std::span<const float>(padded.data(), block);
    }
    f.encode_block(values, row, static_cast<index_t>(col), scales++, codes);
    codes += f.code_bytes();
  }
}

template <class Format, class T>
void decode_block_row_reference(const Format& f, const std::uint8_t* scales, const std::uint8_t* codes,
                                std::span<T> dst) noexcept {
  const auto block = static_cast<std::size_t>(f.block);
  for (std::size_t col = 0; col < dst.size(); col += block) {
    std::array<float, kMaxBlock> values;
    f.decode_block(*scales++, codes, std::span<float>(values.data(), block));
    codes += f.code_bytes();
    const std::size_t count = std::min(block, dst.size() - col);
    for (std::size_t i = 0; i < count; ++i) dst[col + i] = static_cast<T>(values[i]);
  }
}

/// Codes and scale bytes of a row of a shared-exponent format; `packed(code, scale)` is the code as the kernels want
/// it.
template <class Format, class Packed>
void read_block_codes(const Format& f, std::span<const std::byte* const> src, index_t cols, const CodeRow& dst,
                      const Packed& packed) {
  const std::uint8_t* codes = bytes(src[1]);
  for (index_t g = 0, col = 0; col < cols; ++g, col += f.block, codes += f.code_bytes()) {
    const std::uint8_t scale = bytes(src[0])[g];
    std::array<std::int32_t, kMaxBlock> block;
    f.unpack(codes, std::span<std::int32_t>(block.data(), static_cast<std::size_t>(f.block)));
    dst.scales[static_cast<std::size_t>(g)] = scale;
    for (index_t i = 0; i < std::min<index_t>(f.block, cols - col); ++i)
      dst.codes[static_cast<std::size_t>(col + i)] = packed(block[static_cast<std::size_t>(i)], scale);
  }
}

/// The two sections of a shared-exponent format, through the compiled kernels or the reference.
template <class Format>
void encode_block_row(const Format& f, const EncodeRow& row, std::span<std::byte* const> dst) {
#if defined(BLOCKPACK_HEADERS_ONLY)
  encode_block_row_reference(f, row, bytes(dst[0]), bytes(dst[1]));
#else
  f.encode_compiled(row, bytes(dst[0]), bytes(dst[1]));
#endif
}

template <class Format, class T>
void decode_block_row(const Format& f, std::span<const std::byte* const> src, index_t /*cols*/, index_t col,
                      std::span<T> dst) {
  const index_t first = col / f.block;
  const std::uint8_t* scales = bytes(src[0]) + first;
  const std::uint8_t* codes = bytes(src[1]) + first * f.code_bytes();
#if defined(BLOCKPACK_HEADERS_ONLY)
  decode_block_row_reference(f, scales, codes, dst);
#else
  f.decode_compiled(scales, codes, dst);
#endif
}

}  // namespace blockpack::inline BLOCKPACK_ABI::detail
