// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The block formats of ggml, byte for byte: what this encodes, llama.cpp reads, and the other way round.
/// Bytes: docs/formats/ggml.md.
///
/// Source: ggml-org/ggml at d99724f; the bytes equal those of its row functions, with and without importance.

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/row_format.hpp"
#include "blockpack/quant/block_code.hpp"
#include "blockpack/quant/block_rows.hpp"
#include "blockpack/quant/ggml/blocks.hpp"
#include "blockpack/quant/ggml/codes.hpp"
#include "blockpack/quant/ggml/k_quants.hpp"
#include "blockpack/quant/ggml/simple_blocks.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// A row as whole blocks of one type, in one section `blocks`. A short last block is filled with zeros.
///
/// Encoders compute the float32 scale, store it as fp16 and derive the codes as ggml does. Importance selects the
/// weighted searches of ggml for Q2_K to Q6_K, Q4_0 to Q5_1, IQ4_NL and IQ4_XS; the other types have none. A block
/// whose weighted sums leave float32 is encoded without importance. Where ggml would store what cannot be read back:
/// - a scale that rounds to 0 stores the codes of 0;
/// - a scale that rounds to infinity, or a weight no scale can reach, is a ValueError under `reject`, before the row is
///   written; under `saturate` weights are clamped to what the type can hold and the scale to ±65504;
/// - the exponent of MXFP4 stops at 0 below 2^-125.
struct Ggml {
  GgmlType type = GgmlType::q4_0;

  friend bool operator==(const Ggml&, const Ggml&) = default;

  static constexpr GgmlType kTypes[] = {
      GgmlType::q4_0,   GgmlType::q4_1,  GgmlType::q5_0,  GgmlType::q5_1,  GgmlType::q8_0, GgmlType::q2_k,
      GgmlType::q3_k,   GgmlType::q4_k,  GgmlType::q5_k,  GgmlType::q6_k,  GgmlType::q8_k, GgmlType::iq4_nl,
      GgmlType::iq4_xs, GgmlType::tq1_0, GgmlType::tq2_0, GgmlType::mxfp4, GgmlType::nvfp4};

  const GgmlTypeSpec& spec() const noexcept { return spec_of(type); }

  /// "q4_0", "iq4_xs", "tq2_0", "ggml-mxfp4", …
  std::string scheme() const { return spec().scheme; }

  /// The format of a scheme split at its dashes, or nothing when it is none of these.
  static std::optional<Ggml> from_fields(std::string_view name, std::span<const std::string_view> fields) {
    std::string scheme(name);
    for (const std::string_view field : fields) scheme.append("-").append(field);
    for (const GgmlType t : kTypes)
      if (scheme == spec_of(t).scheme) return Ggml{t};
    return std::nullopt;
  }

  bool can_store_nan() const noexcept { return false; }
  bool exact_in_bf16() const noexcept { return type == GgmlType::mxfp4 || type == GgmlType::nvfp4; }

  std::vector<SectionSpec> sections(index_t cols) const {
    return {{"blocks", checked_mul(ceil_div(cols, index_t{spec().block}), spec().block_bytes, "Ggml::sections")}};
  }

  /// One whole block: what the kernels of every level must equal. Returns whether every scale fitted into fp16.
  bool encode_block(const ggml::BlockInput& in, std::uint8_t* dst) const noexcept;
  void decode_block(const std::uint8_t* src, float* dst) const noexcept;

  void encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const;
  void decode_row(std::span<const std::byte* const> src, index_t cols, index_t col, std::span<float> dst) const;

  /// See ggml/codes.hpp.
  std::optional<CodeSpec> code_spec(index_t /*cols*/, std::span<const std::byte* const> /*src*/) const noexcept {
    return ggml::code_spec(type);
  }
  void read_codes(std::span<const std::byte* const> src, index_t cols, const CodeRow& dst) const;

#if !defined(BLOCKPACK_HEADERS_ONLY)
  /// A row through the kernels of the active level.
  BLOCKPACK_API void encode_compiled(const EncodeRow& row, std::uint8_t* dst) const;
  BLOCKPACK_API void decode_compiled(const std::uint8_t* src, std::span<float> dst) const;
#endif
};

namespace detail {

/// fn(block) with a block of the type, its storage uninitialised.
template <class Fn>
auto with_ggml_block(GgmlType type, const Fn& fn) noexcept {
  switch (type) {
    case GgmlType::q4_0:
      return fn(ggml::Q4_0{});
    case GgmlType::q4_1:
      return fn(ggml::Q4_1{});
    case GgmlType::q5_0:
      return fn(ggml::Q5_0{});
    case GgmlType::q5_1:
      return fn(ggml::Q5_1{});
    case GgmlType::q8_0:
      return fn(ggml::Q8_0{});
    case GgmlType::q2_k:
      return fn(ggml::Q2K{});
    case GgmlType::q3_k:
      return fn(ggml::Q3K{});
    case GgmlType::q4_k:
      return fn(ggml::Q4K{});
    case GgmlType::q5_k:
      return fn(ggml::Q5K{});
    case GgmlType::q6_k:
      return fn(ggml::Q6K{});
    case GgmlType::q8_k:
      return fn(ggml::Q8K{});
    case GgmlType::iq4_nl:
      return fn(ggml::Iq4Nl{});
    case GgmlType::iq4_xs:
      return fn(ggml::Iq4Xs{});
    case GgmlType::tq1_0:
      return fn(ggml::Tq1_0{});
    case GgmlType::tq2_0:
      return fn(ggml::Tq2_0{});
    case GgmlType::mxfp4:
      return fn(ggml::Mxfp4{});
    case GgmlType::nvfp4:
      break;
  }
  return fn(ggml::Nvfp4{});
}

/// Σ x² / n of a row where its encoder reads it, 0 elsewhere.
inline float ggml_row_mean_square(const Ggml& f, std::span<const float> w, bool weighted) noexcept {
  if (!weighted || f.type > GgmlType::q5_1 || w.empty()) return 0.0f;
  return ggml::sum_of_squares(w) / static_cast<float>(w.size());
}

/// Blocks of a row, or of its end, through the reference; returns the first block with a scale beyond fp16, or -1.
inline index_t encode_ggml_reference(const Ggml& f, std::span<const float> w, std::span<const float> importance,
                                     float mean_square, std::uint8_t* dst) noexcept {
  const auto block = static_cast<std::size_t>(f.spec().block);
  index_t misfit = -1;
  for (std::size_t col = 0; col < w.size(); col += block, dst += f.spec().block_bytes) {
    float padded[kMaxGgmlBlock], padded_importance[kMaxGgmlBlock];
    const std::size_t count = std::min(block, w.size() - col);
    ggml::BlockInput in{w.subspan(col, count), importance.empty() ? nullptr : importance.data() + col, mean_square};
    if (count < block) {
      const auto pad = [&](const float* from, float* to) {
        std::fill(std::copy_n(from, count, to), to + block, 0.0f);
        return to;
      };
      in.x = {pad(in.x.data(), padded), block};
      if (in.importance != nullptr) in.importance = pad(in.importance, padded_importance);
    }
    if (!f.encode_block(in, dst) && misfit < 0) misfit = static_cast<index_t>(col / block);
  }
  return misfit;
}

inline void decode_ggml_reference(const Ggml& f, const std::uint8_t* src, std::span<float> dst) noexcept {
  const auto block = static_cast<std::size_t>(f.spec().block);
  for (std::size_t col = 0; col < dst.size(); col += block, src += f.spec().block_bytes) {
    float values[kMaxGgmlBlock];
    f.decode_block(src, values);
    std::copy_n(values, std::min(block, dst.size() - col), dst.data() + col);
  }
}

/// Up to this magnitude no scale of any type leaves fp16, with any importance.
inline constexpr float kPlainGgmlWeight = 4096.0f;

/// A row with weights that may be beyond what the type stores: into a buffer first, so that dst is written only when
/// all is well.
inline void encode_wide_ggml_row(const Ggml& f, const EncodeRow& row, std::uint8_t* dst) {
  const GgmlTypeSpec& spec = f.spec();
  const bool saturate = row.non_finite == NonFinite::saturate;
  std::vector<float> w(row.weights.begin(), row.weights.end());
  for (std::size_t j = 0; j < w.size(); ++j) {
    if (w[j] >= spec.low && w[j] <= spec.high) continue;
    if (!saturate)
      throw ValueError("encode " + f.scheme() + ": the weight at row " + std::to_string(row.row) + ", column " +
                       std::to_string(j) +
                       " is beyond what an fp16 scale can reach; pass NonFinite::saturate to clamp");
    w[j] = w[j] < spec.low ? spec.low : spec.high;
  }
  std::vector<std::uint8_t> blocks(
      static_cast<std::size_t>(f.sections(static_cast<index_t>(w.size()))[0].bytes_per_row));
  const index_t misfit =
      encode_ggml_reference(f, w, row.importance, ggml_row_mean_square(f, w, !row.importance.empty()), blocks.data());
  if (misfit >= 0 && !saturate)
    throw ValueError("encode " + f.scheme() + ": a scale of the block at row " + std::to_string(row.row) + ", column " +
                     std::to_string(misfit * spec.block) +
                     " is beyond fp16 (65504); pass NonFinite::saturate to clamp it");
  std::copy(blocks.begin(), blocks.end(), dst);
}

}  // namespace detail

inline bool Ggml::encode_block(const ggml::BlockInput& in, std::uint8_t* dst) const noexcept {
  return detail::with_ggml_block(type, [&](auto block) {
    const bool fits = ggml::encode(in, block);
    std::memcpy(dst, &block, sizeof block);
    return fits;
  });
}
inline void Ggml::decode_block(const std::uint8_t* src, float* dst) const noexcept {
  detail::with_ggml_block(type, [&](auto block) {
    std::memcpy(&block, src, sizeof block);
    ggml::decode(block, dst);
  });
}

inline void Ggml::encode_row(const EncodeRow& row, std::span<std::byte* const> dst) const {
#if defined(BLOCKPACK_HEADERS_ONLY)
  const std::uint32_t top = detail::max_magnitude_bits(row.weights);
  if (top > std::bit_cast<std::uint32_t>(detail::kPlainGgmlWeight))
    return detail::encode_wide_ggml_row(*this, row, detail::bytes(dst[0]));
  detail::encode_ggml_reference(*this, row.weights, row.importance,
                                detail::ggml_row_mean_square(*this, row.weights, !row.importance.empty()),
                                detail::bytes(dst[0]));
#else
  encode_compiled(row, detail::bytes(dst[0]));
#endif
}
inline void Ggml::decode_row(std::span<const std::byte* const> src, index_t /*cols*/, index_t col,
                             std::span<float> dst) const {
  const std::uint8_t* blocks = detail::bytes(src[0]) + col / spec().block * spec().block_bytes;
#if defined(BLOCKPACK_HEADERS_ONLY)
  detail::decode_ggml_reference(*this, blocks, dst);
#else
  decode_compiled(blocks, dst);
#endif
}

inline void Ggml::read_codes(std::span<const std::byte* const> src, index_t cols, const CodeRow& dst) const {
  const std::uint8_t* at = detail::bytes(src[0]);
  const index_t group = ggml::code_spec(type).group;
  for (index_t col = 0; col < cols; col += spec().block, at += spec().block_bytes) {
    std::uint8_t codes[detail::kMaxGgmlBlock];
    std::uint32_t scales[detail::kMaxGgmlBlock / 16], minimums[detail::kMaxGgmlBlock / 16];
    detail::with_ggml_block(type, [&](auto block) {
      std::memcpy(&block, at, sizeof block);
      ggml::read_codes(block, ggml::CodeBlock{codes, scales, minimums});
    });
    const index_t count = std::min(index_t{spec().block}, cols - col);
    std::copy_n(codes, count, dst.codes.data() + col);
    std::copy_n(scales, ceil_div(count, group), dst.scales.data() + col / group);
    if (!dst.minimums.empty()) std::copy_n(minimums, ceil_div(count, group), dst.minimums.data() + col / group);
  }
}

}  // namespace blockpack::inline BLOCKPACK_ABI
