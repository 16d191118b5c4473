// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Bulk conversions between float and the scalar types of core/scalar.hpp, at memory speed on the SIMD levels and with
/// the bits of the scalar types on every level, for every input: subnormals, infinities and NaN included.
///
///     std::vector<bf16> w(x.size());
///     convert(x, w);
///
/// Types of 8 bits and less take one byte a code. Packed fp6 and fp4 are the business of the formats that store them.

#include <cstddef>
#include <cstring>
#include <span>
#include <string>

#include "blockpack/core/config.hpp"
#include "blockpack/core/error.hpp"
#include "blockpack/core/isa.hpp"
#include "blockpack/core/scalar.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

namespace detail {

enum class ScalarKind : std::uint8_t { bf16, fp16, fp8_e4m3, fp8_e5m2, fp6_e2m3, fp6_e3m2, fp4_e2m1, e8m0 };

/// Elements one at a time; those of type T lie at any address.
template <class T>
void loop_from_f32(const float* src, void* dst, std::size_t n) noexcept {
  auto* bytes = static_cast<std::byte*>(dst);
  for (std::size_t i = 0; i < n; ++i) {
    const T value(src[i]);
    std::memcpy(bytes + i * sizeof(T), &value, sizeof(T));
  }
}
template <class T>
void loop_to_f32(const void* src, float* dst, std::size_t n) noexcept {
  const auto* bytes = static_cast<const std::byte*>(src);
  for (std::size_t i = 0; i < n; ++i) {
    T value;
    std::memcpy(&value, bytes + i * sizeof(T), sizeof(T));
    dst[i] = static_cast<float>(value);
  }
}

/// The same by the kernels, where there are any; T is the type of `kind`.
#if defined(BLOCKPACK_HEADERS_ONLY)
template <class T>
void convert_from_f32(ScalarKind, const float* src, void* dst, std::size_t n, Isa) noexcept {
  loop_from_f32<T>(src, dst, n);
}
template <class T>
void convert_to_f32(ScalarKind, const void* src, float* dst, std::size_t n, Isa) noexcept {
  loop_to_f32<T>(src, dst, n);
}
#else
BLOCKPACK_API void convert_from_f32(ScalarKind kind, const float* src, void* dst, std::size_t n, Isa level);
BLOCKPACK_API void convert_to_f32(ScalarKind kind, const void* src, float* dst, std::size_t n, Isa level);
template <class T>
void convert_from_f32(ScalarKind kind, const float* src, void* dst, std::size_t n, Isa level) {
  convert_from_f32(kind, src, dst, n, level);
}
template <class T>
void convert_to_f32(ScalarKind kind, const void* src, float* dst, std::size_t n, Isa level) {
  convert_to_f32(kind, src, dst, n, level);
}
#endif

inline void check_convert_sizes(std::size_t src, std::size_t dst) {
  if (src != dst)
    throw ShapeError("convert: dst has " + std::to_string(dst) + " elements, src has " + std::to_string(src));
}

template <class T>
void convert_from(ScalarKind kind, std::span<const float> src, std::span<T> dst, Isa level) {
  check_convert_sizes(src.size(), dst.size());
  convert_from_f32<T>(kind, src.data(), dst.data(), src.size(), level);
}

template <class T>
void convert_to(ScalarKind kind, std::span<const T> src, std::span<float> dst, Isa level) {
  check_convert_sizes(src.size(), dst.size());
  convert_to_f32<T>(kind, src.data(), dst.data(), src.size(), level);
}

}  // namespace detail

/// dst[i] = T(src[i]): half to even, specials as T's constructor says; for e8m0 the largest power of two not above.
///
/// Shapes:  src and dst have the same number of elements and do not overlap; any alignment of dst and src.
/// Errors:  ShapeError if the sizes differ; UnsupportedError if `level` does not run here.
/// Cost:    one pass, no allocation, calling thread only.
inline void convert(std::span<const float> src, std::span<bf16> dst, Isa level = active_isa()) {
  detail::convert_from(detail::ScalarKind::bf16, src, dst, level);
}
inline void convert(std::span<const float> src, std::span<fp16> dst, Isa level = active_isa()) {
  detail::convert_from(detail::ScalarKind::fp16, src, dst, level);
}
inline void convert(std::span<const float> src, std::span<fp8_e4m3> dst, Isa level = active_isa()) {
  detail::convert_from(detail::ScalarKind::fp8_e4m3, src, dst, level);
}
inline void convert(std::span<const float> src, std::span<fp8_e5m2> dst, Isa level = active_isa()) {
  detail::convert_from(detail::ScalarKind::fp8_e5m2, src, dst, level);
}
inline void convert(std::span<const float> src, std::span<fp6_e2m3> dst, Isa level = active_isa()) {
  detail::convert_from(detail::ScalarKind::fp6_e2m3, src, dst, level);
}
inline void convert(std::span<const float> src, std::span<fp6_e3m2> dst, Isa level = active_isa()) {
  detail::convert_from(detail::ScalarKind::fp6_e3m2, src, dst, level);
}
inline void convert(std::span<const float> src, std::span<fp4_e2m1> dst, Isa level = active_isa()) {
  detail::convert_from(detail::ScalarKind::fp4_e2m1, src, dst, level);
}
inline void convert(std::span<const float> src, std::span<e8m0> dst, Isa level = active_isa()) {
  detail::convert_from(detail::ScalarKind::e8m0, src, dst, level);
}

/// dst[i] = float(src[i]), exact. The upper bits of a byte that holds fp6 or fp4 are not looked at.
/// Shapes, errors and cost as above.
inline void convert(std::span<const bf16> src, std::span<float> dst, Isa level = active_isa()) {
  detail::convert_to(detail::ScalarKind::bf16, src, dst, level);
}
inline void convert(std::span<const fp16> src, std::span<float> dst, Isa level = active_isa()) {
  detail::convert_to(detail::ScalarKind::fp16, src, dst, level);
}
inline void convert(std::span<const fp8_e4m3> src, std::span<float> dst, Isa level = active_isa()) {
  detail::convert_to(detail::ScalarKind::fp8_e4m3, src, dst, level);
}
inline void convert(std::span<const fp8_e5m2> src, std::span<float> dst, Isa level = active_isa()) {
  detail::convert_to(detail::ScalarKind::fp8_e5m2, src, dst, level);
}
inline void convert(std::span<const fp6_e2m3> src, std::span<float> dst, Isa level = active_isa()) {
  detail::convert_to(detail::ScalarKind::fp6_e2m3, src, dst, level);
}
inline void convert(std::span<const fp6_e3m2> src, std::span<float> dst, Isa level = active_isa()) {
  detail::convert_to(detail::ScalarKind::fp6_e3m2, src, dst, level);
}
inline void convert(std::span<const fp4_e2m1> src, std::span<float> dst, Isa level = active_isa()) {
  detail::convert_to(detail::ScalarKind::fp4_e2m1, src, dst, level);
}
inline void convert(std::span<const e8m0> src, std::span<float> dst, Isa level = active_isa()) {
  detail::convert_to(detail::ScalarKind::e8m0, src, dst, level);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
