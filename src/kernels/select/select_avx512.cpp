// SPDX-License-Identifier: Apache-2.0
/// Scores and masks with AVX-512 F and DQ, sixteen scores a register.

#include <immintrin.h>

#include <utility>

#include "kernels/select/select_kernels.hpp"

#define BLOCKPACK_LANES 16

namespace blockpack::kernels {
namespace {

#include "kernels/dense/dense_vectors.inc"

static inline std::uint32_t bits_of(vi mask) {
  return static_cast<std::uint32_t>(_mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)));
}

#include "kernels/select/select_body.inc"

}  // namespace

void install_select_avx512(SelectKernels& table, Features) noexcept {
  table.weigh = {weigh, "avx512"};
  table.count_reaching = {count_reaching, "avx512"};
  table.reaching = {reaching, "avx512"};
  table.groups = {groups, "avx512"};
  table.weighed_groups = {weighed_groups, "avx512"};
}

}  // namespace blockpack::kernels
