// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What every use of ggml here shares: its CPU device, formats, stored weights and tile configuration.
///
/// ggml sets the AMX tile configuration once a thread and never again, and every other implementation of this program
/// sets its own. The one ggml set is therefore kept and loaded again before each call, on the threads of the OpenMP
/// team, which are ggml's threads too.

#include <ggml-backend.h>
#include <ggml.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "blockpack/recipe/registry.hpp"
#include "large_buffer.hpp"
#include "product.hpp"

namespace bench::ggml {

struct Format {
  const char* scheme;  ///< of the rows
  const char* type;    ///< ggml's name of it
  const char* bytes;   ///< the scheme that stores what ggml stores
};

/// The OCP form of MXFP4 has the same codes and scales as ggml's block, in another order.
inline constexpr Format kFormats[] = {
    {"f32", "f32", "f32"},
    {"bf16", "bf16", "bf16"},
    {"fp16", "f16", "fp16"},
    {"q4_0", "q4_0", "q4_0"},
    {"q4_1", "q4_1", "q4_1"},
    {"q5_0", "q5_0", "q5_0"},
    {"q5_1", "q5_1", "q5_1"},
    {"q8_0", "q8_0", "q8_0"},
    {"q2_k", "q2_K", "q2_k"},
    {"q3_k", "q3_K", "q3_k"},
    {"q4_k", "q4_K", "q4_k"},
    {"q5_k", "q5_K", "q5_k"},
    {"q6_k", "q6_K", "q6_k"},
    {"iq4_nl", "iq4_nl", "iq4_nl"},
    {"iq4_xs", "iq4_xs", "iq4_xs"},
    {"tq1_0", "tq1_0", "tq1_0"},
    {"tq2_0", "tq2_0", "tq2_0"},
    {"mxfp4", "mxfp4", "ggml-mxfp4"},
    {"ggml-mxfp4", "mxfp4", "ggml-mxfp4"},
    {"ggml-nvfp4", "nvfp4", "ggml-nvfp4"},
};

inline const Format* format_of(const std::string& scheme) {
  const auto* found =
      std::find_if(std::begin(kFormats), std::end(kFormats), [&](const Format& f) { return f.scheme == scheme; });
  return found == std::end(kFormats) ? nullptr : found;
}

/// By name, for types come and go between versions.
inline std::optional<ggml_type> type_of(const std::string& scheme) {
  const Format* format = format_of(scheme);
  for (int t = 0; format != nullptr && t < GGML_TYPE_COUNT; ++t) {
    const auto type = static_cast<ggml_type>(t);
    const char* name = ggml_type_name(type);
    if (name != nullptr && std::strcmp(name, format->type) == 0) return type;
  }
  return std::nullopt;
}

/// The CPU device, found through the registry: it may be a plug-in, which is loaded then.
struct Cpu {
  ggml_backend_dev_t device = nullptr;
  ggml_backend_t backend = nullptr;
  ggml_backend_set_n_threads_t set_threads = nullptr;
  std::vector<ggml_backend_buffer_type_t> buffer_types;
  std::string features;

  Cpu() {
    ggml_log_set(
        [](ggml_log_level level, const char* text, void*) {
          if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) ggml_backend_load_all();
    device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (device == nullptr) throw std::runtime_error("ggml has no CPU device");
    backend = ggml_backend_dev_init(device, nullptr);
    const ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(device);
    const auto find = [&](const char* name) { return ggml_backend_reg_get_proc_address(registry, name); };
    set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(find("ggml_backend_set_n_threads"));
    if (backend == nullptr || set_threads == nullptr) throw std::runtime_error("ggml's CPU device does not start");

    buffer_types.push_back(ggml_backend_dev_buffer_type(device));
    if (const auto extra =
            reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(find("ggml_backend_dev_get_extra_bufts")))
      for (ggml_backend_buffer_type_t* type = extra(device); type != nullptr && *type != nullptr; ++type)
        buffer_types.push_back(*type);
    if (const auto list = reinterpret_cast<ggml_backend_get_features_t>(find("ggml_backend_get_features")))
      for (ggml_backend_feature* f = list(registry); f->name != nullptr; ++f)
        features += (features.empty() ? "" : ", ") + std::string(f->name);
  }
};

inline Cpu& cpu() {
  static Cpu device;
  return device;
}

/// Weights as ggml stores them, shared by all copies.
struct Stored {
  ggml_type type;
  index_t n, k;
  LargeBuffer<std::byte> bytes;

  Stored(const std::string& scheme, const Weights& w)
      : type(type_of(scheme).value()), n(w.n), k(w.k), bytes(static_cast<index_t>(ggml_row_size(type, w.k)) * w.n) {
    // Our encoder: faster, and the encode rows hold its bytes against ggml's.
    const auto codec = blockpack::Registry::standard().codec(format_of(scheme)->bytes);
    const auto sections = codec->sections({n, k});
    if (sections.size() != 1 || sections[0].bytes != bytes.size())
      throw std::runtime_error("ggml stores another number of bytes");
    std::byte* dst = bytes.data();
    codec->encode(blockpack::MatrixView<const float>(w.data, n, k), 0, std::span(&dst, 1), {});
  }
};

#if defined(__x86_64__)
/// The tile configuration of a thread, as the processor stores it.
struct TileConfig {
  alignas(64) std::byte bytes[64];

  static TileConfig current() {
    TileConfig config;
    __asm__ volatile("sttilecfg %0" : "=m"(config));
    return config;
  }
  void load() const { __asm__ volatile("ldtilecfg %0" : : "m"(*this) : "memory"); }
};
#else
struct TileConfig {
  static TileConfig current() { return {}; }
  void load() const {}
};
#endif

/// Loads ggml's tile configuration on its threads. The first call of all runs `product`, one of ggml's on tiles on the
/// calling thread, which sets it.
inline void load_tiles(int threads, const std::function<void()>& product) {
  static const TileConfig config = [&] {
    product();
    return TileConfig::current();
  }();
  if (threads == 1) return config.load();
#pragma omp parallel num_threads(threads)
  config.load();
}

inline void ask_for_large_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20;
  const auto first = (reinterpret_cast<std::uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const auto last = (reinterpret_cast<std::uintptr_t>(data) + bytes) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace bench::ggml
