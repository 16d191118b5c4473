// SPDX-License-Identifier: Apache-2.0
/// Masks of float scores through the kernels of the active level.

#include <algorithm>
#include <bit>
#include <functional>
#include <vector>

#include "blockpack/sparse/mask.hpp"
#include "kernels/table.hpp"

namespace blockpack::inline BLOCKPACK_ABI::detail {
namespace {

/// From here on a sample says where to begin: it costs less than the passes it saves.
constexpr index_t kSampleFrom = 1 << 15;
constexpr index_t kSample = 1 << 10;

/// Floats in the order of integers, -0 below 0.
float of_key(std::int32_t key) noexcept { return std::bit_cast<float>(key >= 0 ? key : (key ^ 0x7fffffff)); }

std::int32_t key_of(float v) noexcept {
  const auto bits = std::bit_cast<std::int32_t>(v);
  return bits >= 0 ? bits : (bits ^ 0x7fffffff);
}

/// Sizes of groups that divide a word.
bool has_kernel(index_t of) noexcept { return of == 2 || of == 4 || of == 8 || of == 16; }

}  // namespace

bool weigh(const float* w, const float* column, float row, index_t n, float* dst) {
  return kernels::active().select.weigh.fn(w, column, row, static_cast<std::size_t>(n), dst);
}

void keep_in_groups(const float* scores, index_t n, index_t keep, index_t of, std::uint64_t* words) {
  const index_t blocks = has_kernel(of) ? n / 64 : 0;
  kernels::active().select.groups.fn(scores, static_cast<std::size_t>(blocks), static_cast<std::size_t>(keep),
                                     static_cast<std::size_t>(of), words);
  keep_in_groups_reference(scores, blocks * 64, n, keep, of, words);
}

bool keep_weighed_in_groups(const float* w, const float* column, float row, index_t n, index_t keep, index_t of,
                            std::uint64_t* words) {
  if (!has_kernel(of)) return false;
  const index_t blocks = n / 64, whole = blocks * 64;
  float last[64];
  if (kernels::active().select.weighed_groups.fn(w, column, row, static_cast<std::size_t>(blocks),
                                                 static_cast<std::size_t>(keep), static_cast<std::size_t>(of), words) ||
      weigh(w + whole, column != nullptr ? column + whole : nullptr, row, n - whole, last)) {
    std::fill_n(words, blocks, std::uint64_t{0});
    return false;
  }
  keep_in_groups_reference(last, 0, n - whole, keep, of, words + blocks);
  return true;
}

void keep_largest(const float* scores, index_t n, index_t count, std::uint64_t* words) {
  if (count <= 0 || count >= n) return keep_largest_reference(scores, n, count, words);
  const kernels::SelectKernels& k = kernels::active().select;
  const auto size = static_cast<std::size_t>(n), wanted = static_cast<std::size_t>(count);
  // The largest threshold that `count` scores reach, by bisection over all floats: at least `wanted` reach `low`, fewer
  // reach `high`.
  std::int32_t low = static_cast<std::int32_t>(0xff800000u ^ 0x7fffffffu);  // the key of -infinity
  std::int32_t high = 0x7f800001;
  const auto reached_by = [&](std::int32_t key) { return k.count_reaching.fn(scores, size, of_key(key)); };
  if (n >= kSampleFrom) {
    std::vector<float> sample;
    for (index_t j = 0; j < kSample; ++j) sample.push_back(scores[j * (n / kSample)]);
    std::sort(sample.begin(), sample.end(), std::greater<>());
    // About five standard deviations to both sides.
    const index_t place = count / ceil_div(n, kSample), margin = 80;
    const std::int32_t below = key_of(sample[static_cast<std::size_t>(std::min(kSample - 1, place + margin))]);
    const std::int32_t above = key_of(sample[static_cast<std::size_t>(std::max(index_t{0}, place - margin))]);
    if (reached_by(below) >= wanted) low = below;
    if (reached_by(above) < wanted) high = above;
  }
  while (high - std::int64_t{low} > 1) {
    const auto middle = static_cast<std::int32_t>(low + (high - std::int64_t{low}) / 2);
    const std::size_t reached = reached_by(middle);
    (reached >= wanted ? low : high) = middle;
    if (reached == wanted) break;
  }
  const float threshold = of_key(low);
  k.reaching.fn(scores, size, threshold, words);
  index_t extra = -count;
  for (index_t w = 0; w < ceil_div(n, index_t{64}); ++w) extra += std::popcount(words[w]);
  for (index_t j = n; j-- > 0 && extra > 0;)  // of those at the threshold the last ones go
    if (scores[j] == threshold) {
      words[j / 64] &= ~(std::uint64_t{1} << (j % 64));
      --extra;
    }
}

}  // namespace blockpack::inline BLOCKPACK_ABI::detail
