// SPDX-License-Identifier: Apache-2.0
// fit/…: factorizations of square layers. svd-<method>-r<rank>: of a matrix with singular values k^-0.5, as trained
// weights have. monarch: the projection. blast…: one iteration from noise (of 300), with its start; +cg the coupling by
// conjugate gradients, +fixed no coupling step, +svd with the start from a Krylov SVD, +gram by the output error.
// rel_error is what the factors leave of the weights, with +gram of the outputs. peak_matrices is the memory taken
// beside the layer, in float32 matrices [n, n].
#include <cmath>
#include <stdexcept>
#include <string>

#include "blockpack/structured/blast_fit.hpp"
#include "blockpack/structured/low_rank_fit.hpp"
#include "blockpack/structured/monarch_fit.hpp"
#include "layer.hpp"
#include "peak_memory.hpp"
#include "suite.hpp"

namespace bench {
namespace {

using blockpack::MatrixView;
using blockpack::RowMajorMatrix;
using Matrix = RowMajorMatrix<float>;

double relative_error(MatrixView<const float> w, const Matrix& approximation) {
  return blockpack::relative_output_error<float>(w, approximation);
}

/// Singular values k^-0.5.
Matrix trained_like(index_t n, std::uint64_t seed) {
  Matrix u = blockpack::fit_detail::normal_matrix<float>(n, n, seed);
  Matrix v = blockpack::fit_detail::normal_matrix<float>(n, n, seed + 1);
  blockpack::fit_detail::orthonormalize(u, {});
  blockpack::fit_detail::orthonormalize(v, {});
  for (index_t k = 0; k < n; ++k) u.col(k) *= 1.0f / std::sqrt(static_cast<float>(k + 1));
  Matrix w(n, n);
  blockpack::fit_detail::product_transposed<float>(blockpack::view(std::as_const(u)), blockpack::view(std::as_const(v)),
                                                   blockpack::view(w), {});
  return w;
}

void svd_row(benchmark::State& state, blockpack::SvdMethod method, index_t rank, int threads, std::uint64_t seed) {
  const PinThreads pin(threads);
  static const Matrix w = trained_like(1024, seed);
  blockpack::SvdOptions options;
  options.method = method;
  options.execution.threads = threads;
  blockpack::Svd<float> svd;
  time_calls(state, threads, 0, [&] { svd = blockpack::truncated_svd<float>(blockpack::view(w), rank, options); });
  state.counters["rel_error"] = relative_error(blockpack::view(w), blockpack::sqrt_split(svd).dense());
}

void monarch_row(benchmark::State& state, int threads, std::uint64_t seed) {
  const PinThreads pin(threads);
  const Layer& layer = Layer::shared(4096, threads, seed);
  blockpack::MonarchOptions options;
  options.in_blocks = options.out_blocks = 16;
  options.rank = 64;
  options.svd.execution.threads = threads;
  blockpack::MonarchFactors<float> f;
  const double bytes = peak_bytes(
      [&] { time_calls(state, threads, 0, [&] { f = blockpack::monarch_project<float>(layer.weights(), options); }); });
  layer.count_memory(state, bytes);
  state.counters["rel_error"] = relative_error(layer.weights(), f.dense());
}

void blast_row(benchmark::State& state, index_t n, blockpack::BlastOptions options, bool weighted, int threads,
               std::uint64_t seed) {
  const PinThreads pin(threads);
  const Layer& layer = Layer::shared(n, threads, seed);
  options.iterations = 1;
  options.execution.threads = threads;
  if (weighted) options.gram = &layer.gram();
  double error = 0;
  const double bytes = peak_bytes([&] {
    time_calls(state, threads, 0,
               [&] { error = blockpack::blast_factorize<float>(layer.weights(), options).rel_error; });
  });
  layer.count_memory(state, bytes);
  if (!(error < 1.0)) throw std::runtime_error("the error has not fallen");
  state.counters["rel_error"] = error;
}

}  // namespace

void add_fit_rows(Suite& suite, const Options& options) {
  const auto add = [&](const std::string& name, index_t n, auto body) {
    for (int threads = 1; threads <= options.max_threads; ++threads) {
      const std::string place = "/N:" + std::to_string(n) + "/K:" + std::to_string(n);
      suite.add(
          "fit/" + name + "/blockpack" + place + "/threads:" + std::to_string(threads), "fit" + place,
          [=, seed = options.seed](benchmark::State& state) {
            try {
              body(state, threads, seed);
            } catch (const std::exception& e) {
              state.SkipWithError(e.what());
            }
          },
          1);
    }
  };
  using blockpack::BlastStart;
  using blockpack::CouplingSolver;
  using blockpack::SvdMethod;
  for (const index_t rank : {512, 128})
    for (const auto& [name, method] :
         {std::pair("exact", SvdMethod::exact), {"randomized", SvdMethod::randomized}, {"krylov", SvdMethod::krylov}})
      add("svd-" + std::string(name) + "-r" + std::to_string(rank), 1024,
          [=, m = method](benchmark::State& s, int threads, std::uint64_t seed) {
            svd_row(s, m, rank, threads, seed);
          });
  add("monarch-b16-r64", 4096, monarch_row);
  blockpack::BlastOptions blast;
  blast.blocks = 16;
  blast.rank = 1024;
  blast.start = BlastStart::noise;
  const auto add_blast = [&](const std::string& name, index_t n, const blockpack::BlastOptions& o, bool weighted) {
    add(name, n,
        [=](benchmark::State& s, int threads, std::uint64_t seed) { blast_row(s, n, o, weighted, threads, seed); });
  };
  add_blast("blast-b16-r1024", 4096, blast, false);
  blast.coupling_solver = CouplingSolver::conjugate_gradients;
  add_blast("blast-b16-r1024+cg", 4096, blast, false);
  blast.coupling_solver = CouplingSolver::cholesky;
  blast.fix_coupling = true;
  add_blast("blast-b16-r1024+fixed", 4096, blast, false);
  blast.fix_coupling = false;
  blast.start = BlastStart::svd;
  add_blast("blast-b16-r1024+svd", 4096, blast, false);
  blast.start = BlastStart::noise;
  blast.rank = 256;
  add_blast("blast-b16-r256+gram", 1024, blast, true);
}

}  // namespace bench
