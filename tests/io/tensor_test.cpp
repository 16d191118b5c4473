// SPDX-License-Identifier: Apache-2.0
// Dtypes, their conversion to float, and reading rows of tensors.
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "blockpack/core/random.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/io.hpp"
#include "io/io_support.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/synthetic_model.hpp"

using namespace blockpack;
using namespace blockpack::test;

namespace {

std::uint32_t bits_of(float v) { return std::bit_cast<std::uint32_t>(v); }

/// The float of element `code` of a type, read from an odd address.
template <class Code>
float converted(Dtype dtype, Code code) {
  alignas(8) std::byte raw[sizeof(Code) + 1];
  std::memcpy(raw + 1, &code, sizeof(Code));
  float result = -1;
  convert_to_f32(dtype, std::span<const std::byte>(raw + 1, sizeof(Code)), std::span<float>(&result, 1));
  return result;
}

Tensor matrix(std::string name, Dtype dtype, std::vector<index_t> shape, std::string_view bytes) {
  Tensor tensor;
  tensor.name = std::move(name);
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  tensor.data = SharedBytes(bytes_of(bytes), nullptr);
  return tensor;
}

/// Resident pages of this process that belong to mapped files, in KiB.
long mapped_kib() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word)
    if (word == "RssFile:") {
      long kib = -1;
      status >> kib;
      return kib;
    }
  return -1;
}

}  // namespace

TEST_CASE("dtype names, sizes and ranks are those of the format", "[io]") {
  // Ascending alignment rank, with bits: the table of the format text.
  const std::vector<std::pair<std::string, int>> table = {
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  REQUIRE(table.size() == static_cast<std::size_t>(kDtypeCount));
  for (std::size_t i = 0; i < table.size(); ++i) {
    const auto dtype = static_cast<Dtype>(i);
    CAPTURE(table[i].first);
    CHECK(to_string(dtype) == table[i].first);
    CHECK(dtype_from_name(table[i].first) == dtype);
    CHECK(dtype_bits(dtype) == table[i].second);
  }
  for (const char* wrong : {"", "f32", "F32 ", "F128", "BF", "F8"}) CHECK_FALSE(dtype_from_name(wrong).has_value());
  CHECK(dtype_bytes(Dtype::f4, 3) == std::nullopt);
  CHECK(dtype_bytes(Dtype::f6_e2m3, 4) == 3u);
  CHECK(dtype_bytes(Dtype::u64, std::uint64_t{1} << 58) == std::nullopt);
}

TEST_CASE("every 8 and 16-bit code converts to its float at any alignment", "[io]") {
  for (unsigned code = 0; code < 65536; ++code) {
    const auto c = static_cast<std::uint16_t>(code);
    REQUIRE(bits_of(converted(Dtype::bf16, c)) == bits_of(static_cast<float>(bf16::from_bits(c))));
    REQUIRE(bits_of(converted(Dtype::f16, c)) == bits_of(static_cast<float>(fp16::from_bits(c))));
  }
  for (unsigned code = 0; code < 256; ++code) {
    const auto c = static_cast<std::uint8_t>(code);
    REQUIRE(bits_of(converted(Dtype::f8_e4m3, c)) == bits_of(static_cast<float>(fp8_e4m3::from_bits(c))));
    REQUIRE(bits_of(converted(Dtype::f8_e5m2, c)) == bits_of(static_cast<float>(fp8_e5m2::from_bits(c))));
    // FNUZ, computed from its definition: one NaN at 0x80, no infinity, bias one larger than the IEEE-like one.
    for (const auto& [dtype, mantissa_bits, bias] :
         {std::tuple(Dtype::f8_e4m3fnuz, 3, 8), std::tuple(Dtype::f8_e5m2fnuz, 2, 16)}) {
      const float value = converted(dtype, c);
      if (code == 0x80) {
        REQUIRE(std::isnan(value));
        continue;
      }
      const int exponent = static_cast<int>(code & 0x7f) >> mantissa_bits;
      const int mantissa = static_cast<int>(code) & ((1 << mantissa_bits) - 1);
      const int hidden = exponent == 0 ? 0 : 1 << mantissa_bits;
      const float magnitude =
          std::ldexp(static_cast<float>(hidden + mantissa), (exponent == 0 ? 1 : exponent) - bias - mantissa_bits);
      CAPTURE(code, to_string(dtype));
      REQUIRE(value == ((code & 0x80) != 0 ? -magnitude : magnitude));
    }
  }
}

TEST_CASE("F64 converts to the nearest float, half to even, whatever the rounding mode of the process", "[io]") {
  // Against the conversion of the hardware in its default mode.
  const auto check = [](double v) {
    const float expected = static_cast<float>(v);
    const float got = converted(Dtype::f64, std::bit_cast<std::uint64_t>(v));
    CAPTURE(v);
    if (std::isnan(v)) {
      REQUIRE(std::isnan(got));
    } else {
      REQUIRE(bits_of(got) == bits_of(expected));
    }
  };
  for (const double v :
       {0.0, -0.0, 1.0, 0.1, 3.5e38, 3.4028235677973366e38, 3.4028235677973362e38, 1e-45, 7e-46, 7.1e-46,
        1.1754943508222875e-38, 1.1754942807573643e-38, 2.2e-308, 5e-324, 1e308, HUGE_VAL, -HUGE_VAL, std::nan("")})
    for (const double s : {v, -v}) check(s);
  Random random(7);
  const int count = budget(200000, 20000);
  for (int i = 0; i < count; ++i) check(std::bit_cast<double>(random()));
  for (int i = 0; i < count; ++i) {  // around the range of float, and exactly between two floats
    const std::uint64_t exponent = 1023 - 160 + random.below(300);
    const std::uint64_t mantissa = random() & 0xfffffffffffffu;
    const std::uint64_t ties = (mantissa & ~std::uint64_t{0x1fffffff}) | (random() % 3 == 0 ? 0x10000000u : 0u);
    check(std::bit_cast<double>(exponent << 52 | mantissa));
    check(std::bit_cast<double>(exponent << 52 | ties));
    for (const std::uint64_t near : {std::uint64_t{0x0fffffff}, std::uint64_t{0x10000001}})
      check(std::bit_cast<double>(exponent << 52 | (mantissa & ~std::uint64_t{0x1fffffff}) | near));
  }
  std::fesetround(FE_UPWARD);
  const float up = converted(Dtype::f64, 0.1);
  std::fesetround(FE_TONEAREST);
  CHECK(up == 0.1f);
}

TEST_CASE("dtypes that are no floats are refused with the tensor and the type in the message", "[io]") {
  const std::string zeros(64, '\0');
  int refused = 0;
  for (int i = 0; i < kDtypeCount; ++i) {
    const auto dtype = static_cast<Dtype>(i);
    const auto bytes = static_cast<std::size_t>(*dtype_bytes(dtype, 8));
    const Tensor tensor = matrix("odd.one", dtype, {2, 4}, std::string_view(zeros).substr(0, bytes));
    std::vector<float> dst(8, 5.0f);
    const MatrixView<float> view(dst.data(), 2, 4);
    if (computable(dtype)) {
      read_rows_f32(tensor, 0, view);
      CHECK(dst == std::vector<float>(8, 0.0f));
    } else {
      ++refused;
      const std::string type(to_string(dtype));
      CHECK_THROWS_WITH(read_rows_f32(tensor, 0, view), Catch::Contains("odd.one") && Catch::Contains(type));
      CHECK_THROWS_AS(read_rows_f32(tensor, 0, view), UnsupportedError);
      CHECK(dst == std::vector<float>(8, 5.0f));
    }
    CHECK(row_bytes(tensor, 1, 1).size() == bytes / 2);  // copied, they all can be
  }
  CHECK(refused == 14);
}

TEST_CASE("rows are read into strided views, and only rows that exist", "[io]") {
  std::string bytes;
  for (int i = 0; i < 6; ++i) {
    const auto v = bf16(static_cast<float>(i));
    bytes.append(reinterpret_cast<const char*>(&v), 2);
  }
  const Tensor tensor = matrix("w", Dtype::bf16, {3, 2}, bytes);
  std::vector<float> dst(10, -1.0f);
  read_rows_f32(tensor, 1, MatrixView<float>(dst.data(), 2, 2, 5));
  CHECK(dst == std::vector<float>{2, 3, -1, -1, -1, 4, 5, -1, -1, -1});
  const MatrixView<float> view(dst.data(), 2, 2, 5);
  CHECK_THROWS_AS(read_rows_f32(tensor, 2, view), ShapeError);
  CHECK_THROWS_AS(read_rows_f32(tensor, -1, view), ShapeError);
  CHECK_THROWS_AS(read_rows_f32(tensor, std::numeric_limits<index_t>::max(), view), ShapeError);
  CHECK_THROWS_AS(read_rows_f32(tensor, 0, MatrixView<float>(dst.data(), 2, 3)), ShapeError);
  CHECK_THROWS_AS(row_bytes(tensor, 0, 4), ShapeError);
  CHECK(row_bytes(tensor, 3, 0).empty());
  read_rows_f32(tensor, 3, MatrixView<float>(dst.data(), 0, 2));  // nothing, at the end
  CHECK_THROWS_AS(row_bytes(matrix("f4", Dtype::f4, {2, 3}, "abc"), 0, 1), ShapeError);
}

TEST_CASE("a tensor of any rank is a matrix", "[io]") {
  CHECK(matrix_shape({}) == MatrixShape{1, 1});
  CHECK(matrix_shape({7}) == MatrixShape{1, 7});
  CHECK(matrix_shape({3, 4}) == MatrixShape{3, 4});
  CHECK(matrix_shape({3, 4, 5, 6}) == MatrixShape{3, 120});
  CHECK(matrix_shape({0, 4}) == MatrixShape{0, 4});
  CHECK(matrix_shape({4, 0}) == MatrixShape{4, 0});
  const index_t huge = index_t{1} << 40;
  CHECK_THROWS_AS(matrix_shape({1, huge, huge}), ShapeError);
  CHECK_THROWS_AS(element_count({-1}), ShapeError);
  CHECK_THROWS_AS(tensor_bytes({"t", Dtype::f64, {index_t{1} << 60, 4}}), ShapeError);
  CHECK_THROWS_AS(tensor_bytes({"t", Dtype::f4, {3}}), ShapeError);
}

TEST_CASE("pages of rows that were read are given back", "[io]") {
  if (mapped_kib() < 0 || std::getenv("BLOCKPACK_BUDGET") != nullptr) {
    WARN("not run: no /proc, or an emulator, whose own pages are counted");
    return;
  }
  const TempFolder folder;
  SyntheticModel model;
  model.bytes = std::uint64_t{48} << 20;
  model.largest_bytes = std::uint64_t{32} << 20;
  model.cols = 1000;  // rows that do not start on pages
  write_synthetic_model(folder / "m.safetensors", model);
  const TensorStore store = TensorStore::open(folder / "m.safetensors");
  const auto stream = [&](Pages pages) {
    const long before = mapped_kib();
    long most = 0;
    std::vector<float> panel(100 * 1000);
    for (const std::string& name : store.names()) {
      const Tensor tensor = store.tensor(name);
      const MatrixShape shape = matrix_shape(tensor.shape);
      for (index_t row = 0; row < shape.rows; row += 100) {
        const index_t rows = std::min<index_t>(100, shape.rows - row);
        read_rows_f32(tensor, row, MatrixView<float>(panel.data(), rows, shape.cols), pages);
        most = std::max(most, mapped_kib() - before);
      }
    }
    return most;
  };
  CHECK(stream(Pages::release) < 2048);
  const long kept = stream(Pages::keep);
  if (kept < 40000) WARN("this system does not count mapped pages: " << kept << " KiB");
}
