// SPDX-License-Identifier: Apache-2.0
// limit/…: what the machine gives, as rows of their own. The same loops stand behind every `limit_fraction`.
#include <algorithm>
#include <cstring>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "kernels/limit_loops.hpp"
#include "large_buffer.hpp"
#include "limits.hpp"
#include "stopwatch.hpp"
#include "suite.hpp"

namespace bench {
namespace {

/// A limit is the best of several tries, so a repetition is one iteration; its time is that of one pass.
void read_row(benchmark::State& state, double footprint, int threads) {
  for (auto _ : state) {
    static_cast<void>(_);
    ReadRate best;
    for (const int streams : {1, 2, 4}) {
      const ReadRate rate = Limits::measure_read(footprint, threads, streams);
      if (rate.bytes_per_second > best.bytes_per_second) best = rate;
    }
    state.SetIterationTime(footprint / best.bytes_per_second);
    state.counters["GBps"] = best.bytes_per_second * 1e-9;
    state.counters["streams"] = best.streams;
  }
}

/// The same; the time is that of 10^9 operations.
void loop_row(benchmark::State& state, double (*loop)(std::int64_t) noexcept, int threads) {
  for (auto _ : state) {
    static_cast<void>(_);
    const double rate = Limits::measure_loop(loop, threads);
    state.SetIterationTime(1e9 / rate);
    state.counters["GOPS"] = rate * 1e-9;
  }
}

void copy_row(benchmark::State& state) {
  constexpr std::size_t kBytes = 48000000;
  const PinThreads pin(1);
  std::vector<char> src(kBytes / 2, 1), dst(kBytes / 2);
  const double seconds = time_calls(state, 1, 2, [&] {
    std::memcpy(dst.data(), src.data(), src.size());
    benchmark::ClobberMemory();
  });
  state.counters["GBps"] = static_cast<double>(src.size()) / seconds * 1e-9;  // bytes copied, each read and written
}

/// What an output costs that goes to memory past the caches: streaming stores, plain ones elsewhere.
void write_row(benchmark::State& state) {
  constexpr std::size_t kFloats = 12000000;
  const PinThreads pin(1);
  LargeBuffer<float> dst(kFloats);
  const double seconds = time_calls(state, 1, 2, [&] {
#if defined(__SSE2__)
    for (float *at = dst.data(), *end = at + kFloats; at < end; at += 4) _mm_stream_ps(at, _mm_set1_ps(1.5f));
    _mm_sfence();
#else
    std::fill_n(dst.data(), kFloats, 1.5f);
#endif
    benchmark::ClobberMemory();
  });
  state.counters["GBps"] = sizeof(float) * kFloats / seconds * 1e-9;
}

}  // namespace

void add_limit_rows(Suite& suite, const Options& options) {
  struct Tier {
    const char* name;
    double footprint;
  };
  for (const Tier tier : {Tier{"l2", 1e6}, Tier{"llc", kLastLevelFootprint}, Tier{"dram", kDramFootprint}})
    for (int threads = 1; threads <= options.max_threads; ++threads) {
      // l2 is a cache of each core: the footprint is per thread.
      const double footprint = tier.footprint * (std::strcmp(tier.name, "l2") == 0 ? threads : 1);
      suite.add(
          std::string("limit/read/tier:") + tier.name + "/threads:" + std::to_string(threads), "limit/read",
          [=](benchmark::State& s) { read_row(s, footprint, threads); }, 1);
    }
  const auto add_loop = [&](const char* name, double (*loop)(std::int64_t) noexcept) {
    for (int threads = 1; threads <= options.max_threads; ++threads)
      suite.add(
          std::string("limit/") + name + "/threads:" + std::to_string(threads), "limit/loops",
          [=](benchmark::State& s) { loop_row(s, loop, threads); }, 1);
  };
  if (has_amx()) {
    add_loop("amx_bf16", tiles_amx_bf16);
    add_loop("amx_int8", tiles_amx_int8);
  }
  if (has_avx512_bf16()) add_loop("avx512_bf16", dots_avx512_bf16);
  if (has_avx512()) add_loop("avx512_f32", fma_avx512_f32);
  if (has_avx2() && !has_avx512()) add_loop("avx2_f32", fma_avx2_f32);
  suite.add("limit/copy/tier:llc/threads:1", "limit/read", copy_row);
  suite.add("limit/write/tier:dram/threads:1", "limit/read", write_row);
}

}  // namespace bench
