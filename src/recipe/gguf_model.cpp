// SPDX-License-Identifier: Apache-2.0
#include "recipe/gguf_model.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "recipe/model_format.hpp"

namespace blockpack::recipe_detail {
namespace {

constexpr std::string_view kFileTypeKey = "general.file_type";
constexpr std::string_view kQuantizationVersionKey = "general.quantization_version";
constexpr std::uint32_t kQuantizationVersion = 2;  // of the block formats as they are today

}  // namespace

std::string scheme_of(GgufTensorType type) {
  if (type == GgufTensorType::f16) return "fp16";
  if (type == GgufTensorType::mxfp4)
    return "ggml-mxfp4";  // without prefix these are the OCP and the tensor-scaled form
  if (type == GgufTensorType::nvfp4) return "ggml-nvfp4";
  std::string scheme(gguf_tensor_type_info(type).name);
  for (char& c : scheme)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return scheme;
}

GgufTensorSpec gguf_spec(const TensorSpec& tensor, const Codec* codec) {
  GgufTensorSpec spec{tensor.name, GgufTensorType::f32, tensor.shape};
  if (codec == nullptr) {
    const auto type = gguf_tensor_type_of(tensor.dtype);
    if (!type)
      throw UnsupportedError(
          fmt::format("compress_model: GGUF has no type for tensor '{}' of dtype {}; write a "
                      ".safetensors file",
                      tensor.name, blockpack::to_string(tensor.dtype)));
    spec.type = *type;
    return spec;
  }
  const std::string format = codec->format();
  const auto types = gguf_tensor_types();
  const auto at = std::find_if(types.begin(), types.end(),
                               [&](const GgufTensorTypeInfo& info) { return scheme_of(info.type) == format; });
  if (at == types.end())
    throw UnsupportedError(
        fmt::format("compress_model: GGUF has no type for scheme {} of tensor '{}'; use one of ggml "
                    "(q4_0, q4_k, ...), f32, fp16 or bf16, or write a .safetensors file",
                    format, tensor.name));
  spec.type = at->type;
  static_cast<void>(tensor_bytes(spec));  // whole blocks
  return spec;
}

GgufMetadata gguf_metadata(const GgufFile* source, const Metadata& metadata, bool quantized) {
  GgufMetadata result;
  if (source != nullptr) {
    for (const GgufEntry& entry : source->metadata())
      if (!entry.key.starts_with(kPrefix) && entry.key != kFileTypeKey) result.push_back(entry);
  } else {
    for (const auto& [key, value] : metadata)
      if (!key.starts_with(kPrefix)) result.push_back({key, value});
  }
  if (quantized && find_value(result, kQuantizationVersionKey) == nullptr)
    result.push_back({std::string(kQuantizationVersionKey), kQuantizationVersion});
  for (const auto& [key, value] : metadata)
    if (key.starts_with(kPrefix)) result.push_back({key, value});
  return result;
}

}  // namespace blockpack::recipe_detail
