// SPDX-License-Identifier: Apache-2.0
#include "blockpack/core/xtensor.hpp"

#if __has_include(<xtensor/containers/xadapt.hpp>)
#include <xtensor/containers/xadapt.hpp>
#include <xtensor/containers/xarray.hpp>
#include <xtensor/containers/xtensor.hpp>
#else
#include <xtensor/xadapt.hpp>
#include <xtensor/xarray.hpp>
#include <xtensor/xtensor.hpp>
#endif

#include <array>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"

using namespace blockpack;

TEST_CASE("a tensor and an array of two dimensions are viewed in place", "[core]") {
  xt::xtensor<float, 2> tensor({3, 4});
  for (std::size_t i = 0; i < 12; ++i) tensor(i / 4, i % 4) = static_cast<float>(i);
  const MatrixView<float> v = view(tensor);
  CHECK(v.data() == tensor.data());
  CHECK(v.shape() == MatrixShape{3, 4});
  v(2, 3) = 100.0f;
  CHECK(tensor(2, 3) == 100.0f);
  const xt::xtensor<float, 2>& readable = tensor;
  static_assert(std::is_same_v<decltype(view(readable)), MatrixView<const float>>);
  CHECK(view(readable)(1, 1) == 5.0f);
  xt::xarray<double> array = {{1.0, 2.0}, {3.0, 4.0}};
  CHECK(view(array)(1, 0) == 3.0);
}

TEST_CASE("dimensions of one or no element are viewed", "[core]") {
  xt::xtensor<float, 2> row({1, 5});
  xt::xtensor<float, 2> column({5, 1});
  xt::xtensor<float, 2> empty({0, 5});
  column(4, 0) = 7.0f;
  CHECK(view(row).shape() == MatrixShape{1, 5});
  CHECK(view(column).shape() == MatrixShape{5, 1});
  CHECK(view(column)(4, 0) == 7.0f);
  CHECK(view(empty).empty());
}

TEST_CASE("an adaptor over foreign memory is viewed without a copy", "[core]") {
  std::vector<float> memory(6);
  memory[5] = 2.0f;
  auto adaptor = xt::adapt(memory, std::array<std::size_t, 2>{2, 3});
  CHECK(view(adaptor).data() == memory.data());
  CHECK(view(adaptor)(1, 2) == 2.0f);
}

TEST_CASE("other ranks and other layouts are refused when they are not known earlier", "[core]") {
  const xt::xarray<float> cube = xt::xarray<float>::from_shape({2, 2, 2});
  CHECK_THROWS_WITH(view(cube), "view: the array has 3 dimensions, 2 needed");
  xt::xarray<float, xt::layout_type::dynamic> dynamic(std::vector<std::size_t>{3, 4}, xt::layout_type::column_major);
  CHECK_THROWS_AS(view(dynamic), ShapeError);
  dynamic(2, 1) = 9.0f;
  CHECK(transposed_view(dynamic)(1, 2) == 9.0f);
  const xt::xarray<float, xt::layout_type::dynamic> rows(std::vector<std::size_t>{3, 4}, xt::layout_type::row_major);
  CHECK(view(rows).row_stride() == 4);
  CHECK_THROWS_AS(transposed_view(rows), ShapeError);
}

TEST_CASE("a column-major tensor is viewed as its transpose", "[core]") {
  xt::xtensor<float, 2, xt::layout_type::column_major> tensor({3, 4});
  tensor(2, 1) = 5.0f;
  CHECK(transposed_view(tensor).shape() == MatrixShape{4, 3});
  CHECK(transposed_view(tensor)(1, 2) == 5.0f);
}
