// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The dense engine every form computes through: y = epilogue(x · Wᵀ), W given as packed panels or as rows that are
/// decoded on demand. The compiled backend packs, blocks for the caches and picks kernels; `blockpack::headers` runs
/// the scalar reference of core/reference.hpp.
///
/// The kernel is chosen from the level and the whole M, N, K, and the tile grid from the shape alone, so the bits of y
/// do not depend on the number of threads; the K sum of an output is never split over threads.

#include <memory>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/code_spec.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/linear_operator.hpp"
#include "blockpack/core/pack_policy.hpp"
#include "blockpack/core/row_source.hpp"
#if defined(BLOCKPACK_HEADERS_ONLY)
#include "blockpack/core/reference.hpp"
#endif

namespace blockpack::inline BLOCKPACK_ABI {

/// Tokens a kernel multiplies with packed codes in one pass over them.
inline constexpr index_t kCodeTokens = 8;

/// The mode `automatic` means at a level for weights of that many bits, and the mode itself for the other three.
/// Dense<float> counts as 32 bits, Dense<bf16> as 16. `codes`: the weights are multiplied as packed codes.
#if defined(BLOCKPACK_HEADERS_ONLY)
inline Activations resolve(Activations mode, double /*bits_per_weight*/, Isa /*level*/, bool /*codes*/ = false) {
  return mode == Activations::automatic ? Activations::f32 : mode;
}
#else
BLOCKPACK_API Activations resolve(Activations mode, double bits_per_weight, Isa level, bool codes = false);

/// Whether a level has kernels for packed codes that beat decoding.
BLOCKPACK_API bool multiplies_codes(Isa level);

/// Whether a level multiplies such packed codes by int8_token activations in integers: 8-bit codes without minimums
/// whose groups are rows, or of 128 weights and more. Any number of tokens.
BLOCKPACK_API bool multiplies_int8(const CodeSpec& spec, index_t cols, Isa level);

/// Tokens up to which a level multiplies such codes as codes in that mode (not `automatic`); more are multiplied by
/// decoded panels. Any number by int8 where integer dots beat the panels, otherwise kCodeTokens.
BLOCKPACK_API index_t code_tokens(const CodeSpec& spec, Isa level, Activations mode);

/// Whether a level multiplies many tokens by bf16 panels that it decodes from packed codes.
BLOCKPACK_API bool decodes_codes(Isa level);
#endif

#if !defined(BLOCKPACK_HEADERS_ONLY)

/// What packed weights hold: all of them, or of four neighbours in a row two and their places (9/16 of the bytes in
/// bf16), for matrices of which every four neighbours have two zeros at least.
enum class WeightLayout : std::uint8_t { dense, two_four };

/// Weights in the panel layout of one level. A cache: never written to disk, never moved between machines.
class PackedWeights {
 public:
  PackedWeights() = default;

  /// Bytes of memory the packed form of an [rows, cols] matrix takes at that level.
  BLOCKPACK_API static std::size_t bytes_needed(MatrixShape shape, WeightType type, Isa level,
                                                WeightLayout layout = WeightLayout::dense);

  /// Packs `w` for `how.level()`, into `memory` when it is not empty. ShapeError if memory is too small or unaligned.
  BLOCKPACK_API static PackedWeights pack(const RowSource& w, WeightType type, const Execution& how,
                                          std::span<std::byte> memory = {}, WeightLayout layout = WeightLayout::dense);

  bool empty() const noexcept { return data_ == nullptr; }
  std::size_t bytes() const noexcept { return bytes_; }
  MatrixShape shape() const noexcept { return shape_; }
  WeightType type() const noexcept { return type_; }
  Isa level() const noexcept { return level_; }
  WeightLayout layout() const noexcept { return layout_; }
  const std::byte* data() const noexcept { return data_; }

 private:
  std::shared_ptr<const void> owner_;
  const std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  MatrixShape shape_;
  WeightType type_ = WeightType::f32;
  Isa level_ = Isa::scalar;
  WeightLayout layout_ = WeightLayout::dense;
};

/// Codes and scales of a CodeFormat in the order of the kernels of few tokens, about as many bytes as the stored form:
/// codes keep their width of 2, 3, 4, 5, 6 or 8 bits (CodeSpec::packed_width), K is padded to steps of 32 and N to
/// panels of 16. The layout is the same at every level. A cache as well.
class PackedCodes {
 public:
  PackedCodes() = default;

  /// Bytes of memory the packed form of an [rows, cols] matrix takes.
  BLOCKPACK_API static std::size_t bytes_needed(MatrixShape shape, const CodeSpec& spec);

  /// Packs `w`, into `memory` when it is not empty. ShapeError if memory is too small or unaligned.
  BLOCKPACK_API static PackedCodes pack(const CodeSource& w, const Execution& how, std::span<std::byte> memory = {});

  std::size_t bytes() const noexcept { return bytes_; }
  MatrixShape shape() const noexcept { return shape_; }
  const CodeSpec& spec() const noexcept { return spec_; }
  const std::byte* data() const noexcept { return data_; }

 private:
  std::shared_ptr<const void> owner_;
  const std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  MatrixShape shape_;
  CodeSpec spec_;
};

/// y = epilogue(x · Wᵀ) from packed weights, at the level they were packed for. `mode` is not automatic.
/// Shapes are the caller's to check (detail::check_apply_shapes). y may not overlap x.
///
/// `gate`: weights of the same shape, level and layout; the gate of the epilogue, which has none itself, is then
/// diag(token_scales) · x · gateᵀ. x is prepared once, and each part of the gate is used while it lies in cache.
BLOCKPACK_API void matmul(ActivationView x, const PackedWeights& w, ResultView y, Activations mode,
                          const ApplyOptions& how, const PackedWeights* gate = nullptr);

/// The same from packed codes, at a level that multiplies_codes(); any number of tokens. In mode bf16, more than
/// kCodeTokens tokens (or any, where batches must not show) go through tiles where the level decodes_codes().
BLOCKPACK_API void matmul(ActivationView x, const PackedCodes& w, ResultView y, Activations mode,
                          const ApplyOptions& how, const PackedCodes* gate = nullptr);

/// The same, decoding (or reading in place) on the way: no memory is kept.
BLOCKPACK_API void matmul(ActivationView x, const RowSource& w, ResultView y, Activations mode,
                          const ApplyOptions& how);

/// x [tokens, in] = y [tokens, out] · W.
BLOCKPACK_API void matmul_transpose(MatrixView<const float> y, const RowSource& w, MatrixView<float> x,
                                    const ApplyOptions& how);

#else

/// y = epilogue(x · Wᵀ), the reference.
inline void matmul(ActivationView x, const RowSource& w, ResultView y, Activations mode, const ApplyOptions& how) {
  reference::matmul(x, w, y, mode, how);
}

/// x [tokens, in] = y [tokens, out] · W, the reference.
inline void matmul_transpose(MatrixView<const float> y, const RowSource& w, MatrixView<float> x,
                             const ApplyOptions& how) {
  reference::matmul_transpose(y, w, x, how);
}
#endif

}  // namespace blockpack::inline BLOCKPACK_ABI
