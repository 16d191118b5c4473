// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The packed form of an operator's weights, built at most once per weight type under std::call_once.
///
/// A packed form belongs to one SIMD level. A call that forces another level than the one packed for computes from the
/// stored form instead; it never packs twice.

#include <array>
#include <atomic>
#include <memory>
#include <mutex>

#include "blockpack/core/config.hpp"
#include "blockpack/core/engine.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

#if !defined(BLOCKPACK_HEADERS_ONLY)

/// Shared by the copies of an operator; safe to use from any number of threads.
class PackedCache {
 public:
  explicit PackedCache(PackPolicy policy) : policy_(policy) {}

  /// The packed weights for this call, or null when it must compute from the stored form. Packs on the first call of an
  /// `on_first_use` cache; an exception (out of memory) leaves the cache empty and the next call tries again.
  const PackedWeights* get(const RowSource& w, WeightType type, const Execution& how) {
    if (policy_.kind == PackPolicy::Kind::none) return nullptr;
    Entry& entry = entries_[static_cast<std::size_t>(type)];
    if (policy_.kind == PackPolicy::Kind::on_first_use) {
      std::call_once(entry.once, [&] { store(entry, w, type, how, {}); });
    }
    const bool usable = entry.ready.load(std::memory_order_acquire) && entry.packed.level() == how.level();
    return usable ? &entry.packed : nullptr;
  }

  /// Packs now, for the `ahead` and `into` policies; does nothing for the others.
  void pack_ahead(const RowSource& w, WeightType type, const Execution& how) {
    if (policy_.kind != PackPolicy::Kind::ahead && policy_.kind != PackPolicy::Kind::into) return;
    Entry& entry = entries_[static_cast<std::size_t>(type)];
    std::call_once(entry.once, [&] { store(entry, w, type, how, policy_.memory); });
  }

  /// Bytes of all packed forms held.
  std::size_t bytes() const noexcept {
    std::size_t sum = 0;
    for (const Entry& e : entries_)
      if (e.ready.load(std::memory_order_acquire)) sum += e.packed.bytes();
    return sum;
  }

 private:
  struct Entry {
    std::once_flag once;
    std::atomic<bool> ready{false};
    PackedWeights packed;
  };
  static void store(Entry& entry, const RowSource& w, WeightType type, const Execution& how,
                    std::span<std::byte> memory) {
    entry.packed = PackedWeights::pack(w, type, how, memory);
    entry.ready.store(true, std::memory_order_release);
  }

  PackPolicy policy_;
  std::array<Entry, 2> entries_;
};

#endif

}  // namespace blockpack::inline BLOCKPACK_ABI
