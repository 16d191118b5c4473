// SPDX-License-Identifier: Apache-2.0
/// Merging the tables on AVX-512: 8 counters of each of the 4 tables widened to 64 bits and added. A pair of tables
/// cannot be added before widening, its sum may need 33 bits. Limit: reading 1 MiB of tables from L2.

#include <immintrin.h>

#include "kernels/histogram/histogram_kernels.hpp"

namespace blockpack::kernels {
namespace {

void merge(const std::uint32_t* tables, std::uint64_t* counts) noexcept {
  for (std::size_t c = 0; c < kBins; c += 8) {
    __m512i sum = _mm512_loadu_si512(reinterpret_cast<const __m512i*>(counts + c));
    for (std::size_t t = 0; t < kTables; ++t) {
      const auto* from = reinterpret_cast<const __m256i*>(tables + t * kBins + c);
      sum = _mm512_add_epi64(sum, _mm512_cvtepu32_epi64(_mm256_loadu_si256(from)));
    }
    _mm512_storeu_si512(reinterpret_cast<__m512i*>(counts + c), sum);
  }
}

}  // namespace

void install_histogram_avx512(HistogramKernels& table, Features) noexcept { table.merge = {merge, "avx512"}; }

}  // namespace blockpack::kernels
