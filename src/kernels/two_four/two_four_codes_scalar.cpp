// SPDX-License-Identifier: Apache-2.0
/// Products with sparse codes for every CPU: what the kernels of the other levels compute, one weight at a time. The
/// integer sums are exact, so levels differ in the rounding of their few float operations a group alone.
///
/// Expected limit: the two look-ups, multiply and add of a weight.

#include "kernels/two_four/two_four_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/codes/codes_plain.inc"

/// One weight: its code, and which of the 64 k of its step.
struct Kept {
  int code;
  std::ptrdiff_t k;
};
/// Element e of row r of a step.
Kept kept_at(const unsigned char* step, std::ptrdiff_t r, std::ptrdiff_t e) {
  const int code = step[plane_byte(4, r, e)] >> plane_bit(4, e) & 15;
  const int place = step[code_step_bytes(4) + plane_byte(2, r, e)] >> plane_bit(2, e) & 3;
  const std::ptrdiff_t i = e / 8 * 8 + kCodeOrder[e % 8];
  return {code, i / 2 * 4 + place};
}
/// Where k of a step lies among the activations of a token in int8.
std::ptrdiff_t coded_place(std::ptrdiff_t k) {
  std::ptrdiff_t e = 0;
  while (kCodeOrder[e] != k % 8) ++e;
  return k % 32 / 8 * 8 + e;
}

/// What the weights that share a scale have, and one of two runs of activations of 32.
struct Run {
  std::ptrdiff_t panel, r, x_step, first;  ///< the run's elements are [first, first + 16)
  const unsigned char* step;
  float scale;
  int zero;
};

/// Calls visit(run) for the half steps, in their order, of every row.
template <class Visit>
void walk(const CodeProduct& p, const Visit& visit) {
  for (int t = 0; t < p.tokens; ++t)
    for (std::ptrdiff_t n = 0; n < p.panels * kCodeRows; ++n) p.sums[t * p.sums_stride + n] = 0.0f;
  for (std::ptrdiff_t panel = 0; panel < p.panels; ++panel) {
    const unsigned char* at = p.w + panel * p.panel_bytes;
    for (std::ptrdiff_t s0 = 0; s0 < p.steps; s0 += p.block_steps) {
      const std::ptrdiff_t steps = p.steps - s0 < p.block_steps ? p.steps - s0 : p.block_steps;
      const std::ptrdiff_t groups = block_groups(p, steps);
      const unsigned char* scales = at + steps * code_step_bytes(p.bits);
      const unsigned char* zeros = scales + scales_bytes(p, groups);
      for (std::ptrdiff_t half = 0; half < 2 * steps; ++half) {
        const std::ptrdiff_t s = half / 2, group = p.group_steps == 0 ? half : s / p.group_steps;
        for (std::ptrdiff_t r = 0; r < kCodeRows; ++r) {
          const std::ptrdiff_t i = group * kCodeRows + r;
          visit(Run{panel, r, 2 * s0 + half, half % 2 * 16, at + s * code_step_bytes(p.bits),
                    scale_at(p, scales, groups, i) * p.multiplier, p.zeros ? zeros[i] : p.zero});
        }
      }
      at += block_bytes(p, steps, groups);
    }
  }
}

void few_int8(const CodeProduct& p) noexcept {
  walk(p, [&p](const Run& run) {
    for (int t = 0; t < p.tokens; ++t) {
      const std::ptrdiff_t at = run.x_step * p.tokens + t;
      int sum = 0;
      for (std::ptrdiff_t e = run.first; e < run.first + 16; ++e) {
        const Kept w = kept_at(run.step, run.r, e);
        sum += (p.levels[w.code] - run.zero) * p.x8.codes[at * kCodeStep + coded_place(w.k)];
      }
      p.sums[t * p.sums_stride + run.panel * kCodeRows + run.r] +=
          static_cast<float>(sum) * p.x8.scales[at] * run.scale;
    }
  });
}

void few_f32(const CodeProduct& p) noexcept {
  walk(p, [&p](const Run& run) {
    for (int t = 0; t < p.tokens; ++t) {
      const float* x = p.x + (run.x_step * p.tokens + t) * kCodeStep;
      float sum = 0.0f;
      for (std::ptrdiff_t e = run.first; e < run.first + 16; ++e) {
        const Kept w = kept_at(run.step, run.r, e);
        const float value = p.values != nullptr ? p.values[w.code] : static_cast<float>(p.levels[w.code] - run.zero);
        sum += value * x[w.k % kCodeStep];
      }
      p.sums[t * p.sums_stride + run.panel * kCodeRows + run.r] += sum * run.scale;
    }
  });
}

}  // namespace

void install_two_four_codes_scalar(TwoFourKernels& k, Features) noexcept {
  k.few_int8_codes = {few_int8, "scalar"};
  k.few_f32_codes = {few_f32, "scalar"};
}

}  // namespace blockpack::kernels
