// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/eigen.hpp"

#include <type_traits>
#include <vector>

#include "support/catch.hpp"

using namespace blockpack;

namespace {
using RowMatrix2 = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
}  // namespace

TEST_CASE("a row-major Eigen matrix is viewed in place", "[core]") {
  RowMatrix2 m(3, 5);
  for (int i = 0; i < 15; ++i) m(i / 5, i % 5) = static_cast<float>(i);
  const MatrixView<float> writable = view(m);
  CHECK(writable.data() == m.data());
  CHECK(writable.shape() == MatrixShape{3, 5});
  CHECK(writable.row_stride() == 5);
  writable(2, 4) = 100.0f;
  CHECK(m(2, 4) == 100.0f);
  const RowMatrix2& readable = m;
  static_assert(std::is_same_v<decltype(view(readable)), MatrixView<const float>>);
  CHECK(view(readable)(1, 2) == 7.0f);
  const MatrixView<float> block = view(m).block(1, 1, 2, 3);
  CHECK(block(1, 2) == m(2, 3));
  CHECK(view(RowMatrix2::ConstMapType(m.data(), 3, 5))(2, 4) == 100.0f);
}

TEST_CASE("matrices of fixed size, of one row and empty ones are viewed", "[core]") {
  Eigen::Matrix<double, 2, 3, Eigen::RowMajor> fixed;
  fixed << 1, 2, 3, 4, 5, 6;
  CHECK(view(fixed)(1, 0) == 4.0);
  RowMatrix2 one(1, 4);
  CHECK(view(one).shape() == MatrixShape{1, 4});
  RowMatrix2 empty(0, 4);
  CHECK(view(empty).empty());
  CHECK(view(empty).cols() == 4);
  RowMatrix2 narrow(4, 0);
  CHECK(view(narrow).rows() == 4);
}

TEST_CASE("Eigen vectors are viewed as one column or one row", "[core]") {
  Eigen::VectorXf column = Eigen::VectorXf::LinSpaced(4, 0.0f, 3.0f);
  CHECK(view(column).shape() == MatrixShape{4, 1});
  CHECK(view(column)(3, 0) == 3.0f);
  Eigen::RowVectorXf row = column.transpose();
  CHECK(view(row).shape() == MatrixShape{1, 4});
  CHECK(view(row)(0, 3) == 3.0f);
  CHECK(transposed_view(column).shape() == MatrixShape{1, 4});
  CHECK(transposed_view(row).shape() == MatrixShape{4, 1});
  CHECK(transposed_view(row)(3, 0) == 3.0f);
}

TEST_CASE("maps keep their stride and their constness", "[core]") {
  std::vector<float> memory(4 * 10);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<float>(i);
  using Strided = Eigen::Map<RowMatrix2, 0, Eigen::OuterStride<>>;
  const Strided map(memory.data(), 4, 7, Eigen::OuterStride<>(10));
  const MatrixView<float> v = view(map);
  CHECK(v.row_stride() == 10);
  CHECK(v(3, 6) == 36.0f);
  const MatrixView<float> direct = view(Strided(memory.data(), 2, 7, Eigen::OuterStride<>(10)));
  CHECK(direct(1, 0) == 10.0f);
  const Eigen::Map<const RowMatrix2> constant(memory.data(), 5, 8);
  static_assert(std::is_same_v<decltype(view(constant)), MatrixView<const float>>);
  CHECK(view(constant)(4, 7) == 39.0f);
  const Eigen::Map<Eigen::MatrixXf, 0, Eigen::OuterStride<>> columns(memory.data(), 7, 4, Eigen::OuterStride<>(10));
  CHECK(transposed_view(columns).row_stride() == 10);
  CHECK(transposed_view(columns)(3, 6) == columns(6, 3));
  // Rows that overlap are no matrix.
  CHECK_THROWS_AS(view(Strided(memory.data(), 4, 7, Eigen::OuterStride<>(3))), ShapeError);
}

TEST_CASE("a reference to a part of a matrix is viewed in place", "[core]") {
  RowMatrix2 m = RowMatrix2::Random(6, 9);
  Eigen::Ref<RowMatrix2> part = m.block(1, 2, 3, 4);
  view(part)(2, 3) = 5.0f;
  CHECK(m(3, 5) == 5.0f);
  CHECK(view(part).row_stride() == 9);
  const Eigen::Ref<const RowMatrix2> readable = m.block(0, 0, 2, 2);
  CHECK(view(readable).data() == m.data());
}

TEST_CASE("a column-major matrix is viewed as its transpose", "[core]") {
  Eigen::MatrixXf m = Eigen::MatrixXf::Random(3, 5);
  const MatrixView<float> t = transposed_view(m);
  REQUIRE(t.shape() == MatrixShape{5, 3});
  for (index_t i = 0; i < 5; ++i)
    for (index_t j = 0; j < 3; ++j) CHECK(t(i, j) == m(j, i));
  CHECK(t.data() == m.data());
  const Eigen::MatrixXf& readable = m;
  static_assert(std::is_same_v<decltype(transposed_view(readable)), MatrixView<const float>>);
}
