// SPDX-License-Identifier: Apache-2.0
/// Strips of four rows without vector registers: a multiply-add for each weight and token.

#include "kernels/block_sparse/block_sparse_kernels.hpp"

namespace blockpack::kernels {
namespace {

void multiply(const StripProduct& p) noexcept {
  for (std::ptrdiff_t row = 0; row < p.rows; ++row) {
    const std::uint8_t* x = p.x + row / kStripTokens * p.x_tile_bytes + strip_place(row % kStripTokens);
    for (std::ptrdiff_t n = 0; n < p.halves * kSparseColumns; ++n) {
      std::int32_t sum = p.starts[n];
      for (std::ptrdiff_t g = p.first[n / kStripRows]; g < p.first[n / kStripRows + 1]; ++g)
        for (std::ptrdiff_t i = 0; i < 4; ++i) sum += p.w[16 * g + n % kStripRows * 4 + i] * x[p.columns[4 * g + i]];
      p.y[row * p.y_stride + n] = static_cast<float>(sum) * p.scales[n] * p.token_scales[row];
    }
  }
}

void spread(const std::int8_t* codes, std::ptrdiff_t stride, std::ptrdiff_t tokens, std::ptrdiff_t count,
            std::uint8_t* dst) noexcept {
  for (std::ptrdiff_t k = 0; k < count; ++k)
    for (std::ptrdiff_t t = 0; t < kStripTokens; ++t)
      dst[k * kStripTokens + strip_place(t)] =
          static_cast<std::uint8_t>(128 + (t < tokens ? codes[t * stride + k] : std::int8_t{0}));
}

}  // namespace

void install_strips_scalar(BlockSparseKernels& k, Features) noexcept {
  k.strips_int8 = {multiply, "scalar"};
  k.spread_tokens = {spread, "scalar"};
}

}  // namespace blockpack::kernels
