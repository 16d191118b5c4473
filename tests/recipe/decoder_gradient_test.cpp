// SPDX-License-Identifier: Apache-2.0
// The hand-written backward pass of the example decoder, against finite differences.
#include "../../examples/decoder/evaluate.hpp"
#include "../../examples/decoder/gradient.hpp"
#include "../../examples/decoder/icbs.hpp"
#include "blockpack/core/random.hpp"
#include "recipe/model_support.hpp"
#include "support/budget.hpp"
#include "support/catch.hpp"

namespace blockpack {
namespace {

using namespace blockpack::test;

example::ByteDecoder embedded() {
  return {CompressedModel::open(kEmbeddedModel / "model.safetensors"),
          example::DecoderConfig::load(kEmbeddedModel / "config.json")};
}

TEST_CASE("the decoder with gradients has the logits of the other one", "[recipe][long]") {
  const example::ByteDecoder decoder = embedded();
  const auto text = example::read_bytes(kEmbeddedModel / "test.txt");
  const std::span<const std::uint8_t> window(text.data(), 40);
  example::Matrix logits(40, 256);
  ApplyOptions how;
  how.activations = Activations::f32;
  decoder.logits(window, 40, logits.view(), how);
  const auto tape = example::GradientDecoder(decoder).forward(window);
  for (index_t i = 0; i < logits.values.size(); ++i)
    CHECK(tape.logits.values[i] == Approx(logits.values[i]).margin(1e-3));
}

TEST_CASE("gradients of every matrix agree with finite differences", "[recipe][long]") {
  example::GradientDecoder decoder(embedded());
  const auto text = example::read_bytes(kEmbeddedModel / "test.txt");
  constexpr std::size_t kWindow = 24;
  const std::span<const std::uint8_t> window(text.data(), kWindow), targets(text.data() + 1, kWindow);
  const example::Matrix reference = decoder.forward(std::span(text.data() + 300, kWindow)).logits;
  example::Matrix dlogits(kWindow, 256);
  for (const bool distil : {false, true}) {
    const auto loss = [&](const example::GradientDecoder::Tape& tape) {
      return distil ? example::kl_divergence(reference.view(), tape.logits.view(), dlogits.view())
                    : example::cross_entropy(tape.logits.view(), targets, dlogits.view());
    };
    const auto tape = decoder.forward(window);
    loss(tape);
    example::Gradients gradients = decoder.make_gradients();
    decoder.backward(window, tape, dlogits, gradients);
    const auto matrices = decoder.config().matrices();
    for (std::size_t m = 0; m < matrices.size(); m += budget<std::size_t>(1, 5)) {
      CAPTURE(matrices[m].name, distil);
      const example::Matrix& g = gradients[m];
      // A random direction at right angles would see nothing: the gradient's own signs, half of them turned at random.
      Random random(m + 1);
      const example::Matrix w = decoder.weights(m);
      example::Matrix moved(g.rows, g.cols), direction(g.rows, g.cols);
      double expected = 0;
      for (index_t i = 0; i < g.values.size(); ++i) {
        direction.values[i] = (g.values[i] > 0) == (random.uniform() < 0.75) ? 1.0f : -1.0f;
        expected += static_cast<double>(direction.values[i]) * static_cast<double>(g.values[i]);
      }
      const auto loss_at = [&](float step) {
        for (index_t i = 0; i < w.values.size(); ++i) moved.values[i] = w.values[i] + step * direction.values[i];
        decoder.set(m, moved.view());
        return loss(decoder.forward(window));
      };
      constexpr float kStep = 1e-4f;
      const double measured = (loss_at(kStep) - loss_at(-kStep)) / (2.0 * static_cast<double>(kStep));
      decoder.set(m, w.view());
      CHECK(measured == Approx(expected).epsilon(0.01));
    }
  }
}

TEST_CASE("iCBS on the decoder keeps 2:4 and gives weights back as they were", "[recipe][long]") {
  const example::ByteDecoder decoder = embedded();
  const auto text = example::CalibrationText::load(kEmbeddedModel / "calib.bin", decoder.config(), 0).first(6);
  std::vector<TensorCalibration> grams;
  for (const auto& m : example::calibrate(example::GradientDecoder(decoder), text)) grams.push_back(m.tensor());
  example::DecoderIcbs icbs;
  icbs.options.pattern = MaskPattern::nm(2, 4);
  icbs.options.block = 64;
  icbs.options.pruned = 32;
  icbs.options.passes = 1;
  icbs.options.steps = 28;
  icbs.batch = 4;
  icbs.held_out = 2;
  IcbsReport report;
  const std::vector<example::Matrix> pruned = icbs.pruned(decoder, text, grams, {}, &report);
  CHECK(report.losses.size() == 2);
  CHECK(report.changes[0] < 0);
  REQUIRE(pruned.size() == 28);
  for (std::size_t m = 0; m < pruned.size(); ++m) {
    const example::Matrix original = example::decoded(decoder.matrix(m + 1));
    CHECK(Mask::of_nonzeros(pruned[m].view()).is_nm(2, 4));
    index_t changed = 0;
    for (index_t i = 0; i < original.values.size(); ++i)
      changed += pruned[m].values[i] != 0 && pruned[m].values[i] != original.values[i] ? 1 : 0;
    CHECK(changed == 0);
  }
}

}  // namespace
}  // namespace blockpack
