// SPDX-License-Identifier: Apache-2.0
/// The scalar types themselves, one element at a time and at any address: the meaning of the family.

#include "blockpack/core/convert.hpp"
#include "kernels/convert/convert_kernels.hpp"

namespace blockpack::kernels {
namespace {

template <class T>
void install(ConvertKernels& table, ConvertKind kind) noexcept {
  table.from_f32[kind] = {detail::loop_from_f32<T>, "scalar"};
  table.to_f32[kind] = {detail::loop_to_f32<T>, "scalar"};
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
