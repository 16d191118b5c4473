// SPDX-License-Identifier: Apache-2.0
#pragma once

/// What the machine can do at this moment: read bandwidth at a footprint, peak of each arithmetic. Clocks wander and
/// machines are shared, so a figure is measured next to the row that is compared with it and forgotten soon after.

#include <chrono>
#include <cstddef>
#include <map>
#include <utility>

#include "product.hpp"

namespace bench {

constexpr double kLastLevelFootprint = 48e6;  ///< bytes a last-level row rotates through
constexpr double kDramFootprint = 800e6;

struct ReadRate {
  double bytes_per_second = 0;
  int streams = 1;  ///< how many gave it
};

class Limits {
 public:
  /// Best of 1, 2 and 4 streams over so many bytes of memory, all threads together. Warm: bytes that fit a cache come
  /// from it.
  ReadRate read(double footprint_bytes, int threads);

  /// Operations per second of all threads together; 0 where this CPU has no such unit (or the level was forced down).
  double amx_bf16(int threads);
  double amx_int8(int threads);
  double avx512_bf16(int threads);  ///< dots of pairs
  double f32(int threads);          ///< AVX-512 or AVX2 multiply-adds

  /// Peak that bounds a product of that arithmetic: the best unit for it, f32 multiply-adds where there is none or it
  /// is slower than they are.
  double operations(Arithmetic arithmetic, int threads);

  /// Time a product cannot beat: the slower of its operations at the peak and its bytes at the read rate.
  double seconds(double operations, Arithmetic arithmetic, double bytes, double footprint_bytes, int threads);

  /// Uncached measurements.
  static ReadRate measure_read(double footprint_bytes, int threads, int streams);
  static double measure_loop(double (*loop)(std::int64_t) noexcept, int threads);

 private:
  struct Entry {
    std::chrono::steady_clock::time_point when;
    ReadRate rate;
  };
  template <class F>
  ReadRate remembered(int kind, double footprint, int threads, const F& measure);

  std::map<std::pair<int, std::pair<long, int>>, Entry> entries_;
};

Limits& limits();

/// Whether the process may use a level: the CPU has it, and it is not above the level forced by --isa.
bool has_avx2();
bool has_avx512();
bool has_avx512_bf16();
bool has_amx();

}  // namespace bench
