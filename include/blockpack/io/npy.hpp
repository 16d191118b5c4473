// SPDX-License-Identifier: Apache-2.0
#pragma once

/// npy: one array in a file, as NumPy writes it. Read and written for golden data and small exchanges.
///
/// Layout: "\x93NUMPY", version, header length, a Python literal {'descr', 'fortran_order', 'shape'}, the data. The
/// literal is parsed by a tiny parser that knows strings, booleans, integers and tuples; nothing is evaluated. BF16 has
/// no npy type: by convention its bit patterns are `<u2`.
/// Source: the format text of NumPy (numpy.lib.format), versions 1.0, 2.0 and 3.0.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <iosfwd>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/core/error.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Kind and size of an element: b1, i1 i2 i4 i8, u1 u2 u4 u8, f2 f4 f8, c8 c16.
struct NpyType {
  char kind = 'f';
  int bytes = 4;
  friend constexpr bool operator==(const NpyType&, const NpyType&) = default;
};

/// `f4`, for messages.
BLOCKPACK_API std::string to_string(NpyType type);

/// The npy type of an arithmetic type.
template <class T>
constexpr NpyType npy_type() {
  static_assert(std::is_arithmetic_v<T>);
  if constexpr (std::is_same_v<T, bool>) return {'b', 1};
  if constexpr (std::is_floating_point_v<T>) return {'f', sizeof(T)};
  return {std::is_signed_v<T> ? 'i' : 'u', sizeof(T)};
}

/// An array: always little-endian and row-major here, whatever the file says.
struct NpyArray {
  NpyType type;
  std::vector<index_t> shape;
  SharedBytes data;                  ///< at any alignment
  bool was_fortran_order = false;    ///< the file is column-major; `data` is a row-major copy
  bool was_big_endian = false;       ///< the file is big-endian; `data` is a swapped copy
  std::uint64_t trailing_bytes = 0;  ///< in the file after the array

  /// The values, copied out. ShapeError when T is not the type of the elements.
  template <class T>
  std::vector<T> values() const;
};

struct NpyOptions {
  std::uint64_t max_header_bytes = 10'000;
  std::uint64_t max_rank = 64;
  bool strict = false;  ///< refuse bytes after the array (never for streams, where another array may follow)
};

/// Reads a file; without a copy where byte order and layout allow it.
/// Errors:  IoError as MappedFile::open; FormatError with code() = BadMagic, UnsupportedVersion, HeaderTooLarge,
///          TruncatedHeader, InvalidHeader, UnsupportedType, ValidationOverflow, LimitExceeded, TruncatedData or
///          TrailingData (strict).
BLOCKPACK_API NpyArray read_npy(const std::filesystem::path& path, const NpyOptions& options = {});

/// The same for bytes in memory; the array shares their owner or copies.
BLOCKPACK_API NpyArray parse_npy(SharedBytes bytes, const NpyOptions& options = {});

/// Reads one array from a stream and leaves it right behind. Memory grows with the bytes that arrive, not with the size
/// that the header claims.
BLOCKPACK_API NpyArray read_npy(std::istream& stream, const NpyOptions& options = {});

/// Writes version 1.0, little-endian, row-major, in the bytes numpy.save gives. `data` holds the elements in that
/// order. Errors:  ShapeError when data does not have the bytes of type and shape; IoError as AtomicFile, or when the
/// stream
///          fails (the disk behind it is full).
BLOCKPACK_API void write_npy(const std::filesystem::path& path, NpyType type, const std::vector<index_t>& shape,
                             std::span<const std::byte> data);
BLOCKPACK_API void write_npy(std::ostream& stream, NpyType type, const std::vector<index_t>& shape,
                             std::span<const std::byte> data);

template <class T>
void write_npy(const std::filesystem::path& path, const std::vector<index_t>& shape, std::span<const T> values) {
  write_npy(path, npy_type<T>(), shape, std::as_bytes(values));
}

namespace detail {
/// ShapeError unless the array holds elements of `wanted`; their count otherwise.
BLOCKPACK_API std::size_t npy_count(const NpyArray& array, NpyType wanted);
}  // namespace detail

template <class T>
std::vector<T> NpyArray::values() const {
  std::vector<T> result(detail::npy_count(*this, npy_type<T>()));
  if constexpr (std::is_same_v<T, bool>) {
    for (std::size_t i = 0; i < result.size(); ++i) result[i] = data.bytes[i] != std::byte{0};
  } else {
    if (!result.empty()) std::memcpy(result.data(), data.bytes.data(), data.bytes.size());
  }
  return result;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
