// SPDX-License-Identifier: Apache-2.0
// ggml: a graph of one matrix product, built once, on the CPU device. Weights lie in whichever of its buffer types
// multiplies them fastest (plain memory, CPU_REPACK, AMX ...): all that take the type are timed on one thread when the
// product is prepared, and the row's label names the best. ggml rounds x to its own blocks of int8, bf16 or fp16.
#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "peers/ggml_cpu.hpp"
#include "product.hpp"
#include "stopwatch.hpp"

namespace bench {
namespace {

using namespace bench::ggml;

class GgmlProduct final : public Product {
 public:
  /// Null when weights of the type cannot lie in such a buffer.
  static std::unique_ptr<GgmlProduct> make(const std::shared_ptr<const Stored>& stored, index_t m,
                                           ggml_backend_buffer_type_t where) {
    std::unique_ptr<GgmlProduct> product(new GgmlProduct(stored, m, where));
    if (!ggml_backend_dev_supports_op(cpu().device, product->y_)) return nullptr;
    ggml_backend_tensor_set(product->w_, stored->bytes.data(), 0, stored->bytes.size_bytes());
    return product;
  }
  ~GgmlProduct() override {
    ggml_backend_buffer_free(buffer_);
    ggml_free(context_);
  }

  void run(const Tokens& x, float* y, int threads) override {
    if (uses_tiles()) load_tiles(threads, [&] { compute(x, y, 1); });
    compute(x, y, threads);
  }
  std::unique_ptr<Product> copy() const override { return make(stored_, m_, where_); }
  double weight_bytes() const override { return static_cast<double>(stored_->bytes.size_bytes()); }
  void decode_row(index_t row, float* dst) const override {
    const std::byte* src = stored_->bytes.data() + row * static_cast<index_t>(ggml_row_size(stored_->type, stored_->k));
    if (stored_->type == GGML_TYPE_F32)
      std::memcpy(dst, src, static_cast<std::size_t>(stored_->k) * sizeof(float));
    else
      ggml_get_type_traits(stored_->type)->to_float(src, dst, stored_->k);
  }
  Arithmetic arithmetic() const override {
    return stored_->type == GGML_TYPE_F32     ? Arithmetic::f32
           : ggml_is_quantized(stored_->type) ? Arithmetic::int8
                                              : Arithmetic::bf16;
  }
  std::string path() const override { return ggml_backend_buft_name(where_); }

 private:
  GgmlProduct(std::shared_ptr<const Stored> stored, index_t m, ggml_backend_buffer_type_t where)
      : stored_(std::move(stored)), m_(m), where_(where) {
    constexpr std::size_t kNodes = 4;
    context_ = ggml_init({kNodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(kNodes, false), nullptr, true});
    w_ = ggml_new_tensor_2d(context_, stored_->type, stored_->k, stored_->n);
    x_ = ggml_new_tensor_2d(context_, GGML_TYPE_F32, stored_->k, m_);
    y_ = ggml_mul_mat(context_, w_, x_);
    graph_ = ggml_new_graph_custom(context_, kNodes, false);
    ggml_build_forward_expand(graph_, y_);

    buffer_ = ggml_backend_buft_alloc_buffer(where_, ggml_backend_buft_get_alloc_size(where_, w_));
    if (buffer_ == nullptr) throw std::bad_alloc();
    void* base = ggml_backend_buffer_get_base(buffer_);
    ask_for_large_pages(base, ggml_backend_buffer_get_size(buffer_));
    ggml_backend_tensor_alloc(buffer_, w_, base);
  }

  void compute(const Tokens& x, float* y, int threads) {
    x_->data = const_cast<float*>(x.f32);
    y_->data = y;
    cpu().set_threads(cpu().backend, threads);
    if (ggml_backend_graph_compute(cpu().backend, graph_) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("ggml failed to compute the product");
  }

  bool uses_tiles() const { return m_ > 1 && path() == "AMX" && stored_->type != GGML_TYPE_F16; }

  std::shared_ptr<const Stored> stored_;
  index_t m_;
  ggml_backend_buffer_type_t where_;
  ggml_context* context_ = nullptr;
  ggml_tensor *w_ = nullptr, *x_ = nullptr, *y_ = nullptr;
  ggml_cgraph* graph_ = nullptr;
  ggml_backend_buffer_t buffer_ = nullptr;
};

/// Least time of a call on one thread, of ten calls or as many as fit 0.1 s.
double quickest(Product& product, const Tokens& x, float* y) {
  const PinThreads pin(1);
  product.run(x, y, 1);
  const Stopwatch all(1);
  double least = 1e9;
  for (int i = 0; i < 10 && all.seconds() < 0.1; ++i) {
    const Stopwatch one(1);
    product.run(x, y, 1);
    least = std::min(least, one.seconds());
  }
  return least;
}

std::unique_ptr<Product> prepare(const Request& r) {
  const auto stored = std::make_shared<const Stored>(r.scheme, r.weights);
  LargeBuffer<float> x(r.m * r.weights.k), y(r.m * r.weights.n);
  std::fill(x.begin(), x.end(), 1.0f);
  std::unique_ptr<Product> best;
  double least = 1e9;
  for (const ggml_backend_buffer_type_t where : cpu().buffer_types)
    if (auto product = GgmlProduct::make(stored, r.m, where)) {
      const double seconds = quickest(*product, {r.m, x.data(), nullptr}, y.data());
      if (seconds < least) {
        least = seconds;
        best = std::move(product);
      }
    }
  if (best == nullptr) throw std::runtime_error("no buffer type of ggml takes the weights");
  return best;
}

}  // namespace

void add_ggml(Contestants& all) {
  all.implementations.push_back({"ggml",
                                 [](const std::string& scheme, index_t, index_t, index_t k, bool bf16_x) {
                                   const auto type = type_of(scheme);
                                   return !bf16_x && type && k % ggml_blck_size(*type) == 0;
                                 },
                                 prepare});
  all.encoders.push_back({"ggml",
                          [](const std::string& scheme) {
                            const Format* format = format_of(scheme);
                            const auto type = type_of(scheme);
                            return type && format->scheme == std::string(format->bytes) &&
                                   ggml_get_type_traits(*type)->from_float_ref != nullptr;
                          },
                          [](const std::string& scheme, const Weights& w, std::byte* dst) {
                            // What ggml_quantize_chunk does without importance, but for iq4_nl, where that searches.
                            const ggml_type type = type_of(scheme).value();
                            ggml_get_type_traits(type)->from_float_ref(w.data, dst, w.n * w.k);
                            return static_cast<index_t>(ggml_row_size(type, w.k)) * w.n;
                          }});
  all.peers.push_back({"ggml", std::string(ggml_version()) + " with " + cpu().features});
}

}  // namespace bench
