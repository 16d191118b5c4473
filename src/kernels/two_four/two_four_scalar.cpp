// SPDX-License-Identifier: Apache-2.0
/// 2:4 weights without vector registers: products and sums rounded one by one. Two loads and a shift for each
/// multiply-add are the limit.

#include "kernels/two_four/two_four_kernels.hpp"

namespace blockpack::kernels {
namespace {

/// The two values of row r of a group as floats.
static inline void load_pair(const float* group, int r, float& first, float& second) {
  first = group[r];
  second = group[16 + r];
}
static inline void load_pair(const std::uint16_t* group, int r, float& first, float& second) {
  const std::uint32_t bits[2] = {static_cast<std::uint32_t>(group[2 * r]) << 16,
                                 static_cast<std::uint32_t>(group[2 * r + 1]) << 16};
  __builtin_memcpy(&first, bits, 4);
  __builtin_memcpy(&second, bits + 1, 4);
}

template <class Value, int T>
static void few_tokens(const TwoFourProduct& p) {
  constexpr std::ptrdiff_t kUnit = two_four_unit_bytes(sizeof(Value));
  for (std::ptrdiff_t half = 0; half < 2 * p.panels; ++half) {
    float sum[T][16] = {};
    const unsigned char* unit = p.w + (half / 2 * p.steps * 2 + half % 2) * kUnit;
    const float* x = static_cast<const float*>(p.x);
    for (std::ptrdiff_t s = 0; s < p.steps; ++s, unit += 2 * kUnit, x += T * kTwoFourStep) {
      std::uint32_t places[16];
      __builtin_memcpy(places, unit, 64);
      for (int g = 0; g < kTwoFourGroups; ++g)
        for (int r = 0; r < 16; ++r) {
          float first, second;
          load_pair(reinterpret_cast<const Value*>(unit + 64) + 32 * g, r, first, second);
          const float* a = x + 4 * g + (places[r] >> (2 * g) & 3u);
          const float* b = x + 4 * g + (places[r] >> (16 + 2 * g) & 3u);
          for (int t = 0; t < T; ++t) {
            sum[t][r] += first * a[t * kTwoFourStep];
            sum[t][r] += second * b[t * kTwoFourStep];
          }
        }
    }
    for (int t = 0; t < T; ++t)
      __builtin_memcpy(p.sums + t * p.sums_stride + half * kTwoFourRows, sum[t], sizeof(sum[t]));
  }
}

template <class Value>
static void few(const TwoFourProduct& p) noexcept {
  switch (p.tokens) {
    case 1:
      return few_tokens<Value, 1>(p);
    case 2:
      return few_tokens<Value, 2>(p);
    case 4:
      return few_tokens<Value, 4>(p);
    default:
      return few_tokens<Value, 8>(p);
  }
}

/// A unit is two lines of pairs for each group: zeros, and the values at their places.
static void expand(const unsigned char* w, std::ptrdiff_t units, std::ptrdiff_t /*ahead*/,
                   std::uint16_t* dst) noexcept {
  for (std::ptrdiff_t u = 0; u < units; ++u, w += two_four_unit_bytes(2)) {
    std::uint32_t places[16];
    __builtin_memcpy(places, w, 64);
    const auto* values = reinterpret_cast<const std::uint16_t*>(w + 64);
    for (int g = 0; g < kTwoFourGroups; ++g, values += 32, dst += 64) {
      for (int i = 0; i < 64; ++i) dst[i] = 0;
      for (int r = 0; r < 16; ++r) {
        const std::uint32_t first = places[r] >> (2 * g) & 3u, second = places[r] >> (16 + 2 * g) & 3u;
        dst[first / 2 * 32 + 2 * static_cast<std::uint32_t>(r) + first % 2] = values[2 * r];
        dst[second / 2 * 32 + 2 * static_cast<std::uint32_t>(r) + second % 2] = values[2 * r + 1];
      }
    }
  }
}

}  // namespace

void install_two_four_scalar(TwoFourKernels& k, Features) noexcept {
  k.few_f32_f32_f32 = {few<float>, "scalar"};
  k.few_f32_f32_bf16 = {few<std::uint16_t>, "scalar"};
  k.expand_bf16_bf16 = {expand, "scalar"};
}

}  // namespace blockpack::kernels
