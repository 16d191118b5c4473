// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Codecs that choose codes by an algorithm of quant/rounding.hpp: what `+gptq`, `+polish` … behind a format mean.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/quant/awq.hpp"
#include "blockpack/quant/rounding.hpp"
#include "blockpack/recipe/codec.hpp"
#include "blockpack/recipe/scheme.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// The rounding part of a scheme: how the values of fitted grids are chosen, one step after another.
struct RoundingSteps {
  enum class Start : std::uint8_t { nearest, gptq, flexround, discquant, awq };
  bool importance = false;  ///< fits weight errors by EncodeOptions::importance
  Start start = Start::nearest;
  bool polish = false;  ///< coordinate descent on what the start has chosen

  /// From the algorithms of a scheme. FormatError that points at the second of two starts, or at `+importance` when
  /// the format's fit does not weigh errors.
  BLOCKPACK_API static RoundingSteps read(const Scheme& scheme, bool weighs);

  bool needs_gram() const noexcept { return start != Start::nearest || polish; }
  /// `+importance+gptq+polish`, as far as it applies; the one order.
  BLOCKPACK_API std::string suffix() const;

  /// Fits the grids to w and writes the chosen values to q. Errors: those of the algorithms.
  BLOCKPACK_API void choose(MatrixView<const float> w, const EncodeOptions& options, WeightGrids& grids,
                            MatrixView<float> q) const;
  /// Memory of the algorithms, beside w, H, the grids and q; AWQ with its scaled weights, and what it rounds them to.
  /// What the engine has on the way for each thread, a few MiB, is not counted.
  BLOCKPACK_API index_t working_bytes(MatrixShape shape) const;
};

namespace detail {
/// Memory of FormatGrids<F>, and of the table GPTQ makes of it.
template <GridFormat F>
index_t grid_bytes(const F& format, MatrixShape shape) {
  const index_t groups = ceil_div(shape.cols, GridTraits<F>::group_size(format, shape.cols));
  return checked_mul(checked_mul(shape.rows, groups, "grid_bytes"),
                     index_t{sizeof(typename GridTraits<F>::Parameters) + 4 * sizeof(float)}, "grid_bytes");
}

/// The weights an algorithm is given: w, or under `saturate` a copy in which NaN is 0 and infinity ±65504, the largest
/// fp16. (The largest float, which a format by itself takes, would make sums over H infinite.) UnsupportedError for
/// `propagate`; the algorithms refuse what is not finite under `reject`.
class RoundedWeights {
 public:
  RoundedWeights(MatrixView<const float> w, NonFinite non_finite, const std::string& scheme) : weights_(w) {
    if (non_finite == NonFinite::propagate)
      throw UnsupportedError("encode " + scheme + ": it cannot store NaN, `propagate` is refused");
    if (non_finite != NonFinite::saturate || find_non_finite(w).rows < 0) return;
    copy_ = AlignedBuffer<float>::uninitialized(checked_mul(w.rows(), w.cols(), "encode"));
    const MatrixView<float> copy(copy_.data(), w.rows(), w.cols());
    for (index_t r = 0; r < w.rows(); ++r)
      for (index_t c = 0; c < w.cols(); ++c) {
        const float v = w(r, c);
        copy(r, c) = std::isfinite(v) ? v : (v != v ? 0.0f : std::copysign(65504.0f, v));
      }
    weights_ = copy;
  }
  MatrixView<const float> view() const noexcept { return weights_; }

 private:
  AlignedBuffer<float> copy_;
  MatrixView<const float> weights_;
};
}  // namespace detail

/// What SchemeFamily::algorithms lists for a format: all of them for one with grids.
template <RowFormat F>
std::vector<std::string> rounding_algorithms() {
  if constexpr (GridFormat<F>) return {"nearest", "importance", "gptq", "flexround", "discquant", "awq", "polish"};
  return {"nearest", "importance"};
}

/// A format whose codes are chosen over whole matrices; the stored form is that of the format.
template <GridFormat F>
class RoundingCodec final : public Codec {
 public:
  RoundingCodec(F format, RoundingSteps steps) : stored_(std::move(format)), steps_(steps) {}

  std::string scheme() const override { return format() + steps_.suffix(); }
  std::string format() const override { return stored_.scheme(); }
  std::vector<SectionSize> sections(MatrixShape shape) const override { return RowCodec<F>(stored_).sections(shape); }
  bool row_wise() const noexcept override { return true; }
  bool fits_tensor() const noexcept override { return RowCodec<F>(stored_).fits_tensor(); }
  std::shared_ptr<const Codec> fitted_to(const TensorStatistics& statistics) const override {
    if constexpr (TensorFormat<F>) return std::make_shared<const RoundingCodec>(stored_.fitted_to(statistics), steps_);
    static_cast<void>(statistics);
    return nullptr;
  }
  bool encodes_panels() const noexcept override { return false; }
  /// The chosen values, the grids and what the algorithms hold; a copy of the weights more where `saturate` has work.
  index_t working_bytes(MatrixShape shape) const override {
    return steps_.working_bytes(shape) + detail::grid_bytes(stored_, shape) + shape.rows * shape.cols * 4;
  }
  CalibrationNeeds needs() const noexcept override {
    return {.gram = steps_.needs_gram(), .importance = steps_.importance};
  }
  void encode(MatrixView<const float> given, index_t /*first_row*/, std::span<std::byte* const> dst,
              const EncodeOptions& options) const override {
    detail::require_calibration(*this, options);
    const detail::RoundedWeights rounded(given, options.non_finite, scheme());
    const MatrixView<const float> w = rounded.view();
    FormatGrids<F> grids(stored_, w.shape(), options);
    auto chosen = AlignedBuffer<float>::uninitialized(checked_mul(w.rows(), w.cols(), "RoundingCodec"));
    const MatrixView<float> q(chosen.data(), w.rows(), w.cols());
    steps_.choose(w, options, grids, q);
    const std::vector<Section> stored = grids.store(q, options.execution, PackPolicy::none()).sections();
    for (std::size_t s = 0; s < stored.size(); ++s)
      if (!stored[s].data.bytes.empty()) std::memcpy(dst[s], stored[s].data.bytes.data(), stored[s].data.bytes.size());
  }
  AnyLinear open(MatrixShape shape, std::span<const Section> sections, PackPolicy policy) const override {
    return RowCodec<F>(stored_).open(shape, sections, policy);
  }

 private:
  F stored_;
  RoundingSteps steps_;
};

/// A format behind AWQ's scales of the input features: the sections of the format under `outer.`, and `inner.scales`.
template <GridFormat F>
class AwqCodec final : public Codec {
 public:
  AwqCodec(F values, RoundingSteps steps) : values_(std::move(values)), steps_(steps) {}

  std::string scheme() const override { return values_.scheme() + steps_.suffix(); }
  std::string format() const override { return values_.scheme() + "+awq"; }
  std::vector<SectionSize> sections(MatrixShape shape) const override {
    std::vector<SectionSize> sizes = RowCodec<F>(values_).sections(shape);
    for (SectionSize& s : sizes) s.name = "outer." + s.name;
    sizes.push_back({"inner.scales", checked_mul(shape.cols, index_t{sizeof(float)}, "sections"), false});
    return sizes;
  }
  bool row_wise() const noexcept override { return true; }
  bool encodes_panels() const noexcept override { return false; }
  index_t working_bytes(MatrixShape shape) const override {
    return steps_.working_bytes(shape) + detail::grid_bytes(values_, shape);
  }
  CalibrationNeeds needs() const noexcept override { return {.gram = true, .importance = steps_.importance}; }
  void encode(MatrixView<const float> given, index_t /*first_row*/, std::span<std::byte* const> dst,
              const EncodeOptions& options) const override {
    detail::require_calibration(*this, options);
    const detail::RoundedWeights rounded(given, options.non_finite, scheme());
    const MatrixView<const float> w = rounded.view();
    const DescentOptions descent{steps_.polish ? DescentOptions{}.sweeps : 0};
    const std::vector<Section> stored = round_awq(values_, w, *options.gram, {}, descent, options).matrix.sections();
    for (std::size_t s = 0; s < stored.size(); ++s)
      if (!stored[s].data.bytes.empty()) std::memcpy(dst[s], stored[s].data.bytes.data(), stored[s].data.bytes.size());
  }
  AnyLinear open(MatrixShape shape, std::span<const Section> sections, PackPolicy) const override {
    return ScaledMatrix<F>::from_sections(shape, {shape.cols, values_, {}}, sections);
  }

 private:
  F values_;
  RoundingSteps steps_;
};

/// The codec of a format with the algorithms of a scheme, all of them among rounding_algorithms<F>(). `weighs`: the fit
/// of the format has errors that importance can weight; FormatError that points at `+importance` otherwise.
template <RowFormat F>
std::shared_ptr<const Codec> make_rounding_codec(F format, const Scheme& scheme, bool weighs) {
  const RoundingSteps steps = RoundingSteps::read(scheme, weighs);
  if constexpr (GridFormat<F>) {
    if (steps.start == RoundingSteps::Start::awq) return std::make_shared<const AwqCodec<F>>(std::move(format), steps);
    if (steps.needs_gram()) return std::make_shared<const RoundingCodec<F>>(std::move(format), steps);
  }
  return make_row_codec(std::move(format), steps.importance);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
