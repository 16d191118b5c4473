// SPDX-License-Identifier: Apache-2.0
/// Products with packed codes for every CPU: what the kernels of the other levels compute, one weight at a time. The
/// integer sums are exact, so levels differ in the rounding of their few float operations a group alone.
///
/// Expected limit: the look-up, multiply and add of a weight.

#include "kernels/codes/codes_kernels.hpp"

namespace blockpack::kernels {
namespace {

#include "kernels/codes/codes_plain.inc"

/// What the groups of a block have beside codes.
struct Group {
  float scale;
  float minimum;
  int zero;
};
struct Groups {
  Group of[kBlockGroups][kCodeRows];
};
void read_groups(const CodeProduct& p, const unsigned char* at, std::ptrdiff_t groups, Groups& dst) {
  const unsigned char* minimums = at + scales_bytes(p, groups);
  const unsigned char* zeros = minimums + (p.minimums ? scales_bytes(p, groups) : 0);
  for (std::ptrdiff_t i = 0; i < groups * kCodeRows; ++i) {
    Group& g = dst.of[i / kCodeRows][i % kCodeRows];
    g.scale = scale_at(p, at, groups, i) * p.multiplier;
    g.minimum = p.minimums ? scale_at(p, minimums, groups, i) : 0.0f;
    g.zero = p.zeros ? zeros[i] : p.zero;
  }
}

/// The values of the 32 codes of row r of a step, in kCodeOrder; of floats the codes themselves.
void read_codes(const CodeProduct& p, const unsigned char* step, std::ptrdiff_t r, int* values) {
  const int low = low_plane(p.bits), high = high_plane(p.bits);
  const unsigned char* upper = step + code_step_bytes(low);
  for (std::ptrdiff_t e = 0; e < kCodeStep; ++e) {
    int code = (step[plane_byte(low, r, e)] >> plane_bit(low, e)) & ((1 << low) - 1);
    if (high > 0) code |= ((upper[plane_byte(high, r, e)] >> plane_bit(high, e)) & ((1 << high) - 1)) << low;
    values[e] = p.bits == 4 && p.values == nullptr ? p.levels[code] : code;
  }
}

/// Calls visit(panel, r, s, first, count, values, group) for the elements [first, first + count) of step s that share a
/// group.
template <class Visit>
void walk(const CodeProduct& p, const Visit& visit) {
  const std::ptrdiff_t step_bytes = code_step_bytes(p.bits);
  for (std::ptrdiff_t panel = 0; panel < p.panels; ++panel) {
    const unsigned char* at = p.w + panel * p.panel_bytes;
    for (std::ptrdiff_t s0 = 0; s0 < p.steps; s0 += p.block_steps) {
      const std::ptrdiff_t steps = p.steps - s0 < p.block_steps ? p.steps - s0 : p.block_steps;
      const std::ptrdiff_t groups = block_groups(p, steps);
      Groups g;
      read_groups(p, at + steps * step_bytes, groups, g);
      for (std::ptrdiff_t s = 0; s < steps; ++s) {
        for (std::ptrdiff_t r = 0; r < kCodeRows; ++r) {
          int values[kCodeStep];
          read_codes(p, at + s * step_bytes, r, values);
          if (p.group_steps == 0) {
            visit(panel, r, s0 + s, 0, 16, values, g.of[2 * s][r]);
            visit(panel, r, s0 + s, 16, 16, values, g.of[2 * s + 1][r]);
          } else {
            visit(panel, r, s0 + s, 0, 32, values, g.of[s / p.group_steps][r]);
          }
        }
      }
      at += block_bytes(p, steps, groups);
    }
  }
}

void clear_sums(const CodeProduct& p) {
  for (int t = 0; t < p.tokens; ++t)
    for (std::ptrdiff_t i = 0; i < p.panels * kCodeRows; ++i) p.sums[t * p.sums_stride + i] = 0.0f;
}

void few_int8(const CodeProduct& p) noexcept {
  clear_sums(p);
  walk(p, [&p](std::ptrdiff_t panel, std::ptrdiff_t r, std::ptrdiff_t s, int first, int count, const int* values,
               const Group& g) {
    for (int t = 0; t < p.tokens; ++t) {
      const std::ptrdiff_t at = s * p.tokens + t;
      int sum = 0, sum_x = 0;
      for (int e = first; e < first + count; ++e) {
        const int x = p.x8.codes[at * kCodeStep + e];
        sum += (values[e] - g.zero) * x;
        sum_x += x;
      }
      float& y = p.sums[t * p.sums_stride + panel * kCodeRows + r];
      y += static_cast<float>(sum) * p.x8.scales[at] * g.scale;
      if (p.minimums) y += static_cast<float>(sum_x) * p.x8.scales[at] * g.minimum;
    }
  });
}

void few_f32(const CodeProduct& p) noexcept {
  clear_sums(p);
  walk(p, [&p](std::ptrdiff_t panel, std::ptrdiff_t r, std::ptrdiff_t s, int first, int count, const int* values,
               const Group& g) {
    for (int t = 0; t < p.tokens; ++t) {
      const float* x = p.x + (s * p.tokens + t) * kCodeStep;
      float sum = 0.0f;
      for (int e = first; e < first + count; ++e) {
        const float value = p.values != nullptr ? p.values[values[e]] : static_cast<float>(values[e] - g.zero);
        sum += (p.minimums ? value * g.scale + g.minimum : value) * x[e / 8 * 8 + kCodeOrder[e % 8]];
      }
      p.sums[t * p.sums_stride + panel * kCodeRows + r] += p.minimums ? sum : sum * g.scale;
    }
  });
}

}  // namespace

void install_codes_scalar(CodeKernels& k, Features) noexcept {
  k.few_int8 = {few_int8, "scalar"};
  k.few_f32 = {few_f32, "scalar"};
  k.quantize = {quantize, "scalar"};
}

}  // namespace blockpack::kernels
