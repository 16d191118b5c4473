// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The slots of the ggml family: whole blocks of one type to bytes and back. Bytes and values are those of the
/// reference (quant/ggml/*.hpp) on every level: each sum runs in element order within a lane, products are not fused.

#include "kernels/slot.hpp"

namespace blockpack::kernels {

/// The types a kernel may meet, numbered as GgmlType.
enum GgmlKind : std::uint32_t {
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2K,
  kQ3K,
  kQ4K,
  kQ5K,
  kQ6K,
  kQ8K,
  kIq4Nl,
  kIq4Xs,
  kTq1_0,
  kTq2_0,
  kMxfp4,
  kNvfp4
};

/// Whole blocks to encode. Weights are at most 4096 in magnitude, so that no scale leaves fp16.
struct GgmlEncode {
  std::uint32_t kind;
  std::uint32_t block;  ///< weights of a block
  std::uint32_t block_bytes;
  float row_mean_square;  ///< for Q4_0 to Q5_1 with importance
  const float* w;
  const float* importance;  ///< one per weight, or null
  std::size_t blocks;
  std::uint8_t* dst;
  /// The reference for one block: what a kernel leaves to it (types it does not speed up, blocks whose scale is 0 or
  /// not finite).
  void (*encode_block)(const GgmlEncode& all, std::size_t block) noexcept;
};

struct GgmlDecode {
  std::uint32_t kind;
  std::uint32_t block;
  std::uint32_t block_bytes;
  const std::uint8_t* src;
  std::size_t blocks;
  float* dst;
  void (*decode_block)(const GgmlDecode& all, std::size_t block) noexcept;
};

struct GgmlKernels {
  Slot<void (*)(const GgmlEncode& row) noexcept> encode;
  Slot<void (*)(const GgmlDecode& row) noexcept> decode;
};

template <class Visitor>
void visit_slots(const GgmlKernels& k, Visitor&& visit) {
  visit("encode", k.encode);
  visit("decode", k.decode);
}

void install_ggml_scalar(GgmlKernels& t, Features features) noexcept;
void install_ggml_avx2(GgmlKernels& t, Features features) noexcept;
void install_ggml_avx512(GgmlKernels& t, Features features) noexcept;
void install_ggml_neon(GgmlKernels& t, Features features) noexcept;

}  // namespace blockpack::kernels
