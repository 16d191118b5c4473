// SPDX-License-Identifier: Apache-2.0
// A vision transformer run by this library's operators: what its blocks are worth, by entropy and by accuracy, and what
// pruning leaves of it.
//
//     evaluate_vit                                        (512 images that are shipped)
//     examples/evaluate_vit/fetch_images.sh fashion       (apt-get; 31 MB)
//     evaluate_vit fashion                                (10,000 images, and pruning)
//
// Whatever goes wrong is one line on stderr that says what to do, and exit code 1.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "blockpack/io/atomic_file.hpp"
#include "evaluate_vit/block_scores.hpp"
#include "evaluate_vit/prune.hpp"

namespace {

using namespace example;

constexpr const char* kIntroduction = R"(# Quality on a vision transformer

Made by `evaluate_vit FOLDER --out docs/quality_vit.md`, where `examples/evaluate_vit/fetch_images.sh FOLDER` fetches the 10,000
test images of Fashion-MNIST and training images for calibration. The model, `examples/data/fvit`, has 105,418 parameters in
bf16 and three blocks; it runs with f32 activations. Without FOLDER the program takes the 512 test images it is shipped with.
Accuracy on n images is uncertain by sqrt(p (1 - p) / n): 0.003 here, 0.014 on 512. "Logits" is the error of all logits together
over their norm, |z - z₀| / |z₀|.
)";

struct Arguments {
  std::string folder, out;
  std::string model = BLOCKPACK_EXAMPLE_FVIT;
  index_t limit = 1 << 20;  ///< images of a file
  int threads = 0;
};

/// Figures of what is measured on one set of images.
class Laboratory {
 public:
  Laboratory(const VisionTransformer& original, Images images, const ApplyOptions& how)
      : original_(original), images_(std::move(images)), how_(how), reference_(logits_of(original, images_, how)) {}

  index_t images() const noexcept { return images_.count(); }
  double accuracy() const { return example::accuracy(reference_, images_.labels); }
  double accuracy_without(index_t block) const {
    VisionTransformer model = original_;
    model.remove_block(block);
    return example::accuracy(logits_of(model, images_, how_), images_.labels);
  }
  /// "bits per weight of the blocks' matrices | accuracy | error of the logits"
  std::string row(const VisionTransformer& model) const {
    double bits = 0, weights = 0;
    for (const std::string& name : model.block_matrices()) {
      const AnyLinear& op = model.matrices().at(name);
      bits += 8 * static_cast<double>(op.storage_bytes());
      weights += static_cast<double>(op.out_features() * op.in_features());
    }
    const Matrix logits = logits_of(model, images_, how_);
    return fmt::format("{:.3f} | {:.4f} | {:.4f}", bits / weights, example::accuracy(logits, images_.labels),
                       relative_error(reference_, logits));
  }

 private:
  VisionTransformer original_;
  Images images_;
  ApplyOptions how_;
  Matrix reference_;
};

/// "2, 1, 0": what goes first.
std::string order_of(const std::vector<double>& scores, blockpack::RemoveFirst direction) {
  return fmt::format("{}", fmt::join(blockpack::removal_order(scores, direction), ", "));
}

constexpr const char* kBlocksHead = R"(
## Which block matters

Entropies are Gardener's, of the stored values of a block's four matrices, "error" their standard error sqrt(Var(-ln p) / n);
block influence is taken on the 512 images. Accuracy is that of the network without the block.

| block | entropy, nats | error | efficiency | L1 | block influence | accuracy without it |
|---|---|---|---|---|---|---|
)";

std::string blocks_section(const CompressedModel& model, const VisionTransformer& vit, const Images& shipped,
                           const Laboratory& laboratory, const ApplyOptions& how) {
  const StoredBlocks stored(model, vit.config().layers);
  const std::vector<blockpack::GardenerScore> scores = blockpack::gardener_scores(stored.blocks());
  const std::vector<double> l1 = blockpack::block_scores(stored.blocks(), blockpack::Scorer::l1);
  const std::vector<double> influence = block_influences(vit, shipped, how);
  std::vector<double> entropy, accuracy;
  std::string text = kBlocksHead;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    entropy.push_back(scores[i].score());
    accuracy.push_back(laboratory.accuracy_without(static_cast<index_t>(i)));
    text += fmt::format("| {} | {:.5f} | {:.5f} | {:.3f} | {:.1f} | {:.4f} | {:.4f} |\n", i, entropy[i],
                        entropy_error(stored.blocks()[i]), scores[i].efficiency, l1[i], influence[i], accuracy[i]);
  }
  const auto low = blockpack::RemoveFirst::low, high = blockpack::RemoveFirst::high;
  return text +
         fmt::format("\nOrder of removal by entropy {}; by L1 {}; by block influence {}; by the accuracy left {}.\n",
                     order_of(entropy, low), order_of(l1, low), order_of(influence, low), order_of(accuracy, high));
}

constexpr const char* kPruningHead = R"(
## Pruned

The twelve matrices of the blocks pruned, kept weights in bf16 with a bit a weight for their places. "Wanda" and the schemes keep
the same number in every row and take XᵀX of {} training images. iCBS keeps a share of every matrix: {} passes of {} steps, each of
{} weights of one matrix with the gradients of {} training images; a pass is accepted when the loss on {} others falls. It and
Wanda leave the kept weights as they are. "Reference" is the accuracy of a public implementation on this model.

| kept | by | bits per weight | accuracy | logits | reference |
|---|---|---|---|---|---|
)";
struct Density {
  double kept, wanda, icbs;  ///< references
};
constexpr Density kDensities[] = {{0.5, 0.866, 0.868}, {0.3, 0.692, 0.831}, {0.2, 0.370, 0.802}};

std::string pruning_section(const VisionTransformer& vit, const Images& calibration, const Laboratory& laboratory,
                            const ApplyOptions& how) {
  const VitCalibration grams = calibrate(vit, calibration, how);
  const VitIcbs icbs;
  std::string text = fmt::format(kPruningHead, calibration.count(), icbs.options.passes, icbs.options.steps,
                                 icbs.options.block, icbs.batch, icbs.held_out);
  for (const auto& [density, wanda, reference] : kDensities) {
    const auto show = [&, kept = density](const std::string& name, const VisionTransformer& model, double known) {
      text += fmt::format("| {} | {} | {} | {} |\n", kept, name, laboratory.row(model),
                          known > 0 ? fmt::format("{:.3f}", known) : "");
    };
    for (const std::string algorithm : {"", "+wanda", "+sparsegpt", "+search"}) {
      const std::string scheme = fmt::format("bitmask-s{:.0f}-bf16{}", 100 * (1 - density), algorithm);
      show('`' + scheme + '`', compressed(vit, scheme, grams, how.execution), algorithm == "+wanda" ? wanda : 0);
    }
    show("iCBS", icbs.pruned(vit, calibration, density, how), reference);
  }
  return text;
}

int run(const Arguments& arguments) {
  const std::filesystem::path folder = arguments.folder, data = arguments.model;
  if (!arguments.folder.empty() && !std::filesystem::exists(folder / "test_images.u8"))
    throw blockpack::Error(fmt::format("no test_images.u8 in '{}'; fetch it: examples/evaluate_vit/fetch_images.sh {}",
                                       folder.string(), folder.string()));
  if (!arguments.out.empty()) const blockpack::AtomicFile writable(arguments.out);  // said now, not after the work
  ApplyOptions how;
  how.execution.threads = arguments.threads;
  how.activations = blockpack::Activations::f32;
  const VitConfig config = VitConfig::load(data / "config.json");
  const CompressedModel model = CompressedModel::open(data / "model.safetensors");
  const VisionTransformer vit(model, config);
  const auto load = [&](const std::filesystem::path& pixels, const std::filesystem::path& labels) {
    const Images images = Images::load(pixels, labels, config);
    return images.part(0, std::min(images.count(), arguments.limit));
  };
  const Images shipped = load(data / "test_images_u8_512x28x28.bin", data / "test_labels_u8_512.bin");
  std::string page = kIntroduction;
  const auto show = [&](const std::string& text) {
    fmt::print("{}", text);
    std::fflush(stdout);
    page += text;
  };
  show(
      fmt::format("\nAccuracy on the {} images: {:.4f}.\n", shipped.count(), Laboratory(vit, shipped, how).accuracy()));
  const bool fetched = !arguments.folder.empty();
  const Laboratory laboratory(vit, fetched ? load(folder / "test_images.u8", folder / "test_labels.u8") : shipped, how);
  if (fetched) show(fmt::format("Accuracy on {}: {:.4f}.\n", laboratory.images(), laboratory.accuracy()));
  show(blocks_section(model, vit, shipped, laboratory, how));
  if (fetched) {
    const Images calibration = load(folder / "calibration_images.u8", folder / "calibration_labels.u8");
    show(pruning_section(vit, calibration, laboratory, how));
  }
  if (!arguments.out.empty()) blockpack::write_file_atomically(arguments.out, page);
  return 0;
}

int fail(std::string message) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::fprintf(stderr, "evaluate_vit: %s\n", message.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("A vision transformer: entropy and worth of its blocks, and what pruning leaves of it.", "evaluate_vit");
  Arguments arguments;
  app.add_option("FOLDER", arguments.folder, "What examples/evaluate_vit/fetch_images.sh made");
  app.add_option("--model", arguments.model, "Folder of the model and the images it is shipped with");
  app.add_option("--limit", arguments.limit, "Images to read at most")->check(CLI::Range(1, 1 << 20));
  app.add_option("--threads", arguments.threads, "Threads, 0 = all")->check(CLI::Range(0, 4096));
  app.add_option("--out", arguments.out, "Write what is printed to this page too");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    return fail(std::string(error.what()) + "; run with --help for the options");
  }
  try {
    return run(arguments);
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}
