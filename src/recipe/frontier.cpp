// SPDX-License-Identifier: Apache-2.0
#include "blockpack/recipe/frontier.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "blockpack/core/dense.hpp"
#include "recipe/measured_error.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

std::vector<FrontierPoint> scheme_frontier(MatrixView<const float> w, std::span<const std::string> schemes,
                                           const FrontierOptions& options, const Registry& registry) {
  const recipe_detail::MeasuredError measure(w, options.gram, options.execution);
  std::vector<FrontierPoint> points;
  for (const std::string& scheme : schemes) {
    options.execution.throw_if_stopped();
    options.execution.report(static_cast<double>(points.size()) / static_cast<double>(schemes.size()));
    std::shared_ptr<const Codec> codec = registry.codec(scheme);
    if (codec->needs().importance || codec->needs().inputs || (codec->needs().gram && options.gram == nullptr))
      codec = registry.codec(codec->format());
    EncodeOptions encode;
    encode.gram = codec->needs().gram ? options.gram : nullptr;
    encode.execution = options.execution.quiet();
    const AnyLinear op = encode_matrix(*fitted(codec, w, encode), w, encode);
    points.push_back({codec->scheme(), static_cast<index_t>(op.storage_bytes()), measure.relative(op), false});
  }
  std::sort(points.begin(), points.end(), [](const FrontierPoint& a, const FrontierPoint& b) {
    return a.bytes != b.bytes ? a.bytes < b.bytes : a.error < b.error;
  });
  double least = INFINITY;
  for (FrontierPoint& p : points) {
    p.best = p.error < least;
    least = std::min(least, p.error);
  }
  return points;
}

double relative_error(MatrixView<const float> w, const AnyLinear& form, const GramMatrix* gram, const Execution& how) {
  return recipe_detail::MeasuredError(w, gram, how).relative(form);
}

const FrontierPoint* best_within_bytes(std::span<const FrontierPoint> points, index_t bytes) {
  const FrontierPoint* best = nullptr;
  for (const FrontierPoint& p : points)
    if (p.bytes <= bytes && (best == nullptr || p.error < best->error)) best = &p;
  return best;
}

const FrontierPoint* best_within_error(std::span<const FrontierPoint> points, double error) {
  const FrontierPoint* best = nullptr;
  for (const FrontierPoint& p : points)
    if (p.error <= error && (best == nullptr || p.bytes < best->bytes)) best = &p;
  return best;
}

std::vector<MenuEntry> measured_menu(MatrixView<const float> w, std::span<const std::string> schemes,
                                     const FrontierOptions& options, const Registry& registry) {
  std::vector<MenuEntry> menu;
  for (const FrontierPoint& p : scheme_frontier(w, schemes, options, registry))
    if (p.best)
      menu.push_back(
          {p.scheme, 8.0 * static_cast<double>(p.bytes) / static_cast<double>(w.rows() * w.cols()), p.error * p.error});
  return menu;
}

std::vector<std::string> structured_menu(MatrixShape shape, double share, const std::string& factors,
                                         const std::string& algorithms) {
  if (!(share > 0 && share <= 1)) throw ValueError(fmt::format("structured_menu: share = {}, in (0, 1] needed", share));
  constexpr index_t kBlocks = 4;
  std::vector<std::string> menu;
  if (shape.rows < 1 || shape.cols < 1) return menu;
  const double budget = share * static_cast<double>(shape.rows) * static_cast<double>(shape.cols);
  const auto ranks = [&](double cost) { return static_cast<index_t>(budget / cost); };
  const double sides = static_cast<double>(shape.rows + shape.cols);

  if (const index_t r = std::min({ranks(sides), shape.rows, shape.cols}); r >= 1)
    menu.push_back(fmt::format("lowrank-r{}-{}{}", r, factors, algorithms));
  const index_t p = ceil_div(shape.cols, kBlocks), q = ceil_div(shape.rows, kBlocks);
  if (shape.rows >= kBlocks && shape.cols >= kBlocks) {
    const double monarch = static_cast<double>(kBlocks * kBlocks * p + kBlocks * shape.rows);
    if (const index_t r = std::min({ranks(monarch), p, q}); r >= 1)
      menu.push_back(fmt::format("monarch-b{}-r{}-{}{}", kBlocks, r * kBlocks, factors, algorithms));
    const double blast = static_cast<double>(kBlocks * p + shape.rows + kBlocks * kBlocks);
    if (const index_t r = std::min(ranks(blast), kBlocks * std::min(p, q)); r >= 1)
      menu.push_back(fmt::format("blast-b{}-r{}-{}{}", kBlocks, r, factors, algorithms));
  }
  const index_t tile = std::clamp<index_t>(std::min(shape.rows, shape.cols) / 4, 1, 256);
  const index_t tile_rows = ceil_div(shape.rows, tile);
  if (const index_t r = ranks(2.0 * static_cast<double>(tile * tile_rows)); r >= 1)
    menu.push_back(fmt::format("blr-t{}-r{}-{}", tile, r, factors));
  return menu;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
