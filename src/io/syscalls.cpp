// SPDX-License-Identifier: Apache-2.0
#include "io/syscalls.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <system_error>

#include "blockpack/io/checked.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace io_detail {
namespace {

/// One call moves at most this much: Linux caps a transfer below 2 GiB anyway.
constexpr std::uint64_t kMaxTransfer = std::uint64_t{1} << 30;  // arithmetic: a constant

int real_open(const char* path, int flags, mode_t mode) { return ::open(path, flags, mode); }

}  // namespace

Syscalls& syscalls() noexcept {
  static Syscalls table{real_open, ::fstat, ::pread, ::pwrite, ::ftruncate, ::fsync, ::rename, ::mmap, ::madvise};
  return table;
}

void throw_io(std::string_view function, std::string_view action, const std::filesystem::path& path, int error_number) {
  throw IoError(fmt::format("{}: cannot {} '{}': {}", function, action, path.string(),
                            std::generic_category().message(error_number)),
                error_number);
}

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) ::close(fd_);
}

int open_retrying(const std::filesystem::path& path, int flags, mode_t mode) {
  int fd;
  do {
    fd = syscalls().open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

std::vector<std::string> list_folder(const std::filesystem::path& folder, int& error) {
  struct Closer {
    void operator()(DIR* handle) const noexcept { ::closedir(handle); }
  };
  std::vector<std::string> names;
  const std::unique_ptr<DIR, Closer> handle(::opendir(folder.c_str()));
  error = handle ? 0 : errno;
  while (handle) {
    errno = 0;
    const dirent* entry = ::readdir(handle.get());
    if (entry == nullptr) {
      error = errno;
      break;
    }
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  return names;
}

OpenedFile open_regular(std::string_view function, const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe nobody writes to must not wait. It means nothing for regular files.
  FileDescriptor fd(open_retrying(path, O_RDONLY | O_NONBLOCK, 0));
  if (fd.get() < 0) throw_io(function, "open", path, errno);
  struct stat info {};
  if (syscalls().fstat(fd.get(), &info) != 0) throw_io(function, "read the size of", path, errno);
  if (S_ISDIR(info.st_mode)) throw_io(function, "read", path, EISDIR);
  if (!S_ISREG(info.st_mode))
    throw IoError(fmt::format("{}: '{}' is not a regular file (a pipe or a device); copy it to one first", function,
                              path.string()),
                  EINVAL);
  return {std::move(fd), size_cast<std::uint64_t>(info.st_size, "the size of a file")};
}

void read_fully(std::string_view function, int fd, std::uint64_t offset, std::span<std::byte> dst,
                const std::filesystem::path& path) {
  while (!dst.empty()) {
    const std::size_t count = std::min<std::uint64_t>(dst.size(), kMaxTransfer);
    const ssize_t got = syscalls().pread(fd, dst.data(), count, size_cast<off_t>(offset, "a file offset"));
    if (got < 0) {
      if (errno == EINTR) continue;
      throw_io(function, "read", path, errno);
    }
    if (got == 0)
      throw IoError(fmt::format("{}: '{}' ends at byte {}, {} more needed; it became shorter while it was read",
                                function, path.string(), offset, dst.size()),
                    EIO);
    const auto moved = size_cast<std::uint64_t>(got, "read");
    offset = size_add(offset, moved, "a file offset");
    dst = slice(dst, moved, size_sub(dst.size(), moved, "read"), "read");
  }
}

void write_fully(std::string_view function, int fd, std::uint64_t offset, std::span<const std::byte> src,
                 const std::filesystem::path& path) {
  while (!src.empty()) {
    const std::size_t count = std::min<std::uint64_t>(src.size(), kMaxTransfer);
    const ssize_t put = syscalls().pwrite(fd, src.data(), count, size_cast<off_t>(offset, "a file offset"));
    if (put < 0) {
      if (errno == EINTR) continue;
      throw_io(function, "write", path, errno);
    }
    if (put == 0) throw_io(function, "write", path, ENOSPC);  // would loop for ever
    const auto moved = size_cast<std::uint64_t>(put, "write");
    offset = size_add(offset, moved, "a file offset");
    src = slice(src, moved, size_sub(src.size(), moved, "write"), "write");
  }
}

void sync_file(std::string_view function, int fd, const std::filesystem::path& path) {
  int result;
  do {
    result = syscalls().fsync(fd);
  } while (result != 0 && errno == EINTR);
  if (result != 0 && errno != EINVAL && errno != ENOTSUP) throw_io(function, "sync", path, errno);
}

}  // namespace io_detail
}  // namespace blockpack::inline BLOCKPACK_ABI
