// SPDX-License-Identifier: Apache-2.0
/// Every kernel slot of every level against the reference of the formats, byte for byte: awkward sizes, unaligned
/// starts, buffers that end at a protected page, and weights chosen to sit on ties, at the ends of the range, among the
/// subnormals and at infinity.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "blockpack/quant.hpp"
#include "kernels/table.hpp"
#include "quant/block_code.hpp"
#include "quant/weights.hpp"
#include "support/catch.hpp"
#include "support/guard_page.hpp"
#include "support/levels.hpp"

namespace {

using namespace blockpack;
using kernels::QuantKernels;
using test::GuardedArray;

const std::size_t kSizes[] = {0, 1, 15, 16, 17, 31, 32, 33, 64, 65, 127, 129, 509};

bool is_fixed(const Bfp&) { return true; }
bool is_fixed(const Mx& f) { return f.spec().exponent_bits == 0; }

/// Index of the first half that is not its value rounded to bf16; their number if there is none.
std::size_t first_difference(const std::uint16_t* half, const std::vector<float>& values) {
  std::size_t i = 0;
  while (i < values.size() && half[i] == bf16(values[i]).bits) ++i;
  return i;
}

template <class Format>
void check_shared_exponent(const Format& format, const QuantKernels& k, NonFinite policy) {
  const auto encode = is_fixed(format) ? k.encode_fixed.fn : k.encode_small.fn;
  const auto decode_f32 = is_fixed(format) ? k.decode_f32_fixed.fn : k.decode_f32_small.fn;
  const auto decode_bf16 = is_fixed(format) ? k.decode_bf16_fixed.fn : k.decode_bf16_small.fn;
  const kernels::BlockCoder<Format> coder(format, policy);
  for (const std::size_t n : kSizes) {
    for (const test::Weights kind : test::kAllWeights) {
      const bool infinite = kind == test::Weights::with_infinity;
      if (infinite && policy == NonFinite::reject) continue;
      CAPTURE(format.scheme(), n, test::to_string(kind));
      const std::size_t blocks =
          (n + static_cast<std::size_t>(format.block) - 1) / static_cast<std::size_t>(format.block);
      const std::size_t code_bytes = blocks * static_cast<std::size_t>(format.code_bytes());
      const std::vector<float> values_in = test::make_weights(kind, n, n + 1);
      GuardedArray<float> w(n);  // ends at the page, so its start has every alignment
      std::copy(values_in.begin(), values_in.end(), w.begin());
      std::vector<std::uint8_t> scales(blocks), codes(code_bytes);
      const EncodeRow row{values_in, {}, 0, policy};
      detail::encode_block_row_reference(format, row, scales.data(), codes.data());

      GuardedArray<std::uint8_t> scales_out(blocks), codes_out(code_bytes);
      encode(w.data(), n, coder.code, scales_out.data(), codes_out.data());
      REQUIRE(std::equal(scales.begin(), scales.end(), scales_out.begin()));
      REQUIRE(std::equal(codes.begin(), codes.end(), codes_out.begin()));

      std::vector<float> values(n);
      detail::decode_block_row_reference(format, scales.data(), codes.data(), std::span<float>(values));
      GuardedArray<float> f32(n);
      decode_f32(scales_out.data(), codes_out.data(), n, coder.code, f32.data());
      if (n != 0) REQUIRE(std::memcmp(values.data(), f32.data(), n * sizeof(float)) == 0);
      GuardedArray<std::uint16_t> half(n);
      decode_bf16(scales_out.data(), codes_out.data(), n, coder.code, half.data());
      REQUIRE(first_difference(half.data(), values) == n);
    }
  }
}

/// Every scale byte with every code.
template <class Format>
void check_decode_of_all_bytes(const Format& format, const QuantKernels& k) {
  const kernels::BlockCoder<Format> coder(format);
  const auto decode_f32 = is_fixed(format) ? k.decode_f32_fixed.fn : k.decode_f32_small.fn;
  const auto decode_bf16 = is_fixed(format) ? k.decode_bf16_fixed.fn : k.decode_bf16_small.fn;
  std::vector<std::int32_t> all(256);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int32_t>(i);
  const auto n = all.size();
  std::vector<std::uint8_t> codes(n * coder.code.bits / 8);
  format.pack(all, codes.data());
  std::vector<float> expected(n), got(n);
  std::vector<std::uint16_t> half(n);
  for (int scale = 0; scale < 256; ++scale) {
    CAPTURE(format.scheme(), scale);
    const std::vector<std::uint8_t> scales(n / static_cast<std::size_t>(format.block),
                                           static_cast<std::uint8_t>(scale));
    detail::decode_block_row_reference(format, scales.data(), codes.data(), std::span<float>(expected));
    decode_f32(scales.data(), codes.data(), n, coder.code, got.data());
    REQUIRE(std::memcmp(expected.data(), got.data(), n * sizeof(float)) == 0);
    decode_bf16(scales.data(), codes.data(), n, coder.code, half.data());
    REQUIRE(first_difference(half.data(), expected) == n);
  }
}

}  // namespace

TEST_CASE("MX kernels of every level give the bytes and values of the reference", "[quant][kernels]") {
  for (const Isa level : test::levels_here()) {
    const QuantKernels& k = kernels::table_for(level).quant;
    CAPTURE(to_string(level), k.encode_small.isa);
    for (const MxElement element : Mx::kElements) {
      for (const int block : {16, 32, 128}) {
        for (const MxScaleRule rule : {MxScaleRule::ocp_floor, MxScaleRule::ceil_fit}) {
          const Mx format{element, block, rule};
          check_shared_exponent(format, k, block == 16 ? NonFinite::propagate : NonFinite::saturate);
        }
      }
      check_decode_of_all_bytes(Mx{element}, k);
    }
  }
}

TEST_CASE("BFP kernels of every level give the bytes and values of the reference", "[quant][kernels]") {
  for (const Isa level : test::levels_here()) {
    const QuantKernels& k = kernels::table_for(level).quant;
    CAPTURE(to_string(level), k.encode_fixed.isa);
    for (const int bits : {4, 6, 8}) {
      for (const int block : {16, 32, 64, 128})
        for (const bool asymmetric : {false, true})
          check_shared_exponent(Bfp{bits, block, asymmetric}, k, NonFinite::saturate);
      check_decode_of_all_bytes(Bfp{bits, 64}, k);
    }
  }
}

TEST_CASE("group kernels of every level give the bytes and values of the reference", "[quant][kernels]") {
  for (const Isa level : test::levels_here()) {
    const QuantKernels& k = kernels::table_for(level).quant;
    const detail::GroupOps ops = kernels::group_ops(k);
    const detail::GroupOps& reference = detail::kGroupReference;
    CAPTURE(to_string(level), k.group_encode.isa);
    for (const int bits : {2, 3, 4, 8}) {
      for (const GroupGrid grid :
           {GroupGrid::signed_max, GroupGrid::half_step, GroupGrid::max_abs, GroupGrid::asymmetric}) {
        const GroupInt format{bits, 32, grid};
        for (const std::size_t n : kSizes) {
          for (const test::Weights kind : test::kAllWeights) {
            CAPTURE(format.scheme(), n, test::to_string(kind));
            const std::vector<float> values = test::make_weights(kind, n, n + 1);
            GuardedArray<float> w(n);
            std::copy(values.begin(), values.end(), w.begin());
            float low, high, expected_low, expected_high;
            ops.range(ops.kernels, w.span(), low, high);
            reference.range(nullptr, values, expected_low, expected_high);
            REQUIRE(low == expected_low);
            REQUIRE(high == expected_high);
            const GroupParameters p = format.stored(format.fit_range(values, low, high), 65504.0f);
            const auto bytes = static_cast<std::size_t>(format.code_bytes(static_cast<index_t>(n)));
            std::vector<std::uint8_t> codes(bytes);
            reference.encode(nullptr, format, values, p, codes.data());
            GuardedArray<std::uint8_t> codes_out(bytes);
            ops.encode(ops.kernels, format, w.span(), p, codes_out.data());
            REQUIRE(std::equal(codes.begin(), codes.end(), codes_out.begin()));
            std::vector<float> decoded(n);
            reference.decode(nullptr, format, codes.data(), p, decoded);
            GuardedArray<float> out(n);
            ops.decode(ops.kernels, format, codes_out.data(), p, out.span());
            if (n != 0) REQUIRE(std::memcmp(decoded.data(), out.data(), n * sizeof(float)) == 0);
          }
        }
      }
    }
  }
}

TEST_CASE("rows of NVFP4 are the same on every level as block by block", "[kernels][quant]") {
  for (const std::size_t n :
       {std::size_t{1}, std::size_t{16}, std::size_t{31}, std::size_t{64}, std::size_t{271}, std::size_t{1024}}) {
    for (const test::Weights kind : test::kAllWeights) {
      for (const bool four_over_six : {false, true}) {
        std::vector<float> values = test::make_weights(kind, n, n + 5);
        for (float& v : values) v = v != v ? 0.0f : v;                 // what rows hold under `saturate`
        for (std::size_t i = 0; i < n; i += 7) values[i] *= 0x1p-20f;  // scales among the subnormals of E4M3, and 0
        Nvfp4 format{four_over_six};
        for (const float v : values)
          format.tensor_absmax =
              std::max(format.tensor_absmax, std::min(std::fabs(v), std::numeric_limits<float>::max()));
        if (format.tensor_absmax < 0x1p-110f) format.tensor_absmax = 0.0f;
        CAPTURE(n, test::to_string(kind), four_over_six);
        const std::size_t blocks = (n + 15) / 16;
        std::vector<std::byte> scales(blocks), codes(8 * blocks);
        const std::array<std::byte*, 3> expected = {scales.data(), codes.data(), nullptr};
        format.encode_row({values, {}, 0, NonFinite::saturate}, expected, detail::kTableReference);
        GuardedArray<float> w(n);
        std::copy(values.begin(), values.end(), w.begin());
        for (const Isa level : test::levels_here()) {
          const QuantKernels& k = kernels::table_for(level).quant;
          CAPTURE(to_string(level), k.nvfp4_encode.isa);
          GuardedArray<std::uint8_t> scales_out(blocks), codes_out(8 * blocks);
          const std::array<std::byte*, 3> dst = {reinterpret_cast<std::byte*>(scales_out.data()),
                                                 reinterpret_cast<std::byte*>(codes_out.data()), nullptr};
          format.encode_row({w.span(), {}, 0, NonFinite::saturate}, dst, kernels::table_ops(k));
          REQUIRE(std::memcmp(scales.data(), scales_out.data(), blocks) == 0);
          REQUIRE(std::memcmp(codes.data(), codes_out.data(), 8 * blocks) == 0);
        }
      }
    }
  }
}

TEST_CASE("every level codes over tables of sixteen levels as the reference does", "[kernels][quant]") {
  for (const Isa level : test::levels_here()) {
    const QuantKernels& k = kernels::table_for(level).quant;
    const detail::TableOps ops = kernels::table_ops(k);
    const detail::TableOps& reference = detail::kTableReference;
    CAPTURE(to_string(level), k.table_encode.isa);
    for (const std::size_t n : kSizes) {
      for (const test::Weights kind : test::kAllWeights) {
        CAPTURE(n, test::to_string(kind));
        const std::vector<float> values = test::make_weights(kind, n, n + 3);
        GuardedArray<float> w(n);
        std::copy(values.begin(), values.end(), w.begin());
        REQUIRE(ops.max_magnitude(ops.kernels, w.span()) == reference.max_magnitude(nullptr, values));
        const std::size_t even = n / 2 * 2;
        for (const bool sign : {false, true}) {
          detail::TableCode table{};
          for (int i = 0; i < 15; ++i)
            table.thresholds[i] = sign ? 0.5f * static_cast<float>(i) : -3.5f + 0.5f * static_cast<float>(i);
          table.signed_magnitude = sign;
          for (const float multiplier : {1.0f, 0.37f, 0x1p100f, std::numeric_limits<float>::max()}) {
            table.multiplier = multiplier;
            std::vector<std::uint8_t> codes(even / 2);
            reference.encode(nullptr, std::span(values).first(even), table, codes.data());
            GuardedArray<float> source(even);
            std::copy_n(values.begin(), even, source.begin());
            GuardedArray<std::uint8_t> codes_out(even / 2);
            ops.encode(ops.kernels, source.span(), table, codes_out.data());
            REQUIRE(std::equal(codes.begin(), codes.end(), codes_out.begin()));
          }
        }
      }
      GuardedArray<std::uint8_t> codes((n + 1) / 2);
      for (std::size_t i = 0; i < codes.size(); ++i) codes.data()[i] = static_cast<std::uint8_t>(i * 37 + 11);
      std::vector<float> expected(n);
      GuardedArray<float> out(n);
      for (const float* levels : {Nf4::kLevels, Nvfp4::kLevels}) {
        reference.decode(nullptr, codes.data(), levels, 0.3f, 1.7f, expected);
        ops.decode(ops.kernels, codes.data(), levels, 0.3f, 1.7f, out.span());
        if (n != 0) REQUIRE(std::memcmp(expected.data(), out.data(), n * sizeof(float)) == 0);
      }
    }
  }
}
