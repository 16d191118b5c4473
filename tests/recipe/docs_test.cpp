// SPDX-License-Identifier: Apache-2.0
// The programs of docs/dispatch.md, docs/quantization.md, docs/rounding.md and docs/recipe.md, and the check that the
// pages show what is compiled here.
#include <filesystem>
#include <string>
#include <vector>

#include "blockpack/quant.hpp"
#include "blockpack/quant/allocate.hpp"
#include "blockpack/quant/hsic.hpp"
#include "blockpack/quant/rounding.hpp"
#include "blockpack/recipe.hpp"
#include "blockpack/recipe/frontier.hpp"
#include "recipe/model_support.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace blockpack {
namespace {

using namespace blockpack::test;
using MyRowFormat = Nf4;

/// The blocks of code of a page in that language.
std::vector<std::string> code_of(const std::string& page, const std::string& language) {
  const std::string text = file_content(std::filesystem::path(BLOCKPACK_SOURCE_DIR) / "docs" / page);
  const std::string open = "```" + language + "\n";
  std::vector<std::string> blocks;
  for (std::size_t at = text.find(open); at != text.npos; at = text.find(open, at)) {
    at += open.size();
    blocks.push_back(text.substr(at, text.find("```", at) - at));
  }
  return blocks;
}

/// The working folder, put back at the end.
struct WorkingFolder {
  std::filesystem::path before = std::filesystem::current_path();
  explicit WorkingFolder(const std::filesystem::path& folder) { std::filesystem::current_path(folder); }
  ~WorkingFolder() { std::filesystem::current_path(before); }
};

struct Layer {
  std::vector<float> w_values = random_weights(16, 64, 1), x_values = random_normal(4 * 64, 2);
  std::vector<float> y_values = std::vector<float>(4 * 16);
  MatrixView<const float> w{w_values.data(), 16, 64}, x{x_values.data(), 4, 64};
  MatrixView<float> y{y_values.data(), 4, 16};
};

}  // namespace

TEST_CASE("the program of the page on quantization runs", "[recipe]") {
  const Layer layer;
  const auto &w = layer.w, &x = layer.x;
  const auto& y = layer.y;
  // clang-format off
  const auto a = QuantizedMatrix<Mx>::encode(w, Mx{.element = MxElement::e2m1});        // mxfp4
  const auto b = QuantizedMatrix<Bfp>::encode(w, Bfp{.mantissa_bits = 4, .block = 32});  // bfp12-b32
  const auto c = QuantizedMatrix<GroupInt>::encode(w, GroupInt{.bits = 4, .group_size = 32});
  a.apply(x, y);
  // clang-format on
  CHECK(a.scheme() == "mxfp4");
  CHECK(b.scheme() == "bfp12-b32");
  CHECK(c.scheme() == "int4-g32");
}

TEST_CASE("the programs of the pages on dispatch and rounding run", "[recipe]") {
  const Layer layer;
  const auto &w = layer.w, &x = layer.x;
  const index_t in = w.cols();
  // clang-format off
  GramMatrix h(in);                       // XᵀX of the layer's inputs, batch by batch
  h.add(x);
  const auto q = round_gptq(GroupInt{.bits = 4, .group_size = 32}, w, h, {}, {.sweeps = 4});
  // clang-format on
  ApplyOptions how;
  // clang-format off
  how.execution.isa = Isa::avx2;                      // one call
  // clang-format on
  if (!runs_here(Isa::avx2)) how.execution.isa = {};
  q.apply(x, layer.y, how);
  CHECK(q.shape() == w.shape());
}

TEST_CASE("the program of mixed precision runs", "[recipe]") {
  const Layer layer;
  const auto& w = layer.w;
  const index_t samples = 4;
  const std::vector<double> values(layer.x_values.begin(), layer.x_values.end());
  const MatrixView<const double> x(values.data(), samples, 24), z(values.data() + 96, samples, 30);
  const MatrixView<const double> actions(values.data() + 216, samples, 8);
  // clang-format off
  const auto targets = standardize_columns(actions);  // x, z and actions: a row for each sample, double
  const HsicScore of_q = hsic_score(x, z, {targets.data(), samples, actions.cols()});

  const std::vector<std::string> schemes = {"int2-g32", "int3-g32", "int4-g32", "int8-g32"};
  const std::vector<MenuEntry> menu = measured_menu(w, schemes);  // bits, and the noise each leaves on w
  const std::vector<AllocationTensor> tensors = {{"q", /*layer=*/0, w.rows() * w.cols(), of_q.score},
                                                 {"v", /*layer=*/0, w.rows() * w.cols(), 0.1}};
  const Allocation plan = allocate_bits(tensors, menu, /*bits per weight=*/3.5);  // menu[plan.choice[0]].name for q
  // clang-format on
  CHECK(of_q.score == of_q.target - of_q.input);
  CHECK(menu.size() == schemes.size());
  CHECK(plan.bits_per_weight <= 3.5);
}

TEST_CASE("the programs of the page on recipes run", "[recipe]") {
  const TemporaryFolder folder;
  const WorkingFolder here(folder.path());
  const Layer layer;
  const auto& x = layer.x;
  const auto& y = layer.y;
  write_model("model.safetensors", {filled<bf16>("layers.0.q_proj.weight", Dtype::bf16, {16, 64}, 3)});
  // clang-format off
  const CompressReport report = compress_model("model.safetensors", Recipe::parse("int4-g32"), "small.safetensors");
  const CompressedModel model = CompressedModel::open("small.safetensors");
  const AnyLinear q = model.linear("layers.0.q_proj.weight");  // nothing is copied
  q.apply(x, y);
  // clang-format on
  CHECK(report.bits_per_weight() == 4.5);
  // clang-format off
  Registry registry = Registry::standard();
  SchemeFamily family;
  family.pattern = "mine";
  family.names = {"mine"};
  family.make = [](const Scheme&) { return make_row_codec(MyRowFormat{}); };
  registry.add(family);
  // clang-format on
  CHECK(registry.codec("mine")->bits_per_weight({16, 64}) == 4.25);
  for (const std::string& recipe : code_of("recipe.md", "json")) CHECK_NOTHROW(Recipe::parse(recipe));
}

TEST_CASE("the pages on dispatch, quantization, rounding and recipes show the programs that are compiled", "[recipe]") {
  const std::string source = file_content(std::filesystem::path(BLOCKPACK_SOURCE_DIR) / "tests/recipe/docs_test.cpp");
  for (const char* page : {"dispatch.md", "quantization.md", "rounding.md", "recipe.md"}) {
    CAPTURE(page);
    const std::vector<std::string> blocks = code_of(page, "cpp");
    CHECK(!blocks.empty());
    for (const std::string& shown : blocks) {
      CAPTURE(shown);
      CHECK(source.find(shown) != std::string::npos);
    }
  }
}

}  // namespace blockpack
