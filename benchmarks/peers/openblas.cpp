// SPDX-License-Identifier: Apache-2.0
// OpenBLAS: sgemm, and sgemv for one token (its sgemm takes three times as long there). It has no packed weights.
#include <cblas.h>

#include <algorithm>

#include "large_buffer.hpp"
#include "product.hpp"

namespace bench {
namespace {

class OpenblasProduct final : public Product {
 public:
  explicit OpenblasProduct(const Weights& w) : n_(w.n), k_(w.k), w_(LargeBuffer<float>(w.n * w.k)) {
    std::copy_n(w.data, w.n * w.k, w_.data());
  }

  void run(const Tokens& x, float* y, int threads) override {
    if (threads != openblas_get_num_threads()) openblas_set_num_threads(threads);
    const auto m = static_cast<blasint>(x.m), n = static_cast<blasint>(n_), k = static_cast<blasint>(k_);
    if (m == 1)
      cblas_sgemv(CblasRowMajor, CblasNoTrans, n, k, 1.0f, w_.data(), k, x.f32, 1, 0.0f, y, 1);
    else
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1.0f, x.f32, k, w_.data(), k, 0.0f, y, n);
  }
  std::unique_ptr<Product> copy() const override {
    return std::make_unique<OpenblasProduct>(Weights{w_.data(), n_, k_});
  }
  double weight_bytes() const override { return static_cast<double>(w_.size_bytes()); }
  void decode_row(index_t row, float* dst) const override { std::copy_n(w_.data() + row * k_, k_, dst); }
  Arithmetic arithmetic() const override { return Arithmetic::f32; }

 private:
  index_t n_, k_;
  LargeBuffer<float> w_;
};

}  // namespace

void add_openblas(Contestants& all) {
  all.implementations.push_back(
      {"openblas",
       [](const std::string& scheme, index_t, index_t, index_t, bool bf16_x) { return scheme == "f32" && !bf16_x; },
       [](const Request& r) -> std::unique_ptr<Product> { return std::make_unique<OpenblasProduct>(r.weights); }});
  all.peers.push_back({"openblas", std::string(openblas_get_config()) + " on " + openblas_get_corename()});
}

}  // namespace bench
