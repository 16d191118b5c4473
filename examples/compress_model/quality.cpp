// SPDX-License-Identifier: Apache-2.0
// `compress_model quality`: bits per byte of the embedded model under many schemes, as a page of tables. Two scopes:
// the projections alone (the tied embedding stays as it is), and every matrix.

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <numeric>
#include <optional>

#include "blockpack/io/atomic_file.hpp"
#include "blockpack/recipe.hpp"
#include "blockpack/sparse/block_sparse.hpp"
#include "compress_model/commands.hpp"
#include "decoder/divergence.hpp"
#include "decoder/icbs.hpp"

namespace example {
namespace {

using namespace blockpack;

constexpr index_t kDivergenceWindows = 32;

constexpr const char* kIntroduction = R"(# Quality on a language model

Made by `compress_model quality --out docs/quality.md`: bits per byte of test text of the embedded byte-level decoder
(`examples/data/bytelm`, 885,888 parameters, {:.4f} uncompressed; differences of 0.003 are noise), float32 activations.

- Scope `linears`: the 28 projections; the tied embedding stays bf16. Scope `all`: every matrix, the embedding rounded with
  XᵀX of the head's input. The two are never mixed in a comparison, and bits per weight count the matrices of the scope.
- Schemes with calibration are run on each of the three sets of `calib.bin` (128 windows of 128 bytes, apart from the test
  text); the figure is the mean, the spread is largest minus smallest.
- "Gap closed" is the share of the loss of the first row of a group that a row wins back. "Reference" is the figure of a
  public implementation of the same algorithm on this model, where there is one.
- "Bits per weight" is what this model stores, "in wide rows" what the same scheme stores in rows of 4096. They differ where
  a row of this model does not fill its last block (the rows of 128 weights are half a super-block of the K-quants, and the
  other half is stored too) and where something is stored for each column (`+awq`) or tensor. Schemes
  are compared by the second, which is what a model of usual width pays.
- DiscQuant end to end takes the gradient of the KL divergence from the original's predictions through the decoder's
  backward pass, over all projections at once ({} steps of 4 windows); `+discquant` is its layer form.
- Schemes of the registry that stand in no group follow by themselves; structured forms have a page of their own.
- `auto:` chooses a scheme per tensor by the KL divergence measured on 32 calibration windows, one tensor changed at a
  time (`recipe/auto_plan.hpp`).
)";

/// The schemes of each table, in groups that share the stored form.
const std::vector<std::vector<std::string>> kLinears = {
    {"int4-g32", "int4-g32+polish", "int4-g32+gptq", "int4-g32+gptq+polish", "int4-g32+flexround", "int4-g32+awq",
     "int4-g32+awq+polish"},
    {"int3-g32", "int3-g32+polish", "int3-g32+gptq", "int3-g32+gptq+polish", "int3-g32+flexround", "int3-g32+awq",
     "int3-g32+awq+polish"},
    {"int3-g64", "int3-g64+polish", "int3-g64+gptq", "int3-g64+gptq+polish", "int3-g64+flexround",
     "int3-g64+discquant+polish", "int3-g64+awq", "int3-g64+awq+polish"},
    {"int2-g32", "int2-g32+polish", "int2-g32+gptq", "int2-g32+gptq+polish", "int2-g32+flexround", "int2-g32+awq",
     "int2-g32+awq+polish"},
    {"int4-g32-search", "int4-g32-search+importance"},
    {"mxfp4", "mxfp4+gptq", "mxfp4+awq", "mxfp4-mse", "mxfp4-mse+importance", "hadamard-b32-mxfp4",
     "hadamard-b32-mxfp4+gptq"},
    {"nvfp4", "nvfp4-4over6", "nvfp4+gptq", "hadamard-b16-nvfp4", "hadamard-b16-nvfp4+gptq"},
    {"nf4-b64", "nf4-b64+importance", "nf4-b64+gptq", "nf4-b64+awq"},
    {"iq4_nl", "iq4_nl+importance", "iq4_nl+gptq"},
    {"q4_0", "q4_0+importance", "q4_0+gptq"},
    {"q4_k", "q4_k+importance", "q4_k+gptq", "q4_k+importance+gptq+polish"},
    {"q3_k", "q3_k+importance", "q3_k+gptq", "q3_k+importance+gptq+polish"},
    {"q2_k", "q2_k+importance", "q2_k+gptq", "q2_k+importance+gptq+polish"},
    {"bfp12-b32", "bfp12-b32+importance", "bfp12-b32+gptq"},
    {"mxfp6-e2m3"},
    {"int8-g128"},
    {"mxfp8-e4m3"},
    {"ternary-g64", "ternary-g64+importance", "ternary-g64+gptq", "ternary-g64+flexround"},
    {"statsq2", "statsq2+importance", "statsq2+gptq"},
    {"ptq1.61", "ptq1.61+importance", "ptq1.61+refine"}};
const std::vector<std::vector<std::string>> kAll = {{"int4-g32", "int4-g32+gptq", "int4-g32+awq"},
                                                    {"int3-g32", "int3-g32+gptq", "int3-g32+awq"},
                                                    {"int3-g64", "int3-g64+gptq"},
                                                    {"int3-g128", "int3-g128+gptq"},
                                                    {"int2-g32", "int2-g32+gptq"},
                                                    {"mxfp4", "mxfp4+gptq"},
                                                    {"nvfp4"},
                                                    {"bfp12-b32"},
                                                    {"mxfp6-e2m3"},
                                                    {"int8-g128"}};

/// The groups of the page of sparse forms.
const std::vector<std::vector<std::string>> kSparse = {
    {"2:4-bf16", "2:4-bf16+wanda", "2:4-bf16+nowag", "2:4-bf16+sparsegpt", "2:4-bf16+wanda+refit",
     "2:4-bf16+sparsegpt+refit", "2:4-bf16+sparsegpt+search", "2:4-bf16+search"},
    {"4:8-bf16", "4:8-bf16+wanda", "4:8-bf16+sparsegpt+refit", "4:8-bf16+search"},
    {"1:4-bf16", "1:4-bf16+sparsegpt+refit", "1:4-bf16+search"},
    {"2:4-int8-g128", "2:4-int8-g128+search"},
    {"2:4-int4-g32", "2:4-int4-g32+sparsegpt+refit", "2:4-int4-g32+search"},
    {"bitmask-bf16", "bitmask-bf16+wanda", "bitmask-bf16+nowag", "bitmask-bf16+sparsegpt",
     "bitmask-bf16+sparsegpt+refit", "bitmask-bf16+search"},
    {"bitmask-s70-bf16", "bitmask-s70-bf16+sparsegpt+refit", "bitmask-s70-bf16+search"},
    {"bsr4x1-bf16", "bsr4x1-bf16+wanda", "bsr4x1-bf16+sparsegpt+refit"},
    {"bsr1x16-bf16", "bsr1x16-bf16+sparsegpt+refit"},
    {"bsr16x32-bf16", "bsr16x32-bf16+sparsegpt+refit"},
    {"armor-b8-2:4-bf16", "armor-b8-2:4-bf16+nowag"},
    {"armor-b16-2:4-bf16", "armor-b16-2:4-bf16+nowag"}};

/// The groups of a scope, and a group for each other scheme of the registry: structured and sparse forms have pages of
/// their own.
std::vector<std::vector<std::string>> with_listed(std::vector<std::vector<std::string>> groups) {
  std::vector<std::string> measured;
  for (const std::vector<std::string>& group : groups) measured.insert(measured.end(), group.begin(), group.end());
  for (const ListedScheme& listed : Registry::standard().listed()) {
    const auto is = [&](const char* form) { return listed.scheme.starts_with(form); };
    if (is("lowrank") || is("blockdiag") || is("monarch") || is("blast") || is("blr") || is("bitmask") || is("bsr") ||
        listed.scheme.find(':') != std::string::npos)
      continue;
    if (std::find(measured.begin(), measured.end(), listed.scheme) == measured.end()) groups.push_back({listed.scheme});
  }
  return groups;
}

/// Figures of public implementations of the same algorithms on this model, from outside this project.
const std::map<std::string, double> kReferenceLinears = {{"int4-g32", 2.1153},
                                                         {"int3-g32", 2.1544},
                                                         {"int3-g64", 2.1718},
                                                         {"int2-g32", 2.4183},
                                                         {"int4-g32+polish", 2.1071},
                                                         {"int3-g32+polish", 2.1259},
                                                         {"int3-g64+polish", 2.1319},
                                                         {"int2-g32+polish", 2.2264},
                                                         {"int4-g32+gptq", 2.1049},
                                                         {"int3-g32+gptq", 2.1222},
                                                         {"int3-g64+gptq", 2.1246},
                                                         {"int2-g32+gptq", 2.2267},
                                                         {"int2-g32+gptq+polish", 2.2067},
                                                         {"int4-g32+flexround", 2.1082},
                                                         {"int3-g32+flexround", 2.1364},
                                                         {"int3-g64+flexround", 2.1415},
                                                         {"int2-g32+flexround", 2.2481},
                                                         {"int3-g64, DiscQuant end to end", 2.1315},
                                                         {"mxfp4", 2.1251},
                                                         {"nvfp4", 2.1162},
                                                         {"bfp12-b32", 2.1329},
                                                         {"q4_k+importance", 2.1081},
                                                         {"q3_k+importance", 2.1357},
                                                         {"q2_k+importance", 2.2293}};
const std::map<std::string, double> kReferenceAll = {{"int4-g32", 2.1238},
                                                     {"int3-g32", 2.1891},
                                                     {"mxfp4", 2.1400},
                                                     {"int3-g128+gptq", 2.1507},
                                                     {"auto:3.125bpw", 2.1398}};

const std::map<std::string, double> kReferenceSparse = {{"2:4-bf16", 2.4946},
                                                        {"2:4-bf16+nowag", 2.480},
                                                        {"2:4-bf16+wanda", 2.476},
                                                        {"armor-b8-2:4-bf16+nowag", 2.213},
                                                        {"armor-b16-2:4-bf16+nowag", 2.153},
                                                        {"2:4-bf16+sparsegpt", 2.249},
                                                        {"2:4-bf16, iCBS", 2.364},
                                                        {"bitmask-bf16, iCBS", 2.205},
                                                        {"2:4-bf16+wanda+refit", 2.1995},
                                                        {"bitmask-bf16", 2.273},
                                                        {"bitmask-bf16+wanda", 2.260},
                                                        {"bitmask-bf16+sparsegpt", 2.186}};

constexpr const char* kStructuredIntroduction = R"(# Structured forms on a language model

Made by `compress_model quality --scope structured --out docs/quality_structured.md`: bits per byte of test text of the
embedded byte-level decoder ({:.4f} uncompressed; differences of 0.003 are noise) with its 28 projections replaced by
structured forms of bf16 factors, the tied embedding as it is, float32 activations. "Removed" is the share of the parameters
that a form saves; ranks are the largest that keep to it (`structured_menu`). Monarch and BLAST have 4 blocks a side. `+whiten`
fits the error of the outputs, `+refine` moves the factors of the plain fit by least squares against the inputs; both are run
on each of the three calibration sets, the figure is their mean. "Error" is the mean over the projections of
||(W - M) Xᵀ|| / ||W Xᵀ||, first set. "Reference" is the figure of a public implementation.
)";

constexpr const char* kSparseIntroduction = R"(# Sparse forms on a language model

Made by `compress_model quality --scope sparse --out docs/quality_sparse.md`: bits per byte of test text of the embedded
byte-level decoder ({:.4f} uncompressed; differences of 0.003 are noise) with its 28 projections pruned, the tied embedding
as it is, float32 activations. The first row of a group is pruned by magnitude, `-s70` prunes 70 percent, and 50 where
nothing is said; bitmasks and blocks keep the same number in every row (of blocks). Calibrated schemes are run on each of the
three sets, the figure is their mean. Bits per weight are all stored bytes, places of the weights included. "Reference" is the
figure of a public implementation on this model (50 % unstructured: one threshold for a layer), exact least squares behind
Wanda's mask for `+wanda+refit`; the goal set for the best 2:4 without further bytes is 2.18. iCBS starts from Wanda's mask and
asks the loss of the whole network, on {} windows of a set; it leaves kept weights as they are, and a pass of {} steps is
accepted when the loss on the set's other {} windows falls.
)";

/// What is measured at each share: a form of structured_menu, and the algorithms behind it.
const std::vector<std::pair<std::string, std::string>> kStructured = {{"lowrank", ""},        {"lowrank", "+refine"},
                                                                      {"lowrank", "+whiten"}, {"monarch", ""},
                                                                      {"monarch", "+whiten"}, {"monarch", "+refine"},
                                                                      {"blast", ""},          {"blast", "+refine"},
                                                                      {"blast", "+whiten"},   {"blr", ""}};
const std::map<std::string, std::vector<double>> kReferenceStructured = {
    {"lowrank", {2.163, 2.256, 2.372}},        {"lowrank+refine", {0, 0, 2.297}},
    {"lowrank+whiten", {2.134, 2.203, 2.296}}, {"monarch", {2.316, 2.730, 3.073}},
    {"monarch+refine", {2.166, 2.301, 2.394}}, {"blast", {2.126, 2.210, 2.302}},
    {"blast+refine", {2.116, 2.166, 2.229}}};
constexpr int kRemoved[] = {20, 40, 50};

struct Score {
  double bits_per_weight = 0;
  std::vector<double> bits_per_byte;  ///< one per calibration set; one in all for schemes without calibration

  double mean() const {
    double sum = 0;
    for (const double v : bits_per_byte) sum += v;
    return sum / static_cast<double>(bits_per_byte.size());
  }
  double spread() const {
    const auto [low, high] = std::minmax_element(bits_per_byte.begin(), bits_per_byte.end());
    return *high - *low;
  }
};

class Laboratory {
 public:
  Laboratory(const std::filesystem::path& data, index_t windows, const Execution& how)
      : config_(DecoderConfig::load(data / "config.json")),
        text_(read_bytes(data / "test.txt")),
        windows_(windows),
        model_(data / "model.safetensors"),
        how_(how),
        plain_(CompressedModel::open(model_), config_) {
    const GradientDecoder decoder(plain_);
    for (index_t set = 0; set < CalibrationText::kSets; ++set) {
      texts_.push_back(CalibrationText::load(data / "calib.bin", config_, set));
      sets_.emplace_back();
      for (const MatrixCalibration& m : calibrate(decoder, texts_.back(), how)) sets_.back().push_back(m.tensor());
    }
    for (std::size_t m = 0; m < config_.matrices().size(); ++m) weights_.push_back(decoded(plain_.matrix(m)));
  }

  const DecoderConfig& config() const { return config_; }
  double uncompressed() const { return score(plain_); }

  /// The model with matrices [first, …) stored under the scheme that `scheme_of` names.
  template <class SchemeOf>
  ByteDecoder stored(std::size_t first, std::size_t set, const SchemeOf& scheme_of, double& bits_per_weight) const {
    std::vector<AnyLinear> ops(weights_.size());
    parallel_for(how_, static_cast<index_t>(weights_.size() - first), [&](index_t task) {
      const std::size_t m = first + static_cast<std::size_t>(task);
      ops[m] = encoded(m, set, scheme_of(m));
    });
    ByteDecoder decoder = plain_;
    double bits = 0, count = 0;
    for (std::size_t m = first; m < ops.size(); ++m) {
      bits += 8.0 * static_cast<double>(ops[m].storage_bytes());
      count += static_cast<double>(weights_[m].values.size());
      decoder.replace(m, ops[m]);
    }
    bits_per_weight = bits / count;
    return decoder;
  }

  Score measure(const std::string& scheme, std::size_t first) const {
    const bool calibrated = Registry::standard().codec(scheme)->needs().any();
    Score result;
    for (std::size_t set = 0; set < (calibrated ? sets_.size() : 1); ++set)
      result.bits_per_byte.push_back(score(stored(
          first, set, [&](std::size_t) { return scheme; }, result.bits_per_weight)));
    return result;
  }

  /// The projections under a structured form with that share of their parameters removed. `errors` gets the relative
  /// output error of each with the first set, `error` their mean.
  Score structured(const std::string& form, const std::string& algorithms, int removed, double& error,
                   std::vector<double>& errors) const {
    constexpr std::size_t kFirst = 1;  // the embedding stays
    const auto scheme_of = [&](std::size_t m) {
      for (const std::string& scheme :
           structured_menu(weights_[m].view().shape(), 1.0 - removed / 100.0, "bf16", algorithms))
        if (scheme.starts_with(form)) return scheme;
      throw ValueError("no such form: " + form);
    };
    Score result;
    errors.clear();
    for (std::size_t set = 0; set < (algorithms.empty() ? 1 : sets_.size()); ++set) {
      const ByteDecoder decoder = stored(kFirst, set, scheme_of, result.bits_per_weight);
      result.bits_per_byte.push_back(score(decoder));
      for (std::size_t m = kFirst; set == 0 && m < weights_.size(); ++m)
        errors.push_back(relative_error(weights_[m].view(), decoder.matrix(m), sets_[0][m].gram.get(), how_));
    }
    error = std::accumulate(errors.begin(), errors.end(), 0.0) / static_cast<double>(errors.size());
    return result;
  }

  /// Every matrix under `auto:` with that target, schemes scored by the KL divergence on calibration windows; `uniform`
  /// is in the menu. The plan of the first set goes to `plan`.
  Score automatic(double target, std::vector<std::string>& plan) const;

  /// iCBS by the loss of the network.
  Score icbs(const MaskPattern& pattern) const;

  /// DiscQuant with the gradient of the KL divergence from the original's predictions, over all projections at once.
  Score discquant(const GroupInt& format, const DiscQuantOptions& options) const;

 private:
  AnyLinear encoded(std::size_t m, std::size_t set, const std::string& scheme) const {
    const std::shared_ptr<const Codec> codec = Registry::standard().codec(scheme);
    EncodeOptions options;
    options.execution.threads = 1;
    const TensorCalibration calibration = sets_[set][m].only(codec->needs());
    calibration.give(options);
    const MatrixView<const float> w = weights_[m].view();
    return encode_matrix(*fitted(codec, w, options), w, options);
  }
  double score(const ByteDecoder& decoder) const {
    ApplyOptions apply;
    apply.execution = how_;
    apply.activations = Activations::f32;
    return evaluate(decoder, text_, windows_, apply).bits_per_byte;
  }

  DecoderConfig config_;
  std::vector<std::uint8_t> text_;
  index_t windows_;
  std::filesystem::path model_;
  Execution how_;
  ByteDecoder plain_;
  std::vector<Matrix> weights_;
  std::vector<CalibrationText> texts_;
  std::vector<std::vector<TensorCalibration>> sets_;
};

Score Laboratory::discquant(const GroupInt& format, const DiscQuantOptions& options) const {
  constexpr std::size_t kFirst = 1;  // the embedding stays
  constexpr index_t kBatch = 4;      // windows a step
  Score result;
  for (std::size_t set = 0; set < sets_.size(); ++set) {
    const CalibrationText& text = texts_[set];
    GradientDecoder decoder(plain_);
    std::vector<Matrix> reference;
    for (index_t w = 0; w < text.windows(); ++w) reference.push_back(decoder.forward(text.input(w)).logits);
    std::vector<std::unique_ptr<FormatGrids<GroupInt>>> grids;
    std::vector<DiscQuant::Layer> layers;
    for (std::size_t m = kFirst; m < weights_.size(); ++m) {
      grids.push_back(std::make_unique<FormatGrids<GroupInt>>(format, weights_[m].view().shape()));
      layers.push_back({weights_[m].view(), grids.back().get()});
    }
    DiscQuant run(layers, options, how_);
    std::vector<Gradients> gradients;
    for (index_t i = 0; i < kBatch; ++i) gradients.push_back(decoder.make_gradients());
    const auto loss = [&](std::span<const MatrixView<const float>> w, std::span<const MatrixView<float>> dw) {
      parallel_for(how_, static_cast<index_t>(w.size()), [&](index_t i) {
        decoder.set(kFirst + static_cast<std::size_t>(i), w[static_cast<std::size_t>(i)]);
      });
      std::vector<double> nats(kBatch);
      parallel_for(how_, kBatch, [&](index_t i) {
        const auto at = static_cast<std::size_t>(i);
        const index_t window = (run.steps_done() * kBatch + i) % text.windows();
        const auto tape = decoder.forward(text.input(window));
        Matrix dlogits(tape.logits.rows, tape.logits.cols);
        nats[at] =
            kl_divergence(reference[static_cast<std::size_t>(window)].view(), tape.logits.view(), dlogits.view());
        decoder.backward(text.input(window), tape, dlogits, gradients[at]);
      });
      for (std::size_t m = 0; m < dw.size(); ++m)
        for (index_t r = 0; r < dw[m].rows(); ++r) {
          std::fill(dw[m].row(r).begin(), dw[m].row(r).end(), 0.0f);
          for (const Gradients& g : gradients)
            add_scaled(1.0f / kBatch, g[kFirst + m].view().row_data(r), dw[m].row_data(r), dw[m].cols());
        }
      return std::accumulate(nats.begin(), nats.end(), 0.0) / kBatch;
    };
    while (!run.done()) run.step(loss, how_);
    ByteDecoder decoder_of_set = plain_;
    double bits = 0, count = 0;
    for (std::size_t m = 0; m < layers.size(); ++m) {
      Matrix q(layers[m].w.rows(), layers[m].w.cols());
      run.round(m, q.view());
      const AnyLinear op = grids[m]->store(std::as_const(q).view());
      bits += 8.0 * static_cast<double>(op.storage_bytes());
      count += static_cast<double>(q.values.size());
      decoder_of_set.replace(kFirst + m, op);
    }
    result.bits_per_weight = bits / count;
    result.bits_per_byte.push_back(score(decoder_of_set));
  }
  return result;
}

Score Laboratory::icbs(const MaskPattern& pattern) const {
  constexpr std::size_t kFirst = 1;  // the embedding stays
  DecoderIcbs run;
  run.options.pattern = pattern;
  Score result;
  for (std::size_t set = 0; set < sets_.size(); ++set) {
    const std::vector<Matrix> pruned = run.pruned(plain_, texts_[set], sets_[set], how_);
    ByteDecoder decoder = plain_;
    double bits = 0, count = 0;
    for (std::size_t m = 0; m < pruned.size(); ++m) {
      const MatrixView<const float> w = pruned[m].view();
      const AnyLinear op = pattern.scope == MaskScope::group
                               ? encode_matrix(*Registry::standard().codec("2:4-bf16"), w)
                               : AnyLinear(BlockSparse<DenseFormat<bf16>>::encode(w, {1, 1}));
      bits += 8.0 * static_cast<double>(op.storage_bytes());
      count += static_cast<double>(pruned[m].values.size());
      decoder.replace(kFirst + m, op);
    }
    result.bits_per_weight = bits / count;
    result.bits_per_byte.push_back(score(decoder));
  }
  return result;
}

Score Laboratory::automatic(double target, std::vector<std::string>& plan) const {
  const std::vector<DecoderMatrix> matrices = config_.matrices();
  Score result;
  for (std::size_t set = 0; set < sets_.size(); ++set) {
    const Divergence divergence(plain_, texts_[set], kDivergenceWindows, how_);
    AutoPlanOptions options;
    options.execution.threads = how_.threads;
    const auto place_of = [&](std::string_view tensor) {
      return static_cast<std::size_t>(
          std::find_if(matrices.begin(), matrices.end(), [&](const auto& m) { return m.name == tensor; }) -
          matrices.begin());
    };
    options.calibration = [&](std::string_view tensor) {
      const std::size_t m = place_of(tensor);
      return m < matrices.size() ? sets_[set][m] : TensorCalibration{};
    };
    options.loss = [&](std::string_view tensor, const AnyLinear& candidate) {
      return divergence.of_matrix(place_of(tensor), candidate);
    };
    const Recipe recipe = resolve_auto(model_, Recipe::parse(fmt::format("auto:{}bpw", target)), options);
    std::vector<std::string> schemes(matrices.size());
    for (const RecipeRule& rule : recipe.rules) schemes[place_of(rule.tensors.front())] = rule.scheme;
    result.bits_per_byte.push_back(score(stored(
        0, set, [&](std::size_t m) { return schemes[m]; }, result.bits_per_weight)));
    if (set == 0) plan = schemes;
  }
  return result;
}

/// Bits per weight of a scheme in rows of 4096; empty for what is no scheme of the registry.
std::string bits_in_wide_rows(const std::string& scheme) {
  if (scheme.starts_with("auto:") || scheme.find(' ') != std::string::npos) return "";
  constexpr MatrixShape kShape{4096, 4096};
  double bytes = 0;
  for (const SectionSize& s : Registry::standard().codec(scheme)->sections(kShape))
    bytes += static_cast<double>(s.bytes);
  return fmt::format("{:.3f}", 8 * bytes / static_cast<double>(kShape.rows * kShape.cols));
}

/// One row; `plain` is the score of the first scheme of the group, whose gap to the uncompressed the others close.
std::string row(const std::string& scheme, const Score& s, double plain, double uncompressed,
                const std::map<std::string, double>& references) {
  const auto reference = references.find(scheme);
  const double gap = plain - uncompressed;
  return fmt::format("| `{}` | {:.3f} | {} | {:.4f} | {} | {} | {} |\n", scheme, s.bits_per_weight,
                     bits_in_wide_rows(scheme), s.mean(),
                     s.bits_per_byte.size() > 1 ? fmt::format("{:.4f}", s.spread()) : "",
                     gap > 0 && s.mean() != plain ? fmt::format("{:.0f} %", 100 * (plain - s.mean()) / gap) : "",
                     reference != references.end() ? fmt::format("{:.4f}", reference->second) : "");
}

}  // namespace

int quality(const QualityArguments& arguments, const Execution& how) {
  { const AtomicFile writable(arguments.out); }  // said now, not after the work
  const Laboratory laboratory(arguments.data, arguments.windows, how);
  const double uncompressed = laboratory.uncompressed();
  std::string page = fmt::format(kIntroduction, uncompressed, arguments.discquant_steps);
  const auto show = [&](const std::string& text) {
    fmt::print("{}", text);
    std::fflush(stdout);
    page += text;
  };
  constexpr const char* kHead =
      "| scheme | bits per weight | in wide rows | bits per byte | spread of the sets | gap closed | reference "
      "|\n|---|---|---|---|---|---|---|\n";
  if (arguments.scope == "structured") {
    page = fmt::format(kStructuredIntroduction, uncompressed);
    for (std::size_t s = 0; s < std::size(kRemoved); ++s) {
      show(fmt::format(
          "\n## {} % removed\n\n| form | bits per weight | bits per byte | spread of the sets | error | reference "
          "|\n|---|---|---|---|---|---|\n",
          kRemoved[s]));
      std::map<std::string, std::vector<double>> errors;
      for (const auto& [form, algorithms] : kStructured) {
        double error = 0;
        const Score score = laboratory.structured(form, algorithms, kRemoved[s], error, errors[form + algorithms]);
        const auto reference = kReferenceStructured.find(form + algorithms);
        const double known = reference == kReferenceStructured.end() ? 0.0 : reference->second[s];
        show(fmt::format("| `{}{}` | {:.3f} | {:.4f} | {} | {:.4f} | {} |\n", form, algorithms, score.bits_per_weight,
                         score.mean(), score.bits_per_byte.size() > 1 ? fmt::format("{:.4f}", score.spread()) : "",
                         error, known > 0 ? fmt::format("{:.3f}", known) : ""));
      }
      std::map<std::string, std::string> wins;
      for (std::size_t m = 0; m < errors.begin()->second.size(); ++m) {
        std::string best;
        for (const auto& [form, values] : errors)
          if (best.empty() || values[m] < errors[best][m]) best = form;
        std::string name = laboratory.config().matrices()[m + 1].name;
        wins[best] += (wins[best].empty() ? "" : ", ") + name;
      }
      show("\nLeast output error, first set:\n\n| form | on |\n|---|---|\n");
      for (const auto& [form, names] : wins) show(fmt::format("| `{}` | {} |\n", form, names));
    }
    write_file_atomically(arguments.out, page);
    return 0;
  }
  /// The groups on a page; `then(group)` after each.
  const auto tables = [&](const std::vector<std::vector<std::string>>& groups, std::size_t first_matrix,
                          const std::map<std::string, double>& references, const auto& then) {
    show(kHead);
    for (const std::vector<std::string>& group : groups) {
      std::optional<double> plain;
      for (const std::string& scheme : group) {
        const Score s = laboratory.measure(scheme, first_matrix);
        if (!plain) plain = s.mean();
        show(row(scheme, s, *plain, uncompressed, references));
      }
      then(group.front(), *plain);
    }
  };
  if (arguments.scope == "sparse") {
    page = fmt::format(kSparseIntroduction, uncompressed, DecoderIcbs{}.batch, DecoderIcbs{}.options.steps,
                       DecoderIcbs{}.held_out);
    show("\n");
    tables(kSparse, 1, kReferenceSparse, [&](const std::string& group, double plain) {
      const bool n_m = group == "2:4-bf16";
      if (!n_m && group != "bitmask-bf16") return;
      const Score s = laboratory.icbs(n_m ? MaskPattern::nm(2, 4) : MaskPattern::rows(0.5));
      show(row(group + ", iCBS", s, plain, uncompressed, kReferenceSparse));
    });
    write_file_atomically(arguments.out, page);
    return 0;
  }
  std::vector<std::string> plan;
  for (const bool all : {false, true}) {
    if (arguments.scope == (all ? "linears" : "all")) continue;
    const std::map<std::string, double>& references = all ? kReferenceAll : kReferenceLinears;
    show(fmt::format("\n## Scope `{}`\n\n", all ? "all" : "linears"));
    tables(with_listed(all ? kAll : kLinears), all ? 0 : 1, references, [&](const std::string& group, double plain) {
      if (all && group == "int3-g128") {
        const double uniform = laboratory.measure("int3-g128+gptq", 0).mean();
        const Score s = laboratory.automatic(3.125, plan);
        show(row("auto:3.125bpw", s, plain, uncompressed, references));
        show(fmt::format("| of the gap of `int3-g128+gptq` | | | | | {:.0f} % | |\n",
                         100 * (uniform - s.mean()) / (uniform - uncompressed)));
      }
      if (!all && group == "int3-g64") {
        DiscQuantOptions options;
        options.steps = arguments.discquant_steps;
        options.warmup = options.steps / 8;
        options.clamp = 0.5;
        show(row("int3-g64, DiscQuant end to end", laboratory.discquant(GroupInt{3, 64}, options), plain, uncompressed,
                 references));
      }
    });
  }
  if (!plan.empty())
    show("\n## The plan of `auto:3.125bpw`, first calibration set\n\n| tensor | scheme |\n|---|---|\n");
  for (std::size_t m = 0; m < plan.size(); ++m)
    show(fmt::format("| `{}` | `{}` |\n", laboratory.config().matrices()[m].name, plan[m]));
  write_file_atomically(arguments.out, page);
  return 0;
}

}  // namespace example
