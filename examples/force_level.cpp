// SPDX-License-Identifier: Apache-2.0

/// One product on every SIMD level of this CPU: `Execution::isa` forces a level for one call (BLOCKPACK_ISA=avx2 in the
/// environment does it for the whole process). Sums are added in another order, so results differ in the last bits.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <vector>

#include "blockpack/core/dense.hpp"
#include "blockpack/core/random.hpp"

int main() {
  using namespace blockpack;
  const index_t out = 512, in = 1024, tokens = 64;
  std::vector<float> w(out * in), x(tokens * in);
  fill_weights(MatrixView<float>(w.data(), out, in), /*seed=*/1);
  fill_normal(x, /*seed=*/2);
  const MatrixView<const float> activations(x.data(), tokens, in);

  std::printf("y = x W^T, W %td x %td in f32, %td tokens, one thread\n", out, in, tokens);
  std::printf("%-12s %10s %28s\n", "level", "GFLOP/s", "largest |y - y(scalar)|");
  std::vector<float> reference;
  for (const Isa level : compiled_isas()) {
    if (!runs_here(level)) {
      std::printf("%-12s not on this CPU\n", to_string(level).data());
      continue;
    }
    // The packed form belongs to a level, so each level gets an operator of its own.
    const auto op = Dense<float>::encode(MatrixView<const float>(w.data(), out, in));
    std::vector<float> y(tokens * out);
    ApplyOptions how;
    how.execution.isa = level;
    how.execution.threads = 1;
    how.activations = Activations::f32;
    double seconds = 1e9;
    for (int repetition = 0; repetition < 5; ++repetition) {  // the first one packs the weights
      const auto start = std::chrono::steady_clock::now();
      op.apply(activations, MatrixView<float>(y.data(), tokens, out), how);
      seconds = std::min(seconds, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    if (reference.empty()) reference = y;
    float difference = 0;
    for (std::size_t i = 0; i < y.size(); ++i) difference = std::max(difference, std::abs(y[i] - reference[i]));
    std::printf("%-12s %10.1f %28.2e\n", to_string(level).data(),
                2e-9 * static_cast<double>(out * in * tokens) / seconds, static_cast<double>(difference));
    if (!(difference < 1e-3f)) return 1;
  }
  Execution how;
  how.isa = runs_here(Isa::neon) ? Isa::avx2 : Isa::neon;
  try {
    how.level();
  } catch (const UnsupportedError& e) {
    std::printf("and a level of another architecture is refused: %s\n", e.what());
    return 0;
  }
  return 1;
}
