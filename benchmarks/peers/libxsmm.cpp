// SPDX-License-Identifier: Apache-2.0
// libxsmm 1.17: the blocked fully connected layer its batch-reduce kernels are made for. Weights are packed once in
// blocks of 64 outputs by 64 columns; activations are packed in blocks of columns on every call.
#include <libxsmm.h>
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "large_buffer.hpp"
#include "product.hpp"

namespace bench {
namespace {

constexpr index_t kBlock = 64;

class LibxsmmProduct final : public Product {
 public:
  LibxsmmProduct(const Weights& w, index_t m)
      : n_(w.n), k_(w.k), m_(m), w_(LargeBuffer<float>(w.n * w.k)), x_(LargeBuffer<float>(m * w.k)) {
    for (index_t j = 0; j < n_; ++j)
      for (index_t i = 0; i < k_; ++i) w_[place(j, i)] = w.data[j * k_ + i];
    dispatch();
  }
  LibxsmmProduct(const LibxsmmProduct& other)
      : n_(other.n_), k_(other.k_), m_(other.m_), w_(LargeBuffer<float>(n_ * k_)), x_(LargeBuffer<float>(m_ * k_)) {
    std::copy(other.w_.begin(), other.w_.end(), w_.begin());
    dispatch();
  }

  void run(const Tokens& x, float* y, int threads) override {
    const index_t k_blocks = k_ / kBlock;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
      for (index_t kb = 0; kb < k_blocks; ++kb)
        for (index_t i = 0; i < m_; ++i)
          std::memcpy(&x_[(kb * m_ + i) * kBlock], x.f32 + i * k_ + kb * kBlock, kBlock * sizeof(float));
#pragma omp for schedule(static)
      for (index_t jb = 0; jb < n_ / kBlock; ++jb) {
        const auto count = static_cast<unsigned long long>(k_blocks);
        for (index_t i = 0; i < m_; i += kBlock)
          kernel_(&w_[jb * kBlock * k_], &x_[i * kBlock], y + i * n_ + jb * kBlock, &count);
      }
    }
  }
  std::unique_ptr<Product> copy() const override { return std::make_unique<LibxsmmProduct>(*this); }
  double weight_bytes() const override { return static_cast<double>(w_.size_bytes()); }
  void decode_row(index_t row, float* dst) const override {
    for (index_t i = 0; i < k_; ++i) dst[i] = w_[place(row, i)];
  }
  Arithmetic arithmetic() const override { return Arithmetic::f32; }

 private:
  index_t place(index_t row, index_t col) const {  // [n/64][k/64][64 columns][64 rows]
    return (row / kBlock * (k_ / kBlock) + col / kBlock) * kBlock * kBlock + col % kBlock * kBlock + row % kBlock;
  }
  void dispatch() {
    // Column-major in libxsmm's terms: C [64 outputs, tokens] = A [64 outputs, 64] · B [64, tokens].
    const auto tokens = static_cast<libxsmm_blasint>(std::min(m_, kBlock));
    const libxsmm_blasint lda = kBlock, ldb = kBlock, ldc = static_cast<libxsmm_blasint>(n_);
    const float one = 1, zero = 0;
    kernel_ = libxsmm_smmdispatch_reducebatch_strd(
        kBlock, tokens, kBlock, kBlock * kBlock * static_cast<libxsmm_blasint>(sizeof(float)),
        static_cast<libxsmm_blasint>(m_ * kBlock * static_cast<index_t>(sizeof(float))), &lda, &ldb, &ldc, &one, &zero,
        nullptr, nullptr);
    if (kernel_ == nullptr) throw std::runtime_error("libxsmm has no kernel here");
  }

  index_t n_, k_, m_;
  LargeBuffer<float> w_, x_;
  libxsmm_smmfunction_reducebatch_strd kernel_ = nullptr;
};

}  // namespace

void add_libxsmm(Contestants& all) {
  libxsmm_init();
  all.implementations.push_back(
      {"libxsmm",
       [](const std::string& scheme, index_t m, index_t n, index_t k, bool bf16_x) {
         return scheme == "f32" && !bf16_x && m > 1 && n % kBlock == 0 && k % kBlock == 0 &&
                (m <= kBlock || m % kBlock == 0);
       },
       [](const Request& r) -> std::unique_ptr<Product> { return std::make_unique<LibxsmmProduct>(r.weights, r.m); }});
  all.peers.push_back({"libxsmm", std::string(LIBXSMM_VERSION) + " on " + libxsmm_get_target_arch()});
}

}  // namespace bench
