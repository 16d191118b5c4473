// SPDX-License-Identifier: Apache-2.0
/// Rows of x, rounded as the activation mode says and laid out as the kernels read them.

#include <algorithm>
#include <cstring>

#include "blockpack/core/reference.hpp"
#include "engine/product.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {
namespace {

using kernels::kBf16Step;
using kernels::kF32XStride;

const std::uint16_t* bits(const bf16* p) { return reinterpret_cast<const std::uint16_t*>(p); }

}  // namespace

void load_f32(const Product& p, index_t row, index_t k0, index_t n, float* dst) {
  if (p.x.is_bf16()) {
    p.kernels.widen.fn(bits(p.x.as_bf16().row_data(row) + k0), n, dst);
  } else {
    std::copy_n(p.x.f32().row_data(row) + k0, n, dst);
    if (p.rounding == Activations::bf16) p.kernels.round_bf16.fn(dst, n);
  }
  if (p.rounding == Activations::int8) p.kernels.round_int8.fn(dst, n);
}

void load_bf16(const Product& p, index_t row, index_t k0, index_t n, std::uint16_t* dst, index_t step) {
  if (p.x.is_bf16()) {
    p.kernels.pack_bf16_bf16.fn(bits(p.x.as_bf16().row_data(row) + k0), n, dst, step);
  } else {
    p.kernels.pack_bf16_f32.fn(p.x.f32().row_data(row) + k0, n, dst, step);
  }
}

/// Bytes of all packed rows of x.
static std::size_t packed_bytes(const Product& p, const BlockPlan& plan) {
  const index_t blocks = ceil_div(p.k, plan.depth);
  const index_t row_bytes =
      p.path == Path::f32 ? blocks * kF32XStride * index_t{sizeof(float)} : round_up(p.k, kBf16Step) * 2;
  return static_cast<std::size_t>(checked_mul(plan.tiles * plan.tile_rows, row_bytes, "matmul"));
}

PackedActivations::PackedActivations(const Product& p, const BlockPlan& plan, index_t first, index_t count)
    : path_(p.path),
      k_(p.k),
      depth_(plan.depth),
      tile_rows_(plan.tile_rows),
      tiles_(plan.tiles),
      data_(packed_bytes(p, plan)) {
  // Whole rows: long runs for the hardware prefetcher.
  for_each_task(p, tiles_, [&](index_t tile) {
    for (index_t r = 0; r < tile_rows_; ++r)
      for (index_t k0 = 0; k0 < k_; k0 += depth_) pack_row(p, first, count, tile * tile_rows_ + r, k0);
  });
}

void PackedActivations::pack_row(const Product& p, index_t first, index_t count, index_t row, index_t k0) {
  const index_t n = std::min(depth_, k_ - k0);
  const index_t r = row % tile_rows_;
  std::byte* tile = data_.data() + (block(k0) - data_.data()) + row / tile_rows_ * tile_bytes(k0);
  if (path_ == Path::f32) {
    float* dst = reinterpret_cast<float*>(tile) + r * kF32XStride;
    if (row < count) {
      load_f32(p, first + row, k0, n, dst);
    } else {
      std::memset(dst, 0, static_cast<std::size_t>(n) * sizeof(float));
    }
  } else {
    std::uint16_t* dst = reinterpret_cast<std::uint16_t*>(tile) + r * kBf16Step;
    const index_t step = tile_rows_ * kBf16Step;
    if (row < count) {
      load_bf16(p, first + row, k0, n, dst, step);
    } else {
      for (index_t k = 0; k < n; k += kBf16Step) std::memset(dst + k / kBf16Step * step, 0, 64);
    }
  }
}

const std::byte* PackedActivations::block(index_t k0) const noexcept {
  const index_t rows = tiles_ * tile_rows_;
  const index_t row_bytes = path_ == Path::f32 ? k0 / depth_ * kF32XStride * index_t{sizeof(float)} : k0 * 2;
  return data_.data() + rows * row_bytes;
}

index_t PackedActivations::tile_bytes(index_t k0) const noexcept {
  if (path_ == Path::f32) return tile_rows_ * kF32XStride * index_t{sizeof(float)};
  return tile_rows_ * round_up(std::min(depth_, k_ - k0), kBf16Step) * 2;
}

RoundedTokens::RoundedTokens(ActivationView x, const Execution& how)
    : shape_(x.shape()), data_(AlignedBuffer<float>::uninitialized(checked_mul(shape_.rows, shape_.cols, "matmul"))) {
  const double ns = 2.0 * static_cast<double>(data_.size());
  for_each_task(how, ns, shape_.rows, [&](index_t m) {
    const std::span<float> row(data_.data() + m * shape_.cols, static_cast<std::size_t>(shape_.cols));
    reference::load_row(x, m, row);
    reference::round_activations(row, Activations::int8_token);
  });
}

FewRows few_rows(const Product& p) {
  FewRows rows;
  const index_t tokens = p.x.rows();
  if (p.path == Path::f32) {
    if (!p.x.is_bf16() && (p.rounding == Activations::f32 || p.rounding == Activations::automatic)) {
      rows.data = p.x.f32().data();
      rows.stride = p.x.f32().row_stride();
      return rows;
    }
    rows.stride = round_up(p.k, 16);
    rows.owned = AlignedBuffer<std::byte>::uninitialized(checked_mul(tokens, rows.stride * 4, "matmul"));
    for (index_t m = 0; m < tokens; ++m)
      load_f32(p, m, 0, p.k, reinterpret_cast<float*>(rows.owned.data()) + m * rows.stride);
  } else {
    rows.stride = round_up(p.k, kBf16Step);
    rows.owned = AlignedBuffer<std::byte>::uninitialized(checked_mul(tokens, rows.stride * 2, "matmul"));
    for (index_t m = 0; m < tokens; ++m)
      load_bf16(p, m, 0, p.k, reinterpret_cast<std::uint16_t*>(rows.owned.data()) + m * rows.stride, kBf16Step);
  }
  rows.data = rows.owned.data();
  return rows;
}

}  // namespace engine
}  // namespace blockpack::inline BLOCKPACK_ABI
