// SPDX-License-Identifier: Apache-2.0
/// Structured layers as schemes: the fit of a whole matrix, its factors stored in any row-wise format.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "blockpack/core/eigen.hpp"
#include "blockpack/recipe/rounding_codec.hpp"
#include "blockpack/structured/blast.hpp"
#include "blockpack/structured/blast_fit.hpp"
#include "blockpack/structured/block_diagonal.hpp"
#include "blockpack/structured/block_low_rank.hpp"
#include "blockpack/structured/block_low_rank_fit.hpp"
#include "blockpack/structured/low_rank.hpp"
#include "blockpack/structured/low_rank_fit.hpp"
#include "blockpack/structured/monarch.hpp"
#include "blockpack/structured/monarch_fit.hpp"
#include "recipe/families.hpp"

namespace blockpack::recipe_detail {
namespace {

/// Ranks from which on the s step of BLAST is solved by conjugate gradients: blocks² factorizations would take most of
/// the time.
constexpr index_t kLargeBlast = 256;

/// What a scheme says beside the format of its factors.
struct Fit {
  index_t blocks = 1;  ///< or the side of a tile
  index_t rank = 0;
  bool whiten = false;  ///< the fit minimizes the error of the outputs
  bool refine = false;  ///< least squares of the factors against the inputs, after the fit
  std::string suffix() const { return std::string(whiten ? "+whiten" : "") + (refine ? "+refine" : ""); }
};

FactorFormat factor_format(const std::shared_ptr<const Codec>& codec) {
  return {codec->format(),
          [codec](MatrixView<const float> w, const EncodeOptions& options, PackPolicy policy) {
            return encode_matrix(*fitted(codec, w, options), w, options, policy);
          },
          [codec](MatrixShape shape, std::span<const Section> sections, PackPolicy policy) {
            return codec->open(shape, sections, policy);
          }};
}

/// A factor and the prefix of its sections.
struct Part {
  std::string name;
  MatrixShape shape;
  std::shared_ptr<const Codec> codec;
};

struct BlastForm;
/// Matrices of W's size that the fit of a form takes at most.
template <class Form>
constexpr index_t kFitMatrices = 6;
template <>
constexpr index_t kFitMatrices<BlastForm> = 9;

/// A codec of factors. `Form` says which parts a matrix of a shape has, fits them and opens the operator.
template <class Form>
class StructuredCodec final : public Codec {
 public:
  StructuredCodec(std::shared_ptr<const Codec> values, Fit fit) : values_(std::move(values)), fit_(fit) {}

  std::string scheme() const override { return format() + fit_.suffix(); }
  std::string format() const override { return Form::name(fit_) + "-" + values_->format(); }
  std::vector<SectionSize> sections(MatrixShape shape) const override {
    std::vector<SectionSize> sizes = Form::tables(shape, fit_);
    for (const Part& part : Form::parts(shape, fit_, values_))
      for (const SectionSize& s : part.codec->sections(part.shape))
        sizes.push_back({part.name + "." + s.name, s.bytes, false});
    return sizes;
  }
  bool row_wise() const noexcept override { return false; }
  bool reproducible() const noexcept override { return false; }
  /// Float32 copies: the matrix in the working order, its error, and what the fit keeps of either.
  index_t working_bytes(MatrixShape shape) const override {
    const index_t side = std::max(shape.rows, shape.cols);
    return checked_mul(checked_mul(side, shape.cols, "working_bytes"), kFitMatrices<Form> * index_t{sizeof(float)},
                       "working_bytes");
  }
  CalibrationNeeds needs() const noexcept override { return {fit_.whiten || fit_.refine, false}; }
  void encode(MatrixView<const float> given, index_t /*first_row*/, std::span<std::byte* const> dst,
              const EncodeOptions& options) const override {
    detail::require_calibration(*this, options);
    const detail::RoundedWeights rounded(given, options.non_finite, scheme());
    EncodeOptions inner;
    inner.execution = options.execution.quiet();
    std::size_t s = 0;
    const auto put = [&](MatrixView<const float> factor, const Part& part) {
      const std::vector<SectionSize> sizes = part.codec->sections(part.shape);
      std::vector<std::byte*> to(dst.begin() + static_cast<std::ptrdiff_t>(s),
                                 dst.begin() + static_cast<std::ptrdiff_t>(s + sizes.size()));
      fitted(part.codec, factor, inner)->encode(factor, 0, to, inner);
      s += sizes.size();
    };
    const auto put_table = [&](std::span<const std::int32_t> table) {
      if (!table.empty()) std::memcpy(dst[s], table.data(), table.size_bytes());
      ++s;
    };
    Form::fit(rounded.view(), fit_, options, Form::parts(given.shape(), fit_, values_), put, put_table);
  }
  AnyLinear open(MatrixShape shape, std::span<const Section> sections, PackPolicy policy) const override {
    return Named(Form::open(shape, fit_, factor_format(values_), sections, policy), format());
  }

 private:
  std::shared_ptr<const Codec> values_;
  Fit fit_;
};

/// The format of couplings.
std::shared_ptr<const Codec> bf16_codec() { return make_row_codec(DenseFormat<bf16>{}); }

struct NoTables {
  static std::vector<SectionSize> tables(MatrixShape, const Fit&) { return {}; }
};

struct BlockDiagonalForm : NoTables {
  static std::string name(const Fit& fit) { return fmt::format("blockdiag-b{}", fit.blocks); }
  static std::vector<Part> parts(MatrixShape shape, const Fit& fit, const std::shared_ptr<const Codec>& values) {
    return {{"blocks", BlockDiagonal::stack_shape(shape, fit.blocks), values}};
  }
  template <class Put, class Table>
  static void fit(MatrixView<const float> w, const Fit& fit, const EncodeOptions&, const std::vector<Part>& parts,
                  const Put& put, const Table&) {
    const BlockDiagonal op = BlockDiagonal::project(w, {fit.blocks, FactorFormat::f32()});
    const AlignedBuffer<float> stack = detail::decode_all(op.stack());
    put(MatrixView<const float>(stack.data(), parts[0].shape.rows, parts[0].shape.cols), parts[0]);
  }
  static BlockDiagonal open(MatrixShape shape, const Fit& fit, const FactorFormat& factors,
                            std::span<const Section> sections, PackPolicy policy) {
    return BlockDiagonal::from_sections(shape, {fit.blocks, factors}, sections, policy);
  }
};

/// More blocks than a matrix has rows or columns are cut to it, and a rank above what the shape has.
index_t cut_blocks(index_t blocks, MatrixShape shape) {
  return std::max<index_t>(1, std::min({blocks, shape.rows, shape.cols}));
}
index_t cut_rank(index_t rank, index_t most) { return std::max<index_t>(1, std::min(rank, most)); }

struct LowRankForm : NoTables {
  static std::string name(const Fit& fit) { return fmt::format("lowrank-r{}", fit.rank); }
  static index_t rank(MatrixShape shape, const Fit& fit) {
    return cut_rank(fit.rank, std::min(shape.rows, shape.cols));
  }
  static std::vector<Part> parts(MatrixShape shape, const Fit& fit, const std::shared_ptr<const Codec>& values) {
    const index_t r = rank(shape, fit);
    return {{"left", {shape.rows, r}, values}, {"right", {r, shape.cols}, values}};
  }
  template <class Put, class Table>
  static void fit(MatrixView<const float> w, const Fit& fit, const EncodeOptions& options,
                  const std::vector<Part>& parts, const Put& put, const Table&) {
    LowRankOptions how;
    how.svd.execution = options.execution;
    if (fit.whiten) {
      how.scale = ScaleMode::cholesky;
      how.gram = options.gram;
    }
    LowRankFactors<float> f = low_rank_fit<float>(w, parts[0].shape.cols, how);
    if (fit.refine) f = low_rank_refine<float>(w, std::move(f), options.gram, 10, options.execution);
    put(view(std::as_const(f.left)), parts[0]);
    put(view(std::as_const(f.right)), parts[1]);
  }
  static LowRank open(MatrixShape shape, const Fit& fit, const FactorFormat& factors, std::span<const Section> sections,
                      PackPolicy policy) {
    return LowRank::from_sections(shape, {rank(shape, fit), factors}, sections, policy);
  }
};

struct MonarchForm : NoTables {
  static std::string name(const Fit& fit) { return fmt::format("monarch-b{}-r{}", fit.blocks, fit.rank); }
  static Monarch::Parameters parameters(MatrixShape shape, const Fit& fit, const FactorFormat& factors) {
    const index_t b = cut_blocks(fit.blocks, shape);
    const index_t most = std::min(ceil_div(shape.rows, b), ceil_div(shape.cols, b));
    return {b, b, cut_rank(fit.rank / fit.blocks, most), OutputOrder::blocked, factors};
  }
  static std::vector<Part> parts(MatrixShape shape, const Fit& fit, const std::shared_ptr<const Codec>& values) {
    const Monarch::Parameters p = parameters(shape, fit, {});
    return {{"first", Monarch::first_shape(shape, p), values}, {"second", Monarch::second_shape(shape, p), values}};
  }
  template <class Put, class Table>
  static void fit(MatrixView<const float> w, const Fit& fit, const EncodeOptions& options,
                  const std::vector<Part>& parts, const Put& put, const Table&) {
    const Monarch::Parameters p = parameters(w.shape(), fit, {});
    MonarchOptions how;
    how.in_blocks = p.in_blocks;
    how.out_blocks = p.out_blocks;
    how.rank = p.rank;
    how.gram = fit.whiten ? options.gram : nullptr;
    how.svd.execution = options.execution;
    MonarchFactors<float> f = monarch_project<float>(w, how);
    if (fit.refine) f = monarch_refine<float>(w, std::move(f), *options.gram, 10, options.execution).factors;
    put(view(std::as_const(f.first)), parts[0]);
    const RowMajorMatrix<float> second = f.second.topRows(w.rows());  // without the padding
    put(view(second), parts[1]);
  }
  static Monarch open(MatrixShape shape, const Fit& fit, const FactorFormat& factors, std::span<const Section> sections,
                      PackPolicy policy) {
    return Monarch::from_sections(shape, parameters(shape, fit, factors), sections, policy);
  }
};

struct BlastForm : NoTables {
  static std::string name(const Fit& fit) { return fmt::format("blast-b{}-r{}", fit.blocks, fit.rank); }
  static Blast::Parameters parameters(MatrixShape shape, const Fit& fit, const FactorFormat& factors) {
    const index_t b = cut_blocks(fit.blocks, shape);
    return {b, cut_rank(fit.rank, b * std::min(ceil_div(shape.rows, b), ceil_div(shape.cols, b))), factors};
  }
  static std::vector<Part> parts(MatrixShape shape, const Fit& fit, const std::shared_ptr<const Codec>& values) {
    const Blast::Parameters p = parameters(shape, fit, {});
    const auto coupling = values->format() == "f32" ? values : bf16_codec();
    return {{"left", Blast::left_shape(shape, p), values},
            {"right", Blast::right_shape(shape, p), values},
            {"coupling", Blast::coupling_shape(p), coupling}};
  }
  template <class Put, class Table>
  static void fit(MatrixView<const float> w, const Fit& fit, const EncodeOptions& options,
                  const std::vector<Part>& parts, const Put& put, const Table&) {
    const Blast::Parameters p = parameters(w.shape(), fit, {});
    BlastOptions how;
    how.blocks = p.blocks;
    how.rank = p.rank;
    how.execution = options.execution;
    if (p.rank >= kLargeBlast) how.coupling_solver = CouplingSolver::conjugate_gradients;
    how.gram = fit.whiten ? options.gram : nullptr;
    BlastFactors<float> f = blast_factorize<float>(w, how).factors;
    if (fit.refine) f = blast_refine<float>(w, f, *options.gram, 50, options.execution).factors;
    const RowMajorMatrix<float> left = f.left.topRows(w.rows());  // without the padding
    put(view(left), parts[0]);
    put(view(std::as_const(f.right)), parts[1]);
    put(view(std::as_const(f.coupling)), parts[2]);
  }
  static Blast open(MatrixShape shape, const Fit& fit, const FactorFormat& factors, std::span<const Section> sections,
                    PackPolicy policy) {
    return Blast::from_sections(shape, parameters(shape, fit, factors), sections, policy);
  }
};

/// As many ranks as `rank` for each row of tiles, given to the tiles where they save most; no dense tiles, so that the
/// size of the stored form follows from the shape.
struct BlockLowRankForm {
  static std::string name(const Fit& fit) { return fmt::format("blr-t{}-r{}", fit.blocks, fit.rank); }
  static MatrixShape grid(MatrixShape shape, const Fit& fit) {
    return {ceil_div(shape.rows, fit.blocks), ceil_div(shape.cols, fit.blocks)};
  }
  static index_t ranks(MatrixShape shape, const Fit& fit) {
    const MatrixShape tiles = grid(shape, fit);
    return std::min(checked_mul(tiles.rows, fit.rank, "blr"), checked_mul(tiles.rows * tiles.cols, fit.blocks, "blr"));
  }
  static std::vector<SectionSize> tables(MatrixShape shape, const Fit& fit) {
    const MatrixShape tiles = grid(shape, fit);
    return {{"ranks", checked_mul(checked_mul(tiles.rows, tiles.cols, "blr"), 4, "blr"), false}};
  }
  static std::vector<Part> parts(MatrixShape shape, const Fit& fit, const std::shared_ptr<const Codec>& values) {
    const index_t all = ranks(shape, fit);
    return {
        {"left", {all, fit.blocks}, values}, {"right", {all, fit.blocks}, values}, {"tiles", {0, fit.blocks}, values}};
  }
  template <class Put, class Table>
  static void fit(MatrixView<const float> w, const Fit& fit, const EncodeOptions& options,
                  const std::vector<Part>& parts, const Put& put, const Table& put_table) {
    const MatrixShape tiles = grid(w.shape(), fit);
    const index_t all = ranks(w.shape(), fit), side = fit.blocks;
    BlockLowRankOptions how;
    how.tile_rows = how.tile_cols = side;
    how.rank_multiple = 1;
    how.max_rank = std::max<index_t>(1, side / 2);  // above it, dense is smaller
    how.execution = options.execution;
    const BlockLowRankFactors<float> f = block_low_rank_fit_budget<float>(w, all * 2 * side, how);
    // Ranks that short tiles leave over are zeros of tiles that have few.
    std::vector<std::int32_t> table;
    index_t used = 0;
    for (const auto& tile : f.tiles) {
      table.push_back(static_cast<std::int32_t>(std::min(tile.rank(), all - used)));
      used += table.back();
    }
    for (std::size_t t = 0; used < all; t = (t + 1) % table.size()) {
      const index_t more = std::min(all - used, side - table[t]);
      table[t] += static_cast<std::int32_t>(more);
      used += more;
    }
    RowMajorMatrix<float> left = RowMajorMatrix<float>::Zero(all, side), right = left;
    index_t row = 0;
    for (index_t k = 0; k < tiles.rows; ++k)
      for (index_t l = 0; l < tiles.cols; ++l) {
        const auto& tile = f.tile(k, l);
        const index_t rank = table[static_cast<std::size_t>(k * tiles.cols + l)];
        const index_t real = std::min(rank, tile.rank());
        left.block(row, 0, real, tile.left.rows()) = tile.left.leftCols(real).transpose();
        row += rank;
      }
    row = 0;
    for (index_t l = 0; l < tiles.cols; ++l)
      for (index_t k = 0; k < tiles.rows; ++k) {
        const auto& tile = f.tile(k, l);
        const index_t rank = table[static_cast<std::size_t>(k * tiles.cols + l)];
        const index_t real = std::min(rank, tile.rank());
        right.block(row, 0, real, tile.right.cols()) = tile.right.topRows(real);
        row += rank;
      }
    put_table(table);
    put(view(std::as_const(left)), parts[0]);
    put(view(std::as_const(right)), parts[1]);
    put(MatrixView<const float>(nullptr, 0, side), parts[2]);
  }
  static BlockLowRank open(MatrixShape shape, const Fit& fit, const FactorFormat& factors,
                           std::span<const Section> sections, PackPolicy policy) {
    return BlockLowRank::from_sections(shape, {fit.blocks, fit.blocks, factors}, sections, policy);
  }
};

/// Reads `-<key><number>` fields up to the format of the factors, which must be the last field.
template <class Form>
std::shared_ptr<const Codec> make(const Scheme& scheme, const char* keys, const char* form) {
  Fit fit;
  std::size_t field = 0;
  for (const char* key = keys; *key != 0; ++key, ++field) {
    if (field >= scheme.fields.size()) fail_scheme(scheme.text, scheme.format.offset + scheme.format.text.size(), form);
    const SchemeToken& token = scheme.fields[field];
    if (token.key != *key || token.number < 1 || token.number > (index_t{1} << 24))
      fail_scheme(scheme.text, token.offset, form);
    (*key == 'r' ? fit.rank : fit.blocks) = token.number;
  }
  if (field >= scheme.fields.size())
    fail_scheme(scheme.text, scheme.text.size(), fmt::format("the format of the factors is missing; {}", form));
  for (const SchemeToken& algorithm : scheme.algorithms) {
    fit.whiten = fit.whiten || algorithm.text == "whiten";
    fit.refine = fit.refine || algorithm.text == "refine";
  }
  std::shared_ptr<const Codec> values = Registry::standard().codec(scheme.inner(field));
  if (!values->row_wise())
    fail_scheme(scheme.text, scheme.fields[field].offset, "the factors of a structured form need a row-wise format");
  if (std::is_same_v<Form, MonarchForm> && fit.rank % fit.blocks != 0)
    fail_scheme(scheme.text, scheme.fields[1].offset, "the rank of a Monarch form is a multiple of its blocks");
  return std::make_shared<const StructuredCodec<Form>>(std::move(values), fit);
}

}  // namespace

void add_structured_families(Registry& registry) {
  const std::vector<std::string> fits = {"nearest", "whiten", "refine"};
  registry.add(SchemeFamily{"lowrank-r<rank>-<format>",
                            {"lowrank"},
                            {{"lowrank-r32-bf16", "low rank by the truncated SVD, factors in bf16"}},
                            fits,
                            [](const Scheme& scheme) {
                              return make<LowRankForm>(scheme, "r", "lowrank-r<rank>-<format of the factors> needed");
                            }});
  registry.add(SchemeFamily{"blockdiag-b<blocks>-<format>",
                            {"blockdiag"},
                            {{"blockdiag-b4-bf16", "the diagonal blocks alone, in bf16"}},
                            {"nearest"},
                            [](const Scheme& scheme) {
                              return make<BlockDiagonalForm>(scheme, "b",
                                                             "blockdiag-b<blocks>-<format of the blocks> needed");
                            }});
  registry.add(SchemeFamily{
      "monarch-b<blocks>-r<ranks>-<format>",
      {"monarch"},
      {{"monarch-b4-r32-bf16", "Monarch: every block of a rank of its own, 32 in a row of blocks, factors in bf16"}},
      fits,
      [](const Scheme& scheme) {
        return make<MonarchForm>(scheme, "br", "monarch-b<blocks>-r<ranks>-<format of the factors> needed");
      }});
  registry.add(SchemeFamily{"blast-b<blocks>-r<rank>-<format>",
                            {"blast"},
                            {{"blast-b4-r30-bf16", "BLAST: blocks that share factors, coupled by diagonals, in bf16"},
                             {"blast-b4-r30-mxfp8-e4m3", "BLAST with factors in MXFP8, the coupling in bf16"}},
                            fits,
                            [](const Scheme& scheme) {
                              return make<BlastForm>(scheme, "br",
                                                     "blast-b<blocks>-r<rank>-<format of the factors> needed");
                            }});
  registry.add(SchemeFamily{
      "blr-t<tile>-r<ranks>-<format>",
      {"blr"},
      {{"blr-t64-r32-bf16", "block low rank: tiles of ranks of their own, 32 in a row of tiles on average, in bf16"}},
      {"nearest"},
      [](const Scheme& scheme) {
        return make<BlockLowRankForm>(scheme, "tr", "blr-t<tile>-r<ranks>-<format of the factors> needed");
      }});
}

}  // namespace blockpack::recipe_detail
