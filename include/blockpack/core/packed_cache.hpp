// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The packed form of an operator's weights, built at most once per weight type under std::call_once.
///
/// Packed weights belong to one SIMD level. A call that forces another level than the one packed for computes from the
/// stored form instead; it never packs twice. Packed codes serve every level that has kernels for them.

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <utility>

#include "blockpack/core/config.hpp"
#include "blockpack/core/engine.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

#if !defined(BLOCKPACK_HEADERS_ONLY)

/// A packed form that is built once: `store` runs under `once`, `ready` says that readers may look.
template <class Packed>
struct PackedOnce {
  std::once_flag once;
  std::atomic<bool> ready{false};
  Packed packed;
  void store(Packed&& p) {
    packed = std::move(p);
    ready.store(true, std::memory_order_release);
  }
};

/// Shared by the copies of an operator; safe to use from any number of threads.
class PackedCache {
 public:
  explicit PackedCache(PackPolicy policy, WeightLayout layout = WeightLayout::dense)
      : policy_(policy), layout_(layout) {}

  /// The packed weights for this call, or null when it must compute from the stored form. Packs on the first call of an
  /// `on_first_use` cache; an exception (out of memory) leaves the cache empty and the next call tries again. Without
  /// a stored form (`released`) only what is packed already is given out.
  const PackedWeights* get(const RowSource& w, WeightType type, const Execution& how, bool released = false) {
    if (policy_.kind == PackPolicy::Kind::none) return nullptr;
    PackedOnce<PackedWeights>& entry = entries_[static_cast<std::size_t>(type)];
    if (policy_.kind == PackPolicy::Kind::on_first_use && !released) {
      std::call_once(entry.once, [&] { entry.store(PackedWeights::pack(w, type, how, {}, layout_)); });
    }
    const bool usable = entry.ready.load(std::memory_order_acquire) && entry.packed.level() == how.level();
    return usable ? &entry.packed : nullptr;
  }

  /// Whether `get` gives codes: they are packed, or the first call packs them.
  bool serves_codes() const noexcept {
    return policy_.kind == PackPolicy::Kind::on_first_use || codes_.ready.load(std::memory_order_acquire);
  }

  /// The packed codes, or null.
  const PackedCodes* get(const CodeSource& w, const Execution& how) {
    if (policy_.kind == PackPolicy::Kind::on_first_use) {
      std::call_once(codes_.once, [&] { codes_.store(PackedCodes::pack(w, how)); });
    }
    return codes_.ready.load(std::memory_order_acquire) ? &codes_.packed : nullptr;
  }

  /// Packs now, for the `ahead` and `into` policies; does nothing for the others.
  void pack_ahead(const RowSource& w, WeightType type, const Execution& how) {
    if (policy_.kind != PackPolicy::Kind::ahead && policy_.kind != PackPolicy::Kind::into) return;
    PackedOnce<PackedWeights>& entry = entries_[static_cast<std::size_t>(type)];
    std::call_once(entry.once, [&] { entry.store(PackedWeights::pack(w, type, how, policy_.memory, layout_)); });
  }

  void pack_ahead(const CodeSource& w, const Execution& how) {
    if (policy_.kind != PackPolicy::Kind::ahead && policy_.kind != PackPolicy::Kind::into) return;
    std::call_once(codes_.once, [&] { codes_.store(PackedCodes::pack(w, how, policy_.memory)); });
  }

  /// Bytes of all packed forms held.
  std::size_t bytes() const noexcept {
    std::size_t sum = codes_.ready.load(std::memory_order_acquire) ? codes_.packed.bytes() : 0;
    for (const auto& e : entries_)
      if (e.ready.load(std::memory_order_acquire)) sum += e.packed.bytes();
    return sum;
  }

 private:
  PackPolicy policy_;
  WeightLayout layout_;
  std::array<PackedOnce<PackedWeights>, 2> entries_;
  PackedOnce<PackedCodes> codes_;
};

#endif

}  // namespace blockpack::inline BLOCKPACK_ABI
