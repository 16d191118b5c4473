// SPDX-License-Identifier: Apache-2.0

/// Sparse forms as schemes: what they store, how they prune, and what they refuse.

#include <cmath>
#include <limits>
#include <vector>

#include "blockpack/quant/rounding.hpp"
#include "blockpack/recipe/compressed_model.hpp"
#include "blockpack/sparse.hpp"
#include "recipe/model_support.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace blockpack::test {
namespace {

using Catch::Matchers::Contains;

constexpr index_t kOut = 48, kIn = 72;
const MatrixShape kShape{kOut, kIn};

struct Layer {
  std::vector<float> w = random_weights(kOut, kIn, 5);
  GramMatrix gram{kIn};
  Layer() {
    std::vector<float> x = random_normal(256 * kIn, 9);
    for (std::size_t t = 0; t < 256; ++t)
      for (std::size_t j = 1; j < std::size_t{kIn}; ++j)
        x[t * kIn + j] = 0.8f * x[t * kIn + j - 1] + 0.6f * x[t * kIn + j];
    gram.add(MatrixView<const float>(x.data(), 256, kIn));
  }
  MatrixView<const float> view() const { return {w.data(), kOut, kIn}; }
  AnyLinear encode(const std::string& scheme) const {
    EncodeOptions options;
    options.gram = &gram;
    return encode_matrix(*Registry::standard().codec(scheme), view(), options);
  }
};

std::vector<float> decoded(const AnyLinear& op) {
  std::vector<float> w(static_cast<std::size_t>(op.out_features() * op.in_features()));
  for (index_t r = 0; r < op.out_features(); ++r)
    op.decode_rows(std::span(&r, 1), MatrixView<float>(w.data() + r * op.in_features(), 1, op.in_features()));
  return w;
}

TEST_CASE("a sparse scheme has its pattern, its bytes and its name", "[recipe][sparse]") {
  const Layer layer;
  for (const char* scheme : {"2:4-f32", "1:4-bf16+wanda", "4:8-int4-g32+nowag", "2:4-mxfp8-e4m3+sparsegpt+refit",
                             "3:5-bf16+search", "2:4-nvfp4+search", "bitmask-bf16", "bitmask-s30-int8-row+sparsegpt",
                             "bitmask-s70-bf16+search", "bsr4x1-s70-int8-row+wanda+refit", "bsr16x32-s80-bf16",
                             "bsr32x32-bf16+sparsegpt+refit", "bsr128x8-s25-f32+sparsegpt"}) {
    CAPTURE(scheme);
    const auto codec = Registry::standard().codec(scheme);
    CHECK(codec->scheme() == scheme);
    const AnyLinear op = layer.encode(scheme);
    CHECK(op.scheme() == codec->format());
    index_t bytes = 0;
    for (const SectionSize& s : codec->sections(kShape)) bytes += s.bytes;
    CHECK(static_cast<index_t>(op.storage_bytes()) == bytes);
    const AnyLinear again = Registry::standard().codec(codec->format())->open(kShape, op.sections());
    const std::vector<float> w = decoded(op);
    CHECK(decoded(again) == w);
    const Mask mask = Mask::of_nonzeros(MatrixView<const float>(w.data(), kOut, kIn));
    const std::string text = scheme;
    if (text[1] == ':') {
      CHECK(mask.is_nm(text[0] - '0', text[2] - '0'));
    } else if (text.starts_with("bsr16x32")) {
      CHECK(mask.any_of_blocks({16, 32}).row_counts() == std::vector<index_t>{1, 1, 1});  // 0.6 of three, rounded
    } else if (text.starts_with("bitmask-s70")) {
      for (const index_t count : mask.row_counts()) CHECK(count <= 22);  // 0.3 of 72, rounded
      CHECK(mask.count() > 20 * kOut);
    }
  }
}

TEST_CASE("a sparse form of which only the pattern is named is the best there is", "[recipe][sparse]") {
  const auto scheme = [](const char* text) { return Registry::standard().codec(text)->scheme(); };
  CHECK(scheme("2:4") == "2:4-bf16+search");
  CHECK(scheme("bitmask") == "bitmask-bf16+search");
  CHECK(scheme("bitmask-s60") == "bitmask-s60-bf16+search");
  CHECK(scheme("bsr32x32-s80") == "bsr32x32-s80-bf16+sparsegpt+refit");
  CHECK(scheme("2:4-bf16") == "2:4-bf16");
  CHECK(Registry::standard().codec("2:4")->needs().gram);
  CHECK_FALSE(Registry::standard().codec("2:4-bf16")->needs().any());
}

TEST_CASE("pruning by calibration loses less of the outputs, in the published order", "[recipe][sparse]") {
  const Layer layer;
  const auto loss = [&](const std::string& scheme) {
    const std::vector<float> q = decoded(layer.encode(scheme));
    Execution how;
    how.threads = 1;
    return layer_loss(layer.view(), MatrixView<const float>(q.data(), kOut, kIn), layer.gram, how);
  };
  for (const std::string form : {"2:4-f32", "bitmask-f32"}) {
    CAPTURE(form);
    const double plain = loss(form), swept = loss(form + "+sparsegpt"), fitted = loss(form + "+sparsegpt+refit");
    CHECK(swept < 0.8 * plain);
    CHECK(fitted < swept);
    CHECK(loss(form + "+search") < fitted);
  }
  CHECK(loss("bsr4x1-f32+sparsegpt+refit") < loss("bsr4x1-f32+wanda"));
}

TEST_CASE("ARMOR is a scheme that is no worse than the mask it starts from", "[recipe][sparse]") {
  const Layer layer;
  const auto error = [&](const std::string& scheme) {
    const std::vector<float> q = decoded(layer.encode(scheme));
    double sum = 0;
    for (index_t i = 0; i < kOut; ++i)
      for (index_t j = 0; j < kIn; ++j) {
        const auto at = static_cast<std::size_t>(i * kIn + j);
        const double e = static_cast<double>(layer.w[at]) - static_cast<double>(q[at]);
        sum += e * e * layer.gram(j, j);
      }
    return sum;
  };
  CHECK(error("armor-b8-2:4-bf16+nowag") < 0.8 * error("2:4-bf16+nowag"));
  const auto codec = Registry::standard().codec("armor-b8-2:4-int8-row+nowag");
  CHECK(codec->scheme() == "armor-b8-2:4-int8-row+nowag");
  const AnyLinear op = layer.encode("armor-b8-2:4-int8-row");
  CHECK(op.scheme() == "armor-b8-2:4-int8-row");
  index_t bytes = 0;
  for (const SectionSize& s : codec->sections(kShape)) bytes += s.bytes;
  CHECK(static_cast<index_t>(op.storage_bytes()) == bytes);
  CHECK(decoded(codec->open(kShape, op.sections())) == decoded(op));
  CHECK_THROWS_WITH(layer.encode("armor-b32-2:4-bf16"), Contains("48") || Contains("72"));  // 32 divides neither
  const auto refuse = [](const char* scheme, const char* says) {
    CHECK_THROWS_WITH(Registry::standard().codec(scheme), Contains(says));
  };
  refuse("armor-b16", "armor-b<side of the blocks>");
  refuse("armor-b16-bf16-f32", "armor-b<side of the blocks>");
  refuse("armor-b6-2:4-bf16", "a multiple of 4");
}

TEST_CASE("rows that are pruned by themselves stream, others do not", "[recipe][sparse]") {
  const auto panels = [](const char* scheme) { return Registry::standard().codec(scheme)->encodes_panels(); };
  CHECK(panels("2:4-bf16"));
  CHECK(panels("2:4-int4-g32+wanda"));
  CHECK_FALSE(panels("2:4-nvfp4"));
  CHECK_FALSE(panels("2:4-bf16+nowag"));
  CHECK_FALSE(panels("2:4-bf16+sparsegpt"));
  CHECK_FALSE(panels("bitmask-bf16"));
  const Layer layer;
  const auto codec = Registry::standard().codec("2:4-int4-g32+wanda");
  const AnyLinear whole = layer.encode("2:4-int4-g32+wanda");
  EncodeOptions options;
  options.gram = &layer.gram;
  const std::vector<SectionSize> sizes = codec->sections(kShape);
  std::vector<std::vector<std::byte>> stored;
  for (const SectionSize& s : sizes) stored.emplace_back(static_cast<std::size_t>(s.bytes));
  for (index_t first = 0; first < kOut; first += 16) {
    std::vector<std::byte*> dst;
    for (std::size_t s = 0; s < sizes.size(); ++s) dst.push_back(stored[s].data() + sizes[s].bytes / kOut * first);
    codec->encode(layer.view().rows_from(first, 16), first, dst, options);
  }
  const std::vector<Section> sections = whole.sections();
  for (std::size_t s = 0; s < sizes.size(); ++s)
    CHECK(std::equal(stored[s].begin(), stored[s].end(), sections[s].data.bytes.begin()));
}

TEST_CASE("what a sparse scheme cannot do is said at the character or by name", "[recipe][sparse]") {
  const auto refuse = [](const char* scheme, const char* says) {
    CAPTURE(scheme);
    CHECK_THROWS_WITH(Registry::standard().codec(scheme), Contains(says));
  };
  refuse("5:4-bf16", "unknown format '5:4'");
  refuse("2:17-bf16", "unknown format");
  refuse("bsr3x3-bf16", "unknown format");
  refuse("2:4-q9", "unknown format 'q9'");
  refuse("2:4-lowrank-r4-bf16", "a format of rows is needed");
  refuse("2:4+wanda", "the format of the kept weights is missing");
  refuse("2:4-bf16+wanda+sparsegpt", "'sparsegpt' cannot stand beside 'wanda'");
  refuse("bsr4x1-bf16+search", "blocks cannot be exchanged");
  refuse("bsr4x1-s0-bf16", "1 to 99 percent");
  refuse("bitmask-s100-bf16", "1 to 99 percent");
  refuse("2:4-bf16+gptq", "gptq");

  Layer layer;
  CHECK_THROWS_WITH(encode_matrix(*Registry::standard().codec("2:4"), layer.view()), Contains("needs XtX"));
  layer.w[kIn + 3] = std::numeric_limits<float>::quiet_NaN();
  for (const char* scheme : {"2:4-bf16", "bitmask-bf16", "2:4-bf16+search"}) {
    CHECK_THROWS_WITH(layer.encode(scheme), Contains("row 1, column 3"));
    EncodeOptions saturate;
    saturate.gram = &layer.gram;
    saturate.non_finite = NonFinite::saturate;
    CHECK(std::isfinite(decoded(encode_matrix(*Registry::standard().codec(scheme), layer.view(), saturate))[kIn + 3]));
    saturate.non_finite = NonFinite::propagate;
    CHECK_THROWS_AS(encode_matrix(*Registry::standard().codec(scheme), layer.view(), saturate), UnsupportedError);
  }
}

}  // namespace
}  // namespace blockpack::test
