// SPDX-License-Identifier: Apache-2.0
/// Scores and masks with AVX2, eight scores a register.

#include <immintrin.h>

#include <utility>

#include "kernels/select/select_kernels.hpp"

#define BLOCKPACK_LANES 8

namespace blockpack::kernels {
namespace {

#include "kernels/dense/dense_vectors.inc"

static inline std::uint32_t bits_of(vi mask) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
}

#include "kernels/select/select_body.inc"

}  // namespace

void install_select_avx2(SelectKernels& table, Features) noexcept {
  table.weigh = {weigh, "avx2"};
  table.count_reaching = {count_reaching, "avx2"};
  table.reaching = {reaching, "avx2"};
  table.groups = {groups, "avx2"};
  table.weighed_groups = {weighed_groups, "avx2"};
}

}  // namespace blockpack::kernels
