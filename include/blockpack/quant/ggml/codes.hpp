// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The blocks of ggml as integer codes and scales (core/code_spec.hpp), for every type.

#include <bit>
#include <cstdint>
#include <optional>

#include "blockpack/core/code_spec.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/quant/ggml/k_quants.hpp"
#include "blockpack/quant/ggml/simple_blocks.hpp"

namespace blockpack::inline BLOCKPACK_ABI::ggml {

/// What the codes of a type mean.
inline CodeSpec code_spec(GgmlType type) noexcept {
  CodeSpec spec;
  spec.scale = CodeScale::fp16;
  const auto integers = [&spec](int bits, int zero) {
    spec.bits = bits;
    spec.zero = zero;
  };
  switch (type) {
    case GgmlType::q4_0:
      integers(4, 8);
      return spec;
    case GgmlType::iq4_nl:
    case GgmlType::iq4_xs:
      for (std::size_t c = 0; c < 16; ++c) spec.levels[c] = kIq4Levels[c];
      if (type == GgmlType::iq4_xs) spec.scale = CodeScale::super;
      return spec;
    case GgmlType::mxfp4:
    case GgmlType::nvfp4:
      for (std::size_t c = 0; c < 16; ++c) spec.levels[c] = kE2m1Doubled[c];
      spec.multiplier = 0.5f;
      spec.scale = type == GgmlType::mxfp4 ? CodeScale::e8m0 : CodeScale::e4m3;
      spec.group = type == GgmlType::mxfp4 ? 32 : 16;
      return spec;
    case GgmlType::q5_0:
      integers(5, 16);
      return spec;
    case GgmlType::q8_0:
      integers(8, 128);
      return spec;
    case GgmlType::q8_k:
      integers(8, 128);
      spec.scale = CodeScale::f32;
      spec.group = 256;
      return spec;
    case GgmlType::q6_k:
      integers(6, 32);
      spec.scale = CodeScale::super;
      spec.group = 16;
      return spec;
    case GgmlType::q3_k:
      integers(3, 4);
      spec.scale = CodeScale::super;
      spec.group = 16;
      return spec;
    case GgmlType::q4_1:
    case GgmlType::q5_1:
      integers(type == GgmlType::q4_1 ? 4 : 5, 0);
      spec.minimums = true;
      return spec;
    case GgmlType::q2_k:
    case GgmlType::q4_k:
    case GgmlType::q5_k:
      integers(type == GgmlType::q2_k ? 2 : type == GgmlType::q4_k ? 4 : 5, 0);
      spec.minimums = true;
      spec.scale = type == GgmlType::q2_k ? CodeScale::super4 : CodeScale::super;
      if (type == GgmlType::q2_k) spec.group = 16;
      return spec;
    case GgmlType::tq1_0:
    case GgmlType::tq2_0:
      integers(2, 1);
      spec.group = 256;
      return spec;
  }
  return spec;
}

/// An int8 and the binary16 it multiplies, as CodeRow has them.
inline std::uint32_t two_levels(const Half& step, int times) noexcept {
  return step.bits() | (static_cast<std::uint32_t>(times) & 255u) << 16;
}
/// Minus their product, for multiples that have no sign.
inline std::uint32_t minus_two_levels(const Half& step, int times) noexcept {
  return two_levels(step, times) ^ 0x8000u;
}

/// Where the parts of a block go: all its codes, and per group the bits of its scale and its minimum.
struct CodeBlock {
  std::uint8_t* codes;
  std::uint32_t* scales;
  std::uint32_t* minimums;
};

inline void read_codes(const Q4_0& b, const CodeBlock& dst) noexcept {
  unpack_nibbles(b.qs, dst.codes);
  dst.scales[0] = b.d.bits();
}
inline void read_codes(const Iq4Nl& b, const CodeBlock& dst) noexcept {
  unpack_nibbles(b.qs, dst.codes);
  dst.scales[0] = b.d.bits();
}
inline void read_codes(const Q5_0& b, const CodeBlock& dst) noexcept {
  unpack_nibbles(b.qs, dst.codes);
  unpack_fifth_bits(b.qh, dst.codes);
  dst.scales[0] = b.d.bits();
}
inline void read_codes(const Q8_0& b, const CodeBlock& dst) noexcept {
  for (std::size_t i = 0; i < 32; ++i) dst.codes[i] = static_cast<std::uint8_t>(b.qs[i] + 128);
  dst.scales[0] = b.d.bits();
}
inline void read_codes(const Q8K& b, const CodeBlock& dst) noexcept {
  for (std::size_t i = 0; i < 256; ++i) dst.codes[i] = static_cast<std::uint8_t>(b.qs[i] + 128);
  dst.scales[0] = 0;
  for (std::size_t i = 0; i < 4; ++i) dst.scales[0] |= std::uint32_t{b.d[i]} << (8 * i);
}
/// Scale byte 255, which no encoder writes (its levels beyond 1 overflow), makes products NaN.
inline void read_codes(const Mxfp4& b, const CodeBlock& dst) noexcept {
  unpack_nibbles(b.qs, dst.codes);
  dst.scales[0] = b.e;
}
/// Scale byte 0xff, which no encoder writes, makes products NaN.
inline void read_codes(const Nvfp4& b, const CodeBlock& dst) noexcept {
  for (std::size_t s = 0; s < 4; ++s) {
    dst.scales[s] = b.d[s] == 0x7f ? 0u : b.d[s] & 0x7fu;
    for (std::size_t j = 0; j < 8; ++j) {
      dst.codes[16 * s + j] = b.qs[8 * s + j] & 15;
      dst.codes[16 * s + 8 + j] = static_cast<std::uint8_t>(b.qs[8 * s + j] >> 4);
    }
  }
}
inline void read_codes(const Tq2_0& b, const CodeBlock& dst) noexcept {
  for (std::size_t i = 0; i < 256; ++i)
    dst.codes[i] = static_cast<std::uint8_t>((b.qs[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32))) & 3);
  dst.scales[0] = b.d.bits();
}
inline void read_codes(const Tq1_0& b, const CodeBlock& dst) noexcept {
  for (std::size_t i = 0; i < 52; ++i) {
    unsigned byte = i < 48 ? b.qs[i] : b.qh[i - 48];
    for (std::size_t n = 0; n < (i < 48 ? 5u : 4u); ++n) {
      dst.codes[simple::tq1_element(i, n)] = static_cast<std::uint8_t>((3 * byte) >> 8);
      byte = (3 * byte) & 255;
    }
  }
  dst.scales[0] = b.d.bits();
}
inline void read_codes(const Iq4Xs& b, const CodeBlock& dst) noexcept {
  for (std::size_t j = 0; j < 8; ++j) {
    const int scale = (((b.scales_l[j / 2] >> (j % 2 * 4)) & 15) | (((b.scales_h.bits() >> (2 * j)) & 3) << 4)) - 32;
    dst.scales[j] = two_levels(b.d, scale);
    unpack_nibbles(b.qs + 16 * j, dst.codes + 32 * j);
  }
}
inline void read_codes(const Q3K& b, const CodeBlock& dst) noexcept {
  for (std::size_t i = 0; i < 256; ++i) {
    const int low = (b.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
    dst.codes[i] = static_cast<std::uint8_t>(low | ((b.hmask[i % 32] >> (i / 32)) & 1) << 2);
  }
  for (std::size_t g = 0; g < 16; ++g) dst.scales[g] = two_levels(b.d, q3_scale(b.scales, g));
}
inline void read_codes(const Q6K& b, const CodeBlock& dst) noexcept {
  for (std::size_t i = 0; i < 256; ++i) {
    const std::size_t n = i / 128, part = i % 128 / 32, l = i % 32;
    const int low = (b.ql[64 * n + part % 2 * 32 + l] >> (part / 2 * 4)) & 15;
    dst.codes[i] = static_cast<std::uint8_t>(low | (((b.qh[32 * n + l] >> (2 * part)) & 3) << 4));
  }
  for (std::size_t g = 0; g < 16; ++g) dst.scales[g] = two_levels(b.d, b.scales[g]);
}

inline void read_codes(const Q4_1& b, const CodeBlock& dst) noexcept {
  unpack_nibbles(b.qs, dst.codes);
  dst.scales[0] = b.d.bits();
  dst.minimums[0] = b.min.bits();
}
inline void read_codes(const Q5_1& b, const CodeBlock& dst) noexcept {
  unpack_nibbles(b.qs, dst.codes);
  unpack_fifth_bits(b.qh, dst.codes);
  dst.scales[0] = b.d.bits();
  dst.minimums[0] = b.min.bits();
}
inline void read_codes(const Q2K& b, const CodeBlock& dst) noexcept {
  for (std::size_t i = 0; i < 256; ++i)
    dst.codes[i] = static_cast<std::uint8_t>((b.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3);
  for (std::size_t g = 0; g < 16; ++g) {
    dst.scales[g] = two_levels(b.d, b.scales[g] & 15);
    dst.minimums[g] = minus_two_levels(b.dmin, b.scales[g] >> 4);
  }
}

/// Q4_K, and Q5_K with the fifth bits.
inline void read_codes(const Half& d, const Half& dmin, const std::uint8_t* packed, const std::uint8_t* qs,
                       const std::uint8_t* qh, const CodeBlock& dst) noexcept {
  std::uint8_t scales[8], mins[8];
  unpack_six_bits(packed, scales, mins);
  for (std::size_t j = 0; j < 8; ++j) {
    dst.scales[j] = two_levels(d, scales[j]);
    dst.minimums[j] = two_levels(dmin, -mins[j]);
    for (std::size_t l = 0; l < 32; ++l) {
      int code = (qs[j / 2 * 32 + l] >> (j % 2 * 4)) & 15;
      if (qh != nullptr) code |= ((qh[l] >> j) & 1) << 4;
      dst.codes[32 * j + l] = static_cast<std::uint8_t>(code);
    }
  }
}
inline void read_codes(const Q4K& b, const CodeBlock& dst) noexcept {
  read_codes(b.d, b.dmin, b.scales, b.qs, nullptr, dst);
}
inline void read_codes(const Q5K& b, const CodeBlock& dst) noexcept {
  read_codes(b.d, b.dmin, b.scales, b.qs, b.qh, dst);
}

}  // namespace blockpack::inline BLOCKPACK_ABI::ggml
