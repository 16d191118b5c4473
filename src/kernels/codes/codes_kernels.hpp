// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The slots of the codes family: products of 1 to 8 tokens with weights that stay codes of 2 to 8 bits
/// (core/code_spec.hpp), read once from memory.
///
/// Limit of what is stored narrower than 2 bits: base-3 codes (tq1_0, ternary -base3, 1.69 bits a weight with scales)
/// are packed as codes of 2 bits, 1.22 times their stored bytes, so that one token reaches at most 0.82 of the read
/// bandwidth counted in stored bytes. Five digits a byte would take a multiplication and a shift each, 32 x 16 of
/// them a step that is read in 14 cycles.
///
/// Codes of two of every four weights are of 6 bits, the code of 4 below the place among the four (sparse codes): a
/// step is 64 k, of which each row has 32. The kernels of the two_four family (two_four_kernels.hpp) multiply them.
///
/// Packed codes, the same at every level. W [N, K] is cut into panels of 16 rows, one row per 32-bit lane; K is padded
/// to steps of 32. A panel is a run of blocks of `block_steps` steps (the last one may be shorter), each the codes of
/// its steps, then the scales of its groups [groups][16], their minimums and their zeros [groups][16] where there are
/// any, filled up to a multiple of 64 bytes. Scales and minimums of two levels are int8, or two groups' 4 bits in a
/// byte, the even one low, followed by the binary16 [16] that the whole block shares. Everything beyond N and K is zero
/// bytes.
///
/// Every 8 weights k0 … k7 of a row lie in the order k0 k4 k1 k5 k2 k6 k3 k7, which is also the order of int8
/// activations:
///
/// The codes of a step are one or two planes, the low bits and then the high ones: codes of 2, 4 and 8 bits are one
/// plane, 3 are {2, 1}, 5 are {4, 1}, 6 are {4, 2}. A plane of b bits is [b][16] lanes. Of the 32 elements e of a row,
/// four that meet four activations are a quad, e / 4; they are the bytes e % 4 of a lane, and the quads that share a
/// lane lie above each other in its bytes:
///
///     b bits  line b * e / 32, byte e % 4 of the row's lane, from bit b * (e / 4 % (8 / b)) on
///
/// so a shift and a mask give a quad of any plane. The 16-bit halves of a quad hold the even and the odd k, pairs in
/// the order bf16 tiles want.

#include "kernels/slot.hpp"

namespace blockpack::kernels {

inline constexpr std::ptrdiff_t kCodeRows = 16;
inline constexpr std::ptrdiff_t kCodeStep = 32;
/// Groups of a block, at most.
inline constexpr std::ptrdiff_t kBlockGroups = 16;
/// Elements from a tile of a panel to that of the next step: two panels of 16 rows make one of 32 columns.
inline constexpr std::ptrdiff_t kCodeTile = 2 * kCodeRows * kCodeStep;
/// Place of element i of 8 weights in their order: kCodeOrder[i] is its k.
static constexpr int kCodeOrder[8] = {0, 4, 1, 5, 2, 6, 3, 7};

static constexpr std::ptrdiff_t code_step_bytes(int bits) { return kCodeRows * kCodeStep * bits / 8; }

/// Bits of the low plane of a code, and of the high one (0: there is none).
static constexpr int low_plane(int bits) { return bits == 3 ? 2 : bits == 5 || bits == 6 ? 4 : bits; }
static constexpr int high_plane(int bits) { return bits - low_plane(bits); }

/// Where element e of row r lies in a plane of that many bits: the byte, and the bit in it.
static constexpr std::ptrdiff_t plane_byte(int bits, std::ptrdiff_t r, std::ptrdiff_t e) {
  return bits * e / 32 * 64 + r * 4 + e % 4;
}
static constexpr int plane_bit(int bits, std::ptrdiff_t e) { return bits * static_cast<int>(e / 4 % (8 / bits)); }

/// Activations in int8: x = codes * scale per step, for 1, 2, 4 or 8 tokens side by side.
struct CodedActivations {
  const std::int8_t* codes;  ///< [steps][tokens][32], in kCodeOrder
  const float* scales;       ///< [steps][tokens]
  const std::int16_t* sums;  ///< [steps][tokens][2]: of the codes of each half step, negated
};

/// sums = x · w for `panels` panels. Which activations are read depends on the slot.
struct CodeProduct {
  CodedActivations x8;
  const float* x;  ///< [steps][tokens][32], zeros beyond K
  int tokens;      ///< 1, 2, 4 or 8
  const unsigned char* w;
  std::ptrdiff_t panel_bytes;
  std::ptrdiff_t panels;
  std::ptrdiff_t steps;
  std::ptrdiff_t block_steps;
  std::ptrdiff_t block_bytes;  ///< of a whole block
  std::ptrdiff_t group_steps;  ///< steps of a group; 0: a step has two groups of 16
  int bits;
  bool two_four;  ///< sparse codes: `levels` and `values` are of their low 4 bits
  int scale;      ///< value of blockpack::CodeScale
  bool zeros;
  bool minimums;
  int zero;                ///< of all groups without zeros
  float multiplier;        ///< of the scales
  std::int8_t levels[16];  ///< of 4-bit codes that are integers
  const float* values;     ///< [2^bits] of codes that are floats: no zeros, no minimums, no few_int8; otherwise null
  int mantissa_bits;       ///< of floats of 6 and 8 bits, sign and exponent before it
  float* sums;             ///< token t, panel p at sums + t * sums_stride + p * 16
  std::ptrdiff_t sums_stride;
};

/// Where a decoder stands in a panel, and what the groups of that block have.
struct CodeDecoder {
  alignas(64) float scale[kBlockGroups][kCodeRows];
  alignas(64) float zero[kBlockGroups][kCodeRows];
  alignas(64) float offset[kBlockGroups][kCodeRows];
  const unsigned char* panel;  ///< null: none yet
  const unsigned char* block;
  std::ptrdiff_t first;  ///< steps of the block
  std::ptrdiff_t end;
  bool powers;  ///< `scale` is what is added to the exponents of pairs of bf16
};

struct CodeKernels {
  /// Integers only: dots of a step; then the scale of x, then that of the weights, one fused multiply-add a group.
  Slot<void (*)(const CodeProduct& p) noexcept> few_int8;
  /// Float multiply-adds of x and code values, scaled once a group.
  Slot<void (*)(const CodeProduct& p) noexcept> few_f32;
  /// One token to int8, as DenseKernels::round_int8 rounds: step s at codes + s * 32 * tokens, scales + s * tokens and
  /// sums + s * 2 * tokens. A step with a value that is not finite gets the scale NaN. Where absmax / 127 is 0 or too
  /// coarse a subnormal to hold absmax in 127 steps, the scale is the next float.
  Slot<void (*)(const float* x, std::ptrdiff_t n, int tokens, std::int8_t* codes, float* scales,
                std::int16_t* sums) noexcept>
      quantize;
  /// Steps of 32 k, [step, step + count), of a panel (of which codes, groups and scales `p` says the form) as bf16,
  /// rounded to nearest, ties away from zero: tiles dst[16 pairs of k][16 rows][2], kCodeTile elements apart. Meanwhile
  /// what lies `ahead` bytes further is fetched. Without a function: the level has no bf16 products.
  Slot<void (*)(const CodeProduct& p, const unsigned char* panel, std::ptrdiff_t step, std::ptrdiff_t count,
                std::ptrdiff_t ahead, CodeDecoder& d, std::uint16_t* dst) noexcept>
      decode_bf16;
};

/// Calls visit("name", slot) for every slot of the family.
template <class Visitor>
void visit_slots(const CodeKernels& k, Visitor&& visit) {
  visit("few_f32_int8_codes", k.few_int8);
  visit("few_f32_f32_codes", k.few_f32);
  visit("quantize_int8", k.quantize);
  visit("decode_bf16_codes", k.decode_bf16);
}

void install_codes_scalar(CodeKernels& k, Features features) noexcept;
void install_codes_avx2(CodeKernels& k, Features features) noexcept;
void install_codes_avx512(CodeKernels& k, Features features) noexcept;
void install_codes_avx512vnni(CodeKernels& k, Features features) noexcept;
void install_codes_avx512bf16(CodeKernels& k, Features features) noexcept;
void install_codes_neon(CodeKernels& k, Features features) noexcept;
void install_codes_neon_dot(CodeKernels& k, Features features) noexcept;

}  // namespace blockpack::kernels
