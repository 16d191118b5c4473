// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The system calls of io behind one table, so that tests can make them fail or do less than asked, and the loops that
/// make whole reads and writes of partial ones.

#include <sys/stat.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "blockpack/core/config.hpp"
#include "blockpack/core/error.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace io_detail {

struct Syscalls {
  int (*open)(const char* path, int flags, mode_t mode);
  int (*fstat)(int fd, struct stat* result);
  ssize_t (*pread)(int fd, void* data, std::size_t count, off_t offset);
  ssize_t (*pwrite)(int fd, const void* data, std::size_t count, off_t offset);
  int (*ftruncate)(int fd, off_t size);
  int (*fsync)(int fd);
  int (*rename)(const char* from, const char* to);
  void* (*mmap)(void* address, std::size_t length, int protection, int flags, int fd, off_t offset);
  int (*madvise)(void* address, std::size_t length, int advice);
};

/// The table in use. Tests replace entries and put them back; nothing else writes to it.
Syscalls& syscalls() noexcept;

/// IoError `SafetensorsFile::open: cannot open 'x': No such file or directory`.
[[noreturn]] void throw_io(std::string_view function, std::string_view action, const std::filesystem::path& path,
                           int error_number);

/// Closes a descriptor at the end of its life.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd = -1) noexcept : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.release()) {}
  FileDescriptor& operator=(FileDescriptor&&) = delete;
  ~FileDescriptor();
  int get() const noexcept { return fd_; }
  int release() noexcept {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_;
};

/// Opens with O_CLOEXEC, again when a signal interrupts; -1 and errno as open(2).
int open_retrying(const std::filesystem::path& path, int flags, mode_t mode);

/// Names in a folder, without `.` and `..`; nothing and an errno in `error` when it cannot be read. (The directory
/// iterator of the standard library ends the process when memory runs out.)
std::vector<std::string> list_folder(const std::filesystem::path& folder, int& error);

/// A regular file opened for reading, and its size. IoError for anything else.
struct OpenedFile {
  FileDescriptor fd;
  std::uint64_t size;
};
OpenedFile open_regular(std::string_view function, const std::filesystem::path& path);

/// Fills dst from `offset`; IoError when the file ends before.
void read_fully(std::string_view function, int fd, std::uint64_t offset, std::span<std::byte> dst,
                const std::filesystem::path& path);

/// Writes all of src at `offset`.
void write_fully(std::string_view function, int fd, std::uint64_t offset, std::span<const std::byte> src,
                 const std::filesystem::path& path);

/// Syncs a file; a file system that cannot is not an error.
void sync_file(std::string_view function, int fd, const std::filesystem::path& path);

}  // namespace io_detail
}  // namespace blockpack::inline BLOCKPACK_ABI
