// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Files that appear whole or not at all.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

#include "blockpack/core/config.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Writes under a temporary name in the target's folder; `commit` syncs the data, renames it over the target and syncs
/// the folder. Until then the target is not touched: an exception, a destructor without commit or the end of the
/// process leave the old file, or none.
///
/// The temporary is `.<name>.<unique>.blockpack-tmp` and locked while its writer lives. A writer first removes
/// temporaries of the same target that nobody holds, so what a killed run left is gone after the next one. Several
/// writers of one target do not disturb each other; the last commit wins.
///
/// The new file has the permission bits of the file it replaces, or 0666 without the umask. A symbolic link is followed
/// and its destination replaced.
class BLOCKPACK_API AtomicFile {
 public:
  /// IoError when the folder is missing or not writable, or when the target exists and is not a regular file (a rename
  /// would replace a device or a pipe).
  explicit AtomicFile(const std::filesystem::path& target);

  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  /// Makes the file `size` bytes long; new bytes are zero. Fails early where the size is over a limit.
  void resize(std::uint64_t size);

  /// Writes at `offset`, from any thread. IoError when the disk is full.
  void write(std::uint64_t offset, std::span<const std::byte> bytes);
  void write(std::uint64_t offset, std::string_view text);

  /// Syncs and renames. IoError leaves the target as it was, unless the message says that only syncing the folder
  /// failed. Ends the life of the temporary in any case.
  void commit();

  const std::filesystem::path& target() const noexcept { return target_; }

 private:
  void discard() noexcept;

  std::filesystem::path target_;
  std::filesystem::path temporary_;
  int fd_ = -1;
};

/// The whole of a small file at once.
BLOCKPACK_API void write_file_atomically(const std::filesystem::path& target, std::string_view content);

}  // namespace blockpack::inline BLOCKPACK_ABI
