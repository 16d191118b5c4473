// SPDX-License-Identifier: Apache-2.0
// Compresses a model by a recipe, looks into models, checks and evaluates them:
//
//     compress_model schemes
//     compress_model compress --recipe int4-g32 model.safetensors small.safetensors
//     compress_model calibrate model.safetensors statistics
//     compress_model verify small.safetensors --original model.safetensors
//     compress_model demo
//
// Whatever goes wrong is one line on stderr that says what to do, and exit code 1; a file that was there stays as it
// is.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <stop_token>
#include <string>
#include <system_error>

#include "blockpack/core/error.hpp"
#include "compress_model/commands.hpp"

namespace {

volatile std::sig_atomic_t interrupted = 0;
void on_signal(int) { interrupted = 1; }

/// Ctrl-C and a polite kill end the work between two panels; a full disk or a size limit becomes an error of write().
void install_signals() {
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
#if defined(SIGXFSZ)
  std::signal(SIGXFSZ, SIG_IGN);
#endif
}

int fail(std::string message) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::fprintf(stderr, "compress_model: %s\n", message.c_str());
  return 1;
}

int run(int argc, char** argv) {
  CLI::App app("Compress neural-network weights by blocks, and compute on them as they are.", "compress_model");
  app.require_subcommand(1);
  app.fallthrough();
  int threads = 0;
  app.add_option("--threads", threads, "Threads, 0 = all")->check(CLI::Range(0, 4096));

  auto* schemes = app.add_subcommand("schemes", "List the formats and algorithms of recipes");

  std::string model;
  auto* inspect = app.add_subcommand("inspect", "Tensors, entropies, most and least important blocks of a model");
  inspect->add_option("MODEL", model, "A .safetensors or .gguf file, an index or a folder")->required();

  example::CompressArguments c;
  auto* compress = app.add_subcommand("compress", "Compress a model by a recipe");
  compress->add_option("-r,--recipe", c.recipe, "A scheme such as int4-g32, or a JSON file (docs/recipe.md)")
      ->required();
  compress->add_option("IN", c.in, "The model")->required();
  compress->add_option("OUT", c.out, "The compressed file, .safetensors or .gguf; a folder with --shard-size")
      ->required();
  compress->add_option("--calibration", c.calibration, "Folder made by calibrate, for schemes such as int4-g32+gptq");
  compress->add_option("--divergence", c.divergence,
                       "For auto: recipes of a byte-level decoder: score schemes by the measured KL divergence, with "
                       "config.json and calib.bin of this folder");
  compress->add_option("--save-recipe", c.save_recipe, "Write the recipe with auto: targets resolved");
  compress->add_option("--budget", c.budget_mib, "Memory for panels in MiB")->check(CLI::Range(1, 1 << 20));
  compress->add_option("--shard-size", c.shard_mib, "Write shards of at most this many MiB")
      ->check(CLI::Range(1, 1 << 20));
  std::string non_finite = "reject";
  compress->add_option("--non-finite", non_finite, "NaN and infinity: reject, saturate or propagate")
      ->check(CLI::IsMember({"reject", "saturate", "propagate"}));
  compress->add_flag("!--no-measure", c.measure, "Do not decode again to measure the error");
  compress->add_flag("-q,--quiet", c.quiet, "Print no table");

  std::string original;
  auto* verify = app.add_subcommand(
      "verify", "Hash the stored bytes again, decode every tensor, show its range; with --original its SQNR");
  verify->add_option("MODEL", model, "A compressed model")->required();
  verify->add_option("--original", original, "The model it was made from, which the SQNR needs");

  example::EvaluateArguments e;
  e.data = BLOCKPACK_EXAMPLE_DATA;
  auto* evaluate =
      app.add_subcommand("evaluate", "Bits per byte of a byte-level language model, beside the uncompressed");
  evaluate->add_option("MODEL", e.model, "The model, compressed or not")->required();
  evaluate->add_option("--data", e.data, "Folder with config.json, test.txt and the uncompressed model.safetensors");
  evaluate->add_option("--windows", e.windows, "Windows of the text to score")->check(CLI::Range(1, 1 << 20));
  std::string activations = "automatic";
  evaluate->add_option("--activations", activations, "automatic, f32, bf16 or int8")
      ->check(CLI::IsMember({"automatic", "f32", "bf16", "int8", "int8_token"}));

  example::CalibrateArguments k;
  k.data = BLOCKPACK_EXAMPLE_DATA;
  auto* calibrate =
      app.add_subcommand("calibrate", "Run text through a byte-level language model; XtX and Fisher of every matrix");
  calibrate->add_option("MODEL", k.model, "The model, uncompressed")->required();
  calibrate->add_option("OUT", k.out, "Folder for the npy files")->required();
  calibrate->add_option("--data", k.data, "Folder with config.json and calib.bin");
  calibrate->add_option("--text", k.text, "Windows in the format of calib.bin");
  calibrate->add_option("--set", k.set, "Which of the three sets of windows")->check(CLI::Range(0, 2));

  example::QualityArguments q;
  q.data = BLOCKPACK_EXAMPLE_DATA;
  auto* quality = app.add_subcommand("quality", "Bits per byte of the embedded model under every kind of scheme");
  quality->add_option("--data", q.data, "Folder of the embedded model");
  quality->add_option("--out", q.out, "The tables to write");
  quality->add_option("--scope", q.scope, "linears, all, both; structured and sparse: other pages")
      ->check(CLI::IsMember({"linears", "all", "both", "structured", "sparse"}));
  quality->add_option("--windows", q.windows, "Windows of the text to score")->check(CLI::Range(1, 1 << 20));
  quality->add_option("--discquant-steps", q.discquant_steps, "Steps of DiscQuant end to end")
      ->check(CLI::Range(8, 1 << 20));

  example::FamiliesArguments f;
  auto* families = app.add_subcommand(
      "families", "Error against parameters of SVD, Monarch, BLAST and block low rank on the matrices of models");
  families->add_option("MODEL", f.models, "Models; default: the embedded one");
  families->add_option("--calibration", f.calibrations, "Folder made by calibrate or 'none', one for each model");
  families->add_option("--out", f.out, "The tables to write");

  std::string data = BLOCKPACK_EXAMPLE_DATA, report = "report.html";
  auto* demo = app.add_subcommand("demo", "Compress the embedded model in eight ways and write a report");
  demo->add_option("--data", data, "Folder of the embedded model");
  demo->add_option("--report", report, "The page to write");
  std::int64_t demo_windows = 128;
  demo->add_option("--windows", demo_windows, "Windows of the text to score")->check(CLI::Range(1, 1 << 20));

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    return fail(std::string(error.what()) + "; run with --help for the options");
  }

  using blockpack::NonFinite;
  c.non_finite = non_finite == "saturate"    ? NonFinite::saturate
                 : non_finite == "propagate" ? NonFinite::propagate
                                             : NonFinite::reject;
  for (const auto mode : {blockpack::Activations::f32, blockpack::Activations::bf16, blockpack::Activations::int8,
                          blockpack::Activations::int8_token})
    if (blockpack::to_string(mode) == activations) e.activations = mode;
  std::stop_source stop;
  blockpack::Execution how;
  how.threads = threads;
  how.stop = stop.get_token();
  how.progress = [&](double) {
    if (interrupted != 0) stop.request_stop();
  };
  if (schemes->parsed()) return example::list_schemes();
  if (inspect->parsed()) return example::inspect(model, how);
  if (compress->parsed()) return example::compress(c, how);
  if (verify->parsed()) return example::verify(model, original, how);
  if (evaluate->parsed()) return example::evaluate_model(e, how);
  if (quality->parsed()) return example::quality(q, how);
  if (families->parsed()) {
    if (f.models.empty()) f.models.emplace_back(std::string(BLOCKPACK_EXAMPLE_DATA) + "/model.safetensors");
    return example::families(f, how);
  }
  if (calibrate->parsed()) return example::calibrate_model(k, how);
  return example::demo(data, report, demo_windows, how);
}

}  // namespace

int main(int argc, char** argv) {
  install_signals();
  try {
    const int code = run(argc, argv);
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
      return fail("standard output cannot be written; is the disk full?");
    return code;
  } catch (const blockpack::CancelledError&) {
    return fail("interrupted; nothing was written");
  } catch (const std::bad_alloc&) {
    return fail("out of memory; try a smaller --budget");
  } catch (const std::filesystem::filesystem_error& error) {
    return fail(error.what());
  } catch (const std::system_error& error) {  // what fmt::print throws
    return fail(std::string("standard output: ") + error.what());
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}
