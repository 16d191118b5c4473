// SPDX-License-Identifier: Apache-2.0
// The program compress_model as people run it: what it prints, what it refuses, what a kill leaves behind.
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "blockpack/core/random.hpp"
#include "blockpack/recipe/auto_plan.hpp"
#include "blockpack/recipe/calibration.hpp"
#include "cli/cli_support.hpp"
#include "recipe/model_support.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"
#include "support/process.hpp"
#include "support/synthetic_model.hpp"

namespace blockpack {
namespace {

using namespace blockpack::test;
namespace fs = std::filesystem;

const fs::path kModel = kEmbeddedModel / "model.safetensors";

ProcessResult run(const std::vector<std::string>& arguments, const ProcessOptions& options = {}) {
  return run_example(BLOCKPACK_COMPRESS_MODEL, arguments, options);
}

void check_refused(const ProcessResult& result, const std::string& part) {
  test::check_refused(result, "compress_model", part);
}

TEST_CASE("schemes lists every format with its bits, then the algorithms", "[cli]") {
  const ProcessResult result = run({"schemes"});
  REQUIRE(result.exit_code == 0);
  for (const ListedScheme& s : Registry::standard().listed()) CHECK(has(result.out, "\n" + s.scheme + " "));
  CHECK(has(result.out, "int4-g32                4.5000"));
  CHECK(has(result.out, "mxfp4                   4.2500"));
  for (const SchemeAlgorithm& a : Registry::standard().algorithms()) {
    CAPTURE(a.name, result.out);
    CHECK(has(result.out, fmt::format("\n  {:<16} {}\n  {:<16} takes ", a.name, a.what, "")));
  }
  CHECK(has(result.out, "takes hadamard, lowrank, monarch, blast\n"));  // `whiten`
}

TEST_CASE("inspect shows tensors, entropies and the ranking of the blocks", "[cli]") {
  const ProcessResult result = run({"inspect", kModel.string()});
  REQUIRE(result.exit_code == 0);
  CHECK(has(result.out, "layers.0.q_proj.weight"));
  CHECK(has(result.out, "most important: layers."));
  CHECK(has(result.out, "least important, first to remove: layers."));
}

TEST_CASE("compress, verify and evaluate work together", "[cli][smoke]") {
  const TemporaryFolder folder;
  const std::string out = folder / "small";
  const ProcessResult compressed = run({"compress", "--recipe", "int4-g32", kModel.string(), out});
  REQUIRE(compressed.exit_code == 0);
  CHECK(has(compressed.out, "4.500 bits per weight"));
  CHECK(folder.count() == 1);
  const ProcessResult verified = run({"verify", out, "--original", kModel.string()});
  CHECK(verified.exit_code == 0);
  CHECK(has(verified.out, "stored tensors are intact"));
  CHECK(has(verified.out, "SQNR dB"));
  const ProcessResult alone = run({"verify", out});
  CHECK(alone.exit_code == 0);
  CHECK(has(alone.out, "greatest"));
  CHECK(has(alone.out, "--original MODEL gives their SQNR"));
  const ProcessResult evaluated = run({"evaluate", out, "--windows", "4"});
  CHECK(evaluated.exit_code == 0);
  CHECK(has(evaluated.out, "uncompressed"));
  const ProcessResult inspected = run({"inspect", out});
  CHECK(inspected.exit_code == 0);
  CHECK(has(inspected.out, "compressed (version 1) by {\"default\":\"int4-g32\"}"));

  std::string content = file_content(out);
  content[content.size() - 10] ^= 1;
  write_content(out, content);
  const ProcessResult damaged = run({"verify", out});
  CHECK(damaged.exit_code == 1);
  CHECK(has(damaged.err, "is damaged; compress the original again"));
}

TEST_CASE("compress, inspect, verify and evaluate take GGUF files", "[cli]") {
  const TemporaryFolder folder;
  const std::string out = folder / "small.gguf";
  const ProcessResult compressed = run({"compress", "--recipe", "q4_0", kModel.string(), out});
  REQUIRE(compressed.exit_code == 0);
  CHECK(has(compressed.out, "4.500 bits per weight"));
  const ProcessResult inspected = run({"inspect", out});
  CHECK(inspected.exit_code == 0);
  CHECK(has(inspected.out, "layers.0.q_proj.weight"));
  CHECK(has(inspected.out, " q4_0 "));
  const ProcessResult verified = run({"verify", out, "--original", kModel.string()});
  CHECK(verified.exit_code == 0);
  CHECK(has(verified.out, "stored tensors are intact"));
  CHECK(run({"evaluate", out, "--windows", "2"}).exit_code == 0);
  check_refused(run({"compress", "--recipe", "int4-g32", kModel.string(), out}),
                "GGUF has no type for scheme int4-g32");
  check_refused(run({"compress", "--recipe", "q4_k", kModel.string(), out}), "128 columns");
}

TEST_CASE("calibrate writes three arrays per matrix", "[cli]") {
  const TemporaryFolder folder;
  const fs::path text = folder / "short.bin";
  write_content(text, file_content(kEmbeddedModel / "calib.bin").substr(0, 3 * 2 * 129));
  const std::string out = folder / "statistics";
  const ProcessResult result = run({"calibrate", kModel.string(), out, "--text", text, "--set", "2"});
  CAPTURE(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK(has(result.out, "\nlayers.3.down_proj.weight"));
  CHECK(has(result.out, "2 windows of 128 bytes (set 2)"));
  const CalibrationFolder statistics{fs::path(out)};
  const TensorCalibration down = statistics.find("layers.3.down_proj.weight");
  REQUIRE(down.gram != nullptr);
  CHECK(down.gram->in_features() == 384);
  CHECK(down.importance.shape() == MatrixShape{128, 384});
  CHECK(down.inputs.shape() == MatrixShape{256, 384});
  CHECK(statistics.find("embed_tokens.weight").gram != nullptr);
  const ProcessResult compressed =
      run({"compress", "-r", "int4-g32+gptq", "--calibration", out, kModel.string(), folder / "model"});
  CAPTURE(compressed.err);
  CHECK(compressed.exit_code == 0);
  CHECK(has(compressed.out, "int4-g32+gptq holds whole matrices: "));
  CHECK(has(compressed.out, " MiB at most (layers.0.down_proj.weight)"));
  check_refused(run({"calibrate", kModel.string(), out, "--set", "3"}), "--help");
  check_refused(run({"calibrate", kModel.string(), out, "--text", kModel.string()}), "sets of windows");
}

TEST_CASE("families names the family that a matrix was made by, and writes the page it prints", "[cli]") {
  // Half the parameters of a matrix of rank 16, and of one whose 4 x 4 blocks have rank 4 and whose outputs take turns.
  constexpr index_t kSize = 64, kBlocks = 4, kBlock = kSize / kBlocks;
  Filled low = filled<float>("low.weight", Dtype::f32, {kSize, kSize}, 1);
  Filled turns = filled<float>("turns.weight", Dtype::f32, {kSize, kSize}, 1);
  auto* l = reinterpret_cast<float*>(low.bytes.data());
  auto* t = reinterpret_cast<float*>(turns.bytes.data());
  const auto factor = [](index_t row, index_t rank, std::uint64_t seed) {
    return static_cast<float>(Random(seed, static_cast<std::uint64_t>(row * kSize + rank)).normal());
  };
  for (index_t i = 0; i < kSize; ++i)
    for (index_t j = 0; j < kSize; ++j) {
      l[i * kSize + j] = t[i * kSize + j] = 0.0f;
      for (index_t r = 0; r < 16; ++r) l[i * kSize + j] += factor(i, r, 1) * factor(j, r, 2);
      const index_t pair = i % kBlocks * kBlocks + j / kBlock;
      for (index_t r = 0; r < 4; ++r) t[i * kSize + j] += factor(i, 4 * pair + r, 3) * factor(j, 4 * pair + r, 4);
    }
  const TemporaryFolder folder;
  fs::create_directory(folder / "made");
  write_model(folder / "made" / "model.safetensors", {low, turns});
  const fs::path page = folder / "page.md";
  const ProcessResult result = run({"families", folder / "made", "--out", page});
  CAPTURE(result.out, result.err);
  REQUIRE(result.exit_code == 0);
  const auto last_cell = [&](const std::string& name) {
    const std::size_t line = result.out.find("| `" + name + "` |");
    REQUIRE(line != std::string::npos);
    const std::string text = result.out.substr(line, result.out.find('\n', line) - line);
    return text.substr(text.rfind("| ", text.size() - 3) + 2);
  };
  CHECK(last_cell("low.weight").rfind("SVD 0.0000; ", 0) == 0);
  CHECK(last_cell("turns.weight").rfind("Monarch, interleaved 0.0000; ", 0) == 0);
  CHECK(has(file_content(page), result.out));
  check_refused(run({"families", folder / "made", "--calibration", folder / "made", "none", "--out", page}),
                "1 models and 2 calibrations");
}

TEST_CASE("a recipe with a budget becomes a plan, printed and saved", "[cli]") {
  const TemporaryFolder folder;
  const std::string plan = folder / "plan.json", out = folder / "out";
  const ProcessResult result = run({"compress", "-r", "auto:4.25bpw", "--save-recipe", plan, kModel.string(), out});
  CAPTURE(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK(has(result.out, "layers.3.down_proj.weight                    int"));
  const Recipe recipe = Recipe::load(plan);
  CHECK(recipe.rules.size() == 29);
  CHECK_FALSE(has_auto(recipe));
  CHECK(has(CompressedModel::open(out).recipe(), "layers.3.down_proj.weight"));
  check_refused(run({"compress", "-r", "auto:1bpw", kModel.string(), out}), "cannot be reached");
  check_refused(run({"compress", "-r", "int4-g32+gptq", kModel.string(), out}), "needs XtX of the inputs");
}

TEST_CASE("a recipe file gives each tensor its scheme", "[cli]") {
  const TemporaryFolder folder;
  write_content(folder / "recipe.json",
                R"({"keep": "embed*", "rules": [{"tensors": "*.q_proj.*", "scheme": "int8-g128"}],
                                            "default": "mxfp4"})");
  const ProcessResult result = run({"compress", "-r", folder / "recipe.json", kModel.string(), folder / "out"});
  REQUIRE(result.exit_code == 0);
  const CompressedModel model = CompressedModel::open(folder / "out");
  CHECK(model.find_compressed("embed_tokens.weight") == nullptr);
  CHECK(model.find_compressed("layers.3.q_proj.weight")->scheme == "int8-g128");
  CHECK(model.find_compressed("layers.3.k_proj.weight")->scheme == "mxfp4");
}

TEST_CASE("the demo prints eight rows and writes a page that needs nothing else", "[cli]") {
  const TemporaryFolder folder;
  const ProcessResult result = run({"demo", "--windows", "2", "--report", folder / "report.html"});
  CAPTURE(result.err);
  REQUIRE(result.exit_code == 0);
  for (const char* scheme : {"f32", "bf16", "int8-g128", "bfp12-b32", "mxfp8-e4m3", "mxfp6-e2m3", "mxfp4", "int4-g32"})
    CHECK(has(result.out, std::string("\n") + scheme + " "));
  CHECK(has(result.out, "uncompressed: "));
  CHECK(folder.count() == 1);
  const std::string page = file_content(folder / "report.html");
  CHECK(page.size() > 50000);
  CHECK(has(page, "uPlot"));
  CHECK_FALSE(has(page, "/*{{"));
  CHECK_FALSE(has(page, "src=\"http"));
  CHECK_FALSE(has(page, "href=\"http"));
}

TEST_CASE("the render check passes the page and fails a script error or an empty plot", "[cli][slow]") {
  const TemporaryFolder folder;
  const std::string check = (fs::path(BLOCKPACK_SOURCE_DIR) / "examples" / "report" / "check.sh").string();
  const auto rendered = [&] { return run_process(check, {folder / "report.html"}); };
  REQUIRE(run({"demo", "--windows", "2", "--report", folder / "report.html"}).exit_code == 0);
  const ProcessResult good = rendered();
  if (good.exit_code == 77) {
    WARN("no Chromium here: " << good.out);
    return;
  }
  CHECK(good.exit_code == 0);
  const std::string page = file_content(folder / "report.html");
  const auto with = [&](const std::string& part, const std::string& by) {
    std::string changed = page;
    REQUIRE(has(changed, part));
    write_content(folder / "report.html", changed.replace(changed.find(part), part.size(), by));
    const ProcessResult result = rendered();
    CAPTURE(result.out);
    CHECK(result.exit_code == 1);
    return result.out;
  };
  CHECK(has(with("const plot = new uPlot(", "const plot = new noPlot("), "script errors"));
  CHECK(has(with("points: {show: true", "points: {show: false"), "the plot is empty"));
  CHECK(run_process(check, {folder / "missing.html"}).exit_code == 1);
}

TEST_CASE("every bad input is one line that says what to do, and nothing is written", "[cli]") {
  const TemporaryFolder folder;
  const std::string out = folder / "out", model = kModel.string();
  write_content(out, "the old file");
  const std::string content = file_content(kModel);
  write_content(folder / "truncated.safetensors", content.substr(0, content.size() / 2));
  write_content(folder / "header.safetensors", content.substr(0, 100));
  write_content(folder / "empty.safetensors", "");
  write_content(folder / "rules.json", R"({"rules": [{"tensors": "*.nothing", "scheme": "mxfp4"}]})");
  write_content(folder / "broken.json", R"({"default": )");
  fs::create_directory(folder / "folder");
  std::vector<Filled> tensors = small_model();
  for (std::size_t i = 0; i < 4; ++i) tensors[0].bytes[16 + i] = std::byte{0xff};
  write_model(folder / "nan.safetensors", tensors);
  const std::size_t files = folder.count();
  const auto compress = [&](const std::string& recipe, const std::string& in) {
    return run({"compress", "--recipe", recipe, in, out});
  };
  check_refused(compress("mxfp4", folder / "missing.safetensors"), "missing.safetensors");
  check_refused(compress("mxfp4", folder / "truncated.safetensors"), "truncated.safetensors");
  check_refused(compress("mxfp4", folder / "header.safetensors"), "header.safetensors");
  check_refused(compress("mxfp4", folder / "empty.safetensors"), "empty.safetensors");
  check_refused(compress("mxfp4", folder / "folder"), "folder");
  check_refused(compress("mxfp4", folder / "nan.safetensors"), "tensor 'a.weight'");
  check_refused(compress("mxfp4", folder / "nan.safetensors"), "--non-finite saturate");
  check_refused(compress("mxfp5", model), "character 1 (^mxfp5): unknown format 'mxfp5'");
  check_refused(compress("int4-q32", model), "character 6 (int4-^q32)");
  check_refused(compress("int4-g33", model), "character 7 (int4-g^33): int4 takes g of 32, 64, 128");
  check_refused(compress("", model), "a scheme is needed");
  check_refused(compress(folder / "rules.json", model), "matches no matrix; the matrices are embed_tokens.weight");
  check_refused(compress(folder / "broken.json", model), "not valid JSON");
  check_refused(compress(folder / "missing.json", model), "cannot be opened");
  check_refused(compress(folder / "folder/", model), "is a directory");
  check_refused(run({"compress", "--recipe", "mxfp4", model, folder / "folder"}), "folder");
  check_refused(run({"compress", "--recipe", "mxfp4", model, folder / "no" / "such" / "folder"}), "folder");
  check_refused(run({"compress", "--recipe", "mxfp4", model}), "--help");
  check_refused(run({"compress", "--recipe", "mxfp4", "--budget", "0", model, out}), "--help");
  check_refused(run({"crunch"}), "--help");
  check_refused(run({}), "--help");
  check_refused(run({"verify", model}), "is not a compressed model");
  check_refused(run({"verify", folder / "missing"}), "missing");
  check_refused(run({"inspect", folder / "truncated.safetensors"}), "truncated.safetensors");
  check_refused(run({"evaluate", folder / "missing"}), "missing");
  check_refused(run({"evaluate", model, "--data", folder / "folder"}), "config.json");
  check_refused(run({"demo", "--data", folder / "folder"}), "config.json");
  check_refused(run({"quality", "--windows", "1", "--out", folder / "no" / "quality.md"}), "no");
  check_refused(run({"demo", "--windows", "1", "--report", folder / "no" / "report.html"}), "no");
  CHECK(file_content(out) == "the old file");
  CHECK(folder.count() == files);
}

TEST_CASE("a model of another architecture cannot be evaluated", "[cli]") {
  const TemporaryFolder folder;
  write_model(folder / "other.safetensors", small_model());
  check_refused(run({"evaluate", folder / "other.safetensors"}),
                "is another architecture: no tensor embed_tokens.weight");
}

TEST_CASE("without permission nothing is read or written", "[cli]") {
  const TemporaryFolder folder;
  fs::create_directory(folder / "locked");
  fs::create_directory(folder / "open");
  fs::copy_file(kModel, folder / "secret.safetensors");
  fs::copy_file(kModel, folder / "model.safetensors");
  ::chmod((folder / "locked").c_str(), 0555);
  ::chmod((folder / "open").c_str(), 0777);
  ::chmod((folder / "secret.safetensors").c_str(), 0000);
  ::chmod((folder / "model.safetensors").c_str(), 0444);
  ::chmod(folder.path().c_str(), 0755);
  ProcessOptions nobody;
  if (::geteuid() == 0) nobody.user = 65534;
  const auto compress = [&](const fs::path& in, const fs::path& out) {
    return run({"compress", "-r", "mxfp4", in, out}, nobody);
  };
  const ProcessResult allowed = compress(folder / "model.safetensors", folder / "open" / "out");
  if (allowed.exit_code == 126 || allowed.exit_code == 127) {
    WARN("the program cannot be started as another user here");
    return;
  }
  CAPTURE(allowed.err);
  CHECK(allowed.exit_code == 0);
  check_refused(compress(folder / "secret.safetensors", folder / "open" / "new"), "ermission");
  check_refused(compress(folder / "model.safetensors", folder / "locked" / "new"), "ermission");
  CHECK(fs::is_empty(folder / "locked"));
  CHECK_FALSE(fs::exists(folder / "open" / "new"));
}

TEST_CASE("a full disk is an error and the old file stays", "[cli]") {
  const TemporaryFolder folder;
  write_content(folder / "out", "the old file");
  for (const rlim_t limit : {rlim_t{0}, rlim_t{5000}, rlim_t{300000}}) {
    ProcessOptions full;
    full.file_size_limit = limit;
    const ProcessResult result = run({"compress", "-r", "int4-g32", kModel.string(), folder / "out"}, full);
    CAPTURE(limit, result.err, result.signal);
    CHECK(result.exit_code == 1);
    CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
    CHECK(file_content(folder / "out") == "the old file");
    CHECK(folder.count() == 1);
  }
  ProcessOptions no_room;
  no_room.stdout_path = "/dev/full";
  CHECK(has(run({"schemes"}, no_room).err, "standard output"));
  CHECK(run({"schemes"}, no_room).exit_code == 1);
}

TEST_CASE("a kill at any moment leaves the old file or the new one, and a rerun succeeds", "[cli]") {
  const TemporaryFolder folder;
  const fs::path out = folder / "out";
  const std::vector<std::string> command = {"compress", "-r", "mxfp4", "-q", kModel.string(), out};
  const auto start = std::chrono::steady_clock::now();
  REQUIRE(run(command).exit_code == 0);
  double whole = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  const std::string compressed = file_content(out);
  REQUIRE(compressed.size() > 400000);
  Random random(5);
  int killed = 0, old_kept = 0;
  for (int round = 0; round < 50; ++round) {
    const bool had_old = round % 2 == 0;
    fs::remove(out);
    if (had_old) write_content(out, "the old file");
    ProcessOptions kill;
    kill.signal_after = std::chrono::microseconds(static_cast<std::int64_t>(random.uniform() * 1.1 * whole));
    const ProcessResult result = run(command, kill);
    killed += result.signal == SIGKILL ? 1 : 0;
    if (result.signal != SIGKILL) whole *= 0.9;  // a busy machine made the first run slow
    const std::string now = fs::exists(out) ? file_content(out) : "";
    CAPTURE(round, had_old, result.signal, result.exit_code, now.size());
    const bool is_old = now == (had_old ? "the old file" : "");
    old_kept += is_old ? 1 : 0;
    REQUIRE((is_old || now == compressed));
    if (result.exit_code == 0) REQUIRE(now == compressed);
  }
  CHECK(killed >= 10);
  CHECK(old_kept >= 5);
  REQUIRE(run(command).exit_code == 0);
  CHECK(file_content(out) == compressed);
  CHECK(folder.count() == 1);  // what the killed runs left is gone
}

TEST_CASE("an interrupt ends the work with one line and nothing half-written", "[cli]") {
  const TemporaryFolder folder;
  SyntheticModel model;
  model.bytes = budget<std::uint64_t>(192, 32) << 20;
  write_synthetic_model(folder / "in", model);
  write_content(folder / "out", "the old file");
  int interrupted = 0;
  for (int ms = 20; ms <= 640 && interrupted == 0; ms *= 2) {
    ProcessOptions interrupt;
    interrupt.signal = SIGINT;
    interrupt.signal_after = std::chrono::milliseconds(ms);
    const ProcessResult result = run({"compress", "-r", "mxfp4", "-q", folder / "in", folder / "out"}, interrupt);
    if (result.exit_code == 0) break;
    if (result.signal != 0) continue;  // before the program had set its handler
    check_refused(result, "interrupted; nothing was written");
    ++interrupted;
    CHECK(file_content(folder / "out") == "the old file");
    CHECK(folder.count() == 2);
  }
  CHECK(interrupted > 0);
}

double number_behind(const std::string& text, const std::string& label) {
  const std::size_t at = text.find(label);
  REQUIRE(at != std::string::npos);
  return std::stod(text.substr(at + label.size()));
}

TEST_CASE("a 256 MiB model is compressed in 64 MiB of panels, mapped pages included, in linear time", "[cli]") {
  const TemporaryFolder folder;
  const std::uint64_t mib = budget<std::uint64_t>(256, 32);
  double seconds_per_mib[2];
  for (const int part : {0, 1}) {
    SyntheticModel model;
    model.bytes = (part == 0 ? mib / 4 : mib) << 20;
    model.largest_bytes = model.bytes / 2;
    write_synthetic_model(folder / "in", model);
    // Processor time of one thread, the better of two runs: what else the machine does hardly counts.
    ::setenv("OMP_NUM_THREADS", "1", 1);
    seconds_per_mib[part] = std::numeric_limits<double>::infinity();
    for (int again = 0; again < 2; ++again) {
      const ProcessResult result =
          run({"compress", "-r", "mxfp4", "-q", "--budget", "64", folder / "in", folder / "out"});
      REQUIRE(result.exit_code == 0);
      seconds_per_mib[part] =
          std::min(seconds_per_mib[part], result.cpu_seconds / static_cast<double>(model.bytes >> 20));
    }
    ::unsetenv("OMP_NUM_THREADS");
    const ProcessResult table = run({"compress", "-r", "mxfp4", "--budget", "64", folder / "in", folder / "out"});
    const double peak = number_behind(table.out, "peak memory ");
    CAPTURE(model.bytes, peak, table.out);
    CHECK(number_behind(table.out, "panels of at most ") <= 64.0);
    if (!kSanitized && std::getenv("BLOCKPACK_BUDGET") == nullptr) CHECK(peak < 64.0);
    CHECK(CompressedModel::open(folder / "out").is_compressed());
  }
  CAPTURE(seconds_per_mib[0], seconds_per_mib[1]);
  CHECK(seconds_per_mib[1] < 2.0 * seconds_per_mib[0]);  // quadratic would be 4
}

TEST_CASE("a 4 GiB model with a tensor of 1 GiB is compressed in less than 512 MiB", "[cli][slow]") {
  const TemporaryFolder folder;
  SyntheticModel model;
  model.bytes = budget(std::uint64_t{4} << 30, std::uint64_t{64} << 20);
  model.largest_bytes = model.bytes / 4;
  model.layer_bytes = std::uint64_t{128} << 20;
  write_synthetic_model(folder / "in", model);
  const ProcessResult result = run({"compress", "-r", "mxfp4", folder / "in", folder / "out"});
  CAPTURE(result.err);
  REQUIRE(result.exit_code == 0);
  const double peak = number_behind(result.out, "peak memory ");
  CAPTURE(peak, result.cpu_seconds);
  if (!kSanitized && std::getenv("BLOCKPACK_BUDGET") == nullptr) CHECK(peak < 512.0);
  const ProcessResult verified = run({"verify", folder / "out"});
  CHECK(verified.exit_code == 0);
}

TEST_CASE("algorithms take no more memory than is printed", "[cli][slow]") {
  const TemporaryFolder folder;
  // Peak memory in MiB, and the bound of what holds whole matrices.
  const auto compress = [&](const std::string& scheme, MatrixShape shape, const char* panels) {
    SyntheticModel model;
    model.cols = shape.cols;
    model.bytes = model.largest_bytes = static_cast<std::uint64_t>(shape.rows * shape.cols) * 2;
    write_synthetic_model(folder / "in", model);
    const ProcessResult result = run({"compress", "-r", scheme, "--budget", panels, "--calibration",
                                      folder.path().string(), folder / "in", folder / "out"});
    CAPTURE(result.err);
    REQUIRE(result.exit_code == 0);
    const std::size_t whole = result.out.find("MiB at most");
    return std::pair(number_behind(result.out, "peak memory "),
                     whole == std::string::npos ? 0.0 : number_behind(result.out, "holds whole matrices: "));
  };
  const double program = compress("int4-g32", {64, 1024}, "1").first;
  constexpr double kScratch = 8.0;  // of the engine and the allocator, for both threads
  const index_t large = budget<index_t>(2048, 128), small = budget<index_t>(1024, 64);  // what takes hundreds of steps
  for (const auto& [scheme, shape] : {std::pair("int4-g32+gptq", MatrixShape{large, large}),
                                      {"nvfp4+gptq", {2 * large, large}},
                                      {"int4-g32+polish", {large / 2, large}},
                                      {"int4-g32+awq", {large, large}},
                                      {"int4-g32+awq+polish", {large / 2, large}},
                                      {"int4-g32+flexround", {small / 2, small}},
                                      {"int4-g32+discquant", {small / 2, small}}}) {
    GramMatrix gram(shape.cols);
    std::vector<float> x(static_cast<std::size_t>(256 * shape.cols));
    fill_normal(x, 3);
    gram.add(MatrixView<const float>(x.data(), 256, shape.cols));
    CalibrationFolder(folder.path()).write("embed.weight", gram, {});
    const auto [peak, said] = compress(scheme, shape, "256");
    const double taken = peak - program - 4.0 * static_cast<double>(shape.cols * shape.cols) / (1 << 20);  // XᵀX
    CAPTURE(scheme, to_string(shape), program, peak, taken, said);
    CHECK(said > 0);
    if (!kSanitized && std::getenv("BLOCKPACK_BUDGET") == nullptr) {
      CHECK(taken < said + kScratch);
      CHECK(taken > 0.6 * said);
    }
  }
}

}  // namespace
}  // namespace blockpack
