// SPDX-License-Identifier: Apache-2.0
#include "blockpack/io/mapped_file.hpp"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>

#include "blockpack/io/checked.hpp"
#include "io/syscalls.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  constexpr const char* kFunction = "MappedFile::open";
  struct Allocated : MappedFile {};  // the constructor is private to make a shared file the only kind
  auto file = std::make_shared<Allocated>();
  file->path_ = path;
  io_detail::OpenedFile opened = io_detail::open_regular(kFunction, path);
  file->fd_ = opened.fd.release();
  if (opened.size != 0) {
    const auto length = size_cast<std::size_t>(opened.size, kFunction);
    void* address = io_detail::syscalls().mmap(nullptr, length, PROT_READ, MAP_SHARED, file->fd_, 0);
    if (address == MAP_FAILED) io_detail::throw_io(kFunction, "map", path, errno);
    file->bytes_ = {static_cast<const std::byte*>(address), length};
  }
  struct stat info {};
  if (io_detail::syscalls().fstat(file->fd_, &info) != 0)
    io_detail::throw_io(kFunction, "read the size of", path, errno);
  if (size_cast<std::uint64_t>(info.st_size, kFunction) != opened.size)
    throw IoError(fmt::format("{}: the size of '{}' changes while it is opened", kFunction, path.string()), EAGAIN);
  return file;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  if (fd_ >= 0) ::close(fd_);
}

void MappedFile::read(std::uint64_t offset, std::span<std::byte> dst) const {
  static_cast<void>(slice(bytes_, offset, dst.size(), "MappedFile::read"));
  io_detail::read_fully("MappedFile::read", fd_, offset, dst, path_);
}

void MappedFile::release(std::uint64_t offset, std::uint64_t length) const noexcept {
  if (offset >= bytes_.size() || length == 0) return;
  // Rounded outward. A panel that starts inside a page gives back what the panel before it left; and the system maps
  // pages around the one that is touched, some of them behind us, in windows (64 KiB unless configured larger).
  constexpr std::uintptr_t kInWindow = 0x1fffff;  // 2 MiB
  const std::span<const std::byte> rest = bytes_.subspan(offset);
  const std::span<const std::byte> part = rest.first(std::min<std::uint64_t>(rest.size(), length));
  const auto window_of = [](const std::byte* p) { return reinterpret_cast<std::uintptr_t>(p) & ~kInWindow; };
  const auto* const begin =
      std::max(bytes_.data(), reinterpret_cast<const std::byte*>(window_of(part.data())), std::less<>());
  const auto* const last = reinterpret_cast<const std::byte*>(window_of(&part.back()) | kInWindow);
  const auto* const end = std::min(&bytes_.back(), last, std::less<>());
  io_detail::syscalls().madvise(const_cast<std::byte*>(begin), static_cast<std::size_t>(std::distance(begin, end)),
                                MADV_DONTNEED);
}

void MappedFile::release(std::span<const std::byte> part) const noexcept {
  const std::less_equal<const std::byte*> not_after;
  const std::byte* const first = bytes_.data();
  if (part.empty() || bytes_.empty() || !not_after(first, part.data()) || !not_after(part.data(), &bytes_.back()))
    return;
  release(static_cast<std::uint64_t>(std::distance(first, part.data())), part.size());
}

std::string read_file(const std::filesystem::path& path, std::uint64_t max_bytes) {
  constexpr const char* kFunction = "read_file";
  const io_detail::OpenedFile opened = io_detail::open_regular(kFunction, path);
  if (opened.size > max_bytes)
    throw FormatError(
        fmt::format("{}: '{}' has {} bytes, at most {} are read", kFunction, path.string(), opened.size, max_bytes),
        "LimitExceeded");
  std::string content(size_cast<std::size_t>(opened.size, kFunction), '\0');
  io_detail::read_fully(kFunction, opened.fd.get(), 0, std::as_writable_bytes(std::span(content)), path);
  return content;
}

}  // namespace blockpack::inline BLOCKPACK_ABI
