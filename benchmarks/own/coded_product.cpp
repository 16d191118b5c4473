// SPDX-License-Identifier: Apache-2.0
#include "own/coded_product.hpp"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "blockpack/core/any_linear.hpp"
#include "blockpack/recipe/registry.hpp"
#include "blockpack/sparse/armor_matrix.hpp"

namespace bench {
namespace {

using blockpack::MatrixView;
using Sections = std::vector<blockpack::Section>;
using Values = blockpack::AlignedBuffer<float>;

Sections encode(const std::shared_ptr<const blockpack::Codec>& codec, MatrixView<const float> w) {
  Sections sections;
  std::vector<std::byte*> dst;
  for (const blockpack::SectionSize& s : codec->sections(w.shape())) {
    auto bytes = std::make_shared<blockpack::AlignedBuffer<std::byte>>(s.bytes);
    dst.push_back(bytes->data());
    sections.push_back({s.name, blockpack::SharedBytes(std::as_bytes(bytes->span()), bytes)});
  }
  blockpack::fitted(codec, w)->encode(w, 0, dst, {});
  return sections;
}

/// ARMOR after two iterations, when no value of its blocks is zero any more: the codec's fit would take hours.
Sections encode_armor(index_t side, MatrixView<const float> w) {
  const std::vector<double> h(static_cast<std::size_t>(w.cols()), 1.0);
  blockpack::ArmorOptions fit;
  fit.block = {side, side};
  fit.iterations = 2;
  return blockpack::make_armor(blockpack::armor(w, h, fit).factors,
                               blockpack::NmFormat<blockpack::DenseFormat<blockpack::bf16>>(),
                               blockpack::FactorFormat::bf16())
      .sections();
}

std::shared_ptr<const Values> decode_whole(const blockpack::AnyLinear& op) {
  const blockpack::MatrixShape shape = op.shape();
  std::vector<index_t> rows(static_cast<std::size_t>(shape.rows));
  std::iota(rows.begin(), rows.end(), index_t{0});
  auto values = std::make_shared<Values>(shape.rows * shape.cols);
  op.decode_rows(rows, MatrixView<float>(values->data(), shape.rows, shape.cols));
  return values;
}

class CodedProduct final : public Product {
 public:
  CodedProduct(const Request& r, blockpack::Activations mode)
      : codec_(blockpack::Registry::standard().codec(r.scheme)), tokens_(r.m) {
    how_.activations = mode;
    const MatrixView<const float> w(r.weights.data, r.weights.n, r.weights.k);
    const index_t side = armor_blocks(r.scheme);
    op_ = codec_->open(w.shape(), side > 0 ? encode_armor(side, w) : encode(codec_, w), blockpack::PackPolicy::ahead());
    if (side > 0) decoded_ = decode_whole(op_);
  }

  void run(const Tokens& x, float* y, int threads) override {
    how_.execution.threads = threads;
    op_.apply(blockpack::MatrixView<const float>(x.f32, x.m, op_.in_features()),
              blockpack::MatrixView<float>(y, x.m, op_.out_features()), how_);
  }
  std::unique_ptr<Product> copy() const override {
    std::vector<blockpack::Section> sections = op_.sections();
    for (blockpack::Section& s : sections) {
      auto bytes = blockpack::AlignedBuffer<std::byte>::uninitialized(static_cast<index_t>(s.data.bytes.size()));
      std::copy(s.data.bytes.begin(), s.data.bytes.end(), bytes.begin());
      s.data = blockpack::SharedBytes(std::move(bytes));
    }
    std::unique_ptr<CodedProduct> other(new CodedProduct(*this));
    other->op_ = codec_->open(op_.shape(), sections, blockpack::PackPolicy::ahead());
    return other;
  }
  double weight_bytes() const override { return static_cast<double>(op_.storage_bytes()); }
  void decode_row(index_t row, float* dst) const override {
    if (decoded_ != nullptr)
      std::copy_n(decoded_->data() + row * op_.in_features(), op_.in_features(), dst);
    else
      op_.decode_rows(std::span(&row, 1), MatrixView<float>(dst, 1, op_.in_features()));
  }
  Arithmetic arithmetic() const override {
    blockpack::Activations mode = op_.activation_mode(tokens_, how_);
    if (mode == blockpack::Activations::automatic)  // a composed form
      mode = blockpack::resolve(mode, codec_->bits_per_weight(op_.shape()), blockpack::active_isa());
    switch (mode) {
      case blockpack::Activations::int8:
      case blockpack::Activations::int8_token:
        return Arithmetic::int8;
      case blockpack::Activations::bf16:
        return Arithmetic::bf16;
      default:
        return Arithmetic::f32;
    }
  }

 private:
  CodedProduct(const CodedProduct&) = default;

  std::shared_ptr<const blockpack::Codec> codec_;
  blockpack::AnyLinear op_;
  std::shared_ptr<const Values> decoded_;  // of a composed form, whose rows one by one would take minutes
  index_t tokens_;
  blockpack::ApplyOptions how_;
};

}  // namespace

std::unique_ptr<Product> make_coded_product(const Request& request, blockpack::Activations mode) {
  return std::make_unique<CodedProduct>(request, mode);
}

}  // namespace bench
