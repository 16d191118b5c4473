// SPDX-License-Identifier: Apache-2.0
/// Codes over a table of sixteen levels: the reference of the headers.

#include <bit>
#include <cstring>
#include <span>

#include "blockpack/quant/table_code.hpp"
#include "kernels/quant/quant_kernels.hpp"

namespace blockpack::kernels {
namespace {

std::uint32_t table_absmax(const float* w, std::size_t n) noexcept { return detail::max_magnitude_bits({w, n}); }

void table_encode(const float* w, std::size_t n, const TableThresholds& t, std::uint8_t* codes) noexcept {
  detail::TableCode code;
  std::memcpy(code.thresholds, t.thresholds, sizeof code.thresholds);
  code.signed_magnitude = t.signed_magnitude;
  code.multiplier = t.multiplier;
  detail::encode_table_reference({w, n}, code, codes);
}

void table_decode(const std::uint8_t* codes, std::size_t n, const float* levels, float first, float second,
                  float* dst) noexcept {
  detail::decode_table_reference(codes, levels, first, second, {dst, n});
}

}  // namespace

void install_table_scalar(QuantKernels& t) noexcept {
  t.table_absmax = {table_absmax, "scalar"};
  t.table_encode = {table_encode, "scalar"};
  t.table_decode = {table_decode, "scalar"};
}

}  // namespace blockpack::kernels
