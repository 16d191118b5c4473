// SPDX-License-Identifier: Apache-2.0
// Every safetensors and npy file of the golden manifests gets the verdict it must get, with the reference's error name.
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "blockpack/io.hpp"
#include "io/io_support.hpp"
#include "support/catch.hpp"

using namespace blockpack;
using namespace blockpack::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

struct Manifest {
  fs::path folder;
  json content;
};

/// All manifests in the golden folder and one level below.
std::vector<Manifest> manifests() {
  const char* chosen = std::getenv("BLOCKPACK_GOLDEN");
  const fs::path root = chosen != nullptr ? chosen : BLOCKPACK_GOLDEN_DEFAULT;
  std::vector<Manifest> found;
  const auto add = [&](const fs::path& folder) {
    const fs::path path = folder / "manifest.json";
    if (fs::exists(path)) found.push_back({folder, json::parse(slurp(path))});
  };
  add(root);
  for (const auto& entry : fs::directory_iterator(root))
    if (entry.is_directory()) add(entry.path());
  return found;
}

/// The code of the FormatError that reading throws, or "" when it is accepted.
template <class F>
std::string verdict(const F& read) {
  try {
    read();
    return "";
  } catch (const FormatError& error) {
    REQUIRE_FALSE(error.code().empty());
    REQUIRE(std::string_view(error.what()).find('\n') == std::string_view::npos);
    return error.code();
  }
}

}  // namespace

TEST_CASE("every golden safetensors file gets its verdict and the reference's error name", "[io][golden]") {
  std::size_t cases = 0, rejected = 0;
  for (const Manifest& manifest : manifests()) {
    if (!manifest.content.contains("safetensors")) continue;
    for (const json& c : manifest.content.at("safetensors").at("files")) {
      const std::string name = c.at("file");
      const std::string required = c.at("required_verdict");
      CAPTURE(name, required);
      const std::string image = slurp(manifest.folder / name);
      REQUIRE(image.size() == c.at("bytes").get<std::size_t>());
      const std::string opened = verdict([&] { SafetensorsFile::open(manifest.folder / name); });
      const std::string parsed = verdict([&] { SafetensorsFile::parse(bytes_of(image)); });
      ReadLimits strict;
      strict.strict = true;
      const std::string in_strict = verdict([&] { SafetensorsFile::parse(bytes_of(image), strict); });
      CHECK(opened == parsed);
      if (required == "accept") {
        CHECK(parsed == "");
        CHECK(in_strict == "");
      } else if (required == "accept by default, reject in strict mode") {
        CHECK(parsed == "");
        CHECK(in_strict == "InvalidHeaderStart");
      } else if (required == "reject") {
        ++rejected;
        CHECK(in_strict == parsed);
        // The reference does not look for duplicates: it accepts, or trips over the record it happens to keep.
        const bool duplicate = name.find("_dup_") != std::string::npos;
        CHECK(parsed == (duplicate ? "DuplicateKey" : c.at("reference_error").get<std::string>()));
      } else {
        FAIL("unknown verdict");
      }
      ++cases;
    }
  }
  CAPTURE(cases, rejected);
  REQUIRE(cases >= 56);
  REQUIRE(rejected >= 42);
}

TEST_CASE("every golden npy file gets its verdict, type, shape and order", "[io][golden]") {
  std::size_t cases = 0;
  for (const Manifest& manifest : manifests()) {
    if (!manifest.content.contains("cases")) continue;
    for (const json& c : manifest.content.at("cases")) {
      if (c.value("kind", "") != "npy") continue;
      const std::string name = c.at("inputs").at(0);
      CAPTURE(name);
      NpyArray array;
      const std::string code = verdict([&] { array = read_npy(manifest.folder / name); });
      const std::string required = c.at("outputs").at("reference_verdict");
      if (required == "reject") {
        CHECK(code != "");
      } else {
        REQUIRE(required == "accept");
        REQUIRE(code == "");
        std::string dtype = c.at("outputs").at("dtype");
        CHECK(array.was_big_endian == dtype.starts_with('>'));
        CHECK(array.was_fortran_order == c.at("outputs").at("fortran").get<bool>());
        CHECK(to_string(array.type) == dtype.substr(1));
        CHECK(array.shape == c.at("outputs").at("shape").get<std::vector<index_t>>());
        CHECK((array.trailing_bytes != 0) == (name.find("trailing") != std::string::npos));
        std::ifstream stream(manifest.folder / name, std::ios::binary);
        const NpyArray streamed = read_npy(stream);
        CHECK(std::equal(streamed.data.bytes.begin(), streamed.data.bytes.end(), array.data.bytes.begin(),
                         array.data.bytes.end()));
      }
      ++cases;
    }
  }
  REQUIRE(cases >= 21);
}
