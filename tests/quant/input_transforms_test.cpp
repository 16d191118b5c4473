// SPDX-License-Identifier: Apache-2.0
#include "blockpack/quant/input_transforms.hpp"

#include <bit>
#include <cmath>
#include <vector>

#include "blockpack/quant/awq.hpp"
#include "quant/rounded.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;
using test::decoded;
using test::SyntheticLayer;

namespace {

/// 10 log10 of signal over error.
double sqnr(const std::vector<float>& w, const std::vector<float>& q) {
  double signal = 0.0, error = 0.0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    signal += static_cast<double>(w[i]) * static_cast<double>(w[i]);
    error += std::pow(static_cast<double>(w[i]) - static_cast<double>(q[i]), 2);
  }
  return 10.0 * std::log10(signal / error);
}

}  // namespace

TEST_CASE("a block Hadamard rotation is the matrix of signs over the root of the block, symmetric and orthogonal",
          "[quant]") {
  for (const index_t block : {2, 32, 64})
    for (const index_t n : {index_t{1}, index_t{32}, index_t{75}, index_t{128}}) {
      CAPTURE(block, n);
      const BlockHadamard r(n, block);
      const std::vector<float> m = decoded(r);
      index_t begin = 0, size = block;
      for (index_t i = 0; i < n; ++i) {
        while (i >= begin + size || size > n - begin) {  // the block of row i
          if (i >= begin + size) begin += size;
          while (size > n - begin) size /= 2;
        }
        double norm = 0.0;
        for (index_t j = 0; j < n; ++j) {
          const float v = m[static_cast<std::size_t>(i * n + j)];
          const bool inside = j >= begin && j < begin + size;
          const bool odd = std::popcount(static_cast<unsigned>((i - begin) & (j - begin))) % 2 == 1;
          const float magnitude = 1.0f / std::sqrt(static_cast<float>(size));
          CHECK(v == (inside ? (odd ? -magnitude : magnitude) : 0.0f));
          CHECK(v == m[static_cast<std::size_t>(j * n + i)]);
          norm += static_cast<double>(v) * static_cast<double>(v);
        }
        CHECK(norm == Approx(1.0).epsilon(1e-6));
      }
    }
  CHECK_THROWS_AS(BlockHadamard(64, 24), ValueError);
  CHECK_THROWS_AS(BlockHadamard(64, 1), ValueError);
  CHECK_THROWS_AS(BlockHadamard(-1, 32), ShapeError);
}

TEST_CASE("a rotated matrix stands for the matrix that was given", "[quant]") {
  const MatrixShape shape{9, 75};
  const std::vector<float> w = test::random_weights(shape.rows, shape.cols, 5);
  const MatrixView<const float> view(w.data(), shape.rows, shape.cols);
  const auto op = encode_rotated(view, Mx{.element = MxElement::int8});
  CHECK(sqnr(w, decoded(op)) > 38.0);
  std::vector<float> bad = w;
  bad[80] = INFINITY;
  CHECK_THROWS_WITH(encode_rotated(MatrixView<const float>(bad.data(), 9, 75), Mx{}),
                    "encode_rotated: w is not finite at row 1, column 5");
}

TEST_CASE("the rotation lifts MXFP4 on weights with outliers, NVFP4 stays above it on normal ones", "[quant]") {
  const MatrixShape shape{64, 1024};
  std::vector<float> w = test::random_normal(shape.rows * shape.cols, 3);
  const MatrixView<const float> view(w.data(), shape.rows, shape.cols);
  const double plain = sqnr(w, decoded(QuantizedMatrix<Mx>::encode(view, {})));
  const double rotated = sqnr(w, decoded(encode_rotated(view, Mx{})));
  const double nvfp4 = sqnr(w, decoded(QuantizedMatrix<Nvfp4>::encode(view, {})));
  CAPTURE(plain, rotated, nvfp4);
  CHECK(rotated == Approx(plain).margin(0.1));  // a rotation does not change normal weights
  CHECK(nvfp4 > rotated + 1.0);
  for (std::size_t i = 0; i < w.size(); i += 37) w[i] *= 12.0f;
  const double outliers = sqnr(w, decoded(QuantizedMatrix<Mx>::encode(view, {})));
  const double outliers_rotated = sqnr(w, decoded(encode_rotated(view, Mx{})));
  CAPTURE(outliers, outliers_rotated);
  CHECK(outliers_rotated > outliers + 3.0);
}

TEST_CASE("AWQ scales the features of a layer and is never worse than plain rounding", "[quant]") {
  const SyntheticLayer layer({24, 128}, 512, 0.3f, 9);
  const EncodeOptions one = test::one_thread();
  for (const int bits : {3, 4}) {
    const GroupInt format{.bits = bits, .group_size = 64};
    const auto loss = [&](const std::vector<float>& q) {
      return layer_loss(layer.w(), {q.data(), layer.shape.rows, layer.shape.cols}, layer.h);
    };
    const double plain = loss(decoded(QuantizedMatrix<GroupInt>::encode(layer.w(), format)));
    const auto awq = round_awq(format, layer.w(), layer.h, {}, {0}, one);
    const auto polished = round_awq(format, layer.w(), layer.h, {}, {4}, one);
    CAPTURE(plain, awq.exponent, awq.loss);
    CHECK(awq.exponent > 0.0);
    CHECK(awq.loss < 0.95 * plain);
    CHECK(loss(decoded(awq.matrix)) == Approx(awq.loss).epsilon(1e-4));
    CHECK(loss(decoded(polished.matrix)) < awq.loss);
  }
  CHECK_THROWS_AS(round_awq(GroupInt{}, layer.w(), GramMatrix(3)), ShapeError);
  CHECK_THROWS_AS(round_awq(GroupInt{}, layer.w(), layer.h, {.steps = 0}), ValueError);
}

TEST_CASE("a channel scale refuses sections that are not its own", "[quant]") {
  const ChannelScale op({1.0f, 2.0f, -3.0f});
  CHECK(decoded(op) == std::vector<float>{1, 0, 0, 0, 2, 0, 0, 0, -3});
  CHECK(op.storage_bytes() == 12);
  CHECK_THROWS_AS(ChannelScale::from_sections({3, 4}, {}, op.sections()), FormatError);
  CHECK_THROWS_AS(ChannelScale::from_sections({4, 4}, {}, op.sections()), FormatError);
  CHECK_THROWS_AS(ChannelScale::from_sections({3, 3}, {}, {}), FormatError);
  CHECK_THROWS_AS(ChannelScale({NAN}), ValueError);
  CHECK_THROWS_AS(BlockHadamard::from_sections({3, 4}, {}, {}), FormatError);
  CHECK_THROWS_AS(BlockHadamard::from_sections({3, 3}, {}, op.sections()), FormatError);
}
