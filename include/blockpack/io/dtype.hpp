// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The element types of a safetensors file.
///
/// All 22 are read, written and copied. Computing needs floats: `computable` says which types `convert_to_f32` takes.
/// The others are refused with an UnsupportedError that names the type: integers and BOOL carry no weights without a
/// scale that the file does not define, F8_E8M0 is a scale type, C64 is complex, and the packing of F4 and F6 elements
/// into bytes is not part of the file format.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "blockpack/core/config.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// In the order of the alignment rank: writers store tensors by descending rank, so that larger types come first.
enum class Dtype : std::uint8_t {
  boolean,
  f4,
  f6_e2m3,
  f6_e3m2,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64,
};
inline constexpr int kDtypeCount = 22;

/// The name in the file: `F32`, `F8_E4M3`.
BLOCKPACK_API std::string_view to_string(Dtype dtype) noexcept;

/// The type of that name, case-sensitive; nothing for any other text.
BLOCKPACK_API std::optional<Dtype> dtype_from_name(std::string_view name) noexcept;

/// Bits of one element: 4, 6, 8, 16, 32 or 64.
BLOCKPACK_API int dtype_bits(Dtype dtype) noexcept;

/// Whether `convert_to_f32` takes it: F32, F64, F16, BF16, F8_E4M3, F8_E5M2, F8_E4M3FNUZ, F8_E5M2FNUZ.
BLOCKPACK_API bool computable(Dtype dtype) noexcept;

/// Bytes of `elements` elements; nothing when the product overflows or is not a whole number of bytes.
BLOCKPACK_API std::optional<std::uint64_t> dtype_bytes(Dtype dtype, std::uint64_t elements) noexcept;

/// Little-endian elements at any alignment to float. F64 is rounded half to even (infinity beyond the range of float);
/// all other types are exact. NaN stays NaN.
///
/// Shapes:  src has dst.size() elements.
/// Errors:  ShapeError for another size, UnsupportedError for a type that is not `computable`; both name `what`.
BLOCKPACK_API void convert_to_f32(Dtype dtype, std::span<const std::byte> src, std::span<float> dst,
                                  std::string_view what = "convert_to_f32");

}  // namespace blockpack::inline BLOCKPACK_ABI
