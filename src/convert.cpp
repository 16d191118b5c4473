// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/convert.hpp"

#include "kernels/table.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace detail {

static_assert(static_cast<int>(ScalarKind::bf16) == kernels::kCodeBf16 &&
              static_cast<int>(ScalarKind::fp8_e4m3) == kernels::kCodeFp8E4m3 &&
              static_cast<int>(ScalarKind::fp4_e2m1) == kernels::kCodeFp4E2m1 &&
              static_cast<int>(ScalarKind::e8m0) == kernels::kCodeE8m0);

void convert_from_f32(ScalarKind kind, const float* src, void* dst, std::size_t n, Isa level) {
  kernels::table_for(level).convert.from_f32[static_cast<std::size_t>(kind)].fn(src, dst, n);
}

void convert_to_f32(ScalarKind kind, const void* src, float* dst, std::size_t n, Isa level) {
  kernels::table_for(level).convert.to_f32[static_cast<std::size_t>(kind)].fn(src, dst, n);
}

}  // namespace detail
}  // namespace blockpack::inline BLOCKPACK_ABI
