// SPDX-License-Identifier: Apache-2.0
// The example sentence encoder: its tokenizer by hand, its forward pass against one in double on a small model, and the
// golden ids, activations and embeddings of the real one where it has been fetched (BLOCKPACK_ENCODER_MODEL=FOLDER).
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "../../examples/evaluate_encoder/evaluate.hpp"
#include "../../examples/evaluate_encoder/tokenizer.hpp"
#include "recipe/encoder_support.hpp"
#include "recipe/golden_models.hpp"
#include "recipe/model_support.hpp"
#include "support/catch.hpp"
#include "support/levels.hpp"

namespace blockpack {
namespace {

using namespace blockpack::test;
using example::SentenceEncoder;
using Ids = std::vector<index_t>;

TEST_CASE("the tokenizer takes the cut with the largest sum of scores", "[recipe]") {
  std::vector<example::UnigramTokenizer::Piece> pieces(6, {"?", 0});
  for (const auto& [text, score] : std::map<std::string, double>{{"\u2581a", -1}, {"\u2581", -3}, {"a", -2}, {"b", -2}})
    pieces.push_back({text, score});
  // In the order of the map: a 6, b 7, U+2581 8, U+2581 a 9.
  pieces.push_back({"ab", -3});      // 10
  pieces.push_back({"ba", -4});      // 11
  pieces.push_back({"b", -2.5});     // 12: of equal pieces the last one is meant
  pieces.push_back({"\u00e9", -1});  // 13: two bytes, one code point
  const example::UnigramTokenizer tokenizer(pieces);
  CHECK(tokenizer.encode("").empty());
  CHECK(tokenizer.encode("a") == Ids{9});        // -1 against -3 - 2
  CHECK(tokenizer.encode("ab") == Ids{9, 12});   // -3.5 against -3 - 3
  CHECK(tokenizer.encode("aba") == Ids{9, 11});  // -5 against -1 - 2.5 - 2 and -3 - 3 - 2
  CHECK(tokenizer.encode("a a") == Ids{9, 9});   // a space is the mark of the next word
  CHECK(tokenizer.encode("a\u00e9") == Ids{9, 13});
  CHECK(tokenizer.encode("axyb") == Ids{9, 0, 12});  // a run of unknown code points is one id
  CHECK(tokenizer.encode("x?") == Ids{8, 0});        // the text of a reserved piece is unknown
  CHECK(tokenizer.encode("a\u4e00") == Ids{9, 0});   // three bytes, one unknown code point
}

TEST_CASE("a sum of scores of zero counts as no cut yet, as the tokenizer's source has it", "[recipe]") {
  std::vector<example::UnigramTokenizer::Piece> pieces(6, {"?", 0});
  for (const auto& [text, score] : {std::pair("\u2581", 0.0), {"\u2581a", 0.0}, {"a", -5.0}})
    pieces.push_back({text, score});
  CHECK(example::UnigramTokenizer(pieces).encode("a") == Ids{6, 8});  // -5 replaces the better sum of 0
}

TEST_CASE("a vocabulary that is none is refused with its line", "[recipe]") {
  const TemporaryFolder folder;
  const auto message = [&](const std::string& content) {
    write_content(folder / "vocab.tsv", content);
    return message_of([&] { example::UnigramTokenizer::load(folder / "vocab.tsv"); });
  };
  const std::string good = "a\t0\nb\t0\nc\t0\nd\t0\ne\t0\nf\t0\n";
  CHECK(message(good + "g\t-1.5\n").empty());
  CHECK(message(good).find("6 pieces") != std::string::npos);
  CHECK(message("").find("0 pieces") != std::string::npos);
  for (const char* line : {"\n", "g\n", "g\t\n", "\t1\n", "g\t1x\n", "g\t1\t\n"})
    CHECK(message(good + line).find("line 7: no piece and score") != std::string::npos);
  CHECK(message_of([&] { example::UnigramTokenizer::load(folder / "none"); }).find("no vocabulary") !=
        std::string::npos);
}

const example::EncoderConfig kSmall{2, 2, 5, 1e-6f};

/// The equations of sentence_encoder.hpp for one sentence, in double and one sum after another.
class PlainEncoder {
 public:
  using Rows = std::vector<std::vector<double>>;

  explicit PlainEncoder(const CompressedModel& model) {
    for (const std::string& name : model.names()) {
      const MatrixShape shape = matrix_shape(model.shape(name));
      const std::vector<float> values = matrix_values(model, name);
      for (index_t i = 0; i < shape.rows; ++i)
        tensors_[name].emplace_back(values.begin() + i * shape.cols, values.begin() + (i + 1) * shape.cols);
    }
  }

  std::vector<double> embed(const Ids& ids) const {
    Rows x;
    for (std::size_t p = 0; p < std::min<std::size_t>(ids.size(), 5); ++p) {
      x.push_back(tensors_.at("embeddings.weight")[static_cast<std::size_t>(ids[p])]);
      for (std::size_t i = 0; i < 6; ++i) {
        const double angle = static_cast<double>(p) * tensors_.at("timing.inv_timescales")[0][i % 3];
        x[p][i] = 2 * x[p][i] + (i < 3 ? std::sin(angle) : std::cos(angle));
      }
    }
    for (const std::string layer : {"layers.0.", "layers.1."}) {
      const Rows mixed = attention(linear(layer + "attn.qkv", norm(layer + "ln_attn", x)));
      if (layer == "layers.0.") x = linear(layer + "residual", x);
      x = sum(x, linear(layer + "attn.out", mixed));
      Rows inner = linear(layer + "ffn.fc1", norm(layer + "ln_ffn", x));
      for (auto& row : inner)
        for (double& v : row) v = std::max(v, 0.0);
      x = sum(x, linear(layer + "ffn.fc2", inner));
    }
    std::vector<double> mean(x[0].size(), 0.0);
    for (const auto& row : x)
      for (std::size_t i = 0; i < row.size(); ++i) mean[i] += row[i] / static_cast<double>(x.size());
    std::vector<double> y = linear("pool", {mean})[0];
    double squares = 0;
    for (double& v : y) {
      v = std::tanh(v);
      squares += v * v;
    }
    for (double& v : y) v /= std::sqrt(squares);
    return y;
  }

 private:
  static Rows sum(Rows a, const Rows& b) {
    for (std::size_t t = 0; t < a.size(); ++t)
      for (std::size_t i = 0; i < a[t].size(); ++i) a[t][i] += b[t][i];
    return a;
  }
  Rows linear(const std::string& name, const Rows& x) const {
    const Rows& w = tensors_.at(name + ".weight");
    Rows y(x.size(), tensors_.at(name + ".bias")[0]);
    for (std::size_t t = 0; t < x.size(); ++t)
      for (std::size_t o = 0; o < w.size(); ++o)
        for (std::size_t i = 0; i < x[t].size(); ++i) y[t][o] += x[t][i] * w[o][i];
    return y;
  }
  Rows norm(const std::string& name, Rows x) const {
    for (auto& row : x) {
      double mean = 0, variance = 0;
      for (const double v : row) mean += v / static_cast<double>(row.size());
      for (const double v : row) variance += (v - mean) * (v - mean) / static_cast<double>(row.size());
      for (std::size_t i = 0; i < row.size(); ++i)
        row[i] = (row[i] - mean) / std::sqrt(variance + 1e-6) * tensors_.at(name + ".weight")[0][i] +
                 tensors_.at(name + ".bias")[0][i];
    }
    return x;
  }
  static Rows attention(const Rows& qkv) {
    const std::size_t width = qkv[0].size() / 3, dim = width / 2;
    Rows mixed(qkv.size(), std::vector<double>(width, 0.0));
    for (std::size_t head = 0; head < 2; ++head)
      for (std::size_t t = 0; t < qkv.size(); ++t) {
        std::vector<double> weight(qkv.size(), 0.0);
        double total = 0;
        for (std::size_t s = 0; s < qkv.size(); ++s) {
          for (std::size_t i = head * dim; i < (head + 1) * dim; ++i) weight[s] += qkv[t][i] * qkv[s][width + i];
          total += weight[s] = std::exp(weight[s] / std::sqrt(static_cast<double>(dim)));
        }
        for (std::size_t s = 0; s < qkv.size(); ++s)
          for (std::size_t i = head * dim; i < (head + 1) * dim; ++i)
            mixed[t][i] += weight[s] / total * qkv[s][2 * width + i];
      }
    return mixed;
  }

  std::map<std::string, Rows> tensors_;
};

ApplyOptions exact() {
  ApplyOptions how;
  how.activations = Activations::f32;
  return how;
}

TEST_CASE("the sentence encoder computes its equations, each sentence by itself", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "model", small_encoder());
  const CompressedModel model = CompressedModel::open(folder / "model");
  const SentenceEncoder encoder(model, kSmall);
  const PlainEncoder plain(model);
  const std::vector<Ids> sentences = {{3, 1, 4}, {19}, {1, 5, 9, 2, 6, 5, 3, 5}, {8, 9, 7, 9, 3}};  // the third is cut
  std::vector<std::string> seen;
  const example::Matrix got =
      example::embed_all(encoder, sentences, exact(), [&](const std::string& name, MatrixView<const float> x) {
        CHECK(x.rows() == (name == "pool.weight" ? 4 : 3 + 1 + 5 + 5));
        seen.push_back(name);
      });
  REQUIRE(got.view().shape() == MatrixShape{4, 7});
  for (index_t i = 0; i < 4; ++i) {
    const std::vector<double> expected = plain.embed(sentences[static_cast<std::size_t>(i)]);
    for (index_t j = 0; j < 7; ++j)
      CHECK(got.view()(i, j) == Approx(expected[static_cast<std::size_t>(j)]).margin(2e-6));
  }
  CHECK(seen.size() == encoder.matrices().size() - 1);  // all but the embedding
  const std::vector<Ids> empty = {{1}, {}};
  CHECK_THROWS_AS(example::embed_all(encoder, empty), ValueError);
  CHECK_THROWS_AS(encoder.embed(sentences, example::Matrix(4, 8).view()), ShapeError);
}

TEST_CASE("a sentence encoder of another architecture is refused by name", "[recipe]") {
  const TemporaryFolder folder;
  const auto message = [&](const std::string& name, const std::vector<index_t>& shape) {
    std::vector<Filled> tensors = small_encoder();
    std::erase_if(tensors, [&](const Filled& t) { return t.spec.name == name; });
    if (!shape.empty()) tensors.push_back(filled<float>(name, Dtype::f32, shape, 1));
    write_model(folder / "model", tensors);
    return message_of([&] { SentenceEncoder(CompressedModel::open(folder / "model"), kSmall); });
  };
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  CHECK(has(message("pool.bias", {}), "no tensor pool.bias"));
  CHECK(has(message("embeddings.weight", {20}), "embeddings.weight is no matrix"));
  CHECK(has(message("embeddings.weight", {20, 7}), "odd"));
  CHECK(has(message("layers.0.attn.qkv.weight", {18, 5}), "layers.0.attn.qkv.weight is no matrix of 6 columns"));
  CHECK(has(message("layers.0.residual.weight", {}), "no tensor layers.0.residual.weight"));
  CHECK(has(message("layers.0.ln_ffn.bias", {9}), "layers.0.ln_ffn.bias is no vector of 8 values"));
  write_model(folder / "model", small_encoder());
  const CompressedModel model = CompressedModel::open(folder / "model");
  example::EncoderConfig config = kSmall;
  config.heads = 4;
  CHECK(has(message_of([&] { SentenceEncoder(model, config); }), "4 heads"));
  config = kSmall;
  config.layers = 3;
  CHECK(has(message_of([&] { SentenceEncoder(model, config); }), "no tensor layers.2.ln_attn.weight"));
  SentenceEncoder encoder(model, kSmall);
  CHECK_THROWS_AS(encoder.replace("pool.weight", model.linear("embeddings.weight")), ShapeError);
  write_content(folder / "config.json", R"({"kind": "decoder"})");
  CHECK(has(message_of([&] { example::EncoderConfig::load(folder / "config.json"); }), "another architecture"));
}

TEST_CASE("distance and recall of embeddings are those worked out by hand", "[recipe]") {
  // Cosines of the first row to the others: 0.8, 0.6, 0, -1.
  const std::vector<float> a = {1, 0, 0.8f, 0.6f, 0.6f, 0.8f, 0, 1, -1, 0},
                           b = {0, 1, 0.8f, 0.6f, 0.6f, 0.8f, 0, 1, -1, 0};
  const MatrixView<const float> before(a.data(), 5, 2), after(b.data(), 5, 2);
  CHECK(example::mean_cosine_distance(before, before) == 0);
  CHECK(example::mean_cosine_distance(before, after) == Approx(0.2));  // one of five turned by a right angle
  const Ids expected = example::nearest_rows(before, 2), got = example::nearest_rows(after, 2);
  CHECK(expected == Ids{1, 2, 0, 2, 1, 3, 1, 2, 2, 3});
  CHECK(got == Ids{2, 3, 0, 2, 0, 1, 0, 2, 0, 3});  // row 2: 0.96 of row 1, then 0.8 of rows 0 and 3: the first
  CHECK(example::recall(expected, expected, 2) == 1);
  CHECK(example::recall(expected, got, 2) == Approx(0.6));
  CHECK_THROWS_AS(example::nearest_rows(before, 5), ValueError);
}

TEST_CASE("a compressed sentence encoder is as close as its format", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "model", small_encoder());
  const SentenceEncoder encoder(CompressedModel::open(folder / "model"), kSmall);
  std::vector<Ids> sentences;
  for (index_t i = 0; i < 20; ++i) sentences.push_back({i, (i * 7 + 3) % 20, (i * 3 + 1) % 20});
  const example::Matrix reference = example::embed_all(encoder, sentences, exact());
  const example::EncoderCalibration calibration = example::calibrate(encoder, sentences, exact());
  CHECK(calibration.size() == encoder.matrices().size() - 1);
  CHECK(calibration.at("pool.weight").rows() == 20);
  const auto distance = [&](const char* scheme, example::Scope scope = example::Scope::all) {
    const SentenceEncoder stored = example::compressed(encoder, scope, scheme, calibration);
    CHECK((stored.matrices().at(SentenceEncoder::kEmbedding).scheme() == "f32") ==
          (scope == example::Scope::linears || std::string(scheme) == "f32"));
    return example::mean_cosine_distance(reference.view(), example::embed_all(stored, sentences, exact()).view());
  };
  CHECK(distance("f32") == 0);
  CHECK(distance("bf16") < 1e-4);
  CHECK(distance("int4-g32") < 0.1);
  CHECK(distance("int4-g32", example::Scope::linears) < distance("int4-g32"));
  CHECK(distance("int4-g32+gptq") < distance("int4-g32"));
  CHECK(distance("int4-g32-search+importance") < 0.1);
}

/// Rows of the golden array within `tolerance` of the first rows of `got`.
void check_rows(const GoldenArray<float>& expected, MatrixView<const float> got, float tolerance) {
  REQUIRE(got.cols() == expected.cols);
  REQUIRE(got.rows() >= expected.rows);
  float worst = 0;
  for (index_t i = 0; i < expected.rows; ++i)
    for (index_t j = 0; j < expected.cols; ++j) worst = std::max(worst, std::abs(got(i, j) - expected.view()(i, j)));
  CHECK(worst <= tolerance);
}

TEST_CASE("the fetched sentence encoder gives the golden ids, activations and embeddings", "[recipe][golden]") {
  const char* folder = std::getenv("BLOCKPACK_ENCODER_MODEL");
  if (folder == nullptr) {
    WARN("not run: set BLOCKPACK_ENCODER_MODEL to a folder that examples/evaluate_encoder/fetch_model.sh made");
    return;
  }
  const std::filesystem::path data = folder;
  const auto tokenizer = example::UnigramTokenizer::load(data / "vocab.tsv");
  const SentenceEncoder encoder(CompressedModel::open(data / "model.safetensors"),
                                example::EncoderConfig::load(data / "config.json"));
  const std::string golden = golden_folder("models");
  std::size_t cases = 0;
  for (const nlohmann::json& entry : model_cases("use_lite")) {
    const std::string name = entry.at("case");
    CAPTURE(name);
    ++cases;
    std::vector<Ids> sentences;
    std::istringstream text(read_file(golden + entry.at("inputs").at("text").get<std::string>()));
    for (std::string line; std::getline(text, line);) sentences.push_back(tokenizer.encode(line));
    const auto file = [&](const nlohmann::json& which) { return golden + which.get<std::string>(); };
    if (name.starts_with("use_lite_embed")) {
      const auto ids = read_npy<std::int32_t>(file(entry.at("inputs").at("ids")));
      const auto lengths = read_npy<std::int32_t>(file(entry.at("inputs").at("lengths"))).values;
      REQUIRE(sentences.size() == lengths.size());
      for (std::size_t i = 0; i < lengths.size(); ++i) {
        const auto row = ids.view().row(static_cast<index_t>(i)).first(static_cast<std::size_t>(lengths[i]));
        CHECK(sentences[i] == Ids(row.begin(), row.end()));
      }
      const auto expected = read_npy<float>(file(entry.at("outputs").at("embedding")));
      for (const Isa isa : levels_here()) {
        CAPTURE(isa);
        ApplyOptions how = exact();
        how.execution.isa = isa;
        check_rows(expected, example::embed_all(encoder, sentences, how).view(), max_abs_tolerance(entry));
      }
    } else {
      std::size_t checked = 0;
      encoder.embed(sentences, example::Matrix(static_cast<index_t>(sentences.size()), encoder.width()).view(), exact(),
                    [&](const std::string& matrix, MatrixView<const float> x) {
                      const std::string linear = matrix.substr(0, matrix.rfind('.'));
                      if (!entry.at("outputs").contains(linear)) return;
                      CAPTURE(linear);
                      check_rows(read_npy<float>(file(entry.at("outputs").at(linear))), x, max_abs_tolerance(entry));
                      ++checked;
                    });
      CHECK(checked == entry.at("outputs").size());
    }
  }
  CHECK(golden_complete(cases, 2));
}

}  // namespace
}  // namespace blockpack
