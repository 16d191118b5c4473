// SPDX-License-Identifier: Apache-2.0
/// Merging the tables on Advanced SIMD: 4 counters of each of the 4 tables added to 64-bit sums by the widening add.
/// Limit: reading 1 MiB of tables.

#include <arm_neon.h>

#include "kernels/histogram/histogram_kernels.hpp"

namespace blockpack::kernels {
namespace {

void merge(const std::uint32_t* tables, std::uint64_t* counts) noexcept {
  for (std::size_t c = 0; c < kBins; c += 4) {
    uint64x2_t low = vld1q_u64(counts + c);
    uint64x2_t high = vld1q_u64(counts + c + 2);
    for (std::size_t t = 0; t < kTables; ++t) {
      const uint32x4_t four = vld1q_u32(tables + t * kBins + c);
      low = vaddw_u32(low, vget_low_u32(four));
      high = vaddw_u32(high, vget_high_u32(four));
    }
    vst1q_u64(counts + c, low);
    vst1q_u64(counts + c + 2, high);
  }
}

}  // namespace

void install_histogram_neon(HistogramKernels& table, Features) noexcept { table.merge = {merge, "neon"}; }

}  // namespace blockpack::kernels
