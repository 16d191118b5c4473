// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "blockpack/core/dense.hpp"
#include "blockpack/recipe.hpp"
#include "recipe/model_support.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"

namespace blockpack {
namespace {

using namespace blockpack::test;

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

/// Encodes a whole matrix at once, without the streaming of compress_model.
AnyLinear encode_directly(const std::shared_ptr<const Codec>& codec, MatrixView<const float> w) {
  std::vector<Section> sections;
  std::vector<std::byte*> dst;
  for (const SectionSize& s : codec->sections(w.shape())) {
    AlignedBuffer<std::byte> bytes(s.bytes);
    dst.push_back(bytes.data());
    sections.push_back({s.name, SharedBytes(std::move(bytes))});
  }
  fitted(codec, w)->encode(w, 0, dst, {});
  return codec->open(w.shape(), sections, PackPolicy::none());
}

TEST_CASE("every listed scheme goes through a file and comes back bit for bit", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  const CompressedModel plain = CompressedModel::open(folder / "in");
  int turn = 0;
  for (const ListedScheme& listed : Registry::standard().listed()) {
    if (turn++ % budget(1, 4) != 0) continue;
    if (listed.scheme.starts_with("armor")) continue;  // its blocks must divide the shape
    CAPTURE(listed.scheme);
    const CompressReport report = compress_model(folder / "in", Recipe::parse(listed.scheme), folder / "out");
    const CompressedModel model = CompressedModel::open(folder / "out");
    REQUIRE(model.is_compressed());
    REQUIRE(model.names() == plain.names());
    REQUIRE(model.compressed().size() == kSmallMatrices.size());
    for (const std::string& name : kSmallMatrices) {
      CAPTURE(name);
      const CompressedTensor* stored = model.find_compressed(name);
      REQUIRE(stored != nullptr);
      CHECK(stored->scheme == listed.scheme);
      std::vector<float> w = matrix_values(plain, name);
      const MatrixView<const float> view(w.data(), stored->shape.rows, stored->shape.cols);
      const AnyLinear direct = encode_directly(stored->codec, view);
      const AnyLinear opened = model.linear(name);
      CHECK(opened.scheme() == listed.scheme);
      CHECK(opened.shape() == stored->shape);
      CHECK(opened.storage_bytes() == direct.storage_bytes());
      CHECK(stored->stored_bytes() == direct.storage_bytes());
      const std::vector<Section> a = opened.sections(), b = direct.sections();
      REQUIRE(a.size() == b.size());
      for (std::size_t s = 0; s < a.size(); ++s) {
        CHECK(a[s].name == b[s].name);
        REQUIRE(a[s].data.bytes.size() == b[s].data.bytes.size());
        CHECK(std::equal(a[s].data.bytes.begin(), a[s].data.bytes.end(), b[s].data.bytes.begin()));
        // A view of the mapping, not a copy of it.
        CHECK(a[s].data.bytes.data() == stored->stored[s].data.bytes.data());
      }
      constexpr index_t kTokens = kCodeTokens + 1;  // codes are not packed for so many
      std::vector<float> x(static_cast<std::size_t>(kTokens * stored->shape.cols));
      fill_normal(x, 21);
      std::vector<float> y1(static_cast<std::size_t>(kTokens * stored->shape.rows)), y2 = y1;
      const MatrixView<const float> xv(x.data(), kTokens, stored->shape.cols);
      opened.apply(xv, MatrixView<float>(y1.data(), kTokens, stored->shape.rows));
      direct.apply(xv, MatrixView<float>(y2.data(), kTokens, stored->shape.rows));
      // A dense matrix is packed by one and not by the other: the same kernel family, the same bound, other bits.
      if (stored->codec->open(stored->shape, a, PackPolicy::none()).packed_bytes() == 0 && opened.packed_bytes() == 0)
        CHECK(same_bits(y1, y2));
    }
    for (const HashCheck& check : model.verify_hashes()) CHECK(check.intact);
    const std::vector<DecodedRange> ranges = model.decoded_ranges();
    REQUIRE(ranges.size() == model.compressed().size());
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      const std::vector<float> values = matrix_values(model, model.compressed()[i].name);
      CHECK(ranges[i].least == *std::min_element(values.begin(), values.end()));
      CHECK(ranges[i].greatest == *std::max_element(values.begin(), values.end()));
      CHECK(ranges[i].not_finite == 0);
    }
    const std::vector<ErrorStats> errors = model.compare(plain);
    for (std::size_t i = 0; i < errors.size(); ++i) {
      const auto reported = std::find_if(report.tensors.begin(), report.tensors.end(),
                                         [&](const TensorReport& t) { return t.name == model.compressed()[i].name; });
      REQUIRE(reported != report.tensors.end());
      CHECK(errors[i].noise_energy() == Approx(reported->error.noise_energy()).epsilon(1e-12));
      CHECK(errors[i].count() == reported->error.count());
    }
  }
}

TEST_CASE("the file does not depend on panels, threads or an executor", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  const Recipe recipe = Recipe::parse(
      R"({"rules": [{"tensors": "a.*", "scheme": "int4-g32-asym"}, {"tensors": "b.*", "scheme": "mxfp6-e2m3"}],
          "default": "bfp12-b32"})");
  compress_model(folder / "in", recipe, folder / "reference");
  const std::string reference = file_content(folder / "reference");
  for (const index_t budget : {index_t{1}, index_t{2000}, index_t{1} << 20}) {
    for (const int threads : {1, 2, 3, 4}) {
      CompressOptions options;
      options.panel_budget = budget;
      options.execution.threads = threads;
      options.measure = threads % 2 == 0;
      const CompressReport report = compress_model(folder / "in", recipe, folder / "other", options);
      CAPTURE(budget, threads);
      CHECK(file_content(folder / "other") == reference);
      CHECK(report.peak_working_bytes > 0);
      CHECK(report.stored_bytes() == CompressedModel::open(folder / "other").storage_bytes());
    }
  }
  CompressOptions options;
  options.execution.executor = [](index_t n, const std::function<void(index_t)>& f) {
    for (index_t i = n; i-- > 0;) f(i);
  };
  compress_model(folder / "in", recipe, folder / "other", options);
  CHECK(file_content(folder / "other") == reference);
}

TEST_CASE("what a recipe keeps is kept byte for byte, metadata too", "[recipe]") {
  const TemporaryFolder folder;
  const std::vector<Filled> tensors = small_model();
  write_model(folder / "in", tensors, {{"format", "pt"}, {"author", "somebody"}});
  compress_model(folder / "in", Recipe::parse(R"({"keep": "b.*", "default": "mxfp4"})"), folder / "out");
  const CompressedModel model = CompressedModel::open(folder / "out");
  for (const Filled& t : tensors) {
    CAPTURE(t.spec.name);
    const bool compressed = t.spec.name != "b.weight" && std::find(kSmallMatrices.begin(), kSmallMatrices.end(),
                                                                   t.spec.name) != kSmallMatrices.end();
    CHECK((model.find_compressed(t.spec.name) != nullptr) == compressed);
    CHECK(model.shape(t.spec.name) == t.spec.shape);
    if (compressed) {
      CHECK_THROWS_AS(model.tensor(t.spec.name), ValueError);
      continue;
    }
    const Tensor kept = model.tensor(t.spec.name);
    CHECK(kept.dtype == t.spec.dtype);
    CHECK(std::equal(kept.data.bytes.begin(), kept.data.bytes.end(), t.bytes.begin(), t.bytes.end()));
  }
  const Metadata metadata = SafetensorsFile::open(folder / "out").metadata();
  CHECK(metadata.at("format") == "pt");
  CHECK(metadata.at("author") == "somebody");
  CHECK(metadata.at("blockpack.version") == "1");
  CHECK(metadata.at("blockpack.tensor.a.weight") == "mxfp4 33x70 F32");
  CHECK(model.recipe() == R"({"keep":["b.*"],"default":"mxfp4"})");
  CHECK(model.linear("b.weight").scheme() == "bf16");
  CHECK(model.linear("a.weight").scheme() == "mxfp4");
  CHECK_THROWS_AS(model.linear("norm.weight"), ValueError);
  CHECK_THROWS_AS(model.linear("nothing"), ValueError);
}

TEST_CASE("a plain model opens as one in which everything is kept", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  const CompressedModel model = CompressedModel::open(folder / "in");
  CHECK_FALSE(model.is_compressed());
  CHECK(model.compressed().empty());
  CHECK(model.linear("a.weight").scheme() == "f32");
  CHECK(model.linear("layers.0.c.weight").scheme() == "fp16");
  CHECK_THROWS_AS(model.verify_hashes(), ValueError);
}

TEST_CASE("shards hold the same tensors as one file", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  const Recipe recipe = Recipe::parse("int8-g32");
  compress_model(folder / "in", recipe, folder / "whole");
  CompressOptions options;
  options.max_shard_bytes = 1500;
  compress_model(folder / "in", recipe, folder / "shards", options);
  const TensorStore whole = TensorStore::open(folder / "whole"), shards = TensorStore::open(folder / "shards");
  CHECK(shards.files().size() > 1);
  CHECK(whole.names() == shards.names());
  for (const std::string& name : whole.names()) {
    const Tensor a = whole.tensor(name), b = shards.tensor(name);
    CHECK(std::equal(a.data.bytes.begin(), a.data.bytes.end(), b.data.bytes.begin(), b.data.bytes.end()));
  }
  const CompressedModel model = CompressedModel::open(folder / "shards");
  REQUIRE(model.is_compressed());
  for (const HashCheck& check : model.verify_hashes()) CHECK(check.intact);
  // Sharded input, and a second run into a folder that holds a model.
  CHECK_THROWS_AS(compress_model(folder / "in", recipe, folder / "shards", options), IoError);
  CHECK_THROWS_AS(compress_model(folder / "shards", recipe, folder / "again"), FormatError);
}

TEST_CASE("a changed byte is found by its hash, and only there", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  compress_model(folder / "in", Recipe::parse("int8-g32"), folder / "out");
  const SafetensorsFile file = SafetensorsFile::open(folder / "out");
  std::string content = file_content(folder / "out");
  const auto begin = reinterpret_cast<const char*>(file.tensor("a.weight:codes").data.bytes.data());
  const auto base = reinterpret_cast<const char*>(file.tensors().front().data.bytes.data());
  content[file.data_offset() + static_cast<std::size_t>(begin - base) + 17] ^= 1;
  write_content(folder / "damaged", content);
  for (const HashCheck& check : CompressedModel::open(folder / "damaged").verify_hashes())
    CHECK(check.intact == (check.name != "a.weight:codes"));
}

/// Runs `f`, which must throw E, and gives its message.
template <class E, class F>
std::string thrown(const F& f) {
  try {
    f();
  } catch (const E& error) {
    return error.what();
  }
  FAIL("nothing of the expected type was thrown");
  return {};
}
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST_CASE("whatever goes wrong leaves the old file and no other", "[recipe]") {
  const TemporaryFolder folder;
  std::vector<Filled> tensors = small_model();
  write_model(folder / "in", tensors);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(tensors[0].bytes.data() + (5 * 70 + 3) * sizeof(float), &nan, sizeof nan);
  write_model(folder / "nan", tensors);
  write_content(folder / "out", "the old file");
  const auto untouched = [&] { return file_content(folder / "out") == "the old file" && folder.count() == 3; };
  const Recipe recipe = Recipe::parse("int4-g32");

  const std::string message = thrown<ValueError>([&] { compress_model(folder / "nan", recipe, folder / "out"); });
  CHECK(has(message, "tensor 'a.weight'"));
  CHECK(has(message, "row 5, column 3"));
  CHECK(untouched());

  CHECK(has(thrown<FormatError>([&] {
              compress_model(folder / "in", Recipe::parse(R"({"rules":[{"tensors":"q*","scheme":"bf16"}]})"),
                             folder / "out");
            }),
            "matches no matrix"));
  CHECK(untouched());
  CHECK_THROWS_AS(compress_model(folder / "missing", recipe, folder / "out"), IoError);
  CHECK_THROWS_AS(compress_model(folder / "in", recipe, folder / "no" / "folder"), IoError);
  CHECK_THROWS_AS(compress_model(folder / "in", recipe, folder.path()), IoError);
  CHECK(untouched());

  CompressOptions options;
  options.non_finite = NonFinite::propagate;
  CHECK_THROWS_AS(compress_model(folder / "in", recipe, folder / "out", options), UnsupportedError);
  options = {};
  options.panel_budget = 0;
  CHECK_THROWS_AS(compress_model(folder / "in", recipe, folder / "out", options), ValueError);
  CHECK(untouched());

  // A stop request between any two panels.
  for (int after = 0; after < 8; ++after) {
    std::stop_source stop;
    int calls = 0;
    options = {};
    options.panel_budget = 1;
    options.execution.stop = stop.get_token();
    options.execution.progress = [&](double) {
      if (calls++ == after) stop.request_stop();
    };
    CHECK_THROWS_AS(compress_model(folder / "in", recipe, folder / "out", options), CancelledError);
    CHECK(untouched());
  }
  options = {};
  options.non_finite = NonFinite::saturate;
  compress_model(folder / "nan", recipe, folder / "out", options);
  CHECK(CompressedModel::open(folder / "out").is_compressed());
}

TEST_CASE("a model may be compressed onto itself, and not twice", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "model", small_model());
  compress_model(folder / "model", Recipe::parse("mxfp4"), folder / "copy");
  compress_model(folder / "model", Recipe::parse("mxfp4"), folder / "model");
  CHECK(file_content(folder / "model") == file_content(folder / "copy"));
  CHECK(has(thrown<FormatError>([&] { compress_model(folder / "model", Recipe::parse("bf16"), folder / "x"); }),
            "compressed model already"));
}

TEST_CASE("a name that a section would take is refused", "[recipe]") {
  const TemporaryFolder folder;
  std::vector<Filled> tensors = small_model();
  tensors.push_back(filled<float>("a.weight:codes", Dtype::f32, {3}, 9));
  write_model(folder / "in", tensors);
  CHECK(has(thrown<FormatError>([&] { compress_model(folder / "in", Recipe::parse("mxfp4"), folder / "out"); }),
            "a.weight:codes"));
}

TEST_CASE("progress starts at 0, never falls and ends at 1", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  std::vector<double> seen;
  CompressOptions options;
  options.panel_budget = 1;
  options.execution.progress = [&](double fraction) { seen.push_back(fraction); };
  compress_model(folder / "in", Recipe::parse("mxfp4"), folder / "out", options);
  REQUIRE(seen.size() > 10);
  CHECK(seen.front() == 0);
  CHECK(seen.back() == 1);
  CHECK(std::is_sorted(seen.begin(), seen.end()));
}

TEST_CASE("metadata that do not fit the tensors are refused", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  compress_model(folder / "in", Recipe::parse("int4-g32"), folder / "good");
  Metadata good;
  const std::vector<Filled> tensors = read_model(folder / "good", good);
  const auto with = [&](const auto& change) {
    Metadata metadata = good;
    std::vector<Filled> changed = tensors;
    change(metadata, changed);
    write_model(folder / "bad", changed, metadata);
    return thrown<Error>([&] { CompressedModel::open(folder / "bad"); });
  };
  const auto set = [&](const std::string& key, const std::string& value) {
    return with([&](Metadata& m, auto&) { m[key] = value; });
  };
  CHECK(has(set("blockpack.version", "2"), "has version 2, this library reads up to 1"));
  for (const char* version : {"", "0", "01", "1x", "-1", "99999999999"})
    CHECK(has(set("blockpack.version", version), "version"));
  for (const char* entry : {"", "int4-g32", "int4-g32 33x70", "int4-g32 33x70 F33", "int4-g32 33*70 F32",
                            "int4-g32 033x70 F32", "int4-g32 0x70 F32", "int4-g32 -33x70 F32", " 33x70 F32",
                            "int4-g32 33x70x2 F32", "int4-g32 99999999999999999999x70 F32"})
    CHECK(has(set("blockpack.tensor.a.weight", entry), "entry of 'a.weight'"));
  CHECK(has(set("blockpack.tensor.a.weight", "int5-g32 33x70 F32"), "unknown format 'int5'"));
  CHECK(has(set("blockpack.tensor.a.weight", "int4-g32 34x70 F32"), "another type or shape"));
  CHECK(has(set("blockpack.tensor.a.weight", "int8-g32 33x70 F32"), "another type or shape"));
  CHECK(has(set("blockpack.tensor.a.weight", "bfp12-b32 33x70 F32"), "is missing"));
  CHECK(has(set("blockpack.tensor.a.weight", "int4-g32 9000000000000000000x9000000000000000000 F32"), "shape"));
  CHECK(has(set("blockpack.tensor.norm.weight", "int4-g32 1x10 F32"), "is missing"));
  CHECK(has(set("blockpack.sha256.a.weight:codes", "00"), "64 hexadecimal digits"));
  CHECK(has(set("blockpack.sha256.nothing", good.at("blockpack.sha256.ids")), "no such tensor"));
  CHECK(has(with([](Metadata& m, auto&) { m.erase("blockpack.sha256.ids"); }), "'ids' has no"));
  CHECK(has(with([](Metadata& m, auto&) { m.erase("blockpack.recipe"); }), "recipe is missing"));
  CHECK(has(with([](Metadata& m, std::vector<Filled>& t) {
              t.push_back(filled<float>("a.weight", Dtype::f32, {3}, 1));
              m["blockpack.sha256.a.weight"] = m["blockpack.sha256.ids"];
            }),
            "also listed as compressed"));
  CHECK(has(with([](Metadata&, std::vector<Filled>& t) {
              for (Filled& f : t)
                if (f.spec.name == "a.weight:codes") f.spec.dtype = Dtype::i8;
            }),
            "another type or shape"));
}

/// A codec that needs the whole matrix: columns one after another.
class ColumnCodec final : public Codec {
 public:
  std::string scheme() const override { return "columns"; }
  std::vector<SectionSize> sections(MatrixShape shape) const override {
    return {{"columns", checked_mul(shape.rows * index_t{4}, shape.cols, "sections")}};
  }
  bool row_wise() const noexcept override { return false; }
  index_t working_bytes(MatrixShape shape) const override { return shape.rows * 4; }
  void encode(MatrixView<const float> w, index_t first_row, std::span<std::byte* const> dst,
              const EncodeOptions&) const override {
    REQUIRE(first_row == 0);
    for (index_t j = 0; j < w.cols(); ++j)
      for (index_t i = 0; i < w.rows(); ++i) std::memcpy(dst[0] + (j * w.rows() + i) * 4, &w(i, j), 4);
  }
  AnyLinear open(MatrixShape shape, std::span<const Section> sections, PackPolicy) const override {
    std::vector<float> w(static_cast<std::size_t>(shape.rows * shape.cols));
    for (index_t j = 0; j < shape.cols; ++j)
      for (index_t i = 0; i < shape.rows; ++i)
        std::memcpy(&w[static_cast<std::size_t>(i * shape.cols + j)],
                    sections[0].data.bytes.data() + (j * shape.rows + i) * 4, 4);
    return Dense<float>::encode(MatrixView<const float>(w.data(), shape.rows, shape.cols));
  }
};

TEST_CASE("a registered codec may need whole matrices, and the report says what that takes", "[recipe]") {
  Registry registry = Registry::standard();
  SchemeFamily family;
  family.pattern = "columns";
  family.names = {"columns"};
  family.make = [](const Scheme&) { return std::make_shared<const ColumnCodec>(); };
  registry.add(family);
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  const CompressReport report =
      compress_model(folder / "in", Recipe::parse("columns", registry), folder / "out", {}, registry);
  CHECK(report.peak_working_bytes == 33 * 70 * (4 + 4 + 4) + 33 * 4);
  for (const TensorReport& t : report.tensors) {
    CHECK((t.whole_bytes > 0) == !t.scheme.empty());
    if (t.name == "a.weight") CHECK(t.whole_bytes == report.peak_working_bytes);
  }
  CHECK(report.error().noise_energy() == 0);
  const CompressedModel model = CompressedModel::open(folder / "out", registry),
                        plain = CompressedModel::open(folder / "in");
  for (const std::string& name : kSmallMatrices)
    CHECK(same_bits(matrix_values(model, name), matrix_values(plain, name)));
  CHECK_THROWS_AS(CompressedModel::open(folder / "out"), FormatError);  // the standard registry lacks the scheme
}

TEST_CASE("compare refuses another model", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  compress_model(folder / "in", Recipe::parse("mxfp4"), folder / "out");
  const CompressedModel model = CompressedModel::open(folder / "out");
  write_model(folder / "other", {filled<float>("a.weight", Dtype::f32, {33, 71}, 1)});
  CHECK(has(thrown<ValueError>([&] { model.compare(CompressedModel::open(folder / "other")); }), "another shape"));
  write_model(folder / "other", {filled<float>("z", Dtype::f32, {33, 71}, 1)});
  CHECK(
      has(thrown<ValueError>([&] { model.compare(CompressedModel::open(folder / "other")); }), "no tensor 'a.weight'"));
}

}  // namespace
}  // namespace blockpack
