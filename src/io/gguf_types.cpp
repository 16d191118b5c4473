// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "blockpack/io/checked.hpp"
#include "blockpack/io/gguf.hpp"
#include "io/strict_json.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

using io_detail::printable;

constexpr std::optional<Dtype> kQuantized = std::nullopt;
constexpr std::array<GgufTensorTypeInfo, 35> kGgufTypes{{
    {GgufTensorType::f32, "F32", 1, 4, Dtype::f32},
    {GgufTensorType::f16, "F16", 1, 2, Dtype::f16},
    {GgufTensorType::q4_0, "Q4_0", 32, 18, kQuantized},
    {GgufTensorType::q4_1, "Q4_1", 32, 20, kQuantized},
    {GgufTensorType::q5_0, "Q5_0", 32, 22, kQuantized},
    {GgufTensorType::q5_1, "Q5_1", 32, 24, kQuantized},
    {GgufTensorType::q8_0, "Q8_0", 32, 34, kQuantized},
    {GgufTensorType::q8_1, "Q8_1", 32, 36, kQuantized},
    {GgufTensorType::q2_k, "Q2_K", 256, 84, kQuantized},
    {GgufTensorType::q3_k, "Q3_K", 256, 110, kQuantized},
    {GgufTensorType::q4_k, "Q4_K", 256, 144, kQuantized},
    {GgufTensorType::q5_k, "Q5_K", 256, 176, kQuantized},
    {GgufTensorType::q6_k, "Q6_K", 256, 210, kQuantized},
    {GgufTensorType::q8_k, "Q8_K", 256, 292, kQuantized},
    {GgufTensorType::iq2_xxs, "IQ2_XXS", 256, 66, kQuantized},
    {GgufTensorType::iq2_xs, "IQ2_XS", 256, 74, kQuantized},
    {GgufTensorType::iq3_xxs, "IQ3_XXS", 256, 98, kQuantized},
    {GgufTensorType::iq1_s, "IQ1_S", 256, 50, kQuantized},
    {GgufTensorType::iq4_nl, "IQ4_NL", 32, 18, kQuantized},
    {GgufTensorType::iq3_s, "IQ3_S", 256, 110, kQuantized},
    {GgufTensorType::iq2_s, "IQ2_S", 256, 82, kQuantized},
    {GgufTensorType::iq4_xs, "IQ4_XS", 256, 136, kQuantized},
    {GgufTensorType::i8, "I8", 1, 1, Dtype::i8},
    {GgufTensorType::i16, "I16", 1, 2, Dtype::i16},
    {GgufTensorType::i32, "I32", 1, 4, Dtype::i32},
    {GgufTensorType::i64, "I64", 1, 8, Dtype::i64},
    {GgufTensorType::f64, "F64", 1, 8, Dtype::f64},
    {GgufTensorType::iq1_m, "IQ1_M", 256, 56, kQuantized},
    {GgufTensorType::bf16, "BF16", 1, 2, Dtype::bf16},
    {GgufTensorType::tq1_0, "TQ1_0", 256, 54, kQuantized},
    {GgufTensorType::tq2_0, "TQ2_0", 256, 66, kQuantized},
    {GgufTensorType::mxfp4, "MXFP4", 32, 17, kQuantized},
    {GgufTensorType::nvfp4, "NVFP4", 64, 36, kQuantized},
    {GgufTensorType::q1_0, "Q1_0", 128, 18, kQuantized},
    {GgufTensorType::q2_0, "Q2_0", 64, 18, kQuantized},
}};

}  // namespace

std::span<const GgufTensorTypeInfo> gguf_tensor_types() noexcept { return kGgufTypes; }

const GgufTensorTypeInfo& gguf_tensor_type_info(GgufTensorType type) noexcept {
  const auto at = std::lower_bound(kGgufTypes.begin(), kGgufTypes.end(), type,
                                   [](const GgufTensorTypeInfo& info, GgufTensorType t) { return info.type < t; });
  return *at;
}

std::optional<GgufTensorType> gguf_tensor_type_of(Dtype dtype) noexcept {
  for (const GgufTensorTypeInfo& info : kGgufTypes)
    if (info.dtype == dtype) return info.type;
  return std::nullopt;
}

const GgufValue* find_value(const GgufMetadata& metadata, std::string_view key) noexcept {
  const auto at =
      std::find_if(metadata.begin(), metadata.end(), [&](const GgufEntry& entry) { return entry.key == key; });
  return at == metadata.end() ? nullptr : &at->value;
}

std::uint64_t tensor_bytes(const GgufTensorSpec& spec) {
  const GgufTensorTypeInfo& info = gguf_tensor_type_info(spec.type);
  const auto fail = [&](const std::string& problem) {
    throw ShapeError(fmt::format("tensor_bytes: tensor '{}' {}", printable(spec.name), problem));
  };
  const index_t last = spec.shape.empty() ? 1 : spec.shape.back();
  if (last % info.block != 0)
    fail(fmt::format("of type {} has {} columns (its last dimension), a multiple of {} needed", info.name, last,
                     info.block));
  std::uint64_t elements = 1;
  for (const index_t dimension : spec.shape) {
    if (dimension < 0) fail(fmt::format("has the dimension {}", dimension));
    const auto product = try_mul(elements, static_cast<std::uint64_t>(dimension));
    if (!product || !std::in_range<index_t>(*product)) fail("has more elements than 63 bits count");
    elements = *product;
  }
  const auto bytes = try_mul(elements / static_cast<std::uint64_t>(info.block), static_cast<std::uint64_t>(info.bytes));
  if (!bytes || !std::in_range<index_t>(*bytes)) fail("has more bytes than 63 bits count");
  return *bytes;
}

Tensor GgufTensor::stored() const {
  const GgufTensorTypeInfo& info = gguf_tensor_type_info(type);
  Tensor tensor{name, info.dtype.value_or(Dtype::u8), shape, data, mapping};
  if (!info.dtype) {
    const auto blocks = static_cast<std::uint64_t>(shape.empty() ? 0 : shape.back() / info.block);
    const std::uint64_t row = size_mul(blocks, static_cast<std::uint64_t>(info.bytes), "GgufTensor::stored");
    if (!tensor.shape.empty()) tensor.shape.back() = size_cast<index_t>(row, "GgufTensor::stored");
  }
  return tensor;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
