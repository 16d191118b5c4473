// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Compressed models in the container of ggml: which scheme is which tensor type, and what the metadata say.

#include <filesystem>
#include <string>

#include "blockpack/core/config.hpp"
#include "blockpack/io/gguf.hpp"
#include "blockpack/io/safetensors.hpp"
#include "blockpack/recipe/codec.hpp"

namespace blockpack::recipe_detail {

/// Whether a model of that name is a GGUF file: it ends in `.gguf`.
inline bool is_gguf(const std::filesystem::path& path) { return path.extension() == ".gguf"; }

/// The scheme whose bytes are those of the type: Q4_K is `q4_k`, F16 `fp16`, MXFP4 `ggml-mxfp4`. The registry may lack
/// it.
std::string scheme_of(GgufTensorType type);

/// How a tensor is declared in a GGUF file: under its own name, with the type of its scheme, or of its dtype when
/// `codec` is null. Errors: UnsupportedError that names the tensor when GGUF has no such type, ShapeError when its rows
/// are no whole blocks.
GgufTensorSpec gguf_spec(const TensorSpec& tensor, const Codec* codec);

/// The metadata of a GGUF model: those of the GGUF file it is made from, with their types, or the strings of another
/// source; then the entries of blockpack out of `metadata`. What quantizing makes wrong is left out
/// (`general.file_type`), what it demands is added (`general.quantization_version`).
GgufMetadata gguf_metadata(const GgufFile* source, const Metadata& metadata, bool quantized);

}  // namespace blockpack::recipe_detail
