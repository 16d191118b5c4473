// SPDX-License-Identifier: Apache-2.0
// entropy/…: scores of weights, GBps of stored bytes read; convert/…: scalar types, GBps of bytes read and written;
// error/…: statistics of an error, GBps of both matrices.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <stdexcept>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "blockpack/core/convert.hpp"
#include "blockpack/core/error_stats.hpp"
#include "blockpack/core/histogram.hpp"
#include "blockpack/core/random.hpp"
#include "blockpack/core/scalar.hpp"
#include "blockpack/entropy/estimators.hpp"
#include "blockpack/entropy/fields.hpp"
#include "blockpack/entropy/gardener.hpp"
#include "blockpack/entropy/histogram.hpp"
#include "blockpack/entropy/scores.hpp"
#include "blockpack/entropy/statistics.hpp"
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

using blockpack::WeightView;

/// The values of whole rows.
std::vector<double> values_of(WeightView w) {
  return w.visit([](auto view) {
    std::vector<double> values;
    for (index_t i = 0; i < view.rows(); ++i)
      for (const auto v : view.row(i)) values.push_back(static_cast<double>(static_cast<float>(v)));
    return values;
  });
}

/// Σ c log c over the counts of equal keys.
template <class Key>
double sum_of_logs(const std::vector<Key>& keys) {
  std::unordered_map<Key, std::uint64_t> counts;
  for (const Key key : keys) ++counts[key];
  double sum = 0;
  for (const auto& [key, count] : counts) sum += static_cast<double>(count) * std::log(static_cast<double>(count));
  return sum;
}

/// Plug-in entropy of the values, counted with a hash table.
double plug_in_reference(WeightView w) {
  const std::vector<double> values = values_of(w);
  const double n = static_cast<double>(values.size());
  return std::log(n) - sum_of_logs(values) / n;
}

double gaussian_reference(WeightView w) {
  const std::vector<double> values = values_of(w);
  long double sum = 0, squares = 0;
  for (const double v : values) sum += v, squares += static_cast<long double>(v) * v;
  const auto n = static_cast<long double>(values.size());
  const auto variance = static_cast<double>((squares - sum * sum / n) / n);
  return 0.5 * std::log(2 * std::numbers::pi * std::numbers::e * variance);
}

/// Vasicek's spacings of the sorted values.
double spacing_reference(WeightView w) {
  std::vector<double> x = values_of(w);
  std::sort(x.begin(), x.end());
  const auto n = static_cast<index_t>(x.size());
  const auto m = static_cast<index_t>(std::lround(std::sqrt(static_cast<double>(n))));
  long double sum = 0;
  for (index_t i = 0; i < n; ++i)
    sum += std::log(x[static_cast<std::size_t>(std::min(n - 1, i + m))] -
                    x[static_cast<std::size_t>(std::max<index_t>(0, i - m))]);
  return std::log(static_cast<double>(n) / (2.0 * static_cast<double>(m))) +
         static_cast<double>(sum / static_cast<long double>(n));
}

/// Bins of the width of Freedman and Diaconis between the least and the greatest value.
double bins_reference(WeightView w) {
  std::vector<double> x = values_of(w);
  std::sort(x.begin(), x.end());
  const double n = static_cast<double>(x.size());
  const auto quantile = [&](double q) {
    const double place = q * (n - 1);
    const auto below = static_cast<std::size_t>(place);
    return x[below] + (x[below + 1] - x[below]) * (place - static_cast<double>(below));
  };
  const double range = x.back() - x.front(), wanted = 2 * (quantile(0.75) - quantile(0.25)) / std::cbrt(n);
  const double bins = std::ceil(range / wanted), width = range / bins;
  std::vector<std::int64_t> keys;
  for (const double v : x) keys.push_back(static_cast<std::int64_t>(std::min(bins - 1, (v - x.front()) / width)));
  return std::log(n) - sum_of_logs(keys) / n + std::log(width);
}

/// -Σ q log q, q = |w| / Σ|w|.
double value_entropy_reference(WeightView w) {
  const std::vector<double> values = values_of(w);
  long double sum = 0, logs = 0;
  for (const double v : values) {
    const double a = std::fabs(v);
    sum += a;
    if (a > 0) logs += static_cast<long double>(a) * std::log(a);
  }
  return static_cast<double>(std::log(sum) - logs / sum);
}

/// Of the upper and the lower half of the rows, f(values, first, last) being one figure of a range of them.
template <class F>
double of_halves(const std::vector<double>& values, const F& f) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  return f(std::vector<double>(values.begin(), middle), std::vector<double>(middle, values.end()));
}
double gap_reference(WeightView w) {
  const std::vector<double> all = values_of(w);
  const auto entropy = [](const std::vector<double>& v) {
    return std::log(static_cast<double>(v.size())) - sum_of_logs(v) / static_cast<double>(v.size());
  };
  return of_halves(all, [&](const auto& a, const auto& b) { return entropy(a) + entropy(b) - entropy(all); });
}
/// Mean of f(cosine) over the rows of both halves.
template <class F>
double cosine_reference(WeightView w, const F& f) {
  return of_halves(values_of(w), [&](const auto& a, const auto& b) {
    long double sum = 0;
    const auto n = static_cast<std::size_t>(kCols);
    for (std::size_t t = 0; t < a.size(); t += n) {
      long double ab = 0, aa = 0, bb = 0;
      for (std::size_t j = t; j < t + n; ++j) {
        ab += static_cast<long double>(a[j]) * b[j];
        aa += static_cast<long double>(a[j]) * a[j];
        bb += static_cast<long double>(b[j]) * b[j];
      }
      sum += f(static_cast<double>(ab / std::sqrt(aa * bb)));
    }
    return static_cast<double>(sum * static_cast<long double>(n) / static_cast<long double>(a.size()));
  });
}
double influence_reference(WeightView w) {
  return 1 - cosine_reference(w, [](double c) { return c; });
}
double angle_reference(WeightView w) {
  return cosine_reference(w, [](double c) { return std::acos(c) / std::numbers::pi; });
}
double nepenthe_reference(WeightView w) {
  const std::vector<double> values = values_of(w);
  const auto n = static_cast<std::size_t>(kCols);
  double sum = 0;
  for (std::size_t j = 0; j < n; ++j) {
    double on = 0;
    for (std::size_t i = j; i < values.size(); i += n) on += values[i] > 0 ? 1 : 0;
    const double p = on * static_cast<double>(n) / static_cast<double>(values.size());
    if (p > 0 && p < 1) sum -= p * std::log2(p) + (1 - p) * std::log2(1 - p);
  }
  return sum / static_cast<double>(n);
}

struct EntropyRow {
  const char* name;
  bool f32;  ///< stored type, else bf16
  /// Nats, or 0 where there is no one figure.
  double (*score)(WeightView w, const blockpack::Execution& how);
  double (*reference)(WeightView w);  ///< null: not checked
  double tolerance = 1e-9;
  index_t rows = kRows;
  bool parallel = true;  ///< else it runs on the calling thread
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
      return row.score(blockpack::MatrixView<const T>(w, row.rows, kCols), how);
    };
    if (row.reference != nullptr) {
      static std::unordered_map<std::string, double> expected;
      auto [known, fresh] = expected.try_emplace(row.name, 0.0);
      if (fresh) known->second = row.reference(blockpack::MatrixView<const T>(all.data(), row.rows, kCols));
      const double got = score();
      if (!(std::fabs(got - known->second) < row.tolerance))
        throw std::runtime_error("the entropy is wrong by " + std::to_string(got - known->second));
    }
    const double bytes = static_cast<double>(row.rows * kCols) * sizeof(T);
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

/// The statistics of the error of bf16.
void error_row(benchmark::State& state, int threads, std::uint64_t seed) {
  try {
    const LargeBuffer<float>& w = matrices<float>(0, seed);
    static LargeBuffer<float> rounded;
    if (rounded.size() != kSize) rounded = LargeBuffer<float>(kSize);
    double error = 0, norm = 0;
    for (index_t i = 0; i < kSize; ++i) {
      rounded[i] = static_cast<float>(bf16(w[i]));
      const double d = static_cast<double>(rounded[i]) - static_cast<double>(w[i]);
      error += d * d;
      norm += static_cast<double>(w[i]) * static_cast<double>(w[i]);
    }
    const blockpack::MatrixView<const float> reference(w.data(), kRows, kCols), other(rounded.data(), kRows, kCols);
    blockpack::Execution how;
    how.threads = threads;
    const auto measure = [&] {
      blockpack::ErrorStats stats;
      stats.add(reference, other, 0, how);
      return stats.relative_frobenius();
    };
    const double rel_error = std::sqrt(error / norm);
    if (!(std::fabs(measure() / rel_error - 1) < 1e-9)) throw std::runtime_error("the error is wrong");
    const double bytes = 2.0 * static_cast<double>(kSize) * sizeof(float);
    const double limit = limits().seconds(0, Arithmetic::f32, bytes, bytes, threads);
    const PinThreads pin(threads);
    const double seconds = time_calls(state, threads, 1, [&] { benchmark::DoNotOptimize(measure()); });
    state.counters["GBps"] = bytes / seconds * 1e-9;
    state.counters["limit_fraction"] = limit / seconds;
    state.counters["rel_error"] = rel_error;
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

double gardener(WeightView w, const blockpack::Execution& how) {
  return blockpack::gardener_score(blockpack::WeightBlock(w), {}, how).score();
}
double gardener_as_stored(WeightView w, const blockpack::Execution& how) {
  return blockpack::gardener_score(blockpack::WeightBlock(w), blockpack::ValueGrid::as_stored(), how).score();
}
double tile_map(WeightView w, const blockpack::Execution& how) {
  return blockpack::tile_map(w, blockpack::TileScore::entropy, 64, 64, {}, how).values[0];
}
double histogram(WeightView w, const blockpack::Execution&) {
  static std::vector<std::uint64_t> counts(blockpack::kHistogramBins);
  return w.visit([&](auto view) {
    if constexpr (std::is_same_v<typename decltype(view)::value_type, bf16>)
      blockpack::histogram_u16(std::span(reinterpret_cast<const std::uint16_t*>(view.data()), kSize), counts);
    return static_cast<double>(counts[0]);
  });
}
double bins(WeightView w, const blockpack::Execution& how) {
  blockpack::HistogramOptions options;
  options.rule = blockpack::BinRule::freedman_diaconis;
  return blockpack::histogram(w, options, how).differential_entropy();
}
/// One call of an estimator with the floats of whole rows.
template <class F>
double of_floats(WeightView w, const F& estimate) {
  return w.visit([&](auto view) -> double {
    if constexpr (std::is_same_v<typename decltype(view)::value_type, float>) return estimate(view);
    return 0.0;
  });
}
double gaussian(WeightView w, const blockpack::Execution&) {
  return of_floats(w, [](auto view) {
    return blockpack::gaussian_entropy(std::span(view.data(), static_cast<std::size_t>(view.rows() * view.cols())));
  });
}
double spacings(WeightView w, const blockpack::Execution&) {
  return of_floats(w, [](auto view) {
    const std::span<const float> all(view.data(), static_cast<std::size_t>(view.rows() * view.cols()));
    return blockpack::spacing_entropy(all, blockpack::SpacingEstimator::vasicek);
  });
}
double statistics(WeightView w, const blockpack::Execution& how) {
  return blockpack::weight_statistics(blockpack::WeightBlock(w), how).value_entropy;
}
double fields(WeightView w, const blockpack::Execution& how) {
  return blockpack::field_entropies(blockpack::WeightBlock(w), how).joint * std::numbers::ln2;
}
/// f(upper, lower) of the halves of the rows: two blocks, or the states before and after one.
template <class T, class F>
double of_halves(WeightView w, const F& f) {
  return w.visit([&](auto view) -> double {
    if constexpr (std::is_same_v<typename decltype(view)::value_type, T>)
      return f(view.rows_from(0, view.rows() / 2), view.rows_from(view.rows() / 2, view.rows() / 2));
    return 0.0;
  });
}
double pooled_gap(WeightView w, const blockpack::Execution& how) {
  return of_halves<bf16>(w, [&](auto a, auto b) {
    const blockpack::WeightBlock blocks[] = {blockpack::WeightBlock(a), blockpack::WeightBlock(b)};
    return blockpack::pooled_entropy_gap(blocks, {}, how)(0, 1);
  });
}
double influence(WeightView w, const blockpack::Execution& how) {
  return of_halves<float>(w, [&](auto a, auto b) { return blockpack::block_influence(a, b, how).value; });
}
double angle(WeightView w, const blockpack::Execution& how) {
  return of_halves<float>(
      w, [&](auto a, auto b) { return blockpack::angular_distance(a, b, blockpack::AngularTokens::mean, how).value; });
}
double increase(WeightView w, const blockpack::Execution& how) {
  return of_halves<float>(w, [&](auto a, auto b) { return blockpack::entropy_increase(a, b, {}, how); });
}
double nepenthe(WeightView w, const blockpack::Execution&) {
  return of_floats(w, [](auto view) {
    blockpack::NepentheScore score(view.cols());
    score.add(view);
    return score.score();
  });
}
double neighbours(WeightView w, const blockpack::Execution& how) {
  return of_floats(w, [&](auto view) { return blockpack::kozachenko_leonenko_entropy(view, 5, how); });
}

}  // namespace

void add_entropy_rows(Suite& suite, const Options& options) {
  constexpr EntropyRow kEntropyRows[] = {
      {"gardener-bf16", false, gardener, plug_in_reference},
      {"gardener-f32", true, gardener, nullptr},
      {"gardener-f32-as-stored", true, gardener_as_stored, plug_in_reference},
      {"tile-map-bf16", false, tile_map, nullptr},
      {"histogram-bf16", false, histogram, nullptr, 0, kRows, false},
      {"bins-f32", true, bins, bins_reference, 1e-5},
      {"gaussian-f32", true, gaussian, gaussian_reference, 1e-9, kRows, false},
      {"spacings-f32", true, spacings, spacing_reference, 1e-9, 256, false},
      {"neighbours-f32", true, neighbours, nullptr, 0, 256},
      {"statistics-bf16", false, statistics, value_entropy_reference},
      {"statistics-f32", true, statistics, value_entropy_reference},
      {"fields-bf16", false, fields, plug_in_reference},
      {"pooled-gap-bf16", false, pooled_gap, gap_reference},
      {"block-influence-f32", true, influence, influence_reference},
      {"angular-distance-f32", true, angle, angle_reference},
      {"entropy-increase-f32", true, increase, nullptr},
      {"nepenthe-f32", true, nepenthe, nepenthe_reference, 1e-9, kRows, false},
  };
  const auto place = [](index_t rows, int threads) {
    return "/blockpack/N:" + std::to_string(rows) + "/K:" + std::to_string(kCols) +
           "/threads:" + std::to_string(threads);
  };
  for (const EntropyRow& row : kEntropyRows)
    for (const bool dram : {false, true})
      for (int threads = 1; threads <= (row.parallel ? options.max_threads : 1); ++threads) {
        if (dram && row.rows < kRows) continue;  // it computes, whatever the memory
        const double footprint = dram ? kDramFootprint : 0;
        suite.add(std::string("entropy/") + row.name + place(row.rows, threads) + (dram ? "/tier:dram" : "/tier:llc"),
                  std::string("entropy/") + row.name + (dram ? "/dram" : ""),
                  [=, seed = options.seed](benchmark::State& s) {
                    row.f32 ? entropy_row<float>(s, row, footprint, threads, seed)
                            : entropy_row<bf16>(s, row, footprint, threads, seed);
                  });
      }
  for (int threads = 1; threads <= options.max_threads; ++threads)
    suite.add("error/bf16" + place(kRows, threads), "error",
              [=, seed = options.seed](benchmark::State& s) { error_row(s, threads, seed); });

  const auto add_convert = [&](const char* name, void (*body)(benchmark::State&, std::uint64_t)) {
    suite.add(std::string("convert/") + name + place(kRows, 1), "convert",
              [=, seed = options.seed](benchmark::State& s) { body(s, seed); });
  };
  add_convert("f32-bf16", convert_row<float, bf16>);
  add_convert("bf16-f32", convert_row<bf16, float>);
  add_convert("f32-fp16", convert_row<float, blockpack::fp16>);
  add_convert("fp16-f32", convert_row<blockpack::fp16, float>);
  add_convert("f32-e4m3", convert_row<float, blockpack::fp8_e4m3>);
  add_convert("e4m3-f32", convert_row<blockpack::fp8_e4m3, float>);
  add_convert("f32-e5m2", convert_row<float, blockpack::fp8_e5m2>);
  add_convert("e5m2-f32", convert_row<blockpack::fp8_e5m2, float>);
  add_convert("f32-e2m3", convert_row<float, blockpack::fp6_e2m3>);
  add_convert("e2m3-f32", convert_row<blockpack::fp6_e2m3, float>);
  add_convert("f32-e3m2", convert_row<float, blockpack::fp6_e3m2>);
  add_convert("e3m2-f32", convert_row<blockpack::fp6_e3m2, float>);
  add_convert("f32-e8m0", convert_row<float, blockpack::e8m0>);
  add_convert("e8m0-f32", convert_row<blockpack::e8m0, float>);
  add_convert("f32-e2m1", convert_row<float, blockpack::fp4_e2m1>);
  add_convert("e2m1-f32", convert_row<blockpack::fp4_e2m1, float>);
}

}  // namespace bench
