// SPDX-License-Identifier: Apache-2.0
// ggml: a graph of one matrix product, built once, on the CPU device. Weights lie in whichever of its buffer types
// multiplies them fastest (plain memory, CPU_REPACK, AMX ...): all that take the type are timed on one thread when the
// product is prepared, and the row's label names the best. ggml rounds x to its own blocks of int8, bf16 or fp16.
//
// ggml sets the AMX tile configuration once a thread and never again, and every other implementation of this program
// sets its own. The one ggml set is therefore kept and loaded again before each call, on the threads of the OpenMP
// team, which are ggml's threads too.
#include <ggml-backend.h>
#include <ggml.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>
#include <stdexcept>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "blockpack/recipe/registry.hpp"
#include "large_buffer.hpp"
#include "product.hpp"
#include "stopwatch.hpp"

namespace bench {
namespace {

struct Format {
  const char* scheme;  ///< of the rows
  const char* type;    ///< ggml's name of it
  const char* bytes;   ///< the scheme that stores what ggml stores
};

/// The OCP form of MXFP4 has the same codes and scales as ggml's block, in another order.
constexpr Format kFormats[] = {
    {"f32", "f32", "f32"},
    {"bf16", "bf16", "bf16"},
    {"fp16", "f16", "fp16"},
    {"q4_0", "q4_0", "q4_0"},
    {"q4_1", "q4_1", "q4_1"},
    {"q5_0", "q5_0", "q5_0"},
    {"q5_1", "q5_1", "q5_1"},
    {"q8_0", "q8_0", "q8_0"},
    {"q2_k", "q2_K", "q2_k"},
    {"q3_k", "q3_K", "q3_k"},
    {"q4_k", "q4_K", "q4_k"},
    {"q5_k", "q5_K", "q5_k"},
    {"q6_k", "q6_K", "q6_k"},
    {"iq4_nl", "iq4_nl", "iq4_nl"},
    {"iq4_xs", "iq4_xs", "iq4_xs"},
    {"tq1_0", "tq1_0", "tq1_0"},
    {"tq2_0", "tq2_0", "tq2_0"},
    {"mxfp4", "mxfp4", "ggml-mxfp4"},
    {"ggml-mxfp4", "mxfp4", "ggml-mxfp4"},
    {"ggml-nvfp4", "nvfp4", "ggml-nvfp4"},
};

const Format* format_of(const std::string& scheme) {
  const auto* found =
      std::find_if(std::begin(kFormats), std::end(kFormats), [&](const Format& f) { return f.scheme == scheme; });
  return found == std::end(kFormats) ? nullptr : found;
}

/// By name, for types come and go between versions.
std::optional<ggml_type> type_of(const std::string& scheme) {
  const Format* format = format_of(scheme);
  for (int t = 0; format != nullptr && t < GGML_TYPE_COUNT; ++t) {
    const auto type = static_cast<ggml_type>(t);
    const char* name = ggml_type_name(type);
    if (name != nullptr && std::strcmp(name, format->type) == 0) return type;
  }
  return std::nullopt;
}

/// The CPU device, found through the registry: it may be a plug-in, which is loaded then.
struct Cpu {
  ggml_backend_dev_t device = nullptr;
  ggml_backend_t backend = nullptr;
  ggml_backend_set_n_threads_t set_threads = nullptr;
  std::vector<ggml_backend_buffer_type_t> buffer_types;
  std::string features;

  Cpu() {
    ggml_log_set(
        [](ggml_log_level level, const char* text, void*) {
          if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) ggml_backend_load_all();
    device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device == nullptr) throw std::runtime_error("ggml has no CPU device");
    backend = ggml_backend_dev_init(device, nullptr);
    const ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(device);
    const auto find = [&](const char* name) { return ggml_backend_reg_get_proc_address(registry, name); };
    set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(find("ggml_backend_set_n_threads"));
    if (backend == nullptr || set_threads == nullptr) throw std::runtime_error("ggml's CPU device does not start");

    buffer_types.push_back(ggml_backend_dev_buffer_type(device));
    if (const auto extra =
            reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(find("ggml_backend_dev_get_extra_bufts")))
      for (ggml_backend_buffer_type_t* type = extra(device); type != nullptr && *type != nullptr; ++type)
        buffer_types.push_back(*type);
    if (const auto list = reinterpret_cast<ggml_backend_get_features_t>(find("ggml_backend_get_features")))
      for (ggml_backend_feature* f = list(registry); f->name != nullptr; ++f)
        features += (features.empty() ? "" : ", ") + std::string(f->name);
  }
};

Cpu& cpu() {
  static Cpu device;
  return device;
}

/// Weights as ggml stores them, shared by all copies.
struct Stored {
  ggml_type type;
  index_t n, k;
  LargeBuffer<std::byte> bytes;

  Stored(const std::string& scheme, const Weights& w)
      : type(type_of(scheme).value()), n(w.n), k(w.k), bytes(static_cast<index_t>(ggml_row_size(type, w.k)) * w.n) {
    // Our encoder: faster, and the encode rows hold its bytes against ggml's.
    const auto codec = blockpack::Registry::standard().codec(format_of(scheme)->bytes);
    const auto sections = codec->sections({n, k});
    if (sections.size() != 1 || sections[0].bytes != bytes.size())
      throw std::runtime_error("ggml stores another number of bytes");
    std::byte* dst = bytes.data();
    codec->encode(blockpack::MatrixView<const float>(w.data, n, k), 0, std::span(&dst, 1), {});
  }
};

#if defined(__x86_64__)
/// The tile configuration of a thread, as the processor stores it.
struct TileConfig {
  alignas(64) std::byte bytes[64];

  static TileConfig current() {
    TileConfig config;
    __asm__ volatile("sttilecfg %0" : "=m"(config));
    return config;
  }
  void load() const { __asm__ volatile("ldtilecfg %0" : : "m"(*this) : "memory"); }
};
#else
struct TileConfig {
  static TileConfig current() { return {}; }
  void load() const {}
};
#endif

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
    if (uses_tiles()) load_tiles(threads);
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

  static void ask_for_large_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20;
    const auto first = (reinterpret_cast<std::uintptr_t>(data) + kPage - 1) / kPage * kPage;
    const auto last = (reinterpret_cast<std::uintptr_t>(data) + bytes) / kPage * kPage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  }

  void compute(const Tokens& x, float* y, int threads) {
    x_->data = const_cast<float*>(x.f32);
    y_->data = y;
    cpu().set_threads(cpu().backend, threads);
    if (ggml_backend_graph_compute(cpu().backend, graph_) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("ggml failed to compute the product");
  }

  bool uses_tiles() const { return m_ > 1 && path() == "AMX" && stored_->type != GGML_TYPE_F16; }

  /// The first call of all is one of ggml's, on a product that sets the configuration.
  void load_tiles(int threads) {
    static const TileConfig config = [this] {
      const LargeBuffer<float> x(m_ * stored_->k);
      LargeBuffer<float> y(m_ * stored_->n);
      std::memset(const_cast<float*>(x.data()), 0, x.size_bytes());
      compute({m_, x.data(), nullptr}, y.data(), 1);
      return TileConfig::current();
    }();
    if (threads == 1) return config.load();
#pragma omp parallel num_threads(threads)
    config.load();
  }

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
