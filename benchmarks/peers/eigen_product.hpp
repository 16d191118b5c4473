// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#if defined(_WIN32)
#define BENCH_EXPORT __declspec(dllexport)
#else
#define BENCH_EXPORT __attribute__((visibility("default")))
#endif

/// y [m, n] = x [m, k] · w [n, k]ᵀ, all row-major and contiguous.
extern "C" void bench_eigen_product(const float* x, const float* w, float* y, std::ptrdiff_t m, std::ptrdiff_t n,
                                    std::ptrdiff_t k, int threads);

/// The instruction sets Eigen was compiled for.
extern "C" const char* bench_eigen_simd();
