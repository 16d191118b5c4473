// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The matrices of an uncompressed model as the entropy scorers want them, grouped into transformer blocks.

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/entropy/weights.hpp"
#include "blockpack/recipe/compressed_model.hpp"

namespace example {

/// A kept matrix, viewed in the mapped file where its alignment allows, else copied.
class StoredMatrix {
 public:
  /// nullptr for what the scorers do not take: vectors, integers, FP8, compressed tensors.
  static std::unique_ptr<StoredMatrix> open(const blockpack::CompressedModel& model, const std::string& name) {
    if (model.find_compressed(name) != nullptr) return nullptr;
    blockpack::Tensor tensor = model.tensor(name);
    if (tensor.shape.size() != 2 || tensor.data.bytes.empty()) return nullptr;
    auto matrix = std::unique_ptr<StoredMatrix>(new StoredMatrix(std::move(tensor)));
    return matrix->copy_.empty() && !matrix->in_place_ ? nullptr : std::move(matrix);
  }
  ~StoredMatrix() {
    if (tensor_.mapping != nullptr) tensor_.mapping->release(tensor_.data.bytes);
  }
  StoredMatrix(const StoredMatrix&) = delete;
  StoredMatrix& operator=(const StoredMatrix&) = delete;

  const std::string& name() const { return tensor_.name; }
  blockpack::MatrixShape shape() const { return blockpack::matrix_shape(tensor_.shape); }
  const blockpack::WeightView& view() const { return view_; }

 private:
  explicit StoredMatrix(blockpack::Tensor tensor) : tensor_(std::move(tensor)) {
    switch (tensor_.dtype) {
      case blockpack::Dtype::f32:
        adopt<float>();
        break;
      case blockpack::Dtype::bf16:
        adopt<blockpack::bf16>();
        break;
      case blockpack::Dtype::f16:
        adopt<blockpack::fp16>();
        break;
      default:
        break;
    }
  }
  template <class T>
  void adopt() {
    const std::byte* data = tensor_.data.bytes.data();
    in_place_ = reinterpret_cast<std::uintptr_t>(data) % alignof(T) == 0;
    if (!in_place_) {
      copy_ = blockpack::AlignedBuffer<std::byte>(static_cast<blockpack::index_t>(tensor_.data.bytes.size()));
      std::copy(tensor_.data.bytes.begin(), tensor_.data.bytes.end(), copy_.begin());
      data = copy_.data();
    }
    view_ = blockpack::MatrixView<const T>(reinterpret_cast<const T*>(data), shape().rows, shape().cols);
  }

  blockpack::Tensor tensor_;
  blockpack::AlignedBuffer<std::byte> copy_;
  bool in_place_ = false;
  blockpack::WeightView view_;
};

/// `layers.3` for `layers.3.q_proj.weight`: up to the first number between dots; a name without one is its own block.
inline std::string block_of(const std::string& tensor) {
  for (std::size_t dot = tensor.find('.'); dot != std::string::npos; dot = tensor.find('.', dot + 1)) {
    const std::size_t end = tensor.find_first_not_of("0123456789", dot + 1);
    if (end != std::string::npos && end > dot + 1 && tensor[end] == '.') return tensor.substr(0, end);
  }
  return tensor;
}

/// Orders `layers.2` before `layers.10`.
struct NaturalLess {
  bool operator()(const std::string& a, const std::string& b) const {
    std::size_t i = 0, j = 0;
    while (i < a.size() && j < b.size()) {
      const std::size_t run_a = a.find_first_not_of("0123456789", i), run_b = b.find_first_not_of("0123456789", j);
      const std::size_t digits_a = std::min(run_a, a.size()) - i, digits_b = std::min(run_b, b.size()) - j;
      if (digits_a > 0 && digits_b > 0) {
        if (digits_a != digits_b) return digits_a < digits_b;
        if (const int order = a.compare(i, digits_a, b, j, digits_b); order != 0) return order < 0;
        i += digits_a;
        j += digits_b;
      } else {
        if (a[i] != b[j]) return a[i] < b[j];
        ++i;
        ++j;
      }
    }
    return a.size() - i < b.size() - j;
  }
};

/// Names of the matrices of each block.
using Blocks = std::map<std::string, std::vector<std::string>, NaturalLess>;
inline Blocks blocks_of(const blockpack::CompressedModel& model) {
  Blocks blocks;
  for (const std::string& name : model.names())
    if (model.shape(name).size() == 2) blocks[block_of(name)].push_back(name);
  return blocks;
}

}  // namespace example
