// SPDX-License-Identifier: Apache-2.0
#pragma once

/// One matrix product as the suite sees it: weights prepared once, then y = x · Wᵀ run many times. Every
/// implementation, ours and the peers', stands behind this interface. It names no type of blockpack: an implementation
/// built from the headers alone lives in another inline namespace.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace bench {

using index_t = std::ptrdiff_t;

/// The arithmetic of a product: what its results are held to, and which peak its roofline uses.
enum class Arithmetic : std::uint8_t { f32, bf16, int8 };
inline std::string name_of(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::f32 ? "f32" : arithmetic == Arithmetic::bf16 ? "bf16" : "int8";
}

/// W [n, k] in float32, row-major and contiguous. Outlives every product made of it.
struct Weights {
  const float* data = nullptr;
  index_t n = 0;
  index_t k = 0;
};

/// The parts of a structured matrix: low rank, Monarch, BLAST, block-diagonal. Every value is exact in bf16, the
/// layouts are those of the operators' headers, and the weights beside it are the product of the parts. Outlives every
/// product made of it.
struct Factors {
  enum class Kind : std::uint8_t { low_rank, monarch, blast, block_diagonal };
  Kind kind = Kind::low_rank;
  index_t blocks = 1;  ///< of the input, and as many of the output
  index_t rank = 0;    ///< of the whole, of Monarch that of one block
  const float* left = nullptr;
  const float* right = nullptr;
  const float* coupling = nullptr;
};

/// x [m, k], contiguous: float32, or bf16 bit patterns in the rows of `matmul/bf16-x`.
struct Tokens {
  index_t m = 0;
  const float* f32 = nullptr;
  const std::uint16_t* bf16 = nullptr;  ///< set in place of f32
};

class Product {
 public:
  virtual ~Product() = default;

  /// y [m, n] float32, contiguous, on so many threads. The time of this call is what the suite reports.
  virtual void run(const Tokens& x, float* y, int threads) = 0;

  /// The same weights in memory of their own: GEMV rows rotate through several copies.
  virtual std::unique_ptr<Product> copy() const = 0;

  /// Bytes of weights that one call has to read.
  virtual double weight_bytes() const = 0;

  /// Multiply-adds a token takes, where the matrix is given in parts; 0: N · K.
  virtual double multiplies() const { return 0; }

  /// The row of the dense matrix that the prepared weights stand for.
  virtual void decode_row(index_t row, float* dst) const = 0;

  virtual Arithmetic arithmetic() const = 0;

  /// Which of several ways the implementation took, for the label of the row; empty where there is one.
  virtual std::string path() const { return {}; }
};

/// What a row of the table asks for.
struct Request {
  std::string scheme;  ///< of the weights: f32, bf16, int8-row, mxfp4 …
  Weights weights;
  index_t m = 0;
  bool bf16_x = false;               ///< x comes as bf16
  const Factors* factors = nullptr;  ///< of a structured scheme
};

/// Whether a scheme names a structured form: its products get factors.
inline bool structured(const std::string& scheme) {
  for (const char* family : {"lowrank-", "monarch-", "blast-", "blockdiag-"})
    if (scheme.rfind(family, 0) == 0) return true;
  return false;
}

/// A matrix of which `percent` of the blocks are zeros, at random: `bsr32x32-bf16@80`, `bsr4x1-int8-row@90`,
/// `bitmask-bf16@50` (blocks of 1x1).
struct PrunedBlocks {
  index_t rows = 0, cols = 0;  ///< of a block; 0: no such scheme
  unsigned percent = 0;
  std::string values;  ///< the scheme of what is kept: bf16 or int8-row
  explicit operator bool() const noexcept { return rows > 0; }
};
inline PrunedBlocks pruned_blocks(const std::string& scheme) {
  PrunedBlocks blocks;
  long rows = 1, cols = 1;
  char values[16] = {};
  if (std::sscanf(scheme.c_str(), "bsr%ldx%ld-%15[a-z0-9-]@%u", &rows, &cols, values, &blocks.percent) == 4 ||
      std::sscanf(scheme.c_str(), "bitmask-%15[a-z0-9-]@%u", values, &blocks.percent) == 2) {
    blocks.rows = rows;
    blocks.cols = cols;
    blocks.values = values;
  }
  return blocks;
}

/// Values a side of the blocks of `armor-b128-2:4-bf16`; 0: another scheme.
inline index_t armor_blocks(const std::string& scheme) {
  long side = 0;
  return std::sscanf(scheme.c_str(), "armor-b%ld-2:4-bf16", &side) == 1 ? side : 0;
}

struct Implementation {
  std::string name;
  bool (*serves)(const std::string& scheme, index_t m, index_t n, index_t k, bool bf16_x) = nullptr;
  std::unique_ptr<Product> (*prepare)(const Request& request) = nullptr;
};

/// A peer's encoder, on one thread, for schemes whose bytes must be ours.
struct Encoder {
  std::string name;
  bool (*serves)(const std::string& scheme) = nullptr;
  index_t (*encode)(const std::string& scheme, const Weights& w, std::byte* dst) = nullptr;  ///< bytes written
};

/// Name and version of a linked library, for the JSON context.
struct Peer {
  std::string name;
  std::string version;
};

/// Everything that was linked: blockpack first.
struct Contestants {
  std::vector<std::string> schemes;  ///< of the matmul rows, each once
  std::vector<Implementation> implementations;
  std::vector<Encoder> encoders;
  std::vector<Peer> peers;
};

void add_blockpack(Contestants& all);
void add_structured(Contestants& all);
void add_headers(Contestants& all);
void add_onednn(Contestants& all);
void add_openblas(Contestants& all);
void add_eigen(Contestants& all);
void add_libxsmm(Contestants& all);
void add_ggml(Contestants& all);

}  // namespace bench
