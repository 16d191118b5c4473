// SPDX-License-Identifier: Apache-2.0
/// The stored forms: the golden cases of 2:4, bitmaps and BSR, what stands for missing weights, and bad input.

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "blockpack/core/any_row_format.hpp"
#include "blockpack/core/dense.hpp"
#include "blockpack/quant/group_int.hpp"
#include "blockpack/quant/nvfp4.hpp"
#include "blockpack/sparse.hpp"
#include "sparse/golden_support.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace blockpack;
using namespace blockpack::test;
using Catch::Matchers::Contains;

namespace {

template <class T>
std::vector<float> floats(const GoldenArray<T>& a) {
  return {a.values.begin(), a.values.end()};
}
MatrixView<const float> view(const std::vector<float>& w, MatrixShape shape) {
  return {w.data(), shape.rows, shape.cols};
}

template <class Op>
std::vector<float> decoded(const Op& op) {
  std::vector<float> w(static_cast<std::size_t>(op.out_features() * op.in_features()));
  std::vector<index_t> rows(static_cast<std::size_t>(op.out_features()));
  std::iota(rows.begin(), rows.end(), index_t{0});
  op.decode_rows(rows, MatrixView<float>(w.data(), op.out_features(), op.in_features()));
  return w;
}

/// Y = W X of a golden case: the columns of X are our tokens.
template <class Op>
std::vector<float> product(const Op& op, const std::vector<float>& x, Activations mode = Activations::automatic) {
  const index_t in = op.in_features(), out = op.out_features(), tokens = static_cast<index_t>(x.size()) / in;
  const auto transposed = [](const std::vector<float>& m, index_t rows, index_t cols) {
    std::vector<float> t;
    for (index_t j = 0; j < cols; ++j)
      for (index_t i = 0; i < rows; ++i) t.push_back(m[static_cast<std::size_t>(i * cols + j)]);
    return t;
  };
  std::vector<float> y(static_cast<std::size_t>(tokens * out));
  ApplyOptions how;
  how.activations = mode;
  op.apply(view(transposed(x, in, tokens), {tokens, in}), MatrixView<float>(y.data(), tokens, out), how);
  return transposed(y, tokens, out);
}

/// The same of integers up to 254 and int8 weights, in int8_token: one more column of -128 makes the scale of a row 1,
/// its x of 127 that of a token, and X is the sum of two parts up to 127.
std::vector<float> product_in_int8(const std::vector<float>& w, MatrixShape shape, MatrixShape block,
                                   const std::vector<float>& x) {
  std::vector<float> wide;
  for (index_t i = 0; i < shape.rows; ++i) {
    wide.insert(wide.end(), w.begin() + i * shape.cols, w.begin() + (i + 1) * shape.cols);
    wide.push_back(-128.0f);
  }
  const auto op = BlockSparse<GroupInt>::encode(view(wide, {shape.rows, shape.cols + 1}), block,
                                                GroupInt{.bits = 8, .group_size = 0});
  std::vector<float> low = x, high = x;
  for (std::size_t i = 0; i < x.size(); ++i) {
    low[i] = std::min(x[i], 127.0f);
    high[i] = x[i] - low[i];
  }
  for (std::vector<float>* part : {&low, &high})
    part->resize(x.size() + x.size() / static_cast<std::size_t>(shape.cols), 127.0f);
  std::vector<float> y = product(op, low, Activations::int8_token);
  const std::vector<float> rest = product(op, high, Activations::int8_token);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] += rest[i] + 2 * 127 * 128;
  return y;
}

template <class T>
std::vector<T> bytes_as(const Section& section) {
  std::vector<T> values(section.data.bytes.size() / sizeof(T));
  std::memcpy(values.data(), section.data.bytes.data(), values.size() * sizeof(T));
  return values;
}

/// Values and metadata of a case whose weights are of type T and whose words are of type Word.
template <class T, class Word>
void check_two_four(const nlohmann::json& c) {
  const auto w = array_of<T>(c, "inputs", "W");
  const auto op = NmMatrix<DenseFormat<float>>::encode(view(floats(w), {w.rows, w.cols}));
  const std::vector<Section> sections = op.sections();
  CHECK(bytes_as<float>(sections[0]) == floats(array_of<T>(c, "outputs", "values")));
  const auto natural = array_of<Word>(c, "outputs", "meta_natural_order");
  const auto gpu = array_of<Word>(c, "outputs", "meta_gpu_reordered");
  const std::vector<Word> words = bytes_as<Word>(sections[1]);
  CHECK(words == natural.values);
  CHECK(to_gpu_order<Word>(words, w.rows) == gpu.values);
  CHECK(from_gpu_order<Word>(gpu.values, w.rows) == words);
  CHECK(decoded(op) == floats(w));
}

}  // namespace

TEST_CASE("2:4 has the values and the metadata of the reference", "[sparse][golden]") {
  const std::size_t count = each_case("fmt24_", [](const nlohmann::json& c, const nlohmann::json& params) {
    if (params.at("dtype") == "int8") {
      check_two_four<std::int8_t, std::int32_t>(c);
    } else {
      check_two_four<std::int32_t, std::int16_t>(c);
    }
  });
  REQUIRE(golden_complete(count, 3));
}

TEST_CASE("bitmaps are exported in the orders of SparAMX", "[sparse][golden]") {
  const std::size_t count = each_case("bitmask_", [](const nlohmann::json& c, const nlohmann::json& params) {
    const auto w = array_of<float>(c, "inputs", "W");
    const bool amx = c.at("name").get<std::string>().find("amx") != std::string::npos;
    const SparAmxBitmap map =
        to_sparamx(w.view(), amx ? SparAmxOrder::amx : SparAmxOrder::avx, params.at("num_threads"));
    const auto words = array_of<std::int32_t>(c, "outputs", "bitmap_words");
    CHECK(std::vector<std::int32_t>(map.words.begin(), map.words.end()) == words.values);
    CHECK(map.values == array_of<float>(c, "outputs", "values").values);
    CHECK(map.first_value == array_of<std::int32_t>(c, "outputs", "thread_value_offset").values);
    const auto op = BlockSparse<DenseFormat<bf16>>::encode(w.view(), {1, 1});
    CHECK(decoded(op) == w.values);  // the weights of the cases are bf16
  });
  REQUIRE(golden_complete(count, 4));
}

TEST_CASE("block-sparse matrices have the structure and the products of the reference", "[sparse][golden]") {
  const std::size_t count = each_case("bsr_", [](const nlohmann::json& c, const nlohmann::json& params) {
    const MatrixShape block{params.at("block_rows"), params.at("block_cols")};
    if (params.contains("group")) {
      const auto w = array_of<std::int8_t>(c, "inputs", "W");
      const auto op = BlockSparse<DenseFormat<float>>::encode(view(floats(w), {w.rows, w.cols}), block);
      const GroupedBsr grouped = to_grouped(op.to_bsr(), params.at("group"));
      CHECK(grouped.indptr == array_of<std::int64_t>(c, "outputs", "group_indptr").values);
      CHECK(grouped.indices == array_of<std::int64_t>(c, "outputs", "indices").values);
      CHECK(grouped.data == floats(array_of<std::int8_t>(c, "outputs", "data")));
      const auto again = BlockSparse<DenseFormat<float>>::from_bsr(from_grouped(grouped));
      CHECK(decoded(again) == floats(w));
      // No sum reaches 2^24: whatever the order, floats are exact.
      const std::vector<float> x = floats(array_of<std::uint8_t>(c, "inputs", "X_u8"));
      const std::vector<float> y = floats(array_of<std::int32_t>(c, "outputs", "Y_s32"));
      CHECK(product(again, x, Activations::f32) == y);
      CHECK(product(again, x, Activations::bf16) == y);
      CHECK(product_in_int8(floats(w), {w.rows, w.cols}, block, x) == y);
      return;
    }
    const auto w = array_of<float>(c, "inputs", "W"), x = array_of<float>(c, "inputs", "X");
    const auto op = BlockSparse<DenseFormat<float>>::encode(w.view(), block);
    const Bsr bsr = op.to_bsr();
    CHECK(bsr.indptr == array_of<std::int32_t>(c, "outputs", "indptr").values);
    CHECK(bsr.indices == array_of<std::int32_t>(c, "outputs", "indices").values);
    CHECK(bsr.data == array_of<float>(c, "outputs", "data").values);
    const auto again = BlockSparse<DenseFormat<float>>::from_bsr(bsr);
    CHECK(decoded(again) == w.values);
    const std::vector<float> y = product(again, x.values);
    const auto expected = array_of<double>(c, "outputs", "Y_f64");
    const double tolerance = c.at("tolerance").at("Y_abs");
    for (std::size_t i = 0; i < y.size(); ++i)
      CHECK(std::fabs(static_cast<double>(y[i]) - expected.values[i]) <= tolerance);
  });
  REQUIRE(golden_complete(count, 5));
}

TEST_CASE("missing weights of 2:4 are stored at the places of the public conversion", "[sparse]") {
  const auto nibble = [](std::vector<float> group) {
    return std::to_integer<int>(NmMatrix<DenseFormat<float>>::encode(view(group, {1, 4})).sections()[1].data.bytes[0]);
  };
  CHECK(nibble({0, 0, 0, 0}) == 0xe);
  CHECK(nibble({0, 0, 0, 1}) == 0xe);
  CHECK(nibble({0, 0, 1, 0}) == 0xe);
  CHECK(nibble({0, 1, 0, 0}) == 0x9);
  CHECK(nibble({1, 0, 0, 0}) == 0x8);
  CHECK(nibble({1, 1, 0, 0}) == 0x4);
  CHECK(nibble({1, 0, 0, 1}) == 0xc);
  CHECK(nibble({0, 1, 0, 1}) == 0xd);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EncodeOptions propagate;
  propagate.non_finite = NonFinite::propagate;
  const std::vector<float> odd = {-0.0f, nan, 0.0f, 2.0f};
  const auto op = NmMatrix<DenseFormat<float>>::encode(view(odd, {1, 4}), NmFormat<DenseFormat<float>>{}, propagate);
  const std::vector<float> back = decoded(op);
  CHECK((!std::signbit(back[0]) && back[1] != back[1] && back[3] == 2.0f));
}

TEST_CASE("every N:M stores what it can hold and refuses more", "[sparse]") {
  for (index_t of = 2; of <= 16; ++of)
    for (index_t keep = 1; keep <= of; ++keep)
      for (const index_t cols : {index_t{1}, of - 1, of, 5 * of + 1, index_t{600}}) {
        CAPTURE(keep, of, cols);
        std::vector<float> w = random_normal(3 * cols, 7);
        prune_mask(view(w, {3, cols}), magnitude(), MaskPattern::nm(keep, of, Tail::short_group))
            .apply(MatrixView<float>(w.data(), 3, cols));
        const NmFormat<DenseFormat<float>> format({keep, of});
        const auto op = NmMatrix<DenseFormat<float>>::encode(view(w, {3, cols}), format);
        CHECK(decoded(op) == w);
        CHECK(static_cast<index_t>(op.storage_bytes()) ==
              3 * (4 * format.layout().kept(cols) + format.layout().index_bytes(cols)));
        if (keep == of || cols < of) continue;
        for (float& v : w) v += v == 0.0f ? 1.0f : 0.0f;
        CHECK_THROWS_WITH(NmMatrix<DenseFormat<float>>::encode(view(w, {3, cols}), format),
                          Contains("keeps more than") && Contains("row 0") && Contains("prune it first"));
      }
  CHECK_THROWS_AS((NmFormat<DenseFormat<float>>({0, 4})), ValueError);
  CHECK_THROWS_AS((NmFormat<DenseFormat<float>>({5, 4})), ValueError);
  CHECK_THROWS_AS((NmFormat<DenseFormat<float>>({2, 17})), ValueError);
}

TEST_CASE("places that no encoder writes: of two values the last counts, one beyond the group is nothing", "[sparse]") {
  const std::vector<float> w = {1, 2, 0, 0, 0, 3};
  const NmFormat<DenseFormat<float>> format;
  const auto op = NmMatrix<DenseFormat<float>>::encode(view(w, {1, 6}), format);
  std::vector<Section> sections = op.sections();
  AlignedBuffer<std::byte> indices(1);
  indices[0] = std::byte{0xf5};  // places 1 and 1, then 3 and 3 of a group of two
  sections[1].data = SharedBytes(std::move(indices));
  const auto hostile = NmMatrix<DenseFormat<float>>::from_sections({1, 6}, format, sections);
  CHECK(decoded(hostile) == std::vector<float>{0, 2, 0, 0, 0, 0});
}

TEST_CASE("values of sparse forms may be stored in any row format", "[sparse]") {
  const MatrixShape shape{24, 200};
  std::vector<float> w = random_normal(shape.rows * shape.cols, 3);
  prune_mask(view(w, shape), magnitude(), MaskPattern::nm(2, 4)).apply(MatrixView<float>(w.data(), 24, 200));
  const auto error = [&](const std::vector<float>& q) {
    double sum = 0, all = 0;
    for (std::size_t i = 0; i < w.size(); ++i) {
      sum += static_cast<double>(w[i] - q[i]) * static_cast<double>(w[i] - q[i]);
      all += static_cast<double>(w[i]) * static_cast<double>(w[i]);
      if (w[i] == 0.0f) CHECK(q[i] == 0.0f);
    }
    return std::sqrt(sum / all);
  };
  const auto plain = NmMatrix<GroupInt>::encode(view(w, shape), NmFormat<GroupInt>({2, 4}, GroupInt{}));
  CHECK(plain.scheme() == "2:4-int4-g32");
  CHECK(error(decoded(plain)) < 0.1);
  const NmFormat<AnyRowFormat> any({2, 4}, AnyRowFormat(GroupInt{}));
  const auto erased = NmMatrix<AnyRowFormat>::encode(view(w, shape), any);
  CHECK(erased.scheme() == plain.scheme());
  CHECK(decoded(erased) == decoded(plain));
  CHECK(error(decoded(NmMatrix<Nvfp4>::encode(view(w, shape)))) < 0.12);
  CHECK(error(decoded(BlockSparse<Nvfp4>::encode(view(w, shape), {1, 1}))) < 0.12);
  CHECK(error(decoded(BlockSparse<AnyRowFormat>::encode(view(w, shape), {2, 1}, AnyRowFormat(GroupInt{})))) < 0.1);
}

TEST_CASE("block-sparse forms keep blocks of any shape, empty rows and whole matrices included", "[sparse]") {
  for (const MatrixShape shape : {MatrixShape{0, 0}, {0, 8}, {8, 0}, {1, 1}, {33, 70}, {64, 600}})
    for (const MatrixShape block : {MatrixShape{1, 1}, {4, 1}, {1, 16}, {16, 32}, {5, 7}})
      for (const double density : {0.0, 0.3, 1.0}) {
        if (!(shape.rows == 0 || shape.cols == 0) && (block.rows > shape.rows || block.cols > shape.cols)) continue;
        CAPTURE(shape.rows, shape.cols, block.rows, block.cols, density);
        std::vector<float> w = random_normal(shape.rows * shape.cols, 5);
        const MaskPattern pattern = MaskPattern::blocks(block, density);
        const Mask mask = prune_mask(view(w, shape), magnitude(), pattern);
        mask.apply(MatrixView<float>(w.data(), shape.rows, shape.cols));
        const auto op = BlockSparse<DenseFormat<float>>::encode(view(w, shape), block);
        CHECK(decoded(op) == w);
        const Mask kept = mask.any_of_blocks(block);
        CHECK(kept.count() == pattern.kept_of(kept.rows() * kept.cols()));
        CHECK(op.kept_blocks() == kept.count());
        CHECK(op.density() == kept.density());
        const auto reopened =
            BlockSparse<DenseFormat<float>>::from_sections(op.shape(), op.parameters(), op.sections());
        CHECK(decoded(reopened) == w);
        CHECK(op.storage_bytes() == section_bytes(std::vector<Section>(op.sections())));
      }
}

TEST_CASE("blocks go to compressed columns and back", "[sparse]") {
  using Op = BlockSparse<DenseFormat<float>>;
  // Blocks of 2x1: rows 0-1 hold columns 0 and 2, rows 2-3 column 0.
  const std::vector<float> small = {1, 0, 2, 3, 0, 4, 5, 0, 0, 6, 0, 0};
  const Bsc bsc = to_bsc(Op::encode(view(small, {4, 3}), {2, 1}).to_bsr());
  CHECK(bsc.indptr == std::vector<std::int32_t>{0, 2, 2, 3});
  CHECK(bsc.indices == std::vector<std::int32_t>{0, 1, 0});
  CHECK(bsc.data == std::vector<float>{1, 3, 5, 6, 2, 4});

  for (const MatrixShape shape : {MatrixShape{0, 0}, {0, 8}, {8, 0}, {1, 1}, {33, 70}})
    for (const MatrixShape block : {MatrixShape{1, 1}, {4, 1}, {16, 32}, {5, 7}}) {
      CAPTURE(shape.rows, shape.cols, block.rows, block.cols);
      std::vector<float> w = random_normal(shape.rows * shape.cols, 5);
      if (block.rows <= shape.rows && block.cols <= shape.cols)
        prune_mask(view(w, shape), magnitude(), MaskPattern::blocks(block, 0.3))
            .apply(MatrixView<float>(w.data(), shape.rows, shape.cols));
      const Bsr bsr = Op::encode(view(w, shape), block).to_bsr();
      const Bsr back = from_bsc(to_bsc(bsr));
      CHECK(back.shape == bsr.shape);
      CHECK(back.block == bsr.block);
      CHECK(back.indptr == bsr.indptr);
      CHECK(back.indices == bsr.indices);
      CHECK(back.data == bsr.data);
    }

  const auto refuse = [&](const char* text, const auto& spoil) {
    Bsc bad = bsc;
    spoil(bad);
    CHECK_THROWS_WITH(from_bsc(bad), Contains("from_bsc: ") && Contains(text));
  };
  refuse("indptr needs 4 entries from 0 to 3", [](Bsc& b) { b.indptr.pop_back(); });
  refuse("indptr needs", [](Bsc& b) { b.indptr.front() = 1; });
  refuse("indptr falls at block column 1", [](Bsc& b) { b.indptr[2] = 1; });
  refuse("is not in [0, 2)", [](Bsc& b) { b.indices[1] = 2; });
  refuse("is not in [0, 2)", [](Bsc& b) { b.indices[1] = -1; });
  refuse("do not rise in block column 0", [](Bsc& b) { b.indices[1] = 0; });
  refuse("data has", [](Bsc& b) { b.data.pop_back(); });
  refuse("do not divide", [](Bsc& b) { b.block = {3, 1}; });
  refuse("at least 1x1", [](Bsc& b) { b.block = {0, 1}; });
  refuse("negative", [](Bsc& b) { b.shape = {-4, 3}; });
  Bsr bad = from_bsc(bsc);
  bad.indices[0] = 3;
  CHECK_THROWS_WITH(to_bsc(bad), Contains("to_bsc: ") && Contains("is not in [0, 3)"));
}

TEST_CASE("grouped columns that do not fit are refused by name", "[sparse]") {
  using Op = BlockSparse<DenseFormat<float>>;
  // Rows 0-1: columns 0, 1, 3 and one that fills; rows 2-3: column 2 and one that fills.
  const std::vector<float> w = {1, 2, 0, 3, 4, 5, 0, 6, 0, 0, 7, 0, 0, 0, 8, 0};
  const GroupedBsr good = to_grouped(Op::encode(view(w, {4, 4}), {2, 1}).to_bsr(), 2);
  CHECK(good.indptr == std::vector<std::int64_t>{0, 2, 3});
  CHECK(good.indices == std::vector<std::int64_t>{0, 1, 3, 3, 2, 2});
  CHECK(good.data == std::vector<float>{1, 2, 4, 5, 3, 0, 6, 0, 7, 0, 8, 0});
  CHECK(decoded(Op::from_bsr(from_grouped(good))) == w);
  const auto refuse = [&](const char* text, const auto& spoil) {
    GroupedBsr bad = good;
    spoil(bad);
    CHECK_THROWS_WITH(Op::from_bsr(from_grouped(bad)), Contains(text));
  };
  const char* sizes = "from_grouped: indptr, indices and data of";
  refuse(sizes, [](GroupedBsr& g) { g.group = 0; });
  refuse(sizes, [](GroupedBsr& g) { g.block_rows = 0; });
  refuse(sizes, [](GroupedBsr& g) { g.indptr.clear(); });
  refuse(sizes, [](GroupedBsr& g) { g.indptr.front() = 1; });
  refuse(sizes, [](GroupedBsr& g) { g.indptr.back() = 4; });
  refuse(sizes, [](GroupedBsr& g) { g.indptr[1] = 4; });
  refuse(sizes, [](GroupedBsr& g) { g.indices.pop_back(); });
  refuse(sizes, [](GroupedBsr& g) { g.data.pop_back(); });
  refuse("indptr needs 3 entries", [](GroupedBsr& g) { g.indptr.insert(g.indptr.begin(), 0); });
  refuse("from_grouped: indices[1] = 4 is not in [0, 4)", [](GroupedBsr& g) { g.indices[1] = 4; });
  refuse("from_grouped: indices[0] = -1 is not in [0, 4)", [](GroupedBsr& g) { g.indices[0] = -1; });
  refuse("from_grouped: indices[1] repeats column 0", [](GroupedBsr& g) { g.indices[1] = 0; });
  refuse("from_grouped: indices[3] repeats column 3", [](GroupedBsr& g) { g.data[7] = 9; });
  refuse("do not rise", [](GroupedBsr& g) { g.indices[2] = g.indices[3] = 0; });
  CHECK_THROWS_AS(from_grouped(GroupedBsr{{4, 4}, 2, 2, {0, 1, 1}, {1, 1}, {0, 1, 0, 0}}), ValueError);
  CHECK_THROWS_AS(from_grouped(GroupedBsr{{4, 4}, 2, 2, {0, 1, 1}, {1}, {0, 1, 0, 0}}), ShapeError);
}

TEST_CASE("a block-sparse encoder tells its progress", "[sparse]") {
  const std::vector<float> w = random_normal(300 * 3, 2);
  std::vector<double> told;
  EncodeOptions options;
  options.execution.progress = [&](double fraction) { told.push_back(fraction); };
  BlockSparse<DenseFormat<float>>::encode(view(w, {300, 3}), {2, 3}, {}, options);
  CHECK(told.size() == 3);  // 150 rows of blocks, 64 a stretch
  CHECK(told.back() == 1.0);
  CHECK(std::is_sorted(told.begin(), told.end()));
}

TEST_CASE("block-sparse input that does not fit is refused by name", "[sparse]") {
  using Op = BlockSparse<DenseFormat<float>>;
  const std::vector<float> w = random_normal(6 * 8, 2);
  CHECK(decoded(Op::encode(view(w, {6, 8}), {7, 16})) == w);  // a block that the matrix cuts on both sides
  CHECK_THROWS_WITH(Op::encode(view(w, {6, 8}), {0, 1}), Contains("at least 1x1"));
  CHECK_THROWS_WITH(Op::encode(view(w, {6, 8}), Mask({2, 2}), {2, 2}), Contains("kept is 2x2, 3x4 blocks needed"));
  std::vector<float> nan = w;
  nan[11] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(Op::encode(view(nan, {6, 8}), {2, 2}), Contains("row 1, column 3"));

  const auto op = Op::encode(view(w, {6, 8}), {2, 3});
  std::vector<Section> sections = op.sections();
  CHECK_THROWS_WITH(Op::from_sections({6, 8}, op.parameters(), std::span(sections).first(1)), Contains("sections"));
  const Section blocks = sections[1];
  AlignedBuffer<std::byte> bits(3);
  bits[0] = std::byte{0x0f};  // the fourth of three blocks
  sections[1].data = SharedBytes(std::move(bits));
  CHECK_THROWS_WITH(Op::from_sections({6, 8}, op.parameters(), sections), Contains("bit behind the last block"));
  AlignedBuffer<std::byte> none(3);
  sections[1].data = SharedBytes(std::move(none));
  CHECK_THROWS_WITH(Op::from_sections({6, 8}, op.parameters(), sections), Contains("values.values has"));

  const Bsr good = Op::encode(view(w, {6, 8}), {2, 2}).to_bsr();
  const auto refuse = [&](const char* text, const auto& spoil) {
    Bsr bad = good;
    spoil(bad);
    CHECK_THROWS_WITH(Op::from_bsr(bad), Contains(text));
  };
  refuse("indptr", [](Bsr& b) { b.indptr.pop_back(); });
  refuse("indptr", [](Bsr& b) { b.indptr.front() = 1; });
  refuse("indptr falls", [](Bsr& b) {
    b.indptr[1] = 4;
    b.indptr[2] = 3;
  });
  refuse("is not in [0, 4)", [](Bsr& b) { b.indices[1] = 4; });
  refuse("is not in [0, 4)", [](Bsr& b) { b.indices[1] = -1; });
  refuse("do not rise", [](Bsr& b) { std::swap(b.indices[0], b.indices[1]); });
  refuse("do not rise", [](Bsr& b) { b.indices[1] = b.indices[0]; });
  refuse("data has", [](Bsr& b) { b.data.pop_back(); });
  refuse("do not divide", [](Bsr& b) { b.block = {4, 2}; });
  CHECK_THROWS_AS(to_grouped(good, 4), ShapeError);
  CHECK_THROWS_AS(to_sparamx(view(w, {6, 8}), SparAmxOrder::amx), ShapeError);
  const std::vector<std::int16_t> words(64 * 3);
  CHECK_THROWS_AS(to_gpu_order<std::int16_t>(words, 64), ShapeError);
}
