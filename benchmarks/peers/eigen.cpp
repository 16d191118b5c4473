// SPDX-License-Identifier: Apache-2.0
// Eigen: the product a user would write, float32, weights as they are.
#include <algorithm>

#include "large_buffer.hpp"
#include "peers/eigen_product.hpp"
#include "product.hpp"

namespace bench {
namespace {

class EigenProduct final : public Product {
 public:
  explicit EigenProduct(const Weights& w) : n_(w.n), k_(w.k), w_(LargeBuffer<float>(w.n * w.k)) {
    std::copy_n(w.data, w.n * w.k, w_.data());
  }
  void run(const Tokens& x, float* y, int threads) override {
    bench_eigen_product(x.f32, w_.data(), y, x.m, n_, k_, threads);
  }
  std::unique_ptr<Product> copy() const override { return std::make_unique<EigenProduct>(Weights{w_.data(), n_, k_}); }
  double weight_bytes() const override { return static_cast<double>(w_.size_bytes()); }
  void decode_row(index_t row, float* dst) const override { std::copy_n(w_.data() + row * k_, k_, dst); }
  Arithmetic arithmetic() const override { return Arithmetic::f32; }

 private:
  index_t n_, k_;
  LargeBuffer<float> w_;
};

}  // namespace

void add_eigen(Contestants& all) {
  all.implementations.push_back(
      {"eigen",
       [](const std::string& scheme, index_t, index_t, index_t, bool bf16_x) { return scheme == "f32" && !bf16_x; },
       [](const Request& r) -> std::unique_ptr<Product> { return std::make_unique<EigenProduct>(r.weights); }});
  all.peers.push_back({"eigen", std::string(BENCH_EIGEN_VERSION) + " with " + bench_eigen_simd()});
}

}  // namespace bench
