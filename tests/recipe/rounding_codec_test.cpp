// SPDX-License-Identifier: Apache-2.0
// Schemes with algorithms that look at calibration, from the string to the compressed file.
#include "blockpack/recipe/rounding_codec.hpp"

#include <cmath>
#include <limits>

#include "blockpack/quant/ptq161.hpp"
#include "blockpack/recipe/compressed_model.hpp"
#include "recipe/model_support.hpp"
#include "support/catch.hpp"

namespace blockpack {
namespace {

using namespace blockpack::test;

TEST_CASE("algorithms of a scheme have one order and one start", "[recipe]") {
  const Registry& registry = Registry::standard();
  CHECK(registry.codec("int4-g32+polish+gptq")->scheme() == "int4-g32+gptq+polish");
  CHECK(registry.codec("int4-g32+gptq")->format() == "int4-g32");
  CHECK(registry.codec("mxfp4-mse+polish+importance")->scheme() == "mxfp4-mse+importance+polish");
  CHECK(registry.codec("int4-g32+nearest")->scheme() == "int4-g32");
  CHECK(registry.codec("int4-g32+nearest+polish")->scheme() == "int4-g32+polish");
  CHECK(registry.codec("int4-g32+polish+awq")->format() == "int4-g32+awq");
  CHECK(registry.codec("bfp12-b32+flexround")->needs().gram);
  CHECK_FALSE(registry.codec("int4-g32-search+importance")->needs().gram);
  CHECK(registry.codec("int4-g32-search+importance")->needs().importance);
  CHECK(message_of([&] { registry.codec("int4-g32+gptq+flexround"); }).find("cannot stand beside 'gptq'") !=
        std::string::npos);
  CHECK(message_of([&] { registry.codec("int4-g32+importance"); }).find("^importance") != std::string::npos);
  CHECK(message_of([&] { registry.codec("f32+gptq"); }).find("f32 does not take the algorithm gptq") !=
        std::string::npos);
}

TEST_CASE("GPTQ and polish through a codec lower the layer's error, at the same bytes", "[recipe][long]") {
  const GramMatrix gram = correlated(70, 1);
  std::vector<float> values(40 * 70);
  Random random(2);
  for (float& v : values) v = random.normal();
  const MatrixView<const float> w(values.data(), 40, 70);
  EncodeOptions options;
  options.gram = &gram;
  options.execution.threads = 1;  // the matrices are small: thousands of regions would do nothing but wait
  const auto loss = [&](const std::string& scheme) {
    const auto codec = Registry::standard().codec(scheme);
    const AnyLinear op = encode_matrix(*codec, w, options);
    if (scheme.find("awq") == std::string::npos) CHECK(op.scheme() == codec->format());
    std::vector<float> q(values.size());
    std::vector<index_t> rows(40);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<index_t>(i);
    op.decode_rows(rows, MatrixView<float>(q.data(), 40, 70));
    return layer_loss(w, MatrixView<const float>(q.data(), 40, 70), gram);
  };
  for (const std::string format : {"int3-g32", "mxfp4", "bfp12-b32"}) {
    CAPTURE(format);
    const double plain = loss(format), polished = loss(format + "+polish"), gptq = loss(format + "+gptq");
    CHECK(polished < 0.6 * plain);
    CHECK(gptq < 0.5 * plain);
    CHECK(loss(format + "+gptq+polish") <= gptq);
    if (format == "int3-g32") CHECK(loss(format + "+flexround") < plain);
    CHECK(loss(format + "+discquant+polish") < 0.6 * plain);
    const double awq = loss(format + "+awq");
    CHECK(awq <= 1.0001 * plain);
    CHECK(loss(format + "+awq+polish") < awq);
  }
  CHECK(message_of([&] {
          encode_matrix(*Registry::standard().codec("int4-g32+gptq"), w);
        }).find("EncodeOptions::gram") != std::string::npos);
}

TEST_CASE("a rotated format takes the algorithms of the format, with statistics rotated alike", "[recipe]") {
  const GramMatrix gram = correlated(70, 7);
  std::vector<float> values(24 * 70);
  Random random(8);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = random.normal() * (i % 37 == 0 ? 8.0f : 1.0f);
  const MatrixView<const float> w(values.data(), 24, 70);
  EncodeOptions options;
  options.gram = &gram;
  options.execution.threads = 1;
  const Registry& registry = Registry::standard();
  const auto loss = [&](const std::string& scheme) {
    CAPTURE(scheme);
    const auto codec = registry.codec(scheme);
    CHECK(codec->scheme() == scheme);
    const AnyLinear op = encode_matrix(*codec, w, options);
    if (scheme.find("awq") == std::string::npos) CHECK(op.scheme() == codec->format());
    const AnyLinear again = registry.codec(codec->format())->open(w.shape(), op.sections());
    std::vector<float> q(values.size()), opened(values.size());
    std::vector<index_t> rows(24);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<index_t>(i);
    op.decode_rows(rows, MatrixView<float>(q.data(), 24, 70));
    again.decode_rows(rows, MatrixView<float>(opened.data(), 24, 70));
    CHECK(q == opened);
    return layer_loss(w, MatrixView<const float>(q.data(), 24, 70), gram);
  };
  for (const std::string format : {"hadamard-b32-int3-g32", "hadamard-b16-nvfp4", "hadamard-b32-ternary-tensor"}) {
    CAPTURE(format);
    const double plain = loss(format), by_gptq = loss(format + "+gptq");
    CHECK(by_gptq < (format == "hadamard-b32-ternary-tensor" ? 0.8 : 0.6) * plain);
    CHECK(loss(format + "+polish") < 0.8 * plain);
  }
  CHECK(loss("hadamard-b32-int3-g32+awq") <= 1.0001 * loss("hadamard-b32-int3-g32"));
  CHECK(registry.codec("hadamard-b32-mxfp4-mse+importance")->needs().importance);
  CHECK(message_of([&] { registry.codec("hadamard-b32-f32+gptq"); }).find("f32 does not take the algorithm gptq") !=
        std::string::npos);
}

TEST_CASE("ptq1.61+refine fits to inputs of the layer, and is no worse than its start", "[recipe]") {
  std::vector<float> values(24 * 50), x(120 * 50);
  Random random(4);
  for (float& v : values) v = random.normal();
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = random.normal() * (i % 50 % 7 == 0 ? 4.0f : 1.0f) + (i % 50 > 0 ? 0.7f * x[i - 1] : 0.0f);
  const MatrixView<const float> w(values.data(), 24, 50), inputs(x.data(), 120, 50);
  std::vector<float> absmax(50, 0.0f);
  for (std::size_t i = 0; i < x.size(); ++i) absmax[i % 50] = std::max(absmax[i % 50], std::fabs(x[i]));
  EncodeOptions options;
  options.execution.threads = 1;
  options.inputs = inputs;
  const auto codec = Registry::standard().codec("ptq1.61+refine");
  CHECK(codec->needs().inputs);
  CHECK(codec->format() == "ptq1.61");
  const auto error = [&](const AnyLinear& op) {
    CHECK(op.scheme() == "ptq1.61");
    std::vector<float> want(120 * 24), got(120 * 24);
    dense_view(w).apply(inputs, MatrixView<float>(want.data(), 120, 24));
    op.apply(inputs, MatrixView<float>(got.data(), 120, 24));
    double sum = 0;
    for (std::size_t i = 0; i < got.size(); ++i) sum += std::pow(static_cast<double>(got[i] - want[i]), 2);
    return sum;
  };
  const double start = error(Ptq161Matrix::encode(w, absmax)), refined = error(encode_matrix(*codec, w, options));
  CAPTURE(start, refined);
  CHECK(refined < 0.8 * start);
  CHECK_NOTHROW(encode_matrix(*Registry::standard().codec("hadamard-b16-ptq1.61+refine"), w, options));
  CHECK(message_of([&] { encode_matrix(*codec, w); }).find("EncodeOptions::inputs") != std::string::npos);
  options.inputs = MatrixView<const float>(x.data(), 125, 48);
  CHECK_THROWS_AS(encode_matrix(*codec, w, options), ShapeError);
}

TEST_CASE("algorithms saturate what is not finite, refuse it, and never propagate it", "[recipe]") {
  const GramMatrix gram = correlated(70, 4);
  std::vector<float> values(5 * 70);
  Random random(6);
  for (float& v : values) v = random.normal();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> clamped = values;
  values[3] = std::numeric_limits<float>::quiet_NaN();
  clamped[3] = 0.0f;
  values[75] = -kInfinity;
  clamped[75] = -65504.0f;
  values[349] = kInfinity;
  clamped[349] = 65504.0f;
  EncodeOptions options;
  options.gram = &gram;
  options.execution.threads = 1;
  for (const std::string scheme : {"int4-g32+gptq", "mxfp4+polish", "int4-g32+flexround", "int4-g32+discquant",
                                   "nf4-b64+awq", "q4_0+gptq", "nvfp4+gptq", "q4_k+gptq", "ternary-g64+polish"}) {
    CAPTURE(scheme);
    const auto encoded = [&](const std::vector<float>& from, NonFinite policy) {
      options.non_finite = policy;
      const MatrixView<const float> w(from.data(), 5, 70);
      const AnyLinear op = encode_matrix(*fitted(Registry::standard().codec(scheme), w, options), w, options);
      std::vector<float> decoded(from.size());
      op.decode_rows(std::vector<index_t>{0, 1, 2, 3, 4}, MatrixView<float>(decoded.data(), 5, 70));
      return decoded;
    };
    const std::vector<float> decoded = encoded(values, NonFinite::saturate);
    CHECK(std::all_of(decoded.begin(), decoded.end(), [](float v) { return std::isfinite(v); }));
    if (scheme != "nvfp4+gptq") CHECK(decoded == encoded(clamped, NonFinite::saturate));  // its scale knows infinity
    CHECK(message_of<ValueError>([&] { encoded(values, NonFinite::reject); }).find("not finite") != std::string::npos);
    CHECK(message_of<UnsupportedError>([&] { encoded(values, NonFinite::propagate); }).find("refused") !=
          std::string::npos);
  }
}

TEST_CASE("a model is compressed with calibration, and the file does not know of it", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  CompressOptions options;
  options.calibration = [](std::string_view tensor) {
    TensorCalibration found;
    const std::string name(tensor);
    const auto& names = kSmallMatrices;
    if (std::find(names.begin(), names.end(), name) != names.end())
      found.gram = std::make_shared<const GramMatrix>(correlated(70, 3));
    return found;
  };
  const Recipe recipe = Recipe::parse(R"({"rules": [{"tensors": "a.weight", "scheme": "int3-g32+gptq"}]})");
  const CompressReport report = compress_model(folder / "in", recipe, folder / "out", options);
  CHECK(report.tensors.front().scheme == "int3-g32+gptq");
  CHECK(CompressedModel::open(folder / "out").find_compressed("a.weight")->scheme == "int3-g32");

  const Recipe scaled = Recipe::parse(R"({"rules": [{"tensors": "a.weight", "scheme": "int3-g32+awq+polish"}]})");
  compress_model(folder / "in", scaled, folder / "out", options);
  const CompressedModel awq = CompressedModel::open(folder / "out");
  CHECK(awq.find_compressed("a.weight")->scheme == "int3-g32+awq");
  CHECK(awq.compare(CompressedModel::open(folder / "in")).front().sqnr_db() > 5);

  const auto refused = [&](const Recipe& r, const CompressOptions& o) {
    return message_of([&] { compress_model(folder / "in", r, folder / "other", o); });
  };
  CHECK(refused(recipe, {}).find("tensor 'a.weight': int3-g32+gptq needs XtX of the inputs") != std::string::npos);
  const Recipe importance =
      Recipe::parse(R"({"rules": [{"tensors": "a.weight", "scheme": "int3-g32-search+importance"}]})");
  CHECK(refused(importance, options).find("needs the importance of the weights") != std::string::npos);
  options.calibration = [](std::string_view) {
    TensorCalibration found;
    found.gram = std::make_shared<const GramMatrix>(correlated(69, 3));
    return found;
  };
  CHECK(refused(recipe, options).find("has XtX of 69 inputs, 70 needed") != std::string::npos);
  CHECK(folder.count() == 2);
}

TEST_CASE("a Hessian that no damping makes definite is an error that names the tensor", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  std::vector<double> h(70 * 70, 1e6);  // off the diagonal, far more than any XᵀX has
  for (std::size_t i = 0; i < 70; ++i) h[i * 71] = 1.0;
  CompressOptions options;
  options.calibration = [gram = std::make_shared<const GramMatrix>(
                             GramMatrix::from_values(MatrixView<const double>(h.data(), 70, 70)))](std::string_view) {
    TensorCalibration calibration;
    calibration.gram = gram;
    return calibration;
  };
  const Recipe recipe = Recipe::parse(R"({"rules": [{"tensors": "a.weight", "scheme": "int3-g32+gptq"}]})");
  CHECK(message_of<ValueError>([&] {
          compress_model(folder / "in", recipe, folder / "out", options);
        }).find("tensor 'a.weight': gptq: the Hessian is singular with damping") == 0);
  CHECK(folder.count() == 1);
}

/// Every listed scheme that rounds weights one by one or in groups, without an algorithm.
std::vector<std::string> rounding_schemes() {
  std::vector<std::string> schemes;
  for (const auto& [scheme, what] : Registry::standard().listed()) {
    const bool sparse = scheme.find(':') != std::string::npos || scheme.find("bsr") == 0 ||
                        scheme.find("bitmask") == 0 || scheme.find("armor") == 0;
    if (!sparse && scheme.find('+') == std::string::npos && Registry::standard().codec(scheme)->reproducible())
      schemes.push_back(scheme);
  }
  return schemes;
}

TEST_CASE("importance of another length, negative or not finite is refused by every codec", "[recipe]") {
  std::vector<float> values(4 * 64), weights(4 * 64, 1.0f);
  Random random(3);
  for (float& v : values) v = random.normal();
  const MatrixView<const float> w(values.data(), 4, 64);
  std::vector<std::string> schemes = rounding_schemes();
  schemes.insert(schemes.end(), {"int3-g32-search+importance", "ptq1.61+importance", "hadamard-b32-mxfp4-mse",
                                 "hadamard-b32-ptq1.61"});
  for (const std::string& scheme : schemes) {
    CAPTURE(scheme);
    const auto codec = fitted(Registry::standard().codec(scheme), w);
    const auto encode = [&](index_t rows, index_t cols, float one) {
      weights[7] = one;
      EncodeOptions options;
      options.importance = MatrixView<const float>(weights.data(), rows, cols);
      encode_matrix(*codec, w, options);
    };
    CHECK_NOTHROW(encode(1, 64, 2.0f));
    CHECK_NOTHROW(encode(4, 64, 2.0f));
    CHECK_THROWS_AS(encode(1, 63, 2.0f), ShapeError);
    CHECK_THROWS_AS(encode(3, 64, 2.0f), ShapeError);
    CHECK_THROWS_AS(encode(1, 64, -0.5f), ValueError);
    CHECK_THROWS_AS(encode(1, 64, std::numeric_limits<float>::quiet_NaN()), ValueError);
    CHECK_THROWS_AS(encode(1, 64, std::numeric_limits<float>::infinity()), ValueError);
  }
}

TEST_CASE("weights that are not finite are refused by every codec, by their place", "[recipe]") {
  std::vector<float> values(4 * 64, 0.5f);
  const MatrixView<const float> w(values.data(), 4, 64);
  for (const std::string& scheme : rounding_schemes())
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      CAPTURE(scheme, bad);
      values[2 * 64 + 7] = 0.5f;
      const auto codec = fitted(Registry::standard().codec(scheme), w);
      values[2 * 64 + 7] = bad;
      CHECK(message_of<ValueError>([&] { encode_matrix(*codec, w, {}); }).find("row 2, column 7") != std::string::npos);
    }
}

TEST_CASE("a ragged last group is fitted to the weights it has", "[recipe]") {
  std::vector<float> values, decoded(2 * 70);
  for (const float sign : {1.0f, -1.0f}) {
    values.insert(values.end(), 64, 0.1f * sign);
    for (const float v : {2.0f, 2.0f, -0.5f, 2.0f, 2.0f, 2.0f}) values.push_back(v * sign);
  }
  const MatrixView<const float> w(values.data(), 2, 70);
  const std::vector<index_t> rows = {0, 1};
  for (const std::string& scheme : rounding_schemes()) {
    // Whose scale is the mean of a row or of the matrix.
    if (scheme.find("statsq") == 0 || scheme.find("ternary-tensor") == 0) continue;
    encode_matrix(*fitted(Registry::standard().codec(scheme), w), w)
        .decode_rows(rows, MatrixView<float>(decoded.data(), 2, 70));
    for (const std::size_t i : {64, 65, 69, 70 + 64, 70 + 69}) {
      CAPTURE(scheme, i, values[i], decoded[i]);
      CHECK(std::fabs(decoded[i] - values[i]) < 0.7f);
    }
  }
}

TEST_CASE("importance reaches the rows it belongs to, panel by panel", "[recipe]") {
  const TemporaryFolder folder;
  write_model(folder / "in", small_model());
  const CompressedModel plain = CompressedModel::open(folder / "in");
  std::vector<float> w(33 * 70), weights(33 * 70);
  plain.read_rows("a.weight", 0, MatrixView<float>(w.data(), 33, 70));
  Random random(5);
  for (float& v : weights) v = random.uniform();
  CompressOptions options;
  options.panel_budget = 1;  // one row at a time
  options.calibration = [&](std::string_view) {
    TensorCalibration found;
    found.importance = MatrixView<const float>(weights.data(), 33, 70);
    return found;
  };
  const Recipe recipe =
      Recipe::parse(R"({"rules": [{"tensors": "a.weight", "scheme": "int3-g32-search+importance"}]})");
  compress_model(folder / "in", recipe, folder / "out", options);
  EncodeOptions encode;
  encode.importance = MatrixView<const float>(weights.data(), 33, 70);
  const AnyLinear direct = encode_matrix(*Registry::standard().codec("int3-g32-search+importance"),
                                         MatrixView<const float>(w.data(), 33, 70), encode);
  const CompressedModel model = CompressedModel::open(folder / "out");
  const auto& stored = model.find_compressed("a.weight")->sections;
  const std::vector<Section> expected = direct.sections();
  REQUIRE(stored.size() == expected.size());
  for (std::size_t s = 0; s < stored.size(); ++s)
    CHECK(std::equal(stored[s].data.bytes.begin(), stored[s].data.bytes.end(), expected[s].data.bytes.begin(),
                     expected[s].data.bytes.end()));
}

}  // namespace
}  // namespace blockpack
