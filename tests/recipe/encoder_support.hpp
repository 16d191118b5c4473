// SPDX-License-Identifier: Apache-2.0
#pragma once

/// A small sentence encoder with random weights.

#include <string>
#include <vector>

#include "recipe/model_support.hpp"

namespace blockpack::test {

/// Of 20 pieces: two layers, 6 then 8 wide, two heads of 3 and of 4, embeddings of 7 numbers.
inline std::vector<Filled> small_encoder() {
  std::vector<Filled> tensors;
  Random random(7);
  const auto add = [&](const std::string& name, std::vector<index_t> shape) {
    std::vector<float> values(static_cast<std::size_t>(element_count(shape)));
    for (float& v : values) v = random.uniform(-1.0f, 1.0f);
    const auto bytes = std::as_bytes(std::span(values));
    tensors.push_back({{name, Dtype::f32, std::move(shape)}, {bytes.begin(), bytes.end()}});
  };
  const auto linear = [&](const std::string& name, index_t out, index_t in) {
    add(name + ".weight", {out, in});
    add(name + ".bias", {out});
  };
  const auto norm = [&](const std::string& name, index_t width) {
    add(name + ".weight", {width});
    add(name + ".bias", {width});
  };
  add("embeddings.weight", {20, 6});
  add("timing.inv_timescales", {3});
  linear("layers.0.residual", 8, 6);
  for (const index_t width : {6, 8}) {
    const std::string layer = width == 6 ? "layers.0." : "layers.1.";
    norm(layer + "ln_attn", width);
    linear(layer + "attn.qkv", 3 * width, width);
    linear(layer + "attn.out", 8, width);
    norm(layer + "ln_ffn", 8);
    linear(layer + "ffn.fc1", 16, 8);
    linear(layer + "ffn.fc2", 8, 16);
  }
  linear("pool", 7, 8);
  return tensors;
}

}  // namespace blockpack::test
