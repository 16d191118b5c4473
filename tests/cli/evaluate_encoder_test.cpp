// SPDX-License-Identifier: Apache-2.0
// The program evaluate_encoder on a small encoder with random weights: its table, its page, what it refuses.
#include <algorithm>
#include <string>
#include <vector>

#include "blockpack/recipe/recipe.hpp"
#include "cli/cli_support.hpp"
#include "recipe/encoder_support.hpp"

namespace blockpack {
namespace {

using namespace blockpack::test;

ProcessResult run(const std::vector<std::string>& arguments) {
  return run_example(BLOCKPACK_EVALUATE_ENCODER, arguments);
}

/// What fetch_model.sh makes, with letters as words.
void write_folder(const TemporaryFolder& folder) {
  write_model(folder / "model.safetensors", small_encoder());
  write_content(folder / "config.json",
                R"({"kind": "transformer sentence encoder", "num_layers": 2, "num_heads": 2, "max_positions": 128,
                    "layer_norm_eps": 1e-6})");
  std::string vocabulary = "?\t0\n?\t0\n?\t0\n?\t0\n?\t0\n?\t0\n\u2581\t-1\n", sentences;
  for (char c = 'a'; c <= 'm'; ++c) {
    vocabulary += std::string(1, c) + "\t-2\n";
    sentences += std::string("ab ") + c + "dkc " + static_cast<char>('m' - (c - 'a')) + "\n";
  }
  write_content(folder / "vocab.tsv", vocabulary);
  write_content(folder / "sentences.txt", sentences);
  write_content(folder / "calibration.txt", "gfe dcba\nbad face\n\nmild\n");
}

TEST_CASE("evaluate_encoder prints distance and recall of schemes and models, and writes the same page", "[cli]") {
  const TemporaryFolder folder;
  write_folder(folder);
  compress_model(folder / "model.safetensors", Recipe::parse("int4-g32"), folder / "small");
  const ProcessResult result = run({folder.path(), "-s", "f32", "-s", "int4-g32", "-s", "int4-g32+gptq", "-m",
                                    folder / "small", "--out", folder / "page.md"});
  CAPTURE(result.out, result.err);
  REQUIRE(result.exit_code == 0);
  CHECK(has(result.out, "## Scope `linears`"));
  CHECK(has(result.out, "| `f32` | 32.000 | 0.01 | 0.00e+00 | 1.0000 |"));
  CHECK(has(result.out, "| `int4-g32+gptq` | "));
  const auto figures = [&](const std::string& name) {  // of scope all, and of models
    const std::size_t row = result.out.find("| `" + name + "` |", result.out.find("## Scope `all`"));
    return result.out.substr(row + name.size() + 4, result.out.find('\n', row) - row - name.size() - 4);
  };
  CHECK(figures("small") == figures("int4-g32"));
  const std::string page = file_content(folder / "page.md");
  CHECK(page.ends_with(result.out));
  CHECK(has(page, "13 sentences"));
}

TEST_CASE("evaluate_encoder prints the table of blocks of zeros alone", "[cli]") {
  const TemporaryFolder folder;
  write_folder(folder);
  const ProcessResult result = run({folder.path(), "--scope", "blocks", "--threads", "1"});
  CAPTURE(result.out, result.err);
  REQUIRE(result.exit_code == 0);
  CHECK(has(result.out, "## Blocks of zeros"));
  CHECK_FALSE(has(result.out, "## Scope"));
  CHECK(has(result.out, "over the first 13 sentences with the 10 matrices"));
  CHECK(has(result.out, "| `bsr4x1` | 70 % | "));
  CHECK(std::count(result.out.begin(), result.out.end(), '%') >= 24);  // six patterns, four shares
}

TEST_CASE("evaluate_encoder refuses in one line what it cannot use", "[cli]") {
  const TemporaryFolder folder;
  const auto refused = [](const ProcessResult& result, const std::string& part) {
    check_refused(result, "evaluate_encoder", part);
  };
  refused(run({}), "FOLDER is required");
  refused(run({folder.path()}), "no model.safetensors in");
  refused(run({folder.path()}), "fetch_model.sh " + folder.path().string());
  write_folder(folder);
  refused(run({folder.path(), "-s", "int4-q32"}), "int4-^q32");
  refused(run({folder.path(), "-s", "f32", "--limit", "5"}), "more than 10 needed");
  refused(run({folder.path(), "-s", "f32", "--sentences", folder / "none"}), "no sentences at");
  refused(run({folder.path(), "-m", kEmbeddedModel / "model.safetensors"}), "no tensor embeddings.weight");
  refused(run({folder.path(), "-s", "f32", "--out", folder / "no" / "page.md"}), "cannot create a file");
}

}  // namespace
}  // namespace blockpack
