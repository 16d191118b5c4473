// SPDX-License-Identifier: Apache-2.0
// Every safetensors, GGUF and npy file of the golden manifests gets the verdict it must get; the names of errors are
// the reference's (safetensors) or ours (GGUF, whose reference has none).
#include <map>
#include <nlohmann/json.hpp>

#include "blockpack/io.hpp"
#include "io/io_support.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

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
  const fs::path root = golden_root();
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
  std::size_t cases = 0;
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
  REQUIRE(golden_complete(cases, 56));
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
        if (golden_is_ours()) CHECK((array.trailing_bytes != 0) == (name.find("trailing") != std::string::npos));
        std::ifstream stream(manifest.folder / name, std::ios::binary);
        const NpyArray streamed = read_npy(stream);
        CHECK(std::equal(streamed.data.bytes.begin(), streamed.data.bytes.end(), array.data.bytes.begin(),
                         array.data.bytes.end()));
      }
      ++cases;
    }
  }
  REQUIRE(golden_complete(cases, 21));
}

TEST_CASE("every golden GGUF file gets its verdict, for the reason it was made for", "[io][golden]") {
  const std::map<std::string, std::string> reasons = {{"m_empty", "UnexpectedEnd"},
                                                      {"m_magic", "InvalidMagic"},
                                                      {"m_version0", "InvalidVersion"},
                                                      {"m_version1", "InvalidVersion"},
                                                      {"m_version_big", "InvalidVersion"},
                                                      {"m_version4", "InvalidVersion"},
                                                      {"m_trunc_header", "UnexpectedEnd"},
                                                      {"m_trunc_kv", "UnexpectedEnd"},
                                                      {"m_trunc_ti", "UnexpectedEnd"},
                                                      {"m_ntensors_huge", "InvalidCount"},
                                                      {"m_nkv_huge", "InvalidCount"},
                                                      {"m_ntensors_neg", "InvalidCount"},
                                                      {"m_dup_key", "DuplicateKey"},
                                                      {"m_dup_tensor", "DuplicateKey"},
                                                      {"m_bad_value_type", "InvalidValueType"},
                                                      {"m_nested_array", "InvalidValueType"},
                                                      {"m_string_len_huge", "UnexpectedEnd"},
                                                      {"m_array_len_huge", "UnexpectedEnd"},
                                                      {"m_name_64", "InvalidName"},
                                                      {"m_ndims5", "InvalidShape"},
                                                      {"m_neg_dim", "InvalidShape"},
                                                      {"m_dim_overflow", "ValidationOverflow"},
                                                      {"m_bad_type", "InvalidTensorType"},
                                                      {"m_removed_type", "InvalidTensorType"},
                                                      {"m_row_not_block", "MisalignedRow"},
                                                      {"m_offset_misaligned", "InvalidOffset"},
                                                      {"m_offset_gap", "InvalidOffset"},
                                                      {"m_offset_overlap", "InvalidOffset"},
                                                      {"m_alignment_zero", "InvalidAlignment"},
                                                      {"m_alignment_not_pow2", "InvalidAlignment"},
                                                      {"m_alignment_type", "InvalidAlignment"},
                                                      {"x_data_short", "MissingData"},
                                                      {"x_bool_2", "InvalidBool"}};
  const TempFolder folder;
  std::size_t cases = 0;
  for (const Manifest& manifest : manifests()) {
    if (!manifest.content.contains("gguf")) continue;
    for (const json& c : manifest.content.at("gguf").at("files")) {
      const std::string name = c.at("file"), required = c.at("required_verdict");
      CAPTURE(name, required);
      const std::string image = slurp(manifest.folder / name);
      REQUIRE(image.size() == c.at("bytes").get<std::size_t>());
      std::optional<GgufFile> file;
      const std::string opened = verdict([&] { GgufFile::open(manifest.folder / name); });
      const std::string parsed = verdict([&] { file = GgufFile::parse(bytes_of(image)); });
      ReadLimits strict;
      strict.strict = true;
      CHECK(opened == parsed);
      CHECK(parsed == verdict([&] { GgufFile::parse(bytes_of(image), strict); }));
      ++cases;
      if (required == "reject") {
        const auto reason = reasons.find(fs::path(name).stem().string());
        if (golden_is_ours()) REQUIRE(reason != reasons.end());
        CHECK((reason != reasons.end() ? parsed == reason->second : !parsed.empty()));
        continue;
      }
      REQUIRE(required == "accept");
      REQUIRE(parsed == "");
      CHECK(file->tensors().size() == c.at("tensors").get<std::size_t>());
      CHECK(file->metadata().size() == c.at("kv").get<std::size_t>());
      CHECK(file->data_offset() == c.at("data_offset").get<std::uint64_t>());
      CHECK(file->alignment() == c.at("alignment").get<std::uint64_t>());
      // Written again it is the same file, but for the version.
      std::vector<GgufTensorSpec> specs;
      for (const GgufTensor& tensor : file->tensors()) specs.push_back(tensor.spec());
      GgufWriter writer(folder / "again.gguf", specs, file->metadata());
      for (const GgufTensor& tensor : file->tensors()) writer.write(tensor.name, 0, tensor.data.bytes);
      writer.commit();
      std::string expected = image;
      expected[4] = 3;
      CHECK(slurp(folder / "again.gguf") == expected);
    }
  }
  REQUIRE(golden_complete(cases, 42));
}
