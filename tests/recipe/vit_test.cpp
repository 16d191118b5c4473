// SPDX-License-Identifier: Apache-2.0
// The embedded vision transformer through the example's operators: golden logits, accuracy, what its blocks are worth,
// its backward pass, and iCBS on it.
#include <cmath>

#include "../../examples/evaluate_vit/block_scores.hpp"
#include "../../examples/evaluate_vit/prune.hpp"
#include "blockpack/core/random.hpp"
#include "recipe/golden_models.hpp"
#include "recipe/model_support.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/levels.hpp"

namespace blockpack {
namespace {

using namespace blockpack::test;
using example::Images;
using example::Matrix;
using example::VisionTransformer;

const std::filesystem::path kVit = std::filesystem::path(BLOCKPACK_SOURCE_DIR) / "examples" / "data" / "fvit";

example::VitConfig config() { return example::VitConfig::load(kVit / "config.json"); }
VisionTransformer embedded() { return {CompressedModel::open(kVit / "model.safetensors"), config()}; }
Images shipped() {
  return Images::load(kVit / "test_images_u8_512x28x28.bin", kVit / "test_labels_u8_512.bin", config());
}
ApplyOptions exact() {
  ApplyOptions how;
  how.activations = Activations::f32;
  return how;
}

TEST_CASE("the vision transformer gives the golden logits of the embedded model", "[recipe][golden][long]") {
  const std::string folder = golden_folder("models");
  const VisionTransformer model = embedded();
  std::size_t cases = 0;
  for (const auto& entry : model_cases("fvit_logits")) {
    CAPTURE(entry.at("case").get<std::string>());
    ++cases;
    const auto images = read_npy<std::uint8_t>(folder + entry.at("inputs").at("images_u8").get<std::string>());
    const auto expected = read_npy<float>(folder + entry.at("outputs").at("logits").get<std::string>());
    const auto count = budget<std::size_t>(static_cast<std::size_t>(expected.rows), 5);
    const std::span<const std::uint8_t> pixels = std::span(images.values).first(784 * count);
    for (const Isa isa : levels_here()) {
      CAPTURE(isa);
      ApplyOptions how = exact();
      how.execution.isa = isa;
      const Matrix logits = model.forward(pixels, how).logits;
      REQUIRE(logits.cols == expected.cols);
      float worst = 0;
      for (index_t i = 0; i < logits.values.size(); ++i)
        worst = std::max(worst, std::abs(logits.values[i] - expected.values[static_cast<std::size_t>(i)]));
      CHECK(worst <= max_abs_tolerance(entry));
    }
  }
  CHECK(golden_complete(cases, 1));
}

TEST_CASE("accuracy, block entropies and their order are the published ones", "[recipe][golden][long]") {
  const CompressedModel file = CompressedModel::open(kVit / "model.safetensors");
  const VisionTransformer model = embedded();
  const example::StoredBlocks stored(file, model.config().layers);
  const std::vector<GardenerScore> scores = gardener_scores(stored.blocks());
  const double published[] = {7.18167, 7.18822, 7.18445};
  std::vector<double> entropies;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    CAPTURE(i);
    CHECK(scores[i].score() == Approx(published[i]).margin(5e-6));
    CHECK_FALSE(scores[i].saturated);
    CHECK(scores[i].entropy.count == 32768);
    entropies.push_back(scores[i].score());
  }
  // The entropies differ by what 32768 draws leave uncertain.
  CHECK(example::entropy_error(stored.blocks()[0]) == Approx(0.004565).margin(1e-5));
  CHECK(entropies[1] - entropies[0] < 2 * example::entropy_error(stored.blocks()[0]));
  CHECK(removal_order(entropies) == std::vector<index_t>{0, 2, 1});
  CHECK(removal_order(block_scores(stored.blocks(), Scorer::l1)).front() == 0);

  const Images images = shipped().part(0, budget<index_t>(512, 32));
  const bool whole = images.count() == 512;
  const auto accuracy = [&](const VisionTransformer& m) {
    return example::accuracy(example::logits_of(m, images, exact()), images.labels);
  };
  CHECK(accuracy(model) == Approx(0.881).margin(whole ? 5e-4 : 0.1));
  std::vector<double> without;
  for (index_t i = 0; i < model.config().layers; ++i) {
    VisionTransformer less = model;
    less.remove_block(i);
    CHECK(less.block_matrices().size() == 8);
    without.push_back(accuracy(less));
  }
  // Of 10,000 images: 0.266, 0.629, 0.783. The first block matters most; its entropy is the lowest.
  CHECK(without[0] == Approx(0.266).margin(whole ? 0.04 : 0.2));
  CHECK(without[1] == Approx(0.629).margin(whole ? 0.05 : 0.2));
  CHECK(without[2] == Approx(0.783).margin(whole ? 0.04 : 0.2));
}

TEST_CASE("a vision transformer under a scheme is as close as its format", "[recipe][long]") {
  const VisionTransformer model = embedded();
  const Images images = shipped().part(0, budget<index_t>(64, 8));
  const Matrix reference = example::logits_of(model, images, exact());
  const example::VitCalibration grams = example::calibrate(model, images, exact());
  CHECK(grams.at("layers.1.fc2.weight").rows() == 49 * images.count());
  const auto error = [&](const char* scheme) {
    const VisionTransformer stored = example::compressed(model, scheme, grams);
    CHECK(stored.matrices().at("head.weight").scheme() == "bf16");
    return example::relative_error(reference, example::logits_of(stored, images, exact()));
  };
  CHECK(error("bf16") == 0);
  CHECK(error("int8-g64") < 0.02);
  CHECK(error("bitmask-s30-bf16+wanda") < error("bitmask-s70-bf16+wanda"));
  CHECK(error("bitmask-s70-bf16+search") < error("bitmask-s70-bf16+wanda"));
}

TEST_CASE("gradients of the blocks' matrices agree with finite differences", "[recipe][long]") {
  VisionTransformer model = embedded();
  model.remove_block(1);
  const Images images = shipped().part(3, 3);
  for (const std::string& name : model.block_matrices())
    model.replace(name, Dense<float>::encode(example::decoded(model.matrices().at(name)).view()));
  const auto loss = [&](Matrix& dlogits) {
    return example::cross_entropy(model.forward(images.pixels, exact()).logits, images.labels, dlogits);
  };
  const example::ImageGradients gradients(model, images, exact());
  Matrix ignored(images.count(), model.config().classes);
  for (const std::string& name : model.block_matrices()) {
    CAPTURE(name);
    const Matrix w = example::decoded(model.matrices().at(name));
    Matrix g(w.rows, w.cols), moved(w.rows, w.cols), direction(w.rows, w.cols);
    gradients.mean(name, g.view());
    Random random(1);
    double expected = 0;
    // A random direction at right angles would see nothing: the gradient's own signs, a quarter of them turned.
    for (index_t i = 0; i < g.values.size(); ++i) {
      direction.values[i] = (g.values[i] > 0) == (random.uniform() < 0.75f) ? 1.0f : -1.0f;
      expected += static_cast<double>(direction.values[i]) * static_cast<double>(g.values[i]);
    }
    const auto loss_at = [&](float step) {
      for (index_t i = 0; i < w.values.size(); ++i) moved.values[i] = w.values[i] + step * direction.values[i];
      model.replace(name, Dense<float>::encode(moved.view()));
      return loss(ignored);
    };
    constexpr float kStep = 1e-4f;
    const double measured = (loss_at(kStep) - loss_at(-kStep)) / (2.0 * static_cast<double>(kStep));
    model.replace(name, Dense<float>::encode(w.view()));
    CHECK(measured == Approx(expected).epsilon(0.01));

    const std::vector<index_t> weights = {0, 5, w.cols * (w.rows - 1) + 3};
    const Matrix samples = gradients.of_weights(name, weights);
    for (std::size_t k = 0; k < weights.size(); ++k) {
      float mean = 0;
      for (index_t s = 0; s < samples.rows; ++s) mean += samples.view()(s, static_cast<index_t>(k)) / 3.0f;
      CHECK(mean == Approx(g.values[weights[k]]).epsilon(1e-3).margin(1e-6));
    }
  }
}

TEST_CASE("iCBS by the loss of the vision transformer lowers it and leaves kept weights as they are",
          "[recipe][long]") {
  const VisionTransformer model = embedded();
  const Images images = shipped().part(0, budget<index_t>(192, 48));
  example::VitIcbs icbs;
  icbs.options.passes = 1;
  icbs.options.steps = 12;  // one of each matrix, or so
  icbs.options.block = budget<index_t>(256, 64);
  icbs.options.pruned = icbs.options.block / 2;
  icbs.options.annealing.restarts = 1;
  icbs.batch = budget<index_t>(128, 32);
  icbs.held_out = images.count() / 3;
  IcbsReport report;
  const VisionTransformer pruned = icbs.pruned(model, images, 0.3, exact(), &report);
  REQUIRE(report.losses.size() == 2);
  CHECK(report.changes[0] < 0);
  if (!small_budget()) CHECK(report.accepted[0]);
  const auto all = VisionTransformer(model).block_matrices();
  for (const std::string& name : all) {
    const Matrix before = example::decoded(model.matrices().at(name)), w = example::decoded(pruned.matrices().at(name));
    index_t kept = 0;
    for (index_t i = 0; i < w.values.size(); ++i) {
      kept += w.values[i] != 0 ? 1 : 0;
      if (w.values[i] != 0) CHECK(w.values[i] == before.values[i]);
    }
    // As many as Wanda's, save zeros among the originals.
    CHECK(kept == Approx(0.3 * static_cast<double>(w.values.size())).epsilon(0.02));
  }
}

TEST_CASE("a vision transformer of another architecture is refused by name", "[recipe]") {
  const TemporaryFolder folder;
  write_content(folder / "config.json", R"({"arch": "llama-like"})");
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  const auto refused = [&] { return message_of([&] { example::VitConfig::load(folder / "config.json"); }); };
  CHECK(has(refused(), "config.json"));
  const auto write = [&](const char* patch) {
    write_content(
        folder / "config.json",
        std::string(R"({"arch": "vit", "channels": 1, "activation": "gelu-erf", "image_size": 28, "patch_size": )") +
            patch + R"(, "hidden_size": 64, "num_layers": 3, "num_heads": 2, "num_classes": 10,
                      "layer_norm_eps": 1e-5})");
  };
  write("5");
  CHECK(has(refused(), "no multiple of patch_size"));
  write("0");
  CHECK(has(refused(), "patch_size in config.json is out of range"));
  const CompressedModel model = CompressedModel::open(kVit / "model.safetensors");
  example::VitConfig other = config();
  other.hidden = 32;
  CHECK(has(message_of([&] { VisionTransformer(model, other); }), "patch.weight has another shape"));
  other = config();
  other.layers = 4;
  CHECK(has(message_of([&] { VisionTransformer(model, other); }), "no tensor layers.3.ln1.weight"));
  VisionTransformer vit = embedded();
  CHECK_THROWS_AS(vit.replace("layers.0.qkv.weight", model.linear("layers.0.proj.weight")), ShapeError);
  CHECK_THROWS_AS(vit.forward(std::vector<std::uint8_t>(783)), ShapeError);
  CHECK(vit.forward({}).logits.rows == 0);
  CHECK_THROWS_AS(Images::load(kVit / "test_labels_u8_512.bin", kVit / "test_labels_u8_512.bin", config()),
                  FormatError);
  CHECK_THROWS_AS(Images::load(folder / "none", folder / "none", config()), Error);
}

}  // namespace
}  // namespace blockpack
