// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Names and strings of the compressed model file, shared by its writer and its reader.
/// docs/formats/compressed_model.md is the description.

#include <optional>
#include <string>
#include <string_view>

#include "blockpack/core/types.hpp"
#include "blockpack/io/dtype.hpp"
#include "blockpack/io/tensor.hpp"
#include "blockpack/recipe/codec.hpp"

namespace blockpack::recipe_detail {

inline constexpr int kFormatVersion = 1;
inline constexpr std::string_view kPrefix = "blockpack.";
inline constexpr std::string_view kVersionKey = "blockpack.version";
inline constexpr std::string_view kRecipeKey = "blockpack.recipe";
inline constexpr std::string_view kTensorKey = "blockpack.tensor.";  ///< + name of a compressed tensor
inline constexpr std::string_view kHashKey = "blockpack.sha256.";    ///< + name of a stored tensor
inline constexpr std::size_t kHashDigits = 64;

/// `layers.0.q_proj.weight:codes`
inline std::string section_tensor_name(std::string_view tensor, std::string_view section) {
  return std::string(tensor) + ":" + std::string(section);
}

/// The value of a tensor's metadata entry: `int4-g32 4096x11008 BF16`.
struct TensorEntry {
  std::string scheme;
  MatrixShape shape;
  Dtype source_dtype = Dtype::f32;
};
std::string to_string(const TensorEntry& entry);
/// Nothing for any other text, and for a shape that is not positive.
std::optional<TensorEntry> parse_tensor_entry(std::string_view text);

/// How a section is declared in the file: U8, [rows, bytes of a row] for sections of rows, [bytes] for others.
TensorSpec section_spec(const Codec& codec, MatrixShape shape, std::string_view tensor, const SectionSize& section);

/// 2-D, not empty, of a floating-point type: what recipes are about.
bool is_matrix(const TensorSpec& tensor);

/// `data` in pieces of at most `step` bytes.
template <class F>
void for_each_piece(std::span<const std::byte> data, std::size_t step, const F& f) {
  for (std::size_t at = 0; at < data.size(); at += step) f(at, data.subspan(at, std::min(step, data.size() - at)));
}

}  // namespace blockpack::recipe_detail
