// SPDX-License-Identifier: Apache-2.0
/// Scores and masks on four lanes of the compilers' vector extension: what SSE2 and NEON have, which every CPU of their
/// kind runs.

#include <utility>

#include "kernels/select/select_kernels.hpp"

#define BLOCKPACK_LANES 4

namespace blockpack::kernels {
namespace {

#include "kernels/dense/dense_vectors.inc"

static inline std::uint32_t bits_of(vi mask) {
  return static_cast<std::uint32_t>((mask[0] & 1) | (mask[1] & 2) | (mask[2] & 4) | (mask[3] & 8));
}

#include "kernels/select/select_body.inc"

}  // namespace

void install_select_scalar(SelectKernels& table, Features) noexcept {
  table.weigh = {weigh, "scalar"};
  table.count_reaching = {count_reaching, "scalar"};
  table.reaching = {reaching, "scalar"};
  table.groups = {groups, "scalar"};
  table.weighed_groups = {weighed_groups, "scalar"};
}

}  // namespace blockpack::kernels
