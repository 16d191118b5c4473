// SPDX-License-Identifier: Apache-2.0
// The embedded language model through the example decoder: golden logits, bits per byte, and the published figures of
// plain rounding.
#include "../../examples/decoder/evaluate.hpp"

#include <cmath>

#include "blockpack/io/npy.hpp"
#include "recipe/golden_models.hpp"
#include "recipe/model_support.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/levels.hpp"

namespace blockpack {
namespace {

using namespace blockpack::test;

example::ByteDecoder decoder_of(const std::filesystem::path& model) {
  return {CompressedModel::open(model), example::DecoderConfig::load(kEmbeddedModel / "config.json")};
}

double bits_per_byte(const std::filesystem::path& model, index_t windows, Activations activations) {
  ApplyOptions how;
  how.activations = activations;
  const auto text = example::read_bytes(kEmbeddedModel / "test.txt");
  return example::evaluate(decoder_of(model), text, windows, how).bits_per_byte;
}

TEST_CASE("the decoder gives the golden logits of the embedded model", "[recipe][golden][long]") {
  const std::filesystem::path folder = golden_folder("models");
  std::size_t cases = 0;
  for (const auto& entry : model_cases("bytelm_logits")) {
    CAPTURE(entry.at("case").get<std::string>());
    ++cases;
    const NpyArray bytes = read_npy(folder / entry.at("inputs").at("bytes").get<std::string>());
    const NpyArray logits = read_npy(folder / entry.at("outputs").at("logits").get<std::string>());
    const std::vector<std::uint8_t> text = bytes.values<std::uint8_t>();
    const std::vector<float> expected = logits.values<float>();
    REQUIRE(bytes.shape.size() == 2);
    REQUIRE(expected.size() == text.size() * 256);
    const example::ByteDecoder decoder = decoder_of(kEmbeddedModel / "model.safetensors");
    for (const Isa isa : levels_here()) {
      CAPTURE(isa);
      ApplyOptions how;
      how.activations = Activations::f32;
      how.execution.isa = isa;
      std::vector<float> got(expected.size());
      decoder.logits(text, bytes.shape[1], MatrixView<float>(got.data(), static_cast<index_t>(text.size()), 256), how);
      float worst = 0;
      for (std::size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - expected[i]));
      CHECK(worst <= max_abs_tolerance(entry));
    }
  }
  CHECK(golden_complete(cases, 1));
}

TEST_CASE("the decoder's logits do not depend on threads or on the windows beside", "[recipe][long]") {
  const example::ByteDecoder decoder = decoder_of(kEmbeddedModel / "model.safetensors");
  const auto text = example::read_bytes(kEmbeddedModel / "test.txt");
  const std::span<const std::uint8_t> two(text.data(), 2 * 16);
  std::vector<float> reference(2 * 16 * 256), other = reference;
  ApplyOptions how;
  how.execution.batch_invariant = true;
  how.execution.threads = 1;
  decoder.logits(two, 16, MatrixView<float>(reference.data(), 32, 256), how);
  for (const int threads : {2, 3, 4}) {
    how.execution.threads = threads;
    decoder.logits(two, 16, MatrixView<float>(other.data(), 32, 256), how);
    CHECK(reference == other);
  }
  decoder.logits(two.subspan(16), 16, MatrixView<float>(other.data(), 16, 256), how);
  CHECK(std::equal(reference.begin() + 16 * 256, reference.end(), other.begin()));
  CHECK_THROWS_AS(decoder.logits(two, 15, MatrixView<float>(other.data(), 32, 256), how), ShapeError);
}

TEST_CASE("bits per byte of the embedded model are the published ones", "[recipe][golden][long]") {
  const index_t windows = budget<index_t>(128, 4);
  const bool whole = windows == 128;
  const TemporaryFolder folder;
  const auto bits_of = [&](const char* scheme, Activations activations, index_t count) {
    compress_model(kEmbeddedModel / "model.safetensors", Recipe::parse(scheme), folder / "model");
    return bits_per_byte(folder / "model", count, activations);
  };
  const double plain = bits_per_byte(kEmbeddedModel / "model.safetensors", windows, Activations::f32);
  const double int4 = bits_of("int4-g32", Activations::f32, windows);
  const double mxfp4 = bits_of("mxfp4", Activations::f32, windows);
  if (whole) {
    CHECK(plain == Approx(2.1013).margin(0.00005));
    CHECK(int4 == Approx(2.1238).margin(0.0001));
    CHECK(mxfp4 == Approx(2.1400).margin(0.0001));
  } else {
    CHECK(int4 == Approx(plain).margin(0.1));
    CHECK(mxfp4 == Approx(plain).margin(0.1));
  }
  // What holds bf16 exactly holds the model exactly, and the mode users get by default costs next to nothing.
  const double few = bits_per_byte(kEmbeddedModel / "model.safetensors", 4, Activations::f32);
  CHECK(bits_of("f32", Activations::f32, 4) == Approx(few).margin(1e-5));
  CHECK(bits_of("bf16", Activations::f32, 4) == Approx(few).margin(1e-5));
  for (const char* scheme : {"f32", "bf16", "int8-g128", "mxfp8-e4m3", "int4-g32", "mxfp4"}) {
    CAPTURE(scheme);
    CHECK(bits_of(scheme, Activations::automatic, 4) == Approx(bits_of(scheme, Activations::f32, 4)).margin(0.005));
  }
}

/// Distance of the lowest and the highest bits per byte of a compressed model over the levels here.
double spread_over_levels(const std::filesystem::path& model, index_t windows, Activations mode) {
  const auto text = example::read_bytes(kEmbeddedModel / "test.txt");
  double lowest = INFINITY, highest = 0;
  for (const Isa isa : levels_here()) {
    ApplyOptions how;
    how.activations = mode;
    how.execution.isa = isa;
    const double bits = example::evaluate(decoder_of(model), text, windows, how).bits_per_byte;
    lowest = std::min(lowest, bits);
    highest = std::max(highest, bits);
  }
  return highest - lowest;
}

TEST_CASE("every scheme gives the embedded model the same bits per byte on every level", "[recipe][slow]") {
  const TemporaryFolder folder;
  const Registry& registry = Registry::standard();
  for (const ListedScheme& listed : registry.listed()) {
    CAPTURE(listed.scheme);
    // Fits take seconds a matrix: one has to do.
    const bool fit = !registry.codec(listed.scheme)->reproducible();
    const Recipe recipe =
        Recipe::parse(fit ? R"({"rules": [{"tensors": "layers.0.q_proj.weight", "scheme": ")" + listed.scheme + "\"}]}"
                          : listed.scheme);
    compress_model(kEmbeddedModel / "model.safetensors", recipe, folder / "model");
    CHECK(spread_over_levels(folder / "model", 1, Activations::f32) <= 1e-3);
  }
}

TEST_CASE("rounded activations give the embedded model the same bits per byte on every level", "[recipe][slow]") {
  // The last bit of a sum moves codes of x in the next layer, which takes a longer text to even out.
  const TemporaryFolder folder;
  for (const char* scheme : {"mxfp4", "q4_k"}) {
    compress_model(kEmbeddedModel / "model.safetensors", Recipe::parse(scheme), folder / "model");
    for (const Activations mode : {Activations::bf16, Activations::int8}) {
      CAPTURE(scheme, to_string(mode));
      CHECK(spread_over_levels(folder / "model", 24, mode) <= 1e-3);
    }
  }
}

TEST_CASE("another architecture is refused by name", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  const auto config = example::DecoderConfig::load(kEmbeddedModel / "config.json");
  const auto message = [&](const std::filesystem::path& path) -> std::string {
    try {
      example::ByteDecoder(CompressedModel::open(path), config);
    } catch (const Error& error) {
      return error.what();
    }
    return {};
  };
  CHECK(message(folder / "in").find("another architecture: no tensor embed_tokens.weight") != std::string::npos);
  Metadata metadata;
  std::vector<Filled> tensors = read_model(kEmbeddedModel / "model.safetensors", metadata);
  tensors[0].spec.shape = {128, 256};
  write_model(folder / "in", tensors);
  CHECK(message(folder / "in").find("has another shape") != std::string::npos);
}

}  // namespace
}  // namespace blockpack
