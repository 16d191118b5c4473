// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Arithmetic on sizes that come from files. Everything under io/ adds, subtracts and multiplies sizes through these
/// functions and nowhere else; a test reads the sources and fails on any other arithmetic operator.

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "blockpack/core/config.hpp"
#include "blockpack/core/error.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// a + b, a - b, a * b, or nothing when the result does not fit 64 bits without sign.
constexpr std::optional<std::uint64_t> try_add(std::uint64_t a, std::uint64_t b) noexcept {
  if (a > std::numeric_limits<std::uint64_t>::max() - b) return std::nullopt;
  return a + b;
}
constexpr std::optional<std::uint64_t> try_sub(std::uint64_t a, std::uint64_t b) noexcept {
  if (a < b) return std::nullopt;
  return a - b;
}
constexpr std::optional<std::uint64_t> try_mul(std::uint64_t a, std::uint64_t b) noexcept {
  if (b != 0 && a > std::numeric_limits<std::uint64_t>::max() / b) return std::nullopt;
  return a * b;
}

/// The same, with a ShapeError that names `what`.
constexpr std::uint64_t size_add(std::uint64_t a, std::uint64_t b, const char* what) {
  const auto sum = try_add(a, b);
  if (!sum) throw ShapeError(std::string(what) + ": " + std::to_string(a) + " + " + std::to_string(b) + " overflows");
  return *sum;
}
constexpr std::uint64_t size_sub(std::uint64_t a, std::uint64_t b, const char* what) {
  const auto difference = try_sub(a, b);
  if (!difference)
    throw ShapeError(std::string(what) + ": " + std::to_string(a) + " - " + std::to_string(b) + " is negative");
  return *difference;
}
constexpr std::uint64_t size_mul(std::uint64_t a, std::uint64_t b, const char* what) {
  const auto product = try_mul(a, b);
  if (!product)
    throw ShapeError(std::string(what) + ": " + std::to_string(a) + " * " + std::to_string(b) + " overflows");
  return *product;
}

/// Smallest multiple of `unit` that is >= a, for unit > 0.
constexpr std::uint64_t size_round_up(std::uint64_t a, std::uint64_t unit, const char* what) {
  const std::uint64_t rest = a % unit;
  return rest == 0 ? a : size_add(a, unit - rest, what);
}

/// The value in another integer type; ShapeError that names `what` when it does not fit.
template <std::integral To, std::integral From>
constexpr To size_cast(From value, const char* what) {
  if (!std::in_range<To>(value)) throw ShapeError(std::string(what) + ": " + std::to_string(value) + " does not fit");
  return static_cast<To>(value);
}

/// bytes[offset, offset + count); ShapeError that names `what` when it does not lie inside.
template <class T>
constexpr std::span<T> slice(std::span<T> values, std::uint64_t offset, std::uint64_t count, const char* what) {
  if (offset > values.size() || count > values.size() - offset)
    throw ShapeError(std::string(what) + ": [" + std::to_string(offset) + ", +" + std::to_string(count) +
                     ") does not lie inside " + std::to_string(values.size()) + " elements");
  return values.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(count));
}

/// The integer or float number `i` of unaligned little-endian bytes. The caller has checked (i + 1) * sizeof(T) <=
/// bytes.size() for the whole loop it stands in.
template <class T>
T load_element(std::span<const std::byte> bytes, std::size_t i) noexcept {
  static_assert(std::is_trivially_copyable_v<T> && std::endian::native == std::endian::little);
  T value;
  std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
  return value;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
