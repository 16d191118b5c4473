// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Memory: `AlignedBuffer` owns a 64-byte aligned array, `SharedBytes` is a run of bytes together with whatever keeps
/// it alive (an owned buffer, a mapped file, or nothing when the caller promises to).

#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "blockpack/core/config.hpp"
#include "blockpack/core/types.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// A fixed-size array of trivially copyable T that starts on a cache line. Movable, not copyable.
template <class T>
class AlignedBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  static constexpr std::size_t kAlignment = 64;

  AlignedBuffer() noexcept = default;

  /// `size` elements, all bytes zero. ShapeError if size is negative or its bytes overflow; std::bad_alloc.
  explicit AlignedBuffer(index_t size) : AlignedBuffer(size, Uninitialized{}) {
    if (data_ != nullptr) std::memset(static_cast<void*>(data_), 0, size_bytes());
  }

  /// `size` elements whose values are indeterminate: for memory that is written before it is read.
  static AlignedBuffer uninitialized(index_t size) { return AlignedBuffer(size, Uninitialized{}); }

  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~AlignedBuffer() { ::operator delete (static_cast<void*>(data_), std::align_val_t{kAlignment}); }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  index_t size() const noexcept { return size_; }
  std::size_t size_bytes() const noexcept { return static_cast<std::size_t>(size_) * sizeof(T); }
  bool empty() const noexcept { return size_ == 0; }
  T* begin() noexcept { return data_; }
  T* end() noexcept { return data_ + size_; }
  const T* begin() const noexcept { return data_; }
  const T* end() const noexcept { return data_ + size_; }
  T& operator[](index_t i) noexcept { return data_[i]; }
  const T& operator[](index_t i) const noexcept { return data_[i]; }
  std::span<T> span() noexcept { return {data_, static_cast<std::size_t>(size_)}; }
  std::span<const T> span() const noexcept { return {data_, static_cast<std::size_t>(size_)}; }

 private:
  struct Uninitialized {};
  AlignedBuffer(index_t size, Uninitialized) : size_(size) {
    const index_t bytes = checked_mul(size, static_cast<index_t>(sizeof(T)), "AlignedBuffer");
    if (bytes == 0) return;
    data_ = static_cast<T*>(::operator new (static_cast<std::size_t>(bytes), std::align_val_t{kAlignment}));
  }

  T* data_ = nullptr;
  index_t size_ = 0;
};

/// Read-only bytes and their owner. Copies share the owner. With an empty owner the caller keeps the memory alive.
struct SharedBytes {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;

  SharedBytes() = default;
  SharedBytes(std::span<const std::byte> view, std::shared_ptr<const void> keep_alive)
      : bytes(view), owner(std::move(keep_alive)) {}

  /// Takes the buffer over.
  template <class T>
  explicit SharedBytes(AlignedBuffer<T> buffer) {
    auto shared = std::make_shared<const AlignedBuffer<T>>(std::move(buffer));
    bytes = std::as_bytes(shared->span());
    owner = std::move(shared);
  }

  /// Sub-range that shares the owner; the caller has checked the bounds.
  SharedBytes subspan(std::size_t offset, std::size_t count) const { return {bytes.subspan(offset, count), owner}; }
};

}  // namespace blockpack::inline BLOCKPACK_ABI
