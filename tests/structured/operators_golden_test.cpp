// SPDX-License-Identifier: Apache-2.0

/// The golden cases of the structured operators: products, transposed products, dense matrices, traffic. The reference
/// is in double; operators hold float32, compared at 1e-4 (absolute and relative).

#include <set>

#include "blockpack/structured.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

namespace blockpack::test {
namespace {

const char* const kTopic = "block_low_rank";

/// An array of the case in float32.
struct Array {
  std::vector<float> values;
  index_t rows, cols;
  MatrixView<const float> view() const { return {values.data(), rows, cols}; }
  /// The same values, other extents.
  MatrixView<const float> view(index_t r, index_t c) const {
    REQUIRE(r * c == static_cast<index_t>(values.size()));
    return {values.data(), r, c};
  }
};

Array array(const nlohmann::json& place) {
  const GoldenArray<double> a = read_npy<double>(golden_folder(kTopic) + place.at("file").get<std::string>());
  return {std::vector<float>(a.values.begin(), a.values.end()), a.rows, a.cols};
}

void check_close(MatrixView<const float> got, const Array& expected) {
  const MatrixView<const float> e = expected.view(got.rows(), got.cols());
  for (index_t i = 0; i < got.rows(); ++i)
    for (index_t j = 0; j < got.cols(); ++j) {
      CAPTURE(i, j, got(i, j), e(i, j));
      REQUIRE(std::fabs(got(i, j) - e(i, j)) <= 1e-4f + 1e-4f * std::fabs(e(i, j)));
    }
}

/// y, dense and gx of a case, those that it has.
template <class Op>
void check_operator(const Op& op, const nlohmann::json& c) {
  const auto& out = c.at("outputs");
  const Array x = array(c.at("inputs").at("x"));
  const index_t tokens = static_cast<index_t>(x.values.size()) / op.in_features();
  std::vector<float> y(static_cast<std::size_t>(tokens * op.out_features()));
  const MatrixView<float> result(y.data(), tokens, op.out_features());
  op.apply(x.view(tokens, op.in_features()), result);
  check_close(result, array(out.at("y")));
  if (out.contains("dense")) {
    std::vector<float> w(static_cast<std::size_t>(op.out_features() * op.in_features()));
    std::vector<index_t> rows(static_cast<std::size_t>(op.out_features()));
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<index_t>(i);
    const MatrixView<float> dense(w.data(), op.out_features(), op.in_features());
    op.decode_rows(rows, dense);
    check_close(dense, array(out.at("dense")));
  }
  if (out.contains("gx")) {
    const Array gy = array(c.at("inputs").at("gy"));
    std::vector<float> gx(static_cast<std::size_t>(tokens * op.in_features()));
    const MatrixView<float> back(gx.data(), tokens, op.in_features());
    op.apply_transpose(gy.view(tokens, op.out_features()), back);
    check_close(back, array(out.at("gx")));
  }
}

/// A Monarch operator from fly's factors. Value Q of stage 1 of input block K goes to output block f mod l, f = K·q +
/// Q, as its value f / l; where l does not divide q the pairs of blocks have uneven ranks, filled up with zeros.
Monarch monarch(const Array& w1, const Array& w2, index_t k, index_t q, index_t p, index_t l, index_t s,
                OutputOrder order) {
  const index_t rank = ceil_div(q, l), ranks = k * q / l;
  std::vector<float> first(static_cast<std::size_t>(k * l * rank * p)),
      second(static_cast<std::size_t>(l * s * k * rank));
  for (index_t block = 0; block < k; ++block) {
    std::vector<index_t> used(static_cast<std::size_t>(l), 0);
    for (index_t value = 0; value < q; ++value) {
      const index_t flat = block * q + value, out = flat % l;
      const index_t rho = used[static_cast<std::size_t>(out)]++;
      std::copy_n(w1.values.data() + flat * p, p, first.data() + ((block * l + out) * rank + rho) * p);
      for (index_t row = 0; row < s; ++row)
        second[static_cast<std::size_t>((out * s + row) * k * rank + block * rank + rho)] =
            w2.values[static_cast<std::size_t>((out * s + row) * ranks + flat / l)];
    }
  }
  return Monarch::encode({l * s, k * p}, MatrixView<const float>(first.data(), k * l * rank, p),
                         MatrixView<const float>(second.data(), l * s, k * rank),
                         {k, l, rank, order, FactorFormat::f32()});
}

TEST_CASE("golden structured products", "[structured][golden]") {
  const std::set<std::string> elsewhere = {"monarch_project_square",
                                           "monarch_project_rect_rank",
                                           "monarch_project_dft",
                                           "blast_factorize",
                                           "quality_bounds",
                                           "miss_apply",
                                           "bdlora_apply",
                                           "afno2d",
                                           "afno1d",
                                           "roofline"};
  int count = 0;
  for (const nlohmann::json& c : golden_cases(kTopic)) {
    const std::string kind = c.at("kind");
    if (elsewhere.count(kind) == 1) continue;
    CAPTURE(c.at("name").get<std::string>());
    const auto& in = c.at("inputs");
    const auto& params = c.at("params");
    const auto size = [&](const char* name) { return params.at(name).get<index_t>(); };
    ++count;
    if (kind == "blockdiag_apply") {
      const index_t b = size("nblocks"), p = size("p"), q = size("q");
      check_operator(BlockDiagonal::encode({b * q, b * p}, array(in.at("w")).view(b * q, p), {b, FactorFormat::f32()}),
                     c);
    } else if (kind == "lowrank_apply") {
      check_operator(LowRank::encode(array(in.at("Ut")).view(), array(in.at("Vt")).view(), FactorFormat::f32()), c);
    } else if (kind == "blast_apply") {
      const index_t b = size("b1"), r = size("r"), i = size("i"), o = size("o");
      REQUIRE(size("b2") == b);
      check_operator(Blast::encode({o, i}, array(in.at("U")).view(o, r), array(in.at("Vt")).view(b * r, i / b),
                                   array(in.at("S")).view(b * b, r), {b, r, FactorFormat::f32()}),
                     c);
    } else if (kind == "monarch_apply_ml") {
      // The blocked order of the paper on memory efficiency: stage 2 of block k is y_k.
      const index_t b = size("b"), r = size("r"), i = size("i"), o = size("o");
      const Monarch op =
          monarch(array(in.at("w1")), array(in.at("w2")), b, r, i / b, b, o / b, OutputOrder::interleaved);
      check_operator(op, c);
      const Monarch blocked =
          monarch(array(in.at("w1")), array(in.at("w2")), b, r, i / b, b, o / b, OutputOrder::blocked);
      const Array x = array(in.at("x")), stage2 = array(c.at("outputs").at("stage2"));  // [block, token, q]
      std::vector<float> result(static_cast<std::size_t>(x.rows * o));
      blocked.apply(x.view(), MatrixView<float>(result.data(), x.rows, o));
      std::vector<float> permuted;
      for (index_t k = 0; k < b; ++k)
        for (index_t t = 0; t < x.rows; ++t)
          for (index_t s = 0; s < o / b; ++s)
            permuted.push_back(result[static_cast<std::size_t>(t * o + k * (o / b) + s)]);
      check_close(MatrixView<const float>(permuted.data(), b * x.rows, o / b), stage2);
    } else if (kind == "monarch_apply") {
      const index_t k = size("k"), q = size("q"), p = size("p"), l = size("l"), s = size("s");
      check_operator(monarch(array(in.at("w1")), array(in.at("w2")), k, q, p, l, s, OutputOrder::interleaved), c);
    } else {
      FAIL("a kind of case that no reader knows: " << kind);
    }
  }
  REQUIRE(count > 0);
}

TEST_CASE("golden traffic of structured layers", "[structured][golden]") {
  int count = 0;
  for (const nlohmann::json& c : golden_cases(kTopic)) {
    if (c.at("kind") != "roofline") continue;
    const index_t e = c.at("params").at("element_bytes");
    for (const nlohmann::json& row : c.at("params").at("rows")) {
      ++count;
      const index_t n = row.at("n"), i = row.at("i"), o = row.at("o"), r = row.at("r"), b = row.at("b");
      CAPTURE(row.at("layer").get<std::string>(), n);
      const auto check = [&](const char* name, index_t weights, index_t between, bool permutes) {
        CAPTURE(name);
        CHECK(row.at(name).at("flops").get<index_t>() == 2 * n * weights);
        CHECK(row.at(name).at("bytes").get<index_t>() == layer_bytes(n, i, o, weights, between, permutes, e));
      };
      const index_t low_rank = r * (i + o), blast = r * (i + o + b * b), values = b * n * r;
      check("torch_dense_baseline", i * o, 0, false);
      check("torch_low_rank_baseline", low_rank, low_rank_passes(Fusion::none) * n * r, false);
      check("torch_monarch_baseline", low_rank, monarch_passes(Fusion::none) * values, true);
      check("triton_monarch_right", low_rank, monarch_passes(Fusion::permutation) * values, true);
      check("triton_monarch_right_ideal", low_rank, monarch_passes(Fusion::permutation) * values, false);
      check("torch_blast_baseline", blast, blast_passes(Fusion::none) * values, false);
      check("triton_blast_partial", blast, blast_passes(Fusion::partial) * values, false);
      check("triton_blast_full", blast, blast_passes(Fusion::full) * values, false);
      check("triton_blast_bmm", blast, blast_passes(Fusion::permutation) * values, false);
    }
  }
  REQUIRE(count > 0);
}

TEST_CASE("operators count what they move and compute", "[structured]") {
  const FactorFormat f = FactorFormat::f32();
  const auto zeros = [](index_t rows, index_t cols) { return AlignedBuffer<float>(rows * cols); };
  const index_t n = 3, i = 24, o = 36, b = 3, rank = 2, r = b * rank;
  const auto first = zeros(b * b * rank, i / b), second = zeros(o, r);
  const Monarch m = Monarch::encode({o, i}, {first.data(), b * b * rank, i / b}, {second.data(), o, r},
                                    {b, b, rank, OutputOrder::interleaved, f});
  CHECK(m.flops(n) == 2 * n * r * (i + o));
  CHECK(m.bytes(n, Fusion::none) == layer_bytes(n, i, o, r * (i + o), 4 * b * n * r, true, 2));
  CHECK(m.bytes(n) == layer_bytes(n, i, o, r * (i + o), 0, false, 2));
  const auto left = zeros(o, r), right = zeros(b * r, i / b), coupling = zeros(b * b, r);
  const Blast s =
      Blast::encode({o, i}, {left.data(), o, r}, {right.data(), b * r, i / b}, {coupling.data(), b * b, r}, {b, r, f});
  CHECK(s.flops(n) == 2 * n * r * (i + o + b * b));
  CHECK(s.bytes(n, Fusion::partial, 4) == layer_bytes(n, i, o, r * (i + o + b * b), 2 * b * n * r, false, 4));
  const auto low_right = zeros(r, i);
  const LowRank low = LowRank::encode({left.data(), o, r}, {low_right.data(), r, i}, f);
  CHECK(low.flops(n) == 2 * n * r * (i + o));
  CHECK(low.bytes(n, Fusion::none) == layer_bytes(n, i, o, r * (i + o), 2 * n * r, false, 2));
  const auto blocks = zeros(o, i / b);
  const BlockDiagonal d = BlockDiagonal::encode({o, i}, {blocks.data(), o, i / b}, {b, f});
  CHECK(d.flops(n) == 2 * n * o * i / b);
  CHECK(d.bytes(n) == layer_bytes(n, i, o, o * i / b, 0, false, 2));
}

}  // namespace
}  // namespace blockpack::test
