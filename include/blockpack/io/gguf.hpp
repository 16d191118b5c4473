// SPDX-License-Identifier: Apache-2.0
#pragma once

/// GGUF: the container of ggml and llama.cpp. Typed metadata, then tensors of plain or block-quantized types, each at
/// an aligned offset. The reader trusts no byte; the writer gives the same bytes for the same input, and a file appears
/// whole or not at all.
///
/// Layout, little-endian: "GGUF", u32 version, i64 tensors, i64 entries; the entries: string key, u32 type, value; the
/// tensors: string name, u32 rank, i64 dimensions with the fastest first, u32 type, u64 offset; zeros up to the
/// alignment; the data. A string is a u64 length and bytes. docs/io.md has the rules, docs/security.md what is
/// promised. Source: docs/gguf.md and gguf.cpp of ggml-org/ggml.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/io/tensor.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// The types of tensors, with their numbers in the file. Missing numbers were removed from the format.
enum class GgufTensorType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q8_1 = 9,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  q8_k = 15,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq1_s = 19,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  iq1_m = 29,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
  mxfp4 = 39,
  nvfp4 = 40,
  q1_0 = 41,
  q2_0 = 42,
};

/// Name and size of a type: rows are stored as blocks of `block` elements in `bytes` bytes each.
struct GgufTensorTypeInfo {
  GgufTensorType type = GgufTensorType::f32;
  std::string_view name;  ///< as ggml spells it, in capitals: Q4_K
  index_t block = 1;
  index_t bytes = 4;
  std::optional<Dtype> dtype;  ///< for plain types: the same elements as a safetensors dtype
};

/// Every type in the order of its number.
BLOCKPACK_API std::span<const GgufTensorTypeInfo> gguf_tensor_types() noexcept;
BLOCKPACK_API const GgufTensorTypeInfo& gguf_tensor_type_info(GgufTensorType type) noexcept;

/// The plain type with these elements: F32, F16, BF16, F64, I8, I16, I32, I64; nothing for other dtypes.
BLOCKPACK_API std::optional<GgufTensorType> gguf_tensor_type_of(Dtype dtype) noexcept;

/// Holds the place of an array of arrays, which readers do not take. Its copy constructor is not trivial on purpose: a
/// variant of vectors and trivial types alone destroys a garbage alternative when a copy runs out of memory (libstdc++
/// 12 takes it for one that always has a value).
struct GgufNestedArray {
  GgufNestedArray() noexcept {}
  GgufNestedArray(const GgufNestedArray&) noexcept {}
  GgufNestedArray& operator=(const GgufNestedArray&) noexcept { return *this; }
  bool operator==(const GgufNestedArray&) const = default;
};

/// An array in the metadata. The index of the alternative is the number of the element type in the file.
using GgufArray = std::variant<std::vector<std::uint8_t>, std::vector<std::int8_t>, std::vector<std::uint16_t>,
                               std::vector<std::int16_t>, std::vector<std::uint32_t>, std::vector<std::int32_t>,
                               std::vector<float>, std::vector<bool>, std::vector<std::string>, GgufNestedArray,
                               std::vector<std::uint64_t>, std::vector<std::int64_t>, std::vector<double>>;

/// A value in the metadata. The index of the alternative is the number of the type in the file.
using GgufValue = std::variant<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t, std::uint32_t, std::int32_t,
                               float, bool, std::string, GgufArray, std::uint64_t, std::int64_t, double>;

struct GgufEntry {
  std::string key;
  GgufValue value;
  bool operator==(const GgufEntry&) const = default;
};

/// In the order of the file. Keys are used once.
using GgufMetadata = std::vector<GgufEntry>;

/// The value of that key, or nullptr.
BLOCKPACK_API const GgufValue* find_value(const GgufMetadata& metadata, std::string_view key) noexcept;

/// The u32 entry that says to which multiple tensors are aligned: a power of two, 32 when absent.
inline constexpr std::string_view kGgufAlignmentKey = "general.alignment";

/// What a writer needs to know of a tensor before its bytes arrive.
struct GgufTensorSpec {
  std::string name;
  GgufTensorType type = GgufTensorType::f32;
  std::vector<index_t> shape;  ///< row-major: the last dimension is the fastest, the reverse of the order in the file
};

/// Bytes of a tensor. ShapeError that names the tensor when its last dimension is not a multiple of the block (the
/// message names the dimension), when a dimension is negative or when a size overflows.
BLOCKPACK_API std::uint64_t tensor_bytes(const GgufTensorSpec& spec);

/// A tensor in a file. Copies share the bytes.
struct GgufTensor {
  std::string name;
  GgufTensorType type = GgufTensorType::f32;
  std::vector<index_t> shape;                 ///< row-major, as above
  SharedBytes data;                           ///< aligned in the file, but at any address for bytes in memory
  std::shared_ptr<const MappedFile> mapping;  ///< where `data` lies, or empty for bytes in memory

  GgufTensorSpec spec() const { return {name, type, shape}; }

  /// The same tensor with its dtype. A quantized one, which has none, comes as U8 with the bytes of a row as its last
  /// dimension.
  BLOCKPACK_API Tensor stored() const;
};

/// A parsed file. Immutable; any number of threads may use it. Copies share the mapping.
class BLOCKPACK_API GgufFile {
 public:
  /// Maps the file and checks its header; no data page is touched (strict: those that hold padding).
  ///
  /// Errors:  IoError when it cannot be opened or read. FormatError when it is not valid, with the place in the file
  ///          and code() = InvalidMagic, InvalidVersion, UnexpectedEnd, InvalidCount, InvalidName, DuplicateKey,
  ///          InvalidValueType, InvalidBool, InvalidAlignment, InvalidShape, ValidationOverflow, InvalidTensorType,
  ///          MisalignedRow, InvalidOffset, MissingData, LimitExceeded or, strict only, UnownedBytes.
  /// Cost:    time and memory linear in the size of the header (but for sorting its names).
  static GgufFile open(const std::filesystem::path& path, const ReadLimits& limits = {});

  /// The same for bytes in memory; the tensors share their owner.
  static GgufFile parse(SharedBytes bytes, const ReadLimits& limits = {});

  /// The caller keeps the bytes alive.
  static GgufFile parse(std::span<const std::byte> bytes, const ReadLimits& limits = {}) {
    return parse(SharedBytes(bytes, nullptr), limits);
  }

  std::uint32_t version() const noexcept { return version_; }      ///< 2 or 3, which differ in nothing else
  std::uint64_t alignment() const noexcept { return alignment_; }  ///< of each tensor in the file
  const GgufMetadata& metadata() const noexcept { return metadata_; }

  /// In the order of the file.
  const std::vector<GgufTensor>& tensors() const noexcept { return tensors_; }

  /// The tensor of that name, or nullptr.
  const GgufTensor* find(std::string_view name) const noexcept;

  /// The tensor of that name; ValueError that names it when there is none.
  const GgufTensor& tensor(std::string_view name) const;

  /// Where the data start in the file; where the header ends when there are no tensors.
  std::uint64_t data_offset() const noexcept { return data_offset_; }

 private:
  GgufFile() = default;
  static GgufFile parse_file(SharedBytes file, std::shared_ptr<const MappedFile> mapping, std::string_view what,
                             const ReadLimits& limits);

  std::uint32_t version_ = 0;
  std::uint64_t alignment_ = 0;
  std::uint64_t data_offset_ = 0;
  GgufMetadata metadata_;
  std::vector<GgufTensor> tensors_;
  std::vector<std::size_t> by_name_;
};

/// Writes a file (version 3) whose tensors are declared first and filled in any order.
///
/// Tensors and entries are stored in the order they are given; the alignment is that of the metadata. The bytes of the
/// file depend on the tensors and the metadata alone: reading a file that this class wrote and writing it again gives
/// the same bytes.
class BLOCKPACK_API GgufWriter {
 public:
  /// Creates the temporary file at its full size.
  ///
  /// Errors:  ValueError for a key that is empty, not UTF-8, holds NUL or is used twice, for a tensor name of more than
  ///          63 bytes or with the same faults, for an array of arrays, and for an alignment that is no u32 power of
  ///          two; ShapeError for more than four dimensions and as tensor_bytes; IoError as AtomicFile.
  GgufWriter(const std::filesystem::path& target, std::vector<GgufTensorSpec> tensors, GgufMetadata metadata = {});

  GgufWriter(GgufWriter&&) noexcept;
  GgufWriter& operator=(GgufWriter&&) = delete;
  /// Without commit: removes the temporary file; the target is as it was.
  ~GgufWriter();

  /// Bytes [byte_offset, byte_offset + bytes.size()) of a tensor. Any order, from any thread.
  /// Errors:  ValueError for an unknown tensor, ShapeError for bytes outside it, IoError from the system.
  void write(std::string_view tensor, std::uint64_t byte_offset, std::span<const std::byte> bytes);

  /// Writes the header and puts the file in place, with the metadata of the constructor or with new ones, such as
  /// hashes that are known only now.
  /// Errors:  ValueError when a tensor has bytes that were never written, or when new metadata would move the data (a
  ///          string of the same length never does); the writer stays usable. IoError as AtomicFile::commit.
  void commit();
  void commit(const GgufMetadata& metadata);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
