// SPDX-License-Identifier: Apache-2.0
#pragma once

/// How often each distinct value occurs in a block of weights, on a chosen grid of values: the one pass over the data
/// that Gardener's score, the comparison scorers and the field entropies share.
///
/// 16-bit data are counted in a table of 65,536 counters: every weight is read once (2 bytes moved a weight) and the
/// table, 512 KiB a thread, stays in cache. float32 data are rounded to the grid on the way (4 bytes moved a weight),
/// or, as stored, sorted by radix: 8 bytes of scratch memory a weight.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <mutex>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/convert.hpp"
#include "blockpack/core/execution.hpp"
#include "blockpack/core/histogram.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/entropy/estimators.hpp"
#include "blockpack/entropy/weights.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// The values weights are rounded to before they are counted. The entropy of stored values depends on it as much as on
/// the weights: on float32 nearly every value is distinct and the score says nothing.
struct ValueGrid {
  enum class Kind : std::uint8_t {
    automatic,  ///< fp16 where the block holds float32 weights, as stored elsewhere
    as_stored,  ///< the values as they are
    fp16,       ///< rounded half to even, overflow to infinity
    bf16,       ///< the same
    e4m3,       ///< the same, saturating at 448; infinity counts as NaN
    integer     ///< q = round_half_even(w / s) in ±(2^(bits - 1) - 1), s = absmax / (2^(bits - 1) - 1)
  };
  Kind kind = Kind::automatic;
  int bits = 0;  ///< of `integer`, 2 to 16
  double absmax =
      0;  ///< of `integer`: 0 = the largest finite magnitude of the block; larger weights take the end codes

  static constexpr ValueGrid automatic() { return {}; }
  static constexpr ValueGrid as_stored() { return {Kind::as_stored, 0, 0}; }
  static constexpr ValueGrid fp16() { return {Kind::fp16, 0, 0}; }
  static constexpr ValueGrid bf16() { return {Kind::bf16, 0, 0}; }
  static constexpr ValueGrid e4m3() { return {Kind::e4m3, 0, 0}; }
  static constexpr ValueGrid integer(int bits, double absmax = 0) { return {Kind::integer, bits, absmax}; }
};

inline std::string to_string(const ValueGrid& grid) {
  constexpr const char* kNames[] = {"automatic", "as_stored", "fp16", "bf16", "e4m3"};
  return grid.kind == ValueGrid::Kind::integer ? "int" + std::to_string(grid.bits)
                                               : kNames[static_cast<std::size_t>(grid.kind)];
}

/// Distinct values and how often each occurs, in ascending order of `symbols`.
struct ValueCounts {
  /// Bits of the value as a float, +0 for both zeros and one quiet NaN for all NaN; for `integer` the sign in the top
  /// bit and the magnitude of the code below it.
  std::vector<std::uint32_t> symbols;
  std::vector<std::uint64_t> counts;
  std::uint64_t total = 0;
  std::uint64_t nan_count = 0;
  ValueGrid grid;  ///< what `automatic` and absmax = 0 became

  DiscreteEntropy entropy() const { return discrete_entropy(counts); }
};

namespace detail {

inline constexpr std::uint32_t kNanSymbol = 0x7fc00000u;

/// Equal values have equal symbols: one zero, one NaN.
constexpr std::uint32_t symbol_of(float v) noexcept {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(v);
  if ((u & 0x7fffffffu) == 0) return 0;
  return (u & 0x7fffffffu) > 0x7f800000u ? kNanSymbol : u;
}

/// A grid with everything decided: float to 16-bit code, code to symbol.
class GridCodec {
 public:
  explicit GridCodec(const ValueGrid& grid)
      : kind_(grid.kind),
        top_(grid.kind == ValueGrid::Kind::integer ? (1 << (grid.bits - 1)) - 1 : 1),
        step_(grid.absmax / top_) {}

  std::uint16_t encode(float v) const noexcept {
    switch (kind_) {
      case ValueGrid::Kind::bf16:
        return bf16(v).bits;
      case ValueGrid::Kind::e4m3:
        return fp8_e4m3(v).bits;
      case ValueGrid::Kind::integer:
        return encode_integer(v);
      default:
        return fp16(v).bits;
    }
  }
  std::uint32_t symbol(std::uint16_t code) const noexcept {
    switch (kind_) {
      case ValueGrid::Kind::bf16:
        return symbol_of(static_cast<float>(bf16::from_bits(code)));
      case ValueGrid::Kind::e4m3:
        return symbol_of(static_cast<float>(fp8_e4m3::from_bits(static_cast<std::uint8_t>(code))));
      case ValueGrid::Kind::integer:
        if (code == kNanCode) return kNanSymbol;
        return (code & 0x8000u) != 0 ? 0x80000000u | (code & 0x7fffu) : code;
      default:
        return symbol_of(static_cast<float>(fp16::from_bits(code)));
    }
  }

 private:
  static constexpr std::uint16_t kNanCode = 0x8000u;  // minus zero, which no integer has

  std::uint16_t encode_integer(float v) const noexcept {
    if (v != v) return kNanCode;
    if (step_ == 0) return 0;
    const double t = std::min(std::fabs(static_cast<double>(v)) / step_, static_cast<double>(top_));
    auto q = static_cast<unsigned>(static_cast<int>(t));
    const double rest = t - static_cast<double>(static_cast<int>(q));  // exact
    q += static_cast<unsigned>(rest > 0.5) | (static_cast<unsigned>(rest == 0.5) & q & 1u);
    return static_cast<std::uint16_t>(q | (static_cast<unsigned>(v < 0) & static_cast<unsigned>(q != 0)) << 15);
  }

  ValueGrid::Kind kind_;
  int top_;      // largest code of `integer`
  double step_;  // distance of two values of `integer`
};

/// Counters of the codes of each kind of data in a block; a table exists once it is needed.
struct CodeTables {
  std::vector<std::uint64_t> bf16, fp16, gridded;

  std::vector<std::uint64_t>& of(StoredType type) noexcept {
    return type == StoredType::f32 ? gridded : (type == StoredType::bf16 ? bf16 : fp16);
  }
  void merge(CodeTables& other) {
    for (const StoredType type : {StoredType::f32, StoredType::bf16, StoredType::fp16}) {
      std::vector<std::uint64_t>& mine = of(type);
      std::vector<std::uint64_t>& theirs = other.of(type);
      if (mine.empty()) {
        mine.swap(theirs);
      } else {
        for (std::size_t c = 0; c < theirs.size(); ++c) mine[c] += theirs[c];
      }
    }
  }
};

inline constexpr index_t kWeightsPerTask = 1 << 22;

/// The matrices of a block cut into parts of about that many weights, rows first.
inline std::vector<WeightView> parts_of(const WeightBlock& block, index_t weights) {
  std::vector<WeightView> parts;
  for (const WeightView& w : block.matrices) {
    if (w.size() == 0) continue;
    const index_t cols = std::min(w.cols(), weights), rows = std::max<index_t>(1, weights / cols);
    for (index_t i = 0; i < w.rows(); i += rows)
      for (index_t j = 0; j < w.cols(); j += cols)
        parts.push_back(w.block(i, j, std::min(rows, w.rows() - i), std::min(cols, w.cols() - j)));
  }
  return parts;
}

/// Grids without a counting kernel: codes are made in runs that stay in the first-level cache.
inline void count_floats(MatrixView<const float> w, const ValueGrid& grid, std::span<std::uint64_t> counts, Isa level) {
  constexpr index_t kRun = 2048;
  const GridCodec codec(grid);
  std::vector<fp8_e4m3> bytes(static_cast<std::size_t>(kRun));
  for (index_t i = 0; i < w.rows(); ++i)
    for (index_t j = 0; j < w.cols(); j += kRun) {
      const std::span<const float> run(w.row_data(i) + j, static_cast<std::size_t>(std::min(kRun, w.cols() - j)));
      if (grid.kind == ValueGrid::Kind::e4m3) {
        convert(run, std::span(bytes).first(run.size()), level);
        for (std::size_t k = 0; k < run.size(); ++k) ++counts[bytes[k].bits];
      } else {
        for (const float v : run) ++counts[codec.encode(v)];
      }
    }
}

/// Adds the codes of one part to its table.
inline void count_part(const WeightView& part, const ValueGrid& grid, std::span<std::uint64_t> counts, Isa level) {
  part.visit([&](auto w) {
    using T = typename decltype(w)::value_type;
    if constexpr (!std::is_same_v<T, float>) {
      const auto* codes = reinterpret_cast<const std::uint16_t*>(w.data());
      histogram_u16(MatrixView<const std::uint16_t>(codes, w.rows(), w.cols(), w.row_stride()), counts, level);
    } else if (grid.kind == ValueGrid::Kind::fp16) {
      histogram_rounded<fp16>(w, counts, level);
    } else if (grid.kind == ValueGrid::Kind::bf16) {
      histogram_rounded<bf16>(w, counts, level);
    } else {
      count_floats(w, grid, counts, level);
    }
  });
}

/// One pass over the block: 16-bit data by their stored codes, float data by the codes of the grid.
inline CodeTables count_block(const WeightBlock& block, const ValueGrid& grid, const Execution& how) {
  CodeTables tables;
  std::mutex merging;  // integer sums: the order of merging does not matter
  const std::vector<WeightView> parts = parts_of(block, std::max(kWeightsPerTask, ceil_div(block.size(), 64)));
  const Isa level = how.level();
  parallel_for(how, static_cast<index_t>(parts.size()), [&](index_t task) {
    const WeightView& part = parts[static_cast<std::size_t>(task)];
    CodeTables local;
    local.of(part.type()).resize(kHistogramBins);
    count_part(part, grid, local.of(part.type()), level);
    const std::lock_guard lock(merging);
    tables.merge(local);
  });
  return tables;
}

/// Sorted, distinct symbols of the tables.
inline ValueCounts fold(CodeTables& tables, const ValueGrid& grid) {
  ValueCounts result;
  result.grid = grid;
  const GridCodec codec(grid);
  std::vector<std::pair<std::uint32_t, std::uint64_t>> pairs;
  const auto take = [&](const std::vector<std::uint64_t>& table, auto symbol) {
    for (std::size_t c = 0; c < table.size(); ++c)
      if (table[c] != 0) pairs.emplace_back(symbol(static_cast<std::uint16_t>(c)), table[c]);
  };
  const bool as_stored = grid.kind == ValueGrid::Kind::as_stored;
  take(tables.bf16, [&](std::uint16_t c) {
    const float v = static_cast<float>(bf16::from_bits(c));
    return as_stored ? symbol_of(v) : codec.symbol(codec.encode(v));
  });
  take(tables.fp16, [&](std::uint16_t c) {
    const float v = static_cast<float>(fp16::from_bits(c));
    return as_stored ? symbol_of(v) : codec.symbol(codec.encode(v));
  });
  take(tables.gridded, [&](std::uint16_t c) { return codec.symbol(c); });
  if (!std::is_sorted(pairs.begin(), pairs.end())) std::sort(pairs.begin(), pairs.end());
  for (const auto& [symbol, count] : pairs) {
    if (result.symbols.empty() || result.symbols.back() != symbol) {
      result.symbols.push_back(symbol);
      result.counts.push_back(0);
    }
    result.counts.back() += count;
    result.total += count;
    if (symbol == kNanSymbol) result.nan_count += count;
  }
  return result;
}

/// Sorts the symbols of a block and calls f(bucket, sorted symbols) for each of kBuckets ranges of symbols, in
/// parallel. The first pass scatters by the top 11 bits, the others finish each bucket. Memory: 8 bytes a weight.
inline constexpr index_t kBuckets = 2048;
template <class F>
void sort_symbols(const WeightBlock& block, const Execution& how, const F& f) {
  const index_t n = block.size();
  auto symbols = AlignedBuffer<std::uint32_t>::uninitialized(n);
  auto scratch = AlignedBuffer<std::uint32_t>::uninitialized(n);
  std::vector<index_t> start(kBuckets + 1, 0);
  const auto for_each_symbol = [&](auto&& use) {
    for_each_run(block, 0, n, [&](auto run) {
      for (const auto v : run) use(symbol_of(static_cast<float>(v)));
    });
  };
  for_each_symbol([&](std::uint32_t s) { ++start[(s >> 21) + 1]; });
  for (std::size_t b = 0; b < kBuckets; ++b) start[b + 1] += start[b];
  std::vector<index_t> next(start.begin(), start.end() - 1);
  for_each_symbol([&](std::uint32_t s) { symbols[next[s >> 21]++] = s; });

  parallel_for(how, kBuckets, [&](index_t b) {
    const auto k = static_cast<std::size_t>(b);
    const index_t size = start[k + 1] - start[k];
    if (size == 0) return;
    std::uint32_t* data = symbols.data() + start[k];
    if (size < 4096) {
      std::sort(data, data + size);
    } else {
      std::uint32_t* from = data;
      std::uint32_t* to = scratch.data() + start[k];
      for (const auto& [shift, bits] : {std::pair{0, 11}, std::pair{11, 10}}) {
        const std::uint32_t mask = (1u << bits) - 1;
        std::vector<index_t> place(mask + 1, 0);
        for (index_t i = 0; i < size; ++i) ++place[(from[i] >> shift) & mask];
        index_t sum = 0;
        for (index_t& p : place) sum += std::exchange(p, sum);
        for (index_t i = 0; i < size; ++i) to[place[(from[i] >> shift) & mask]++] = from[i];
        std::swap(from, to);
      }
    }
    f(b, std::span<const std::uint32_t>(data, static_cast<std::size_t>(size)));
  });
}

/// Calls f(symbol, count) for each distinct symbol of a sorted run.
template <class F>
void for_each_symbol_count(std::span<const std::uint32_t> sorted, F&& f) {
  for (std::size_t i = 0; i < sorted.size();) {
    std::size_t end = i + 1;
    while (end < sorted.size() && sorted[end] == sorted[i]) ++end;
    f(sorted[i], static_cast<std::uint64_t>(end - i));
    i = end;
  }
}

inline double finite_absmax(const WeightBlock& block) {
  float largest = 0;
  for_each_run(block, 0, block.size(), [&](auto run) {
    for (const auto v : run) {
      const float magnitude = std::fabs(static_cast<float>(v));
      if (magnitude > largest && magnitude <= std::numeric_limits<float>::max()) largest = magnitude;
    }
  });
  return static_cast<double>(largest);
}

/// Decides `automatic` and absmax for blocks that are counted on one grid. ValueError for an impossible grid.
inline ValueGrid resolve(const char* function, ValueGrid grid, std::span<const WeightBlock> blocks) {
  if (grid.kind == ValueGrid::Kind::automatic) {
    const bool floats =
        std::any_of(blocks.begin(), blocks.end(), [](const WeightBlock& b) { return b.has(StoredType::f32); });
    grid = floats ? ValueGrid::fp16() : ValueGrid::as_stored();
  }
  if (grid.kind == ValueGrid::Kind::integer) {
    if (grid.bits < 2 || grid.bits > 16)
      throw ValueError(std::string(function) + ": integer grid of " + std::to_string(grid.bits) +
                       " bits, 2 to 16 needed");
    if (!(grid.absmax >= 0) || !std::isfinite(grid.absmax))
      throw ValueError(std::string(function) + ": absmax of the integer grid is " + std::to_string(grid.absmax) +
                       ", a finite number >= 0 needed");
    if (grid.absmax == 0)
      for (const WeightBlock& b : blocks) grid.absmax = std::max(grid.absmax, finite_absmax(b));
  }
  return grid;
}

}  // namespace detail

/// Counts the distinct values of a block on a grid.
///
/// Errors: ValueError for an integer grid of other than 2 to 16 bits or a bad absmax.
/// Cost:   one pass (two for `integer` without absmax); memory see the top of this file, and for float32 as stored up
/// to
///         12 bytes a distinct value for the result. Exact: does not depend on the threads.
inline ValueCounts value_counts(const WeightBlock& block, const ValueGrid& grid = {}, const Execution& how = {}) {
  const ValueGrid chosen = detail::resolve("value_counts", grid, {&block, 1});
  if (chosen.kind != ValueGrid::Kind::as_stored || !block.has(StoredType::f32)) {
    detail::CodeTables tables = detail::count_block(block, chosen, how);
    return detail::fold(tables, chosen);
  }
  std::vector<ValueCounts> parts(static_cast<std::size_t>(detail::kBuckets));
  detail::sort_symbols(block, how, [&](index_t b, std::span<const std::uint32_t> sorted) {
    ValueCounts& part = parts[static_cast<std::size_t>(b)];
    detail::for_each_symbol_count(sorted, [&](std::uint32_t symbol, std::uint64_t count) {
      part.symbols.push_back(symbol);
      part.counts.push_back(count);
    });
  });
  ValueCounts result;
  result.grid = chosen;
  for (ValueCounts& part : parts) {
    for (std::size_t i = 0; i < part.symbols.size(); ++i) {
      result.symbols.push_back(part.symbols[i]);
      result.counts.push_back(part.counts[i]);
      result.total += part.counts[i];
      if (part.symbols[i] == detail::kNanSymbol) result.nan_count += part.counts[i];
    }
    part = {};
  }
  return result;
}

/// How often each stored 16-bit pattern occurs (both zeros and every NaN apart): 65,536 counts.
/// ValueError unless all matrices of the block have that type.
inline std::vector<std::uint64_t> code_counts(const WeightBlock& block, StoredType type, const Execution& how = {}) {
  for (const WeightView& w : block.matrices)
    if (w.type() != type || type == StoredType::f32)
      throw ValueError(std::string("code_counts: a matrix of type ") + to_string(w.type()) +
                       ", bf16 or fp16 matrices of one type needed");
  detail::CodeTables tables = detail::count_block(block, ValueGrid::as_stored(), how);
  std::vector<std::uint64_t> counts = std::move(tables.of(type));
  counts.resize(kHistogramBins);
  return counts;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
