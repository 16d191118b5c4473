// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The slots of the two_four family: products of 1 to 8 tokens with weights of which every four neighbours keep two,
/// and how those become panels of the dense kernels for more tokens.
///
/// Packed weights, the same at every level. W [N, K] is cut into panels of 32 rows, N and K are padded to whole panels
/// and steps of 32 k. A step of a panel is two units of 16 rows, a row per 32-bit lane: a line of places and the values
/// of 8 groups of 4 k:
///
///     places [16] words    bits 2g, 2g + 1: first place of group g; bits 16 + 2g, 17 + 2g: the second one, larger
///     bf16   [8][16][2]    the first value of a group and the second: 576 bytes a unit
///     f32    [8][2][16]    1088 bytes
///
/// One shift of the places makes indices for either form: of 16-bit lanes for the pairs of bf16, of 32-bit lanes,
/// twice, for f32. What is above the two bits of an index is for the kernel to ignore. Padding is zeros at two places.
///
/// Activations are selected, weights are not expanded: x is not read at other places, whatever it holds there.
///
/// Values of 4 bits are packed as sparse codes (kernels/codes/codes_kernels.hpp): of every 16 k, four groups of 4, a
/// row has 8 codes k0 … k7, two a group, and their quads k0 k4 k1 k5 and k2 k6 k3 k7 select from 16 activations side by
/// side: those of int8 in kCodeOrder, in which group g lies at bytes first + 2 * place, first = 0, 1, 8, 9.

#include "kernels/codes/codes_kernels.hpp"
#include "kernels/slot.hpp"

namespace blockpack::kernels {

inline constexpr std::ptrdiff_t kTwoFourRows = 16;
inline constexpr std::ptrdiff_t kTwoFourStep = 32;
inline constexpr std::ptrdiff_t kTwoFourGroups = kTwoFourStep / 4;
inline constexpr std::ptrdiff_t kTwoFourTokens = 8;

/// Bytes of a unit of values of that size.
static constexpr std::ptrdiff_t two_four_unit_bytes(std::ptrdiff_t value_bytes) {
  return kTwoFourRows * (4 + 2 * kTwoFourGroups * value_bytes);
}

/// sums = x · w for a few tokens, whole K, panels read once from memory.
struct TwoFourProduct {
  const void* x;  ///< [steps][tokens][32] f32 or bf16, zeros beyond K
  int tokens;     ///< 1, 2, 4 or 8
  const unsigned char* w;
  std::ptrdiff_t panels;
  std::ptrdiff_t steps;
  float* sums;  ///< token t, panel p at sums + t * sums_stride + p * 32
  std::ptrdiff_t sums_stride;
};

struct TwoFourKernels {
  /// Multiply-adds in the order of k. Weights of bf16 are widened in registers.
  Slot<void (*)(const TwoFourProduct& p) noexcept> few_f32_f32_f32;
  Slot<void (*)(const TwoFourProduct& p) noexcept> few_f32_f32_bf16;
  /// bf16 dots. Without a function: the level has none.
  Slot<void (*)(const TwoFourProduct& p) noexcept> few_f32_bf16_bf16;
  /// `units` of a panel, from the first one of a step on, in the order of packed dense weights
  /// (kernels/dense/dense_kernels.hpp). Meanwhile what lies `ahead` bytes further may be fetched.
  Slot<void (*)(const unsigned char* w, std::ptrdiff_t units, std::ptrdiff_t ahead, std::uint16_t* dst) noexcept>
      expand_bf16_bf16;
  /// As few_int8 and few_f32 of the codes family, from sparse codes: x of 2 * steps steps, zeros beyond K; no minimums.
  Slot<void (*)(const CodeProduct& p) noexcept> few_int8_codes;
  Slot<void (*)(const CodeProduct& p) noexcept> few_f32_codes;
};

/// Calls visit("name", slot) for every slot of the family.
template <class Visitor>
void visit_slots(const TwoFourKernels& k, Visitor&& visit) {
  visit("few_f32_f32_s24f32", k.few_f32_f32_f32);
  visit("few_f32_f32_s24bf16", k.few_f32_f32_bf16);
  visit("few_f32_bf16_s24bf16", k.few_f32_bf16_bf16);
  visit("expand_bf16_s24bf16", k.expand_bf16_bf16);
  visit("few_f32_int8_s24codes", k.few_int8_codes);
  visit("few_f32_f32_s24codes", k.few_f32_codes);
}

void install_two_four_scalar(TwoFourKernels& k, Features features) noexcept;
void install_two_four_avx2(TwoFourKernels& k, Features features) noexcept;
void install_two_four_avx512(TwoFourKernels& k, Features features) noexcept;
void install_two_four_avx512bf16(TwoFourKernels& k, Features features) noexcept;
void install_two_four_neon(TwoFourKernels& k, Features features) noexcept;
void install_two_four_codes_scalar(TwoFourKernels& k, Features features) noexcept;
void install_two_four_codes_avx2(TwoFourKernels& k, Features features) noexcept;
void install_two_four_codes_avx512(TwoFourKernels& k, Features features) noexcept;
void install_two_four_codes_avx512vnni(TwoFourKernels& k, Features features) noexcept;
void install_two_four_codes_neon(TwoFourKernels& k, Features features) noexcept;
void install_two_four_codes_neon_dot(TwoFourKernels& k, Features features) noexcept;

}  // namespace blockpack::kernels
