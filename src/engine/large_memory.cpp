// SPDX-License-Identifier: Apache-2.0
#include "engine/large_memory.hpp"

#include <atomic>
#include <cstdint>
#include <new>
#include <string>

#include "blockpack/core/error.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace blockpack::inline BLOCKPACK_ABI {
namespace engine {

struct ScratchMemory::Scratch {
  std::size_t bytes;
  std::shared_ptr<std::byte> memory;
};
// Its last block is never freed: a product may run while the program ends.
std::atomic<ScratchMemory::Scratch*> ScratchMemory::kept_scratch{nullptr};

std::shared_ptr<std::byte> allocate_large(std::size_t bytes) {
  constexpr std::size_t kHugePage = std::size_t{1} << 21;
  const std::align_val_t alignment{bytes >= kHugePage ? kHugePage : 64};
  const std::shared_ptr<std::byte> memory(static_cast<std::byte*>(::operator new(bytes, alignment)),
                                          [alignment](std::byte* p) { ::operator delete(p, alignment); });
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes >= kHugePage) ::madvise(memory.get(), bytes, MADV_HUGEPAGE);  // advice: a refusal does no harm
#endif
  return memory;
}

std::shared_ptr<std::byte> packed_memory(const char* function, std::span<std::byte> memory, std::size_t bytes) {
  if (memory.empty()) return allocate_large(bytes);
  if (memory.size() < bytes || reinterpret_cast<std::uintptr_t>(memory.data()) % 64 != 0)
    throw ShapeError(std::string(function) + ": memory has " + std::to_string(memory.size()) + " bytes, " +
                     std::to_string(bytes) + " on a 64-byte boundary needed");
  return {std::shared_ptr<void>(), memory.data()};
}

ScratchMemory::ScratchMemory(std::size_t bytes) : scratch_(bytes > kKept ? nullptr : kept_scratch.exchange(nullptr)) {
  if (scratch_ != nullptr && scratch_->bytes >= bytes) return;
  scratch_.reset();
  scratch_.reset(new Scratch{bytes, allocate_large(bytes)});
}

ScratchMemory::~ScratchMemory() {
  if (scratch_->bytes <= kKept) scratch_.reset(kept_scratch.exchange(scratch_.release()));
}

std::byte* ScratchMemory::data() const noexcept { return scratch_->memory.get(); }

}  // namespace engine
}  // namespace blockpack::inline BLOCKPACK_ABI
