// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Memory of many pages. On 2 MiB pages, where the system has them to give, a product of many tokens is 5 to 10 %
/// faster: fewer misses of the page table, and no lines that collide in L2 by the chance of their pages.

#include <atomic>
#include <cstddef>
#include <memory>
#include <span>

#include "blockpack/core/config.hpp"

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {

/// Memory on a 64-byte boundary, not initialized. Throws std::bad_alloc.
std::shared_ptr<std::byte> allocate_large(std::size_t bytes);

/// The caller's memory, not owned, or where it is empty `bytes` of our own. ShapeError that names `function` if it is
/// too small or not on a 64-byte boundary.
std::shared_ptr<std::byte> packed_memory(const char* function, std::span<std::byte> memory, std::size_t bytes);

/// The same for the length of a call. The block last returned is kept for the next call unless it is larger than kKept:
/// fresh pages would cost what they gain. Any number of threads may have one at once.
class ScratchMemory {
 public:
  static constexpr std::size_t kKept = std::size_t{16} << 20;

  explicit ScratchMemory(std::size_t bytes);
  ~ScratchMemory();
  ScratchMemory(const ScratchMemory&) = delete;
  ScratchMemory& operator=(const ScratchMemory&) = delete;

  std::byte* data() const noexcept;

 private:
  struct Scratch;
  static std::atomic<Scratch*> kept_scratch;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace engine
}  // namespace blockpack::inline BLOCKPACK_ABI
