// SPDX-License-Identifier: Apache-2.0
// The decoder of the examples behind the suite's interface, any scheme of the registry in its linear layers.
#include "model.hpp"

#include "../../examples/decoder/decoder.hpp"
#include "blockpack/recipe/registry.hpp"
#include "stopwatch.hpp"

namespace bench {
namespace {

using blockpack::AnyLinear;

Arithmetic arithmetic_of(blockpack::Activations mode) {
  return mode == blockpack::Activations::int8   ? Arithmetic::int8
         : mode == blockpack::Activations::bf16 ? Arithmetic::bf16
                                                : Arithmetic::f32;
}

/// A linear layer that adds up the time spent in it.
struct Timed {
  AnyLinear op;
  double* seconds;

  index_t out_features() const { return op.out_features(); }
  index_t in_features() const { return op.in_features(); }
  std::vector<blockpack::Section> sections() const { return op.sections(); }
  std::size_t storage_bytes() const { return op.storage_bytes(); }
  void apply(blockpack::ActivationView x, blockpack::ResultView y, const blockpack::ApplyOptions& how) const {
    const Stopwatch watch(how.execution.threads);
    op.apply(x, y, how);
    *seconds += watch.seconds();
  }
  void decode_rows(std::span<const index_t> rows, blockpack::MatrixView<float> y) const { op.decode_rows(rows, y); }
};

class OwnModel final : public Model {
 public:
  OwnModel(const std::string& scheme, const ModelShape& shape)
      : codec_(blockpack::Registry::standard().codec(scheme)), seconds_(std::make_unique<double>(0.0)) {
    config_.vocab = shape.vocab;
    config_.hidden = shape.hidden;
    config_.layers = shape.layers;
    config_.heads = shape.heads;
    config_.kv_heads = shape.kv_heads;
    config_.head_dim = shape.head_dim;
    config_.intermediate = shape.intermediate;
    config_.max_positions = shape.positions;
    config_.norm_epsilon = shape.norm_epsilon;
    config_.rope_theta = shape.rope_theta;
  }

  void add(const Weights& w) override {
    matrices_.push_back(blockpack::encode_matrix(*codec_, {w.data, w.n, w.k}, {}, blockpack::PackPolicy::ahead()));
    weight_bytes_ += static_cast<double>(matrices_.back().storage_bytes());
  }
  void finish() override {
    first_ = matrices_[1];
    std::vector<AnyLinear> timed;
    for (AnyLinear& op : matrices_) timed.emplace_back(Timed{std::move(op), seconds_.get()});
    matrices_.clear();
    const std::vector<float> ones(static_cast<std::size_t>(config_.hidden), 1.0f);
    const std::vector<std::vector<float>> layers(static_cast<std::size_t>(config_.layers), ones);
    decoder_ =
        std::make_unique<example::Decoder>(config_, std::move(timed), example::DecoderNorms{layers, layers, ones});
    cache_ = std::make_unique<example::AttentionCache>(decoder_->make_cache());
  }

  void clear() override {
    cache_->used = 0;
    *seconds_ = 0;
  }
  void extend(std::span<const index_t> tokens, float* logits, int threads) override {
    how_.execution.threads = threads;
    decoder_->extend(tokens, *cache_, {logits, 1, config_.vocab}, how_);
  }
  void extend_exactly(std::span<const index_t> tokens, float* logits) override {
    how_.activations = blockpack::Activations::f32;
    extend(tokens, logits, 0);
    how_.activations = blockpack::Activations::automatic;
  }

  double weight_bytes() const override { return weight_bytes_; }
  Arithmetic arithmetic(index_t tokens) const override { return arithmetic_of(first_.activation_mode(tokens)); }
  double linear_seconds() const override { return *seconds_; }

 private:
  std::shared_ptr<const blockpack::Codec> codec_;
  example::DecoderConfig config_;
  std::vector<AnyLinear> matrices_;  // until finish()
  AnyLinear first_;                  // a layer, asked for its mode
  double weight_bytes_ = 0;
  std::unique_ptr<double> seconds_;
  std::unique_ptr<example::Decoder> decoder_;
  std::unique_ptr<example::AttentionCache> cache_;
  blockpack::ApplyOptions how_;
};

}  // namespace

void add_own_model(std::vector<ModelMaker>& makers) {
  makers.push_back({"blockpack", [](const std::string&) { return true; },
                    [](const std::string& scheme, const ModelShape& shape) -> std::unique_ptr<Model> {
                      return std::make_unique<OwnModel>(scheme, shape);
                    }});
}

}  // namespace bench
