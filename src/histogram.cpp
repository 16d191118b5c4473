// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/histogram.hpp"

#include <algorithm>

#include "blockpack/core/buffer.hpp"
#include "kernels/table.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace detail {
namespace {

// From here on the 1 MiB of tables is worth its clearing and merging (about 0.1 ms); direct counting is as fast on
// spread-out codes and 2 to 3 times slower where one code is frequent.
constexpr index_t kTablesFrom = index_t{1} << 20;
constexpr index_t kMergeEvery = index_t{1} << 31;  // elements: no 32-bit counter overflows before

/// Counts runs of codes, in the four tables when there are many to come.
class Counter {
 public:
  Counter(const kernels::KernelTable& table, index_t expected, std::uint64_t* counts)
      : kernels_(table.histogram), counts_(counts) {
    if (expected >= kTablesFrom) tables_ = AlignedBuffer<std::uint32_t>(kernels::kTables * kernels::kBins);
  }

  void add(const std::byte* codes, index_t n) {
    if (tables_.empty()) {
      kernels_.direct_u16.fn(codes, static_cast<std::size_t>(n), counts_);
      return;
    }
    while (n > 0) {
      const index_t part = std::min(n, kMergeEvery - in_tables_);
      kernels_.tables_u16.fn(codes, static_cast<std::size_t>(part), tables_.data());
      in_tables_ += part;
      codes += 2 * part;
      n -= part;
      if (in_tables_ == kMergeEvery) {
        kernels_.merge.fn(tables_.data(), counts_);
        std::fill(tables_.begin(), tables_.end(), 0u);
        in_tables_ = 0;
      }
    }
  }

  void finish() {
    if (in_tables_ > 0) kernels_.merge.fn(tables_.data(), counts_);
  }

 private:
  const kernels::HistogramKernels& kernels_;
  std::uint64_t* counts_;
  AlignedBuffer<std::uint32_t> tables_;
  index_t in_tables_ = 0;
};

/// One long row where the rows touch each other.
HistogramSource joined(HistogramSource src) {
  if (src.rows > 1 && src.row_stride == src.cols) {
    src.cols *= src.rows;
    src.rows = 1;
  }
  return src;
}

}  // namespace

void histogram_codes(const HistogramSource& source, std::uint64_t* counts, Isa level) {
  const HistogramSource src = joined(source);
  Counter counter(kernels::table_for(level), src.rows * src.cols, counts);
  const auto* codes = static_cast<const std::byte*>(src.data);
  for (index_t i = 0; i < src.rows; ++i) counter.add(codes + 2 * i * src.row_stride, src.cols);
  counter.finish();
}

void histogram_rounded(ScalarKind kind, const HistogramSource& source, std::uint64_t* counts, Isa level) {
  constexpr index_t kChunk = 2048;  // codes that stay in L1 between the two kernels
  const HistogramSource src = joined(source);
  const kernels::KernelTable& table = kernels::table_for(level);
  const auto round = table.convert.from_f32[static_cast<std::size_t>(kind)].fn;
  Counter counter(table, src.rows * src.cols, counts);
  alignas(64) std::uint16_t codes[kChunk];
  const auto* values = static_cast<const float*>(src.data);
  for (index_t i = 0; i < src.rows; ++i) {
    for (index_t j = 0; j < src.cols; j += kChunk) {
      const index_t n = std::min(kChunk, src.cols - j);
      round(values + i * src.row_stride + j, codes, static_cast<std::size_t>(n));
      counter.add(reinterpret_cast<const std::byte*>(codes), n);
    }
  }
  counter.finish();
}

}  // namespace detail
}  // namespace blockpack::inline BLOCKPACK_ABI
