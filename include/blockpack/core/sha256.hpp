// SPDX-License-Identifier: Apache-2.0
#pragma once

/// SHA-256, to tell whether stored bytes are what they were. Not for secrets: nothing here is constant-time on purpose.
/// Source: FIPS 180-4.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "blockpack/core/config.hpp"

namespace blockpack::inline BLOCKPACK_ABI {

/// Takes bytes in pieces of any size; `digest` or `hex` ends it.
class Sha256 {
 public:
  using Digest = std::array<std::uint8_t, 32>;

  Sha256& update(std::span<const std::byte> bytes) noexcept {
    total_bytes_ += bytes.size();
    if (pending_ != 0) {
      const std::size_t take = bytes.size() < kBlock - pending_ ? bytes.size() : kBlock - pending_;
      if (take != 0) std::memcpy(buffer_.data() + pending_, bytes.data(), take);
      pending_ += take;
      bytes = bytes.subspan(take);
      if (pending_ != kBlock) return *this;
      compress(buffer_.data());
      pending_ = 0;
    }
    for (; bytes.size() >= kBlock; bytes = bytes.subspan(kBlock)) compress(bytes.data());
    if (!bytes.empty()) std::memcpy(buffer_.data(), bytes.data(), bytes.size());
    pending_ = bytes.size();
    return *this;
  }
  Sha256& update(std::string_view text) noexcept {
    return update(std::as_bytes(std::span<const char>(text.data(), text.size())));
  }

  /// The hash of everything so far; the object goes on from there as if it had not been asked.
  Digest digest() const noexcept {
    Sha256 last = *this;
    const std::uint64_t bits = total_bytes_ * 8;
    // A one bit, zeros, and the length in bits as the last 8 bytes of a block.
    std::array<std::byte, 2 * kBlock> tail{};
    tail[0] = std::byte{0x80};
    const std::size_t zeros = pending_ < kBlock - 8 ? kBlock - 8 - pending_ : 2 * kBlock - 8 - pending_;
    for (std::size_t i = 0; i < 8; ++i) tail[zeros + i] = static_cast<std::byte>(bits >> (56 - 8 * i));
    last.update(std::span<const std::byte>(tail.data(), zeros + 8));
    Digest result;
    for (std::size_t i = 0; i < result.size(); ++i)
      result[i] = static_cast<std::uint8_t>(last.state_[i / 4] >> (24 - 8 * (i % 4)));
    return result;
  }

  /// The digest in 64 lower-case hexadecimal digits.
  std::string hex() const {
    constexpr const char* kDigits = "0123456789abcdef";
    std::string text;
    text.reserve(64);
    for (const std::uint8_t byte : digest()) {
      text.push_back(kDigits[byte >> 4]);
      text.push_back(kDigits[byte & 15]);
    }
    return text;
  }

 private:
  static constexpr std::size_t kBlock = 64;

  void compress(const std::byte* block) noexcept {
    static constexpr std::uint32_t kRound[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    std::uint32_t w[64];
    const auto byte = [block](std::size_t i) { return std::to_integer<std::uint32_t>(block[i]); };
    for (std::size_t i = 0; i < 16; ++i)
      w[i] = byte(4 * i) << 24 | byte(4 * i + 1) << 16 | byte(4 * i + 2) << 8 | byte(4 * i + 3);
    for (std::size_t i = 16; i < 64; ++i) {
      const std::uint32_t s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ (w[i - 15] >> 3);
      const std::uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    // One round changes two of the eight words; the others move up one name, which eight rounds in a row undo.
    std::size_t i = 0;
    const auto round = [&](std::uint32_t ra, std::uint32_t rb, std::uint32_t rc, std::uint32_t& rd, std::uint32_t re,
                           std::uint32_t rf, std::uint32_t rg, std::uint32_t& rh) {
      const std::uint32_t s1 = std::rotr(re, 6) ^ std::rotr(re, 11) ^ std::rotr(re, 25);
      const std::uint32_t t1 = rh + s1 + (rg ^ (re & (rf ^ rg))) + kRound[i] + w[i];
      const std::uint32_t s0 = std::rotr(ra, 2) ^ std::rotr(ra, 13) ^ std::rotr(ra, 22);
      rd += t1;
      rh = t1 + s0 + ((ra & rb) | (rc & (ra | rb)));
      ++i;
    };
    while (i < 64) {
      round(a, b, c, d, e, f, g, h);
      round(h, a, b, c, d, e, f, g);
      round(g, h, a, b, c, d, e, f);
      round(f, g, h, a, b, c, d, e);
      round(e, f, g, h, a, b, c, d);
      round(d, e, f, g, h, a, b, c);
      round(c, d, e, f, g, h, a, b);
      round(b, c, d, e, f, g, h, a);
    }
    const std::uint32_t mixed[8] = {a, b, c, d, e, f, g, h};
    for (std::size_t j = 0; j < 8; ++j) state_[j] += mixed[j];
  }

  std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, kBlock> buffer_{};
  std::size_t pending_ = 0;
  std::uint64_t total_bytes_ = 0;
};

/// The hash of a run of bytes in hexadecimal.
inline std::string sha256_hex(std::span<const std::byte> bytes) { return Sha256().update(bytes).hex(); }

}  // namespace blockpack::inline BLOCKPACK_ABI
