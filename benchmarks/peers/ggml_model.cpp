// SPDX-License-Identifier: Apache-2.0
// A whole decoder in ggml: one graph for a prompt and one for a token, with the cache in fp16 and its flash attention,
// as programs on top of it build them. Weights lie in the buffer type that is fastest for prompts in one copy, and in
// the one that is fastest for single tokens in another; a short timing on one thread finds them.
#include <ggml-alloc.h>

#include <cmath>
#include <map>
#include <memory>
#include <numeric>

#include "model.hpp"
#include "peers/ggml_cpu.hpp"
#include "stopwatch.hpp"

namespace bench {
namespace {

using namespace bench::ggml;

struct Free {
  void operator()(ggml_context* p) const { ggml_free(p); }
  void operator()(ggml_backend_buffer* p) const { ggml_backend_buffer_free(p); }
  void operator()(ggml_gallocr* p) const { ggml_gallocr_free(p); }
};
using Context = std::unique_ptr<ggml_context, Free>;
using Buffer = std::unique_ptr<ggml_backend_buffer, Free>;

Context tensors_only(std::size_t count, bool graph = false) {
  return Context(ggml_init(
      {count * ggml_tensor_overhead() + (graph ? ggml_graph_overhead_custom(count, false) : 0), nullptr, true}));
}

Buffer allocate(const Context& context, ggml_backend_buffer_type_t where) {
  Buffer buffer(ggml_backend_alloc_ctx_tensors_from_buft(context.get(), where));
  if (buffer == nullptr) throw std::bad_alloc();
  ask_for_large_pages(ggml_backend_buffer_get_base(buffer.get()), ggml_backend_buffer_get_size(buffer.get()));
  return buffer;
}

/// The decoder with its weights in one buffer type.
class Net {
 public:
  /// Null when weights of the type cannot lie there.
  static std::unique_ptr<Net> make(const ModelShape& shape, const std::vector<Stored>& matrices,
                                   ggml_backend_buffer_type_t where) {
    std::unique_ptr<Net> net(new Net(shape, matrices, where));
    for (std::size_t i = 0; i < matrices.size(); ++i) {
      const Context trial = tensors_only(2);
      ggml_tensor* x = ggml_new_tensor_2d(trial.get(), GGML_TYPE_F32, matrices[i].k, 1);
      if (!ggml_backend_dev_supports_op(cpu().device, ggml_mul_mat(trial.get(), net->weights_[i], x))) return nullptr;
      ggml_backend_tensor_set(net->weights_[i], matrices[i].bytes.data(), 0, matrices[i].bytes.size_bytes());
    }
    ggml_backend_tensor_set(net->lookup_, matrices[0].bytes.data(), 0, matrices[0].bytes.size_bytes());
    return net;
  }

  void clear() { used_ = 0; }

  void extend(std::span<const index_t> tokens, float* logits, int threads) {
    const auto count = static_cast<index_t>(tokens.size());
    Graph& graph = graph_for(count);
    // Before each run: ggml reuses the memory of inputs that nothing reads any more.
    const auto fill = [&] {
      for (index_t t = 0; t < count; ++t) {
        static_cast<std::int32_t*>(graph.tokens->data)[t] =
            static_cast<std::int32_t>(tokens[static_cast<std::size_t>(t)]);
        static_cast<std::int32_t*>(graph.positions->data)[t] = static_cast<std::int32_t>(used_ + t);
        static_cast<std::int64_t*>(graph.rows->data)[t] = used_ + t;
        auto* mask = static_cast<ggml_fp16_t*>(graph.mask->data) + t * graph.seen;
        const ggml_fp16_t hidden = ggml_fp32_to_fp16(-INFINITY);
        for (index_t s = 0; s < graph.seen; ++s) mask[s] = s <= used_ + t ? ggml_fp16_t{0} : hidden;
      }
    };
    const auto compute = [&](int team) {
      fill();
      cpu().set_threads(cpu().backend, team);
      if (ggml_backend_graph_compute(cpu().backend, graph.graph) != GGML_STATUS_SUCCESS)
        throw std::runtime_error("ggml failed to compute the model");
    };
    if (count > 1 && path() == "AMX") load_tiles(threads, [&] { compute(1); });
    compute(threads);
    ggml_backend_tensor_get(graph.logits, logits, 0, static_cast<std::size_t>(shape_.vocab) * sizeof(float));
    used_ += count;
  }

  std::string path() const { return ggml_backend_buft_name(where_); }

 private:
  /// The steps for so many tokens after what is cached.
  struct Graph {
    Context context;
    std::unique_ptr<ggml_gallocr, Free> memory;
    ggml_cgraph* graph = nullptr;
    ggml_tensor *tokens = nullptr, *positions = nullptr, *rows = nullptr, *mask = nullptr, *logits = nullptr;
    index_t seen = 0;  ///< positions of the cache that attention looks at
  };

  Net(const ModelShape& shape, const std::vector<Stored>& matrices, ggml_backend_buffer_type_t where)
      : shape_(shape), where_(where) {
    matrices_ = tensors_only(matrices.size());
    for (const Stored& m : matrices) weights_.push_back(ggml_new_tensor_2d(matrices_.get(), m.type, m.k, m.n));
    matrix_memory_ = allocate(matrices_, where);

    // The embedding is looked up in plain memory, whatever the head's copy of it lies in.
    others_ = tensors_only(static_cast<std::size_t>(2 + 2 * shape.layers));
    lookup_ = ggml_new_tensor_2d(others_.get(), matrices[0].type, matrices[0].k, matrices[0].n);
    ones_ = ggml_new_tensor_1d(others_.get(), GGML_TYPE_F32, shape.hidden);
    for (index_t i = 0; i < 2 * shape.layers; ++i)
      caches_.push_back(
          ggml_new_tensor_2d(others_.get(), GGML_TYPE_F16, shape.kv_heads * shape.head_dim, shape.positions));
    other_memory_ = allocate(others_, ggml_backend_dev_buffer_type(cpu().device));
    ggml_backend_buffer_clear(other_memory_.get(), 0);
    const std::vector<float> ones(static_cast<std::size_t>(shape.hidden), 1.0f);
    ggml_backend_tensor_set(ones_, ones.data(), 0, ones.size() * sizeof(float));
  }

  Graph& graph_for(index_t count) {
    Graph& graph = graphs_[count];
    if (graph.graph == nullptr) graph = build(count);
    return graph;
  }

  Graph build(index_t count) const {
    constexpr std::size_t kNodes = 2048;
    Graph g;
    g.context = tensors_only(kNodes, true);
    ggml_context* c = g.context.get();
    g.graph = ggml_new_graph_custom(c, kNodes, false);
    g.seen = count > 1 ? count : std::min<index_t>(shape_.positions, 128);  // prompts start an empty cache here
    const auto input = [&](ggml_tensor* t) {
      ggml_set_input(t);
      return t;
    };
    g.tokens = input(ggml_new_tensor_1d(c, GGML_TYPE_I32, count));
    g.positions = input(ggml_new_tensor_1d(c, GGML_TYPE_I32, count));
    g.rows = input(ggml_new_tensor_1d(c, GGML_TYPE_I64, count));
    g.mask = input(ggml_new_tensor_2d(c, GGML_TYPE_F16, g.seen, count));

    const index_t dim = shape_.head_dim, shared = shape_.kv_heads * dim;
    const auto norm = [&](ggml_tensor* x) { return ggml_mul(c, ggml_rms_norm(c, x, shape_.norm_epsilon), ones_); };
    const auto rotated = [&](ggml_tensor* x, index_t heads) {
      return ggml_rope_ext(c, ggml_reshape_3d(c, x, dim, heads, count), g.positions, nullptr, static_cast<int>(dim),
                           GGML_ROPE_TYPE_NEOX, 0, shape_.rope_theta, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f);
    };
    const auto cached = [&](ggml_tensor* cache, ggml_tensor* x) {
      ggml_build_forward_expand(g.graph, ggml_set_rows(c, cache, ggml_reshape_2d(c, x, shared, count), g.rows));
      return ggml_view_3d(c, cache, dim, g.seen, shape_.kv_heads, cache->nb[1], ggml_row_size(cache->type, dim), 0);
    };
    ggml_tensor* x = ggml_get_rows(c, lookup_, g.tokens);
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      const auto linear = [&](index_t which, ggml_tensor* in) {
        return ggml_mul_mat(c, weights_[static_cast<std::size_t>(1 + 7 * layer + which)], in);
      };
      ggml_tensor* h = norm(x);
      ggml_tensor* q = rotated(linear(0, h), shape_.heads);
      ggml_tensor* k = rotated(linear(1, h), shape_.kv_heads);
      ggml_tensor* v = linear(2, h);
      k = cached(caches_[static_cast<std::size_t>(2 * layer)], k);
      v = cached(caches_[static_cast<std::size_t>(2 * layer + 1)], v);
      ggml_tensor* mixed = ggml_flash_attn_ext(c, ggml_permute(c, q, 0, 2, 1, 3), k, v, g.mask,
                                               1.0f / std::sqrt(static_cast<float>(dim)), 0.0f, 0.0f);
      x = ggml_add(c, x, linear(3, ggml_reshape_2d(c, mixed, shape_.heads * dim, count)));
      h = norm(x);
      x = ggml_add(c, x, linear(6, ggml_swiglu_split(c, linear(4, h), linear(5, h))));
    }
    ggml_tensor* last = ggml_view_2d(c, x, shape_.hidden, 1, x->nb[1], static_cast<std::size_t>(count - 1) * x->nb[1]);
    g.logits = ggml_mul_mat(c, weights_[0], norm(last));
    ggml_set_output(g.logits);
    ggml_build_forward_expand(g.graph, g.logits);
    g.memory.reset(ggml_gallocr_new(ggml_backend_dev_buffer_type(cpu().device)));
    if (!ggml_gallocr_alloc_graph(g.memory.get(), g.graph)) throw std::bad_alloc();
    return g;
  }

  ModelShape shape_;
  ggml_backend_buffer_type_t where_;
  Context matrices_, others_;
  Buffer matrix_memory_, other_memory_;
  std::vector<ggml_tensor*> weights_, caches_;  // as ModelShape::matrices(); keys and values of each layer
  ggml_tensor *lookup_ = nullptr, *ones_ = nullptr;
  std::map<index_t, Graph> graphs_;
  index_t used_ = 0;
};

/// Least time of three calls on one thread.
double quickest(Net& net, index_t tokens, const ModelShape& shape) {
  const PinThreads pin(1);
  const std::vector<index_t> some(static_cast<std::size_t>(tokens), 1);
  std::vector<float> logits(static_cast<std::size_t>(shape.vocab));
  double least = 1e9;
  for (int i = 0; i < 3; ++i) {
    net.clear();
    const Stopwatch watch(1);
    net.extend(some, logits.data(), 1);
    least = std::min(least, watch.seconds());
  }
  return least;
}

class GgmlModel final : public Model {
 public:
  GgmlModel(std::string scheme, const ModelShape& shape) : scheme_(std::move(scheme)), shape_(shape) {}

  void add(const Weights& w) override {
    stored_.emplace_back(scheme_, w);
    weight_bytes_ += static_cast<double>(stored_.back().bytes.size_bytes());
  }
  void finish() override {
    double least_prompt = 1e9, least_token = 1e9;
    for (const ggml_backend_buffer_type_t where : cpu().buffer_types) {
      const std::shared_ptr<Net> net = Net::make(shape_, stored_, where);
      if (net == nullptr) continue;
      const double prompt = quickest(*net, 64, shape_), token = quickest(*net, 1, shape_);
      if (prompt < least_prompt) {
        least_prompt = prompt;
        for_prompts_ = net;
      }
      if (token < least_token) {
        least_token = token;
        for_tokens_ = net;
      }
    }
    if (for_prompts_ == nullptr) throw std::runtime_error("no buffer type of ggml takes the weights");
    stored_.clear();
  }

  void clear() override {
    for_prompts_->clear();
    for_tokens_->clear();
  }
  void extend(std::span<const index_t> tokens, float* logits, int threads) override {
    net_for(static_cast<index_t>(tokens.size())).extend(tokens, logits, threads);
  }

  double weight_bytes() const override { return weight_bytes_; }
  Arithmetic arithmetic(index_t) const override { return Arithmetic::int8; }
  std::string path(index_t tokens) const override { return net_for(tokens).path(); }

 private:
  Net& net_for(index_t tokens) const { return tokens > 1 ? *for_prompts_ : *for_tokens_; }

  std::string scheme_;
  ModelShape shape_;
  std::vector<Stored> stored_;  // until finish()
  double weight_bytes_ = 0;
  std::shared_ptr<Net> for_prompts_, for_tokens_;
};

}  // namespace

void add_ggml_model(std::vector<ModelMaker>& makers) {
  makers.push_back({"ggml",
                    [](const std::string& scheme) {
                      const auto type = type_of(scheme);
                      return type && ggml_is_quantized(*type);
                    },
                    [](const std::string& scheme, const ModelShape& shape) -> std::unique_ptr<Model> {
                      return std::make_unique<GgmlModel>(scheme, shape);
                    }});
}

}  // namespace bench
