// SPDX-License-Identifier: Apache-2.0
// Compressed models in GGUF files: the same bytes as in safetensors, under the names of the tensors; files of others
// open as operators.
#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "blockpack/io.hpp"
#include "blockpack/recipe.hpp"
#include "recipe/gguf_model.hpp"
#include "recipe/model_support.hpp"
#include "support/catch.hpp"

namespace blockpack {
namespace {

using namespace blockpack::test;

/// Rows of whole blocks, and what a recipe leaves alone.
std::vector<Filled> block_model() {
  return {filled<float>("a.weight", Dtype::f32, {6, 256}, 1),
          filled<bf16>("b.weight", Dtype::bf16, {3, 512}, 2),
          filled<float>("norm.weight", Dtype::f32, {10}, 3),
          filled<fp16>("conv.weight", Dtype::f16, {2, 3, 4, 5}, 4),
          filled<float>("scalar", Dtype::f32, {}, 5),
          filled<float>("empty.weight", Dtype::f32, {0, 8}, 6),
          Filled{{"ids", Dtype::i64, {2}}, std::vector<std::byte>(16, std::byte{9})}};
}

bool same(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

bool registered(const std::string& scheme) {
  const auto listed = Registry::standard().listed();
  return std::any_of(listed.begin(), listed.end(), [&](const ListedScheme& s) { return s.scheme == scheme; });
}

void write_gguf(const std::filesystem::path& path, const std::vector<GgufTensorSpec>& specs,
                const std::vector<std::vector<std::byte>>& bytes, const GgufMetadata& metadata = {}) {
  GgufWriter writer(path, specs, metadata);
  for (std::size_t i = 0; i < specs.size(); ++i) writer.write(specs[i].name, 0, bytes[i]);
  writer.commit();
}

/// The same file without what blockpack wrote into its metadata, as llama.cpp would make it.
void strip(const std::filesystem::path& from, const std::filesystem::path& to) {
  const GgufFile file = GgufFile::open(from);
  std::vector<GgufTensorSpec> specs;
  std::vector<std::vector<std::byte>> bytes;
  for (const GgufTensor& t : file.tensors()) {
    specs.push_back(t.spec());
    bytes.emplace_back(t.data.bytes.begin(), t.data.bytes.end());
  }
  write_gguf(to, specs, bytes, {{"general.architecture", "llama"}});
}

}  // namespace

TEST_CASE("every scheme that GGUF has a type for goes through a GGUF file and comes back bit for bit",
          "[recipe][gguf]") {
  const TemporaryFolder folder;
  write_model(folder / "in", block_model());
  int schemes = 0;
  for (const GgufTensorTypeInfo& type : gguf_tensor_types()) {
    const std::string scheme = recipe_detail::scheme_of(type.type);
    if (!registered(scheme)) continue;
    CAPTURE(scheme);
    ++schemes;
    const Recipe recipe = Recipe::parse(scheme);
    const CompressReport report = compress_model(folder / "in", recipe, folder / "out.gguf");
    compress_model(folder / "in", recipe, folder / "out.safetensors");
    const CompressedModel other = CompressedModel::open(folder / "out.safetensors");
    const CompressedModel model = CompressedModel::open(folder / "out.gguf");
    const GgufFile file = GgufFile::open(folder / "out.gguf");
    REQUIRE(model.names() == other.names());
    REQUIRE(model.is_compressed());
    CHECK(model.recipe() == recipe.to_json());
    CHECK(report.stored_bytes() == model.storage_bytes());
    CHECK(find_value(file.metadata(), "format") != nullptr);
    CHECK((find_value(file.metadata(), "general.quantization_version") != nullptr) == !type.dtype.has_value());
    for (const HashCheck& check : model.verify_hashes()) CHECK(check.intact);
    for (const std::string& name : model.names()) {
      CAPTURE(name);
      const GgufTensor& stored = file.tensor(name);
      const CompressedTensor* expected = other.find_compressed(name);
      if (expected == nullptr) {
        CHECK(stored.stored().dtype == other.tensor(name).dtype);
        CHECK(same(stored.data.bytes, other.tensor(name).data.bytes));
        CHECK(model.shape(name) == other.shape(name));
        continue;
      }
      CHECK(stored.type == type.type);
      CHECK(stored.shape == other.shape(name));
      CHECK(same(stored.data.bytes, expected->sections[0].data.bytes));
      CHECK(matrix_values(model, name) == matrix_values(other, name));
      const AnyLinear op = model.linear(name);
      CHECK(op.scheme() == scheme);
      CHECK(same(op.sections()[0].data.bytes, stored.data.bytes));
      if (type.dtype) continue;  // plain types come as kept tensors
      const CompressedTensor* found = model.find_compressed(name);
      REQUIRE(found != nullptr);
      CHECK(found->scheme == scheme);
      CHECK(op.sections()[0].data.bytes.data() == found->stored[0].data.bytes.data());  // nothing is copied
    }
    if (!type.dtype) {
      const std::vector<ErrorStats> errors = model.compare(CompressedModel::open(folder / "in"));
      REQUIRE(errors.size() == 2);
      CHECK(errors[0].noise_energy() == Approx(report.tensors[0].error.noise_energy()).epsilon(1e-12));
    }
  }
  CHECK(schemes == 20);
}

TEST_CASE("rounding with calibration fills the blocks of a GGUF file, and the file knows the blocks alone",
          "[recipe][gguf]") {
  const TemporaryFolder folder;
  write_model(folder / "in", block_model());
  CompressOptions options;
  options.calibration = [](std::string_view tensor) {
    TensorCalibration found;
    found.gram = std::make_shared<const GramMatrix>(correlated(tensor == "a.weight" ? 256 : 512, 3));
    return found;
  };
  for (const char* scheme : {"q4_0", "q8_0"}) {
    CAPTURE(scheme);
    const Recipe rounded = Recipe::parse(std::string(scheme) + "+gptq");
    compress_model(folder / "in", Recipe::parse(scheme), folder / "plain.gguf");
    compress_model(folder / "in", rounded, folder / "out.gguf", options);
    compress_model(folder / "in", rounded, folder / "out.safetensors", options);
    const GgufFile plain = GgufFile::open(folder / "plain.gguf"), file = GgufFile::open(folder / "out.gguf");
    const CompressedModel model = CompressedModel::open(folder / "out.gguf");
    for (const char* name : {"a.weight", "b.weight"}) {
      CAPTURE(name);
      CHECK(file.tensor(name).type == plain.tensor(name).type);
      CHECK_FALSE(same(file.tensor(name).data.bytes, plain.tensor(name).data.bytes));
      CHECK(model.linear(name).scheme() == scheme);
      CHECK(matrix_values(model, name) == matrix_values(CompressedModel::open(folder / "out.safetensors"), name));
    }
  }
}

TEST_CASE("a GGUF file does not depend on panels or threads, and damage to it is found", "[recipe][gguf]") {
  const TemporaryFolder folder;
  write_model(folder / "in", block_model());
  const Recipe recipe = Recipe::parse(R"({"rules": [{"tensors": "a.*", "scheme": "q4_k"}], "default": "q8_0"})");
  compress_model(folder / "in", recipe, folder / "out.gguf");
  const std::string reference = file_content(folder / "out.gguf");
  for (const int threads : {1, 3}) {
    CompressOptions options;
    options.panel_budget = 1;
    options.execution.threads = threads;
    options.measure = threads == 1;
    compress_model(folder / "in", recipe, folder / "out.gguf", options);
    CHECK(file_content(folder / "out.gguf") == reference);
  }
  std::string damaged = reference;
  const GgufFile file = GgufFile::open(folder / "out.gguf");
  const GgufTensor& a = file.tensor("a.weight");
  damaged[static_cast<std::size_t>(a.data.bytes.data() - a.mapping->bytes().data()) + 5] ^= 1;
  write_content(folder / "damaged.gguf", damaged);
  for (const HashCheck& check : CompressedModel::open(folder / "damaged.gguf").verify_hashes())
    CHECK(check.intact == (check.name != "a.weight"));
}

TEST_CASE("a GGUF file made by others opens as operators without quantizing again", "[recipe][gguf]") {
  const TemporaryFolder folder;
  write_model(folder / "in", block_model());
  compress_model(folder / "in", Recipe::parse("q4_k"), folder / "ours.gguf");
  strip(folder / "ours.gguf", folder / "theirs.gguf");
  const CompressedModel ours = CompressedModel::open(folder / "ours.gguf");
  const CompressedModel theirs = CompressedModel::open(folder / "theirs.gguf");
  CHECK(theirs.is_compressed());
  CHECK_FALSE(theirs.has_hashes());
  CHECK(theirs.version() == 0);
  CHECK_THROWS_AS(theirs.verify_hashes(), ValueError);
  REQUIRE(theirs.names() == ours.names());
  CHECK(theirs.compressed().size() == 2);
  for (const CompressedTensor& t : theirs.compressed())
    CHECK(matrix_values(theirs, t.name) == matrix_values(ours, t.name));
  const std::vector<ErrorStats> a = theirs.compare(CompressedModel::open(folder / "in"));
  CHECK(a[0].sqnr_db() > 20);
}

TEST_CASE("stacked matrices, types without a scheme and empty tensors of a GGUF file open", "[recipe][gguf]") {
  const TemporaryFolder folder;
  const std::vector<std::byte> two_experts(2 * 3 * 2 * 34, std::byte{1}), codebook(2 * 66, std::byte{2});
  write_gguf(folder / "m.gguf",
             {{"experts", GgufTensorType::q8_0, {2, 3, 64}},
              {"row", GgufTensorType::q8_0, {64}},
              {"codebook", GgufTensorType::iq2_xxs, {2, 256}},
              {"nothing", GgufTensorType::q8_0, {0, 64}}},
             {two_experts, std::vector<std::byte>(68, std::byte{3}), codebook, {}});
  const CompressedModel model = CompressedModel::open(folder / "m.gguf");
  CHECK(model.names() == std::vector<std::string>{"codebook", "experts", "nothing", "row"});
  CHECK(model.linear("experts").shape() == MatrixShape{6, 64});
  CHECK(model.linear("row").shape() == MatrixShape{1, 64});
  CHECK(model.tensor("codebook").dtype == Dtype::u8);
  CHECK(model.tensor("codebook").shape == std::vector<index_t>{2, 66});
  CHECK(model.tensor("nothing").data.bytes.empty());
  CHECK_THROWS_AS(model.linear("codebook"), UnsupportedError);
  const Registry none;
  CHECK(CompressedModel::open(folder / "m.gguf", none).compressed().empty());
}

TEST_CASE("what GGUF cannot hold is refused with its name before anything is written", "[recipe][gguf]") {
  const TemporaryFolder folder;
  const auto out = folder / "out.gguf";
  write_content(out, "old");
  const auto refused = [&]<class E>(std::type_identity<E>, const std::vector<Filled>& tensors,
                                    const std::string& scheme) {
    write_model(folder / "in", tensors);
    const std::string message = message_of<E>([&] { compress_model(folder / "in", Recipe::parse(scheme), out); });
    CHECK(file_content(out) == "old");
    CHECK(folder.count() == 2);
    return message;
  };
  using Catch::Contains;
  const std::type_identity<UnsupportedError> unsupported;
  const std::type_identity<ShapeError> shape;
  CHECK_THAT(refused(unsupported, block_model(), "int4-g32"), Contains("a.weight") && Contains("int4-g32"));
  CHECK_THAT(refused(unsupported, block_model(), "mxfp4"), Contains("a.weight") && Contains("mxfp4"));
  CHECK_THAT(refused(shape, {filled<float>("w", Dtype::f32, {4, 300}, 1)}, "q4_k"),
             Contains("'w'") && Contains("300 columns") && Contains("multiple of 256"));
  CHECK_THAT(refused(shape, {filled<float>("w", Dtype::f32, {4, 33}, 1)}, "q8_0"), Contains("'w'"));
  std::vector<Filled> model = block_model();
  model.push_back({{"mask", Dtype::u8, {2}}, std::vector<std::byte>(2)});
  CHECK_THAT(refused(unsupported, model, "q8_0"), Contains("'mask'") && Contains("U8"));
  model.back() = {{"deep", Dtype::f32, {1, 1, 1, 1, 1}}, std::vector<std::byte>(4)};
  CHECK_THAT(refused(shape, model, "q8_0"), Contains("'deep'") && Contains("5 dimensions"));
  model.back() = {{std::string(64, 'n'), Dtype::f32, {1}}, std::vector<std::byte>(4)};
  CHECK_THAT(refused(std::type_identity<ValueError>{}, model, "q8_0"), Contains("nnn") && Contains("63 bytes"));
  CompressOptions options;
  options.max_shard_bytes = 1000;
  CHECK_THROWS_AS(compress_model(folder / "in", Recipe::parse("q8_0"), out, options), ValueError);
  CHECK(file_content(out) == "old");
}

TEST_CASE("a GGUF model of plain types is compressed into either container", "[recipe][gguf]") {
  const TemporaryFolder folder;
  const Filled a = filled<fp16>("blk.0.attn_q.weight", Dtype::f16, {4, 256}, 1);
  const Filled b = filled<float>("output_norm.weight", Dtype::f32, {256}, 2);
  const GgufMetadata metadata = {{"general.architecture", "llama"},
                                 {"general.file_type", std::uint32_t{1}},
                                 {"tokenizer.tokens", GgufArray(std::vector<std::string>{"a", "\xff"})},
                                 {"broken", "\xff"},
                                 {std::string(kGgufAlignmentKey), std::uint32_t{64}}};
  write_gguf(folder / "in.gguf",
             {{a.spec.name, GgufTensorType::f16, a.spec.shape}, {b.spec.name, GgufTensorType::f32, b.spec.shape}},
             {a.bytes, b.bytes}, metadata);
  write_model(folder / "in", {a, b});
  const CompressedModel plain = CompressedModel::open(folder / "in.gguf");
  CHECK_FALSE(plain.is_compressed());
  CHECK(matrix_values(plain, a.spec.name) == matrix_values(CompressedModel::open(folder / "in"), a.spec.name));

  compress_model(folder / "in.gguf", Recipe::parse("q6_k"), folder / "out.gguf");
  compress_model(folder / "in", Recipe::parse("q6_k"), folder / "out");
  const GgufFile file = GgufFile::open(folder / "out.gguf");
  CHECK(file.alignment() == 64);
  CHECK(*find_value(file.metadata(), "tokenizer.tokens") == metadata[2].value);
  CHECK(find_value(file.metadata(), "general.file_type") == nullptr);
  CHECK(*find_value(file.metadata(), "general.quantization_version") == GgufValue(std::uint32_t{2}));
  const CompressedModel out = CompressedModel::open(folder / "out");
  CHECK(same(file.tensor(a.spec.name).data.bytes, out.compressed()[0].sections[0].data.bytes));

  compress_model(folder / "in.gguf", Recipe::parse("int4-g32"), folder / "int4");
  CHECK(CompressedModel::open(folder / "int4").find_compressed(a.spec.name)->scheme == "int4-g32");
  const Metadata strings = SafetensorsFile::open(folder / "int4").metadata();
  CHECK(strings.at("general.architecture") == "llama");
  CHECK(strings.count("broken") == 0);

  CHECK_THROWS_AS(compress_model(folder / "out.gguf", Recipe::parse("q8_0"), folder / "again.gguf"), FormatError);
  strip(folder / "out.gguf", folder / "theirs.gguf");
  CHECK_THAT(message_of<FormatError>(
                 [&] { compress_model(folder / "theirs.gguf", Recipe::parse("q8_0"), folder / "again.gguf"); }),
             Catch::Contains("attn_q") && Catch::Contains("Q6_K"));
}

}  // namespace blockpack
