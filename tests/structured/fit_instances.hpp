// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The fits that the tests call, compiled once in fit_instances_*.cpp: each of them takes a compiler a while.

#include <complex>

#include "blockpack/structured/blast_fit.hpp"
#include "blockpack/structured/block_low_rank_fit.hpp"
#include "blockpack/structured/low_rank_fit.hpp"
#include "blockpack/structured/monarch_fit.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

#define BLOCKPACK_TEST_BASICS(WHERE, T)                                                                               \
  WHERE template class fit_detail::Cholesky<T>;                                                                       \
  WHERE template void fit_detail::orthonormalize<T>(RowMajorMatrix<T>&, const Execution&);                            \
  WHERE template Svd<T> truncated_svd<T>(MatrixView<const T>, index_t, const SvdOptions&);                            \
  WHERE template LowRankFactors<T> low_rank_fit<T>(MatrixView<const T>, index_t, const LowRankOptions&);              \
  WHERE template double relative_output_error<T>(MatrixView<const T>, const RowMajorMatrix<T>&, const GramMatrix*,    \
                                                 const Execution&);                                                   \
  WHERE template void refine_left<T>(MatrixView<const T>, LowRankFactors<T>&, const GramMatrix*, const Execution&);   \
  WHERE template void refine_right<T>(MatrixView<const T>, LowRankFactors<T>&, const Execution&);                     \
  WHERE template LowRankFactors<T> low_rank_refine<T>(MatrixView<const T>, LowRankFactors<T>, const GramMatrix*, int, \
                                                      const Execution&);                                              \
  WHERE template MonarchFactors<T> monarch_project<T>(MatrixView<const T>, const MonarchOptions&);                    \
  WHERE template RefineResult<MonarchFactors<T>> monarch_refine<T>(MatrixView<const T>, MonarchFactors<T>,            \
                                                                   const GramMatrix&, int, const Execution&);         \
  WHERE template BlockLowRankFactors<T> block_low_rank_fit<T>(MatrixView<const T>, const BlockLowRankOptions&);       \
  WHERE template BlockLowRankFactors<T> block_low_rank_fit_budget<T>(MatrixView<const T>, index_t,                    \
                                                                     const BlockLowRankOptions&);
#define BLOCKPACK_TEST_BLAST(WHERE, T)                                                                             \
  WHERE template BlastFit<T> blast_factorize<T>(MatrixView<const T>, const BlastOptions&, const BlastFactors<T>*); \
  WHERE template RefineResult<BlastFactors<T>> blast_refine<T>(MatrixView<const T>, const BlastFactors<T>&,        \
                                                               const GramMatrix&, int, const Execution&);
#define BLOCKPACK_TEST_COMPLEX(WHERE)                                                        \
  WHERE template MonarchFactors<std::complex<double>> monarch_project<std::complex<double>>( \
      MatrixView<const std::complex<double>>, const MonarchOptions&);

BLOCKPACK_TEST_BASICS(extern, float)
BLOCKPACK_TEST_BASICS(extern, double)
BLOCKPACK_TEST_BLAST(extern, float)
BLOCKPACK_TEST_BLAST(extern, double)
BLOCKPACK_TEST_COMPLEX(extern)

}  // namespace blockpack::inline BLOCKPACK_ABI
