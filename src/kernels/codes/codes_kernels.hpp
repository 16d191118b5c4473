// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The slots of the codes family: products of 1 to 8 tokens with weights that stay 4- or 8-bit codes
/// (core/code_spec.hpp), read once from memory.
///
/// Packed codes, the same at every level. W [N, K] is cut into panels of 16 rows, one row per 32-bit lane; K is padded
/// to steps of 32. A panel is a run of blocks of `block_steps` steps (the last one may be shorter), each the codes of
/// its steps, then the scales of its groups [groups][16], their minimums and their zeros [groups][16] where there are
/// any, filled up to a multiple of 64 bytes. Scales and minimums of two levels are int8, followed by the binary16 [16]
/// that the whole block shares. Everything beyond N and K is zero bytes.
///
/// Every 8 weights k0 … k7 of a row lie in the order k0 k4 k1 k5 k2 k6 k3 k7, which is also the order of int8
/// activations:
///
///     4 bits  a step is [4][16] lanes; byte b of a lane holds element b of its 8 weights in the low nibble, element
///             b + 4 in the high one: one shift or mask gives 4 bytes that meet 4 activations. The 16-bit halves of a
///             lane then hold the even and the odd k, pairs in the order bf16 tiles want.
///     8 bits  a step is [8][16] lanes of four elements.

#include "kernels/slot.hpp"

namespace blockpack::kernels {

inline constexpr std::ptrdiff_t kCodeRows = 16;
inline constexpr std::ptrdiff_t kCodeStep = 32;
/// Groups of a block, at most.
inline constexpr std::ptrdiff_t kBlockGroups = 16;
/// Place of element i of 8 weights in their order: kCodeOrder[i] is its k.
static constexpr int kCodeOrder[8] = {0, 4, 1, 5, 2, 6, 3, 7};

static constexpr std::ptrdiff_t code_step_bytes(int bits) { return kCodeRows * kCodeStep * bits / 8; }

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
  std::ptrdiff_t group_steps;  ///< steps of a group; 0: a step has two groups of 16
  int bits;
  int scale;  ///< value of blockpack::CodeScale
  bool zeros;
  bool minimums;
  int zero;                ///< of all groups without zeros
  float multiplier;        ///< of the scales
  std::int8_t levels[16];  ///< of 4-bit codes
  float* sums;             ///< token t, panel p at sums + t * sums_stride + p * 16
  std::ptrdiff_t sums_stride;
};

struct CodeKernels {
  /// Integer dots of a step; then the scale of x, then that of the weights, one fused multiply-add a group.
  Slot<void (*)(const CodeProduct& p) noexcept> few_int8;
  /// Float multiply-adds of x and code values, scaled once a group.
  Slot<void (*)(const CodeProduct& p) noexcept> few_f32;
  /// One token to int8, as DenseKernels::round_int8 rounds: step s at codes + s * 32 * tokens, scales + s * tokens and
  /// sums + s * 2 * tokens. A step with a value that is not finite gets the scale NaN. Where absmax / 127 is 0 or too
  /// coarse a subnormal to hold absmax in 127 steps, the scale is the next float.
  Slot<void (*)(const float* x, std::ptrdiff_t n, int tokens, std::int8_t* codes, float* scales,
                std::int16_t* sums) noexcept>
      quantize;
};

/// Calls visit("name", slot) for every slot of the family.
template <class Visitor>
void visit_slots(const CodeKernels& k, Visitor&& visit) {
  visit("few_f32_int8_codes", k.few_int8);
  visit("few_f32_f32_codes", k.few_f32);
  visit("quantize_int8", k.quantize);
}

void install_codes_scalar(CodeKernels& k, Features features) noexcept;
void install_codes_avx2(CodeKernels& k, Features features) noexcept;
void install_codes_avx512(CodeKernels& k, Features features) noexcept;
void install_codes_avx512vnni(CodeKernels& k, Features features) noexcept;
void install_codes_neon(CodeKernels& k, Features features) noexcept;
void install_codes_neon_dot(CodeKernels& k, Features features) noexcept;

}  // namespace blockpack::kernels
