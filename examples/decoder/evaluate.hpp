// SPDX-License-Identifier: Apache-2.0
#pragma once

/// How well a byte decoder predicts a text, in bits per byte, and how fast. Windows of max_positions bytes, each scored
/// from its own start: window j reads bytes [T·j, T·j + T) and predicts [T·j + 1, T·j + T + 1).

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "byte_decoder.hpp"

namespace example {

struct Evaluation {
  double bits_per_byte = 0;      ///< mean of -log2 p over all predicted bytes
  double tokens_per_second = 0;  ///< of the forward passes, the best of the rounds
  index_t tokens = 0;
};

inline std::vector<std::uint8_t> read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw blockpack::Error("the text '" + path.string() + "' cannot be opened; name its folder with --data");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// -log2 of the probability the logits give to `target`.
inline double surprise_bits(std::span<const float> logits, std::uint8_t target) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float z : logits) sum += std::exp(static_cast<double>(z) - top);
  return (std::log(sum) - (static_cast<double>(logits[target]) - top)) / std::log(2.0);
}

/// Scores at most `max_windows` windows of `text`, `batch` windows to a pass, `rounds` times.
inline Evaluation evaluate(const ByteDecoder& decoder, std::span<const std::uint8_t> text, index_t max_windows = 128,
                           const ApplyOptions& how = {}, index_t batch = 16, int rounds = 1) {
  const index_t window = decoder.config().max_positions, vocab = decoder.config().vocab;
  const index_t windows = std::min(max_windows, (static_cast<index_t>(text.size()) - 1) / window);
  if (windows < 1)
    throw blockpack::Error("the text has " + std::to_string(text.size()) + " bytes, at least " +
                           std::to_string(window + 1) + " needed");
  if (vocab < 256) throw blockpack::Error("config.json: vocab_size is below 256, this decoder reads bytes");
  Evaluation result;
  result.tokens = windows * window;
  blockpack::AlignedBuffer<float> logits(blockpack::checked_mul(batch * window, vocab, "evaluate"));
  for (int round = 0; round < rounds; ++round) {
    double bits = 0, seconds = 0;
    for (index_t first = 0; first < windows; first += batch) {
      const index_t tokens = std::min(batch, windows - first) * window;
      const auto start = static_cast<std::size_t>(first * window);
      const auto begin = std::chrono::steady_clock::now();
      const MatrixView<float> view(logits.data(), tokens, vocab);
      decoder.logits(text.subspan(start, static_cast<std::size_t>(tokens)), window, view, how);
      seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      for (index_t t = 0; t < tokens; ++t)
        bits += surprise_bits(view.row(t), text[start + static_cast<std::size_t>(t) + 1]);
    }
    result.bits_per_byte = bits / static_cast<double>(result.tokens);
    result.tokens_per_second = std::max(result.tokens_per_second, static_cast<double>(result.tokens) / seconds);
  }
  return result;
}

}  // namespace example
