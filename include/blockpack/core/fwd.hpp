// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Forward declarations of the core types, for headers that name them only.

#include <cstddef>
#include <cstdint>

#include "blockpack/core/config.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Every index, size and stride, in elements unless the name ends in `_bytes`.
using index_t = std::ptrdiff_t;

struct MatrixShape;
template <class T>
class MatrixView;
template <class T>
class AlignedBuffer;
struct SharedBytes;

struct bf16;
struct fp16;
struct e8m0;

class Error;
class ShapeError;
class ValueError;
class FormatError;
class UnsupportedError;
class IoError;
class CancelledError;

enum class Isa : std::uint8_t;
struct Execution;

enum class Activations : std::uint8_t;
struct Epilogue;
struct ApplyOptions;
class ActivationView;
class ResultView;
struct Section;
struct PackPolicy;
class AnyLinear;
template <class T>
struct DenseFormat;

enum class NonFinite : std::uint8_t;
struct EncodeOptions;

class ColumnStats;
class GramMatrix;
class SecondMoments;
class ErrorStats;

}  // namespace blockpack::inline BLOCKPACK_ABI
