// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Arrays that end exactly at, or start exactly after, a page that may not be touched: a kernel that reads or writes
/// one byte outside what it was given dies on the spot.

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <new>
#include <span>
#include <utility>

namespace blockpack::test {

enum class Guard {
  after,  ///< the byte behind the last element is protected
  before  ///< the byte before the first element is protected
};

/// `size` zero elements of T. The start is aligned for T only as far as size * sizeof(T) makes it so under
/// Guard::after; `shift_bytes` moves the array away from the guarded edge, to test every offset.
template <class T>
class GuardedArray {
 public:
  explicit GuardedArray(std::size_t size, Guard guard = Guard::after, std::size_t shift_bytes = 0) : size_(size) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const std::size_t bytes = size * sizeof(T) + shift_bytes;
    const std::size_t inner = (bytes + page - 1) / page * page;
    mapped_bytes_ = inner + 2 * page;
    map_ = ::mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map_ == MAP_FAILED) throw std::bad_alloc();
    char* first = static_cast<char*>(map_) + page;
    if (inner != 0 && ::mprotect(first, inner, PROT_READ | PROT_WRITE) != 0) {
      ::munmap(map_, mapped_bytes_);
      throw std::bad_alloc();
    }
    char* start = guard == Guard::after ? first + inner - bytes : first + shift_bytes;
    data_ = reinterpret_cast<T*>(start);
  }
  GuardedArray(GuardedArray&& other) noexcept
      : map_(std::exchange(other.map_, nullptr)),
        mapped_bytes_(other.mapped_bytes_),
        data_(other.data_),
        size_(other.size_) {}
  GuardedArray& operator=(GuardedArray&&) = delete;
  ~GuardedArray() {
    if (map_ != nullptr) ::munmap(map_, mapped_bytes_);
  }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::span<T> span() noexcept { return {data_, size_}; }
  T* begin() noexcept { return data_; }
  T* end() noexcept { return data_ + size_; }
  T& operator[](std::size_t i) noexcept { return data_[i]; }

 private:
  void* map_ = nullptr;
  std::size_t mapped_bytes_ = 0;
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace blockpack::test
