// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Block-sparse matrices: W [out, in] cut into blocks, a bit for each block and the values of those that are kept, in
/// any row format. Blocks of 1x1 are the bitmask format.
///
///     const auto w = BlockSparse<DenseFormat<bf16>>::encode(pruned, {32, 32});  // blocks that are not all zeros
///
/// The values of a row are those of its kept blocks side by side, a row of the format: groups of quantized values run
/// over them. Blocks at the right edge are stored whole (zeros beyond it), those at the lower edge have fewer rows.
/// docs/formats/sparse.md has the bytes. BSR (SciPy, PyTorch, libxsmm) comes and goes by from_bsr and to_bsr.
///
/// Products take a packed form, the pieces of 16 x 32 weights that hold something: smaller blocks pay for the zeros
/// beside them, and PackPolicy::none() computes from the stored form. int8 values with a scale a row are packed once
/// more, as integers, when int8_token activations first meet them (on_first_use).

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/engine.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/packed_block_sparse.hpp"
#include "blockpack/core/packed_cache.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/sparse/mask.hpp"
#include "blockpack/sparse/row_values.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Blocks in compressed rows, as SciPy and PyTorch have them, or by columns: those of block row b are [indptr[b],
/// indptr[b + 1]), each with its block column in `indices` and block.rows x block.cols values, row-major, in `data`.
template <bool ByColumns>
struct CompressedBlocks {
  MatrixShape shape;
  MatrixShape block{1, 1};
  std::vector<std::int32_t> indptr;
  std::vector<std::int32_t> indices;
  std::vector<float> data;
};
using Bsr = CompressedBlocks<false>;
using Bsc = CompressedBlocks<true>;

namespace detail {
/// ShapeError for sizes that disagree, ValueError for what indptr and indices say.
template <bool ByColumns>
void check_compressed(const std::string& function, const CompressedBlocks<ByColumns>& b) {
  if (b.block.rows < 1 || b.block.cols < 1)
    throw ShapeError(function + ": blocks of " + to_string(b.block) + ", at least 1x1 needed");
  if (b.shape.rows < 0 || b.shape.cols < 0) throw ShapeError(function + ": the shape is negative");
  if (b.shape.rows % b.block.rows != 0 || b.shape.cols % b.block.cols != 0)
    throw ShapeError(function + ": blocks of " + to_string(b.block) + " do not divide " + to_string(b.shape));
  index_t lines = b.shape.rows / b.block.rows, across = b.shape.cols / b.block.cols;
  if (ByColumns) std::swap(lines, across);
  if (static_cast<index_t>(b.indptr.size()) != lines + 1 || b.indptr.front() != 0 ||
      b.indptr.back() != static_cast<std::int64_t>(b.indices.size()))
    throw ValueError(function + ": indptr needs " + std::to_string(lines + 1) + " entries from 0 to " +
                     std::to_string(b.indices.size()));
  if (static_cast<index_t>(b.data.size()) != checked_mul(static_cast<index_t>(b.indices.size()),
                                                         checked_mul(b.block.rows, b.block.cols, function.c_str()),
                                                         function.c_str()))
    throw ShapeError(function + ": data has " + std::to_string(b.data.size()) + " values, " +
                     std::to_string(b.indices.size()) + " blocks of " + to_string(b.block) + " need others");
  const std::string kind = ByColumns ? "block column " : "block row ";
  for (std::size_t line = 0; line + 1 < b.indptr.size(); ++line) {
    if (b.indptr[line + 1] < b.indptr[line] || b.indptr[line + 1] > b.indptr.back())
      throw ValueError(function + ": indptr falls at " + kind + std::to_string(line));
    for (std::int32_t i = b.indptr[line]; i < b.indptr[line + 1]; ++i) {
      const std::int32_t at = b.indices[static_cast<std::size_t>(i)];
      if (at < 0 || at >= across)
        throw ValueError(function + ": indices[" + std::to_string(i) + "] = " + std::to_string(at) + " is not in [0, " +
                         std::to_string(across) + ")");
      if (i > b.indptr[line] && at <= b.indices[static_cast<std::size_t>(i) - 1])
        throw ValueError(function + ": indices do not rise in " + kind + std::to_string(line));
    }
  }
}
}  // namespace detail

template <RowFormat V>
class BlockSparse {
 public:
  struct Parameters {
    MatrixShape block{1, 1};
    V values;
  };

  /// Keeps the blocks that hold a weight other than 0. ShapeError for blocks smaller than 1x1; errors of encode_rows.
  /// Cost: two passes over w.
  static BlockSparse encode(MatrixView<const float> w, MatrixShape block, const V& values = V{},
                            const EncodeOptions& options = {}, PackPolicy policy = {}) {
    return encode(w, Mask::of_nonzeros(w).any_of_blocks(block), block, values, options, policy);
  }
  /// Keeps the blocks of `kept`, a bit a block, whatever they hold; what lies outside them is dropped. ShapeError for a
  /// mask of another shape.
  static BlockSparse encode(MatrixView<const float> w, const Mask& kept, MatrixShape block, const V& values = V{},
                            const EncodeOptions& options = {}, PackPolicy policy = {}) {
    const MatrixShape blocks = blocks_of(w.shape(), block);
    if (kept.shape() != blocks)
      throw ShapeError("BlockSparse::encode: kept is " + to_string(kept.shape()) + ", " + to_string(blocks) +
                       " blocks needed");
    detail::check_importance("BlockSparse::encode", options.importance, w.shape());
    const MatrixShape bad = options.non_finite == NonFinite::reject ? find_non_finite(w) : MatrixShape{-1, -1};
    if (bad.rows >= 0)
      throw ValueError("BlockSparse::encode: w is not finite at row " + std::to_string(bad.rows) + ", column " +
                       std::to_string(bad.cols) + "; pass NonFinite::saturate to clamp");
    const index_t row_bytes = ceil_div(blocks.cols, 8);
    AlignedBuffer<std::byte> bits(checked_mul(blocks.rows, row_bytes, "BlockSparse::encode"));
    for (index_t b = 0; b < blocks.rows; ++b)
      if (row_bytes > 0)
        std::memcpy(bits.data() + b * row_bytes, kept.row_words(b).data(), static_cast<std::size_t>(row_bytes));
    return build(w.shape(), {block, values}, SharedBytes(std::move(bits)), options, policy,
                 [&](index_t row, index_t j) { return j < w.cols() ? w(row, j) : 0.0f; });
  }

  /// The operator whose `sections()` are these, nothing copied: the bits are counted. FormatError names the section
  /// that does not fit.
  static BlockSparse from_sections(MatrixShape shape, const Parameters& parameters, std::span<const Section> sections,
                                   PackPolicy policy = {}) {
    const std::vector<SectionSpec> specs = detail::value_sections(parameters.values.sections(0));
    const auto fail = [](const std::string& text) { throw FormatError("from_sections: " + text); };
    if (sections.size() != specs.size() + 1)
      fail(std::to_string(sections.size()) + " sections, " + std::to_string(specs.size() + 1) +
           " needed for block-sparse values of " + std::string(parameters.values.scheme()));
    for (std::size_t s = 0; s <= specs.size(); ++s) {
      const std::string needed = s < specs.size() ? specs[s].name : "blocks";
      if (sections[s].name != needed) fail("section " + sections[s].name + " where " + needed + " is needed");
    }
    const MatrixShape blocks = blocks_of(shape, parameters.block);
    const auto expect = [&](const Section& section, index_t bytes) {
      if (static_cast<index_t>(section.data.bytes.size()) != bytes)
        fail("section " + section.name + " has " + std::to_string(section.data.bytes.size()) + " bytes, " +
             std::to_string(bytes) + " needed");
    };
    expect(sections.back(), checked_mul(blocks.rows, ceil_div(blocks.cols, 8), "from_sections"));
    BlockSparse op(shape, parameters, sections.back().data, policy);
    for (std::size_t s = 0; s < specs.size(); ++s) {
      expect(sections[s], op.rows_->section_bytes[s]);
      op.stored_.push_back(sections[s].data);
    }
    op.pack_ahead();
    return op;
  }

  /// From compressed rows of blocks.
  /// Errors: ShapeError for sizes that disagree or blocks that do not divide the shape; ValueError for an indptr that
  ///         does not begin with 0 or falls, a block column out of range, and block columns that do not rise in a row.
  static BlockSparse from_bsr(const Bsr& bsr, const V& values = V{}, const EncodeOptions& options = {},
                              PackPolicy policy = {}) {
    detail::check_compressed("from_bsr", bsr);
    detail::check_importance("from_bsr", options.importance, bsr.shape);
    const MatrixShape block = bsr.block;
    const MatrixShape blocks = blocks_of(bsr.shape, block);
    const index_t row_bytes = ceil_div(blocks.cols, 8);
    AlignedBuffer<std::byte> bits(checked_mul(blocks.rows, row_bytes, "from_bsr"));
    for (index_t b = 0; b < blocks.rows; ++b)
      for (std::int32_t i = bsr.indptr[static_cast<std::size_t>(b)]; i < bsr.indptr[static_cast<std::size_t>(b) + 1];
           ++i) {
        const std::int32_t j = bsr.indices[static_cast<std::size_t>(i)];
        bits.data()[b * row_bytes + j / 8] |= std::byte{1} << (j % 8);
      }
    // Values of a row are asked for in order: the block is the one of the value's place among the kept ones.
    return build(
        bsr.shape, {block, values}, SharedBytes(std::move(bits)), options, policy, [&](index_t row, index_t j) {
          const auto first = bsr.indices.begin() + bsr.indptr[static_cast<std::size_t>(row / block.rows)];
          const auto last = bsr.indices.begin() + bsr.indptr[static_cast<std::size_t>(row / block.rows) + 1];
          const index_t i =
              std::lower_bound(first, last, static_cast<std::int32_t>(j / block.cols)) - bsr.indices.begin();
          return bsr.data[static_cast<std::size_t>((i * block.rows + row % block.rows) * block.cols + j % block.cols)];
        });
  }
  /// Decoded; block rows and columns that the shape cuts are filled with zeros. ShapeError for 2^31 blocks and more.
  Bsr to_bsr() const {
    const MatrixShape blocks = blocks_of(shape_, parameters_.block), block = parameters_.block;
    if (kept_blocks() > std::numeric_limits<std::int32_t>::max())
      throw ShapeError("to_bsr: " + std::to_string(kept_blocks()) +
                       " blocks, 32-bit indices hold no more than 2^31 - 1");
    Bsr bsr{{blocks.rows * block.rows, blocks.cols * block.cols}, block, {0}, {}, {}};
    std::vector<float> row(static_cast<std::size_t>(shape_.cols));
    for (index_t b = 0; b < blocks.rows; ++b) {
      for_kept(b, 0, blocks.cols, [&](index_t j, index_t) { bsr.indices.push_back(static_cast<std::int32_t>(j)); });
      const auto first = static_cast<std::size_t>(bsr.indptr.back());
      bsr.indptr.push_back(static_cast<std::int32_t>(bsr.indices.size()));
      bsr.data.resize(bsr.indices.size() * static_cast<std::size_t>(block.rows * block.cols));
      for (index_t r = 0; r < std::min(block.rows, shape_.rows - b * block.rows); ++r) {
        decode(b * block.rows + r, 0, row);
        for (std::size_t i = first; i < bsr.indices.size(); ++i) {
          const index_t col = bsr.indices[i] * block.cols;
          std::copy_n(row.begin() + col, std::min(block.cols, shape_.cols - col),
                      bsr.data.begin() + (static_cast<index_t>(i) * block.rows + r) * block.cols);
        }
      }
    }
    return bsr;
  }

  index_t out_features() const noexcept { return shape_.rows; }
  index_t in_features() const noexcept { return shape_.cols; }
  MatrixShape shape() const noexcept { return shape_; }
  const Parameters& parameters() const noexcept { return parameters_; }
  /// `bitmask-bf16`, `bsr32x32-bf16`.
  std::string scheme() const {
    const MatrixShape block = parameters_.block;
    return (block == MatrixShape{1, 1} ? "bitmask" : "bsr" + to_string(block)) + "-" +
           std::string(parameters_.values.scheme());
  }
  /// Blocks that are stored, of all of them.
  index_t kept_blocks() const noexcept { return rows_->kept_blocks; }
  double density() const noexcept {
    const MatrixShape blocks = blocks_of(shape_, parameters_.block);
    const index_t all = blocks.rows * blocks.cols;
    return all == 0 ? 1.0 : static_cast<double>(kept_blocks()) / static_cast<double>(all);
  }

  std::vector<Section> sections() const {
    std::vector<Section> result;
    const std::vector<SectionSpec> specs = detail::value_sections(parameters_.values.sections(0));
    for (std::size_t s = 0; s < specs.size(); ++s) result.push_back({specs[s].name, stored_[s]});
    result.push_back({"blocks", bits_});
    return result;
  }
  std::size_t storage_bytes() const noexcept {
    std::size_t sum = bits_.bytes.size();
    for (const SharedBytes& s : stored_) sum += s.bytes.size();
    return sum;
  }
  /// Bytes the packed cache holds now.
  std::size_t packed_bytes() const noexcept {
    std::size_t sum = 0;
#if !defined(BLOCKPACK_HEADERS_ONLY)
    for (const auto& e : cache_->entries)
      if (e.ready.load(std::memory_order_acquire)) sum += e.packed.bytes();
#endif
    return sum;
  }
  /// Bytes packing takes at the active level, in the mode `automatic` means: what PackPolicy::into asks for. 0 where
  /// nothing is packed.
  std::size_t packed_bytes_needed() const {
#if defined(BLOCKPACK_HEADERS_ONLY)
    return 0;
#else
    return PackedBlockSparse::bytes_needed(sparse_source(), weight_type(activation_mode(1)));
#endif
  }
  /// The mode an apply computes in.
  Activations activation_mode(index_t /*tokens*/, const ApplyOptions& how = {}) const {
    return resolve(how.activations, parameters_.values.exact_in_bf16() ? 16.0 : 32.0, how.execution.level());
  }

  /// y = epilogue(x · Wᵀ). ShapeError names the argument that does not fit.
  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const {
    detail::check_apply_shapes("apply", shape_.rows, shape_.cols, x.shape(), y.shape(), how.epilogue);
    const Activations mode = activation_mode(x.rows(), how);
#if !defined(BLOCKPACK_HEADERS_ONLY)
    if (const PackedBlockSparse* packed = packed_form(mode, how.execution)) return matmul(x, *packed, y, mode, how);
#endif
    matmul(x, source(), y, mode, how);
  }
  /// x [tokens, in] = y [tokens, out] · W, float32. The epilogue must be empty (ValueError).
  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    if (!how.epilogue.empty()) throw ValueError("apply_transpose: an epilogue is not supported");
    detail::check_apply_shapes("apply_transpose", shape_.cols, shape_.rows, y.shape(), x.shape(), {});
    matmul_transpose(y, source(), x, how);
  }
  void decode_rows(std::span<const index_t> rows, MatrixView<float> y) const {
    detail::check_decode_rows("decode_rows", shape_, rows, y.shape());
    for (std::size_t i = 0; i < rows.size(); ++i) decode(rows[i], 0, y.row(static_cast<index_t>(i)));
  }

 private:
  static constexpr std::size_t kMaxSections = 4;

  /// Where the rows lie in the sections: what the bits say.
  struct Rows {
    struct BlockRow {
      index_t kept = 0;                                    ///< blocks
      std::array<index_t, kMaxSections> first{}, bytes{};  ///< of the block row in each section; of one row
    };
    std::vector<BlockRow> block_rows;
    std::array<index_t, kMaxSections> section_bytes{};
    index_t kept_blocks = 0;
  };

  static MatrixShape blocks_of(MatrixShape shape, MatrixShape block) {
    if (block.rows < 1 || block.cols < 1)
      throw ShapeError("BlockSparse: blocks of " + to_string(block) + ", at least 1x1 needed");
    if (shape.rows < 0 || shape.cols < 0) throw ShapeError("BlockSparse: the shape is negative");
    return {ceil_div(shape.rows, block.rows), ceil_div(shape.cols, block.cols)};
  }

  /// Without values yet. FormatError for a bit behind the last block of a row.
  BlockSparse(MatrixShape shape, const Parameters& parameters, SharedBytes bits, [[maybe_unused]] PackPolicy policy)
      : shape_(shape), parameters_(parameters), bits_(std::move(bits)) {
#if !defined(BLOCKPACK_HEADERS_ONLY)
    cache_ = std::make_shared<Cache>(policy);
#endif
    const MatrixShape blocks = blocks_of(shape, parameters_.block);
    auto rows = std::make_shared<Rows>();
    rows->block_rows.resize(static_cast<std::size_t>(blocks.rows));
    const index_t row_bytes = ceil_div(blocks.cols, 8);
    index_t known = -1;  // blocks of the row before, whose sizes need no second look
    std::vector<SectionSpec> specs = parameters_.values.sections(0);
    if (specs.size() > kMaxSections) throw UnsupportedError("BlockSparse: " + scheme() + " has too many sections");
    for (std::size_t s = 0; s < specs.size(); ++s) rows->section_bytes[s] = specs[s].bytes_per_tensor;
    for (index_t b = 0; b < blocks.rows; ++b) {
      typename Rows::BlockRow& row = rows->block_rows[static_cast<std::size_t>(b)];
      const std::byte* bytes = bits_.bytes.data() + b * row_bytes;
      for (index_t i = 0; i < row_bytes; ++i) row.kept += std::popcount(std::to_integer<unsigned>(bytes[i]));
      if (blocks.cols % 8 != 0 && (std::to_integer<unsigned>(bytes[row_bytes - 1]) >> (blocks.cols % 8)) != 0)
        throw FormatError("from_sections: section blocks has a bit behind the last block of block row " +
                          std::to_string(b));
      rows->kept_blocks += row.kept;
      if (row.kept != known) specs = parameters_.values.sections(row.kept * parameters_.block.cols);
      known = row.kept;
      const index_t count = std::min(parameters_.block.rows, shape.rows - b * parameters_.block.rows);
      for (std::size_t s = 0; s < specs.size(); ++s) {
        row.bytes[s] = specs[s].bytes_per_row;
        row.first[s] = specs[s].bytes_per_row > 0 ? rows->section_bytes[s] : 0;
        rows->section_bytes[s] = checked_add(rows->section_bytes[s],
                                             checked_mul(count, specs[s].bytes_per_row, "BlockSparse"), "BlockSparse");
      }
    }
    rows_ = std::move(rows);
  }

  /// Calls f(block column, place among the kept blocks of the row) for those from `first` to `end`.
  template <class F>
  void for_kept(index_t block_row, index_t first, index_t end, const F& f) const {
    const index_t row_bytes = ceil_div(blocks_of(shape_, parameters_.block).cols, 8);
    const std::byte* bytes = bits_.bytes.data() + block_row * row_bytes;
    index_t place = 0;
    for (index_t i = 0; i * 8 < end; ++i) {
      auto bits = std::to_integer<unsigned>(bytes[i]);
      if (i * 8 + 8 <= first) {
        place += std::popcount(bits);
        continue;
      }
      for (; bits != 0; bits &= bits - 1, ++place) {
        const index_t j = i * 8 + std::countr_zero(bits);
        if (j >= first && j < end) f(j, place);
      }
    }
  }

  /// `value(row, column)` gives the weights of kept blocks; columns may lie beyond the matrix.
  template <class Value>
  static BlockSparse build(MatrixShape shape, Parameters parameters, SharedBytes bits, const EncodeOptions& options,
                           PackPolicy policy, const Value& value) {
    BlockSparse op(shape, parameters, bits, policy);
    const MatrixShape blocks = blocks_of(shape, parameters.block), block = parameters.block;
    // The kept values of a block row, and their importance, as matrices of their own.
    struct Panel {
      std::vector<float> values, importance;
      MatrixView<const float> view;
      EncodeOptions options;
    };
    const auto panel_of = [&](index_t b) {
      const index_t first = b * block.rows, rows = std::min(block.rows, shape.rows - first);
      const index_t cols = op.rows_->block_rows[static_cast<std::size_t>(b)].kept * block.cols;
      Panel p;
      p.values.resize(static_cast<std::size_t>(rows * cols));
      const index_t weighed = options.importance.rows() == 1 ? 1 : rows;
      if (options.importance.data() != nullptr) p.importance.resize(static_cast<std::size_t>(weighed * cols));
      op.for_kept(b, 0, blocks.cols, [&](index_t j, index_t place) {
        for (index_t c = 0; c < block.cols; ++c) {
          const index_t from = j * block.cols + c, to = place * block.cols + c;
          for (index_t r = 0; r < rows; ++r) p.values[static_cast<std::size_t>(r * cols + to)] = value(first + r, from);
          for (index_t r = 0; r < weighed && !p.importance.empty() && from < shape.cols; ++r)
            p.importance[static_cast<std::size_t>(r * cols + to)] =
                options.importance(options.importance.rows() == 1 ? 0 : first + r, from);
        }
      });
      p.view = MatrixView<const float>(p.values.data(), rows, cols);
      p.options.non_finite = options.non_finite;
      if (!p.importance.empty()) p.options.importance = MatrixView<const float>(p.importance.data(), weighed, cols);
      p.options.execution.threads = 1;
      return p;
    };
    V values = parameters.values;
    if constexpr (TensorFormat<V>) {
      if (values.fits_tensor()) {
        TensorStatistics statistics;
        for (index_t b = 0; b < blocks.rows; ++b) {
          const Panel p = panel_of(b);
          statistics.add(p.view, options.non_finite, p.options.execution);
        }
        values = values.fitted_to(statistics);
      }
    }
    std::vector<AlignedBuffer<std::byte>> stored;
    const std::size_t sections = values.sections(0).size();
    for (std::size_t s = 0; s < sections; ++s) stored.emplace_back(op.rows_->section_bytes[s]);
    if constexpr (TensorFormat<V>) {
      std::vector<std::byte*> dst;
      for (AlignedBuffer<std::byte>& s : stored) dst.push_back(s.data());
      values.encode_tensor(dst);
    }
    parallel_for_reported(options.execution, blocks.rows, [&](index_t b) {
      const Panel p = panel_of(b);
      std::vector<std::byte*> dst;
      for (std::size_t s = 0; s < sections; ++s)
        dst.push_back(stored[s].data() + op.rows_->block_rows[static_cast<std::size_t>(b)].first[s]);
      encode_panel(values, p.view, b * block.rows, dst, p.options);
    });
    for (AlignedBuffer<std::byte>& s : stored) op.stored_.emplace_back(std::move(s));
    op.pack_ahead();
    return op;
  }

#if !defined(BLOCKPACK_HEADERS_ONLY)
  /// The packed forms, one for each type of weights; shared by the copies.
  struct Cache {
    explicit Cache(PackPolicy p) : policy(p) {}
    PackPolicy policy;
    std::array<PackedOnce<PackedBlockSparse>, 3> entries;  ///< the last one of int8
  };

  WeightType weight_type(Activations mode) const noexcept {
    return mode == Activations::bf16 || parameters_.values.exact_in_bf16() ? WeightType::bf16 : WeightType::f32;
  }
  const PackedBlockSparse* pack(WeightType type, const Execution& how, bool now) const {
    auto& entry = cache_->entries[static_cast<std::size_t>(type)];
    if (now)
      std::call_once(entry.once,
                     [&] { entry.store(PackedBlockSparse::pack(sparse_source(), type, how, cache_->policy.memory)); });
    const bool usable = entry.ready.load(std::memory_order_acquire) && entry.packed.level() == how.level();
    return usable ? &entry.packed : nullptr;
  }
  /// Whether the weights are int8 times a scale of their row.
  bool is_int8() const {
    if constexpr (CodeFormat<V>) {
      std::array<const std::byte*, kMaxSections> src{};
      for (std::size_t s = 0; s < stored_.size(); ++s) src[s] = stored_[s].bytes.data();
      const index_t cols = round_up(shape_.cols, parameters_.block.cols);
      const auto spec = parameters_.values.code_spec(cols, std::span(src).first(stored_.size()));
      return spec && spec->bits == 8 && spec->element == CodeElement::integer && spec->scale == CodeScale::f32 &&
             spec->group >= cols && !spec->zeros && spec->zero == 128 && !spec->minimums;
    }
    return false;
  }
  /// SparseRowSource::read_int8.
  float read_int8(index_t row, std::int8_t* dst) const {
    std::fill_n(dst, shape_.cols, std::int8_t{0});
    if constexpr (CodeFormat<V>) {
      const MatrixShape block = parameters_.block;
      const index_t b = row / block.rows, kept = rows_->block_rows[static_cast<std::size_t>(b)].kept;
      const auto src = pointers(row);
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(kept * block.cols));
      std::uint32_t scale = 0;
      if (kept == 0) return 0.0f;
      const auto spec = parameters_.values.code_spec(kept * block.cols, std::span(src).first(stored_.size()));
      parameters_.values.read_codes(std::span(src).first(stored_.size()), kept * block.cols,
                                    {codes, std::span(&scale, 1), {}, {}});
      for_kept(b, 0, ceil_div(shape_.cols, block.cols), [&](index_t j, index_t place) {
        for (index_t c = j * block.cols; c < std::min(shape_.cols, (j + 1) * block.cols); ++c)
          dst[c] = static_cast<std::int8_t>(codes[static_cast<std::size_t>((place - j) * block.cols + c)] - 128);
      });
      return std::bit_cast<float>(scale) * spec->multiplier;
    }
    return 0.0f;
  }
  /// The packed form such an apply computes from, or null where it takes the stored one.
  const PackedBlockSparse* packed_form(Activations mode, const Execution& how) const {
    if (mode == Activations::int8_token && multiplies_int8_blocks(shape_.cols, how.level()) && is_int8() &&
        cache_->policy.kind == PackPolicy::Kind::on_first_use) {
      auto& entry = cache_->entries[2];
      std::call_once(entry.once, [&] { entry.store(PackedBlockSparse::pack_int8(sparse_source(), how)); });
      if (entry.packed.level() == how.level()) return &entry.packed;
    }
    return pack(weight_type(mode), how, cache_->policy.kind == PackPolicy::Kind::on_first_use);
  }
  SparseRowSource sparse_source() const {
    return {source(),
            [](const void* self, index_t row, index_t end, std::uint8_t* kept) {
              const auto& op = *static_cast<const BlockSparse*>(self);
              const MatrixShape block = op.parameters_.block;
              for (index_t b = row / block.rows; b * block.rows < end; ++b)
                op.for_kept(b, 0, ceil_div(op.shape_.cols, block.cols), [&](index_t j, index_t) {
                  const index_t last = std::min((j + 1) * block.cols, op.shape_.cols) - 1;
                  for (index_t s = j * block.cols / PackedBlockSparse::kStep; s <= last / PackedBlockSparse::kStep; ++s)
                    kept[s] = 1;
                });
            },
            [](const void* self, index_t row, std::int8_t* dst) {
              return static_cast<const BlockSparse*>(self)->read_int8(row, dst);
            }};
  }
#endif
  /// Packs now, for the `ahead` and `into` policies.
  void pack_ahead() const {
#if !defined(BLOCKPACK_HEADERS_ONLY)
    const auto kind = cache_->policy.kind;
    pack(weight_type(activation_mode(1)), {}, kind == PackPolicy::Kind::ahead || kind == PackPolicy::Kind::into);
#endif
  }

  /// Where a row begins in each section.
  std::array<const std::byte*, kMaxSections> pointers(index_t row) const noexcept {
    const index_t block_rows = parameters_.block.rows;
    const typename Rows::BlockRow& at = rows_->block_rows[static_cast<std::size_t>(row / block_rows)];
    std::array<const std::byte*, kMaxSections> src{};
    for (std::size_t s = 0; s < stored_.size(); ++s)
      src[s] = stored_[s].bytes.data() + at.first[s] + row % block_rows * at.bytes[s];
    return src;
  }
  /// W[row, col … col + dst.size()).
  void decode(index_t row, index_t col, std::span<float> dst) const {
    std::fill(dst.begin(), dst.end(), 0.0f);
    const MatrixShape block = parameters_.block;
    const index_t b = row / block.rows, end = col + static_cast<index_t>(dst.size());
    const typename Rows::BlockRow& at = rows_->block_rows[static_cast<std::size_t>(b)];
    const auto src = pointers(row);
    detail::RowValues<V> values(parameters_.values, std::span(src).first(stored_.size()), at.kept * block.cols);
    for_kept(b, col / block.cols, ceil_div(end, block.cols), [&](index_t j, index_t place) {
      const index_t first = std::max(col, j * block.cols), last = std::min(end, (j + 1) * block.cols);
      for (index_t c = first; c < last; ++c)
        dst[static_cast<std::size_t>(c - col)] = values[place * block.cols + c - j * block.cols];
    });
  }

  RowSource source() const {
    RowSource w;
    w.rows = shape_.rows;
    w.cols = shape_.cols;
    w.self = this;
    w.decode_f32 = [](const void* self, index_t row, index_t col, index_t count, float* dst) {
      static_cast<const BlockSparse*>(self)->decode(row, col, {dst, static_cast<std::size_t>(count)});
    };
    if (parameters_.values.exact_in_bf16())
      w.decode_bf16 = [](const void* self, index_t row, index_t col, index_t count, bf16* dst) {
        detail::decode_as_bf16(
            col, std::span(dst, static_cast<std::size_t>(count)),
            [&](index_t c, std::span<float> part) { static_cast<const BlockSparse*>(self)->decode(row, c, part); });
      };
    return w;
  }

  MatrixShape shape_;
  Parameters parameters_;
  SharedBytes bits_;
  std::vector<SharedBytes> stored_;
  std::shared_ptr<const Rows> rows_;
#if !defined(BLOCKPACK_HEADERS_ONLY)
  std::shared_ptr<Cache> cache_;
#endif
};

}  // namespace blockpack::inline BLOCKPACK_ABI
