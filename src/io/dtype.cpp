// SPDX-License-Identifier: Apache-2.0
#include "blockpack/io/dtype.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "blockpack/core/convert.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/io/checked.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

struct DtypeInfo {
  std::string_view name;
  int bits;
  bool computable;
};
constexpr std::array<DtypeInfo, kDtypeCount> kInfo{{
    {"BOOL", 8, false},    {"F4", 4, false},         {"F6_E2M3", 6, false},    {"F6_E3M2", 6, false},
    {"U8", 8, false},      {"I8", 8, false},         {"F8_E5M2", 8, true},     {"F8_E4M3", 8, true},
    {"F8_E8M0", 8, false}, {"F8_E4M3FNUZ", 8, true}, {"F8_E5M2FNUZ", 8, true}, {"I16", 16, false},
    {"U16", 16, false},    {"F16", 16, true},        {"BF16", 16, true},       {"I32", 32, false},
    {"U32", 32, false},    {"F32", 32, true},        {"C64", 64, false},       {"F64", 64, true},
    {"I64", 64, false},    {"U64", 64, false},
}};
const DtypeInfo& info(Dtype dtype) noexcept { return kInfo[static_cast<std::size_t>(dtype)]; }

/// Half to even without reading the floating-point environment.
float round_to_float(std::uint64_t bits) noexcept {
  const auto sign = static_cast<std::uint32_t>(bits >> 32) & 0x80000000u;
  const std::uint64_t magnitude = bits & 0x7fffffffffffffffu;
  const int exponent = static_cast<int>(magnitude >> 52);
  if (magnitude > 0x7ff0000000000000u) {  // NaN: quiet, upper payload kept
    const auto payload = static_cast<std::uint32_t>(magnitude >> 29) & 0x7fffffu;
    return std::bit_cast<float>(sign | 0x7fc00000u | payload);
  }
  if (exponent >= 1023 + 128) return std::bit_cast<float>(sign | 0x7f800000u);  // arithmetic: exponents
  const int below_normal = exponent < 1023 - 126 ? 1023 - 126 - exponent : 0;   // arithmetic: exponents
  const int shift = 29 + below_normal;                                          // arithmetic: bit positions, 29..
  if (shift > 54) return std::bit_cast<float>(sign);  // below half of the smallest subnormal, float's -149
  const std::uint64_t mantissa = (magnitude & 0x000fffffffffffffu) | 0x0010000000000000u;
  const std::uint64_t half = std::uint64_t{1} << (shift - 1);   // arithmetic: bit positions
  const std::uint64_t fraction = mantissa & ((half << 1) - 1);  // arithmetic: a bit mask
  std::uint64_t code = mantissa >> shift;
  if (fraction > half || (fraction == half && (code & 1u) != 0)) ++code;
  if (below_normal == 0) code += static_cast<std::uint64_t>(exponent - (1023 - 127) - 1) << 23;  // arithmetic: rebias
  return std::bit_cast<float>(sign | static_cast<std::uint32_t>(code));
}

/// Floats of 8 bits with one NaN, code 0x80, and no negative zero or infinity.
template <int kExponentBits, int kMantissaBits, int kBias>
float fnuz_to_float(std::uint8_t code) noexcept {
  if (code == 0x80u) return std::numeric_limits<float>::quiet_NaN();
  const auto without = SmallFloat<kExponentBits, kMantissaBits, kBias, Specials::none>::from_bits(code);
  return static_cast<float>(without);
}

using Table = std::array<float, 256>;
template <class F>
Table table_of(const F& decode) noexcept {
  Table table;
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = decode(static_cast<std::uint8_t>(i));
  return table;
}
void look_up(const Table& table, std::span<const std::byte> src, std::span<float> dst) noexcept {
  for (std::size_t i = 0; i < dst.size(); ++i) dst[i] = table[std::to_integer<std::size_t>(src[i])];
}

/// Through the bulk kernels, which want elements of their type: the bytes pass a small buffer.
template <class T>
void convert_by_kernel(std::span<const std::byte> src, std::span<float> dst) {
  std::array<T, 1024> aligned;
  while (!dst.empty()) {
    const std::size_t n = std::min(aligned.size(), dst.size());
    const std::span<T> piece = std::span(aligned).first(n);
    const std::span<const std::byte> bytes = src.first(piece.size_bytes());
    std::memcpy(piece.data(), bytes.data(), bytes.size());
    convert(std::span<const T>(piece), dst.first(n));
    src = src.subspan(bytes.size());
    dst = dst.subspan(n);
  }
}

}  // namespace

std::string_view to_string(Dtype dtype) noexcept { return info(dtype).name; }

std::optional<Dtype> dtype_from_name(std::string_view name) noexcept {
  for (std::size_t i = 0; i < kInfo.size(); ++i)
    if (kInfo[i].name == name) return static_cast<Dtype>(i);
  return std::nullopt;
}

int dtype_bits(Dtype dtype) noexcept { return info(dtype).bits; }
bool computable(Dtype dtype) noexcept { return info(dtype).computable; }

std::optional<std::uint64_t> dtype_bytes(Dtype dtype, std::uint64_t elements) noexcept {
  const auto bits = try_mul(elements, static_cast<std::uint64_t>(dtype_bits(dtype)));
  if (!bits || *bits % 8 != 0) return std::nullopt;
  return *bits / 8;
}

void convert_to_f32(Dtype dtype, std::span<const std::byte> src, std::span<float> dst, std::string_view what) {
  if (!computable(dtype))
    throw UnsupportedError(fmt::format("{}: cannot compute with dtype {}; it can be copied, but not converted to float",
                                       what, to_string(dtype)));
  if (dtype_bytes(dtype, dst.size()) != src.size())
    throw ShapeError(
        fmt::format("{}: {} bytes do not hold {} elements of {}", what, src.size(), dst.size(), to_string(dtype)));
  const std::size_t n = dst.size();
  switch (dtype) {
    case Dtype::f32:
      if (n != 0) std::memcpy(dst.data(), src.data(), src.size());
      break;
    case Dtype::bf16:
      convert_by_kernel<bf16>(src, dst);
      break;
    case Dtype::f16:
      convert_by_kernel<fp16>(src, dst);
      break;
    case Dtype::f64:
      for (std::size_t i = 0; i < n; ++i) dst[i] = round_to_float(load_element<std::uint64_t>(src, i));
      break;
    case Dtype::f8_e4m3:
      convert_by_kernel<fp8_e4m3>(src, dst);
      break;
    case Dtype::f8_e5m2:
      convert_by_kernel<fp8_e5m2>(src, dst);
      break;
    case Dtype::f8_e4m3fnuz: {
      static const Table table = table_of(fnuz_to_float<4, 3, 8>);
      look_up(table, src, dst);
      break;
    }
    default: {
      static const Table table = table_of(fnuz_to_float<5, 2, 16>);
      look_up(table, src, dst);
    }
  }
}

}  // namespace blockpack::inline BLOCKPACK_ABI
