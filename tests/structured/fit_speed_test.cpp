// SPDX-License-Identifier: Apache-2.0
/// Times of large fits on one thread, printed: BLOCKPACK_SPEED=1 blockpack_test_structured "[fit_speed]".

#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "structured/fit_cases.hpp"

namespace {

using namespace blockpack;
using test::read;

/// Processor time of one thread, which a busy machine changes least.
double seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

RowMajorMatrix<float> weights(index_t rows, index_t cols) {
  RowMajorMatrix<float> w(rows, cols);
  fill_weights(view(w), 1);
  return w;
}

}  // namespace

TEST_CASE("Time of truncated decompositions of 1024 x 1024, rank 512 and 128", "[.][fit_speed]") {
  if (std::getenv("BLOCKPACK_SPEED") == nullptr) return;  // a timing, not a test
  const index_t n = 1024;
  // Singular values k^-0.5, as of trained weights.
  RowMajorMatrix<double> u = test::normal<double>(n, n, 1), v = test::normal<double>(n, n, 2);
  fit_detail::orthonormalize(u, {});
  fit_detail::orthonormalize(v, {});
  for (index_t k = 0; k < n; ++k) u.col(k) *= 1.0 / std::sqrt(static_cast<double>(k + 1));
  const RowMajorMatrix<float> w = (u * v.transpose()).cast<float>();
  for (const index_t rank : {512, 128})
    for (const SvdMethod method : {SvdMethod::exact, SvdMethod::randomized, SvdMethod::krylov}) {
      SvdOptions options;
      options.method = method;
      options.execution.threads = 1;
      const double begin = seconds();
      const Svd<float> svd = truncated_svd<float>(read(w), rank, options);
      const double time = seconds() - begin;
      std::printf("svd rank %td method %d: %.3f s, relative error %.6f\n", rank, static_cast<int>(method), time,
                  test::relative_error(w, sqrt_split(svd).dense()));
    }
}

TEST_CASE("Time of a Monarch projection of 4096 x 4096", "[.][fit_speed]") {
  if (std::getenv("BLOCKPACK_SPEED") == nullptr) return;  // a timing, not a test
  const RowMajorMatrix<float> w = weights(4096, 4096);
  MonarchOptions options;
  options.in_blocks = options.out_blocks = 16;
  options.rank = 64;
  options.svd.execution.threads = 1;
  const double begin = seconds();
  const MonarchFactors<float> f = monarch_project<float>(read(w), options);
  std::printf("monarch 4096 b 16 rank 64: %.2f s, relative error %.5f\n", seconds() - begin,
              test::relative_error(w, f.dense()));
}

TEST_CASE("Time of BLAST iterations on 4096 x 4096", "[.][fit_speed]") {
  if (std::getenv("BLOCKPACK_SPEED") == nullptr) return;  // a timing, not a test
  const RowMajorMatrix<float> w = weights(4096, 4096);
  BlastOptions options;
  options.blocks = 16;
  options.rank = 1024;
  options.start = BlastStart::noise;
  options.iterations = 3;
  options.execution.threads = 1;
  const auto time = [&](const char* name) {
    double first = 0.0, last = 0.0;
    int count = 0;
    options.execution.progress = [&](double) {
      last = seconds();
      if (++count == 1) first = last;
    };
    const BlastFit<float> fit = blast_factorize<float>(read(w), options);
    std::printf("blast 4096 b 16 rank 1024, %s: %.2f s an iteration, relative error %.4f after %d\n", name,
                (last - first) / (count - 1), fit.rel_error, count);
    std::fflush(stdout);
  };
  time("cholesky");
  options.coupling_solver = CouplingSolver::conjugate_gradients;
  time("conjugate gradients");
  options.coupling_solver = CouplingSolver::cholesky;
  options.fix_coupling = true;
  time("no s step");
  options.fix_coupling = false;
  options.start = BlastStart::svd;
  options.iterations = 2;
  const double begin = seconds();
  time("svd start");
  std::printf("  with its start %.2f s\n", seconds() - begin);
}

TEST_CASE("Time of activation-aware BLAST iterations on 1024 x 1024", "[.][fit_speed]") {
  if (std::getenv("BLOCKPACK_SPEED") == nullptr) return;  // a timing, not a test
  const RowMajorMatrix<float> w = weights(1024, 1024);
  const GramMatrix gram = test::gram_of(weights(2048, 1024));
  BlastOptions options;
  options.blocks = 16;
  options.rank = 256;
  options.iterations = 6;
  options.execution.threads = 1;
  options.start = BlastStart::noise;
  options.gram = &gram;
  double first = 0.0, last = 0.0;
  int count = 0;
  options.execution.progress = [&](double) {
    last = seconds();
    if (++count == 1) first = last;
  };
  blast_factorize<float>(read(w), options);
  std::printf("weighted blast 1024 b 16 rank 256: %.3f s an iteration\n", (last - first) / (count - 1));
}
