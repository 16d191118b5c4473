// SPDX-License-Identifier: Apache-2.0
// `compress_model demo`: the embedded model stored in eight ways, as one table and as a page with two pictures.

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numbers>

#include "blockpack/entropy/gardener.hpp"
#include "blockpack/entropy/tile_map.hpp"
#include "blockpack/io/atomic_file.hpp"
#include "compress_model/blocks.hpp"
#include "compress_model/commands.hpp"
#include "decoder/evaluate.hpp"

namespace example {
namespace {

using namespace blockpack;
using nlohmann::json;
namespace fs = std::filesystem;

constexpr index_t kTile = 32;
constexpr int kTileGridBits = 8;
constexpr int kRounds = 3;

/// A folder of its own, gone at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (fs::temp_directory_path() / "blockpack-demo-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr)
      throw Error("no temporary folder can be made in '" + fs::temp_directory_path().string() + "'; set TMPDIR");
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

std::string read_text(const fs::path& path) {
  const std::vector<std::uint8_t> bytes = read_bytes(path);
  return {bytes.begin(), bytes.end()};
}

double rounded(double v, double unit) { return std::round(v / unit) * unit; }

/// One matrix: the entropy of each tile in bits per weight, on a grid of 8 bits over the range of the whole matrix.
json map_of_matrix(const StoredMatrix& matrix, const std::string& block, const Execution& how) {
  const TileMap map =
      tile_map(matrix.view(), TileScore::miller_madow, kTile, kTile, ValueGrid::integer(kTileGridBits), how);
  json tiles = json::array();
  double sum = 0;
  for (const double nats : map.values) {
    const double bits = nats / std::numbers::ln2;
    sum += bits;
    tiles.push_back(rounded(bits, 1e-3));
  }
  std::string name = matrix.name();
  if (name.starts_with(block + ".")) name = name.substr(block.size() + 1);
  if (name.ends_with(".weight")) name.resize(name.size() - 7);
  return {{"name", name},
          {"full_name", matrix.name()},
          {"tile_rows", map.rows},
          {"tile_cols", map.cols},
          {"mean", sum / static_cast<double>(map.values.size())},
          {"tiles", std::move(tiles)}};
}

json map_of_blocks(const CompressedModel& model, const Execution& how) {
  json blocks = json::array();
  for (const auto& [name, tensors] : blocks_of(model)) {
    json matrices = json::array();
    std::vector<std::unique_ptr<StoredMatrix>> kept;
    WeightBlock block;
    for (const std::string& tensor : tensors)
      if (auto matrix = StoredMatrix::open(model, tensor)) {
        block.matrices.push_back(matrix->view());
        matrices.push_back(map_of_matrix(*matrix, name, how));
        kept.push_back(std::move(matrix));
      }
    const GardenerScore score = gardener_score(block, ValueGrid::automatic(), how);
    std::string shown = name;
    if (shown.ends_with(".weight")) shown.resize(shown.size() - 7);
    blocks.push_back({{"name", shown},
                      {"note", fmt::format("{:.3f} bits", score.score() / std::numbers::ln2)},
                      {"matrices", std::move(matrices)}});
  }
  return blocks;
}

void replace(std::string& text, std::string_view place, const std::string& by) {
  const std::size_t at = text.find(place);
  if (at == std::string::npos) throw Error("report.html lacks the place " + std::string(place));
  text.replace(at, place.size(), by);
}

void write_report(const fs::path& out, const json& data) {
  const fs::path folder = BLOCKPACK_EXAMPLE_REPORT;
  std::string page = read_text(folder / "report.html");
  std::string text = data.dump();
  for (std::size_t at = 0; (at = text.find('<', at)) != std::string::npos;) text.replace(at, 1, "\\u003c");
  // The data goes in first: what it holds is never searched for places.
  replace(page, "/*{{uplot.css}}*/", read_text(folder / "vendor" / "uPlot.min.css"));
  replace(page, "/*{{uplot.js}}*/", read_text(folder / "vendor" / "uPlot.iife.min.js"));
  replace(page, "/*{{data}}*/", text);
  write_file_atomically(out, page);
}

}  // namespace

int demo(const std::string& data_folder, const std::string& report_path, std::int64_t windows, const Execution& how) {
  { const AtomicFile writable(report_path); }  // said now, not after the work
  const fs::path data = data_folder;
  const fs::path original = data / "model.safetensors";
  const DecoderConfig config = DecoderConfig::load(data / "config.json");
  const std::vector<std::uint8_t> text = read_bytes(data / "test.txt");
  const CompressedModel plain = CompressedModel::open(original);
  ApplyOptions apply;
  apply.execution = how;
  const Evaluation uncompressed = evaluate(ByteDecoder(plain, config), text, windows, apply);
  double weights = 0;
  for (const std::string& name : plain.names()) {
    const std::vector<index_t> shape = plain.shape(name);
    if (shape.size() == 2) weights += static_cast<double>(shape[0]) * static_cast<double>(shape[1]);
  }
  fmt::print("bytelm: {:.0f} weights in matrices, {} MiB as it comes; {} bytes of text scored in windows of {}\n\n",
             weights, mebibytes(plain.storage_bytes()), uncompressed.tokens, config.max_positions);
  fmt::print("{:<12} {:>7} {:>12} {:>8} {:>10} {:>10}\n", "scheme", "MiB", "bits/weight", "SQNR dB", "bits/byte",
             "tokens/s");

  const TemporaryFolder folder;
  json rows = json::array();
  for (const char* scheme :
       {"f32", "bf16", "int8-g128", "bfp12-b32", "mxfp8-e4m3", "mxfp6-e2m3", "mxfp4", "int4-g32"}) {
    CompressOptions options;
    options.execution = how;
    const fs::path file = folder.path() / "model.safetensors";
    const CompressReport report = compress_model(original, Recipe::parse(scheme), file, options);
    const CompressedModel model = CompressedModel::open(file);
    const Evaluation result = evaluate(ByteDecoder(model, config), text, windows, apply, 16, kRounds);
    const double mib = static_cast<double>(report.stored_bytes()) / 1048576.0, sqnr = report.error().sqnr_db();
    fmt::print("{:<12} {:>7.3f} {:>12.3f} {:>8} {:>10.4f} {:>10.0f}\n", scheme, mib, report.bits_per_weight(),
               decibels(sqnr), result.bits_per_byte, result.tokens_per_second);
    std::fflush(stdout);
    rows.push_back({{"scheme", scheme},
                    {"mib", rounded(mib, 1e-6)},
                    {"bits_per_weight", report.bits_per_weight()},
                    {"sqnr_db", std::isinf(sqnr) ? json(nullptr) : json(sqnr)},
                    {"bits_per_byte", result.bits_per_byte},
                    {"tokens_per_second", result.tokens_per_second}});
  }
  const json page = {
      {"model", "bytelm"},
      {"subtitle",
       fmt::format("A byte-level language model with {:.0f} weights in matrices, scored on {} bytes of text. "
                   "MiB counts everything the file holds but its header; tokens per second are for scoring, "
                   "16 windows of {} bytes at a time, the best of {} rounds.",
                   weights, uncompressed.tokens, config.max_positions, kRounds)},
      {"uncompressed", uncompressed.bits_per_byte},
      {"tile", kTile},
      {"map_text",
       fmt::format("Each square is a tile of {0} x {0} weights, coloured by the entropy of its values in bits per "
                   "weight, on a grid of {1} bits over the range of its matrix. The figure beside a block is the "
                   "entropy of its exact stored values (Gardener): the lowest block is the first to remove.",
                   kTile, kTileGridBits)},
      {"rows", std::move(rows)},
      {"blocks", map_of_blocks(plain, how)}};
  write_report(report_path, page);
  fmt::print("\nuncompressed: {:.4f} bits/byte. Report: {}\n", uncompressed.bits_per_byte,
             fs::absolute(report_path).string());
  return 0;
}

}  // namespace example
