// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The blocks of ggml byte by byte. Multi-byte fields are little endian; scales are IEEE binary16. What the codes mean:
/// docs/formats/ggml.md.
///
/// Source: the layouts of ggml-org/ggml at d99724f (ggml-common.h).

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "blockpack/core/config.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// The block types of ggml that blockpack writes and reads.
enum class GgmlType : std::uint8_t {
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  q8_k,
  iq4_nl,
  iq4_xs,
  tq1_0,
  tq2_0,
  mxfp4,
  nvfp4
};

namespace ggml {

/// A 16-bit field at any address: blocks have alignment 1, as they lie in files.
struct Half {
  std::uint8_t bytes[2];

  constexpr std::uint16_t bits() const noexcept { return static_cast<std::uint16_t>(bytes[0] | (bytes[1] << 8)); }
  constexpr void set_bits(std::uint16_t v) noexcept {
    bytes[0] = static_cast<std::uint8_t>(v);
    bytes[1] = static_cast<std::uint8_t>(v >> 8);
  }
  constexpr float value() const noexcept { return static_cast<float>(fp16::from_bits(bits())); }
};

// Blocks of 32. In `qs` of 16 bytes element j is the low nibble of byte j, element j + 16 the high one; bit j of `qh`
// is bit 4 of element j.
struct Q4_0 {
  Half d;
  std::uint8_t qs[16];
};
struct Q4_1 {
  Half d, min;
  std::uint8_t qs[16];
};
struct Q5_0 {
  Half d;
  std::uint8_t qh[4], qs[16];
};
struct Q5_1 {
  Half d, min;
  std::uint8_t qh[4], qs[16];
};
struct Q8_0 {
  Half d;
  std::int8_t qs[32];
};
struct Iq4Nl {
  Half d;
  std::uint8_t qs[16];
};
struct Mxfp4 {
  std::uint8_t e;  ///< E8M0
  std::uint8_t qs[16];
};
/// 64 elements; byte 8 s + j of `qs` holds element 16 s + j (low nibble) and 16 s + 8 + j.
struct Nvfp4 {
  std::uint8_t d[4];  ///< unsigned E4M3, one for 16 elements
  std::uint8_t qs[32];
};

// Super-blocks of 256.
struct Q2K {
  std::uint8_t scales[16];  ///< low nibble scale, high nibble minimum, of 16 elements
  std::uint8_t qs[64];      ///< byte 32 n + l: element 128 n + l in bits 0-1, + 32 in 2-3, + 64 in 4-5, + 96 in 6-7
  Half d, dmin;
};
struct Q3K {
  std::uint8_t hmask[32];  ///< bit i / 32 of byte i % 32: bit 2 of element i
  std::uint8_t qs[64];     ///< low two bits, as in Q2K
  std::uint8_t scales[12];
  Half d;
};
struct Q4K {
  Half d, dmin;
  std::uint8_t scales[12];  ///< eight scales and eight minima of 6 bits
  std::uint8_t qs[128];     ///< byte 32 c + l: element 64 c + l low, element 64 c + 32 + l high
};
struct Q5K {
  Half d, dmin;
  std::uint8_t scales[12];
  std::uint8_t qh[32];   ///< bit 2 c of byte l: bit 4 of element 64 c + l; bit 2 c + 1: of element 64 c + 32 + l
  std::uint8_t qs[128];  ///< as in Q4K
};
struct Q6K {
  std::uint8_t ql[128], qh[64];
  std::int8_t scales[16];
  Half d;
};
struct Q8K {
  std::uint8_t d[4];  ///< float32
  std::int8_t qs[256];
  std::uint8_t bsums[32];  ///< sixteen int16: the sums of 16 codes each
};
struct Iq4Xs {
  Half d, scales_h;
  std::uint8_t scales_l[4];
  std::uint8_t qs[128];  ///< sub-block after sub-block, each as in Iq4Nl
};
struct Tq1_0 {
  std::uint8_t qs[48], qh[4];
  Half d;
};
struct Tq2_0 {
  std::uint8_t qs[64];
  Half d;
};

static_assert(sizeof(Q4_0) == 18 && sizeof(Q4_1) == 20 && sizeof(Q5_0) == 22 && sizeof(Q5_1) == 24);
static_assert(sizeof(Q8_0) == 34 && sizeof(Iq4Nl) == 18 && sizeof(Mxfp4) == 17 && sizeof(Nvfp4) == 36);
static_assert(sizeof(Q2K) == 84 && sizeof(Q3K) == 110 && sizeof(Q4K) == 144 && sizeof(Q5K) == 176);
static_assert(sizeof(Q6K) == 210 && sizeof(Q8K) == 292 && sizeof(Iq4Xs) == 136);
static_assert(sizeof(Tq1_0) == 54 && sizeof(Tq2_0) == 66);
static_assert(alignof(Q4K) == 1 && alignof(Q8K) == 1 && std::is_trivially_copyable_v<Q4K>);

/// The levels of IQ4_NL and IQ4_XS.
inline constexpr std::int8_t kIq4Levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};
/// The values of E2M1, doubled; code 8 is +0 in ggml.
inline constexpr std::int8_t kE2m1Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace ggml

/// The numbers behind a type.
struct GgmlTypeSpec {
  const char* scheme;
  int block;        ///< weights
  int block_bytes;  ///< bytes of a block
  float low, high;  ///< weights beyond these cannot be stored: ValueError under `reject`, clamped under `saturate`
};

namespace detail {
inline constexpr float kFp16Max = 65504.0f;
inline constexpr float kFloatMax = 0x1.fffffep127f;
// The ends follow from the largest scale: d * code, and dmin * code for what lies below zero where a minimum is stored.
inline constexpr GgmlTypeSpec kGgmlTypes[] = {
    {"q4_0", 32, 18, -8 * kFp16Max, 8 * kFp16Max},
    {"q4_1", 32, 20, -kFp16Max, 14 * kFp16Max},
    {"q5_0", 32, 22, -16 * kFp16Max, 16 * kFp16Max},
    {"q5_1", 32, 24, -kFp16Max, 30 * kFp16Max},
    {"q8_0", 32, 34, -127 * kFp16Max, 127 * kFp16Max},
    {"q2_k", 256, 84, -15 * kFp16Max, 45 * kFp16Max},
    {"q3_k", 256, 110, -128 * kFp16Max, 128 * kFp16Max},
    {"q4_k", 256, 144, -63 * kFp16Max, 945 * kFp16Max},
    {"q5_k", 256, 176, -63 * kFp16Max, 1953 * kFp16Max},
    {"q6_k", 256, 210, -4096 * kFp16Max, 4096 * kFp16Max},
    {"q8_k", 256, 292, -0x1p127f, 0x1p127f},
    {"iq4_nl", 32, 18, -127 * kFp16Max, 127 * kFp16Max},
    {"iq4_xs", 256, 136, -4064 * kFp16Max, 4064 * kFp16Max},
    {"tq1_0", 256, 54, -kFp16Max, kFp16Max},
    {"tq2_0", 256, 66, -kFp16Max, kFp16Max},
    {"ggml-mxfp4", 32, 17, -kFloatMax, kFloatMax},
    {"ggml-nvfp4", 64, 36, -kFloatMax, kFloatMax},
};
inline constexpr std::size_t kMaxGgmlBlock = 256;
}  // namespace detail

constexpr const GgmlTypeSpec& spec_of(GgmlType type) noexcept {
  return detail::kGgmlTypes[static_cast<std::size_t>(type)];
}

}  // namespace blockpack::inline BLOCKPACK_ABI
