// SPDX-License-Identifier: Apache-2.0
// Any bytes as stored codes and as floats: every level decodes and encodes them as the reference does, bit for bit. The
// first two bytes say what they are.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "blockpack/core/convert.hpp"
#include "blockpack/quant.hpp"
#include "quant/block_code.hpp"
#include "quant/ggml_row.hpp"
#include "support/guard_page.hpp"
#include "support/levels.hpp"

using namespace blockpack;
using kernels::QuantKernels;

namespace {

using Bytes = std::vector<std::uint8_t>;
using Stored =
    test::GuardedArray<std::uint8_t>;  // kernels are not instrumented: reads behind the end die by themselves

void require(bool good) {
  if (!good) std::abort();
}

/// The same bits; a NaN is a NaN.
void require_same(const std::vector<float>& a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    require(std::memcmp(&a[i], &b[i], sizeof(float)) == 0 || (std::isnan(a[i]) && std::isnan(b[i])));
}

/// The rest of the input, as the pieces that a case takes of it.
struct Input {
  std::span<const std::uint8_t> rest;

  std::uint8_t byte() {
    if (rest.empty()) return 0;
    const std::uint8_t b = rest[0];
    rest = rest.subspan(1);
    return b;
  }
  Stored bytes(std::size_t count) const {
    Stored copy(count);
    std::copy_n(rest.begin(), count, copy.begin());
    return copy;
  }
  template <class T>
  std::vector<T> values() const {
    std::vector<T> all(rest.size() / sizeof(T));
    if (!all.empty()) std::memcpy(all.data(), rest.data(), all.size() * sizeof(T));
    return all;
  }
};

template <class Format>
void check_blocks(const Format& format, bool fixed, Input in) {
  const auto block = static_cast<std::size_t>(format.block);
  const std::size_t cut = in.byte() % block, block_bytes = static_cast<std::size_t>(format.code_bytes());
  const std::size_t blocks = in.rest.size() / (1 + block_bytes);
  const Stored scales = in.bytes(blocks);
  const Stored codes = Input{in.rest.subspan(blocks)}.bytes(blocks * block_bytes);
  std::vector<float> expected(blocks == 0 ? 0 : blocks * block - cut);
  detail::decode_block_row_reference(format, scales.data(), codes.data(), std::span<float>(expected));
  // Floats to encode: NaN is gone under `saturate` before kernels see a row.
  std::vector<float> w = in.values<float>();
  for (float& v : w) v = std::isnan(v) ? 0.0f : v;
  const std::size_t encoded_blocks = (w.size() + block - 1) / block;
  Bytes scales_expected(encoded_blocks), codes_expected(encoded_blocks * block_bytes);
  const EncodeRow row{w, {}, 0, NonFinite::saturate};
  detail::encode_block_row_reference(format, row, scales_expected.data(), codes_expected.data());
  const kernels::BlockCoder<Format> coder(format, NonFinite::saturate);
  for (const Isa level : test::levels_here()) {
    const QuantKernels& k = kernels::table_for(level).quant;
    std::vector<float> f32(expected.size());
    std::vector<std::uint16_t> half(expected.size());
    (fixed ? k.decode_f32_fixed : k.decode_f32_small)
        .fn(scales.data(), codes.data(), f32.size(), coder.code, f32.data());
    (fixed ? k.decode_bf16_fixed : k.decode_bf16_small)
        .fn(scales.data(), codes.data(), half.size(), coder.code, half.data());
    require_same(f32, expected);
    for (std::size_t i = 0; i < half.size(); ++i) require(half[i] == bf16(expected[i]).bits);
    Bytes scales_out(encoded_blocks), codes_out(codes_expected.size());
    (fixed ? k.encode_fixed : k.encode_small).fn(w.data(), w.size(), coder.code, scales_out.data(), codes_out.data());
    require(scales_out == scales_expected && codes_out == codes_expected);
  }
}

void check_group(const GroupInt& format, Input in) {
  GroupParameters p;
  const unsigned scale = in.byte() | in.byte() << 8u;
  p.scale = static_cast<float>(fp16::from_bits(static_cast<std::uint16_t>(scale)));
  p.zero_point = format.grid == GroupGrid::asymmetric ? in.byte() % (1 << format.bits) : 1 << (format.bits - 1);
  const std::size_t n = in.byte();
  const auto bytes = static_cast<std::size_t>(format.code_bytes(static_cast<index_t>(n)));
  if (bytes > in.rest.size()) return;
  const Stored codes = in.bytes(bytes);
  std::vector<float> expected(n), got(n);
  detail::decode_group_reference(format, codes.data(), p, expected);
  for (const Isa level : test::levels_here()) {
    const detail::GroupOps ops = kernels::group_ops(kernels::table_for(level).quant);
    ops.decode(ops.kernels, format, codes.data(), p, got);
    require_same(got, expected);
  }
}

void check_table(const float* levels, Input in) {
  if (in.rest.size() < 2 * sizeof(float)) return;
  const std::vector<float> scales = in.values<float>();
  in.rest = in.rest.subspan(2 * sizeof(float));
  const Stored codes = in.bytes(in.rest.size());
  std::vector<float> expected(2 * codes.size()), got(expected.size());
  const detail::TableOps& reference = detail::kTableReference;
  reference.decode(nullptr, codes.data(), levels, scales[0], scales[1], expected);
  for (const Isa level : test::levels_here()) {
    const detail::TableOps ops = kernels::table_ops(kernels::table_for(level).quant);
    ops.decode(ops.kernels, codes.data(), levels, scales[0], scales[1], got);
    require_same(got, expected);
  }
}

void check_ggml(const Ggml& format, Input in) {
  const auto block = static_cast<std::size_t>(format.spec().block);
  const std::size_t cut = in.byte() % block;
  const auto block_bytes = static_cast<std::size_t>(format.spec().block_bytes);
  const std::size_t blocks = in.rest.size() / block_bytes;
  const Stored stored = in.bytes(blocks * block_bytes);
  std::vector<float> expected(blocks == 0 ? 0 : blocks * block - cut), got(expected.size());
  detail::decode_ggml_reference(format, stored.data(), expected);
  for (const Isa level : test::levels_here()) {
    kernels::decode_ggml_row(kernels::table_for(level).ggml, format, stored.data(), std::span<float>(got));
    require_same(got, expected);
  }
}

template <class T>
void check_conversion(Input in) {
  const std::vector<float> wide = in.values<float>();
  const std::vector<T> narrow = in.values<T>();
  for (const Isa level : test::levels_here()) {
    std::vector<T> rounded(wide.size());
    convert(wide, std::span<T>(rounded), level);
    for (std::size_t i = 0; i < wide.size(); ++i) require(rounded[i].bits == T(wide[i]).bits);
    std::vector<float> values(narrow.size()), expected;
    convert(std::span<const T>(narrow), values, level);
    for (const T v : narrow) expected.push_back(static_cast<float>(v));
    require_same(values, expected);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in{{data, size}};
  const std::uint8_t kind = in.byte(), choice = in.byte();
  const int block = 16 << (choice / 16 % 4);
  switch (kind % 7) {
    case 0: {
      const Mx format{Mx::kElements[choice % std::size(Mx::kElements)], block};
      check_blocks(format, format.spec().exponent_bits == 0, in);
      break;
    }
    case 1:
      check_blocks(Bfp{.mantissa_bits = 4 + choice % 3 * 2, .block = block, .asymmetric = choice % 2 != 0}, true, in);
      break;
    case 2: {
      constexpr int kBits[] = {2, 3, 4, 8};
      constexpr GroupGrid kGrids[] = {GroupGrid::signed_max, GroupGrid::half_step, GroupGrid::max_abs,
                                      GroupGrid::asymmetric};
      check_group(GroupInt{.bits = kBits[choice % 4], .group_size = 0, .grid = kGrids[choice / 4 % 4]}, in);
      break;
    }
    case 3:
      check_table(choice % 2 == 0 ? Nf4::kLevels : Nvfp4::kLevels, in);
      break;
    case 4:
      check_ggml(Ggml{Ggml::kTypes[choice % std::size(Ggml::kTypes)]}, in);
      break;
    case 5:
      choice % 2 == 0 ? check_conversion<bf16>(in) : check_conversion<fp16>(in);
      break;
    default:
      switch (choice % 6) {
        case 0:
          check_conversion<fp8_e4m3>(in);
          break;
        case 1:
          check_conversion<fp8_e5m2>(in);
          break;
        case 2:
          check_conversion<fp6_e2m3>(in);
          break;
        case 3:
          check_conversion<fp6_e3m2>(in);
          break;
        case 4:
          check_conversion<fp4_e2m1>(in);
          break;
        default:
          check_conversion<e8m0>(in);
      }
  }
  return 0;
}
