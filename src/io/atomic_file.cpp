// SPDX-License-Identifier: Apache-2.0
#include "blockpack/io/atomic_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <string>
#include <utility>

#include "blockpack/io/checked.hpp"
#include "io/syscalls.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace {

namespace fs = std::filesystem;
constexpr const char* kAtomicFile = "AtomicFile";
constexpr std::string_view kSuffix = ".blockpack-tmp";

fs::path folder_of(const fs::path& target) {
  const fs::path folder = target.parent_path();
  return folder.empty() ? fs::path(".") : folder;
}

/// What temporaries of a target are called: `.<name>.` … `.blockpack-tmp`. A name near the limit of the file system is
/// cut and told apart by a hash.
std::string temporary_prefix(const fs::path& target) {
  const std::string name = target.filename().string();
  constexpr std::size_t kLongest = 180;
  if (name.size() <= kLongest) return fmt::format(".{}.", name);
  std::uint64_t hash = 0xcbf29ce484222325u;                                                  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;  // arithmetic: a hash
  return fmt::format(".{}.{:016x}.", name.substr(0, kLongest), hash);
}

/// Removes temporaries of this target whose writer is gone: nobody holds their lock.
void remove_stale(const fs::path& folder, const std::string& prefix) {
  int ignored = 0;
  for (const std::string& name : io_detail::list_folder(folder, ignored)) {
    if (!name.starts_with(prefix) || !name.ends_with(kSuffix)) continue;
    const fs::path path = folder / name;
    const io_detail::FileDescriptor fd(io_detail::open_retrying(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0));
    if (fd.get() >= 0 && ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) ::unlink(path.c_str());
  }
}

std::string unique_part() {
  static std::atomic<std::uint64_t> counter{0};
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  return fmt::format("{}-{:x}-{}", ::getpid(), now, counter.fetch_add(1));
}

}  // namespace

AtomicFile::AtomicFile(const fs::path& target) : target_(target) {
  struct stat info {};
  mode_t mode = 0666;
  bool replaces = false;
  if (::lstat(target_.c_str(), &info) == 0 && S_ISLNK(info.st_mode)) {
    std::error_code error;
    target_ = fs::canonical(target_, error);
    if (error) io_detail::throw_io(kAtomicFile, "follow the link", target, error.value());
  }
  if (target_.filename().empty()) io_detail::throw_io(kAtomicFile, "write", target, EISDIR);
  if (::stat(target_.c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode)) io_detail::throw_io(kAtomicFile, "write", target, EISDIR);
    if (!S_ISREG(info.st_mode))
      throw IoError(
          fmt::format("{}: '{}' is not a regular file; name a file to create or replace", kAtomicFile, target.string()),
          EINVAL);
    mode = info.st_mode & 0777;
    replaces = true;
  } else if (errno != ENOENT) {
    io_detail::throw_io(kAtomicFile, "write", target, errno);
  }

  const fs::path folder = folder_of(target_);
  const std::string prefix = temporary_prefix(target_);
  remove_stale(folder, prefix);
  for (;;) {
    temporary_ = folder / fmt::format("{}{}{}", prefix, unique_part(), kSuffix);
    io_detail::FileDescriptor fd(io_detail::open_retrying(temporary_, O_RDWR | O_CREAT | O_EXCL, mode));
    if (fd.get() < 0 && errno == EEXIST) continue;
    if (fd.get() < 0) {
      const int error = errno;
      temporary_.clear();
      io_detail::throw_io(kAtomicFile, "create a file beside", target, error);
    }
    fd_ = fd.release();
    // Between its creation and its lock another writer may take the file for a stale one: that writer holds the lock
    // or has removed the file. Where locks do not exist nobody can.
    const bool taken = ::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (!taken && ::fstat(fd_, &info) == 0 && info.st_nlink > 0) break;
    discard();
  }
  if (replaces && ::fchmod(fd_, mode) != 0) {
    const int error = errno;
    discard();
    io_detail::throw_io(kAtomicFile, "set the permissions of the new", target, error);
  }
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : target_(std::move(other.target_)), temporary_(std::move(other.temporary_)), fd_(std::exchange(other.fd_, -1)) {}

AtomicFile::~AtomicFile() { discard(); }

void AtomicFile::discard() noexcept {
  if (fd_ < 0) return;
  ::unlink(temporary_.c_str());  // while the lock is held
  ::close(fd_);
  fd_ = -1;
}

void AtomicFile::resize(std::uint64_t size) {
  int result;
  do {
    result = io_detail::syscalls().ftruncate(fd_, size_cast<off_t>(size, kAtomicFile));
  } while (result != 0 && errno == EINTR);
  if (result != 0) io_detail::throw_io(kAtomicFile, "make room for", target_, errno);
}

void AtomicFile::write(std::uint64_t offset, std::span<const std::byte> bytes) {
  if (fd_ < 0) throw IoError(fmt::format("{}: '{}' is already complete", kAtomicFile, target_.string()), EBADF);
  io_detail::write_fully(kAtomicFile, fd_, offset, bytes, target_);
}

void AtomicFile::write(std::uint64_t offset, std::string_view text) {
  write(offset, std::as_bytes(std::span(text.data(), text.size())));
}

void AtomicFile::commit() {
  if (fd_ < 0) throw IoError(fmt::format("{}: '{}' is already complete", kAtomicFile, target_.string()), EBADF);
  try {
    io_detail::sync_file(kAtomicFile, fd_, target_);
    // Opened first: after the rename nothing may fail but the sync itself.
    const fs::path folder_path = folder_of(target_);
    const io_detail::FileDescriptor folder(io_detail::open_retrying(folder_path, O_RDONLY | O_DIRECTORY, 0));
    if (io_detail::syscalls().rename(temporary_.c_str(), target_.c_str()) != 0)
      io_detail::throw_io(kAtomicFile, "replace", target_, errno);
    ::close(fd_);
    fd_ = -1;
    // A folder that may be written but not read cannot be synced; its entry reaches the disk with the next sync.
    if (folder.get() >= 0) io_detail::sync_file("AtomicFile (the file is in place)", folder.get(), folder_path);
  } catch (...) {
    discard();
    throw;
  }
}

void write_file_atomically(const fs::path& target, std::string_view content) {
  AtomicFile file(target);
  file.write(0, content);
  file.commit();
}

}  // namespace blockpack::inline BLOCKPACK_ABI
