// SPDX-License-Identifier: Apache-2.0
// encode/…, decode/…: a float32 matrix into a scheme and back, through the registry, for every format of it, rotated or
// not; bytes and values are checked against the scalar templates, a peer's encoder must give the same bytes. GBps
// counts the float32 bytes, of the input when encoding, of the output when decoding.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <stdexcept>

#include "blockpack/core/random.hpp"
#include "blockpack/recipe/registry.hpp"
#include "large_buffer.hpp"
#include "limits.hpp"
#include "own/scalar_form.hpp"
#include "schemes.hpp"
#include "stopwatch.hpp"
#include "suite.hpp"

namespace bench {
namespace {

constexpr index_t kRows = 4096, kCols = 4096;

/// One matrix for all rows, and the stored form and operator of the newest scheme.
class Coded {
 public:
  Coded(const std::string& scheme, std::uint64_t seed) : codec_(blockpack::Registry::standard().codec(scheme)) {
    static LargeBuffer<float> shared;
    if (shared.size() == 0) {
      shared = LargeBuffer<float>(kRows * kCols);
      blockpack::fill_weights(blockpack::MatrixView<float>(shared.data(), kRows, kCols), seed);
    }
    w_ = shared.data();
    for (const blockpack::SectionSize& s : codec_->sections(shape())) {
      auto bytes = std::make_shared<blockpack::AlignedBuffer<std::byte>>(s.bytes);
      dst_.push_back(bytes->data());
      stored_.push_back({s.name, blockpack::SharedBytes(std::as_bytes(bytes->span()), bytes)});
      stored_bytes_ += static_cast<double>(s.bytes);
    }
    decoded_ = LargeBuffer<float>(kRows * kCols);
    rows_.resize(static_cast<std::size_t>(kRows));
    std::iota(rows_.begin(), rows_.end(), index_t{0});
    check();
  }

  void encode(const blockpack::Execution& how) {
    blockpack::EncodeOptions options;
    options.execution = how;
    const blockpack::MatrixView<const float> w(w_, kRows, kCols);
    fitted_ =
        blockpack::fitted(codec_, w, options);  // a pass of its own where there are parameters of the whole matrix
    fitted_->encode(w, 0, dst_, options);
  }
  void decode(int threads) {
    // decode_rows runs on the calling thread: the rows are dealt out here.
    blockpack::Execution how;
    how.threads = threads;
    constexpr index_t kStep = 64;
    blockpack::parallel_for(how, kRows / kStep, [&](index_t t) {
      operator_.decode_rows(std::span(rows_).subspan(static_cast<std::size_t>(t * kStep), kStep),
                            blockpack::MatrixView<float>(decoded_.data() + t * kStep * kCols, kStep, kCols));
    });
  }
  /// Throws unless the peer's bytes are ours; looks once.
  void check(const Encoder& peer, const std::string& scheme) {
    if (checked_ == peer.name) return;
    const auto ours = stored_[0].data.bytes;
    peers_ = LargeBuffer<std::byte>(static_cast<index_t>(ours.size()));
    const index_t written = encode_by(peer, scheme);
    if (stored_.size() != 1 || !std::equal(ours.begin(), ours.end(), peers_.begin(), peers_.begin() + written))
      throw std::runtime_error("the bytes of " + peer.name + " are not ours");
    checked_ = peer.name;
  }
  index_t encode_by(const Encoder& peer, const std::string& scheme) {
    return peer.encode(scheme, {w_, kRows, kCols}, peers_.data());
  }
  double rel_error() const noexcept { return rel_error_; }
  double bits_per_weight() const noexcept { return 8 * stored_bytes_ / static_cast<double>(kRows * kCols); }
  double stored_bytes() const noexcept { return stored_bytes_; }

 private:
  static blockpack::MatrixShape shape() { return {kRows, kCols}; }

  /// Bytes and decoded values must be those of the scalar templates.
  void check() {
    encode({});
    operator_ = codec_->open(shape(), stored_, blockpack::PackPolicy::none());
    decode(1);
    if (has_scalar_form(codec_->scheme())) {
      const ScalarForm scalar =
          scalar_form(codec_->scheme(), {w_, kRows, kCols}, codec_->row_wise() ? index_t{32} : kRows);
      for (std::size_t s = 0; s < stored_.size(); ++s)
        if (!std::equal(scalar.sections.at(s).begin(), scalar.sections.at(s).end(), stored_[s].data.bytes.begin()))
          throw std::runtime_error("the encoded bytes are not those of the scalar templates");
      if (!std::equal(scalar.values.begin(), scalar.values.end(), decoded_.data()))
        throw std::runtime_error("the decoded values are not those of the scalar templates");
    }
    double error = 0, norm = 0;
    for (index_t i = 0; i < kRows * kCols; ++i) {
      const double d = static_cast<double>(decoded_[i]) - static_cast<double>(w_[i]);
      error += d * d;
      norm += static_cast<double>(w_[i]) * static_cast<double>(w_[i]);
    }
    rel_error_ = std::sqrt(error / norm);
    if (!(rel_error_ < 1)) throw std::runtime_error("the decoded weights are wrong");
  }

  std::shared_ptr<const blockpack::Codec> codec_;
  std::shared_ptr<const blockpack::Codec> fitted_;  // to the whole matrix
  const float* w_ = nullptr;
  std::vector<std::byte*> dst_;
  std::vector<blockpack::Section> stored_;
  blockpack::AnyLinear operator_;
  LargeBuffer<float> decoded_;
  LargeBuffer<std::byte> peers_;  // what a peer's encoder wrote
  std::string checked_;           // the peer whose bytes were compared last
  std::vector<index_t> rows_;
  double stored_bytes_ = 0;
  double rel_error_ = 0;
};

Coded& coded(const std::string& scheme, std::uint64_t seed) {
  static std::unique_ptr<Coded> current;
  static std::string name;
  if (name != scheme || current == nullptr) {
    current.reset();
    current = std::make_unique<Coded>(scheme, seed);
    name = scheme;
  }
  return *current;
}

template <class F>
void codec_row(benchmark::State& state, Coded& c, int threads, const F& call) {
  constexpr double kFloats = 4.0 * kRows * kCols;
  const double footprint = kFloats + c.stored_bytes();
  const double limit = limits().seconds(0, Arithmetic::f32, footprint, footprint, threads);
  const PinThreads pin(threads);
  const double seconds = time_calls(state, threads, 1, call);
  state.counters["GBps"] = kFloats / seconds * 1e-9;
  state.counters["limit_fraction"] = limit / seconds;
  state.counters["bits_per_weight"] = c.bits_per_weight();
  state.counters["rel_error"] = c.rel_error();
}

void own_row(benchmark::State& state, const std::string& scheme, bool encoding, int threads, std::uint64_t seed) {
  try {
    Coded& c = coded(scheme, seed);
    blockpack::Execution how;
    how.threads = threads;
    codec_row(state, c, threads, [&] { encoding ? c.encode(how) : c.decode(threads); });
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

void peer_row(benchmark::State& state, const std::string& scheme, const Encoder& peer, std::uint64_t seed) {
  try {
    Coded& c = coded(scheme, seed);
    c.check(peer, scheme);
    codec_row(state, c, 1, [&] { c.encode_by(peer, scheme); });
  } catch (const std::exception& e) {
    state.SkipWithError(e.what());
  }
}

}  // namespace

void add_codec_rows(Suite& suite, const Contestants& contestants, const Options& options) {
  const std::string place = "/N:" + std::to_string(kRows) + "/K:" + std::to_string(kCols) + "/threads:";
  std::vector<std::string> schemes;
  for (const blockpack::ListedScheme& listed : blockpack::Registry::standard().listed())
    if (has_scalar_form(listed.scheme)) schemes.push_back(listed.scheme);
  for (const std::string& scheme : measured_schemes())
    if (std::find(schemes.begin(), schemes.end(), scheme) == schemes.end()) schemes.push_back(scheme);
  for (const std::string& scheme : schemes) {
    const std::string group = "codec/" + scheme;
    for (const bool encoding : {true, false})
      for (int threads = 1; threads <= options.max_threads; ++threads)
        suite.add((encoding ? "encode/" : "decode/") + scheme + "/blockpack" + place + std::to_string(threads), group,
                  [=, seed = options.seed](benchmark::State& s) { own_row(s, scheme, encoding, threads, seed); });
    for (const Encoder& peer : contestants.encoders)
      if (peer.serves(scheme))
        suite.add("encode/" + scheme + "/" + peer.name + place + "1", group,
                  [=, seed = options.seed](benchmark::State& s) { peer_row(s, scheme, peer, seed); });
  }
}

}  // namespace bench
