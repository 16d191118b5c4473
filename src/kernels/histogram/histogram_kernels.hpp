// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The slots of the histogram family: counting 16-bit codes into 65,536 bins.
///
/// Counting itself is scalar code on every level: an increment of memory per element has no vector form that pays off
/// (gather, conflict detection and scatter of 16 counters take several times the cycles of 16 increments). What limits
/// it, and what the kernels do about it: a counter that is hit again while its last increment is still on the way waits
/// for store forwarding, about 5 cycles, so neighbours go to different tables; and one slow stream does not keep the
/// hardware prefetcher ahead, so lines are asked for 4 KiB ahead. The levels merge the tables.
/// Installers are called weakest level first, each overwrites what it does better.

#include "kernels/slot.hpp"

namespace blockpack::kernels {

inline constexpr std::size_t kBins = 65536;
inline constexpr std::size_t kTables = 4;

struct HistogramKernels {
  /// ++counts[code] for n little-endian codes at any address.
  Slot<void (*)(const void* codes, std::size_t n, std::uint64_t* counts) noexcept> direct_u16;
  /// Element i is counted in table i mod 4 of tables [kTables][kBins]. The caller keeps n below 2^32 between merges.
  Slot<void (*)(const void* codes, std::size_t n, std::uint32_t* tables) noexcept> tables_u16;
  /// counts[c] += the sum of the tables at c.
  Slot<void (*)(const std::uint32_t* tables, std::uint64_t* counts) noexcept> merge;
};

/// Calls visit("name", slot) for every slot of the family: kernel_report() and the tests walk the table with it.
template <class Visitor>
void visit_slots(const HistogramKernels& kernels, Visitor&& visit) {
  visit("direct_u16", kernels.direct_u16);
  visit("tables_u16", kernels.tables_u16);
  visit("merge", kernels.merge);
}

void install_histogram_scalar(HistogramKernels& table, Features features) noexcept;
void install_histogram_avx2(HistogramKernels& table, Features features) noexcept;
void install_histogram_avx512(HistogramKernels& table, Features features) noexcept;
void install_histogram_neon(HistogramKernels& table, Features features) noexcept;

}  // namespace blockpack::kernels
