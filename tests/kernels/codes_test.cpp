// SPDX-License-Identifier: Apache-2.0
/// Products with packed codes: every level, width, group, kind of scale and number of tokens against sums in double,
/// and the promises about bits, threads and memory.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/core/row_matrix.hpp"
#include "blockpack/quant/group_int.hpp"
#include "blockpack/quant/mx.hpp"
#include "kernels/guarded_product.hpp"
#include "kernels/table.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/guard_page.hpp"
#include "support/levels.hpp"
#include "support/product_check.hpp"
#include "support/random.hpp"

using namespace blockpack;
using namespace blockpack::test;

namespace {

/// Random codes of a spec, the extreme ones among them.
struct Coded {
  Coded(MatrixShape s, const CodeSpec& code_spec, std::uint64_t seed) : shape(s), spec(code_spec) {
    Random random(seed);
    const auto groups = static_cast<std::size_t>(s.rows * spec.groups(s.cols));
    for (index_t i = 0; i < s.rows * spec.codes(s.cols); ++i) {
      const auto draw = static_cast<std::uint32_t>(random());
      const std::uint32_t top = (1u << spec.bits) - 1;
      codes.push_back(static_cast<std::uint8_t>(draw % 5 == 0 ? 0 : draw % 5 == 1 ? top : (draw >> 8) & top));
      if (spec.element != CodeElement::integer && !std::isfinite(level(codes.back()))) codes.back() = 0x77;
      if (!spec.two_four) continue;
      const std::uint32_t above = i % 2 == 0 ? 0 : places.back() + 1u;  // of the first one of the group
      places.push_back(static_cast<std::uint8_t>(above + (draw >> 16) % (i % 2 == 0 ? 3 : 4 - above)));
    }
    for (std::size_t g = 0; g < groups; ++g) {
      const auto draw = static_cast<std::uint32_t>(random());
      const std::uint32_t multiples = spec.scale == CodeScale::super4 ? 15 : 255;
      // Powers of two from 2^-10 to 2^9, or any fp16 or E4M3 of ordinary size, negative ones too.
      std::uint32_t bits = 117 + draw % 20;
      if (spec.scale == CodeScale::e4m3) bits = (draw % 126) | (draw >> 24 & 128);
      if (spec.scale == CodeScale::fp16) bits = fp16(static_cast<float>(draw % 2001) / 1000.0f - 1.0f).bits;
      if (spec.scale == CodeScale::f32) bits = std::bit_cast<std::uint32_t>(exp2i(static_cast<int>(draw % 20) - 10));
      // The groups of 256 weights share a step of few bits: products with codes stay exact in float32.
      if (has_two_levels(spec.scale))
        bits = fp16(static_cast<float>(1 + static_cast<index_t>(g) % spec.groups(s.cols) * spec.group / 256) / 64.0f)
                   .bits |
               (draw & multiples) << 16;
      scales.push_back(bits);
      minimums.push_back(has_two_levels(spec.scale) ? (bits & 0xffffu) | (draw >> 8 & multiples) << 16
                                                    : fp16(static_cast<float>(draw % 99) / 16.0f).bits);
      zeros.push_back(static_cast<std::uint8_t>(spec.zeros ? (draw >> 16) & ((1u << spec.bits) - 1) : 0));
    }
  }

  CodeSource source() const {
    return {shape.rows, shape.cols, spec, this, [](const void* self, index_t row, const CodeRow& dst) {
              const auto& c = *static_cast<const Coded*>(self);
              const index_t groups = c.spec.groups(c.shape.cols), count = c.spec.codes(c.shape.cols);
              std::copy_n(c.codes.data() + row * count, count, dst.codes.data());
              for (index_t i = 0; i < count && c.spec.two_four; ++i)
                dst.codes[static_cast<std::size_t>(i)] |=
                    static_cast<std::uint8_t>(c.places[static_cast<std::size_t>(row * count + i)] << 4);
              std::copy_n(c.scales.data() + row * groups, groups, dst.scales.data());
              if (c.spec.minimums) std::copy_n(c.minimums.data() + row * groups, groups, dst.minimums.data());
              if (c.spec.zeros) std::copy_n(c.zeros.data() + row * groups, groups, dst.zeros.data());
            }};
  }

  float parameter(std::uint32_t bits) const {
    switch (spec.scale) {
      case CodeScale::e8m0:
        return exp2i(static_cast<int>(bits) - 127);
      case CodeScale::e4m3:
        return static_cast<float>(fp8_e4m3::from_bits(static_cast<std::uint8_t>(bits)));
      case CodeScale::fp16:
        return static_cast<float>(fp16::from_bits(static_cast<std::uint16_t>(bits)));
      case CodeScale::f32:
        return std::bit_cast<float>(bits);
      case CodeScale::super:
      case CodeScale::super4:
        break;
    }
    return static_cast<float>(fp16::from_bits(static_cast<std::uint16_t>(bits))) *
           static_cast<float>(static_cast<std::int8_t>(bits >> 16));
  }
  /// What a code stands for.
  float level(std::uint8_t code) const {
    switch (spec.element) {
      case CodeElement::table:
        return spec.values[code];
      case CodeElement::e2m3:
        return static_cast<float>(fp6_e2m3::from_bits(code));
      case CodeElement::e3m2:
        return static_cast<float>(fp6_e3m2::from_bits(code));
      case CodeElement::e4m3:
        return static_cast<float>(fp8_e4m3::from_bits(code));
      case CodeElement::e5m2:
        return static_cast<float>(fp8_e5m2::from_bits(code));
      case CodeElement::integer:
        break;
    }
    return static_cast<float>(spec.bits == 4 ? spec.levels[code] : code);
  }
  /// The two terms of W[n, k], each exact: scales have few bits.
  std::pair<float, float> terms(index_t n, index_t k) const {
    const index_t row = n * spec.codes(shape.cols);
    index_t i = k;
    if (spec.two_four) {
      i = k / 4 * 2;
      if (places[static_cast<std::size_t>(row + i)] != k % 4) ++i;
      if (places[static_cast<std::size_t>(row + i)] != k % 4) return {0.0f, 0.0f};
    }
    const auto group = static_cast<std::size_t>(n * spec.groups(shape.cols) + i / spec.group);
    const std::uint8_t code = codes[static_cast<std::size_t>(row + i)];
    const float zero = static_cast<float>(spec.zeros ? zeros[group] : spec.zero);
    return {parameter(scales[group]) * spec.multiplier * (level(code) - zero),
            spec.minimums ? parameter(minimums[group]) : 0.0f};
  }
  float value(index_t n, index_t k) const { return terms(n, k).first + terms(n, k).second; }

  MatrixShape shape;
  CodeSpec spec;
  std::vector<std::uint8_t> codes, places, zeros;
  std::vector<std::uint32_t> scales, minimums;
};

CodeSpec make_spec(int bits, index_t group, CodeScale scale, bool zeros, bool minimums = false) {
  CodeSpec spec;
  spec.bits = bits;
  spec.group = group;
  spec.scale = scale;
  spec.zeros = zeros;
  spec.minimums = minimums;
  spec.multiplier = 0.5f;
  spec.zero = zeros ? 0 : bits == 8 ? 128 : bits - 2;
  spec.levels = zeros ? CodeSpec::integers(0) : std::array<std::int8_t, 16>{-128, -104, -83, -65, -49, -35, -22, -10,
                                                                            1,    13,   25,  38,  53,  69,  89,  127};
  return spec;
}

/// Codes that are floats. Values of the table have few bits, so that products with scales are exact.
CodeSpec make_spec(CodeElement element, index_t group, CodeScale scale) {
  CodeSpec spec;
  spec.element = element;
  spec.bits = element == CodeElement::table ? 4 : element < CodeElement::e4m3 ? 6 : 8;
  spec.group = group;
  spec.scale = scale;
  for (std::size_t c = 0; c < 16; ++c) spec.values[c] = (static_cast<float>(c) - 7.0f) * 0x1.35p-3f;
  return spec;
}

std::vector<Isa> levels_of_codes() {
  std::vector<Isa> levels;
  for (const Isa isa : levels_here())
    if (multiplies_codes(isa)) levels.push_back(isa);
  return levels;
}

/// x rounded as int8 activations are.
std::vector<float> rounded(std::span<const float> x) {
  std::vector<float> result;
  for (std::size_t first = 0; first < x.size(); first += 32) {
    float absmax = 0;
    const std::size_t end = std::min(x.size(), first + 32);
    for (std::size_t i = first; i < end; ++i) absmax = std::max(absmax, std::fabs(x[i]));
    const float a = absmax / 127.0f;
    for (std::size_t i = first; i < end; ++i) result.push_back(a == 0 ? 0.0f : round_half_even(x[i] / a) * a);
  }
  return result;
}

/// Products of few tokens in every mode, of any number in int8 and f32.
void check_few(const CodeSpec& spec) {
  for (const MatrixShape shape : {MatrixShape{3, 0}, MatrixShape{1, 1}, MatrixShape{33, 40}, MatrixShape{83, 515}}) {
    if (small_budget() && shape.rows > 33) continue;
    const Coded w(shape, spec, 7);
    const std::size_t bytes = PackedCodes::bytes_needed(shape, spec);
    GuardedArray<std::byte> memory(bytes);
    const PackedCodes packed = PackedCodes::pack(w.source(), {}, memory.span());
    REQUIRE(packed.bytes() == bytes);
    std::vector<float> values(static_cast<std::size_t>(shape.rows * shape.cols));
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = w.value(static_cast<index_t>(i) / shape.cols, static_cast<index_t>(i) % shape.cols);
    const std::vector<float> x = random_weights(9, shape.cols, 3);
    for (const Isa isa : levels_of_codes()) {
      for (const Activations mode : {Activations::int8, Activations::bf16, Activations::f32}) {
        ApplyOptions how;
        how.execution.isa = isa;
        how.execution.threads = 1;
        how.activations = mode;
        const index_t most = mode == Activations::bf16 ? 8 : 9;  // of bf16, more go through tiles
        const std::vector<float> all = multiply(packed, x, most, how);
        for (index_t m = 0; m < most; ++m) {
          const std::span<const float> row(x.data() + m * shape.cols, static_cast<std::size_t>(shape.cols));
          const std::vector<float> integers = rounded(row);
          for (index_t n = 0; n < shape.rows; ++n) {
            const std::span<const float> weights(values.data() + n * shape.cols, row.size());
            ProductCheck check = check_product(row, weights, mode, true);
            const double got = all[static_cast<std::size_t>(m * shape.rows + n)];
            if (mode == Activations::int8) {  // tighter: x is rounded, and then only the few sums of the steps are
              check = check_product(integers, weights, Activations::f32, true);
              // The sums of a minimum and of its codes are taken apart.
              double both = 0;
              for (index_t k = 0; k < shape.cols; ++k) {
                const auto [a, b] = w.terms(n, k);
                both += std::abs(double{integers[static_cast<std::size_t>(k)]}) * (std::abs(a) + std::abs(b));
              }
              check.bound = gamma_bound(static_cast<double>(shape.cols) + 2) * both;
            }
            CAPTURE(to_string(isa), to_string(mode), to_string(shape), m, n, got, check.value, check.bound);
            if (std::abs(got - check.value) > check.bound) REQUIRE(std::abs(got - check.value) <= check.bound);
          }
        }
        // A token has the same bits in every batch, and for every number of threads.
        for (const index_t tokens : {1, 2, 3, 5, 7, 8}) {
          how.execution.threads = tokens == 3 ? 3 : 1;
          const std::vector<float> some = multiply(packed, x, tokens, how);
          REQUIRE((some.empty() || std::memcmp(some.data(), all.data(), some.size() * sizeof(float)) == 0));
        }
      }
    }
  }
}

/// Products through decoded panels.
void check_many(const CodeSpec& spec) {
  for (const MatrixShape shape : {MatrixShape{5, 0}, MatrixShape{1, 1}, MatrixShape{47, 515}, MatrixShape{160, 1056}}) {
    if (small_budget() && shape.rows > 47) continue;
    const Coded w(shape, spec, 11);
    GuardedArray<std::byte> memory(PackedCodes::bytes_needed(shape, spec));
    const PackedCodes packed = PackedCodes::pack(w.source(), {}, memory.span());
    std::vector<float> values(static_cast<std::size_t>(shape.rows * shape.cols));
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = w.value(static_cast<index_t>(i) / shape.cols, static_cast<index_t>(i) % shape.cols);
    const index_t most = small_budget() ? 35 : 300;
    const std::vector<float> x = random_weights(most, shape.cols, 3);
    for (const Isa isa : levels_of_codes()) {
      if (!decodes_codes(isa)) continue;
      ApplyOptions how;
      how.execution.isa = isa;
      how.execution.threads = 1;
      how.execution.batch_invariant = true;
      how.activations = Activations::bf16;
      const std::vector<float> all = multiply(packed, x, most, how);
      for (index_t m = 0; m < most; m += most / 8 - 1) {
        for (index_t n = 0; n < shape.rows; ++n) {
          const std::span<const float> row(x.data() + m * shape.cols, static_cast<std::size_t>(shape.cols));
          const ProductCheck check =
              check_product(row, {values.data() + n * shape.cols, row.size()}, how.activations, false);
          const double got = all[static_cast<std::size_t>(m * shape.rows + n)];
          CAPTURE(to_string(isa), to_string(shape), m, n, got, check.value, check.bound);
          if (std::abs(got - check.value) > check.bound) REQUIRE(std::abs(got - check.value) <= check.bound);
        }
      }
      for (const index_t tokens : {1, 9, 17, 33, 65, 129}) {
        if (tokens > most) break;
        how.execution.threads = tokens == 17 ? 3 : 1;
        const std::vector<float> some = multiply(packed, x, tokens, how);
        REQUIRE((some.empty() || std::memcmp(some.data(), all.data(), some.size() * sizeof(float)) == 0));
      }
    }
  }
}

struct CodeForm {
  int bits;
  index_t group;
  CodeScale scale;
  bool zeros;
  bool minimums = false;
  CodeElement element = CodeElement::integer;

  CodeSpec spec() const {
    return element != CodeElement::integer ? make_spec(element, group, scale)
                                           : make_spec(bits, group, scale, zeros, minimums);
  }
};

TEST_CASE("products with packed codes are within the bound of their mode on every level", "[kernels][codes][smoke]") {
  const CodeForm form = GENERATE(
      CodeForm{4, 64, CodeScale::fp16, false, false, CodeElement::table},
      CodeForm{4, 16, CodeScale::e8m0, false, false, CodeElement::table},
      CodeForm{6, 32, CodeScale::e8m0, false, false, CodeElement::e2m3},
      CodeForm{6, 16, CodeScale::e8m0, false, false, CodeElement::e3m2},
      CodeForm{8, 16, CodeScale::e8m0, false, false, CodeElement::e4m3},
      CodeForm{8, 64, CodeScale::e8m0, false, false, CodeElement::e5m2}, CodeForm{4, 32, CodeScale::e8m0, false},
      CodeForm{4, 16, CodeScale::e4m3, false}, CodeForm{4, 32, CodeScale::fp16, true},
      CodeForm{4, 128, CodeScale::fp16, false}, CodeForm{4, 256, CodeScale::fp16, false},
      CodeForm{4, 544, CodeScale::f32, true}, CodeForm{8, 32, CodeScale::e8m0, false},
      CodeForm{8, 16, CodeScale::f32, false}, CodeForm{8, 64, CodeScale::fp16, true},
      CodeForm{8, 128, CodeScale::e8m0, false}, CodeForm{4, 32, CodeScale::super, false, true},
      CodeForm{4, 16, CodeScale::super, false, false}, CodeForm{8, 16, CodeScale::super, false, true},
      CodeForm{8, 32, CodeScale::fp16, false, true}, CodeForm{2, 256, CodeScale::fp16, false},
      CodeForm{2, 16, CodeScale::super4, false, true}, CodeForm{3, 32, CodeScale::super4, true, true},
      CodeForm{2, 32, CodeScale::fp16, true}, CodeForm{3, 16, CodeScale::super, false, false},
      CodeForm{3, 64, CodeScale::fp16, true}, CodeForm{3, 32, CodeScale::e8m0, false},
      CodeForm{5, 32, CodeScale::super, false, true}, CodeForm{5, 16, CodeScale::e8m0, false},
      CodeForm{6, 16, CodeScale::super, false, false}, CodeForm{6, 32, CodeScale::fp16, true});
  CAPTURE(form.bits, form.group, form.zeros, static_cast<int>(form.scale), static_cast<int>(form.element));
  check_few(form.spec());
}

TEST_CASE("many tokens through decoded panels are within the bound of bf16, and bits do not depend on batch or threads",
          "[kernels][codes]") {
  const CodeForm form =
      GENERATE(CodeForm{4, 64, CodeScale::fp16, false, false, CodeElement::table},
               CodeForm{6, 32, CodeScale::e8m0, false, false, CodeElement::e2m3},
               CodeForm{6, 16, CodeScale::f32, false, false, CodeElement::e3m2},
               CodeForm{8, 16, CodeScale::e8m0, false, false, CodeElement::e4m3},
               CodeForm{8, 64, CodeScale::e8m0, false, false, CodeElement::e5m2},
               CodeForm{4, 32, CodeScale::e8m0, false}, CodeForm{4, 16, CodeScale::e4m3, false},
               CodeForm{4, 32, CodeScale::fp16, true}, CodeForm{4, 544, CodeScale::f32, true},
               CodeForm{8, 32, CodeScale::e8m0, false}, CodeForm{8, 128, CodeScale::fp16, true},
               CodeForm{4, 32, CodeScale::super, false, true}, CodeForm{8, 16, CodeScale::super, false, true},
               CodeForm{2, 16, CodeScale::super, false, true}, CodeForm{3, 32, CodeScale::fp16, true},
               CodeForm{5, 32, CodeScale::fp16, false, true}, CodeForm{6, 16, CodeScale::super, false});
  CAPTURE(form.bits, form.group, form.zeros, static_cast<int>(form.scale), static_cast<int>(form.element));
  check_many(form.spec());
}

TEST_CASE("products with codes of two of every four weights are within the bound of their mode",
          "[kernels][codes][two_four][smoke]") {
  struct Form {
    index_t group;
    CodeScale scale;
    bool zeros = false;
    CodeElement element = CodeElement::integer;
    int first = 99;  ///< of levels in a row; 99: others
    int zero = 2;
  };
  const Form form =
      GENERATE(Form{32, CodeScale::fp16, false, CodeElement::integer, 0, 8}, Form{16, CodeScale::e4m3},
               Form{32, CodeScale::fp16, true}, Form{16, CodeScale::fp16, true},
               Form{128, CodeScale::fp16, false, CodeElement::integer, -8, 0},
               Form{16, CodeScale::super, false, CodeElement::integer, -8, 0},
               Form{32, CodeScale::super4, false, CodeElement::integer, 99, 0}, Form{544, CodeScale::f32, false},
               Form{256, CodeScale::fp16, true}, Form{64, CodeScale::fp16, false, CodeElement::table, 99, 0},
               Form{16, CodeScale::e8m0, false, CodeElement::table, 99, 0},
               Form{32, CodeScale::e8m0, false, CodeElement::table, 99, 0});
  CAPTURE(form.group, form.zeros, form.first, static_cast<int>(form.scale), static_cast<int>(form.element));
  CodeSpec spec = form.element != CodeElement::integer ? make_spec(form.element, form.group, form.scale)
                                                       : make_spec(4, form.group, form.scale, form.zeros);
  spec.two_four = true;
  if (form.first < 99) spec.levels = CodeSpec::integers(form.first);
  if (!form.zeros) spec.zero = form.zero;
  check_few(spec);
  check_many(spec);
}

TEST_CASE("the largest integer sums are exact", "[kernels][codes]") {
  // 32 codes of the largest magnitude times activations of 127: 255 * 127 * 32 a step.
  std::vector<CodeSpec> specs;
  for (const int bits : {2, 3, 4, 5, 6, 8}) specs.push_back(make_spec(bits, 32, CodeScale::e8m0, false));
  specs.push_back(specs[2]);
  specs.back().levels = CodeSpec::integers(-8);
  specs.push_back(specs[2]);
  for (std::size_t c = 0; c < 16; ++c) specs.back().levels[c] = static_cast<std::int8_t>(c < 8 ? -16 : 16);
  for (const CodeSpec& spec : specs) {
    for (const int code : {0, (1 << spec.bits) - 1}) {
      Coded w({16, 64}, spec, 1);
      std::fill(w.codes.begin(), w.codes.end(), static_cast<std::uint8_t>(code));
      std::fill(w.scales.begin(), w.scales.end(), 127u);
      const PackedCodes packed = PackedCodes::pack(w.source(), {});
      for (const index_t tokens : {1, 2, 8}) {
        for (const float sign : {-1.0f, 1.0f}) {
          const std::vector<float> x(static_cast<std::size_t>(64 * tokens), 127.0f * sign);  // a = 1
          for (const Isa isa : levels_of_codes()) {
            ApplyOptions how;
            how.execution.isa = isa;
            how.activations = Activations::int8;
            CAPTURE(spec.bits, code, tokens, to_string(isa));
            for (const float got : multiply(packed, x, tokens, how))
              REQUIRE(got == 64.0f * 127.0f * sign * w.value(0, 0));
          }
        }
      }
    }
  }
}

TEST_CASE("extreme scales: the smallest and largest powers of two, NaN, and activations near the ends of float",
          "[kernels][codes]") {
  Coded w({16, 32}, make_spec(4, 32, CodeScale::e8m0, false), 5);
  w.spec.levels = CodeSpec::integers(-8);
  for (std::size_t r = 0; r < 16; ++r) w.scales[r] = r < 4 ? static_cast<std::uint32_t>(r) : 240u;
  w.scales[15] = 255;
  const PackedCodes packed = PackedCodes::pack(w.source(), {});
  for (const Isa isa : levels_of_codes()) {
    for (const Activations mode : {Activations::f32, Activations::int8}) {
      ApplyOptions how;
      how.execution.isa = isa;
      how.activations = mode;
      for (const float unit : {0x1p-149f, 0x1p-130f, 1.0f, 0x1p110f}) {
        std::vector<float> x;
        for (int i = 0; i < 32; ++i) x.push_back(static_cast<float>(i % 7 - 3) * unit);
        const std::vector<float> y = multiply(packed, x, 1, how);
        for (index_t n = 0; n < 15; ++n) {
          std::vector<float> row;
          for (index_t k = 0; k < 32; ++k) row.push_back(w.value(n, k));
          const ProductCheck check = check_product(x, row, mode, true);
          const double got = y[static_cast<std::size_t>(n)];
          CAPTURE(to_string(isa), to_string(mode), unit, n, got, check.value, check.bound);
          if (std::abs(check.value) > 0x1p127) continue;  // beyond float
          REQUIRE(std::abs(got - check.value) <= check.bound);
        }
        REQUIRE(std::isnan(y[15]));
      }
    }
  }
}

TEST_CASE("the largest scales of every kind, the subnormal ones and 0 are within the bound", "[kernels][codes]") {
  struct Form {
    CodeScale scale;
    std::vector<std::uint32_t> bits;  ///< of two levels the int8 in the byte above the binary16
  };
  const std::vector<Form> forms = {{CodeScale::e8m0, {0, 1, 2, 126, 230}},
                                   {CodeScale::e4m3, {0x00, 0x01, 0x07, 0x7e, 0xfe, 0x81}},
                                   {CodeScale::fp16, {0x0000, 0x0001, 0x03ff, 0x7bff, 0xfbff, 0x8001}},
                                   {CodeScale::f32, {0, 1, 0x007fffff, 0x7a000000, 0x80000001, 0xfa000000}},
                                   {CodeScale::super, {0x800001, 0x7f03ff, 0x807bff, 0x007bff, 0x7ffbff, 0x010001}},
                                   {CodeScale::super4, {0x0f0001, 0x0103ff, 0x0f7bff, 0x007bff, 0x0ffbff, 0x010001}}};
  for (const Form& form : forms) {
    for (const int bits : {4, 8}) {
      CodeSpec spec = make_spec(bits, 32, form.scale, false);
      spec.multiplier = 1.0f;
      if (bits == 4) spec.levels = CodeSpec::integers(-8);
      Coded w({static_cast<index_t>(form.bits.size()), 64}, spec, 5);
      for (std::size_t g = 0; g < w.scales.size(); ++g) w.scales[g] = form.bits[g / 2];
      const PackedCodes packed = PackedCodes::pack(w.source(), {});
      const std::vector<float> x = random_normal(64, 9);
      for (const Isa isa : levels_of_codes()) {
        for (const Activations mode : {Activations::f32, Activations::int8}) {
          ApplyOptions how;
          how.execution.isa = isa;
          how.activations = mode;
          const std::vector<float> y = multiply(packed, x, 1, how);
          for (index_t n = 0; n < w.shape.rows; ++n) {
            std::vector<float> row;
            for (index_t k = 0; k < 64; ++k) row.push_back(w.value(n, k));
            const ProductCheck check = check_product(x, row, mode, true);
            const double got = y[static_cast<std::size_t>(n)];
            CAPTURE(to_string(isa), to_string(mode), static_cast<int>(form.scale), bits, n, got);
            CAPTURE(check.value, check.bound);
            REQUIRE(std::abs(got - check.value) <= check.bound);
          }
        }
      }
    }
  }
}

TEST_CASE("codes that are infinity or NaN make the sums of their row what they make of it", "[kernels][codes]") {
  struct Form {
    CodeElement element;
    std::uint8_t code;
  };
  for (const Form form : {Form{CodeElement::e4m3, 0x7f}, Form{CodeElement::e4m3, 0xff}, Form{CodeElement::e5m2, 0x7c},
                          Form{CodeElement::e5m2, 0xfc}, Form{CodeElement::e5m2, 0x7e}}) {
    Coded w({17, 33}, make_spec(form.element, 32, CodeScale::e8m0), 5);
    w.codes[3 * 33 + 7] = form.code;
    const PackedCodes packed = PackedCodes::pack(w.source(), {});
    const std::vector<float> x(9 * 33, 0.5f);
    for (const Isa isa : levels_of_codes()) {
      for (const index_t tokens : {1, 9}) {
        ApplyOptions how;
        how.execution.isa = isa;
        how.activations = tokens == 9 && decodes_codes(isa) ? Activations::bf16 : Activations::f32;
        const std::vector<float> y = multiply(packed, x, tokens, how);
        for (index_t n = 0; n < 17; ++n) {
          CAPTURE(to_string(isa), tokens, n, static_cast<int>(form.code));
          const float got = y[static_cast<std::size_t>(n)], wanted = n == 3 ? w.level(form.code) : 0.0f;
          REQUIRE(std::isnan(got) == std::isnan(wanted));
          if (std::isinf(wanted)) REQUIRE(got == wanted);
          if (n != 3) REQUIRE(std::isfinite(got));
        }
      }
    }
  }
}

TEST_CASE("activations are quantized to the same codes on every level", "[kernels][codes]") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto& scalar = kernels::table_for(Isa::scalar).codes;
  for (const Isa isa : levels_of_codes()) {
    const auto& level = kernels::table_for(isa).codes;
    for (const std::size_t n : {1u, 31u, 32u, 33u, 64u, 97u}) {
      for (int variant = 0; variant < 8; ++variant) {
        GuardedArray<float> x(n);
        const std::vector<float> values = random_weights(1, static_cast<index_t>(n), variant + n);
        for (std::size_t i = 0; i < n; ++i) x[i] = values[i] * (variant == 1 ? 0x1p-140f : 1.0f);
        if (variant == 2) std::fill(x.begin(), x.end(), 0.0f);
        if (variant == 3) x[n / 2] = kInfinity;
        if (variant == 4) x[n - 1] = std::numeric_limits<float>::quiet_NaN();
        if (variant == 5)  // ties
          for (std::size_t i = 0; i < n; ++i) x[i] = i % 32 == 0 ? 127.0f : static_cast<float>(i % 32) + 0.5f;
        if (variant >= 6)  // 127 steps of the smallest float do not reach absmax, nor 127 of twice that
          for (std::size_t i = 0; i < n; ++i) x[i] = (i % 2 == 0 ? 0x1p-149f : -0x1p-149f) * (variant == 6 ? 128 : 255);
        const std::size_t steps = (n + 31) / 32;
        std::vector<std::int8_t> codes[2];
        std::vector<float> scales[2];
        std::vector<std::int16_t> sums[2];
        for (int which = 0; which < 2; ++which) {
          codes[which].assign(steps * 64, 0);
          scales[which].assign(steps * 2, 0.0f);
          sums[which].assign(steps * 4, 0);
          (which == 0 ? scalar : level)
              .quantize.fn(x.data(), static_cast<index_t>(n), 2, codes[which].data(), scales[which].data(),
                           sums[which].data());
        }
        CAPTURE(to_string(isa), n, variant);
        REQUIRE(codes[0] == codes[1]);
        REQUIRE(sums[0] == sums[1]);
        REQUIRE(std::memcmp(scales[0].data(), scales[1].data(), scales[0].size() * sizeof(float)) == 0);
        for (std::size_t s = 0; s < steps; ++s)
          for (std::size_t i = 32 * s; i < std::min(n, 32 * s + 32); ++i)
            if (variant == 3 || variant == 4) {
              REQUIRE(std::isnan(scales[0][2 * s]) == (s == (variant == 3 ? n / 2 : n - 1) / 32));
            } else {
              static constexpr std::size_t kPlace[8] = {0, 2, 4, 6, 1, 3, 5, 7};  // of k in kCodeOrder
              const int code = codes[0][s * 64 + i % 32 / 8 * 8 + kPlace[i % 8]];
              REQUIRE(std::abs(x[i] - static_cast<float>(code) * scales[0][2 * s]) <= 0.5001f * scales[0][2 * s]);
            }
      }
    }
  }
}

TEST_CASE("packing codes refuses memory that is too small or unaligned and takes the caller's otherwise",
          "[kernels][codes]") {
  const Coded w({40, 50}, make_spec(4, 32, CodeScale::fp16, false), 1);
  const std::size_t bytes = PackedCodes::bytes_needed(w.shape, w.spec);
  AlignedBuffer<std::byte> memory(static_cast<index_t>(bytes + 64));
  REQUIRE_THROWS_AS(PackedCodes::pack(w.source(), {}, memory.span().first(bytes - 1)), ShapeError);
  REQUIRE_THROWS_AS(PackedCodes::pack(w.source(), {}, memory.span().subspan(1, bytes)), ShapeError);
  REQUIRE(PackedCodes::pack(w.source(), {}, memory.span().first(bytes)).data() == memory.data());
  REQUIRE(PackedCodes::bytes_needed({0, 50}, w.spec) == 0);
  REQUIRE(PackedCodes::bytes_needed({50, 0}, w.spec) == 0);
}

TEST_CASE("the pack policy holds for codes, and a packed matrix computes without its stored form", "[kernels][codes]") {
  const MatrixShape shape{37, 130};
  const std::vector<float> w = random_weights(shape.rows, shape.cols, 3);
  const std::vector<float> x = random_normal(17 * shape.cols, 5);
  const auto apply = [&](const auto& op, index_t tokens) {
    std::vector<float> y(static_cast<std::size_t>(tokens * shape.rows));
    op.apply(MatrixView<const float>(x.data(), tokens, shape.cols), MatrixView<float>(y.data(), tokens, shape.rows));
    return y;
  };
  const MatrixView<const float> view(w.data(), shape.rows, shape.cols);
  const bool codes = multiplies_codes(active_isa());
  const std::size_t bytes = PackedCodes::bytes_needed(shape, *Mx{}.code_spec(shape.cols, {}));
  auto op = RowMatrix<Mx>::encode(view);
  CHECK(op.packed_bytes() == 0);
  const Activations mode = resolve(Activations::automatic, 4.25, active_isa(), codes);
  const bool any_tokens = codes && code_tokens(*Mx{}.code_spec(shape.cols, {}), active_isa(), mode) > kCodeTokens;
  CHECK(op.activation_mode(9) == resolve(Activations::automatic, 4.25, active_isa(), any_tokens));
  CHECK(op.activation_mode(8) == resolve(Activations::automatic, 4.25, active_isa(), codes));
  const std::vector<float> nine = apply(op, 9);
  const bool decodes = codes && decodes_codes(active_isa());
  CHECK(op.packed_bytes() == (any_tokens || decodes ? bytes : 0));  // many tokens take codes, or decode rows
  const std::vector<float> y = apply(op, 8);
  CHECK(op.packed_bytes() == (codes ? bytes : 0));
  CHECK(RowMatrix<Mx>::encode(view, {}, {}, PackPolicy::ahead()).packed_bytes() == op.packed_bytes());
  const auto none = RowMatrix<Mx>::encode(view, {}, {}, PackPolicy::none());
  apply(none, 1);
  CHECK(none.packed_bytes() == 0);
  CHECK(none.packed_bytes_needed() == (codes ? bytes : 0));
  AlignedBuffer<std::byte> memory(static_cast<index_t>(bytes));
  const auto into = RowMatrix<Mx>::encode(view, {}, {}, PackPolicy::into(memory.span()));
  CHECK(into.packed_bytes() == op.packed_bytes());
  CHECK(apply(into, 8) == y);
  AlignedBuffer<std::byte> part(static_cast<index_t>(none.row_range(3, 5).packed_bytes_needed()));
  CHECK(none.row_range(3, 5, PackPolicy::into(part.span())).packed_bytes() == static_cast<std::size_t>(part.size()));
  AnyLinear any = into;
  CHECK(any.packed_bytes_needed() == none.packed_bytes_needed());
  if (codes) {
    const AnyLinear copy = any;
    any.release_stored();
    CHECK(any.storage_bytes() == 0);
    CHECK(copy.storage_bytes() == into.storage_bytes());
    CHECK(apply(any, 8) == y);
  }
  CHECK_THROWS_AS(AnyLinear(none).release_stored(), UnsupportedError);
  if (!codes) return;
  op.release_stored();
  CHECK(apply(op, 8) == y);
  const std::vector<float> many = apply(op, 17);
  if (decodes) {
    CHECK(std::equal(nine.begin(), nine.end(), many.begin()));
  } else {
    CHECK(std::equal(y.begin(), y.end(), many.begin()));
  }
}

TEST_CASE("a released matrix computes what it is packed for and refuses the rest", "[kernels][codes]") {
  const std::vector<float> w = random_weights(20, 40, 3), x = random_normal(2 * 40, 5);
  std::vector<float> y(2 * 20);
  const MatrixView<const float> tokens(x.data(), 2, 40);
  const MatrixView<float> out(y.data(), 2, 20);
  auto op = Dense<float>::encode(MatrixView<const float>(w.data(), 20, 40));
  ApplyOptions how;
  how.activations = Activations::f32;
  op.apply(tokens, out, how);
  op.release_stored();
  op.apply(tokens, out, how);
  how.activations = Activations::bf16;
  CHECK_THROWS_AS(op.apply(tokens, out, how), UnsupportedError);
  auto nothing = RowMatrix<Mx>::encode(MatrixView<const float>(nullptr, 4, 0));
  nothing.release_stored();
  nothing.apply(MatrixView<const float>(nullptr, 9, 0), MatrixView<float>(y.data(), 9, 4));
  CHECK(y[35] == 0.0f);
}

TEST_CASE("packed codes of no columns give zeros for any number of tokens, and levels without kernels refuse",
          "[kernels][codes]") {
  const Coded w({3, 0}, make_spec(4, 32, CodeScale::e8m0, false), 5);
  const PackedCodes packed = PackedCodes::pack(w.source(), {});
  for (const Isa isa : levels_here()) {
    GuardedArray<float> y(27);
    ApplyOptions how;
    how.execution.isa = isa;
    const MatrixView<const float> x(nullptr, 9, 0);
    const MatrixView<float> out(y.data(), 9, 3);
    if (multiplies_codes(isa)) {
      std::fill(y.data(), y.data() + 27, 1.0f);
      matmul(x, packed, out, Activations::f32, how);
      CHECK(std::all_of(y.data(), y.data() + 27, [](float v) { return v == 0.0f; }));
    } else {
      CHECK_THROWS_AS(matmul(x, packed, out, Activations::f32, how), UnsupportedError);
    }
  }
}

TEST_CASE("tokens beyond a pass over packed codes get the same bits, epilogue and all", "[kernels][codes]") {
  const MatrixShape shape{70, 96};
  const index_t tokens = small_budget() ? 19 : 261;  // two chunks of them
  const Coded w(shape, make_spec(4, 32, CodeScale::fp16, false, true), 3);
  const PackedCodes packed = PackedCodes::pack(w.source(), {});
  const std::vector<float> x = random_weights(tokens, shape.cols, 3), gate = random_weights(tokens, shape.rows, 4);
  const MatrixView<const float> all(x.data(), tokens, shape.cols), gates(gate.data(), tokens, shape.rows);
  for (const Isa isa : levels_of_codes()) {
    for (const Activations mode : {Activations::int8, Activations::f32}) {
      ApplyOptions how;
      how.execution.isa = isa;
      how.execution.threads = 2;
      how.epilogue.gate = gates;
      std::vector<float> y(static_cast<std::size_t>(tokens * shape.rows)), one(static_cast<std::size_t>(shape.rows));
      matmul(all, packed, MatrixView<float>(y.data(), tokens, shape.rows), mode, how);
      how.execution.threads = 1;
      for (index_t m = 0; m < tokens; ++m) {
        how.epilogue.gate = gates.rows_from(m, 1);
        matmul(all.rows_from(m, 1), packed, MatrixView<float>(one.data(), 1, shape.rows), mode, how);
        CAPTURE(to_string(isa), to_string(mode), m);
        REQUIRE(std::memcmp(one.data(), y.data() + m * shape.rows, one.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("automatic activations are int8 for narrow codes where a level has integer dots", "[kernels][codes]") {
  for (const Isa isa : levels_here()) {
    const bool integer = isa != Isa::scalar && kernels::table_for(isa).codes.few_int8.fn != nullptr;
    CHECK(resolve(Activations::automatic, 4.25, isa, true) == (integer ? Activations::int8 : Activations::f32));
    CHECK(resolve(Activations::automatic, 8.5, isa, true) == Activations::f32);
    CHECK(resolve(Activations::f32, 4.25, isa, true) == Activations::f32);
  }
}

}  // namespace
