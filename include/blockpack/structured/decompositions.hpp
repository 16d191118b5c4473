// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What the fits take from Eigen's decompositions and products: compiled once in the backend, where Eigen is under
/// another name (decompositions_eigen.hpp in headers alone). A program that fits compiles none of them.

#include <complex>
#include <span>

#include "blockpack/core/config.hpp"
#include "blockpack/core/types.hpp"
#include "blockpack/core/view.hpp"

#if defined(BLOCKPACK_HEADERS_ONLY)
namespace blockpack::inline BLOCKPACK_ABI::inline BLOCKPACK_EIGEN_ABI {
#else
namespace blockpack::inline BLOCKPACK_ABI {
#endif
namespace decompositions {

/// What a product does with the right factor and with what c holds.
enum class Product { plain, transposed, transposed_added };

/// c = a · b, c = a · bᵀ or c += a · bᵀ. T: float, double and complex numbers of them.
template <class T>
BLOCKPACK_API void multiply(Product kind, MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> c);

/// a = u · diag(sigma) · vᴴ, all min(rows, cols) singular triples, sigma falling. T: double, by divide and conquer;
/// std::complex<double>, by Jacobi rotations.
/// Shapes: a [rows, cols], finite and not empty; u [rows, min], sigma [min], v [cols, min].
/// Errors: ValueError where nothing converges. Cost: about 20 · rows · cols · min operations, rotations several times.
template <class T>
BLOCKPACK_API void thin_svd(MatrixView<const T> a, MatrixView<T> u, std::span<double> sigma, MatrixView<T> v);

/// The columns of y, at most as many as rows, become an orthonormal basis of a space that holds them, by Householder
/// reflections. T: float, double.
template <class T>
BLOCKPACK_API void householder_basis(MatrixView<T> y);

/// a · P = q · r, columns in the order that the largest remainders give. q [rows, min], r [min, cols] upper
/// triangular, order [cols]: column j of a · P is column order[j] of a. T: double.
template <class T>
BLOCKPACK_API void pivoted_qr(MatrixView<const T> a, MatrixView<T> q, MatrixView<T> r, std::span<index_t> order);

/// a = L · Lᵀ, L in the lower triangle of a. False when a is not positive definite. T: float, double.
template <class T>
BLOCKPACK_API bool cholesky(MatrixView<T> a);
/// x ← x · L⁻ᵀ and x ← x · L⁻¹, L the lower triangle of l. T: float, double.
template <class T>
BLOCKPACK_API void divide_by_transposed(MatrixView<T> x, MatrixView<const T> l);
template <class T>
BLOCKPACK_API void divide(MatrixView<T> x, MatrixView<const T> l);

}  // namespace decompositions
}  // namespace blockpack::inline BLOCKPACK_ABI

#if defined(BLOCKPACK_HEADERS_ONLY)
#include "blockpack/structured/decompositions_eigen.hpp"
#endif
