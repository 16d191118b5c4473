// SPDX-License-Identifier: Apache-2.0
// matmul/…: y = x · Wᵀ for every scheme, implementation, shape and number of threads.
//
// All implementations of one scheme and shape form a group: they get the same W and x, are checked against sums in
// double, and are then measured in turn. Up to 32 tokens the call rotates through copies of the weights that together
// fill the last-level cache (48 MB) or memory (800 MB); above, the weights are warm.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <stdexcept>

#include "blockpack/core/random.hpp"
#include "blockpack/core/scalar.hpp"
#include "factors.hpp"
#include "large_buffer.hpp"
#include "limits.hpp"
#include "stopwatch.hpp"
#include "suite.hpp"

namespace bench {
namespace {

/// One copy of weights larger than this does not stay in the last-level cache: the row belongs to memory.
constexpr double kLastLevelLargest = 100e6;

struct Case {
  std::string scheme;
  index_t m = 0, n = 0, k = 0;
  bool bf16_x = false;
  double footprint = 0;  ///< bytes of weights to rotate through, 0: one warm copy
};

/// Largest relative Frobenius error against the product with the decoded weights. bf16: two operands rounded by up to
/// 2^-9 each, or x and the values between two stages; int8: activations in steps of absmax/127, and the absmax is an
/// outlier's.
double tolerance(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::f32 ? 1e-5 : arithmetic == Arithmetic::bf16 ? 6e-3 : 0.15;
}

double dot(const float* a, const float* b, index_t k) {
  double sum[8] = {};
  index_t i = 0;
  for (; i + 8 <= k; i += 8)
    for (index_t j = 0; j < 8; ++j) sum[j] += static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
  for (; i < k; ++i) sum[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

/// W of one shape, some of its blocks pruned; the newest is kept, for many groups share it.
const LargeBuffer<float>& weights_of(const Case& c, std::uint64_t seed) {
  static LargeBuffer<float> kept;
  static std::string name;
  const PrunedBlocks blocks = pruned_blocks(c.scheme);
  const std::string wanted = (blocks ? c.scheme : "") + "/" + std::to_string(c.n) + "/" + std::to_string(c.k);
  if (name == wanted) return kept;
  kept = LargeBuffer<float>();
  kept = LargeBuffer<float>(c.n * c.k);
  name = wanted;
  const blockpack::MatrixView<float> w(kept.data(), c.n, c.k);
  blockpack::fill_weights(w, seed);
  if (!blocks) return kept;
  blockpack::Random random(seed);
  for (index_t row = 0; row < c.n; row += blocks.rows)
    for (index_t col = 0; col < c.k; col += blocks.cols) {
      if (random() % 100 >= blocks.percent) continue;
      for (index_t i = row; i < std::min(row + blocks.rows, c.n); ++i)
        std::fill_n(w.row_data(i) + col, std::min(blocks.cols, c.k - col), 0.0f);
    }
  return kept;
}

/// Factors of one scheme and shape and their product; the newest are kept.
const StructuredWeights& structured_weights_of(const Case& c, std::uint64_t seed) {
  static std::unique_ptr<StructuredWeights> kept;
  static std::string name;
  const std::string wanted = c.scheme + "/" + std::to_string(c.n) + "/" + std::to_string(c.k);
  if (name != wanted) {
    kept.reset();
    kept = std::make_unique<StructuredWeights>(c.scheme, c.n, c.k, seed);
    name = wanted;
  }
  return *kept;
}

/// Everything the rows of one group share. One group lives at a time.
class Group {
 public:
  Group(const Case& c, std::uint64_t seed)
      : case_(c),
        factors_(structured(c.scheme) ? &structured_weights_of(c, seed) : nullptr),
        w_(factors_ != nullptr ? factors_->product() : weights_of(c, seed)) {
    x_ = LargeBuffer<float>(c.m * c.k);
    // Activations have outlier channels too: the same look, wider.
    blockpack::fill_weights(blockpack::MatrixView<float>(x_.data(), c.m, c.k), seed + 1, 0, {1.0f});
    if (c.bf16_x) {
      x16_ = LargeBuffer<std::uint16_t>(x_.size());
      for (index_t i = 0; i < x_.size(); ++i) {
        const blockpack::bf16 v(x_[i]);
        std::memcpy(&x16_[i], &v, 2);
        x_[i] = static_cast<float>(v);  // the reference sees what the contestants see
      }
    }
    y_ = LargeBuffer<float>(c.m * c.n);
  }

  struct Contestant {
    std::vector<std::unique_ptr<Product>> copies;
    std::size_t next = 0;
    double rel_error = 0;
    std::map<int, std::string> verdict;  ///< by number of threads: empty when the result was right
  };

  /// The contestant, prepared and checked at that number of threads.
  Contestant& get(const Implementation& implementation, int threads) {
    Contestant& c = contestants_[implementation.name];
    if (c.copies.empty()) {
      const Request request{case_.scheme,
                            {w_.data(), case_.n, case_.k},
                            case_.m,
                            case_.bf16_x,
                            factors_ != nullptr ? &factors_->factors() : nullptr};
      c.copies.push_back(implementation.prepare(request));
      const double bytes = c.copies[0]->weight_bytes();
      const auto count =
          case_.footprint == 0 ? 1 : std::max<std::size_t>(1, static_cast<std::size_t>(case_.footprint / bytes));
      while (c.copies.size() < count) c.copies.push_back(c.copies[0]->copy());
    }
    if (!c.verdict.contains(threads)) c.verdict[threads] = check(c, threads);
    return c;
  }

  void run_next(Contestant& c, int threads) {
    Product& product = *c.copies[c.next];
    c.next = c.next + 1 == c.copies.size() ? 0 : c.next + 1;
    product.run(tokens(), y_.data(), threads);
  }

  const Case& shape() const noexcept { return case_; }

 private:
  Tokens tokens() const { return {case_.m, case_.bf16_x ? nullptr : x_.data(), case_.bf16_x ? x16_.data() : nullptr}; }

  /// Compares the results of the first and last copy with sums in double over the decoded weights: the first token for
  /// every output, and every token for 24 outputs. Also sets rel_error, against the weights before encoding.
  std::string check(Contestant& c, int threads) {
    const index_t m = case_.m, n = case_.n, k = case_.k;
    std::vector<float> row(static_cast<std::size_t>(k));
    // The first call of a copy may do lazy work; none of it belongs into a timed loop.
    for (const auto& product : c.copies) product->run(tokens(), y_.data(), threads);
    for (Product* product : {c.copies.front().get(), c.copies.back().get()}) {
      std::fill(y_.begin(), y_.end(), std::numeric_limits<float>::quiet_NaN());
      product->run(tokens(), y_.data(), threads);
      double error = 0, norm = 0, loss = 0, scale = 0;
      for (index_t j = 0; j < n; ++j) {
        product->decode_row(j, row.data());
        const bool sampled = j * 24 / n != (j - 1) * 24 / n || j == 0 || j + 1 == n;
        for (index_t i = 0; i < (sampled ? m : 1); ++i) {
          const double got = static_cast<double>(y_[i * n + j]);
          const double wanted = dot(x_.data() + i * k, row.data(), k);
          error += (got - wanted) * (got - wanted);
          norm += wanted * wanted;
          if (!sampled) continue;
          const double original = dot(x_.data() + i * k, w_.data() + j * k, k);
          loss += (got - original) * (got - original);
          scale += original * original;
        }
      }
      const double relative = std::sqrt(error / norm);
      if (!(relative <= tolerance(product->arithmetic())))
        return "the result is wrong: relative error " + std::to_string(relative);
      c.rel_error = std::sqrt(loss / scale);
      if (c.copies.size() == 1) break;
    }
    return {};
  }

  Case case_;
  const StructuredWeights* factors_;
  const LargeBuffer<float>& w_;
  LargeBuffer<float> x_;
  LargeBuffer<std::uint16_t> x16_;
  LargeBuffer<float> y_;
  std::map<std::string, Contestant> contestants_;
};

/// The group of that name; the one before it is freed first, with all its copies.
Group& current_group(const std::string& name, const Case& c, std::uint64_t seed) {
  static std::unique_ptr<Group> group;
  static std::string current;
  if (current != name || group == nullptr) {
    group.reset();
    group = std::make_unique<Group>(c, seed);
    current = name;
  }
  return *group;
}

void matmul_row(benchmark::State& state, const std::string& group_name, const Case& c,
                const Implementation& implementation, int threads, std::uint64_t seed) {
  try {
    Group& group = current_group(group_name, c, seed);
    Group::Contestant& contestant = group.get(implementation, threads);
    const std::string& verdict = contestant.verdict[threads];
    if (!verdict.empty()) throw std::runtime_error(verdict);

    const Product& product = *contestant.copies[0];
    const double m = static_cast<double>(c.m), n = static_cast<double>(c.n), k = static_cast<double>(c.k);
    const double operations = 2 * m * n * k;
    const double bytes = product.weight_bytes() + m * k * (c.bf16_x ? 2 : 4) + m * n * 4;
    const double footprint = static_cast<double>(contestant.copies.size()) * product.weight_bytes();
    const double taken = product.multiplies() > 0 ? 2 * m * product.multiplies() : operations;
    const double limit = limits().seconds(taken, product.arithmetic(), bytes, footprint, threads);

    // Warm: every copy three times where they fit the last-level cache, for one pass need not displace what was there.
    const std::size_t warm = c.footprint >= kDramFootprint ? 2 : 3 * contestant.copies.size();
    const PinThreads pin(threads);
    const double seconds = time_calls(state, threads, warm, [&] { group.run_next(contestant, threads); });

    state.counters["GBps"] = bytes / seconds * 1e-9;
    state.counters["GOPS"] = operations / seconds * 1e-9;
    state.counters["limit_fraction"] = limit / seconds;
    state.counters["bits_per_weight"] = 8 * product.weight_bytes() / (n * k);
    state.counters["rel_error"] = contestant.rel_error;
    const std::string path = product.path();
    state.SetLabel(name_of(product.arithmetic()) + (path.empty() ? "" : " " + path));
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

}  // namespace

namespace {

struct Shape {
  index_t n, k;
};
struct Tier {
  const char* suffix;
  double footprint;
};

/// Memory the weights of a case lie in, so many bytes a copy: by the number of tokens and their size.
std::vector<Tier> tiers_of(index_t m, double bytes, double smallest_in_dram) {
  if (m > 32) return {{"", 0}};
  std::vector<Tier> tiers;
  if (bytes <= kLastLevelLargest) tiers.push_back({"/tier:llc", kLastLevelFootprint});
  if (bytes > kLastLevelLargest || (m == 1 && bytes > smallest_in_dram))
    tiers.push_back({"/tier:dram", kDramFootprint});
  return tiers;
}

/// A row for every implementation that serves the case and that `wanted` takes, on 1 … max_threads.
template <class Wanted>
void add_rows(Suite& suite, const Contestants& contestants, const Options& options, Case c, const Tier& tier,
              const Wanted& wanted) {
  c.footprint = tier.footprint;
  const std::string place = "/M:" + std::to_string(c.m) + "/N:" + std::to_string(c.n) + "/K:" + std::to_string(c.k);
  const std::string head = std::string("matmul/") + (c.bf16_x ? "bf16-x/" : "") + c.scheme;
  const std::string group = head + place + tier.suffix;
  for (const Implementation& implementation : contestants.implementations) {
    if (!implementation.serves(c.scheme, c.m, c.n, c.k, c.bf16_x) || !wanted(implementation)) continue;
    for (int threads = 1; threads <= options.max_threads; ++threads)
      suite.add(head + "/" + implementation.name + place + "/threads:" + std::to_string(threads) + tier.suffix, group,
                [=, seed = options.seed](benchmark::State& state) {
                  matmul_row(state, group, c, implementation, threads, seed);
                });
  }
}

void add_rows(Suite& suite, const Contestants& contestants, const Options& options, const Case& c, const Tier& tier) {
  add_rows(suite, contestants, options, c, tier, [](const Implementation&) { return true; });
}

/// Structured layers of real models, each family at about the same number of parameters: LLaMA 7B (q, gate, down),
/// LLaMA 3.2 1B (q, gate, up, down), GPT-2 small (c_attn, c_fc, c_proj), ViT-B (qkv, fc1, fc2), DiT-XL/2 (qkv, fc1).
struct StructuredCase {
  Shape shape;
  std::vector<const char*> schemes;
  bool full;  ///< rows on two threads; elsewhere one is enough
};
const std::vector<StructuredCase>& structured_cases() {
  using Schemes = std::vector<const char*>;
  static const Schemes wide = {"lowrank-r1488-bf16", "monarch-b16-r1536-bf16", "blast-b16-r1488-bf16"};
  static const Schemes up = {"lowrank-r768-bf16", "monarch-b16-r768-bf16", "blast-b16-r768-bf16"};
  static const Schemes gpt = {"lowrank-r192-bf16", "monarch-b4-r192-bf16", "blast-b6-r192-bf16"};
  static const Schemes vit = {"lowrank-r128-bf16", "monarch-b4-r128-bf16", "blast-b3-r128-bf16"};
  static const std::vector<StructuredCase> all = {
      {{4096, 4096},
       {"lowrank-r1024-bf16", "monarch-b16-r1024-bf16", "blast-b16-r1024-bf16", "blockdiag-b16-bf16"},
       true},
      {{11008, 4096}, wide, true},
      {{4096, 11008}, wide, true},
      {{2048, 2048}, {"lowrank-r256-bf16", "monarch-b16-r256-bf16", "blast-b16-r256-bf16"}, false},
      {{8192, 2048}, {"lowrank-r512-bf16", "monarch-b16-r512-bf16", "blast-b16-r512-bf16"}, false},
      {{8192, 2048}, up, false},
      {{2048, 8192}, up, false},
      {{2304, 768}, gpt, false},
      {{3072, 768}, gpt, false},
      {{768, 3072}, gpt, false},
      {{2304, 768}, vit, false},
      {{3072, 768}, vit, false},
      {{768, 3072}, vit, false},
      {{3456, 1152}, {"lowrank-r384-bf16", "blast-b9-r384-bf16"}, false},
      {{4608, 1152}, {"lowrank-r256-bf16", "blast-b9-r256-bf16"}, false}};
  return all;
}

/// Ours everywhere; what it is held to where a bar says so: unfused forms, and oneDNN's of the parts, from 128 tokens
/// on; the dense matrix, ours and oneDNN's, on 4096 x 4096.
void add_structured_rows(Suite& suite, const Contestants& contestants, const Options& options) {
  for (const StructuredCase& c : structured_cases())
    for (const index_t m : {1, 128, 512, 1024}) {
      const bool square = c.shape.n == 4096 && c.shape.k == 4096;
      if (m == 512 && !square) continue;
      Options rows = options;
      if (!c.full) rows.max_threads = 1;
      for (const char* scheme : c.schemes)
        for (const Tier& tier : tiers_of(m, static_cast<double>(c.shape.n * c.shape.k), 15e6))
          add_rows(suite, contestants, rows, {scheme, m, c.shape.n, c.shape.k}, tier, [&](const Implementation& i) {
            if (i.name == "blockpack") return true;
            const bool of_parts = i.name == "unfused" || i.name.ends_with("-parts");
            return m > 1 && (of_parts || square);
          });
    }
}

}  // namespace

void add_matmul_rows(Suite& suite, const Contestants& contestants, const Options& options) {
  for (const Shape shape : {Shape{4096, 4096}, {11008, 4096}, {4096, 11008}, {768, 768}, {3072, 768}, {768, 3072}})
    for (const index_t m : {1, 8, 32, 128, 512})
      for (const std::string& scheme : contestants.schemes)
        for (const bool bf16_x : {false, true}) {
          if (bf16_x && scheme != "bf16") continue;
          const double bytes = (scheme == "f32" ? 4.0 : 2.0) * static_cast<double>(shape.n * shape.k);
          for (const Tier& tier : tiers_of(m, bytes, 30e6))
            add_rows(suite, contestants, options, {scheme, m, shape.n, shape.k, bf16_x}, tier);
        }
  add_structured_rows(suite, contestants, options);
  for (const Shape shape : {Shape{4096, 4096}, {3072, 768}, {768, 3072}})
    for (const char* block : {"bsr32x32", "bsr16x32"})
      for (const char* percent : {"70", "80", "90"})
        for (const index_t m : {1, 32, 128, 512})
          for (const Tier& tier : tiers_of(m, 2.0 * static_cast<double>(shape.n * shape.k), 30e6))
            add_rows(suite, contestants, options, {std::string(block) + "-bf16@" + percent, m, shape.n, shape.k}, tier);
  for (const Shape shape : {Shape{4096, 4096}, {3072, 768}, {768, 3072}, {768, 768}})
    for (const char* block : {"bsr32x32", "bsr16x32", "bsr64x32", "bsr4x1"})
      for (const char* percent : {"70", "80", "90"})
        for (const index_t m : {32, 128, 384, 512}) {
          // The shapes and tokens of BERT for 4x1, those above for the others.
          if (std::string(block) == "bsr4x1" ? m == 32 || m == 512 : m == 384 || (shape.n == 768 && shape.k == 768))
            continue;
          for (const Tier& tier : tiers_of(m, static_cast<double>(shape.n * shape.k), 30e6))
            add_rows(suite, contestants, options, {std::string(block) + "-int8-row@" + percent, m, shape.n, shape.k},
                     tier);
        }
  for (const Shape shape : {Shape{4096, 4096}, {11008, 4096}})
    for (const index_t m : {1, 8, 32, 128})
      for (const Tier& tier : tiers_of(m, 2.0 * static_cast<double>(shape.n * shape.k), 30e6))
        for (const char* scheme : {"bitmask-bf16@50", "armor-b128-2:4-bf16"})
          add_rows(suite, contestants, options, {scheme, m, shape.n, shape.k}, tier);
}

}  // namespace bench
