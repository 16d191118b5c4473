// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The blocks of ggml as integer codes and scales (core/code_spec.hpp), for every type.

#include <bit>
#include <cstdint>
#include <cstring>
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

/// The int8 of two_levels.
inline int multiple_of(std::uint32_t bits) noexcept { return static_cast<std::int8_t>(bits >> 16); }

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

/// The block whose read_codes gives `src`.
inline void write_codes(const CodeBlock& src, Q4_0& b) noexcept {
  b.d.set_bits(static_cast<std::uint16_t>(src.scales[0]));
  pack_nibbles(src.codes, b.qs);
}
inline void write_codes(const CodeBlock& src, Iq4Nl& b) noexcept {
  b.d.set_bits(static_cast<std::uint16_t>(src.scales[0]));
  pack_nibbles(src.codes, b.qs);
}
inline void write_codes(const CodeBlock& src, Q5_0& b) noexcept {
  b.d.set_bits(static_cast<std::uint16_t>(src.scales[0]));
  pack_fifth_bits(src.codes, b.qh);
  pack_nibbles(src.codes, b.qs);
}
inline void write_codes(const CodeBlock& src, Q4_1& b) noexcept {
  b.d.set_bits(static_cast<std::uint16_t>(src.scales[0]));
  b.min.set_bits(static_cast<std::uint16_t>(src.minimums[0]));
  pack_nibbles(src.codes, b.qs);
}
inline void write_codes(const CodeBlock& src, Q5_1& b) noexcept {
  b.d.set_bits(static_cast<std::uint16_t>(src.scales[0]));
  b.min.set_bits(static_cast<std::uint16_t>(src.minimums[0]));
  pack_fifth_bits(src.codes, b.qh);
  pack_nibbles(src.codes, b.qs);
}
inline void write_codes(const CodeBlock& src, Q8_0& b) noexcept {
  b.d.set_bits(static_cast<std::uint16_t>(src.scales[0]));
  for (std::size_t i = 0; i < 32; ++i) b.qs[i] = static_cast<std::int8_t>(src.codes[i] - 128);
}
inline void write_codes(const CodeBlock& src, Q8K& b) noexcept {
  for (std::size_t i = 0; i < 4; ++i) b.d[i] = static_cast<std::uint8_t>(src.scales[0] >> (8 * i));
  for (std::size_t s = 0; s < 16; ++s) {
    int sum = 0;
    for (std::size_t i = 16 * s; i < 16 * s + 16; ++i) sum += b.qs[i] = static_cast<std::int8_t>(src.codes[i] - 128);
    b.bsums[2 * s] = static_cast<std::uint8_t>(sum);
    b.bsums[2 * s + 1] = static_cast<std::uint8_t>(static_cast<unsigned>(sum) >> 8);
  }
}
inline void write_codes(const CodeBlock& src, Mxfp4& b) noexcept {
  b.e = static_cast<std::uint8_t>(src.scales[0]);
  pack_nibbles(src.codes, b.qs);
}
inline void write_codes(const CodeBlock& src, Nvfp4& b) noexcept {
  for (std::size_t s = 0; s < 4; ++s) {
    b.d[s] = static_cast<std::uint8_t>(src.scales[s]);
    for (std::size_t j = 0; j < 8; ++j)
      b.qs[8 * s + j] = static_cast<std::uint8_t>(src.codes[16 * s + j] | src.codes[16 * s + 8 + j] << 4);
  }
}
inline void write_codes(const CodeBlock& src, Tq2_0& b) noexcept {
  b.d.set_bits(static_cast<std::uint16_t>(src.scales[0]));
  pack_two_bits(src.codes, b.qs);
}
inline void write_codes(const CodeBlock& src, Tq1_0& b) noexcept {
  b.d.set_bits(static_cast<std::uint16_t>(src.scales[0]));
  for (std::size_t i = 0; i < 52; ++i) {
    int v = 0;
    for (std::size_t n = 0; n < 5; ++n) v = 3 * v + (i < 48 || n < 4 ? src.codes[simple::tq1_element(i, n)] : 0);
    (i < 48 ? b.qs[i] : b.qh[i - 48]) = static_cast<std::uint8_t>((256 * v + 242) / 243);
  }
}
inline void write_codes(const CodeBlock& src, Iq4Xs& b) noexcept {
  b.d.set_bits(static_cast<std::uint16_t>(src.scales[0]));
  unsigned high_bits = 0;
  for (std::size_t j = 0; j < 8; ++j) {
    const unsigned scale = static_cast<unsigned>(multiple_of(src.scales[j]) + 32);
    const unsigned low = j % 2 == 0 ? 0u : b.scales_l[j / 2];
    b.scales_l[j / 2] = static_cast<std::uint8_t>(low | (scale & 15) << (j % 2 * 4));
    high_bits |= (scale >> 4) << (2 * j);
    pack_nibbles(src.codes + 32 * j, b.qs + 16 * j);
  }
  b.scales_h.set_bits(static_cast<std::uint16_t>(high_bits));
}
inline void write_codes(const CodeBlock& src, Q3K& b) noexcept {
  b.d.set_bits(static_cast<std::uint16_t>(src.scales[0]));
  std::uint8_t scales[16];
  for (std::size_t g = 0; g < 16; ++g) scales[g] = static_cast<std::uint8_t>(multiple_of(src.scales[g]) + 32);
  pack_q3_scales(scales, b.scales);
  pack_two_bits(src.codes, b.qs);
  std::memset(b.hmask, 0, sizeof b.hmask);
  for (std::size_t i = 0; i < 256; ++i)
    b.hmask[i % 32] = static_cast<std::uint8_t>(b.hmask[i % 32] | (src.codes[i] >> 2) << (i / 32));
}
inline void write_codes(const CodeBlock& src, Q6K& b) noexcept {
  b.d.set_bits(static_cast<std::uint16_t>(src.scales[0]));
  for (std::size_t g = 0; g < 16; ++g) b.scales[g] = static_cast<std::int8_t>(multiple_of(src.scales[g]));
  for (std::size_t n = 0; n < 2; ++n)
    for (std::size_t l = 0; l < 32; ++l) {
      const std::uint8_t* c = src.codes + 128 * n + l;
      b.ql[64 * n + l] = static_cast<std::uint8_t>((c[0] & 15) | (c[64] & 15) << 4);
      b.ql[64 * n + 32 + l] = static_cast<std::uint8_t>((c[32] & 15) | (c[96] & 15) << 4);
      b.qh[32 * n + l] =
          static_cast<std::uint8_t>(c[0] >> 4 | (c[32] >> 4) << 2 | (c[64] >> 4) << 4 | (c[96] >> 4) << 6);
    }
}
inline void write_codes(const CodeBlock& src, Q2K& b) noexcept {
  b.d.set_bits(static_cast<std::uint16_t>(src.scales[0]));
  b.dmin.set_bits(static_cast<std::uint16_t>(src.minimums[0] ^ 0x8000u));
  for (std::size_t g = 0; g < 16; ++g)
    b.scales[g] = static_cast<std::uint8_t>(multiple_of(src.scales[g]) | multiple_of(src.minimums[g]) << 4);
  pack_two_bits(src.codes, b.qs);
}
inline void write_codes(const CodeBlock& src, Half& d, Half& dmin, std::uint8_t* packed, std::uint8_t* qs) noexcept {
  d.set_bits(static_cast<std::uint16_t>(src.scales[0]));
  dmin.set_bits(static_cast<std::uint16_t>(src.minimums[0]));
  std::uint8_t scales[8], mins[8];
  for (std::size_t j = 0; j < 8; ++j) {
    scales[j] = static_cast<std::uint8_t>(multiple_of(src.scales[j]));
    mins[j] = static_cast<std::uint8_t>(-multiple_of(src.minimums[j]));
  }
  pack_six_bits(scales, mins, packed);
  pack_nibble_runs(src.codes, qs);
}
inline void write_codes(const CodeBlock& src, Q4K& b) noexcept { write_codes(src, b.d, b.dmin, b.scales, b.qs); }
inline void write_codes(const CodeBlock& src, Q5K& b) noexcept {
  write_codes(src, b.d, b.dmin, b.scales, b.qs);
  std::memset(b.qh, 0, sizeof b.qh);
  for (std::size_t i = 0; i < 256; ++i)
    b.qh[i % 32] = static_cast<std::uint8_t>(b.qh[i % 32] | (src.codes[i] >> 4) << (i / 32));
}

}  // namespace blockpack::inline BLOCKPACK_ABI::ggml
