// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Sizes for slow surroundings. Under a sanitizer, an emulator (BLOCKPACK_BUDGET=small in the environment) or in a
/// build without optimization a test takes the smaller size; what it checks stays the same.

#include <cstdlib>
#include <string_view>

namespace blockpack::test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
#else
inline constexpr bool kSanitized = false;
#endif

#if defined(__OPTIMIZE__)
inline constexpr bool kOptimized = true;
#else
inline constexpr bool kOptimized = false;
#endif

/// Whether sizes are cut in this process.
inline bool small_budget() {
  static const bool small = [] {
    const char* text = std::getenv("BLOCKPACK_BUDGET");
    return kSanitized || !kOptimized || (text != nullptr && std::string_view(text) == "small");
  }();
  return small;
}

/// `full` normally, `cut` where time is short.
template <class T>
T budget(T full, T cut) {
  return small_budget() ? cut : full;
}

}  // namespace blockpack::test
