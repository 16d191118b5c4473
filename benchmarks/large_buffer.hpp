// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Memory on 2 MiB pages where the system gives them when asked. The suite uses it for x, y and the weights of every
/// peer, so that no comparison rests on who asked for large pages.

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bench {

/// `size` elements of a trivially copyable T, indeterminate. Movable, not copyable.
template <class T>
class LargeBuffer {
 public:
  LargeBuffer() noexcept = default;
  explicit LargeBuffer(std::ptrdiff_t size) : size_(size) {
    constexpr std::size_t kPage = std::size_t{2} << 20;
    const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(T);
    const std::size_t unit = bytes < kPage ? 4096 : kPage;
    data_ = static_cast<T*>(std::aligned_alloc(unit, (bytes + unit) / unit * unit));
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (unit == kPage) madvise(static_cast<void*>(data_), (bytes + unit) / unit * unit, MADV_HUGEPAGE);
#endif
  }
  LargeBuffer(LargeBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  LargeBuffer& operator=(LargeBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~LargeBuffer() { std::free(static_cast<void*>(data_)); }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  std::ptrdiff_t size() const noexcept { return size_; }
  std::size_t size_bytes() const noexcept { return static_cast<std::size_t>(size_) * sizeof(T); }
  T* begin() noexcept { return data_; }
  T* end() noexcept { return data_ + size_; }
  const T* begin() const noexcept { return data_; }
  const T* end() const noexcept { return data_ + size_; }
  T& operator[](std::ptrdiff_t i) noexcept { return data_[i]; }
  const T& operator[](std::ptrdiff_t i) const noexcept { return data_[i]; }

 private:
  T* data_ = nullptr;
  std::ptrdiff_t size_ = 0;
};

}  // namespace bench
