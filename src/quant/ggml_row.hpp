// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A row of ggml's blocks in the plain terms of the kernels.

#include "blockpack/quant/ggml.hpp"
#include "kernels/ggml/ggml_kernels.hpp"

namespace blockpack::kernels {

static_assert(static_cast<std::uint32_t>(GgmlType::q8_k) == kQ8K &&
              static_cast<std::uint32_t>(GgmlType::nvfp4) == kNvfp4);

/// Weights of at most kPlainGgmlWeight in magnitude.
inline void encode_ggml_row(const GgmlKernels& kernels, const Ggml& f, std::span<const float> w,
                            std::span<const float> importance, std::uint8_t* dst) {
  const auto block = static_cast<std::size_t>(f.spec().block);
  const float mean_square = detail::ggml_row_mean_square(f, w, !importance.empty());
  const GgmlEncode row{static_cast<std::uint32_t>(f.type),
                       static_cast<std::uint32_t>(f.spec().block),
                       static_cast<std::uint32_t>(f.spec().block_bytes),
                       mean_square,
                       w.data(),
                       importance.empty() ? nullptr : importance.data(),
                       w.size() / block,
                       dst,
                       [](const GgmlEncode& all, std::size_t b) noexcept {
                         const std::size_t at = b * all.block;
                         const ggml::BlockInput in{{all.w + at, all.block},
                                                   all.importance == nullptr ? nullptr : all.importance + at,
                                                   all.row_mean_square};
                         Ggml{static_cast<GgmlType>(all.kind)}.encode_block(in, all.dst + b * all.block_bytes);
                       }};
  kernels.encode.fn(row);
  const std::size_t done = row.blocks * block;
  detail::encode_ggml_reference(f, w.subspan(done), importance.empty() ? importance : importance.subspan(done),
                                mean_square, dst + row.blocks * row.block_bytes);
}

inline void decode_ggml_row(const GgmlKernels& kernels, const Ggml& f, const std::uint8_t* src, std::span<float> dst) {
  const auto block = static_cast<std::size_t>(f.spec().block);
  const GgmlDecode row{static_cast<std::uint32_t>(f.type),
                       static_cast<std::uint32_t>(f.spec().block),
                       static_cast<std::uint32_t>(f.spec().block_bytes),
                       src,
                       dst.size() / block,
                       dst.data(),
                       [](const GgmlDecode& all, std::size_t b) noexcept {
                         Ggml{static_cast<GgmlType>(all.kind)}.decode_block(all.src + b * all.block_bytes,
                                                                            all.dst + b * all.block);
                       }};
  kernels.decode.fn(row);
  detail::decode_ggml_reference(f, src + row.blocks * row.block_bytes, dst.subspan(row.blocks * block));
}

}  // namespace blockpack::kernels
