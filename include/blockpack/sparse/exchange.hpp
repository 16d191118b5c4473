// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Layouts of other libraries, to export to and import from: the 2:4 metadata of GPUs, the bitmaps of SparAMX, blocks
/// in compressed columns, and the grouped columns of Intel's sparse accelerator. (BSR itself: sparse/block_sparse.hpp;
/// the natural order of 2:4 metadata is that of NmFormat's `indices`.) Nothing here computes.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/view.hpp"
#include "blockpack/sparse/block_sparse.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

namespace detail {
/// Where word (row, col) of row-major 2:4 metadata lies in the interleaved order. `wide`: words of 32 bits.
inline index_t gpu_word(index_t row, index_t col, index_t rows, bool wide) {
  const index_t group = wide ? 16 : 32;
  index_t r = row / 64 * 64 + row % 2 * 2 + row % 8 / 4 + row % group % 4 / 2 * 32 + row % 64 / 8 * 4;
  const index_t swap = r % 2 == 0 && col % 2 == 1 ? 1 : r % 2 == 1 && col % 2 == 0 ? -1 : 0;
  r += swap;
  col -= swap;
  return col / 2 * rows * 2 + r * 2 + col % 2;
}

template <class Word, class Move>
std::vector<Word> move_gpu_words(const char* function, std::span<const Word> words, index_t rows, const Move& move) {
  static_assert(sizeof(Word) == 2 || sizeof(Word) == 4);
  const auto count = static_cast<index_t>(words.size());
  if (rows < 1 || rows % 64 != 0 || count % (2 * rows) != 0)
    throw ShapeError(std::string(function) + ": " + std::to_string(count) + " words in " + std::to_string(rows) +
                     " rows, a multiple of 64 rows of an even number of words needed");
  std::vector<Word> moved(words.size());
  const index_t cols = count / rows;
  for (index_t r = 0; r < rows; ++r)
    for (index_t c = 0; c < cols; ++c)
      move(moved, static_cast<std::size_t>(r * cols + c),
           static_cast<std::size_t>(gpu_word(r, c, rows, sizeof(Word) == 4)));
  return moved;
}
}  // namespace detail

/// 2:4 metadata in words of 16 bits (for values of 16 and 32 bits) or 32 (for 8), from natural order, row after row and
/// the first group in the lowest bits, to the order NVIDIA's sparse tensor cores read.
/// Errors: ShapeError unless rows % 64 == 0 and the words of a row are even. Source: PyTorch,
/// _calculate_meta_reordering_scatter_offsets.
template <class Word>
std::vector<Word> to_gpu_order(std::span<const Word> natural, index_t rows) {
  return detail::move_gpu_words("to_gpu_order", natural, rows,
                                [&](auto& moved, std::size_t at, std::size_t gpu) { moved[gpu] = natural[at]; });
}
/// And back.
template <class Word>
std::vector<Word> from_gpu_order(std::span<const Word> reordered, index_t rows) {
  return detail::move_gpu_words("from_gpu_order", reordered, rows,
                                [&](auto& moved, std::size_t at, std::size_t gpu) { moved[at] = reordered[gpu]; });
}

/// A bitmap with one stream of values, in the order of a SparAMX kernel: a word is 16 outputs x 2 inputs, bit 2o + e is
/// output o, input e. `first_value[t]` is the number of values before the words of thread t.
struct SparAmxBitmap {
  std::vector<std::uint32_t> words;
  std::vector<float> values;
  std::vector<std::int32_t> first_value;
};
enum class SparAmxOrder : std::uint8_t { amx, avx };

/// W [out, in], out a multiple of 16, in of 2 (ShapeError), for that many threads (ValueError below 1).
/// Source: IntelLabs/Hardware-Aware-Automated-Machine-Learning (arXiv:2502.12444).
inline SparAmxBitmap to_sparamx(MatrixView<const float> w, SparAmxOrder order, index_t threads = 1) {
  if (w.rows() % 16 != 0 || w.cols() % 2 != 0)
    throw ShapeError("to_sparamx: w is " + to_string(w.shape()) + ", multiples of 16 rows and 2 columns needed");
  if (threads < 1) throw ValueError("to_sparamx: threads = " + std::to_string(threads) + ", at least 1 needed");
  const index_t tiles = w.rows() / 16, pairs = w.cols() / 2;
  SparAmxBitmap map;
  std::vector<std::size_t> values_before;
  const auto add = [&](index_t tile, index_t pair) {
    values_before.push_back(map.values.size());
    std::uint32_t word = 0;
    for (index_t bit = 0; bit < 32; ++bit) {
      const float v = w(tile * 16 + bit / 2, pair * 2 + bit % 2);
      if (v == 0.0f) continue;
      word |= std::uint32_t{1} << bit;
      map.values.push_back(v);
    }
    map.words.push_back(word);
  };
  // Tiles that alternate, and the pairs before they do.
  index_t together = 1, depth = std::max<index_t>(1, pairs);
  if (order == SparAmxOrder::avx) {
    together = std::clamp<index_t>(tiles / threads, 1, 32);
    depth = 1;
  } else if (2 * w.rows() / threads > 32) {
    together = 2;
    depth = 16;
  }
  for (index_t first = 0; first < tiles; first += together)
    for (index_t pair = 0; pair < pairs; pair += depth)
      for (index_t tile = first; tile < std::min(tiles, first + together); ++tile)
        for (index_t p = pair; p < std::min(pairs, pair + depth); ++p) add(tile, p);
  for (index_t t = 0; t < threads; ++t) {
    const std::size_t word = map.words.size() / static_cast<std::size_t>(threads) * static_cast<std::size_t>(t);
    map.first_value.push_back(word < values_before.size() ? static_cast<std::int32_t>(values_before[word]) : 0);
  }
  return map;
}

namespace detail {
/// The same blocks in the other order.
template <bool ByColumns>
CompressedBlocks<!ByColumns> recompress(const CompressedBlocks<ByColumns>& from) {
  const index_t across = ByColumns ? from.shape.rows / from.block.rows : from.shape.cols / from.block.cols;
  CompressedBlocks<!ByColumns> to{
      from.shape, from.block, std::vector<std::int32_t>(static_cast<std::size_t>(across) + 1), from.indices, from.data};
  for (const std::int32_t line : from.indices) ++to.indptr[static_cast<std::size_t>(line) + 1];
  std::partial_sum(to.indptr.begin(), to.indptr.end(), to.indptr.begin());
  std::vector<std::int32_t> next = to.indptr;
  const index_t size = from.block.rows * from.block.cols;
  for (std::size_t line = 0; line + 1 < from.indptr.size(); ++line)
    for (index_t i = from.indptr[line]; i < from.indptr[line + 1]; ++i) {
      const index_t at = next[static_cast<std::size_t>(from.indices[static_cast<std::size_t>(i)])]++;
      to.indices[static_cast<std::size_t>(at)] = static_cast<std::int32_t>(line);
      std::copy_n(from.data.begin() + i * size, size, to.data.begin() + at * size);
    }
  return to;
}
}  // namespace detail

/// The blocks by columns. Errors: those of BlockSparse::from_bsr. Cost: a copy of the data.
inline Bsc to_bsc(const Bsr& bsr) {
  detail::check_compressed("to_bsc", bsr);
  return detail::recompress(bsr);
}
/// And back; the same errors, of columns.
inline Bsr from_bsc(const Bsc& bsc) {
  detail::check_compressed("from_bsc", bsc);
  return detail::recompress(bsc);
}

/// Blocks of one column, some of which stand side by side: group g of block row b, indptr[b] <= g < indptr[b + 1], is
/// [block rows][group] values, its columns in `indices`; a last group is filled with zeros at the last column.
struct GroupedBsr {
  MatrixShape shape;
  index_t block_rows = 4;
  index_t group = 4;
  std::vector<std::int64_t> indptr;
  std::vector<std::int64_t> indices;
  std::vector<float> data;
};

/// Blocks of one column (ShapeError for others) in groups: 4x1 in fours for VNNI, 16x1 in groups of 32 (bf16) or 64
/// (int8) for AMX. ValueError for a group below 1; errors of from_bsr. Source: intel/intel-extension-for-transformers
/// (arXiv:2306.16601).
inline GroupedBsr to_grouped(const Bsr& bsr, index_t group) {
  if (bsr.block.cols != 1)
    throw ShapeError("to_grouped: blocks of " + to_string(bsr.block) + ", blocks of one column needed");
  if (group < 1) throw ValueError("to_grouped: group = " + std::to_string(group) + ", at least 1 needed");
  const index_t rows = bsr.block.rows;
  detail::check_compressed("to_grouped", bsr);
  GroupedBsr grouped{bsr.shape, rows, group, {0}, {}, {}};
  for (std::size_t b = 0; b + 1 < bsr.indptr.size(); ++b) {
    for (index_t first = bsr.indptr[b]; first < bsr.indptr[b + 1]; first += group) {
      const index_t count = std::min<index_t>(group, bsr.indptr[b + 1] - first);
      const auto at = static_cast<std::ptrdiff_t>(grouped.data.size());
      grouped.data.resize(grouped.data.size() + static_cast<std::size_t>(rows * group));
      for (index_t i = 0; i < group; ++i) {
        const index_t block = first + std::min(i, count - 1);
        grouped.indices.push_back(bsr.indices[static_cast<std::size_t>(block)]);
        for (index_t r = 0; i < count && r < rows; ++r)
          grouped.data[static_cast<std::size_t>(at + r * group + i)] =
              bsr.data[static_cast<std::size_t>(block * rows + r)];
      }
    }
    grouped.indptr.push_back(static_cast<std::int64_t>(grouped.indices.size()) / group);
  }
  return grouped;
}
/// And back; the filling of last groups is dropped. ShapeError for sizes that disagree, ValueError for a column out of
/// range and one that is repeated with data other than 0; from_bsr checks the rest.
inline Bsr from_grouped(const GroupedBsr& grouped) {
  const auto groups = static_cast<index_t>(grouped.indices.size()) / std::max<index_t>(1, grouped.group);
  if (grouped.group < 1 || grouped.block_rows < 1 || grouped.indptr.empty() || grouped.indptr.front() != 0 ||
      grouped.indptr.back() != groups || static_cast<index_t>(grouped.indices.size()) != groups * grouped.group ||
      static_cast<index_t>(grouped.data.size()) !=
          checked_mul(groups * grouped.group, grouped.block_rows, "from_grouped") ||
      !std::is_sorted(grouped.indptr.begin(), grouped.indptr.end()))
    throw ShapeError("from_grouped: indptr, indices and data of " + std::to_string(groups) + " groups disagree");
  Bsr bsr{grouped.shape, {grouped.block_rows, 1}, {0}, {}, {}};
  for (std::size_t b = 0; b + 1 < grouped.indptr.size(); ++b) {
    const auto first = grouped.indptr[b] * grouped.group, end = grouped.indptr[b + 1] * grouped.group;
    for (auto i = first; i < end; ++i) {
      const std::int64_t col = grouped.indices[static_cast<std::size_t>(i)];
      if (col < 0 || col >= grouped.shape.cols)
        throw ValueError("from_grouped: indices[" + std::to_string(i) + "] = " + std::to_string(col) +
                         " is not in [0, " + std::to_string(grouped.shape.cols) + ")");
      const bool filling = i > first && col == grouped.indices[static_cast<std::size_t>(i) - 1];
      if (!filling) bsr.indices.push_back(static_cast<std::int32_t>(col));
      for (index_t r = 0; r < grouped.block_rows; ++r) {
        const float v = grouped.data[static_cast<std::size_t>(
            (i / grouped.group * grouped.block_rows + r) * grouped.group + i % grouped.group)];
        if (!filling)
          bsr.data.push_back(v);
        else if (v != 0.0f)
          throw ValueError("from_grouped: indices[" + std::to_string(i) + "] repeats column " + std::to_string(col) +
                           " with data that is not 0");
      }
    }
    bsr.indptr.push_back(static_cast<std::int32_t>(bsr.indices.size()));
  }
  return bsr;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
