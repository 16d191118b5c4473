// SPDX-License-Identifier: Apache-2.0
// The program evaluate_vit on the model and the images it is shipped with, and what it refuses.
#include <string>
#include <vector>

#include "cli/cli_support.hpp"
#include "recipe/model_support.hpp"

namespace blockpack {
namespace {

using namespace blockpack::test;

ProcessResult run(const std::vector<std::string>& arguments) { return run_example(BLOCKPACK_EVALUATE_VIT, arguments); }

TEST_CASE("evaluate_vit prints what the blocks are worth and writes the same page", "[cli]") {
  const TemporaryFolder folder;
  const ProcessResult result = run({"--limit", "16", "--out", folder / "page.md"});
  CAPTURE(result.out, result.err);
  REQUIRE(result.exit_code == 0);
  CHECK(has(result.out, "Accuracy on the 16 images: "));
  CHECK(has(result.out, "| 0 | 7.18167 | 0.00456 | 0.691 | "));
  CHECK(has(result.out, "by entropy 0, 2, 1"));
  CHECK_FALSE(has(result.out, "iCBS"));  // needs fetched images
  CHECK(file_content(folder / "page.md").ends_with(result.out));
}

TEST_CASE("evaluate_vit refuses in one line what it cannot use", "[cli]") {
  const TemporaryFolder folder;
  const auto refused = [](const ProcessResult& result, const std::string& part) {
    check_refused(result, "evaluate_vit", part);
  };
  refused(run({folder.path()}), "fetch_images.sh " + folder.path().string());
  refused(run({"--model", folder.path()}), "no config.json at");
  refused(run({"--model", kEmbeddedModel}), "describes another architecture");
  refused(run({"--out", folder / "no" / "page.md"}), "cannot create a file");
  refused(run({"--wrong"}), "run with --help");
}

}  // namespace
}  // namespace blockpack
