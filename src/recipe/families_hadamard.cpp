// SPDX-License-Identifier: Apache-2.0
/// hadamard-b<block>-<format>: a format behind a block Hadamard rotation of the input features.

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

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

/// Sections are those of the inner format under "outer.", as Compose has them; the rotation stores nothing.
class HadamardCodec final : public Codec {
 public:
  HadamardCodec(std::shared_ptr<const Codec> values, index_t block) : values_(std::move(values)), block_(block) {}

  std::string scheme() const override { return fmt::format("hadamard-b{}-{}", block_, values_->scheme()); }
  std::vector<SectionSize> sections(MatrixShape shape) const override {
    std::vector<SectionSize> sizes = values_->sections(shape);
    for (SectionSize& s : sizes) s.name = "outer." + s.name;
    return sizes;
  }
  bool row_wise() const noexcept override { return values_->row_wise(); }
  index_t working_bytes(MatrixShape shape) const override {
    return checked_add(
        values_->working_bytes(shape),
        values_->row_wise() ? 0 : checked_mul(checked_mul(shape.rows, shape.cols, "hadamard"), 4, "hadamard"),
        "hadamard");
  }
  void encode(MatrixView<const float> w, index_t first_row, std::span<std::byte* const> dst,
              const EncodeOptions& options) const override {
    const MatrixShape bad = find_non_finite(w);
    if (bad.rows >= 0 && options.non_finite != NonFinite::saturate)
      throw ValueError(fmt::format("encode {}: w is not finite at row {}, column {}; only NonFinite::saturate is taken",
                                   scheme(), first_row + bad.rows, bad.cols));
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
    detail::check_importance("encode " + scheme(), options.importance, w.shape());  // a mean would hide signs
    if (options.importance.data() != nullptr) {
      importance = average_importance(options.importance);
      inner.importance = {importance.data(), options.importance.rows(), w.cols()};
    }
    values_->encode(rotated, first_row, dst, inner);
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
  std::shared_ptr<const Codec> values = Registry::standard().codec(scheme.inner(1));
  if (values->fits_tensor())  // its parameters would be those of the matrix before the rotation
    fail_scheme(scheme.text, scheme.fields[1].offset, "a format without parameters of the whole matrix is needed here");
  return std::make_shared<const HadamardCodec>(std::move(values), block.number);
}

}  // namespace

void add_hadamard_family(Registry& registry) {
  registry.add(SchemeFamily{"hadamard-b<power of two>-<format>",
                            {"hadamard"},
                            {{"hadamard-b32-mxfp4", "mxfp4 behind a Hadamard rotation of 32 features"},
                             {"hadamard-b64-int4-g64", "int4-g64 behind a Hadamard rotation of 64 features"}},
                            {"nearest"},
                            make_hadamard});
}

}  // namespace blockpack::recipe_detail
