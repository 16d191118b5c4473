// SPDX-License-Identifier: Apache-2.0
/// Sparse forms as schemes: N:M, bitmask and block-sparse over the values of any row format, pruned on the way.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "blockpack/recipe/rounding_codec.hpp"
#include "blockpack/sparse/armor_matrix.hpp"
#include "blockpack/sparse/block_sparse.hpp"
#include "blockpack/sparse/n_m.hpp"
#include "blockpack/sparse/prune/mask_search.hpp"
#include "blockpack/sparse/prune/nowag.hpp"
#include "blockpack/sparse/prune/refit.hpp"
#include "blockpack/sparse/prune/sparsegpt.hpp"
#include "blockpack/sparse/prune/wanda.hpp"
#include "recipe/families.hpp"

namespace blockpack::recipe_detail {
namespace {

/// How a mask is found, and what becomes of the weights it keeps.
struct Pruning {
  enum class Start : std::uint8_t { magnitude, wanda, nowag, sparsegpt };
  static constexpr std::array<const char*, 4> kStarts = {"nearest", "wanda", "nowag", "sparsegpt"};
  Start start = Start::magnitude;
  bool search = false;
  bool refit = false;

  /// From the algorithms of a scheme, whose fields before the values are `before`; when neither values nor algorithms
  /// are named, the best there is. FormatError that points at the second of two starts.
  static Pruning read(const Scheme& scheme, std::size_t before, bool exchanges) {
    Pruning p;
    if (scheme.algorithms.empty() && scheme.fields.size() == before) {
      if (!exchanges) p.start = Start::sparsegpt;
      p.search = exchanges;
      p.refit = !exchanges;
    }
    const SchemeToken* start = nullptr;
    for (const SchemeToken& algorithm : scheme.algorithms) {
      if (algorithm.text == "search") {
        p.search = true;
      } else if (algorithm.text == "refit") {
        p.refit = true;
      } else {
        if (start != nullptr)
          fail_scheme(scheme.text, algorithm.offset,
                      fmt::format("'{}' cannot stand beside '{}'", algorithm.text, start->text));
        start = &algorithm;
        p.start = static_cast<Start>(std::find(kStarts.begin(), kStarts.end(), algorithm.text) - kStarts.begin());
      }
    }
    return p;
  }
  std::string suffix() const {
    return (start == Start::magnitude ? "" : std::string("+") + kStarts[static_cast<std::size_t>(start)]) +
           (search ? "+search" : "") + (refit ? "+refit" : "");
  }
  bool needs_gram() const noexcept { return start != Start::magnitude || search || refit; }
  /// Whether a row's weights depend on its own alone.
  bool by_rows() const noexcept { return start <= Start::wanda && !search && !refit; }

  /// The mask of w under a pattern; q becomes the weights it keeps. The scope of the pattern is group, row or block.
  Mask prune(MatrixView<const float> w, const MaskPattern& pattern, const EncodeOptions& options,
             MatrixView<float> q) const {
    const Execution& how = options.execution;
    if (start == Start::sparsegpt) return sparsegpt(w, *options.gram, pattern, q, {}, nullptr, how).mask;
    Criterion criterion;
    if (start == Start::wanda) criterion = wanda(*options.gram);
    if (start == Start::nowag) criterion = nowag<float>(w, options.gram->diagonal());
    for (index_t i = 0; i < w.rows(); ++i) std::copy_n(w.row_data(i), w.cols(), q.row_data(i));
    Mask mask = prune_mask(w, criterion, pattern, how);
    mask.apply(q);
    return mask;
  }
  /// What follows the mask. `of`: of mask_search.
  void finish(MatrixView<const float> w, index_t of, const EncodeOptions& options, Mask& mask,
              MatrixView<float> q) const {
    if (search) mask = mask_search(w, *options.gram, mask, of, q, {}, options.execution).mask;
    if (refit) blockpack::refit(w, *options.gram, mask, q, {}, options.execution);
  }
  /// Beside the matrix: the pruned copy, H and what SparseGPT and the refit keep of either.
  index_t working_bytes(MatrixShape shape) const {
    const index_t side = needs_gram() ? std::max(shape.rows, shape.cols) : shape.rows;
    return checked_mul(checked_mul(side, shape.cols, "working_bytes"), (needs_gram() ? 5 : 1) * index_t{sizeof(float)},
                       "working_bytes");
  }
};

/// What the two kinds of codecs share. `2:4` alone is `2:4-bf16+search`, `bsr32x32` is `bsr32x32-bf16+sparsegpt+refit`.
class PrunedCodec : public Codec {
 public:
  PrunedCodec(std::shared_ptr<const Codec> values, Pruning pruning) : values_(std::move(values)), pruning_(pruning) {}

  std::string scheme() const override { return format() + pruning_.suffix(); }
  bool encodes_panels() const noexcept override { return false; }
  /// Sums of calibrated algorithms run through the engine.
  bool reproducible() const noexcept override { return !pruning_.needs_gram(); }
  CalibrationNeeds needs() const noexcept override { return {.gram = pruning_.needs_gram()}; }
  index_t working_bytes(MatrixShape shape) const override {
    return encodes_panels() ? 0 : pruning_.working_bytes(shape);
  }

 protected:
  const AnyRowFormat& values() const noexcept { return *values_->row_format(); }
  const Pruning& pruning() const noexcept { return pruning_; }

  /// The weights to prune, finite. Errors name rows of the whole matrix.
  detail::RoundedWeights finite(MatrixView<const float> given, index_t first_row, const EncodeOptions& options) const {
    detail::require_calibration(*this, options);
    const MatrixShape bad = options.non_finite == NonFinite::reject ? find_non_finite(given) : MatrixShape{-1, -1};
    if (bad.rows >= 0)
      throw ValueError(fmt::format("encode {}: w is not finite at row {}, column {}; pass NonFinite::saturate to clamp",
                                   scheme(), first_row + bad.rows, bad.cols));
    return {given, options.non_finite, scheme()};
  }

 private:
  std::shared_ptr<const Codec> values_;
  Pruning pruning_;
};

class NmCodec final : public PrunedCodec {
 public:
  NmCodec(NmLayout layout, std::shared_ptr<const Codec> values, Pruning pruning)
      : PrunedCodec(std::move(values), pruning), format_(layout, PrunedCodec::values()) {}

  std::string format() const override { return format_.scheme(); }
  std::vector<SectionSize> sections(MatrixShape shape) const override {
    return RowCodec<NmFormat<AnyRowFormat>>(format_).sections(shape);
  }
  bool row_wise() const noexcept override { return true; }
  bool encodes_panels() const noexcept override { return pruning().by_rows() && !values().fits_tensor(); }
  void encode(MatrixView<const float> given, index_t first_row, std::span<std::byte* const> dst,
              const EncodeOptions& options) const override {
    detail::check_importance("encode " + scheme(), options.importance, given.shape());
    const detail::RoundedWeights rounded = finite(given, first_row, options);
    encode_by_panels(*this, rounded.view(), first_row, dst, options,
                     [&](MatrixView<const float> w, index_t row, std::span<std::byte* const> at,
                         const EncodeOptions& how) { encode_pruned(w, row, at, how); });
  }
  AnyLinear open(MatrixShape shape, std::span<const Section> sections, PackPolicy policy) const override {
    return NmMatrix<AnyRowFormat>::from_sections(shape, format_, sections, policy);
  }

 private:
  void encode_pruned(MatrixView<const float> w, index_t first_row, std::span<std::byte* const> dst,
                     const EncodeOptions& options) const {
    auto memory = AlignedBuffer<float>::uninitialized(checked_mul(w.rows(), w.cols(), "encode"));
    const MatrixView<float> q(memory.data(), w.rows(), w.cols());
    const NmLayout& n_m = format_.layout();
    Mask mask = pruning().prune(w, MaskPattern::nm(n_m.keep, n_m.of, Tail::short_group), options, q);
    pruning().finish(w, n_m.of, options, mask, q);
    EncodeOptions plain;
    plain.importance = options.importance;
    plain.execution = options.execution;
    encode_rows(fitted(format_, q, plain), q, first_row, dst, plain);
  }

  NmFormat<AnyRowFormat> format_;
};

/// Every row of blocks keeps the same number of them, so that sizes do not depend on the weights.
class BlockCodec final : public PrunedCodec {
 public:
  using Op = BlockSparse<AnyRowFormat>;

  BlockCodec(MatrixShape block, index_t sparsity, std::shared_ptr<const Codec> values, Pruning pruning)
      : PrunedCodec(std::move(values), pruning), block_(block), sparsity_(sparsity) {}

  std::string format() const override {
    return (block_ == MatrixShape{1, 1} ? "bitmask" : "bsr" + to_string(block_)) +
           (sparsity_ == kSparsity ? "" : fmt::format("-s{}", sparsity_)) + "-" + values().scheme();
  }
  std::vector<SectionSize> sections(MatrixShape shape) const override {
    const MatrixShape blocks{ceil_div(shape.rows, block_.rows), ceil_div(shape.cols, block_.cols)};
    std::vector<SectionSize> sizes;
    for (const SectionSpec& s :
         detail::value_sections(values().sections(checked_mul(kept_of(blocks.cols), block_.cols, "sections"))))
      sizes.push_back({s.name, section_bytes(s, shape.rows, "sections"), false});
    sizes.push_back({"blocks", checked_mul(blocks.rows, ceil_div(blocks.cols, 8), "sections"), false});
    return sizes;
  }
  bool row_wise() const noexcept override { return false; }
  void encode(MatrixView<const float> given, index_t /*first_row*/, std::span<std::byte* const> dst,
              const EncodeOptions& options) const override {
    const detail::RoundedWeights rounded = finite(given, 0, options);
    const MatrixView<const float> w = rounded.view();
    auto memory = AlignedBuffer<float>::uninitialized(checked_mul(w.rows(), w.cols(), "encode"));
    const MatrixView<float> q(memory.data(), w.rows(), w.cols());
    const MatrixShape cut{std::min(block_.rows, std::max<index_t>(1, w.rows())),
                          std::min(block_.cols, std::max<index_t>(1, w.cols()))};
    const MaskPattern pattern = MaskPattern::blocks(cut, static_cast<double>(100 - sparsity_) / 100.0, true);
    Mask mask = pruning().prune(w, pattern, options, q);
    const Mask kept = balanced(mask.any_of_blocks(block_), q);
    for (index_t i = 0; i < w.rows(); ++i)
      for (index_t j = 0; j < w.cols(); ++j) mask.set(i, j, kept(i / block_.rows, j / block_.cols));
    mask.apply(q);
    pruning().finish(w, 0, options, mask, q);
    EncodeOptions plain;
    plain.importance = options.importance;
    plain.execution = options.execution;
    const std::vector<Section> stored = Op::encode(q, mask.any_of_blocks(block_), block_, values(), plain).sections();
    for (std::size_t s = 0; s < stored.size(); ++s)
      if (!stored[s].data.bytes.empty()) std::memcpy(dst[s], stored[s].data.bytes.data(), stored[s].data.bytes.size());
  }
  AnyLinear open(MatrixShape shape, std::span<const Section> sections, PackPolicy policy) const override {
    return Named<Op>(Op::from_sections(shape, {block_, values()}, sections, policy), format());
  }

  static constexpr index_t kSparsity = 50;

 private:
  index_t kept_of(index_t blocks) const {
    return MaskPattern::rows(static_cast<double>(100 - sparsity_) / 100.0).kept_of(blocks);
  }
  /// As many blocks in every row of blocks: SparseGPT, which decides 128 columns at a time, may be some off. The least
  /// of the kept ones go, the first of the others come, with zeros until a refit.
  Mask balanced(Mask kept, MatrixView<const float> q) const {
    const index_t wanted = kept_of(kept.cols());
    for (index_t b = 0; b < kept.rows(); ++b) {
      for (index_t j = 0, missing = wanted - kept.row_count(b); j < kept.cols() && missing > 0; ++j)
        if (!kept(b, j)) {
          kept.set(b, j);
          --missing;
        }
      for (index_t surplus = kept.row_count(b) - wanted; surplus > 0; --surplus) {
        index_t least = -1;
        double energy = 0;
        for (index_t j = 0; j < kept.cols(); ++j) {
          if (!kept(b, j)) continue;
          double sum = 0;
          for (index_t i = b * block_.rows; i < std::min(q.rows(), (b + 1) * block_.rows); ++i)
            for (index_t c = j * block_.cols; c < std::min(q.cols(), (j + 1) * block_.cols); ++c)
              sum += static_cast<double>(q(i, c)) * static_cast<double>(q(i, c));
          if (least >= 0 && sum >= energy) continue;
          least = j;
          energy = sum;
        }
        kept.set(b, least, false);
      }
    }
    return kept;
  }

  MatrixShape block_;
  index_t sparsity_;
};

/// A (X o M) B with blocks of one size on both sides, in bf16, and the core in any row format.
class ArmorCodec final : public Codec {
 public:
  using Op = ArmorMatrix<AnyRowFormat>;

  ArmorCodec(index_t side, NmLayout layout, std::shared_ptr<const Codec> values, bool weighted)
      : side_(side), values_(std::move(values)), core_(layout, *values_->row_format()), weighted_(weighted) {}

  std::string scheme() const override { return format() + (weighted_ ? "+nowag" : ""); }
  std::string format() const override { return fmt::format("armor-b{}-{}", side_, core_.scheme()); }
  std::vector<SectionSize> sections(MatrixShape shape) const override {
    std::vector<SectionSize> sizes;
    const auto add = [&](const char* prefix, index_t rows, const std::vector<SectionSpec>& specs) {
      for (const SectionSpec& s : specs) sizes.push_back({prefix + s.name, section_bytes(s, rows, "sections"), false});
    };
    add("outer.outer.blocks.", shape.rows, DenseFormat<bf16>{}.sections(block_of(shape.rows)));
    add("outer.inner.", shape.rows, core_.sections(shape.cols));
    add("inner.blocks.", shape.cols, DenseFormat<bf16>{}.sections(block_of(shape.cols)));
    return sizes;
  }
  bool row_wise() const noexcept override { return false; }
  bool reproducible() const noexcept override { return false; }
  CalibrationNeeds needs() const noexcept override { return {.gram = weighted_}; }
  /// The matrices of the fit.
  index_t working_bytes(MatrixShape shape) const override {
    return checked_mul(checked_mul(shape.rows, shape.cols, "working_bytes"), 10 * index_t{sizeof(float)},
                       "working_bytes");
  }
  void encode(MatrixView<const float> given, index_t /*first_row*/, std::span<std::byte* const> dst,
              const EncodeOptions& options) const override {
    detail::require_calibration(*this, options);
    const detail::RoundedWeights rounded(given, options.non_finite, scheme());
    const std::vector<double> h =
        weighted_ ? options.gram->diagonal() : std::vector<double>(static_cast<std::size_t>(given.cols()), 1.0);
    ArmorOptions fit;
    fit.block = {side_, side_};
    fit.keep = core_.layout().keep;
    fit.of = core_.layout().of;
    fit.iterations = kIterations;
    fit.adam.learning_rate = kLearningRate;
    const auto result = armor(rounded.view(), h, fit, options.execution);
    const std::vector<Section> stored =
        make_armor(result.factors, core_, FactorFormat::bf16(), options.execution).sections();
    for (std::size_t s = 0; s < stored.size(); ++s)
      if (!stored[s].data.bytes.empty()) std::memcpy(dst[s], stored[s].data.bytes.data(), stored[s].data.bytes.size());
  }
  AnyLinear open(MatrixShape shape, std::span<const Section> sections, PackPolicy) const override {
    const auto blocks = [&](index_t features) {
      return BlockDiagonal::Parameters{std::max<index_t>(1, ceil_div(features, side_)), FactorFormat::bf16()};
    };
    const Op::Parameters parameters{shape.cols, {shape.rows, blocks(shape.rows), core_}, blocks(shape.cols)};
    return Named<Op>(Op::from_sections(shape, parameters, sections), format());
  }

 private:
  /// In place of the published 20,000 steps of 1e-4; figures with these are in docs/quality_sparse.md.
  static constexpr index_t kIterations = 3000;
  static constexpr double kLearningRate = 1e-3;

  /// Columns of the stacked blocks.
  index_t block_of(index_t features) const {
    return ceil_div(features, std::max<index_t>(1, ceil_div(features, side_)));
  }

  index_t side_;
  std::shared_ptr<const Codec> values_;
  NmFormat<AnyRowFormat> core_;
  bool weighted_;
};

/// The codec of the values: fields[first] and what follows. FormatError when it is missing or no row format; a form
/// whose values and algorithms both go unsaid has bf16.
std::shared_ptr<const Codec> values_of(const Scheme& scheme, std::size_t first) {
  if (scheme.fields.size() <= first && scheme.algorithms.empty()) return Registry::standard().codec("bf16");
  if (scheme.fields.size() <= first)
    fail_scheme(scheme.text, scheme.format.offset + scheme.format.text.size(),
                "the format of the kept weights is missing: -bf16, -int8-g128, -int4-g32 …");
  std::shared_ptr<const Codec> values = Registry::standard().codec(scheme.inner(first));
  if (values->row_format() == nullptr)
    fail_scheme(scheme.text, scheme.fields[first].offset,
                fmt::format("kept weights cannot be stored as {}: a format of rows is needed", values->scheme()));
  return values;
}

/// Of a name that is N:M.
NmLayout layout_of(const std::string& name) { return {std::stol(name), std::stol(name.substr(name.find(':') + 1))}; }

std::shared_ptr<const Codec> make_n_m(const Scheme& scheme) {
  return std::make_shared<const NmCodec>(layout_of(scheme.format.text), values_of(scheme, 0),
                                         Pruning::read(scheme, 0, true));
}

std::vector<std::string> n_m_names() {
  std::vector<std::string> names;
  for (int of = 2; of <= 16; ++of)
    for (int keep = 1; keep <= of; ++keep) names.push_back(fmt::format("{}:{}", keep, of));
  return names;
}

std::shared_ptr<const Codec> make_armor_codec(const Scheme& scheme) {
  constexpr const char* kForm = "armor-b<side of the blocks>-<N>:<M>-<format of the core> needed";
  const std::vector<std::string> names = n_m_names();
  if (scheme.fields.size() < 3) fail_scheme(scheme.text, scheme.format.offset + scheme.format.text.size(), kForm);
  const SchemeToken &block = scheme.fields[0], &core = scheme.fields[1];
  if (std::find(names.begin(), names.end(), core.text) == names.end()) fail_scheme(scheme.text, core.offset, kForm);
  const NmLayout layout = layout_of(core.text);
  const bool weighted = std::any_of(scheme.algorithms.begin(), scheme.algorithms.end(),
                                    [](const SchemeToken& a) { return a.text == "nowag"; });
  if (block.key != 'b' || block.number < 1 || block.number > 4096 || block.number % layout.of != 0)
    fail_scheme(scheme.text, block.offset, fmt::format("blocks are b and a multiple of {} up to 4096", layout.of));
  return std::make_shared<const ArmorCodec>(block.number, layout, values_of(scheme, 2), weighted);
}

std::shared_ptr<const Codec> make_blocks(const Scheme& scheme) {
  const std::string& name = scheme.format.text;
  MatrixShape block{1, 1};
  if (name != "bitmask") block = {std::stol(name.substr(3)), std::stol(name.substr(name.find('x') + 1))};
  index_t sparsity = BlockCodec::kSparsity;
  const bool given = !scheme.fields.empty() && scheme.fields[0].key == 's';
  if (given) {
    sparsity = scheme.fields[0].number;
    if (sparsity < 1 || sparsity > 99)
      fail_scheme(scheme.text, scheme.fields[0].offset + 1, "the share of pruned blocks is 1 to 99 percent");
  }
  const std::size_t before = given ? 1 : 0;
  const Pruning pruning = Pruning::read(scheme, before, block == MatrixShape{1, 1});
  if (pruning.search && block != MatrixShape{1, 1})
    for (const SchemeToken& algorithm : scheme.algorithms)
      if (algorithm.text == "search")
        fail_scheme(scheme.text, algorithm.offset, "blocks cannot be exchanged; N:M and bitmask can");
  return std::make_shared<const BlockCodec>(block, sparsity, values_of(scheme, before), pruning);
}

}  // namespace

void add_sparse_families(Registry& registry) {
  const std::vector<std::string> algorithms = {"nearest", "wanda", "nowag", "sparsegpt", "search", "refit"};
  registry.add(SchemeFamily{"<N>:<M>-<format>",
                            n_m_names(),
                            {{"2:4-bf16", "the two largest of four neighbours in bf16, and their places"},
                             {"4:8-bf16", "four of eight"},
                             {"2:4-int8-g128", "2:4 with kept weights in int8-g128"},
                             {"2:4-int4-g32", "2:4 with kept weights in int4-g32"},
                             {"2:4-mxfp8-e4m3", "2:4 with kept weights in MXFP8"}},
                            algorithms,
                            make_n_m});
  std::vector<std::string> blocks = {"bitmask"};
  constexpr int kSides[] = {1, 2, 4, 8, 16, 32, 64, 128};
  for (const int rows : kSides)
    for (const int cols : kSides)
      if (rows * cols > 1) blocks.push_back(fmt::format("bsr{}x{}", rows, cols));
  registry.add(SchemeFamily{"bitmask or bsr<rows>x<columns>[-s<percent pruned>]-<format>",
                            std::move(blocks),
                            {{"bitmask-bf16", "half of every row in bf16, and a bit for each weight"},
                             {"bsr4x1-s70-int8-row", "three of ten blocks of 4x1, in int8 with a scale for a row"},
                             {"bsr16x32-s80-bf16", "one block of 16x32 in five, in bf16"},
                             {"bsr32x32-bf16", "half of the blocks of 32x32, in bf16"},
                             {"bsr32x32-s80-int8-row", "one block of 32x32 in five, in int8"}},
                            algorithms,
                            make_blocks});
  registry.add(SchemeFamily{"armor-b<side>-<N>:<M>-<format>",
                            {"armor"},
                            {{"armor-b16-2:4-bf16", "ARMOR: a 2:4 core between block-diagonal factors of 16x16, bf16"}},
                            {"nearest", "nowag"},
                            make_armor_codec});
}

}  // namespace blockpack::recipe_detail
