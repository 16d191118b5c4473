// SPDX-License-Identifier: Apache-2.0
/// Counting, 4 codes from one 64-bit load. Limit: one increment (load, add, store) per cycle; where half of the codes
/// are one value, store forwarding.

#include <bit>
#include <cstring>

#include "kernels/histogram/histogram_kernels.hpp"

namespace blockpack::kernels {
namespace {

constexpr std::size_t kAhead = 4096;  // bytes; a prefetch beyond the end is harmless

std::uint16_t load_code(const std::byte* p) noexcept {
  const auto low = std::to_integer<unsigned>(p[0]);
  const auto high = std::to_integer<unsigned>(p[1]);
  return static_cast<std::uint16_t>(low | high << 8);
}

/// Calls count(table, code) with table = 0, 1, 2, 3, 0, 1, …
template <class Count>
void for_each_code(const void* codes, std::size_t n, const Count& count) noexcept {
  const auto* p = static_cast<const std::byte*>(codes);
  std::size_t i = 0;
  if constexpr (std::endian::native == std::endian::little) {
    for (; i + 32 <= n; i += 32, p += 64) {
#if defined(__GNUC__)
      __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(p) + kAhead));
#endif
      for (int k = 0; k < 8; ++k) {
        std::uint64_t four;
        std::memcpy(&four, p + 8 * k, 8);
        count(0, static_cast<std::uint16_t>(four));
        count(1, static_cast<std::uint16_t>(four >> 16));
        count(2, static_cast<std::uint16_t>(four >> 32));
        count(3, static_cast<std::uint16_t>(four >> 48));
      }
    }
  }
  for (; i < n; ++i, p += 2) count(i % kTables, load_code(p));
}

void direct_u16(const void* codes, std::size_t n, std::uint64_t* counts) noexcept {
  for_each_code(codes, n, [counts](std::size_t, std::uint16_t code) { ++counts[code]; });
}

void tables_u16(const void* codes, std::size_t n, std::uint32_t* tables) noexcept {
  for_each_code(codes, n, [tables](std::size_t table, std::uint16_t code) { ++tables[table * kBins + code]; });
}

void merge(const std::uint32_t* tables, std::uint64_t* counts) noexcept {
  for (std::size_t c = 0; c < kBins; ++c) {
    std::uint64_t sum = 0;
    for (std::size_t t = 0; t < kTables; ++t) sum += tables[t * kBins + c];
    counts[c] += sum;
  }
}

}  // namespace

void install_histogram_scalar(HistogramKernels& table, Features) noexcept {
  table.direct_u16 = {direct_u16, "scalar"};
  table.tables_u16 = {tables_u16, "scalar"};
  table.merge = {merge, "scalar"};
}

}  // namespace blockpack::kernels
