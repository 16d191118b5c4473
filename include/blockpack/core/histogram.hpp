// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Histograms of 16-bit codes: counts[c] += number of elements whose code is c, for all 65,536 codes at once. The
/// entropy estimators and the lossless coders stand on them. Counts are integers, so every level gives the same.
///
///     std::vector<std::uint64_t> counts(kHistogramBins);
///     histogram_u16(codes, counts);                     // bf16 and fp16 weights, as their bits
///     histogram_rounded<bf16>(floats, counts);          // floats on the grid of bf16
///
/// -0 and +0 are two codes; add counts[0x8000] to counts[0] to merge them.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>

#include "blockpack/core/config.hpp"
#include "blockpack/core/convert.hpp"
#include "blockpack/core/error.hpp"
#include "blockpack/core/isa.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

inline constexpr std::size_t kHistogramBins = 65536;

namespace detail {

/// Rows of 16-bit codes at any address, even an odd one, or rows of float to be rounded first.
struct HistogramSource {
  const void* data = nullptr;
  index_t rows = 0;
  index_t cols = 0;
  index_t row_stride = 0;  ///< in elements
};

inline void check_histogram_counts(const char* function, std::size_t bins) {
  if (bins != kHistogramBins)
    throw ShapeError(std::string(function) + ": counts has " + std::to_string(bins) + " bins, 65536 needed");
}

#if defined(BLOCKPACK_HEADERS_ONLY)
inline void histogram_codes(const HistogramSource& src, std::uint64_t* counts, Isa) {
  for (index_t i = 0; i < src.rows; ++i)
    for (index_t j = 0; j < src.cols; ++j) {
      std::uint16_t code;
      std::memcpy(&code, static_cast<const std::byte*>(src.data) + 2 * (i * src.row_stride + j), sizeof(code));
      ++counts[code];
    }
}
template <class T>
void histogram_floats(const HistogramSource& src, std::uint64_t* counts, Isa) {
  for (index_t i = 0; i < src.rows; ++i)
    for (index_t j = 0; j < src.cols; ++j)
      ++counts[T(static_cast<const float*>(src.data)[i * src.row_stride + j]).bits];
}
#else
BLOCKPACK_API void histogram_codes(const HistogramSource& src, std::uint64_t* counts, Isa level);
BLOCKPACK_API void histogram_rounded(ScalarKind kind, const HistogramSource& src, std::uint64_t* counts, Isa level);
template <class T>
void histogram_floats(const HistogramSource& src, std::uint64_t* counts, Isa level) {
  histogram_rounded(std::is_same_v<T, bf16> ? ScalarKind::bf16 : ScalarKind::fp16, src, counts, level);
}
#endif

}  // namespace detail

/// Adds the histogram of `codes` to `counts`.
///
/// Shapes:  codes is any matrix; counts has 65,536 bins.
/// Errors:  ShapeError if counts has another size; UnsupportedError if `level` does not run here; std::bad_alloc.
/// Cost:    reads codes once, on the calling thread; 1 MiB of scratch from a million elements on, none below.
inline void histogram_u16(MatrixView<const std::uint16_t> codes, std::span<std::uint64_t> counts,
                          Isa level = active_isa()) {
  detail::check_histogram_counts("histogram_u16", counts.size());
  detail::histogram_codes({codes.data(), codes.rows(), codes.cols(), codes.row_stride()}, counts.data(), level);
}
inline void histogram_u16(std::span<const std::uint16_t> codes, std::span<std::uint64_t> counts,
                          Isa level = active_isa()) {
  const auto n = static_cast<index_t>(codes.size());
  histogram_u16(MatrixView<const std::uint16_t>(codes.data(), 1, n), counts, level);
}

/// The same for little-endian codes at any address, as they lie in a file. ShapeError if the number of bytes is odd.
inline void histogram_u16_bytes(std::span<const std::byte> codes, std::span<std::uint64_t> counts,
                                Isa level = active_isa()) {
  detail::check_histogram_counts("histogram_u16_bytes", counts.size());
  if (codes.size() % 2 != 0)
    throw ShapeError("histogram_u16_bytes: codes has " + std::to_string(codes.size()) +
                     " bytes, an even number needed");
  const auto n = static_cast<index_t>(codes.size() / 2);
  detail::histogram_codes({codes.data(), 1, n, n}, counts.data(), level);
}

/// Rounds each float to T (bf16 or fp16, half to even) and adds the histogram of the codes to `counts`.
/// Shapes and errors as above; T has to be named.
template <class T>
requires(std::is_same_v<T, bf16> || std::is_same_v<T, fp16>) void histogram_rounded(MatrixView<const float> values,
                                                                                    std::span<std::uint64_t> counts,
                                                                                    Isa level = active_isa()) {
  detail::check_histogram_counts("histogram_rounded", counts.size());
  detail::histogram_floats<T>({values.data(), values.rows(), values.cols(), values.row_stride()}, counts.data(), level);
}
template <class T>
requires(std::is_same_v<T, bf16> || std::is_same_v<T, fp16>) void histogram_rounded(std::span<const float> values,
                                                                                    std::span<std::uint64_t> counts,
                                                                                    Isa level = active_isa()) {
  const auto n = static_cast<index_t>(values.size());
  histogram_rounded<T>(MatrixView<const float>(values.data(), 1, n), counts, level);
}

}  // namespace blockpack::inline BLOCKPACK_ABI
