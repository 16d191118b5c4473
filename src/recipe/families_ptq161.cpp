// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <memory>

#include "blockpack/quant/ptq161.hpp"
#include "blockpack/recipe/rounding_codec.hpp"
#include "recipe/families.hpp"

namespace blockpack::recipe_detail {
namespace {

/// PTQ1.61 takes a whole matrix: its mask and its factors are those of columns.
class Ptq161Codec final : public Codec {
 public:
  explicit Ptq161Codec(bool importance) : importance_(importance) {}

  std::string scheme() const override { return importance_ ? "ptq1.61+importance" : "ptq1.61"; }
  std::string format() const override { return "ptq1.61"; }
  CalibrationNeeds needs() const noexcept override { return {false, importance_}; }
  std::vector<SectionSize> sections(MatrixShape shape) const override {
    std::vector<SectionSize> sizes;
    for (const auto& [name, bytes] : Ptq161Matrix::section_sizes(shape)) sizes.push_back({name, bytes, false});
    return sizes;
  }
  bool row_wise() const noexcept override { return false; }
  index_t working_bytes(MatrixShape shape) const override {
    index_t bytes = 2 * checked_mul(shape.rows, shape.cols, "ptq1.61");  // signs, and a little for rows and columns
    for (const SectionSize& s : sections(shape)) bytes = checked_add(bytes, s.bytes, "ptq1.61");
    return bytes;
  }
  /// The salient channels are those of largest importance where it is given ([1, in], or the sum over rows), otherwise
  /// those of largest weight. No fit: it needs the inputs of the layer (ptq161_optimise).
  void encode(MatrixView<const float> w, index_t, std::span<std::byte* const> dst,
              const EncodeOptions& options) const override {
    detail::require_calibration(*this, options);
    std::vector<float> statistic(static_cast<std::size_t>(w.cols()), 0.0f);
    const MatrixView<const float>& importance = options.importance;
    const bool given = importance.data() != nullptr;
    detail::check_importance("encode ptq1.61", importance, w.shape());
    for (index_t r = 0; r < importance.rows(); ++r)
      for (std::size_t c = 0; c < statistic.size(); ++c) statistic[c] += importance.row(r)[c];
    for (index_t r = 0; r < (given ? 0 : w.rows()); ++r)
      for (std::size_t c = 0; c < statistic.size(); ++c)
        statistic[c] = std::max(statistic[c], std::fabs(w.row(r)[c]));  // a NaN does not count
    const Ptq161Matrix op = Ptq161Matrix::encode(w, statistic, options);
    const std::vector<Section> stored = op.sections();
    for (std::size_t s = 0; s < stored.size(); ++s)
      std::copy(stored[s].data.bytes.begin(), stored[s].data.bytes.end(), dst[s]);
  }
  AnyLinear open(MatrixShape shape, std::span<const Section> sections, PackPolicy) const override {
    return Ptq161Matrix::from_sections(shape, {}, sections);
  }

 private:
  bool importance_;
};

}  // namespace

void add_ptq161_family(Registry& registry) {
  registry.add(SchemeFamily{"ptq1.61",
                            {"ptq1.61"},
                            {{"ptq1.61", "one channel in five in 4 bits, the others in one; 1.617 bits at 4096x4096"}},
                            {"nearest", "importance"},
                            [](const Scheme& scheme) -> std::shared_ptr<const Codec> {
                              SchemeFields(scheme).finish("");
                              return std::make_shared<const Ptq161Codec>(RoundingSteps::read(scheme, true).importance);
                            }});
}

}  // namespace blockpack::recipe_detail
