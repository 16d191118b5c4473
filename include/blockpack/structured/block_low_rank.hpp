// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Block low-rank matrices: a grid of tiles, each of a rank of its own or kept as it is. Fits:
/// structured/block_low_rank_fit.hpp.
///
/// Source: the flat tiling of numerical linear algebra, as in STRUMPACK (github.com/pghysels/STRUMPACK).

#include <bit>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/structured/block_factors.hpp"
#include "blockpack/structured/factor_format.hpp"
#include "blockpack/structured/roofline.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Tile (k, l) = left_kl · right_kl, or dense. One storage for fixed and for variable ranks: R is the sum of all ranks.
///
///     ranks  int32 [tile rows of the grid · tile columns of the grid], row after row; -1: the tile is dense
///     left   [R, tile_rows]   column ρ of left_kl as a row: tiles row after row of the grid, ranks in order
///     right  [R, tile_cols]   row ρ of right_kl: tiles column after column of the grid, ranks in order
///     tiles  [dense tiles · tile_rows, tile_cols]   row after row of the grid
///
/// The last tiles of a row or column of the grid may be short: values beyond the edge are stored and have no effect.
/// Groups of a quantized left factor run along the output features. Opening decodes the left factors, as bf16 where
/// that is exact and as float32 otherwise: they are multiplied the other way round.
class BlockLowRank {
 public:
  static constexpr std::int32_t kDense = -1;

  struct Parameters {
    index_t tile_rows = 256;
    index_t tile_cols = 256;
    FactorFormat factors;
  };

  /// Shapes: as above. Errors: ShapeError that names the factor, ValueError for a tile size below 1 or a rank below -1;
  /// those of the format.
  static BlockLowRank encode(MatrixShape shape, std::span<const std::int32_t> ranks, MatrixView<const float> left,
                             MatrixView<const float> right, MatrixView<const float> tiles, const Parameters& parameters,
                             const EncodeOptions& options = {}, PackPolicy policy = {}) {
    check(shape, parameters);
    if (static_cast<index_t>(ranks.size()) != grid(shape, parameters).rows * grid(shape, parameters).cols)
      throw ShapeError("BlockLowRank: ranks has " + std::to_string(ranks.size()) + " values, one for each of " +
                       to_string(grid(shape, parameters)) + " tiles needed");
    const Counts counts = count(ranks);
    detail::require_factor("BlockLowRank", "left", left.shape(), left_shape(parameters, counts.ranks));
    detail::require_factor("BlockLowRank", "right", right.shape(), right_shape(parameters, counts.ranks));
    detail::require_factor("BlockLowRank", "tiles", tiles.shape(), tiles_shape(parameters, counts.dense));
    AlignedBuffer<std::byte> bytes(static_cast<index_t>(ranks.size_bytes()));
    if (!ranks.empty()) std::memcpy(bytes.data(), ranks.data(), ranks.size_bytes());
    return BlockLowRank(shape, parameters, {ranks.begin(), ranks.end()}, SharedBytes(std::move(bytes)),
                        parameters.factors.encode(left, options), parameters.factors.encode(right, options),
                        parameters.factors.encode(tiles, options), policy);
  }

  /// FormatError for ranks that no such matrix has and for sections of another size.
  static BlockLowRank from_sections(MatrixShape shape, const Parameters& parameters, std::span<const Section> sections,
                                    PackPolicy policy = {}) {
    check(shape, parameters);
    const MatrixShape tiles_in_grid = grid(shape, parameters);
    std::vector<Section> factors;
    SharedBytes table;
    bool found = false;
    for (const Section& s : sections) {
      if (s.name == "ranks") {
        table = s.data;
        found = true;
      } else {
        factors.push_back(s);
      }
    }
    static constexpr std::string_view kParts[] = {"left.", "right.", "tiles."};
    detail::require_prefixes(factors, kParts);
    const index_t needed =
        checked_mul(checked_mul(tiles_in_grid.rows, tiles_in_grid.cols, "from_sections"), 4, "from_sections");
    if (!found || static_cast<index_t>(table.bytes.size()) != needed)
      throw FormatError("from_sections: section ranks with " + std::to_string(needed) + " bytes needed");
    std::vector<std::int32_t> ranks(static_cast<std::size_t>(needed / 4));
    if (needed > 0) std::memcpy(ranks.data(), table.bytes.data(), table.bytes.size());
    for (const std::int32_t rank : ranks)
      if (rank < kDense) throw FormatError("from_sections: a tile has rank " + std::to_string(rank));
    const Counts counts = count(ranks);
    const auto open = [&](MatrixShape part, const char* prefix) {
      return parameters.factors.open(part, detail::sections_of(factors, prefix));
    };
    return BlockLowRank(shape, parameters, ranks, table, open(left_shape(parameters, counts.ranks), "left."),
                        open(right_shape(parameters, counts.ranks), "right."),
                        open(tiles_shape(parameters, counts.dense), "tiles."), policy);
  }

  static MatrixShape grid(MatrixShape shape, const Parameters& p) {
    return {ceil_div(shape.rows, p.tile_rows), ceil_div(shape.cols, p.tile_cols)};
  }

  index_t out_features() const noexcept { return factors_.shape().rows; }
  index_t in_features() const noexcept { return factors_.shape().cols; }
  const Parameters& parameters() const noexcept { return parameters_; }
  /// Of tile (k, l); kDense for one that is kept as it is.
  std::int32_t rank(index_t k, index_t l) const {
    return ranks_[static_cast<std::size_t>(k * grid(factors_.shape(), parameters_).cols + l)];
  }
  const AnyLinear& left() const noexcept { return left_; }
  const AnyLinear& right() const noexcept { return right_; }
  const AnyLinear& tiles() const noexcept { return tiles_; }
  /// Of square tiles; the ranks are not part of it.
  std::string scheme() const {
    return "blr-t" + std::to_string(parameters_.tile_rows) + "-" + parameters_.factors.scheme;
  }
  std::vector<Section> sections() const {
    std::vector<Section> all{{"ranks", table_}};
    detail::append_sections(all, "left.", left_);
    detail::append_sections(all, "right.", right_);
    detail::append_sections(all, "tiles.", tiles_);
    return all;
  }
  std::size_t storage_bytes() const {
    return table_.bytes.size() + left_.storage_bytes() + right_.storage_bytes() + tiles_.storage_bytes();
  }
  std::size_t packed_bytes() const { return factors_.packed_bytes(); }
  Activations activation_mode(index_t tokens, const ApplyOptions& how = {}) const {
    return factors_.activation_mode(tokens, how);
  }

  /// Operations, and bytes at `element` bytes a value, of n tokens.
  index_t flops(index_t n) const { return 2 * n * weights(); }
  index_t bytes(index_t n, Fusion fusion = Fusion::full, index_t element = 2) const {
    const index_t values = n * right_.out_features();
    return layer_bytes(n, in_features(), out_features(), weights(), monarch_passes(fusion) * values, false, element);
  }

  void apply(ActivationView x, ResultView y, const ApplyOptions& how = {}) const { factors_.apply(x, y, how); }
  void apply_transpose(MatrixView<const float> y, MatrixView<float> x, const ApplyOptions& how = {}) const {
    factors_.apply_transpose(y, x, how);
  }
  void decode_rows(std::span<const index_t> rows, MatrixView<float> w) const { factors_.decode_rows(rows, w); }

 private:
  struct Counts {
    index_t ranks = 0, dense = 0;
  };
  static Counts count(std::span<const std::int32_t> ranks) {
    Counts c;
    for (const std::int32_t rank : ranks) {
      if (rank < kDense) throw ValueError("BlockLowRank: a tile has rank " + std::to_string(rank));
      if (rank == kDense) ++c.dense;
      if (rank > 0) c.ranks = checked_add(c.ranks, rank, "BlockLowRank");
    }
    return c;
  }
  static MatrixShape left_shape(const Parameters& p, index_t ranks) { return {ranks, p.tile_rows}; }
  static MatrixShape right_shape(const Parameters& p, index_t ranks) { return {ranks, p.tile_cols}; }
  static MatrixShape tiles_shape(const Parameters& p, index_t dense) {
    return {checked_mul(dense, p.tile_rows, "BlockLowRank"), p.tile_cols};
  }

  BlockLowRank(MatrixShape shape, Parameters parameters, std::vector<std::int32_t> ranks, SharedBytes table,
               AnyLinear left, AnyLinear right, AnyLinear tiles, PackPolicy policy)
      : parameters_(std::move(parameters)),
        ranks_(std::move(ranks)),
        table_(std::move(table)),
        left_(std::move(left)),
        right_(std::move(right)),
        tiles_(std::move(tiles)),
        factors_(parts(shape), policy) {}

  static void check(MatrixShape shape, const Parameters& p) {
    if (p.tile_rows < 1 || p.tile_cols < 1)
      throw ValueError("BlockLowRank: tiles of " + to_string(MatrixShape{p.tile_rows, p.tile_cols}) +
                       ", at least 1x1 needed");
    if (shape.rows < 0 || shape.cols < 0) throw ShapeError("BlockLowRank: the shape is negative");
  }

  /// Rows [first, first + ranks) of the stored left factor, turned into the first `rows` rows of a [rows, ranks] one.
  AnyLinear left_block(index_t first, index_t ranks, index_t rows) const {
    const AlignedBuffer<float> stored = detail::decode_all(left_.row_range(first, ranks, PackPolicy::none()));
    AlignedBuffer<float> values(checked_mul(rows, ranks, "BlockLowRank"));
    bool exact = true;
    for (index_t r = 0; r < ranks; ++r)
      for (index_t c = 0; c < rows; ++c) {
        const float v = stored[r * parameters_.tile_rows + c];
        values[c * ranks + r] = v;
        exact = exact && (std::bit_cast<std::uint32_t>(v) & 0xffffu) == 0;
      }
    const MatrixView<const float> view(values.data(), rows, ranks);
    EncodeOptions options;
    options.non_finite = NonFinite::propagate;
    if (exact && parameters_.factors.scheme != "f32")
      return Dense<bf16>::encode(view, {}, options, parameters_.factors.block_policy());
    return Dense<float>::encode(view, {}, options, parameters_.factors.block_policy());
  }

  BlockFactors::Parts parts(MatrixShape shape) const {
    BlockFactors::Parts p;
    p.shape = shape;
    p.in_block = parameters_.tile_cols;
    p.out_block = parameters_.tile_rows;
    const MatrixShape tiles_in_grid = grid(shape, parameters_);
    const auto at = [&](index_t k, index_t l) { return ranks_[static_cast<std::size_t>(k * tiles_in_grid.cols + l)]; };
    const PackPolicy policy = parameters_.factors.block_policy();
    index_t row = 0;
    for (index_t l = 0; l < tiles_in_grid.cols; ++l) {
      index_t ranks = 0;
      for (index_t k = 0; k < tiles_in_grid.rows; ++k) ranks += std::max(at(k, l), std::int32_t{0});
      p.right.push_back(ranks == 0 ? AnyLinear() : right_.row_range(row, ranks, policy));
      row += ranks;
    }
    std::vector<index_t> used(static_cast<std::size_t>(tiles_in_grid.cols), 0);
    index_t dense = 0;
    row = 0;
    for (index_t k = 0; k < tiles_in_grid.rows; ++k) {
      const index_t rows = std::min(p.out_block, shape.rows - k * p.out_block);
      index_t ranks = 0;
      for (index_t l = 0; l < tiles_in_grid.cols; ++l) {
        const std::int32_t rank = at(k, l);
        if (rank == kDense) {
          p.tiles.push_back({k, l, tiles_.row_range(dense * p.out_block, rows, policy)});
          ++dense;
        } else if (rank > 0) {
          index_t& first = used[static_cast<std::size_t>(l)];
          p.runs.push_back({k, l, first, rank});
          first += rank;
          ranks += rank;
        }
      }
      p.left.push_back(ranks == 0 ? AnyLinear() : left_block(row, ranks, rows));
      row += ranks;
    }
    return p;
  }

  index_t weights() const {
    return right_.out_features() * (parameters_.tile_rows + parameters_.tile_cols) +
           tiles_.out_features() * tiles_.in_features();
  }

  Parameters parameters_;
  std::vector<std::int32_t> ranks_;
  SharedBytes table_;
  AnyLinear left_, right_, tiles_;
  BlockFactors factors_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
