// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "blockpack/quant/ptq161.hpp"
#include "blockpack/recipe/rounding_codec.hpp"
#include "recipe/families.hpp"

namespace blockpack::recipe_detail {
namespace {

/// What `+refine` does: the exact alternations, then AdamW on the whole loss.
constexpr Ptq161Options kRefine{.alternations = 2, .steps = 100};

/// PTQ1.61 takes a whole matrix: its mask and its factors are those of columns.
class Ptq161Codec final : public Codec {
 public:
  Ptq161Codec(bool importance, bool refine) : importance_(importance), refine_(refine) {}

  std::string scheme() const override {
    return std::string("ptq1.61") + (importance_ ? "+importance" : "") + (refine_ ? "+refine" : "");
  }
  std::string format() const override { return "ptq1.61"; }
  bool reproducible() const noexcept override { return !refine_; }
  CalibrationNeeds needs() const noexcept override { return {.importance = importance_, .inputs = refine_}; }
  std::vector<SectionSize> sections(MatrixShape shape) const override {
    std::vector<SectionSize> sizes;
    for (const auto& [name, bytes] : Ptq161Matrix::section_sizes(shape)) sizes.push_back({name, bytes, false});
    return sizes;
  }
  bool row_wise() const noexcept override { return false; }
  /// Signs, and a little for rows and columns; a fit has the matrices of ptq161_optimise, those of the tokens aside.
  index_t working_bytes(MatrixShape shape) const override {
    const index_t weights = checked_mul(shape.rows, shape.cols, "ptq1.61");
    index_t bytes = 2 * weights;
    if (refine_)
      bytes = checked_add(checked_mul(weights, 20, "ptq1.61"),
                          checked_mul(checked_mul(shape.cols, shape.cols, "ptq1.61"), 12, "ptq1.61"), "ptq1.61");
    for (const SectionSize& s : sections(shape)) bytes = checked_add(bytes, s.bytes, "ptq1.61");
    return bytes;
  }
  /// The salient channels are those of largest importance where it is given ([1, in], or the sum over rows), otherwise
  /// those of the largest magnitude of the inputs that are fitted to, or of the weights.
  void encode(MatrixView<const float> given, index_t, std::span<std::byte* const> dst,
              const EncodeOptions& options) const override {
    detail::require_calibration(*this, options);
    detail::check_importance("encode ptq1.61", options.importance, given.shape());
    const std::vector<float> statistic = channel_statistic(given, options);
    std::vector<Section> stored;
    if (refine_) {
      const detail::RoundedWeights rounded(given, options.non_finite, scheme());
      Ptq161Layer layer = ptq161_start(rounded.view(), statistic);
      ptq161_optimise(rounded.view(), options.inputs, layer, kRefine, options.execution);
      stored = Ptq161Matrix::encode(rounded.view(), layer, options).sections();
    } else {
      stored = Ptq161Matrix::encode(given, statistic, options).sections();
    }
    for (std::size_t s = 0; s < stored.size(); ++s)
      std::copy(stored[s].data.bytes.begin(), stored[s].data.bytes.end(), dst[s]);
  }
  AnyLinear open(MatrixShape shape, std::span<const Section> sections, PackPolicy) const override {
    return Ptq161Matrix::from_sections(shape, {}, sections);
  }

 private:
  std::vector<float> channel_statistic(MatrixView<const float> w, const EncodeOptions& options) const {
    std::vector<float> statistic(static_cast<std::size_t>(w.cols()), 0.0f);
    if (options.importance.data() != nullptr) {
      for (index_t r = 0; r < options.importance.rows(); ++r)
        for (std::size_t c = 0; c < statistic.size(); ++c) statistic[c] += options.importance.row(r)[c];
      return statistic;
    }
    const MatrixView<const float> from = refine_ ? options.inputs : w;
    if (from.cols() != w.cols())
      throw ShapeError(fmt::format("encode {}: inputs have {} features, {} needed", scheme(), from.cols(), w.cols()));
    for (index_t r = 0; r < from.rows(); ++r)
      for (std::size_t c = 0; c < statistic.size(); ++c)
        statistic[c] = std::max(statistic[c], std::fabs(from.row(r)[c]));  // a NaN does not count
    return statistic;
  }

  bool importance_, refine_;
};

}  // namespace

void add_ptq161_family(Registry& registry) {
  registry.add(SchemeFamily{"ptq1.61",
                            {"ptq1.61"},
                            {{"ptq1.61", "one channel in five in 4 bits, the others in one; 1.617 bits at 4096x4096"}},
                            {"nearest", "importance", "refine"},
                            [](const Scheme& scheme) -> std::shared_ptr<const Codec> {
                              SchemeFields(scheme).finish("");
                              const auto has = [&](std::string_view name) {
                                return std::any_of(scheme.algorithms.begin(), scheme.algorithms.end(),
                                                   [&](const SchemeToken& a) { return a.text == name; });
                              };
                              return std::make_shared<const Ptq161Codec>(has("importance"), has("refine"));
                            }});
}

}  // namespace blockpack::recipe_detail
