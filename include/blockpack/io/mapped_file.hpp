// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Read-only files: mapped into memory, or read whole.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "blockpack/core/config.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// A regular file mapped read-only. Shared by everything that views its bytes; unmapped with the last owner.
///
/// Another process that shortens a mapped file makes the system raise SIGBUS on access, which no library can turn into
/// an error; a file that is replaced by rename, as every writer here does it, stays intact under the mapping.
class BLOCKPACK_API MappedFile {
 public:
  /// IoError for a missing file, a directory, a pipe or device, no permission, or a file whose size changes meanwhile.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const noexcept { return bytes_; }
  const std::filesystem::path& path() const noexcept { return path_; }

  /// Copies bytes [offset, offset + dst.size()) by reading the file, not through the mapping: a file that has become
  /// shorter gives an IoError.
  void read(std::uint64_t offset, std::span<std::byte> dst) const;

  /// Gives the pages of bytes [offset, offset + length) back to the system; the part outside the file is ignored. They
  /// are read again from the file if touched later, so this never changes what a reader sees.
  void release(std::uint64_t offset, std::uint64_t length) const noexcept;

  /// The same for a part of bytes(); anything else is ignored.
  void release(std::span<const std::byte> part) const noexcept;

 private:
  MappedFile() = default;

  std::filesystem::path path_;
  std::span<const std::byte> bytes_;
  int fd_ = -1;
};

/// The content of a regular file. IoError as MappedFile::open; FormatError (`LimitExceeded`) when it is larger than
/// `max_bytes`.
BLOCKPACK_API std::string read_file(const std::filesystem::path& path, std::uint64_t max_bytes);

}  // namespace blockpack::inline BLOCKPACK_ABI
