// SPDX-License-Identifier: Apache-2.0
#include "blockpack/recipe/codec.hpp"

#include <fmt/format.h>

#include <array>

#include "blockpack/recipe/rounding_codec.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

void detail::require_calibration(const Codec& codec, const EncodeOptions& options) {
  const CalibrationNeeds needs = codec.needs();
  if (needs.gram && options.gram == nullptr)
    throw ValueError(fmt::format("encode: {} needs XtX of the inputs (EncodeOptions::gram)", codec.scheme()));
  if (needs.importance && options.importance.data() == nullptr)
    throw ValueError(fmt::format("encode: {} needs the importance of the weights", codec.scheme()));
  if (needs.inputs && options.inputs.empty())
    throw ValueError(fmt::format("encode: {} needs inputs of the layer (EncodeOptions::inputs)", codec.scheme()));
}

AnyLinear encode_matrix(const Codec& codec, MatrixView<const float> w, const EncodeOptions& options,
                        PackPolicy policy) {
  std::vector<AlignedBuffer<std::byte>> stored;
  std::vector<std::byte*> dst;
  const std::vector<SectionSize> sizes = codec.sections(w.shape());
  for (const SectionSize& size : sizes) {
    stored.emplace_back(size.bytes);
    dst.push_back(stored.back().data());
  }
  codec.encode(w, 0, dst, options);
  std::vector<Section> sections;
  for (std::size_t s = 0; s < sizes.size(); ++s) sections.push_back({sizes[s].name, SharedBytes(std::move(stored[s]))});
  return codec.open(w.shape(), sections, policy);
}

namespace {
constexpr std::array<const char*, 5> kStarts = {"nearest", "gptq", "flexround", "discquant", "awq"};  // as Start
}

RoundingSteps RoundingSteps::read(const Scheme& scheme, bool weighs) {
  RoundingSteps steps;
  const SchemeToken* start = nullptr;
  for (const SchemeToken& algorithm : scheme.algorithms) {
    if (algorithm.text == "importance") {
      steps.importance = true;
      if (!weighs)
        fail_scheme(scheme.text, algorithm.offset,
                    "this form fits nothing that importance could weight (mx…-mse, int…-search and nvfp4-4over6 do)");
    } else if (algorithm.text == "polish") {
      steps.polish = true;
    } else {
      if (start != nullptr)
        fail_scheme(scheme.text, algorithm.offset,
                    fmt::format("'{}' cannot stand beside '{}'", algorithm.text, start->text));
      start = &algorithm;
      for (std::size_t s = 0; s < kStarts.size(); ++s)
        if (algorithm.text == kStarts[s]) steps.start = static_cast<Start>(s);
    }
  }
  return steps;
}

std::string RoundingSteps::suffix() const {
  return std::string(importance ? "+importance" : "") +
         (start == Start::nearest ? "" : std::string("+") + kStarts[static_cast<std::size_t>(start)]) +
         (polish ? "+polish" : "");
}

index_t RoundingSteps::working_bytes(MatrixShape shape) const {
  const index_t side = std::max(shape.rows, shape.cols);
  checked_mul(checked_mul(side, side, "working_bytes"), 64 * index_t{sizeof(float)}, "working_bytes");  // all below
  const index_t weights = shape.rows * shape.cols, gram = shape.cols * shape.cols;
  const index_t panel = std::min<index_t>(512, shape.rows) * shape.cols;  // of rows that are done at once
  const index_t gradients = 2 * gram + 3 * panel;  // H and H packed; differences, their products, packed differences
  const index_t descent = polish ? gradients : 0;
  index_t floats = 0;
  switch (start) {
    case Start::nearest:
      floats = descent;
      break;
    case Start::gptq:  // H and its factor, then errors beside the factor, and half of what is multiplied, packed
      floats = std::max(gram + std::max(gram, weights) + side * shape.cols / 2, descent);
      break;
    case Start::flexround:  // divisors, their moments
      floats = gradients + 3 * panel;
      break;
    case Start::discquant:  // neighbours, x, gradients, moments; the weights of a step, their difference
      floats = 8 * weights + 2 * gram + std::min<index_t>(2048, shape.rows) * shape.cols;
      break;
    case Start::awq:  // H of the scaled problem in double, twice: whole and a half
      floats = 2 * weights + gradients + (polish ? 3 * gram : 0);
      break;
  }
  return floats * index_t{sizeof(float)};
}

void RoundingSteps::choose(MatrixView<const float> w, const EncodeOptions& options, WeightGrids& grids,
                           MatrixView<float> q) const {
  const auto choose_start = [&](const Execution& how) {
    switch (start) {
      case Start::nearest:
        nearest(w, grids, q, how);
        break;
      case Start::gptq:
        gptq(w, *options.gram, grids, q, {}, how);
        break;
      case Start::flexround:
        flexround(w, *options.gram, grids, q, {}, how);
        break;
      case Start::awq:  // changes the weights themselves: AwqCodec
        throw UnsupportedError("RoundingSteps::choose: awq chooses scales of the inputs, no values of given grids");
      case Start::discquant:
        discquant(w, *options.gram, grids, q, layer_form_options(), how);
        break;
    }
  };
  if (polish)
    detail::start_and_descend(w, *options.gram, grids, q, {}, options.execution, choose_start);
  else
    choose_start(options.execution);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
