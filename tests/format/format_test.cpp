// SPDX-License-Identifier: Apache-2.0
// Bytes that must never change: the embedded model under every listed scheme, and a file of each released version.
#include <fmt/format.h>

#include <cstdlib>
#include <map>
#include <set>
#include <sstream>

#include "blockpack/recipe.hpp"
#include "recipe/model_support.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"

namespace blockpack {
namespace {

using namespace blockpack::test;
namespace fs = std::filesystem;

fs::path golden_format() { return fs::path(BLOCKPACK_GOLDEN_DEFAULT) / "format"; }

/// scheme -> digest, from lines as sha256sum prints them, the scheme in place of the file name.
std::map<std::string, std::string> recorded_hashes() {
  std::map<std::string, std::string> hashes;
  std::istringstream lines(file_content(golden_format() / "hashes.txt"));
  for (std::string digest, scheme; lines >> digest >> scheme;) {
    REQUIRE(digest.size() == 64);
    REQUIRE(hashes.emplace(scheme, digest).second);
  }
  return hashes;
}

TEST_CASE("the embedded model has the recorded bytes under every listed scheme", "[recipe][format][golden][long]") {
  const std::map<std::string, std::string> recorded = recorded_hashes();
  const TemporaryFolder folder;
  std::set<std::string> listed;
  std::string wanted;
  // 1 to 4 threads each; where that is slow, or a level is forced, the schemes take turns.
  const bool all_threads = !small_budget() && std::getenv("BLOCKPACK_ISA") == nullptr;
  int turn = 0;
  for (const ListedScheme& scheme : Registry::standard().listed()) {
    if (!Registry::standard().codec(scheme.scheme)->reproducible()) continue;  // factors of a fit
    const int first = all_threads ? 1 : 1 + turn++ % 4, last = all_threads ? 4 : first;
    for (int threads = first; threads <= last; ++threads) {
      CompressOptions options;
      options.measure = false;
      options.execution.threads = threads;
      compress_model(kEmbeddedModel / "model.safetensors", Recipe::parse(scheme.scheme), folder / "model", options);
      const std::string digest = file_hash(folder / "model");
      CAPTURE(scheme.scheme, threads);
      const auto known = recorded.find(scheme.scheme);
      const bool same = known != recorded.end() && known->second == digest;
      if (!same && threads == first) wanted += fmt::format("{}  {}\n", digest, scheme.scheme);
      CHECK(same);
    }
    listed.insert(scheme.scheme);
  }
  for (const auto& [scheme, digest] : recorded) {
    CAPTURE(scheme);
    CHECK(listed.count(scheme) == 1);
  }
  if (!wanted.empty()) FAIL_CHECK("lines that tests/golden/format/hashes.txt lacks or has otherwise:\n" << wanted);
}

TEST_CASE("1 to 4 threads write the same bytes", "[recipe][format]") {
  const std::map<std::string, std::string> recorded = recorded_hashes();
  const TemporaryFolder folder;
  for (const char* scheme : {"int4-g32", "mxfp6-e2m3", "bfp12-b32"}) {
    for (const int threads : {1, 2, 3, 4}) {
      CAPTURE(scheme, threads);
      CompressOptions options;
      options.measure = false;
      options.execution.threads = threads;
      compress_model(kEmbeddedModel / "model.safetensors", Recipe::parse(scheme), folder / "model", options);
      CHECK(file_hash(folder / "model") == recorded.at(scheme));
    }
  }
}

/// Recipe of tests/golden/format/compressed_model_v1.safetensors; its source is small_model() of version_1_source.
constexpr const char* kVersion1Recipe =
    R"({"name":"one of each family","rules":[{"tensors":["a.weight"],"scheme":"int4-g32-asym"},)"
    R"({"tensors":["b.weight"],"scheme":"mxfp6-e2m3"},{"tensors":["layers.*"],"scheme":"bfp12-b32"}],"default":"fp16"})";

TEST_CASE("a compressed model of version 1 stays readable, and reads the same", "[recipe][format][golden]") {
  const CompressedModel model = CompressedModel::open(golden_format() / "compressed_model_v1.safetensors");
  CHECK(model.version() == 1);
  CHECK(model.recipe() == kVersion1Recipe);
  for (const HashCheck& check : model.verify_hashes()) CHECK(check.intact);
  const std::map<std::string, std::string> schemes = {{"a.weight", "int4-g32-asym"},
                                                      {"b.weight", "mxfp6-e2m3"},
                                                      {"layers.0.c.weight", "bfp12-b32"},
                                                      {"one.weight", "fp16"}};
  REQUIRE(model.compressed().size() == schemes.size());
  Sha256 decoded;
  for (const auto& [name, scheme] : schemes) {
    CHECK(model.linear(name).scheme() == scheme);
    const std::vector<float> values = matrix_values(model, name);
    decoded.update(std::as_bytes(std::span<const float>(values)));
  }
  CHECK(decoded.hex() == "c3f94b120698b6bfdb3b4c60c15341febc82363832b5ae5c437d551f92c75913");
  CHECK(model.tensor("ids").data.bytes.size() == 16);
  CHECK(model.shape("empty.weight") == std::vector<index_t>{0, 8});
}

TEST_CASE("the source of the version 1 file is compressed to the same bytes today", "[recipe][format][golden]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  compress_model(folder / "in", Recipe::parse(kVersion1Recipe), folder / "out");
  const fs::path golden = golden_format() / "compressed_model_v1.safetensors";
  if (const char* update = std::getenv("BLOCKPACK_WRITE_GOLDEN"); update != nullptr && !fs::exists(golden))
    fs::copy_file(folder / "out", golden);
  CHECK(file_content(folder / "out") == file_content(golden));
}

}  // namespace
}  // namespace blockpack
