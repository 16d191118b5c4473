// SPDX-License-Identifier: Apache-2.0
/// Dense formats: rounding, what is out of range or not finite, rows at any address.
#include "blockpack/core/dense.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "support/catch.hpp"

namespace blockpack {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr index_t kCols = 37;  // whole vectors and a rest on every level
const float kNan = std::nanf("");

/// The bytes of two rows whose first is 1, behind one byte that makes them unaligned.
template <class T>
struct Rows {
  std::vector<float> w = std::vector<float>(2 * kCols, 1.0f);
  std::vector<std::byte> bytes = std::vector<std::byte>(1 + 2 * kCols * sizeof(T), std::byte{0x5a});

  void encode(NonFinite policy) {
    EncodeOptions options;
    options.non_finite = policy;
    std::byte* dst = bytes.data() + 1;
    encode_rows(DenseFormat<T>{}, MatrixView<const float>(w.data(), 2, kCols), 0, std::span(&dst, 1), options);
  }
  float& at(index_t col) { return w[static_cast<std::size_t>(kCols + col)]; }
  float stored(index_t col) const {
    std::vector<float> row(kCols);
    const std::byte* src = bytes.data() + 1 + kCols * sizeof(T);
    DenseFormat<T>{}.decode_row(std::span(&src, 1), kCols, 0, row);
    return row[static_cast<std::size_t>(col)];
  }
};

template <class T>
float largest() {
  if constexpr (std::is_same_v<T, float>)
    return std::numeric_limits<float>::max();
  else
    return static_cast<float>(T::from_bits(std::is_same_v<T, bf16> ? 0x7f7f : 0x7bff));
}

TEMPLATE_TEST_CASE("dense rows keep, clamp or refuse what is out of range", "[core]", float, bf16, fp16) {
  constexpr bool kWide = std::is_same_v<TestType, float>;
  const float beyond = std::is_same_v<TestType, fp16> ? 65520.0f : std::numeric_limits<float>::max();
  Rows<TestType> rows;
  rows.at(0) = 0.1f;
  rows.at(2) = beyond;
  rows.at(35) = -beyond;
  const std::vector<std::byte> before = rows.bytes;
  if (kWide) {
    rows.encode(NonFinite::reject);
    CHECK(rows.stored(2) == beyond);
  } else {
    CHECK_THROWS_WITH(rows.encode(NonFinite::reject), Catch::Matchers::Contains("row 1, column 2 is beyond the range"));
    CHECK(rows.bytes == before);
  }
  rows.encode(NonFinite::propagate);
  CHECK(rows.stored(0) == static_cast<float>(TestType(0.1f)));
  CHECK(rows.stored(2) == (kWide ? beyond : kInfinity));
  CHECK(rows.stored(35) == -rows.stored(2));

  rows.at(3) = kInfinity;
  rows.at(4) = kNan;
  rows.at(36) = -kInfinity;
  rows.encode(NonFinite::propagate);
  CHECK(rows.stored(3) == kInfinity);
  CHECK(std::isnan(rows.stored(4)));
  CHECK(rows.stored(36) == -kInfinity);
  rows.encode(NonFinite::saturate);
  CHECK(rows.stored(2) == largest<TestType>());
  CHECK(rows.stored(3) == largest<TestType>());
  CHECK(rows.stored(4) == 0.0f);
  CHECK(rows.stored(35) == -largest<TestType>());
  CHECK(rows.stored(36) == -largest<TestType>());
  CHECK(rows.stored(5) == 1.0f);
  CHECK(rows.bytes[0] == std::byte{0x5a});
  CHECK_THROWS_WITH(rows.encode(NonFinite::reject), Catch::Matchers::Contains("row 1, column"));
}

}  // namespace
}  // namespace blockpack
