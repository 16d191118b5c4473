// SPDX-License-Identifier: Apache-2.0
/// hadamard-b<block>-<format>: a format, with its algorithms, behind a block Hadamard rotation of the input features.

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "blockpack/core/calibration.hpp"
#include "blockpack/quant/input_transforms.hpp"
#include "recipe/families.hpp"

namespace blockpack::recipe_detail {
namespace {

/// The operator, which knows its scheme.
class Rotated : public Compose<AnyLinear, BlockHadamard> {
 public:
  Rotated(AnyLinear values, const BlockHadamard& rotation)
      : Compose(std::move(values), rotation), scheme_(rotation.scheme() + "-" + outer().scheme()) {}
  std::string scheme() const { return scheme_; }

 private:
  std::string scheme_;
};

/// Sections are those of the inner format under "outer.", as Compose has them; the rotation stores nothing. What the
/// inner format is given is rotated with the weights: inputs X R, XᵀX as R XᵀX R, the importance as its diagonal.
class HadamardCodec final : public Codec {
 public:
  HadamardCodec(std::shared_ptr<const Codec> values, index_t block) : values_(std::move(values)), block_(block) {}

  std::string scheme() const override { return fmt::format("hadamard-b{}-{}", block_, values_->scheme()); }
  std::vector<SectionSize> sections(MatrixShape shape) const override {
    std::vector<SectionSize> sizes = values_->sections(shape);
    for (SectionSize& s : sizes) s.name = "outer." + s.name;
    return sizes;
  }
  std::string format() const override { return fmt::format("hadamard-b{}-{}", block_, values_->format()); }
  bool reproducible() const noexcept override { return values_->reproducible(); }
  CalibrationNeeds needs() const noexcept override { return values_->needs(); }
  bool row_wise() const noexcept override { return values_->row_wise(); }
  /// Parameters of the whole matrix are those of the rotated one.
  bool encodes_panels() const noexcept override { return values_->encodes_panels() && !values_->fits_tensor(); }
  index_t working_bytes(MatrixShape shape) const override {
    if (encodes_panels()) return 0;
    index_t bytes = checked_mul(checked_mul(shape.rows, shape.cols, "hadamard"), 4, "hadamard");
    if (needs().gram)  // in double, all of it and its lower half
      bytes =
          checked_add(bytes, checked_mul(checked_mul(shape.cols, shape.cols, "hadamard"), 12, "hadamard"), "hadamard");
    return checked_add(bytes, values_->working_bytes(shape), "hadamard");
  }
  void encode(MatrixView<const float> w, index_t first_row, std::span<std::byte* const> dst,
              const EncodeOptions& options) const override {
    detail::require_calibration(*this, options);
    const MatrixShape bad = find_non_finite(w);
    if (bad.rows >= 0 && options.non_finite != NonFinite::saturate)
      throw ValueError(fmt::format("encode {}: w is not finite at row {}, column {}; only NonFinite::saturate is taken",
                                   scheme(), first_row + bad.rows, bad.cols));
    detail::check_importance("encode " + scheme(), options.importance, w.shape());  // a mean would hide signs
    encode_by_panels(*this, w, first_row, dst, options,
                     [&](MatrixView<const float> panel, index_t row, std::span<std::byte* const> at,
                         const EncodeOptions& how) { encode_rotated(panel, row, at, how); });
  }
  AnyLinear open(MatrixShape shape, std::span<const Section> sections, PackPolicy policy) const override {
    std::vector<Section> inner;
    for (const Section& s : sections) {
      if (!s.name.starts_with("outer."))
        throw FormatError("open " + scheme() + ": section " + s.name + " does not start with outer.");
      inner.push_back({s.name.substr(6), s.data});
    }
    return Rotated(values_->open(shape, inner, policy), BlockHadamard(shape.cols, block_));
  }

 private:
  void encode_rotated(MatrixView<const float> w, index_t first_row, std::span<std::byte* const> dst,
                      const EncodeOptions& options) const {
    constexpr float kLargest = std::numeric_limits<float>::max();
    const BlockHadamard rotation(w.cols(), block_);
    auto memory = AlignedBuffer<float>::uninitialized(checked_mul(w.rows(), w.cols(), "hadamard"));
    const MatrixView<float> rotated(memory.data(), w.rows(), w.cols());
    parallel_for(options.execution, w.rows(), [&](index_t r) {
      for (index_t j = 0; j < w.cols(); ++j)
        rotated(r, j) = w(r, j) != w(r, j) ? 0.0f : std::clamp(w(r, j), -kLargest, kLargest);
      rotation.rotate(rotated.row(r));
    });
    EncodeOptions inner = options;
    AlignedBuffer<float> importance;
    if (options.importance.data() != nullptr) {
      importance = average_importance(options.importance);
      inner.importance = {importance.data(), options.importance.rows(), w.cols()};
    }
    GramMatrix gram;
    if (needs().gram) {
      gram = rotated_gram(*options.gram, rotation, w.cols());
      inner.gram = &gram;
    }
    AlignedBuffer<float> inputs;
    if (needs().inputs) {
      inputs =
          AlignedBuffer<float>::uninitialized(checked_mul(options.inputs.rows(), options.inputs.cols(), "hadamard"));
      const MatrixView<float> x(inputs.data(), options.inputs.rows(), options.inputs.cols());
      for (index_t t = 0; t < x.rows(); ++t) std::copy_n(options.inputs.row_data(t), x.cols(), x.row_data(t));
      rotation.rotate_rows(x, options.execution);
      inner.inputs = x;
    }
    fitted(values_, rotated, inner)->encode(rotated, first_row, dst, inner);
  }
  /// R H R.
  static GramMatrix rotated_gram(const GramMatrix& h, const BlockHadamard& rotation, index_t n) {
    if (h.in_features() != n)
      throw ShapeError(fmt::format("hadamard: XtX has {} features, w has {} columns", h.in_features(), n));
    AlignedBuffer<double> memory(checked_mul(n, n, "hadamard"));
    const MatrixView<double> values(memory.data(), n, n);
    h.copy_to(values);
    for (int side = 0; side < 2; ++side) {
      for (index_t i = 0; i < n; ++i) rotation.rotate(values.row(i));
      for (index_t i = 0; i < n; ++i)
        for (index_t j = 0; j < i; ++j) std::swap(values(i, j), values(j, i));
    }
    for (index_t i = 0; i < n; ++i) values(i, i) = std::max(values(i, i), 0.0);
    return GramMatrix::from_values(MatrixView<const double>(values), h.rows());
  }

  /// Importance of the rotated features: diag(R diag(i) R) is the mean of i over each block.
  AlignedBuffer<float> average_importance(MatrixView<const float> importance) const {
    AlignedBuffer<float> result(checked_mul(importance.rows(), importance.cols(), "hadamard"));
    for (index_t r = 0; r < importance.rows(); ++r) {
      index_t size = block_;
      for (index_t at = 0; at < importance.cols(); at += size) {
        while (size > importance.cols() - at) size /= 2;
        double sum = 0.0;
        for (index_t j = at; j < at + size; ++j) sum += static_cast<double>(importance(r, j));
        std::fill_n(result.data() + r * importance.cols() + at, size,
                    static_cast<float>(sum / static_cast<double>(size)));
      }
    }
    return result;
  }

  std::shared_ptr<const Codec> values_;
  index_t block_;
};

std::shared_ptr<const Codec> make_hadamard(const Scheme& scheme) {
  constexpr const char* kForm = "hadamard-b<power of two from 2 to 4096>-<format> needed";
  if (scheme.fields.size() < 2) fail_scheme(scheme.text, scheme.format.offset + scheme.format.text.size(), kForm);
  const SchemeToken& block = scheme.fields[0];
  if (block.key != 'b' || block.number < 2 || block.number > 4096 || (block.number & (block.number - 1)) != 0)
    fail_scheme(scheme.text, block.offset, kForm);
  Scheme inner = scheme.inner(1);
  inner.algorithms = scheme.algorithms;
  std::shared_ptr<const Codec> values = Registry::standard().codec(inner);
  return std::make_shared<const HadamardCodec>(std::move(values), block.number);
}

}  // namespace

void add_hadamard_family(Registry& registry) {
  registry.add(
      SchemeFamily{"hadamard-b<power of two>-<format>",
                   {"hadamard"},
                   {{"hadamard-b32-mxfp4", "mxfp4 behind a Hadamard rotation of 32 features"},
                    {"hadamard-b64-int4-g64", "int4-g64 behind a Hadamard rotation of 64 features"},
                    {"hadamard-b16-nvfp4", "nvfp4 behind a Hadamard rotation of 16 features"}},
                   {"nearest", "importance", "gptq", "flexround", "discquant", "awq", "whiten", "refine", "polish"},
                   make_hadamard});
}

}  // namespace blockpack::recipe_detail
