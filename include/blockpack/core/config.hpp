// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Version, visibility and the inline namespace.
///
/// `blockpack::blockpack` (compiled backend) and `blockpack::headers` (scalar templates only) put their definitions
/// into different inline namespaces, and the version is part of the name, so two builds in one program cannot merge
/// silently.

#define BLOCKPACK_VERSION_MAJOR 0
#define BLOCKPACK_VERSION_MINOR 1
#define BLOCKPACK_VERSION_PATCH 0
#define BLOCKPACK_VERSION_STRING "0.1.0"

#if defined(BLOCKPACK_HEADERS_ONLY)
#define BLOCKPACK_ABI v0_1_headers
#else
#define BLOCKPACK_ABI v0_1
#endif

// Templates that use Eigen lie in a namespace of their own within it. The compiled library instantiates them with an
// Eigen under another name (CMakeLists.txt), so that the flags a program compiles Eigen with meet nothing of the
// library's.
#if !defined(BLOCKPACK_EIGEN_ABI)
#define BLOCKPACK_EIGEN_ABI fits
#endif

#if defined(BLOCKPACK_HEADERS_ONLY) || defined(BLOCKPACK_STATIC)
#define BLOCKPACK_API
#elif defined(_WIN32)
#if defined(BLOCKPACK_BUILDING)
#define BLOCKPACK_API __declspec(dllexport)
#else
#define BLOCKPACK_API __declspec(dllimport)
#endif
#else
#define BLOCKPACK_API __attribute__((visibility("default")))
#endif
