// SPDX-License-Identifier: Apache-2.0
// entropy/…: scores of weights, GBps of stored bytes read; convert/…: scalar types, GBps of bytes read and written.
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "blockpack/core/convert.hpp"
#include "blockpack/core/histogram.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/entropy/gardener.hpp"
#include "blockpack/entropy/tile_map.hpp"
#include "large_buffer.hpp"
#include "limits.hpp"
#include "stopwatch.hpp"
#include "suite.hpp"

namespace bench {
namespace {

using blockpack::bf16;
constexpr index_t kRows = 4096, kCols = 4096;
constexpr index_t kSize = kRows * kCols;

/// Copies of one matrix of T, made to fill a footprint.
template <class T>
const LargeBuffer<T>& matrices(double footprint, std::uint64_t seed) {
  static LargeBuffer<T> kept;
  const auto copies = std::max<index_t>(1, static_cast<index_t>(footprint / (kSize * sizeof(T))));
  if (kept.size() != copies * kSize) {
    kept = LargeBuffer<T>();
    kept = LargeBuffer<T>(copies * kSize);
    std::vector<float> row(static_cast<std::size_t>(kCols));
    for (index_t i = 0; i < kRows; ++i) {
      blockpack::fill_weights(blockpack::MatrixView<float>(row.data(), 1, kCols), seed, i);
      for (index_t j = 0; j < kCols; ++j) kept[i * kCols + j] = T(row[static_cast<std::size_t>(j)]);
    }
    for (index_t c = 1; c < copies; ++c)
      std::memcpy(static_cast<void*>(&kept[c * kSize]), kept.data(), static_cast<std::size_t>(kSize) * sizeof(T));
  }
  return kept;
}

/// Plug-in entropy of the values, counted with a hash table.
template <class T>
double reference_entropy(const T* w) {
  std::unordered_map<float, std::uint64_t> counts;
  for (index_t i = 0; i < kSize; ++i) ++counts[static_cast<float>(w[i])];
  double sum = 0;
  for (const auto& [value, count] : counts) sum += static_cast<double>(count) * std::log(static_cast<double>(count));
  return std::log(static_cast<double>(kSize)) - sum / static_cast<double>(kSize);
}

struct EntropyRow {
  const char* name;
  bool f32;  ///< stored type, else bf16
  double (*score)(blockpack::WeightView w,
                  const blockpack::Execution& how);  ///< nats, or 0 where there is no one figure
  bool checked;                                      ///< against reference_entropy of the stored values
};

template <class T>
void entropy_row(benchmark::State& state, const EntropyRow& row, double footprint, int threads, std::uint64_t seed) {
  try {
    const LargeBuffer<T>& all = matrices<T>(footprint, seed);
    const index_t copies = all.size() / kSize;
    blockpack::Execution how;
    how.threads = threads;
    index_t next = 0;
    const auto score = [&] {
      const T* w = all.data() + next * kSize;
      next = (next + 1) % copies;
      return row.score(blockpack::MatrixView<const T>(w, kRows, kCols), how);
    };
    if (row.checked) {
      static std::unordered_map<std::string, double> expected;
      auto [known, fresh] = expected.try_emplace(row.name, 0.0);
      if (fresh) known->second = reference_entropy(all.data());
      const double got = score();
      if (!(std::fabs(got - known->second) < 1e-9))
        throw std::runtime_error("the entropy is wrong by " + std::to_string(got - known->second));
    }
    const double bytes = static_cast<double>(kSize) * sizeof(T);
    const double limit = limits().seconds(0, Arithmetic::f32, bytes, bytes * static_cast<double>(copies), threads);
    const PinThreads pin(threads);
    const double seconds = time_calls(state, threads, 1, [&] { benchmark::DoNotOptimize(score()); });
    state.counters["GBps"] = bytes / seconds * 1e-9;
    state.counters["limit_fraction"] = limit / seconds;
    state.counters["bits_per_weight"] = 8.0 * sizeof(T);
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

template <class From, class To>
void convert_row(benchmark::State& state, std::uint64_t seed) {
  try {
    const LargeBuffer<From>& src = matrices<From>(0, seed);
    static LargeBuffer<To> dst;
    if (dst.size() != kSize) dst = LargeBuffer<To>(kSize);
    const std::span<const From> from(src.data(), static_cast<std::size_t>(kSize));
    const std::span<To> to(dst.data(), static_cast<std::size_t>(kSize));
    blockpack::convert(from, to);
    double error = 0, norm = 0;
    for (index_t i = 0; i < kSize; ++i) {
      const To wanted = To(static_cast<float>(src[i]));
      if (std::memcmp(&wanted, &dst[i], sizeof wanted) != 0)
        throw std::runtime_error("converted value " + std::to_string(i) + " is wrong");
      const double d =
          static_cast<double>(static_cast<float>(dst[i])) - static_cast<double>(static_cast<float>(src[i]));
      error += d * d;
      norm += static_cast<double>(static_cast<float>(src[i])) * static_cast<double>(static_cast<float>(src[i]));
    }
    const double bytes = static_cast<double>(kSize) * (sizeof(From) + sizeof(To));
    const double limit = limits().seconds(0, Arithmetic::f32, bytes, bytes, 1);
    const PinThreads pin(1);
    const double seconds = time_calls(state, 1, 1, [&] { blockpack::convert(from, to); });
    state.counters["GBps"] = bytes / seconds * 1e-9;
    state.counters["limit_fraction"] = limit / seconds;
    state.counters["rel_error"] = std::sqrt(error / norm);
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

double gardener(blockpack::WeightView w, const blockpack::Execution& how) {
  return blockpack::gardener_score(blockpack::WeightBlock(w), {}, how).score();
}
double gardener_as_stored(blockpack::WeightView w, const blockpack::Execution& how) {
  return blockpack::gardener_score(blockpack::WeightBlock(w), blockpack::ValueGrid::as_stored(), how).score();
}
double tile_map(blockpack::WeightView w, const blockpack::Execution& how) {
  return blockpack::tile_map(w, blockpack::TileScore::entropy, 64, 64, {}, how).values[0];
}
double histogram(blockpack::WeightView w, const blockpack::Execution&) {
  static std::vector<std::uint64_t> counts(blockpack::kHistogramBins);
  return w.visit([&](auto view) {
    if constexpr (std::is_same_v<typename decltype(view)::value_type, bf16>)
      blockpack::histogram_u16(std::span(reinterpret_cast<const std::uint16_t*>(view.data()), kSize), counts);
    return static_cast<double>(counts[0]);
  });
}

}  // namespace

void add_entropy_rows(Suite& suite, const Options& options) {
  const std::string place = "/N:" + std::to_string(kRows) + "/K:" + std::to_string(kCols) + "/threads:";
  for (const EntropyRow& row :
       {EntropyRow{"gardener-bf16", false, gardener, true}, EntropyRow{"gardener-f32", true, gardener, false},
        EntropyRow{"gardener-f32-as-stored", true, gardener_as_stored, true},
        EntropyRow{"tile-map-bf16", false, tile_map, false}, EntropyRow{"histogram-bf16", false, histogram, false}})
    for (const bool dram : {false, true})
      for (int threads = 1; threads <= options.max_threads; ++threads) {
        if (row.score == histogram && threads > 1) continue;  // it runs on the calling thread
        const double footprint = dram ? kDramFootprint : 0;
        suite.add(std::string("entropy/") + row.name + "/blockpack" + place + std::to_string(threads) +
                      (dram ? "/tier:dram" : "/tier:llc"),
                  std::string("entropy/") + row.name + (dram ? "/dram" : ""),
                  [=, seed = options.seed](benchmark::State& s) {
                    row.f32 ? entropy_row<float>(s, row, footprint, threads, seed)
                            : entropy_row<bf16>(s, row, footprint, threads, seed);
                  });
      }

  const auto add_convert = [&](const char* name, void (*body)(benchmark::State&, std::uint64_t)) {
    suite.add(std::string("convert/") + name + "/blockpack" + place + "1", "convert",
              [=, seed = options.seed](benchmark::State& s) { body(s, seed); });
  };
  add_convert("f32-bf16", convert_row<float, bf16>);
  add_convert("bf16-f32", convert_row<bf16, float>);
  add_convert("f32-fp16", convert_row<float, blockpack::fp16>);
  add_convert("fp16-f32", convert_row<blockpack::fp16, float>);
  add_convert("f32-e4m3", convert_row<float, blockpack::fp8_e4m3>);
  add_convert("e4m3-f32", convert_row<blockpack::fp8_e4m3, float>);
  add_convert("f32-e2m1", convert_row<float, blockpack::fp4_e2m1>);
  add_convert("e2m1-f32", convert_row<blockpack::fp4_e2m1, float>);
}

}  // namespace bench
