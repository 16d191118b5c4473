// SPDX-License-Identifier: Apache-2.0
#include "limits.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "blockpack/core/isa.hpp"
#include "kernels/limit_loops.hpp"
#include "large_buffer.hpp"
#include "stopwatch.hpp"
#include "suite.hpp"

namespace bench {
namespace {

constexpr auto kRemember = std::chrono::milliseconds(300);

/// Memory without zeros, kept for the next measurement.
const unsigned char* read_memory(std::size_t bytes) {
  static LargeBuffer<unsigned char> kept;
  if (kept.size_bytes() < bytes) {
    kept = LargeBuffer<unsigned char>();
    kept = LargeBuffer<unsigned char>(static_cast<index_t>(bytes));
    std::memset(kept.data(), 0x5a, bytes);
  }
  return kept.data();
}

/// Runs f(thread) on so many threads that start together; seconds until the last is done.
template <class F>
double run_together(int threads, const F& f) {
  if (threads == 1) {
    const PinThreads pin(1);
    const Stopwatch watch(1);
    f(0);
    return watch.seconds();
  }
  std::atomic<int> ready{0};
  std::vector<std::thread> others;
  const auto body = [&](int t) {
    PinThreads::pin_self(t);
    ready.fetch_add(1);
    while (ready.load() < threads) {
    }
    f(t);
  };
  for (int t = 1; t < threads; ++t) others.emplace_back(body, t);
  const PinThreads pin(1);
  ready.fetch_add(1);
  while (ready.load() < threads) {
  }
  const Stopwatch watch(threads);
  f(0);
  for (std::thread& t : others) t.join();
  return watch.seconds();
}

auto best_reader() { return has_avx512() ? read_avx512 : has_avx2() ? read_avx2 : read_generic; }

bool level_allowed(blockpack::Isa isa) {
  static const std::vector<blockpack::Isa> compiled = blockpack::compiled_isas();
  const auto place = [&](blockpack::Isa i) { return std::find(compiled.begin(), compiled.end(), i); };
  return place(isa) != compiled.end() && place(isa) <= place(blockpack::active_isa()) && blockpack::runs_here(isa);
}

}  // namespace

#if defined(BENCH_X86)
bool has_avx2() { return level_allowed(blockpack::Isa::avx2); }
bool has_avx512() { return level_allowed(blockpack::Isa::avx512); }
bool has_avx512_bf16() { return level_allowed(blockpack::Isa::avx512vnni) && __builtin_cpu_supports("avx512bf16"); }
bool has_amx() { return level_allowed(blockpack::Isa::amx); }
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
bool has_amx() { return false; }
std::uint64_t read_avx2(const void* p, std::size_t n, int s) noexcept { return read_generic(p, n, s); }
std::uint64_t read_avx512(const void* p, std::size_t n, int s) noexcept { return read_generic(p, n, s); }
double fma_avx2_f32(std::int64_t) noexcept { return 0; }
double fma_avx512_f32(std::int64_t) noexcept { return 0; }
double dots_avx512_bf16(std::int64_t) noexcept { return 0; }
double tiles_amx_bf16(std::int64_t) noexcept { return 0; }
double tiles_amx_int8(std::int64_t) noexcept { return 0; }
#endif

Limits& limits() {
  static Limits instance;
  return instance;
}

ReadRate Limits::measure_read(double footprint_bytes, int threads, int streams) {
  constexpr std::size_t kUnit = 16384;
  constexpr double kEnough = 64e6;  // bytes per timing: 2 ms from the last level, 0.4 ms from L2
  const auto read = best_reader();
  const std::size_t part =
      std::max<std::size_t>(kUnit, static_cast<std::size_t>(footprint_bytes / threads) / kUnit * kUnit);
  const unsigned char* data = read_memory(part * static_cast<std::size_t>(threads));
  // A footprint beyond the caches is read in turns, a slice each time.
  static std::size_t turn = 0;
  const std::size_t slices = std::max<std::size_t>(1, static_cast<std::size_t>(footprint_bytes / 200e6));
  const std::size_t slice = part / slices / kUnit * kUnit;
  const int passes = std::max(1, static_cast<int>(kEnough / static_cast<double>(slice * threads)));
  double best = 1e9;
  for (int trial = 0; trial < 2 * threads; ++trial) {
    const std::size_t offset = slice * (turn++ % slices);
    std::atomic<std::uint64_t> sink{0};
    const double seconds = run_together(threads, [&](int t) {
      const unsigned char* start = data + part * static_cast<std::size_t>(t) + offset;
      std::uint64_t sum = 0;
      for (int i = 0; i < passes; ++i) sum += read(start, slice, streams);
      sink += sum;
    });
    benchmark::DoNotOptimize(sink.load());
    best = std::min(best, seconds / passes);
  }
  return {static_cast<double>(slice) * threads / best, streams};
}

double Limits::measure_loop(double (*loop)(std::int64_t) noexcept, int threads) {
  constexpr double kEnough = 1e-3;  // seconds of one try: starting a second thread is nothing beside it
  std::int64_t steps = 20000;
  double best = 0;
  for (int trial = 0; trial < 4; ++trial) {
    std::array<double, 64> operations{};
    const int used = std::min<int>(threads, static_cast<int>(operations.size()));
    const double seconds = run_together(used, [&](int t) { operations[static_cast<std::size_t>(t)] = loop(steps); });
    if (seconds < kEnough) {
      steps = static_cast<std::int64_t>(static_cast<double>(steps) * std::clamp(1.2 * kEnough / seconds, 1.2, 100.0));
      --trial;
      continue;
    }
    best = std::max(best, std::accumulate(operations.begin(), operations.end(), 0.0) / seconds);
  }
  return best;
}

template <class F>
ReadRate Limits::remembered(int kind, double footprint, int threads, const F& measure) {
  const auto now = std::chrono::steady_clock::now();
  Entry& entry = entries_[{kind, {std::lround(footprint / 1e5), threads}}];
  if (entry.rate.bytes_per_second == 0 || now - entry.when > kRemember) {
    entry.rate = measure();
    entry.when = std::chrono::steady_clock::now();
  }
  return entry.rate;
}

ReadRate Limits::read(double footprint_bytes, int threads) {
  return remembered(0, footprint_bytes, threads, [&] {
    ReadRate best;
    for (const int streams : {1, 2, 4}) {
      const ReadRate rate = measure_read(footprint_bytes, threads, streams);
      if (rate.bytes_per_second > best.bytes_per_second) best = rate;
    }
    return best;
  });
}

double Limits::amx_bf16(int threads) {
  if (!has_amx()) return 0;
  return remembered(1, 0, threads, [&] { return ReadRate{measure_loop(tiles_amx_bf16, threads), 0}; }).bytes_per_second;
}
double Limits::amx_int8(int threads) {
  if (!has_amx()) return 0;
  return remembered(2, 0, threads, [&] { return ReadRate{measure_loop(tiles_amx_int8, threads), 0}; }).bytes_per_second;
}
double Limits::avx512_bf16(int threads) {
  if (!has_avx512_bf16()) return 0;
  return remembered(4, 0, threads,
                    [&] {
                      return ReadRate{measure_loop(dots_avx512_bf16, threads), 0};
                    })
      .bytes_per_second;
}
double Limits::f32(int threads) {
  if (!has_avx2()) return 0;
  const auto loop = has_avx512() ? fma_avx512_f32 : fma_avx2_f32;
  return remembered(3, 0, threads, [&] { return ReadRate{measure_loop(loop, threads), 0}; }).bytes_per_second;
}

double Limits::operations(Arithmetic arithmetic, int threads) {
  if (arithmetic == Arithmetic::bf16 && has_amx()) return amx_bf16(threads);
  if (arithmetic == Arithmetic::int8 && has_amx()) return amx_int8(threads);
  if (arithmetic == Arithmetic::bf16) return std::max(f32(threads), avx512_bf16(threads));
  return f32(threads);
}

double Limits::seconds(double operations, Arithmetic arithmetic, double bytes, double footprint_bytes, int threads) {
  const double by_bytes = bytes / read(footprint_bytes, threads).bytes_per_second;
  const double peak = this->operations(arithmetic, threads);
  return peak > 0 ? std::max(by_bytes, operations / peak) : by_bytes;
}

}  // namespace bench
