// SPDX-License-Identifier: Apache-2.0
/// 2:4 weights without vector registers: products and sums rounded one by one. Two loads and a shift for each
/// multiply-add are the limit.

#include "kernels/two_four/two_four_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/two_four/two_four_expand.inc"

template <class Value>
static void few(const TwoFourProduct& p) noexcept {
  constexpr std::ptrdiff_t kUnit = two_four_unit_bytes(sizeof(Value)), kGroup = 32 * sizeof(Value);
  for (std::ptrdiff_t half = 0; half < 2 * p.panels; ++half)
    for (int t = 0; t < p.tokens; ++t) {
      float sum[16] = {};
      const unsigned char* unit = p.w + (half / 2 * p.steps * 2 + half % 2) * kUnit;
      const float* x = static_cast<const float*>(p.x) + t * kTwoFourStep;
      for (std::ptrdiff_t s = 0; s < p.steps; ++s, unit += 2 * kUnit, x += p.tokens * kTwoFourStep) {
        std::uint32_t places[16];
        __builtin_memcpy(places, unit, 64);
        for (int g = 0; g < kTwoFourGroups; ++g) {
          std::uint32_t first[16], second[16];
          load_pairs(unit + 64 + g * kGroup, first, second, static_cast<const Value*>(nullptr));
          for (int r = 0; r < 16; ++r) {
            float a, b;
            __builtin_memcpy(&a, first + r, 4);
            __builtin_memcpy(&b, second + r, 4);
            sum[r] += a * x[4 * g + static_cast<int>(places[r] >> (2 * g) & 3u)];
            sum[r] += b * x[4 * g + static_cast<int>(places[r] >> (16 + 2 * g) & 3u)];
          }
        }
      }
      __builtin_memcpy(p.sums + t * p.sums_stride + half * kTwoFourRows, sum, sizeof(sum));
    }
}

}  // namespace

void install_two_four_scalar(TwoFourKernels& k, Features) noexcept {
  k.few_f32_f32_f32 = {few<float>, "scalar"};
  k.few_f32_f32_bf16 = {few<std::uint16_t>, "scalar"};
  k.expand_f32_f32 = {expand<float, float>, "scalar"};
  k.expand_f32_bf16 = {expand<std::uint16_t, float>, "scalar"};
  k.expand_bf16_bf16 = {expand<std::uint16_t, std::uint16_t>, "scalar"};
}

}  // namespace blockpack::kernels
