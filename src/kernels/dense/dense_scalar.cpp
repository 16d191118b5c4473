// SPDX-License-Identifier: Apache-2.0
/// Dense kernels for every CPU: plain C++ on four floats at a time, which a compiler turns into whatever the baseline
/// of the architecture has. No fused multiply-adds, so products round twice. Tile: 2 rows x 16 columns, 8 sums, 4
/// weight vectors and a broadcast in the 16 registers of SSE2. Limit: one multiply and one add per cycle and register.

#include "kernels/dense/dense_kernels.hpp"

#define BLOCKPACK_LANES 4
#define BLOCKPACK_TILE_ROWS 2
#define BLOCKPACK_TILE_VECTORS 4
#define BLOCKPACK_DOT_ROWS 2
#define BLOCKPACK_FEW_PANELS 2

namespace blockpack::kernels {
namespace {

constexpr std::ptrdiff_t kFewAhead = 0;
constexpr std::ptrdiff_t kDotAhead = 0;
constexpr std::ptrdiff_t kRowAhead = 0;

#include "kernels/dense/dense_vectors.inc"

static inline vf fma_v(vf a, vf b, vf c) { return a * b + c; }
static inline void stream_v(float* p, vf v) { store_v(p, v); }
static inline void fence_v() {}
static inline void prefetch_v(const void*) {}
static inline void prefetch_l2_v(const void*) {}
static inline void prefetch_to_write_v(void*) {}

#include "kernels/dense/dense_body.inc"

void transpose16(const std::uint32_t* src, std::ptrdiff_t src_stride, std::ptrdiff_t words, std::uint32_t* dst,
                 std::ptrdiff_t dst_stride, std::ptrdiff_t dst_group) noexcept {
  for (std::ptrdiff_t k = 0; k < words; ++k)
    for (std::ptrdiff_t n = 0; n < 16; ++n) dst[k / 16 * dst_group + k % 16 * dst_stride + n] = src[n * src_stride + k];
}

}  // namespace

void install_dense_scalar(DenseKernels& k, Features) noexcept {
  k.block_f32 = {{block_f32, "scalar"}, BLOCKPACK_TILE_ROWS};
  k.few_f32_f32_f32 = {few_f32_f32_f32, "scalar"};
  k.few_f32_f32_bf16 = {few_f32_f32_bf16, "scalar"};
  k.dots_f32_f32_f32 = {dots_f32_f32_f32, "scalar"};
  k.dots_f32_f32_bf16 = {dots_f32_f32_bf16, "scalar"};
  k.finish = {finish, "scalar"};
  k.transpose16 = {transpose16, "scalar"};
  k.widen_panel = {widen_panel, "scalar"};
  k.pack_bf16_f32 = {pack_bf16_f32, "scalar"};
  k.pack_bf16_bf16 = {pack_bf16_bf16, "scalar"};
  k.widen = {widen, "scalar"};
  k.round_bf16 = {round_bf16, "scalar"};
  k.round_int8 = {round_int8, "scalar"};
}

}  // namespace blockpack::kernels
