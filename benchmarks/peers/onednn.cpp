// SPDX-License-Identifier: Apache-2.0
// oneDNN (2.x, or 3.x in a build of its own): matmul with weights in the format it asks for, reordered once. x and y
// are float32 in every row, so the time holds the conversion of x: a reorder to bf16, or int8 with a scale per token;
// int8 weights have a scale per output.
#include <omp.h>
#include <dnnl.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <map>

#include "large_buffer.hpp"
#include "product.hpp"

namespace bench {
namespace {

using dnnl::memory;
using Type = memory::data_type;
using Tag = memory::format_tag;

dnnl::engine& engine() {
  static dnnl::engine e(dnnl::engine::kind::cpu, 0);
  return e;
}
dnnl::stream& stream() {
  static dnnl::stream s(engine());
  return s;
}

dnnl::matmul::primitive_desc plan_product(const memory::desc& x, const memory::desc& w, const memory::desc& y,
                                          const dnnl::primitive_attr& attributes = {}) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine(), x, w, y, attributes};
#else
  return {dnnl::matmul::desc(x, w, y), attributes, engine()};
#endif
}

/// Whether oneDNN has products of bf16 matrices on this CPU: 2.6 has none without AVX-512.
bool has_bf16() {
  static const bool has = [] {
    try {
      plan_product({{32, 32}, Type::bf16, Tag::ab}, {{32, 32}, Type::bf16, Tag::any}, {{32, 32}, Type::f32, Tag::ab});
      return true;
    } catch (const dnnl::error&) {
      return false;
    }
  }();
  return has;
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) float absmax_avx512(const float* x, index_t count) {
  __m512 top = _mm512_setzero_ps();
  index_t i = 0;
  for (; i + 16 <= count; i += 16) top = _mm512_max_ps(top, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
  float result = _mm512_reduce_max_ps(top);
  for (; i < count; ++i) result = std::max(result, std::fabs(x[i]));
  return result;
}
__attribute__((target("avx512f"))) void quantize_avx512(const float* x, index_t count, float inverse, std::int8_t* q) {
  const __m512 scale = _mm512_set1_ps(inverse);
  index_t i = 0;
  for (; i + 16 <= count; i += 16)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i),
                     _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), scale))));
  for (; i < count; ++i) q[i] = static_cast<std::int8_t>(std::nearbyint(x[i] * inverse));
}
__attribute__((target("avx512f"))) void multiply_avx512(float* y, index_t count, float factor) {
  index_t i = 0;
  for (; i + 16 <= count; i += 16)
    _mm512_storeu_ps(y + i, _mm512_mul_ps(_mm512_loadu_ps(y + i), _mm512_set1_ps(factor)));
  for (; i < count; ++i) y[i] *= factor;
}
bool have_avx512() { return __builtin_cpu_supports("avx512f") != 0; }
#else
float absmax_avx512(const float*, index_t) { return 0; }
void quantize_avx512(const float*, index_t, float, std::int8_t*) {}
void multiply_avx512(float*, index_t, float) {}
bool have_avx512() { return false; }
#endif

float absmax(const float* x, index_t count) {
  if (have_avx512()) return absmax_avx512(x, count);
  float top = 0;
  for (index_t i = 0; i < count; ++i) top = std::max(top, std::fabs(x[i]));
  return top;
}
void quantize(const float* x, index_t count, float inverse, std::int8_t* q) {
  if (have_avx512()) return quantize_avx512(x, count, inverse, q);
  for (index_t i = 0; i < count; ++i) q[i] = static_cast<std::int8_t>(std::nearbyint(x[i] * inverse));
}

void multiply(float* y, index_t count, float factor) {
  if (have_avx512()) return multiply_avx512(y, count, factor);
  for (index_t i = 0; i < count; ++i) y[i] *= factor;
}

class OnednnProduct final : public Product {
 public:
  OnednnProduct(const Request& r, Arithmetic arithmetic)
      : n_(r.weights.n), k_(r.weights.k), m_(r.m), bf16_x_(r.bf16_x), arithmetic_(arithmetic), w_(r.weights.data) {
    if (arithmetic_ == Arithmetic::int8) quantize_weights();
  }

  void run(const Tokens& x, float* y, int threads) override {
    if (omp_get_max_threads() != threads) omp_set_num_threads(threads);
    Prepared& p = prepared(threads);
    p.y.set_data_handle(y);
    if (arithmetic_ == Arithmetic::f32) {
      p.x.set_data_handle(const_cast<float*>(x.f32));
    } else if (bf16_x_) {
      p.x.set_data_handle(const_cast<std::uint16_t*>(x.bf16));
    } else if (arithmetic_ == Arithmetic::bf16) {
      p.x_f32.set_data_handle(const_cast<float*>(x.f32));
      p.convert.execute(stream(), p.x_f32, p.x);
    } else {
      convert_int8(x, p, threads);
    }
    p.product.execute(stream(), p.arguments);
    stream().wait();
    if (arithmetic_ == Arithmetic::int8) scale_tokens(y, threads);
  }

  std::unique_ptr<Product> copy() const override { return std::unique_ptr<Product>(new OnednnProduct(*this)); }
  double weight_bytes() const override {
    const double size = arithmetic_ == Arithmetic::f32 ? 4 : arithmetic_ == Arithmetic::bf16 ? 2 : 1;
    return size * static_cast<double>(n_ * k_) + (arithmetic_ == Arithmetic::int8 ? 4.0 * static_cast<double>(n_) : 0);
  }
  void decode_row(index_t row, float* dst) const override {
    for (index_t i = 0; i < k_; ++i) {
      const float v = w_[row * k_ + i];
      if (arithmetic_ == Arithmetic::int8) {
        const float scale = scales_[static_cast<std::size_t>(row)];
        dst[i] = static_cast<float>((*codes_)[row * k_ + i]) * scale;
      } else {
        dst[i] = v;
      }
    }
  }
  Arithmetic arithmetic() const override { return arithmetic_; }

 private:
  using Codes = LargeBuffer<std::int8_t>;

  OnednnProduct(const OnednnProduct& other)
      : n_(other.n_),
        k_(other.k_),
        m_(other.m_),
        bf16_x_(other.bf16_x_),
        arithmetic_(other.arithmetic_),
        w_(other.w_),
        codes_(other.codes_),
        scales_(other.scales_),
        token_scales_(other.token_scales_) {}

  struct Prepared {
    dnnl::matmul product;
    dnnl::reorder convert;
    LargeBuffer<char> storage;
    memory x_f32, x, w, y, scale_w;
    std::unordered_map<int, memory> arguments;
  };

  Type type() const {
    return arithmetic_ == Arithmetic::f32 ? Type::f32 : arithmetic_ == Arithmetic::bf16 ? Type::bf16 : Type::s8;
  }

  void quantize_weights() {
    auto codes = LargeBuffer<std::int8_t>(n_ * k_);
    scales_.resize(static_cast<std::size_t>(n_));
    token_scales_.resize(static_cast<std::size_t>(m_));
    for (index_t j = 0; j < n_; ++j) {
      const float scale = absmax(w_ + j * k_, k_) / 127.0f;
      scales_[static_cast<std::size_t>(j)] = scale;
      quantize(w_ + j * k_, k_, scale > 0 ? 1.0f / scale : 0.0f, &codes[j * k_]);
    }
    codes_ = std::make_shared<Codes>(std::move(codes));
  }

  /// One scale a token. oneDNN 2.6 leaves its fast kernels when scales come at run time, so those of the weights are
  /// fixed at creation and those of the tokens are multiplied in afterwards.
  void convert_int8(const Tokens& x, Prepared& p, int threads) {
    auto* q = static_cast<std::int8_t*>(p.x.get_data_handle());
#pragma omp parallel for num_threads(threads) if (m_ > 1)
    for (index_t i = 0; i < m_; ++i) {
      const float scale = absmax(x.f32 + i * k_, k_) / 127.0f;
      token_scales_[static_cast<std::size_t>(i)] = scale;
      quantize(x.f32 + i * k_, k_, scale > 0 ? 1.0f / scale : 0.0f, q + i * k_);
    }
  }
  void scale_tokens(float* y, int threads) {
#pragma omp parallel for num_threads(threads) if (m_ > 1)
    for (index_t i = 0; i < m_; ++i) multiply(y + i * n_, n_, token_scales_[static_cast<std::size_t>(i)]);
  }

  /// The primitive and its weights for so many threads: the blocking oneDNN chooses may depend on them.
  Prepared& prepared(int threads) {
    const auto found = prepared_.find(threads);
    if (found != prepared_.end()) return found->second;
    Prepared& p = prepared_[threads];
    const memory::desc x({m_, k_}, type(), Tag::ab), y({m_, n_}, Type::f32, Tag::ab), w({k_, n_}, type(), Tag::any);
    dnnl::primitive_attr attributes;
#if DNNL_VERSION_MAJOR >= 3
    if (arithmetic_ == Arithmetic::int8) attributes.set_scales_mask(DNNL_ARG_WEIGHTS, 1 << 1);
#else
    if (arithmetic_ == Arithmetic::int8) attributes.set_output_scales(1 << 1, scales_);
#endif
    const auto plan = plan_product(x, w, y, attributes);
    p.product = dnnl::matmul(plan);
    p.y = memory(y, engine(), nullptr);
    p.x = arithmetic_ == Arithmetic::f32 || bf16_x_ ? memory(x, engine(), nullptr) : memory(x, engine());
    if (arithmetic_ == Arithmetic::bf16 && !bf16_x_) {
      p.x_f32 = memory({{m_, k_}, Type::f32, Tag::ab}, engine(), nullptr);
      p.convert = dnnl::reorder(p.x_f32, p.x);
    }

    // Another number of threads may have the same format already.
    for (const auto& [other, q] : prepared_)
      if (other != threads && q.w && q.w.get_desc() == plan.weights_desc()) p.w = q.w;
    if (!p.w) {
      p.storage = LargeBuffer<char>(static_cast<index_t>(plan.weights_desc().get_size()));
      p.w = memory(plan.weights_desc(), engine(), p.storage.data());
      const bool int8 = arithmetic_ == Arithmetic::int8;
      void* source = int8 ? static_cast<void*>(codes_->data()) : const_cast<float*>(w_);
      memory plain({{k_, n_}, int8 ? Type::s8 : Type::f32, Tag::ba}, engine(), source);
      dnnl::reorder(plain, p.w).execute(stream(), plain, p.w);
      stream().wait();
    }
    p.arguments = {{DNNL_ARG_SRC, p.x}, {DNNL_ARG_WEIGHTS, p.w}, {DNNL_ARG_DST, p.y}};
#if DNNL_VERSION_MAJOR >= 3
    if (arithmetic_ == Arithmetic::int8) {
      p.scale_w = memory({{n_}, Type::f32, Tag::a}, engine());
      std::copy(scales_.begin(), scales_.end(), static_cast<float*>(p.scale_w.get_data_handle()));
      p.arguments[DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS] = p.scale_w;
    }
#endif
    return p;
  }

  index_t n_, k_, m_;
  bool bf16_x_;
  Arithmetic arithmetic_;
  const float* w_;                // the suite's
  std::shared_ptr<Codes> codes_;  // read when weights are packed, and by decode_row
  std::vector<float> scales_, token_scales_;
  std::map<int, Prepared> prepared_;
};

/// A structured matrix as oneDNN has it: low rank two products, Monarch two batched products with a permutation
/// between. x is reordered to bf16 (for Monarch into blocks), the values between the products are bf16.
class OnednnParts final : public Product {
 public:
  explicit OnednnParts(const Request& r) : request_(r), f_(*r.factors) {}

  void run(const Tokens& x, float* y, int threads) override {
    if (omp_get_max_threads() != threads) omp_set_num_threads(threads);
    Prepared& p = prepared(threads);
    p.x_f32.set_data_handle(const_cast<float*>(x.f32));
    p.y.set_data_handle(y);
    for (const Step& step : p.steps) step.primitive.execute(stream(), step.arguments);
    stream().wait();
  }

  std::unique_ptr<Product> copy() const override { return std::make_unique<OnednnParts>(request_); }
  double multiplies() const override {
    const auto n = static_cast<double>(request_.weights.n), k = static_cast<double>(request_.weights.k);
    return static_cast<double>(f_.blocks * f_.rank) * (n + k);
  }
  double weight_bytes() const override { return 2 * multiplies(); }
  void decode_row(index_t row, float* dst) const override {
    std::copy_n(request_.weights.data + row * request_.weights.k, request_.weights.k, dst);
  }
  Arithmetic arithmetic() const override { return Arithmetic::bf16; }

 private:
  struct Step {
    dnnl::primitive primitive;
    std::unordered_map<int, memory> arguments;
  };
  struct Prepared {
    std::vector<LargeBuffer<char>> storage;
    memory x_f32, y;
    std::vector<Step> steps;
  };
  using Dims = memory::dims;

  static memory allocated(Prepared& p, const memory::desc& desc) {
    p.storage.emplace_back(static_cast<index_t>(desc.get_size()));
    return {desc, engine(), p.storage.back().data()};
  }
  static void reorder(Prepared& p, const memory& from, const memory& to) {
    p.steps.push_back({dnnl::reorder(from, to), {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}}});
  }
  /// dst = x · wᵀ, a batch of them; `w` holds [batch, n, k].
  static void multiply(Prepared& p, const memory& x, const float* w, Dims shape, const memory& dst) {
    const memory::desc any(shape, Type::bf16, Tag::any);
    const auto plan = plan_product(x.get_desc(), any, dst.get_desc());
    memory packed = allocated(p, plan.weights_desc());
    memory plain({shape, Type::f32, shape.size() == 2 ? Tag::ba : Tag::acb}, engine(), const_cast<float*>(w));
    dnnl::reorder(plain, packed).execute(stream(), plain, packed);
    stream().wait();
    p.steps.push_back({dnnl::matmul(plan), {{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, packed}, {DNNL_ARG_DST, dst}}});
  }

  Prepared& prepared(int threads) {
    const auto found = prepared_.find(threads);
    if (found != prepared_.end()) return found->second;
    Prepared& p = prepared_[threads];
    const index_t m = request_.m, n = request_.weights.n, k = request_.weights.k, b = f_.blocks, r = f_.rank;
    p.y = memory({{m, n}, Type::f32, Tag::ab}, engine(), nullptr);
    p.x_f32 = memory({{m, k}, Type::f32, Tag::ab}, engine(), nullptr);
    if (f_.kind == Factors::Kind::low_rank) {
      const memory x = allocated(p, {{m, k}, Type::bf16, Tag::ab}), v = allocated(p, {{m, r}, Type::bf16, Tag::ab});
      reorder(p, p.x_f32, x);
      multiply(p, x, f_.right, {k, r}, v);
      multiply(p, v, f_.left, {r, n}, p.y);
      return p;
    }
    // x as [block, token, feature], v [in block, token, out block, rank], z [out block, token, in block, rank].
    const index_t in = k / b, out = n / b;
    const memory x = allocated(p, {{b, m, in}, Type::bf16, Tag::abc});
    const memory v = allocated(p, {{b, m, b * r}, Type::bf16, Tag::abc});
    const memory z = allocated(p, {{b, m, b * r}, Type::bf16, Tag::abc});
    p.x_f32 = memory({{b, m, in}, Type::f32, Dims{in, k, 1}}, engine(), nullptr);
    reorder(p, p.x_f32, x);
    multiply(p, x, f_.right, {b, in, b * r}, v);
    const memory from({{b, m, b, r}, Type::bf16, Dims{r, b * r, m * b * r, 1}}, engine(), v.get_data_handle());
    const memory to({{b, m, b, r}, Type::bf16, Tag::abcd}, engine(), z.get_data_handle());
    reorder(p, from, to);
    p.y = memory({{b, m, out}, Type::f32, Dims{out, n, 1}}, engine(), nullptr);
    multiply(p, z, f_.left, {b, b * r, out}, p.y);
    return p;
  }

  Request request_;
  const Factors& f_;
  std::map<int, Prepared> prepared_;
};

}  // namespace

void add_onednn(Contestants& all) {
  const dnnl_version_t* v = dnnl_version();
  const std::string name = v->major >= 3 ? "onednn" + std::to_string(v->major) : "onednn";
  all.implementations.push_back(
      {name,
       [](const std::string& scheme, index_t, index_t, index_t, bool bf16_x) {
         if (scheme == "f32" || scheme == "int8-row") return !bf16_x;
         if (pruned_blocks(scheme).values == "int8-row") return true;
         return (scheme == "bf16" || structured(scheme) || pruned_blocks(scheme)) && has_bf16();
       },
       [](const Request& r) -> std::unique_ptr<Product> {
         const bool int8 = r.scheme == "int8-row" || pruned_blocks(r.scheme).values == "int8-row";
         const Arithmetic arithmetic = r.scheme == "f32" ? Arithmetic::f32 : int8 ? Arithmetic::int8 : Arithmetic::bf16;
         return std::make_unique<OnednnProduct>(r, arithmetic);
       }});
  all.implementations.push_back(
      {name + "-parts",
       [](const std::string& scheme, index_t, index_t, index_t, bool) {
         return (scheme.rfind("lowrank-", 0) == 0 || scheme.rfind("monarch-", 0) == 0) && has_bf16();
       },
       [](const Request& r) -> std::unique_ptr<Product> { return std::make_unique<OnednnParts>(r); }});
  all.peers.push_back(
      {name, std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch)});
}

}  // namespace bench
