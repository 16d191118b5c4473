// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/view.hpp"

#include <limits>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/types.hpp"
#include "support/catch.hpp"

using namespace blockpack;

namespace {
constexpr index_t kMax = std::numeric_limits<index_t>::max();
}  // namespace

TEST_CASE("a view reads and writes through its stride and leaves the padding alone", "[core]") {
  std::vector<float> memory(3 * 5, -1.0f);
  const MatrixView<float> view(memory.data(), 3, 4, 5);
  for (index_t i = 0; i < 3; ++i)
    for (index_t j = 0; j < 4; ++j) view(i, j) = static_cast<float>(10 * i + j);
  for (index_t i = 0; i < 3; ++i) {
    CHECK(memory[static_cast<std::size_t>(5 * i + 4)] == -1.0f);
    CHECK(view.row(i).size() == 4);
    CHECK(view.row(i)[3] == static_cast<float>(10 * i + 3));
  }
  const MatrixView<const float> readable = view;
  CHECK(readable(2, 1) == 21.0f);
  CHECK(readable.shape() == MatrixShape{3, 4});
  CHECK(readable.row_stride() == 5);
  static_assert(!std::is_convertible_v<MatrixView<const float>, MatrixView<float>>);
}

TEST_CASE("a block is a view of a part and must lie inside", "[core]") {
  std::vector<int> memory(24);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<int>(i);
  const MatrixView<int> view(memory.data(), 4, 6);
  const MatrixView<int> block = view.block(1, 2, 2, 3);
  CHECK(block(0, 0) == 8);
  CHECK(block(1, 2) == 16);
  CHECK(block.row_stride() == 6);
  CHECK(view.block(4, 6, 0, 0).empty());
  CHECK(view.rows_from(3, 1)(0, 5) == 23);
  CHECK_THROWS_AS(view.block(0, 0, 5, 1), ShapeError);
  CHECK_THROWS_AS(view.block(0, 1, 1, 6), ShapeError);
  CHECK_THROWS_AS(view.block(-1, 0, 1, 1), ShapeError);
  CHECK_THROWS_AS(view.block(0, 0, 1, -1), ShapeError);
  CHECK_THROWS_AS(view.block(kMax, 0, 1, 1), ShapeError);
  CHECK_THROWS_AS(view.block(1, 0, kMax, 1), ShapeError);
}

TEST_CASE("a view of absurd sizes is refused", "[core]") {
  float one = 0;
  CHECK_THROWS_AS(MatrixView<float>(&one, -1, 1, 1), ShapeError);
  CHECK_THROWS_AS(MatrixView<float>(&one, 1, -1, 1), ShapeError);
  CHECK_THROWS_AS(MatrixView<float>(&one, 2, 3, 2), ShapeError);
  CHECK_THROWS_AS(MatrixView<float>(&one, kMax, 2, kMax), ShapeError);
  CHECK_THROWS_AS(MatrixView<float>(&one, 2, kMax, kMax), ShapeError);
  CHECK_NOTHROW(MatrixView<float>(&one, 1, 1, 0));  // one row has no stride
  CHECK(MatrixView<float>(nullptr, 0, 7).empty());
  CHECK(MatrixView<float>(nullptr, 7, 0).empty());
  CHECK(MatrixView<float>().empty());
}

TEST_CASE("a buffer starts on a cache line, zeroed, and moves without copying", "[core]") {
  for (const index_t n : {1, 3, 64, 1000}) {
    AlignedBuffer<float> buffer(n);
    CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64 == 0);
    CHECK(buffer.size() == n);
    CHECK(buffer.size_bytes() == static_cast<std::size_t>(n) * 4);
    for (const float v : buffer) CHECK(v == 0.0f);
    buffer[n - 1] = 5.0f;
    const float* before = buffer.data();
    AlignedBuffer<float> moved(std::move(buffer));
    CHECK(moved.data() == before);
    CHECK(moved[n - 1] == 5.0f);
    CHECK(buffer.empty());  // NOLINT(bugprone-use-after-move): the state after a move is defined
    CHECK(buffer.data() == nullptr);
    AlignedBuffer<float> assigned(2);
    assigned = std::move(moved);
    CHECK(assigned.data() == before);
  }
  CHECK(AlignedBuffer<float>(0).data() == nullptr);
  CHECK(AlignedBuffer<float>().empty());
  CHECK(AlignedBuffer<float>::uninitialized(5).size() == 5);
}

TEST_CASE("a buffer of impossible size is refused before anything is allocated", "[core]") {
  CHECK_THROWS_AS(AlignedBuffer<double>::uninitialized(-1), ShapeError);
  CHECK_THROWS_AS(AlignedBuffer<double>::uninitialized(kMax), ShapeError);
  CHECK_THROWS_AS(AlignedBuffer<double>::uninitialized(kMax / 8 + 1), ShapeError);
}

TEST_CASE("shared bytes keep their owner alive", "[core]") {
  AlignedBuffer<std::uint8_t> buffer(10);
  buffer[3] = 42;
  SharedBytes part;
  {
    const SharedBytes whole(std::move(buffer));
    REQUIRE(whole.bytes.size() == 10);
    part = whole.subspan(3, 2);
    CHECK(whole.owner.use_count() == 2);
  }
  CHECK(part.owner.use_count() == 1);
  CHECK(part.bytes.size() == 2);
  CHECK(std::to_integer<int>(part.bytes[0]) == 42);
}

TEST_CASE("checked arithmetic on sizes throws where the result does not fit", "[core]") {
  CHECK(checked_mul(0, kMax, "f") == 0);
  CHECK(checked_mul(kMax, 0, "f") == 0);
  CHECK(checked_mul(kMax / 2, 2, "f") == kMax - 1);
  CHECK_THROWS_WITH(checked_mul(kMax / 2 + 1, 2, "f"), "f: " + std::to_string(kMax / 2 + 1) + " * 2 overflows");
  CHECK_THROWS_AS(checked_mul(-1, 2, "f"), ShapeError);
  CHECK_THROWS_AS(checked_mul(2, -1, "f"), ShapeError);
  CHECK(checked_add(kMax - 1, 1, "f") == kMax);
  CHECK_THROWS_AS(checked_add(kMax, 1, "f"), ShapeError);
  CHECK_THROWS_AS(checked_add(-1, 1, "f"), ShapeError);
  CHECK(ceil_div(0, 32) == 0);
  CHECK(ceil_div(33, 32) == 2);
  CHECK(ceil_div(kMax, 2) == kMax / 2 + 1);
  CHECK(round_up(33, 32) == 64);
  CHECK(to_string(MatrixShape{2, 3}) == "2x3");
}
