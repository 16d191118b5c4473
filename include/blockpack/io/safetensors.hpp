// SPDX-License-Identifier: Apache-2.0
#pragma once

/// safetensors: a JSON header that names tensors, then their bytes without gaps. The reader trusts no byte; the writer
/// gives the same bytes for the same input, and a file appears whole or not at all.
///
/// Layout: u64 little-endian N; N bytes of JSON, name -> {"dtype", "shape", "data_offsets": [begin, end]} plus an
/// optional "__metadata__" of strings; the data. docs/io.md has the rules, docs/security.md what is promised.
/// Source: the format text of huggingface/safetensors; duplicate keys are refused here as that text demands.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/buffer.hpp"
#include "blockpack/core/config.hpp"
#include "blockpack/io/tensor.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// The strings of `__metadata__`, ordered by key.
using Metadata = std::map<std::string, std::string, std::less<>>;

/// A parsed file. Immutable; any number of threads may use it. Copies share the mapping.
class BLOCKPACK_API SafetensorsFile {
 public:
  /// Maps the file and checks its header; no data page is touched.
  ///
  /// Errors:  IoError when it cannot be opened or read. FormatError when it is not valid, with the place in the file
  /// and
  ///          code() = HeaderTooSmall, HeaderTooLarge, InvalidHeaderLength, InvalidHeader (not UTF-8),
  ///          InvalidHeaderStart (strict only), InvalidHeaderDeserialization, DuplicateKey, LimitExceeded,
  ///          InvalidOffset, ValidationOverflow, MisalignedSlice, TensorInvalidInfo or MetadataIncompleteBuffer.
  /// Cost:    time and memory linear in the size of the header (but for sorting its names).
  static SafetensorsFile open(const std::filesystem::path& path, const ReadLimits& limits = {});

  /// The same for bytes in memory; the tensors share their owner.
  static SafetensorsFile parse(SharedBytes bytes, const ReadLimits& limits = {});

  /// The caller keeps the bytes alive.
  static SafetensorsFile parse(std::span<const std::byte> bytes, const ReadLimits& limits = {}) {
    return parse(SharedBytes(bytes, nullptr), limits);
  }

  /// In the order of their data.
  const std::vector<Tensor>& tensors() const noexcept { return tensors_; }

  /// The tensor of that name, or nullptr.
  const Tensor* find(std::string_view name) const noexcept;

  /// The tensor of that name; ValueError that names it when there is none.
  const Tensor& tensor(std::string_view name) const;

  const Metadata& metadata() const noexcept { return metadata_; }

  /// Where the data start in the file.
  std::uint64_t data_offset() const noexcept { return data_offset_; }

 private:
  SafetensorsFile() = default;
  static SafetensorsFile parse_parts(std::span<const std::byte> prefix, std::span<const std::byte> header,
                                     SharedBytes file, std::shared_ptr<const MappedFile> mapping, std::string_view what,
                                     const ReadLimits& limits);

  std::vector<Tensor> tensors_;
  std::vector<std::size_t> by_name_;
  Metadata metadata_;
  std::uint64_t data_offset_ = 0;
};

/// Writes a file whose tensors are declared first and filled in any order.
///
/// Tensors are stored by descending alignment rank of their dtype, then by name; the header is padded with spaces to a
/// multiple of 8 bytes. The bytes of the file depend on the tensors, the metadata and `header_reserve` alone.
class BLOCKPACK_API SafetensorsWriter {
 public:
  /// Creates the temporary file at its full size.
  ///
  /// `header_reserve` sets aside at least that many bytes for the header, for metadata that `commit` brings.
  /// Errors:  ValueError for a name that is empty, not UTF-8, used twice, `__metadata__` or longer than 64 KiB;
  ///          ShapeError for sizes that overflow; IoError as AtomicFile.
  SafetensorsWriter(const std::filesystem::path& target, std::vector<TensorSpec> tensors, Metadata metadata = {},
                    std::uint64_t header_reserve = 0);

  SafetensorsWriter(SafetensorsWriter&&) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) = delete;
  /// Without commit: removes the temporary file; the target is as it was.
  ~SafetensorsWriter();

  /// Bytes [byte_offset, byte_offset + bytes.size()) of a tensor. Any order, from any thread.
  /// Errors:  ValueError for an unknown tensor, ShapeError for bytes outside it, IoError from the system.
  void write(std::string_view tensor, std::uint64_t byte_offset, std::span<const std::byte> bytes);

  /// Writes the header and puts the file in place, with the metadata of the constructor or with new ones.
  /// Errors:  ValueError when a tensor has bytes that were never written, or when the header does not fit what was set
  ///          aside; the writer stays usable. IoError as AtomicFile::commit.
  void commit();
  void commit(const Metadata& metadata);

  /// Bytes the header would take with this metadata, padding included: what to set aside.
  static std::uint64_t header_bytes(const std::vector<TensorSpec>& tensors, const Metadata& metadata);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace blockpack::inline BLOCKPACK_ABI
