// SPDX-License-Identifier: Apache-2.0
/// The scalar types themselves, one element at a time and at any address: the meaning of the family.

#include <cstddef>
#include <cstring>

#include "blockpack/core/convert.hpp"
#include "kernels/convert/convert_kernels.hpp"

namespace blockpack::kernels {
namespace {

template <class T>
void from_f32(const float* src, void* dst, std::size_t n) noexcept {
  auto* bytes = static_cast<std::byte*>(dst);
  for (std::size_t i = 0; i < n; ++i) {
    const T value(src[i]);
    std::memcpy(bytes + i * sizeof(T), &value, sizeof(T));
  }
}

template <class T>
void to_f32(const void* src, float* dst, std::size_t n) noexcept {
  const auto* bytes = static_cast<const std::byte*>(src);
  for (std::size_t i = 0; i < n; ++i) {
    T value;
    std::memcpy(&value, bytes + i * sizeof(T), sizeof(T));
    dst[i] = static_cast<float>(value);
  }
}

template <class T>
void install(ConvertKernels& table, ConvertKind kind) noexcept {
  table.from_f32[kind] = {from_f32<T>, "scalar"};
  table.to_f32[kind] = {to_f32<T>, "scalar"};
}

}  // namespace

void install_convert_scalar(ConvertKernels& table, Features) noexcept {
  install<bf16>(table, kCodeBf16);
  install<fp16>(table, kCodeFp16);
  install<fp8_e4m3>(table, kCodeFp8E4m3);
  install<fp8_e5m2>(table, kCodeFp8E5m2);
  install<fp6_e2m3>(table, kCodeFp6E2m3);
  install<fp6_e3m2>(table, kCodeFp6E3m2);
  install<fp4_e2m1>(table, kCodeFp4E2m1);
  install<e8m0>(table, kCodeE8m0);
}

}  // namespace blockpack::kernels
